"""YOLO segmentation: images and their files of labels."""

import math
import os
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import NamedTuple

from supervision import Detections
from supervision.dataset.formats.yolo import yolo_annotations_to_detections

from ...utils.errors import UserError, preview
from ...utils.text import PATH_LIMIT, decoded, one_line, shown
from . import yolo_yaml
from .file_tree import WORDS, Tree, form
from .to_coco import (
    ConvertedImage,
    DataSet,
    Fault,
    Object,
    by_folder,
    category_numbers,
    readable,
    sizes_of,
)

NO_LABELS = {"classes.txt", "labels.txt", "notes.txt", "predefined_classes.txt", "requirements.txt"}
MOST_SHARE = (
    2.0  # of a side of the image that a coordinate may be; what is a bit outside is clipped
)
NUMBER = r"[-+]?[\d.]+([eE][-+]?\d+)?"


class Labels(NamedTuple):
    """Which file of labels belongs to which image.

    of: the label file of each image, or None; unread: label files of images of kinds that are not
    read; lost: those of no image; spare: those of images that have another; renamed: those whose
    names are the image's only by their meaning.
    """

    of: dict[str, str | None]
    unread: list[str]
    lost: list[str]
    spare: list[str]
    renamed: list[str]


def from_yolo(yaml_file: Path, tree: Tree) -> DataSet:
    """Reads a YOLO dataset: lines of a class and the corners of an outline, or a box, in normalized coordinates.

    Args:
        yaml_file: has the names of the classes, and may say which images are of which split (see :mod:`.yolo_yaml`).
        tree: the files of the dataset. The labels of images/.../NAME.jpg are in labels/.../NAME.txt or beside it. An image
            without is one without objects if the YAML file names it, or if it lies with or below others that have labels.

    Raises:
        UserError: the YAML file cannot be followed, or no image has labels.
    """
    description = yolo_yaml.describe(yaml_file)
    if "kpt_shape" in description.content:
        raise UserError(f"{yaml_file} is of key points (kpt_shape), not of outlines")
    labels = _labels_of_images(tree)
    stated = description.stated(tree)
    splits = _yolo_splits(stated, labels, yaml_file, tree)
    notes = [*stated.notes, *_remarks(splits, stated, labels, yaml_file, tree)]
    pictures = []
    faults = [Fault(*fault) for fault in stated.faults]
    read: dict[str, Lines] = {}
    for name, size in zip(splits, sizes_of(tree.root, splits)):
        label = labels.of[name]
        if isinstance(size, UserError):
            faults.append(Fault("unreadable", str(size), name))
        else:
            read[name] = (
                _read_lines(tree.root / label, size, len(description.names)) if label else Lines()
            )
            pictures.append(ConvertedImage(name, *size, read[name].objects, f"{label}, line"))
    notes += _settle_scores(read.values())
    for name, lines in read.items():
        faults += [
            Fault(kind, f"{one_line(labels.of[name], PATH_LIMIT)}{detail}", name)
            for kind, detail in lines.faults
        ]
    return DataSet(description.names, pictures, splits, notes, faults)


def _labels_of_images(tree: Tree) -> Labels:
    of = {
        name: next((path for path in _label_paths(name) if path in tree.paths), None)
        for name in tree.pictures
    }
    taken = {*of.values()}
    texts = [path for path in tree.paths if path.lower().endswith(".txt") and path not in taken]
    loose = {path: form(os.path.splitext(path)[0]) for path in texts if _has_labels(path, tree)}
    times = Counter(loose.values())
    without = _by_form(name for name, label in of.items() if label is None)
    others = _by_form(tree.unread)
    labeled = _by_form(name for name, label in of.items() if label is not None)
    unread: list[str] = []
    lost: list[str] = []
    spare: list[str] = []
    renamed: list[str] = []
    for path, key in loose.items():
        [name] = without.get(key, []) if len(without.get(key, [])) == times[key] == 1 else [None]
        if name is not None and of[name] is None:
            of[name] = path
            renamed.append(path)
        elif key in others:
            unread.append(path)
        elif key in labeled:
            spare.append(path)
        else:
            lost.append(path)
    return Labels(of, unread, lost, spare, renamed)


