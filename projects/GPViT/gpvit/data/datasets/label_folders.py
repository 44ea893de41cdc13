"""Datasets of images and label maps in folders: which label map belongs to which image.

An image is a label map if one of its folders is named so (:data:`LABEL_FOLDERS`), or if its name is
that of another image in its folder with an ending such as ``_mask`` (:data:`ENDINGS`). Image and
label map belong together if their paths are equal without these folders, those of images
(:data:`IMAGE_FOLDERS`), the suffix, and if necessary the ending::

    images/train/a.jpg     labels/train/a.png
    train/images/a.jpg     train/masks/a_mask.png
    train/a.jpg            train/a_mask.png

Words in the names of the remaining folders state the split, as for other custom datasets.
"""

import os
from pathlib import Path, PurePath
from typing import NamedTuple

from ...utils.errors import UserError, preview
from .coco_rules import Problem
from .file_tree import Tree, split_of
from .splits import split_images

LABEL_FOLDERS = {
    *("annotation", "annotations", "groundtruth", "ground_truth", "gt", "label", "label_maps"),
    *("labels", "mask", "masks", "segmentation", "segmentations", "segmentationclass", "semantic"),
}
IMAGE_FOLDERS = {"image", "images", "img", "imgs", "jpegimages"}
SKIPPED_FOLDERS = {"segmentationobject"}  # instances, next to the classes in Pascal VOC's layout
ENDINGS = ("_mask", "_masks", "_label", "_labels", "_gt", "_seg", "_segmentation", "_l")


class Pairs(NamedTuple):
    """The images of a dataset with their label maps.

    Attributes:
        tree: the files of the dataset.
        splits: "train" and "val", one of which may be missing: label map by image, both relative
            to the root, in the order of the images.
        problems: files without a counterpart.
        notes: decisions to report to the user.
    """

    tree: Tree
    splits: dict[str, dict[str, str]]
    problems: list[Problem]
    notes: list[str]


def find_pairs(data: str) -> Pairs | None:
    """Find the images and label maps below a folder.

    Args:
        data: a folder.

    Returns:
        The pairs; None if no label map has an image.

    Raises:
        UserError: an image has several label maps or the other way around, or the split of some of
            the images only is stated.
    """
    tree = Tree(Path(data))
    images: dict[str, list[str]] = {}  # by what identifies them
    labels: dict[str, list[str]] = {}
    stems = {os.path.splitext(path)[0] for path in tree.images}
    for path in tree.images:
        folders = [part.lower() for part in PurePath(path).parts[:-1]]
        if SKIPPED_FOLDERS.intersection(folders):
            continue
        is_label = LABEL_FOLDERS.intersection(folders) or _has_image_beside(path, stems)
        (labels if is_label else images).setdefault(_identity(path), []).append(path)
    pairs: dict[str, str] = {}  # label map by image
    alone = []
    for identity, paths in labels.items():
        found = images.get(identity) or images.get(_without_ending(identity)) or []
        if len(found) > 1:
            raise UserError(f"--data {data}: {preview(found)} have the same name; keep one")
        if not found:
            alone += paths
            continue
        [image] = found
        if image in pairs or len(paths) > 1:
            both = paths if len(paths) > 1 else [pairs[image], *paths]
            raise UserError(
                f"--data {data}: {image} has several label maps, {preview(both)}; keep one"
            )
        else:
            pairs[image] = paths[0]
    if not pairs:
        return None
    problems = []
    for paths in images.values():
        problems += [Problem("no label map", detail=path) for path in paths if path not in pairs]
    problems += [Problem("no image", detail=path) for path in sorted(alone)]
    stated = {}
    for image in pairs:
        stated[image] = split_of(PurePath(_identity(image)).parent)
    try:
        parts, notes = split_images(stated)
    except UserError as error:
        raise UserError(f"--data {data}: {error}") from None
    splits = {}
    for split, names in parts.items():
        splits[split] = {image: pairs[image] for image in sorted(names)}
    return Pairs(tree, splits, problems, notes)


def _has_image_beside(path: str, stems: set[str]) -> bool:
    """Whether the name is that of an image in the same folder with an ending.

    Args:
        path: of an image.
        stems: paths of all images without suffix.
    """
    stem = os.path.splitext(path)[0]
    shorter = _without_ending(stem)
    return shorter != stem and shorter in stems


def _identity(path: str) -> str:
    """Return the path without folders for images or label maps, and without suffix."""
    *folders, name = PurePath(path).with_suffix("").parts
    kept = [folder for folder in folders if folder.lower() not in LABEL_FOLDERS | IMAGE_FOLDERS]
    return str(PurePath(*kept, name))


def _without_ending(identity: str) -> str:
    for ending in ENDINGS:
        if identity.lower().endswith(ending):
            return identity[: -len(ending)]
    return identity
