"""Custom datasets for classification: a folder of images for each class, or objects.

Layouts of folders; a class may have subfolders::

    train/cat/1.jpg     val/cat/2.jpg      names with the words of SPLIT_WORDS: training_set, ...
    cat/1.jpg           dog/2.jpg          a fifth of each class is held out for validation

If there are annotations instead, in any format of :mod:`.custom`, the objects are classified: the
part of an image in the box of an object is an image of its class.
"""

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any, NamedTuple

from detectron2.structures import BoxMode
from tabulate import tabulate

from ...utils.errors import UserError, preview
from ...utils.text import LINE_LIMIT, PATH_LIMIT, one_line
from ..image_io import read_image
from . import coco, custom
from .coco_rules import Problem, ordered, raise_if_fatal
from .copies import find_copies
from .file_tree import Tree, split_of
from .label_folders import IMAGE_FOLDERS
from .splits import SEED, VAL_FRACTION, hold_out
from .summary import NAME_LIMIT

SPLITS = ("train", "val")
NO_CLASS_FOLDERS = (
    "nor is there a folder of images for each of several classes, as train/cat or cat"
)
MAX_CLASSES = 40  # rows of a table; the rarer classes are summed up
SMALLEST_SIDE = 2  # pixels of the box of an object that is classified


@dataclass
class ClassificationSplit:
    """A split of a dataset for classification, with all of its problems.

    Attributes:
        path: of the dataset, with the split, for messages.
        records: with "file_name"; "image_id", from 1; "label", the index of the class; and for an
            object with "box", "height" and "width", see :func:`.read_classified`.
        classes: class names.
        problems: in the order of RULES.
    """

    path: str
    records: list[dict[str, Any]]
    classes: list[str]
    problems: list[Problem] = field(default_factory=list)

    def counts(self) -> list[int]:
        """Return the number of images of each class."""
        counted = Counter(record["label"] for record in self.records)
        return [counted[index] for index in range(len(self.classes))]

    def summary(self) -> str:
        return (
            f"{one_line(self.path, PATH_LIMIT)}: {len(self.records)} images, "
            f"{len(self.classes)} classes"
        )

    def raise_if_fatal(self, data: str) -> None:
        """Raise a UserError if there is a problem that stops training; ``data`` is the dataset."""
        raise_if_fatal(self.path, self.problems, f"--data {data}")


class ClassificationData(NamedTuple):
    """A custom dataset for classification.

    Attributes:
        data: path, as given by the user.
        name: of the format, for the summary.
        classes: class names.
        splits: "train" and "val"; one of them may be missing.
        image_root: the folder that all images are in.
        notes: decisions to report to the user.
    """

    data: str
    name: str
    classes: list[str]
    splits: Mapping[str, ClassificationSplit]
    image_root: str
    notes: Sequence[str] = ()

    def summary(self) -> str:
        """Describe the dataset in a few lines, with the number of images of each class."""
        lines = [one_line(f"{self.data}: {self.name}", LINE_LIMIT)]
        lines += [one_line(f"  {note}", LINE_LIMIT) for note in self.notes]
        return "\n".join([*lines, self.table()])

    def table(self) -> str:
        """Return the number of images of each class, the most frequent first, as text."""
        counts = [split.counts() for split in self.splits.values()]
        totals = [sum(numbers) for numbers in zip(*counts)]
        order = sorted(range(len(self.classes)), key=lambda index: -totals[index])
        rows: list[list[Any]] = [["images", *map(sum, counts)]]
        for index in order[:MAX_CLASSES]:
            name = one_line(self.classes[index], NAME_LIMIT)
            rows.append([f"  {name}", *(count[index] for count in counts)])
        rest = order[MAX_CLASSES:]
        if rest:
            row: list[Any] = [f"  and {len(rest)} more classes"]
            for count in counts:
                row.append(sum(count[index] for index in rest))
            rows.append(row)
        headers = ["", *self.splits]
        return tabulate(rows, headers=headers, tablefmt="simple", preserve_whitespace=True)


def find_classification(data: str, splits: Sequence[str] = SPLITS) -> ClassificationData:
    """Return a custom dataset for classification, with all of its problems.

    Args:
        data: a folder of class folders; or objects, in a format of :mod:`.custom`.
        splits: of the objects that are read, if they exist.

    Raises:
        UserError: nothing is found, or there is one class only.
    """
    return find_class_folders(data) or _from_objects(data, splits)