def _label_paths(name: str) -> list[str]:
    """Where the labels of an image are looked for."""
    *folders, last = name.split(os.sep)
    beside = os.path.splitext(name)[0] + ".txt"
    if "images" not in folders:
        return [beside]
    folders[len(folders) - 1 - folders[::-1].index("images")] = "labels"
    return [os.path.join(*folders, os.path.splitext(last)[0] + ".txt"), beside]


def _by_form(names: Iterable[str]) -> dict[str, list[str]]:
    """Images by the forms of the paths of their labels."""
    found: dict[str, list[str]] = {}
    for name in names:
        for path in _label_paths(name):
            found.setdefault(form(os.path.splitext(path)[0]), []).append(name)
    return found


def _has_labels(path: str, tree: Tree) -> bool:
    """Whether a text file that is of no image should be of one."""
    *folders, last = path.split(os.sep)
    if last.lower() in NO_LABELS or not (tree.root / path).is_file():
        return False
    if "labels" in folders:
        return True
    try:
        with (tree.root / path).open("rb") as file:
            values = decoded(file.read(1 << 12)).lstrip().partition("\n")[0].split()
    except OSError as error:
        reason = f"{error.strerror}; make it readable, or move it out of the data"
        raise UserError(f"cannot read {tree.root / path}: {reason}") from None
    return len(values) >= 5 and all(re.fullmatch(NUMBER, value) for value in values[:5])


def _yolo_splits(
    stated: yolo_yaml.Stated, labels: Labels, yaml_file: Path, tree: Tree
) -> dict[str, str | None]:
    """The images of the dataset with their splits: as the YAML file says, else by words in their folders."""
    labeled = {name for name, label in labels.of.items() if label}
    if not labeled:
        lost = (
            f"; {len(labels.lost)} label files are of no image: {preview(labels.lost)}"
            if labels.lost
            else ""
        )
        raise UserError(
            f"{yaml_file}: {tree.root} has no images with labels, images/NAME.jpg with labels/NAME.txt{lost}"
        )
    validating = "val" if "val" in stated.said else "test"
    for used in ("train", validating):
        names = [name for name, split in stated.splits.items() if split == used]
        if names and not labeled.intersection(names):
            raise UserError(
                f"{yaml_file}: none of the {len(names)} images for {used} has labels, labels/NAME.txt for images/NAME.jpg: "
                f"{preview(names)}"
            )
    splits: dict[str, str | None] = dict(stated.splits)
    unsaid = {*WORDS} - stated.said
    if {"val", "test"} & stated.said:
        unsaid -= {"val", "test"}  # one is enough
    found = by_folder(_with_labels(labels.of, labeled))
    usable = {split for name, split in found.items() if name in labeled}
    for name, split in found.items():
        if name not in splits and split in usable and (split in unsaid or not stated.said):
            splits[name] = split
    return {name: splits[name] for name in tree.pictures if name in splits}


def _with_labels(names: Iterable[str], labeled: set[str]) -> list[str]:
    """The images that have labels, or lie with, below or in the same folder ``images`` as others that have."""
    folders = {os.path.dirname(name) for name in labeled}
    homes = {_home(folder) for folder in folders} - {None}
    counts = {}
    for folder in {os.path.dirname(name) for name in names}:
        above = [str(parent) for parent in PurePath(folder).parents][
            :-1
        ]  # without the root, below which is everything
        counts[folder] = (
            folder in folders or _home(folder) in homes or not folders.isdisjoint(above)
        )
    return [name for name in names if counts[os.path.dirname(name)]]


def _home(folder: str) -> str | None:
    """The last folder called images in a path, if there is one."""
    before, images, _ = f"{os.sep}{folder}{os.sep}".rpartition(f"{os.sep}images{os.sep}")
    return before + images if images else None


