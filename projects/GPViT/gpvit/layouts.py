"""Where annotations and images are in a folder of one's own data."""

from pathlib import Path
from typing import NamedTuple

from . import annotations
from .errors import UserError


class Split(NamedTuple):
    """A file of annotations in COCO format, and the folder that the names of its images are relative to."""

    json_file: Path
    images: Path


def find(data: str) -> dict[str, Split]:
    """The "train" and "val" split of one's own data.

    Args:
        data: a folder with ``annotations/train.json``, ``annotations/val.json`` (COCO format) and ``images/``.

    Raises:
        UserError: files are missing.
    """
    root = Path(data)
    splits = {split: Split(root / "annotations" / f"{split}.json", root / "images") for split in ("train", "val")}
    for path in (*(split.json_file for split in splits.values()), root / "images"):
        if not path.exists():
            raise UserError(
                f"--data {root}: {path} is missing; needed are annotations/train.json, annotations/val.json and images/"
            )
    return splits


def read(data: str, split: str, *, masks: bool = True) -> annotations.CocoFile:
    """A split of one's own data, with the rules of :mod:`gpvit.annotations` applied to it.

    Args:
        data: as above.
        split: "train" or "val".
        masks: whether every annotation must have a mask.

    Raises:
        UserError: files are missing, or the annotations have a problem that stops.
    """
    json_file, images = find(data)[split]
    file = annotations.read(json_file, images, masks=masks, train=split == "train")
    file.stop_if_fatal()
    return file
