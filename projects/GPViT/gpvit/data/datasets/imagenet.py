"""ImageNet-1k (ILSVRC 2012): a folder for each class, or the flat validation set with its list.

Expected in ``$DETECTRON2_DATASETS/imagenet``::

    train/n01440764/*.JPEG ...    a folder for each of the 1000 WordNet IDs
    val/n01440764/*.JPEG ...      the same
    val/ILSVRC2012_val_*.JPEG     or all images in one folder, with one of these lists:

``val.txt`` (lines such as ``ILSVRC2012_val_00000001.JPEG 65``, the class from 0 to 999 in the order
of the WordNet IDs) or ``LOC_val_solution.csv`` of Kaggle (WordNet IDs), next to the images, in the
folder above, or in ``meta`` there.
"""

import csv
import hashlib
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog

from ...model_zoo import IMAGENET_CLASSES
from ...utils.errors import UserError, preview
from ...utils.text import LINE_LIMIT, PATH_LIMIT, one_line
from ..image_io import SUFFIXES

logger = logging.getLogger(__name__)

FOLDER = "imagenet"
NUM_IMAGES = {"train": 1_281_167, "val": 50_000}
# SHA-256 of the sorted WordNet IDs of the classes, one per line.
WORDNET_DIGEST = "385e0240499426c022b773be1ae4da780f057b89c9694c7f47199f62746b6edd"
LISTS = ("val.txt", "LOC_val_solution.csv")
DEVKIT_LIST = "ILSVRC2012_validation_ground_truth.txt"


def read_imagenet(folder: Path, num_images: int) -> list[dict[str, Any]]:
    """Return the records of ImageNet's training or validation set.

    Args:
        folder: "train" or "val".
        num_images: a different number is logged as a warning.

    Raises:
        UserError: the folders are not those of the 1000 classes, an image is not listed or a listed
            image does not exist.
    """
    classes = [entry.name for entry in _entries(folder) if entry.is_dir()]
    if classes and not _images_in(folder):
        _require_wordnet_ids(classes, folder)
        labels = {}
        for label, wordnet_id in enumerate(classes):
            for image in _images_in(folder / wordnet_id):
                labels[f"{wordnet_id}/{image}"] = label
    else:
        labels = _listed(folder)
    if len(labels) != num_images:
        logger.warning(
            f"{_shown(folder)} has {len(labels)} images instead of {num_images}: its results are "
            "not comparable with published ones"
        )
    records = []
    for number, (path, label) in enumerate(labels.items(), start=1):
        records.append({"file_name": f"{folder}/{path}", "image_id": number, "label": label})
    return records


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """Return the sorted entries of a folder that are not hidden; raise a UserError if it cannot."""
    try:
        entries = [entry for entry in os.scandir(folder) if entry.name[0] not in ".@"]
    except OSError as error:
        raise UserError(f"{_shown(folder)}: cannot be listed ({error.strerror})") from None
    return sorted(entries, key=lambda entry: entry.name)


def _images_in(folder: Path) -> list[str]:
    names = []
    for entry in _entries(folder):
        if os.path.splitext(entry.name)[1].lower() in SUFFIXES:
            names.append(entry.name)
    return names


def _require_wordnet_ids(names: list[str], source: Path) -> None:
    """Raise a UserError unless these are the sorted IDs of ImageNet's classes."""
    if hashlib.sha256("\n".join(names).encode(errors="replace")).hexdigest() == WORDNET_DIGEST:
        return
    raise UserError(
        f"{_shown(source)} has {len(names)} classes ({preview(names)}), which are not the WordNet "
        f"IDs of ImageNet's {len(IMAGENET_CLASSES)} classes; for other classes, use --data"
    )


def _listed(folder: Path) -> dict[str, int]:
    """Return the label of each image of a flat folder, by its list."""
    images = _images_in(folder)
    places = (folder, folder.parent, folder.parent / "meta")
    for name in LISTS:
        for place in places:
            if (place / name).is_file():
                labels = _read_list(place / name)
                _require_same(images, labels, folder, place / name)
                return {image: labels[image] for image in images}
    hint = ""
    if any((place / DEVKIT_LIST).is_file() for place in places):
        hint = f" ({DEVKIT_LIST} numbers the classes in another order)"
    raise UserError(
        f"{_shown(folder)} has {len(images)} images in no class folders: add {' or '.join(LISTS)}, "
        f"which lists their classes{hint}"
    )


def _read_list(path: Path) -> dict[str, int]:
    try:
        if path.suffix == ".csv":
            return _read_kaggle(path)
        labels = {}
        for line in path.read_text(encoding="utf-8-sig").splitlines():
            if not line.strip():
                continue
            image, label = line.split()
            if not 0 <= int(label) < len(IMAGENET_CLASSES):
                raise ValueError(f"class {label}")
            labels[image] = int(label)
        return labels
    except (OSError, ValueError, LookupError, AttributeError, csv.Error) as error:
        reason = one_line(f"{type(error).__name__}: {error}", LINE_LIMIT)
        raise UserError(f"{_shown(path)}: cannot be used ({reason}); get it again") from None


def _read_kaggle(path: Path) -> dict[str, int]:
    """Read lines such as ``ILSVRC2012_val_00048981,n03995372 85 1 499 272``, a class and boxes."""
    wordnet_ids = {}
    with open(path, encoding="utf-8-sig", newline="") as file:
        for row in csv.DictReader(file):
            wordnet_ids[f"{row['ImageId']}.JPEG"] = row["PredictionString"].split()[0]
    classes = sorted(set(wordnet_ids.values()))
    _require_wordnet_ids(classes, path)
    index = {wordnet_id: label for label, wordnet_id in enumerate(classes)}
    return {image: index[wordnet_id] for image, wordnet_id in wordnet_ids.items()}


def _require_same(images: list[str], labels: Mapping[str, int], folder: Path, path: Path) -> None:
    unlisted = [image for image in images if image not in labels]
    missing = sorted(labels.keys() - set(images))
    if unlisted:
        raise UserError(
            f"{_shown(path)} does not list {len(unlisted)} images of {_shown(folder)}: "
            f"{preview(unlisted)}"
        )
    if missing:
        raise UserError(
            f"{_shown(folder)} lacks {len(missing)} images of {_shown(path)}: {preview(missing)}"
        )


def _shown(path: Path) -> str:
    return one_line(path, PATH_LIMIT)


def register_imagenet(root: str) -> None:
    """Register ImageNet-1k as ``imagenet_1k_train`` and ``imagenet_1k_val``.

    Args:
        root: the folder that contains "imagenet"; it is read when the data is used.
    """
    for split, num_images in NUM_IMAGES.items():
        folder = Path(root, FOLDER, split)

        def records(folder: Path = folder, num_images: int = num_images) -> list[dict[str, Any]]:
            return read_imagenet(folder, num_images)

        name = f"imagenet_1k_{split}"
        DatasetCatalog.register(name, records)
        MetadataCatalog.get(name).set(
            thing_classes=IMAGENET_CLASSES,
            evaluator_type="classification",
            image_root=str(folder),
            root_folder=FOLDER,
        )


register_imagenet(os.path.expanduser(os.environ.get("DETECTRON2_DATASETS", "datasets")))