def find_class_folders(data: str) -> ClassificationData | None:
    """Return a dataset of class folders.

    Returns:
        The dataset; None if there are annotations, if there are not at least two folders of images,
        or if their names are those of other formats.

    Raises:
        UserError: folders of splits are inside of one of several folders, or two classes have the
            same name.
    """
    if not Path(data).is_dir():
        return None
    tree = Tree(Path(data))
    if _has_annotations(tree):
        return None
    layout = _find_layout(data, list(tree.images))
    if layout is None:
        return None
    stated, outside = layout
    notes = []
    if "val" in stated and "test" in stated:
        notes.append(f"not used: {sum(map(len, stated['test'].values()))} test images")
    parts = {"train": stated.get("train", {}), "val": stated.get("val") or stated.get("test", {})}
    if not parts["val"]:
        parts, note = _hold_out(parts["train"])
        notes.append(note)
    if not parts["train"]:
        del parts["train"]
    names = sorted(set().union(*parts.values()))
    if len(names) < 2:
        return None
    if tree.unread:
        formats = f"{len(tree.unread)} images in formats that are not supported"
        notes.append(f"not used: {formats} ({preview(list(tree.unread))})")
    classes = _displayed(data, names)
    splits = {}
    for split, by_class in parts.items():
        records: list[dict[str, Any]] = []
        for label, name in enumerate(names):
            for path in sorted(by_class.get(name, ())):
                records.append({"file_name": str(tree.root / path), "label": label})
        for number, record in enumerate(records, start=1):
            record["image_id"] = number
        splits[split] = ClassificationSplit(f"{data}, {split}", records, classes)
    first = next(iter(splits.values()))
    first.problems += [Problem("outside classes", detail=path) for path in outside]
    _judge(splits, "untrained class")
    return ClassificationData(data, "class folders", classes, splits, str(tree.root), notes)


def _has_annotations(tree: Tree) -> bool:
    """Whether there are annotations of objects, or JSON files that may be such but are broken."""
    described, _ = custom.yolo_descriptions(tree.yaml_files())
    return bool(described) or any(tree.kind(path) != "other" for path in tree.json_files())


def _displayed(data: str, names: Sequence[str]) -> list[str]:
    """Return class names as they are displayed; raise a UserError if two of them are equal."""
    classes = [one_line(name).strip() for name in names]
    repeated = [name for name, count in Counter(classes).items() if count > 1]
    if repeated:
        raise UserError(f"--data {data}: several classes are called {preview(repeated)}; rename")
    return classes


def _find_layout(
    data: str, paths: Sequence[str]
) -> tuple[dict[str, dict[str, list[str]]], list[str]] | None:
    """Assign images to splits and classes.

    Args:
        data: path of the dataset, for errors.
        paths: of its images, relative to it.

    Returns:
        The images by class by split, and those that are in no class; None for other layouts. If
        there are no splits, all images are of "train".
    """
    prefix = _common_folder(paths)
    places = {}
    for path in paths:
        places[path] = path.removeprefix(prefix).split("/") if path.startswith(prefix) else [path]
    folders = _split_folders(places.values())
    if not folders:
        classes = {parts[0] for parts in places.values() if len(parts) > 1}
        if all(split_of(PurePath(name)) for name in classes):  # images/train of other formats
            return None
        if IMAGE_FOLDERS & {name.lower() for name in classes}:  # the same
            return None
        for name in classes:
            inside = [parts[1:] for parts in places.values() if parts[0] == name]
            if len(set(_split_folders(inside).values())) > 1:
                raise UserError(
                    f"--data {data}: {prefix}{name} has folders of splits, and there are images "
                    f"next to it; give --data {Path(data, prefix, name)}"
                )
    found: dict[str, dict[str, list[str]]] = {}
    outside = []
    for path, parts in places.items():
        split, class_parts = "train", parts
        if folders:
            split, class_parts = folders.get(parts[0], ""), parts[1:]
        if not split or len(class_parts) < 2:
            outside.append(path)
        else:
            found.setdefault(split, {}).setdefault(class_parts[0], []).append(path)
    return found, outside


def _common_folder(paths: Sequence[str]) -> str:
    """Return the folder around all class folders, such as "flowers/"; "" for none.

    Images that are directly in a folder around it do not count. The folder of a split or a class is
    not part of it.
    """
    prefix = ""
    while True:
        rest = [path.removeprefix(prefix).split("/") for path in paths if path.startswith(prefix)]
        rest = [parts for parts in rest if len(parts) > 1]
        folders = {parts[0] for parts in rest}
        if len(folders) != 1 or max(map(len, rest)) < 3 or split_of(PurePath(*folders)):
            return prefix
        prefix += f"{folders.pop()}/"


def _split_folders(places: Iterable[Sequence[str]]) -> dict[str, str]:
    """Return the folders of splits, such as {"training_set": "train"}.

    They are recognized by a word in their names, and by having folders themselves. A class may be
    called "test", too: folders of other names are next to it, and those of other splits are not.

    Args:
        places: paths of images, as lists of their parts.
    """
    others, found = set(), {}
    for parts in places:
        split = split_of(PurePath(parts[0])) if len(parts) > 2 else None
        if split:
            found[parts[0]] = split
        elif len(parts) > 1:
            others.add(parts[0])
    is_alone = not others - found.keys()
    return found if is_alone or len(set(found.values())) > 1 else {}


