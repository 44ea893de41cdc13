"""Custom datasets for semantic segmentation: their classes, label maps and pixel counts.

Label maps in folders (:mod:`.label_folders`) are read as they are; their classes are listed by a
file (:mod:`.class_lists`), or are the values that occur. If there are no label maps, those of an
instance dataset in any format of :mod:`.custom` are drawn from its objects, with "background" as
class 0; see :func:`.draw_objects` for overlaps.

All label maps are read before training: a value that is no class would stop it much later. The
numbers of pixels by value are cached.
"""

import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tabulate import tabulate

from ...utils.errors import UserError, preview
from ...utils.text import LINE_LIMIT, PATH_LIMIT, one_line
from ..image_io import read_image, size_of
from ..label_maps import (
    IGNORED,
    Color,
    class_palette,
    labels_of,
    pack_color,
    palette_of,
    read_values,
    shown_value,
)
from . import custom
from .cache import cached_folder
from .class_lists import FILES, MOST_CLASSES, ClassList, find_class_list
from .coco import images_in_both
from .coco_rules import RULES, Problem, ordered, raise_if_fatal
from .label_folders import Pairs, find_pairs
from .summary import NAME_LIMIT

BACKGROUND = "background"
BINARY = {0, 255}  # the values of a mask as drawing programs store it
MANY_VALUES = 256  # values or colors of a label map that are counted; more cannot be classes
MAX_CLASSES = 40  # rows of a table


@dataclass
class SemanticSplit:
    """A split of a dataset for semantic segmentation, with all of its problems.

    Attributes:
        path: of the dataset, with the split, for messages.
        records: in Detectron2's format, see :func:`.labels_of`; with "image_id", from 1.
        classes: class names.
        pixels: (N, K), int64: pixels of each image by class.
        ignored: (N,), int64: pixels of each image that do not count.
        problems: in the order of RULES.
    """

    path: str
    records: list[dict[str, Any]]
    classes: list[str]
    pixels: np.ndarray
    ignored: np.ndarray
    problems: list[Problem] = field(default_factory=list)

    def summary(self) -> str:
        return (
            f"{one_line(self.path, PATH_LIMIT)}: {len(self.records)} images with label maps, "
            f"{len(self.classes)} classes"
        )

    def raise_if_fatal(self, data: str) -> None:
        """Raise a UserError if there is a problem that stops training; ``data`` is the dataset."""
        raise_if_fatal(self.path, self.problems, f"--semantic --data {data}")


class SemanticData(NamedTuple):
    """A custom dataset for semantic segmentation.

    Attributes:
        data: path, as given by the user.
        name: of the format, for the summary.
        classes: class names.
        palette: color of each class.
        splits: "train" and "val"; one of them may be missing.
        image_root: the folder that all images are in.
        notes: decisions to report to the user.
    """

    data: str
    name: str
    classes: list[str]
    palette: list[Color]
    splits: Mapping[str, SemanticSplit]
    image_root: str
    notes: Sequence[str] = ()

    def summary(self) -> str:
        """Describe the dataset in a few lines, with the share of pixels of each class."""
        lines = [one_line(f"{self.data}: {self.name}", LINE_LIMIT)]
        lines += [one_line(f"  {note}", LINE_LIMIT) for note in self.notes]
        return "\n".join([*lines, self.table()])

    def table(self) -> str:
        """Return the share of pixels and the number of images of each class, as text."""
        headers, columns = [""], [["images", *map(_shown, self.classes), "ignored pixels"]]
        for name, split in self.splits.items():
            total = max(int(split.pixels.sum()), 1)
            shares, images = [""], [str(len(split.records))]
            for index in range(len(self.classes)):
                shares.append(f"{split.pixels[:, index].sum() / total:.2%}")
                images.append(str(int((split.pixels[:, index] > 0).sum())))
            everything = max(total + int(split.ignored.sum()), 1)
            shares.append(f"{split.ignored.sum() / everything:.2%}")
            images.append(str(int((split.ignored > 0).sum())))
            headers += [f"{name}: pixels", f"{name}: images"]
            columns += [shares, images]
        rows = [list(row) for row in zip(*columns)]
        rest = len(self.classes) - MAX_CLASSES
        if rest > 0:
            rows[MAX_CLASSES + 1 : -1] = [[f"and {rest} more classes"]]
        return tabulate(
            rows,
            headers=headers,
            tablefmt="simple",
            colalign=("left", *["right"] * (len(headers) - 1)),
            disable_numparse=True,
        )


