"""Reading of YOLO segmentation datasets: images and their label files."""

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
from ...utils.text import PATH_LIMIT, decoded, one_line, short_repr
from . import yolo_yaml
from .file_tree import SPLIT_WORDS, Tree, normalized
from .to_coco import (
    ConvertedDataset,
    ConvertedImage,
    Fault,
    Object,
    by_folder,
    category_numbers,
    readable,
    sizes_of,
)

# Text files that are no label files.
NO_LABELS = {"classes.txt", "labels.txt", "notes.txt", "predefined_classes.txt", "requirements.txt"}
# The largest normalized coordinate. Up to it, coordinates outside of the image are clipped.
MAX_COORDINATE = 2.0
NUMBER = r"[-+]?[\d.]+([eE][-+]?\d+)?"  # as C and Python print them: 1, -0.5, 2.5e-01


class LabelFiles(NamedTuple):
    """The label files of a dataset, by what they belong to.

    of: the label file of each image, or None.
    unsupported: label files of images in unsupported formats.
    orphaned: label files without an image.
    redundant: label files of images that have another one.
    renamed: label files whose names are encoded differently from those of their images.
    """

    of: dict[str, str | None]
    unsupported: list[str]
    orphaned: list[str]
    redundant: list[str]
    renamed: list[str]


def from_yolo(yaml_file: Path, tree: Tree) -> ConvertedDataset:
    """Read a YOLO dataset.

    A line of a label file is a class and the points of an outline, or a box, in normalized
    coordinates.

    Args:
        yaml_file: has the class names, and may define the splits (see :mod:`.yolo_yaml`).
        tree: the files of the dataset. The labels of images/.../NAME.jpg are in
            labels/.../NAME.txt or in the same folder. An image without labels is one without
            objects if the YAML file names it, or if it lies with or below others that have labels.

    Raises:
        UserError: the YAML file cannot be used, or no image has labels.
    """
    description = yolo_yaml.describe(yaml_file)
    if "kpt_shape" in description.content:
        raise UserError(f"{yaml_file} describes keypoints (kpt_shape), not outlines")
    labels = _find_label_files(tree)
    yaml_splits = description.splits(tree)
    splits = _yolo_splits(yaml_splits, labels, yaml_file, tree)
    notes = [
        *yaml_splits.notes,
        *_notes_on_images(splits, yaml_splits, labels, yaml_file, tree),
        *_notes_on_labels(labels),
    ]
    images = []
    faults = [Fault(*fault) for fault in yaml_splits.faults]
    read: dict[str, Lines] = {}
    for name, size in zip(splits, sizes_of(tree.root, splits)):
        label = labels.of[name]
        if isinstance(size, UserError):
            faults.append(Fault("unreadable", str(size), name))
            continue
        lines = Lines()
        if label:
            lines = _read_lines(tree.root / label, size, len(description.names))
        read[name] = lines
        images.append(ConvertedImage(name, *size, lines.objects, f"{label}, line"))
    # Scores are settled by all files together, and change the objects and faults of each.
    notes += _settle_scores(read.values())
    for name, lines in read.items():
        for kind, detail in lines.faults:
            faults.append(Fault(kind, f"{one_line(labels.of[name], PATH_LIMIT)}{detail}", name))
    return ConvertedDataset(description.names, images, splits, notes, faults)


def _find_label_files(tree: Tree) -> LabelFiles:
    """Assign label files to images: by their paths, or else by the meaning of their paths."""
    of: dict[str, str | None] = {}
    for name in tree.images:
        existing = [path for path in _label_paths(name) if path in tree.paths]
        of[name] = existing[0] if existing else None
    used = set(of.values())
    # Text files with labels that are not the label file of an image, by a normalized form of their
    # paths, in which paths that differ only by their encoding are the same.
    loose: dict[str, str] = {}
    for path in tree.paths:
        if path.lower().endswith(".txt") and path not in used and _has_labels(path, tree):
            loose[path] = _stem_form(path)
    times = Counter(loose.values())
    without = _by_form(name for name, label in of.items() if label is None)
    unsupported_images = _by_form(tree.unread)
    labeled = _by_form(name for name, label in of.items() if label is not None)
    labels = LabelFiles(of, [], [], [], [])
    for path, key in loose.items():
        candidates = without.get(key, [])
        # Only if both the file and the image are the only ones of this form.
        is_unique = len(candidates) == times[key] == 1
        if is_unique and of[candidates[0]] is None:
            of[candidates[0]] = path
            labels.renamed.append(path)
        elif key in unsupported_images:
            labels.unsupported.append(path)
        elif key in labeled:
            labels.redundant.append(path)
        else:
            labels.orphaned.append(path)
    return labels


def _label_paths(name: str) -> list[str]:
    """Return where the label file of an image may be, best first."""
    *folders, file_name = name.split(os.sep)
    same_folder = os.path.splitext(name)[0] + ".txt"
    if "images" not in folders:
        return [same_folder]
    # The last folder "images" becomes "labels".
    folders[len(folders) - 1 - folders[::-1].index("images")] = "labels"
    return [os.path.join(*folders, os.path.splitext(file_name)[0] + ".txt"), same_folder]