def _remarks(
    splits: Mapping[str, str | None],
    stated: yolo_yaml.Stated,
    labels: Labels,
    yaml_file: Path,
    tree: Tree,
) -> Iterator[str]:
    """What was decided about files that are not an image with its labels, with counts and names."""
    unused = "test" if "val" in splits.values() else ""
    without = [
        name for name, split in splits.items() if labels.of[name] is None and split != unused
    ]
    if without:
        yield f"{len(without)} images have no file of labels: taken for images without objects: {preview(without)}"
    times = Counter(labels.of[name] for name in splits)
    if shared := [label for label, count in times.items() if label and count > 1]:
        yield f"{len(shared)} label files are of several images, which differ by their suffix: {preview(shared)}"
    if others := [name for name in tree.pictures if name not in splits]:
        why = (
            f"that {yaml_file.name} names for no split"
            if stated.said
            else "without labels, in folders without"
        )
        yield f"left out: {len(others)} images {why}: {preview(others)}"
    if unread := sorted({*tree.unread, *stated.unread}):
        kinds = ", ".join(sorted({os.path.splitext(path)[1] for path in unread}))
        with_labels = f", {len(labels.unread)} of them with labels" if labels.unread else ""
        yield f"left out: {len(unread)} images of kinds that are not read ({kinds}){with_labels}: {preview(unread)}"
    if labels.lost:
        yield f"left out: {len(labels.lost)} label files whose image is not there: {preview(labels.lost)}"
    if labels.spare:
        yield f"left out: {len(labels.spare)} label files of images that have another one: {preview(labels.spare)}"
    if labels.renamed:
        how = "percent-encoding, Unicode form or capitals of .txt"
        yield f"{len(labels.renamed)} label files belong to images whose names differ by {how}: {preview(labels.renamed)}"


@dataclass
class Lines:
    """A file of labels.

    Attributes:
        objects: of its lines that can be read.
        faults: kinds of problems with what is wrong, to follow the file's name.
        outlines: how many objects have one.
        scored: the lines whose outlines have one number more than points.
    """

    objects: list[Object] = field(default_factory=list)
    faults: list[tuple[str, str]] = field(default_factory=list)
    outlines: int = 0
    scored: set[int] = field(default_factory=set)


def _read_lines(file: Path, size: tuple[int, int], classes: int) -> Lines:
    """Reads a file of labels; size: height and width of its image in pixels; classes: how many there are."""
    result = Lines()
    try:
        text = decoded(file.read_bytes()) if file.is_file() else "\0"
    except OSError as error:
        result.faults.append(("label file", f": cannot be read ({error.strerror})"))
        return result
    if "\0" in text:
        result.faults.append(("label file", ": is no text file"))
        return result
    height, width = size
    lines = [
        (number, line) for number, line in enumerate(text.splitlines(), start=1) if line.strip()
    ]
    good, found, faults = readable(lines, lambda lines: _detected(lines, (width, height)))
    result.faults += [("line", f", line {number}: {reason}") for (number, _), reason in faults]
    for (number, line), category, box in zip(good, category_numbers(found), found.xyxy):
        numbers = [float(value) for value in line.split()[1:]]
        if not 0 <= category < classes:
            result.faults.append(
                (
                    "class",
                    f", line {number}: class {category}, and there are names for 0 to {classes - 1}",
                )
            )
        elif len(numbers) <= 5:
            result.objects.append(Object(category, box.tolist(), [], number))
        else:
            if len(numbers) % 2:
                result.scored.add(number)
            numbers = numbers[: len(numbers) // 2 * 2]
            outline = [value * (height if i % 2 else width) for i, value in enumerate(numbers)]
            result.objects.append(Object(category, box.tolist(), [outline], number))
            result.outlines += 1
    return result


def _detected(lines: list[tuple[int, str]], size: tuple[int, int]) -> Detections:
    for _, line in lines:
        category, *values = line.split()
        if _is_infinite(category):  # supervision would write out all its digits
            raise ValueError(f"class id {shown(category)} is too large")
        for value in values:
            if re.fullmatch(NUMBER, value) and not -1 <= float(value) <= MOST_SHARE:
                raise ValueError(
                    f"coordinate {shown(value)} is no share of the image; is it in pixels?"
                )
    return yolo_annotations_to_detections([line for _, line in lines], size, with_masks=False)


def _is_infinite(text: str) -> bool:
    try:
        return math.isinf(float(text))
    except ValueError:
        return False


def _settle_scores(files: Collection[Lines]) -> list[str]:
    """Decides about outlines with one number more than points: a score if all have one, else a mistake."""
    scored = sum(len(lines.scored) for lines in files)
    if scored == sum(lines.outlines for lines in files):
        return (
            [f"{scored} outlines have one number more than points: taken for scores"]
            if scored
            else []
        )
    for lines in files:
        lines.objects[:] = [item for item in lines.objects if item.number not in lines.scored]
        lines.faults += [
            ("line", f", line {number}: an odd number of coordinates")
            for number in sorted(lines.scored)
        ]
    return []
