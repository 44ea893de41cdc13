"""Datasets for semantic segmentation: folders of images and of label maps."""

import os
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog

from ...model_zoo import ADE20K_CLASSES
from ...utils.errors import UserError, preview
from ...utils.text import PATH_LIMIT, one_line
from ..image_io import SUFFIXES
from .image_names import files_below

ADE20K_FOLDERS = {"ade20k_train": "training", "ade20k_val": "validation"}


def pair_by_stem(images: Path, labels: Path, label_offset: int = 0) -> list[dict[str, Any]]:
    """Return the records of the images of a folder and their label maps in another one.

    Args:
        images: is searched with its subfolders.
        labels: has a file of the same path, except for the suffix, for each image.
        label_offset: of its files, see :func:`.read_labels`.

    Returns:
        Records with "file_name", "sem_seg_file_name" and "label_offset", sorted.

    Raises:
        UserError: a folder has no images, an image has no label map or several, or a label map has
            no image.
    """
    image_paths, label_paths = _by_stem(images), _by_stem(labels)
    for these, folder, others, other_folder in (
        (image_paths, images, label_paths, labels),
        (label_paths, labels, image_paths, images),
    ):
        alone = [these[stem] for stem in these if stem not in others]
        if alone:
            raise UserError(
                f"{_shown(folder)}: {len(alone)} of {len(these)} files have none of the same name "
                f"in {_shown(other_folder)}: {preview(alone)}; add or remove them"
            )
    records = []
    for stem, path in sorted(image_paths.items()):
        records.append(
            {
                "file_name": str(images / path),
                "sem_seg_file_name": str(labels / label_paths[stem]),
                "label_offset": label_offset,
            }
        )
    return records


def _by_stem(folder: Path) -> dict[str, str]:
    """Return the images below a folder: path without suffix -> path."""
    found: dict[str, str] = {}
    for path in files_below(folder):
        stem, suffix = os.path.splitext(path)
        if suffix.lower() not in SUFFIXES:
            continue
        if stem in found:
            raise UserError(
                f"{_shown(folder)}: {found[stem]} and {path} have the same name; keep one of them"
            )
        found[stem] = path
    if not found:
        raise UserError(f"{_shown(folder)}: there are no images; check the path")
    return found


def _shown(folder: Path) -> str:
    return one_line(folder, PATH_LIMIT)


def register_ade20k(root: str) -> None:
    """Register the scene parsing benchmark of ADE20K as ``ade20k_train`` and ``ade20k_val``.

    Its original label maps are used, which store class k as k + 1, and 0 for other things.
    Detectron2's ``ade20k_sem_seg_train`` needs converted copies of them.

    Args:
        root: the folder that contains ADEChallengeData2016; it is read when the data is used.
    """
    for name, split in ADE20K_FOLDERS.items():
        images = Path(root, "ADEChallengeData2016", "images", split)
        labels = Path(root, "ADEChallengeData2016", "annotations", split)

        def records(images: Path = images, labels: Path = labels) -> list[dict[str, Any]]:
            return pair_by_stem(images, labels, label_offset=1)

        DatasetCatalog.register(name, records)
        MetadataCatalog.get(name).set(
            stuff_classes=ADE20K_CLASSES,
            ignore_label=255,
            evaluator_type="sem_seg",
            image_root=str(images),
            sem_seg_root=str(labels),
            root_folder="ADEChallengeData2016",
        )


register_ade20k(os.path.expanduser(os.environ.get("DETECTRON2_DATASETS", "datasets")))