def _stem_form(path: str) -> str:
    return normalized(os.path.splitext(path)[0])


def _by_form(names: Iterable[str]) -> dict[str, list[str]]:
    """Group images by the normalized forms of the paths where their labels may be."""
    found: dict[str, list[str]] = {}
    for name in names:
        for path in _label_paths(name):
            found.setdefault(_stem_form(path), []).append(name)
    return found


def _has_labels(path: str, tree: Tree) -> bool:
    """Whether a text file that does not belong to an image looks like a label file."""
    *folders, file_name = path.split(os.sep)
    if file_name.lower() in NO_LABELS or not (tree.root / path).is_file():
        return False
    if "labels" in folders:
        return True
    try:
        with (tree.root / path).open("rb") as file:
            first_line = decoded(file.read(1 << 12)).lstrip().partition("\n")[0]
    except OSError as error:
        reason = f"{error.strerror}; make it readable, or move it out of the dataset"
        raise UserError(f"cannot read {tree.root / path}: {reason}") from None
    values = first_line.split()
    return len(values) >= 5 and all(re.fullmatch(NUMBER, value) for value in values[:5])


def _yolo_splits(
    yaml_splits: yolo_yaml.YamlSplits, labels: LabelFiles, yaml_file: Path, tree: Tree
) -> dict[str, str | None]:
    """Return the images of the dataset with their splits.

    These are defined by the YAML file, or else by words in the names of folders.
    """
    labeled = {name for name, label in labels.of.items() if label}
    if not labeled:
        orphaned = ""
        if labels.orphaned:
            count = f"{len(labels.orphaned)} label files do not belong to an image"
            orphaned = f"; {count}: {preview(labels.orphaned)}"
        raise UserError(
            f"{yaml_file}: {tree.root} has no images with labels, images/NAME.jpg with "
            f"labels/NAME.txt{orphaned}"
        )
    val_split = "val" if "val" in yaml_splits.defined else "test"
    for used in ("train", val_split):
        names = [name for name, split in yaml_splits.of.items() if split == used]
        if names and labeled.isdisjoint(names):
            raise UserError(
                f"{yaml_file}: none of the {len(names)} images for {used} has labels, "
                f"labels/NAME.txt for images/NAME.jpg: {preview(names)}"
            )
    splits: dict[str, str | None] = dict(yaml_splits.of)
    undefined = {*SPLIT_WORDS} - yaml_splits.defined
    if {"val", "test"} & yaml_splits.defined:
        undefined -= {"val", "test"}  # one of them is enough
    # Fill the splits that the YAML file does not define from the names of folders. If it defines
    # none, this includes the images that belong to no split by their folders (None).
    found = by_folder(_with_labels(labels.of, labeled))
    usable = {split for name, split in found.items() if name in labeled}
    for name, split in found.items():
        is_undefined = split in undefined or not yaml_splits.defined
        if name not in splits and split in usable and is_undefined:
            splits[name] = split
    return {name: splits[name] for name in tree.images if name in splits}


def _with_labels(names: Iterable[str], labeled: set[str]) -> list[str]:
    """Return the images that have labels or belong to others that have.

    They belong to these if they lie in the same folder, below it, or in the same folder ``images``.
    """
    folders = set(map(os.path.dirname, labeled))
    image_folders = set(map(_images_folder, folders)) - {None}
    belongs: dict[str, bool] = {}
    chosen = []
    for name in names:
        folder = os.path.dirname(name)
        if folder not in belongs:
            # Without the last parent, which is the root of the dataset: everything is below it.
            parents = list(map(str, PurePath(folder).parents))[:-1]
            belongs[folder] = (
                folder in folders
                or _images_folder(folder) in image_folders
                or not folders.isdisjoint(parents)
            )
        if belongs[folder]:
            chosen.append(name)
    return chosen


def _images_folder(folder: str) -> str | None:
    """Return the path up to the last folder "images" in it, if there is one."""
    before, images, _ = f"{os.sep}{folder}{os.sep}".rpartition(f"{os.sep}images{os.sep}")
    return before + images if images else None


def _notes_on_images(
    splits: Mapping[str, str | None],
    yaml_splits: yolo_yaml.YamlSplits,
    labels: LabelFiles,
    yaml_file: Path,
    tree: Tree,
) -> Iterator[str]:
    """Yield what was decided about images without labels of their own."""
    unused = "test" if "val" in splits.values() else ""
    empty = [name for name, split in splits.items() if not labels.of[name] and split != unused]
    if empty:
        yield (
            f"{len(empty)} images have no label file and are treated as images without objects: "
            f"{preview(empty)}"
        )
    times = Counter(map(labels.of.get, splits))
    if shared := [label for label, count in times.items() if label and count > 1]:
        yield (
            f"{len(shared)} label files belong to several images, which differ in their suffix: "
            f"{preview(shared)}"
        )
    if others := [name for name in tree.images if name not in splits]:
        where = "without labels, in folders without labels"
        if yaml_splits.defined:
            where = f"that are in no split of {yaml_file.name}"
        yield f"left out: {len(others)} images {where}: {preview(others)}"
    if unsupported := sorted({*tree.unread, *yaml_splits.unsupported}):
        suffixes = ", ".join(sorted({os.path.splitext(path)[1] for path in unsupported}))
        kinds = f"({suffixes})"
        if labels.unsupported:
            kinds += f", {len(labels.unsupported)} of them with labels"
        yield (
            f"left out: {len(unsupported)} images of unsupported formats {kinds}: "
            f"{preview(unsupported)}"
        )