def find_semantic(data: str) -> SemanticData:
    """Find a custom dataset for semantic segmentation, and count its pixels.

    Args:
        data: a folder with label maps, or a dataset in a format of :mod:`.custom`.

    Raises:
        UserError: there is neither, or files cannot be assigned to each other.
    """
    pairs = find_pairs(data) if os.path.isdir(data) else None
    return _from_objects(data) if pairs is None else _from_pairs(data, pairs)


class Counted(NamedTuple):
    """The values of a label map.

    Attributes:
        height, width: in pixels.
        values: numbers of pixels by value, or by packed color.
        colored: whether they are colors.
        fault: why it or its image cannot be used; "" if they can.
        kind: of the problem then, a key of RULES.
    """

    height: int = 0
    width: int = 0
    values: Mapping[int, int] = {}
    colored: bool = False
    fault: str = ""
    kind: str = ""


def _from_pairs(data: str, pairs: Pairs) -> SemanticData:
    tree = pairs.tree
    listed = find_class_list(tree)
    labels: dict[str, str] = {}
    for part in pairs.splits.values():
        labels |= part
    as_colors = listed is not None and listed.colors is not None
    counted = _count_files(data, tree.root, labels, as_colors)
    seen: set[int] = set()
    for count in counted.values():
        seen |= count.values.keys() if not count.colored else set()
    classes, binary = _classes(data, listed, seen)
    name = "images and label maps"
    notes = list(pairs.notes)
    if listed is None:
        notes.append(f"no {', '.join(FILES)}: the classes are the values that occur")
    ignore_value = ignore_value_of(len(classes.names))
    splits = {}
    for split, images in pairs.splits.items():
        records = []
        for number, (image, label) in enumerate(images.items(), start=1):
            count = counted[image]
            record = {
                "file_name": str(tree.root / image),
                "sem_seg_file_name": str(tree.root / label),
                "image_id": number,
                "height": count.height,
                "width": count.width,
            }
            if classes.values is not None:
                record["label_values"] = classes.values
            if classes.colors is not None:
                record["label_colors"] = classes.colors
            records.append(record)
        counts = [counted[image] for image in images]
        splits[split] = _split(f"{data}, {split}", records, counts, classes, ignore_value)
        if binary:
            splits[split].problems.append(Problem("0 and 255"))
    first = next(iter(splits.values()))
    first.problems += pairs.problems
    for semantic_split in splits.values():
        semantic_split.problems = ordered(semantic_split.problems)
    palette = classes.palette or palette_of(tree.root / next(iter(labels.values())))
    if len(palette) < len(classes.names):
        palette = class_palette(len(classes.names))
    return SemanticData(
        data, name, classes.names, palette[: len(classes.names)], splits, str(tree.root), notes
    )


def ignore_value_of(num_classes: int) -> int:
    """Return the label of ignored pixels, which must be no class index."""
    return IGNORED if num_classes <= IGNORED else 65535


def _classes(data: str, listed: ClassList | None, seen: set[int]) -> tuple[ClassList, bool]:
    """Return the classes of label maps, and whether 255 is read as class 1.

    Args:
        data: as given by the user.
        listed: by a file of the dataset, if any.
        seen: all values that occur.
    """
    if listed is not None and (listed.values is not None or listed.colors is not None):
        return listed, False
    binary = seen == BINARY
    if listed is None:
        highest = 1 if binary else max(seen - {IGNORED}, default=0)
        if highest >= MOST_CLASSES:
            raise UserError(
                f"--data {data}: label maps have the value {highest}, but there can be at most "
                f"{MOST_CLASSES} classes; list the classes in classes.txt, or correct them"
            )
        names = [f"class {index}" for index in range(highest + 1)]
        if len(names) == 2:
            names = [BACKGROUND, "foreground"]
    else:
        names = listed.names
        if len(names) == 1:  # only the foreground is named
            names = [BACKGROUND, *names]
    binary = binary and len(names) == 2
    values = {0: 0, 255: 1} if binary else None
    return ClassList(names, values=values), binary