def _hold_out(by_class: dict[str, list[str]]) -> tuple[dict[str, dict[str, list[str]]], str]:
    """Hold out a fraction of the images of each class, and return the parts with a note."""
    parts: dict[str, dict[str, list[str]]] = {"train": {}, "val": {}}
    count = total = 0
    for name, paths in by_class.items():
        total += len(paths)
        try:
            held_out, _ = hold_out(set(paths))
        except UserError:  # a single image, or variants of one
            held_out = {"train": set(paths)}
        for split, selected in held_out.items():
            parts[split][name] = sorted(selected)
        count += len(held_out.get("val", ()))
    note = (
        f"{count} of {total} images are held out for validation, {VAL_FRACTION:.0%} of each class "
        f"(at least one of two), by seed {SEED} and their names"
    )
    return parts, note


def _from_objects(data: str, wanted: Sequence[str]) -> ClassificationData:
    """Return the objects of an instance dataset as images."""
    try:
        layout = custom.find_layout(data)
    except UserError as error:
        raise UserError(f"{error}; {NO_CLASS_FOLDERS}") from None
    existing = [split for split in wanted if split in layout.splits]
    files = layout.read_all(existing or layout.splits, masks=False)
    names = _displayed(data, list(next(iter(files.values())).categories.values()))
    if len(names) < 2:
        raise UserError(f"--data {data}: there is one class only, {preview(names)}; add another")
    if files.keys() == set(SPLITS):
        files["train"].problems += coco.images_in_both(files["train"], files["val"])
    splits = {}
    for split, file in files.items():
        objects: list[dict[str, Any]] = []
        for record in file.records():
            objects += _objects_of(record)
        for number, item in enumerate(objects, start=1):
            item["image_id"] = number
        splits[split] = ClassificationSplit(f"{data}, {split}", objects, names, file.problems)
    _judge(splits, "unlearned class")
    image_root = os.path.commonpath([os.path.abspath(file.image_root) for file in files.values()])
    notes = [*layout.notes, "the objects are classified, each with a margin around its box"]
    return ClassificationData(data, layout.name, names, splits, image_root, notes)


def _objects_of(record: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a record for each object of an image, except for crowds and tiny boxes."""
    objects = []
    for item in record["annotations"]:
        x0, y0, x1, y1 = BoxMode.convert(item["bbox"], item["bbox_mode"], BoxMode.XYXY_ABS)
        if item.get("iscrowd") or min(x1 - x0, y1 - y0) < SMALLEST_SIDE:
            continue
        entry = {key: record[key] for key in ("file_name", "height", "width")}
        box = [float(x0), float(y0), float(x1), float(y1)]
        objects.append(entry | {"box": box, "label": item["category_id"]})
    return objects


def _judge(splits: Mapping[str, ClassificationSplit], untrained: str) -> None:
    """Add the problems of the classes, and sort all problems.

    Args:
        splits: of the dataset.
        untrained: kind of the problem that a class is in val only.
    """
    counts = {split: part.counts() for split, part in splits.items()}
    first = next(iter(splits.values()))
    for index, name in enumerate(first.classes):
        numbers = {split: count[index] for split, count in counts.items()}
        total = sum(numbers.values())
        if total and numbers.get("train") == 0:
            first.problems.append(Problem(untrained, detail=name))
        elif total == 1:
            first.problems.append(Problem("single image", detail=name))
        elif total and numbers.get("val") == 0:
            first.problems.append(Problem("unvalidated class", detail=name))
    for part in splits.values():
        if not part.records:
            part.problems.append(Problem("empty split"))
        part.problems = ordered(part.problems)


def read_all_images(data: ClassificationData) -> None:
    """Read every image, and add a problem for each that cannot be read or is in both splits."""
    for split in data.splits.values():
        paths = list(dict.fromkeys(record["file_name"] for record in split.records))
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            faults = list(pool.map(_image_fault, paths))
        split.problems = ordered([*split.problems, *filter(None, faults)])
    if data.splits.keys() == {"train", "val"}:
        train, val = data.splits["train"], data.splits["val"]
        train.problems = ordered([*train.problems, *_in_both(train, val)])


def _image_fault(path: str) -> Problem | None:
    try:
        read_image(path)
    except UserError as error:
        return Problem("unreadable", detail=str(error))
    return None


def _in_both(train: ClassificationSplit, val: ClassificationSplit) -> list[Problem]:
    """Return a problem for each training image that is also a validation image."""
    train_paths = {os.path.realpath(record["file_name"]) for record in train.records}
    val_paths = {os.path.realpath(record["file_name"]) for record in val.records}
    same = find_copies(sorted(train_paths), sorted(val_paths))
    same |= {path: path for path in train_paths & val_paths}
    problems = []
    for path, other in sorted(same.items()):
        detail = one_line(path, PATH_LIMIT)
        if path != other:
            detail += f", the same as {one_line(other, PATH_LIMIT)}"
        problems.append(Problem("both splits", detail=detail))
    return problems