def _notes_on_labels(labels: LabelFiles) -> Iterator[str]:
    """Yield what was decided about label files that do not match an image by their paths."""
    if labels.orphaned:
        count = len(labels.orphaned)
        yield (
            f"left out: {count} label files whose image does not exist: {preview(labels.orphaned)}"
        )
    if labels.redundant:
        yield (
            f"left out: {len(labels.redundant)} label files of images that have another label "
            f"file: {preview(labels.redundant)}"
        )
    if labels.renamed:
        yield (
            f"{len(labels.renamed)} label files belong to images whose names differ by "
            "percent-encoding, Unicode form or the letter case of .txt: "
            f"{preview(labels.renamed)}"
        )


@dataclass
class Lines:
    """The content of a label file.

    Attributes:
        objects: of its valid lines.
        faults: the kind and the details of each problem; details are to follow the file name.
        outlines: number of objects that have one.
        scored: lines whose outlines have an odd number of values: the points, and maybe a score.
    """

    objects: list[Object] = field(default_factory=list)
    faults: list[tuple[str, str]] = field(default_factory=list)
    outlines: int = 0
    scored: set[int] = field(default_factory=set)


def _read_lines(file: Path, size: tuple[int, int], num_classes: int) -> Lines:
    """Read a label file.

    Args:
        file: its path.
        size: height and width of its image in pixels.
        num_classes: number of classes.
    """
    result = Lines()
    try:
        text = decoded(file.read_bytes()) if file.is_file() else "\0"
    except OSError as error:
        result.faults.append(("label file", f": cannot be read ({error.strerror})"))
        return result
    if "\0" in text:
        result.faults.append(("label file", ": is not a text file"))
        return result
    height, width = size
    numbered = enumerate(text.splitlines(), start=1)
    lines = [(number, line) for number, line in numbered if line.strip()]
    valid, found, faults = readable(lines, lambda lines: _detected(lines, (width, height)))
    for (number, _), reason in faults:
        result.faults.append(("line", f", line {number}: {reason}"))
    for (number, line), category, box in zip(valid, category_numbers(found), found.xyxy):
        values = list(map(float, line.split()[1:]))
        if not 0 <= category < num_classes:
            reason = f"class {category}, but there are names for 0 to {num_classes - 1} only"
            result.faults.append(("class", f", line {number}: {reason}"))
        elif len(values) <= 5:  # a box, or a box and a score
            result.objects.append(Object(category, box.tolist(), [], number))
        else:
            if len(values) % 2:
                result.scored.add(number)
                values.pop()
            # x, y, x, y, ... from normalized coordinates to pixels
            outline = [value * (height if i % 2 else width) for i, value in enumerate(values)]
            result.objects.append(Object(category, box.tolist(), [outline], number))
            result.outlines += 1
    return result


def _detected(lines: list[tuple[int, str]], size: tuple[int, int]) -> Detections:
    """Parse numbered lines by supervision; size: width and height of the image.

    Raises:
        ValueError: a line is not an object.
    """
    texts = []
    for _, line in lines:
        category, *values = line.split()
        if _is_infinite(category):  # supervision would print all its digits
            raise ValueError(f"class id {short_repr(category)} is too large")
        for value in values:
            if re.fullmatch(NUMBER, value) and not -1 <= float(value) <= MAX_COORDINATE:
                raise ValueError(
                    f"coordinate {short_repr(value)} is not normalized; is it in pixels?"
                )
        texts.append(line)
    return yolo_annotations_to_detections(texts, size, with_masks=False)


def _is_infinite(text: str) -> bool:
    try:
        return math.isinf(float(text))
    except ValueError:
        return False


def _settle_scores(files: Collection[Lines]) -> list[str]:
    """Decide about outlines with an odd number of values.

    The last value is a score if all outlines of the dataset have one, else these lines are faults.

    Returns:
        Notes for the user.
    """
    num_scored = num_outlines = 0
    for lines in files:
        num_scored += len(lines.scored)
        num_outlines += lines.outlines
    if num_scored == num_outlines:
        if not num_scored:
            return []
        return [f"{num_scored} outlines have one extra number, which is treated as a score"]
    for lines in files:
        lines.objects[:] = [item for item in lines.objects if item.number not in lines.scored]
        for number in sorted(lines.scored):
            lines.faults.append(("line", f", line {number}: an odd number of coordinates"))
    return []