def _count_files(
    data: str, root: Path, labels: Mapping[str, str], as_colors: bool
) -> dict[str, Counted]:
    """Return the values of the label map of each image, from the cache if possible."""

    def contents() -> dict[str, Any]:
        def count(image: str) -> Counted:
            return _count_file(root / image, root / labels[image], as_colors)

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            counts = list(pool.map(count, labels))
        return {"counts.json": [count._asdict() for count in counts]}

    used = [*labels, *labels.values()]
    folder = cached_folder(data, root, used, ["label maps", str(as_colors)], contents)
    counted = {}
    for image, entry in zip(labels, json.loads((folder / "counts.json").read_bytes())):
        values = {int(value): number for value, number in entry["values"].items()}
        counted[image] = Counted(**entry | {"values": values})
        if entry["fault"]:  # the reason may be gone, such as a missing permission
            counted[image] = _count_file(root / image, root / labels[image], as_colors)
    return counted


def _count_file(image: Path, label: Path, as_colors: bool) -> Counted:
    try:
        height, width = size_of(image)
    except UserError as error:
        return Counted(fault=str(error), kind="unreadable")
    try:
        values = read_values(label, colors=as_colors)
    except UserError as error:
        return Counted(height, width, fault=str(error), kind="label map")
    if values.shape[:2] != (height, width):
        found = "{1} x {0}".format(*values.shape)
        fault = f"{one_line(label, PATH_LIMIT)}: {found}, its image is {width} x {height}"
        return Counted(height, width, fault=fault, kind="size differs")
    colored = values.ndim == 3
    unique, counts = np.unique(pack_color(values) if colored else values, return_counts=True)
    if len(unique) > MANY_VALUES and not colored:  # no label map, but perhaps a photo
        fault = f"{one_line(label, PATH_LIMIT)}: has {len(unique)} different values"
        return Counted(height, width, fault=fault, kind="label map")
    order = np.argsort(-counts, kind="stable")[:MANY_VALUES]
    return Counted(
        height, width, dict(zip(unique[order].tolist(), counts[order].tolist())), colored
    )


def _split(
    path: str,
    records: list[dict[str, Any]],
    counts: Sequence[Counted],
    classes: ClassList,
    ignore_value: int,
) -> SemanticSplit:
    """Assign the counted values to classes, and collect the problems."""
    num_classes = len(classes.names)
    pixels = np.zeros((len(records), num_classes), np.int64)
    ignored = np.zeros(len(records), np.int64)
    problems = []
    for row, (record, count) in enumerate(zip(records, counts)):
        name = one_line(record["sem_seg_file_name"], PATH_LIMIT)
        if count.fault:
            problems.append(Problem(count.kind, detail=count.fault))
            continue
        if count.colored and classes.colors is None:
            colors = [shown_value(value, as_color=True) for value in count.values]
            problems.append(Problem("colors", detail=f"{name}: {preview(colors)}"))
            continue
        others = []
        for value, number in count.values.items():
            index = _class_of(value, classes, ignore_value)
            if index is None or index >= num_classes:
                others.append(shown_value(value, as_color=count.colored))
            elif index < 0:
                ignored[row] += number
            else:
                pixels[row, index] += number
        if others:
            problems.append(Problem("value", detail=f"{name}: {preview(others)}"))
    split = SemanticSplit(path, records, classes.names, pixels, ignored, problems)
    _judge_classes(split)
    return split


def _class_of(value: int, classes: ClassList, ignore_value: int) -> int | None:
    """Return the class of a value or color of a label map, -1 if ignored, None if it has none."""
    if classes.colors is not None:
        return classes.colors.get(value)
    if classes.values is not None and value in classes.values:
        return classes.values[value]
    if value == ignore_value:
        return -1
    return value if classes.values is None and value >= 0 else None


def _judge_classes(split: SemanticSplit) -> None:
    """Add the problems of the dataset as a whole, if those of its files do not explain them."""
    if any(RULES[problem.kind].action == "stop" for problem in split.problems):
        return
    labeled = split.pixels.sum(0) > 0
    if labeled.sum() < 2:
        names = [name for name, occurs in zip(split.classes, labeled) if occurs]
        split.problems.append(Problem("one class", detail=preview(names)))
    for name, occurs in zip(split.classes, labeled):
        if not occurs:
            split.problems.append(Problem("unused class", detail=one_line(name)))
    for record, total in zip(split.records, split.pixels.sum(1)):
        if not total:
            split.problems.append(Problem("unlabeled", detail=record["file_name"]))


def _from_objects(data: str) -> SemanticData:
    """Return the label maps of an instance dataset, which are drawn from its objects."""
    try:
        layout = custom.find_layout(data)
    except UserError as error:
        raise UserError(
            f"{error}; nor are there label maps, images of the same names in a folder such as masks"
        ) from None
    files = layout.read_all(layout.splits)
    names = list(next(iter(files.values())).categories.values())
    classes = ClassList([BACKGROUND, *map(one_line, names)])
    ignore_value = ignore_value_of(len(classes.names))
    splits = {}
    for split, file in files.items():
        records = file.records()
        counts = _count_objects(data, Path(file.path), records, ignore_value)
        pixels = np.zeros((len(records), len(classes.names)), np.int64)
        ignored = np.zeros(len(records), np.int64)
        for row, values in enumerate(counts):
            for value, number in values.items():
                if value == ignore_value:
                    ignored[row] += number
                else:
                    pixels[row, value] += number
        problems = [problem for problem in file.problems if _concerns_masks(problem)]
        splits[split] = SemanticSplit(
            f"{data}, {split}", records, classes.names, pixels, ignored, problems
        )
        _judge_classes(splits[split])
        splits[split].problems = ordered(splits[split].problems)
    if files.keys() == {"train", "val"}:
        splits["train"].problems += images_in_both(files["train"], files["val"])
    image_root = os.path.commonpath([os.path.abspath(file.image_root) for file in files.values()])
    palette = class_palette(len(classes.names))
    notes = [*layout.notes, "label maps are drawn from the objects, smaller ones over larger ones"]
    return SemanticData(data, layout.name, classes.names, palette, splits, image_root, notes)


def _concerns_masks(problem: Problem) -> bool:
    """Whether a problem of an instance dataset concerns label maps, too: not one of boxes."""
    return RULES[problem.kind].action in ("stop", "drop") or problem.kind == "polygon"


def _count_objects(
    data: str, json_file: Path, records: Sequence[Mapping[str, Any]], ignore_value: int
) -> list[dict[int, int]]:
    """Return the numbers of pixels by class index of each record, from the cache if possible."""

    def count(record: Mapping[str, Any]) -> dict[int, int]:
        unique, counts = np.unique(labels_of(record, ignore_value), return_counts=True)
        return dict(zip(unique.tolist(), counts.tolist()))

    def contents() -> dict[str, Any]:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            return {"counts.json": list(pool.map(count, records))}

    folder = cached_folder(
        data, json_file.parent, [json_file.name], ["objects", str(ignore_value)], contents
    )
    result = []
    for values in json.loads((folder / "counts.json").read_bytes()):
        result.append({int(value): number for value, number in values.items()})
    return result


def read_all_images(data: SemanticData) -> None:
    """Read every image, and add a problem for each that cannot be read or has another size."""
    for split in data.splits.values():
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            faults = list(pool.map(_image_fault, split.records))
        for fault in filter(None, faults):
            if fault not in split.problems:
                split.problems.append(fault)
        split.problems = ordered(split.problems)


def _image_fault(record: Mapping[str, Any]) -> Problem | None:
    try:
        shape = read_image(record["file_name"]).shape[:2]
    except UserError as error:
        return Problem("unreadable", detail=str(error))
    if shape != (record["height"], record["width"]):
        return Problem("size differs", detail=record["file_name"])
    return None


def balanced_weights(pixels: np.ndarray) -> list[float]:
    """Return the weight of each class by median frequency balancing (Eigen & Fergus, ICCV 2015).

    The frequency of a class is its number of pixels divided by the number of labeled pixels in the
    images where it occurs; its weight is the median of all frequencies divided by its own.

    Args:
        pixels: (N, K), pixels of each image by class.

    Returns:
        K weights; 1 for a class without pixels.
    """
    of_images = pixels.sum(1, keepdims=True)
    where = (pixels > 0) * of_images
    frequency = pixels.sum(0) / np.maximum(where.sum(0), 1)
    occurs = frequency > 0
    weights = np.ones(pixels.shape[1])
    weights[occurs] = np.median(frequency[occurs]) / frequency[occurs]
    return weights.tolist()


def _shown(name: str) -> str:
    return f"  {one_line(name, NAME_LIMIT)}"
