"""The numbers of images, objects and classes of a dataset, as a table."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from tabulate import tabulate

from ...utils.errors import preview
from ...utils.text import one_line
from . import coco

MAX_CLASSES = 20  # rows of a table; the rarer classes are summed up
NAME_LIMIT = 40  # characters of a class name in a table


class ClassLabel(NamedTuple):
    """A class name, and how many classes before it in the file have the same name."""

    name: str
    repetition: int


def table(files: Mapping[str, coco.CocoFile]) -> str:
    """Return the numbers of images, objects and classes of each file as text.

    Args:
        files: by the header of their columns.
    """
    counts = list(map(_objects_by_class, files.values()))
    totals: Counter[ClassLabel] = Counter()
    for count in counts:
        totals.update(count)
    labels = [label for label, _ in totals.most_common()]
    rows: list[list[Any]] = [["images"], ["  without objects"], ["objects"]]
    for data, count in zip(files.values(), counts):
        empty = sum(not objects for objects in data.objects.values())
        for row, number in zip(rows, (len(data.images), empty, count.total())):
            row.append(number)
    for label in labels[:MAX_CLASSES]:
        rows.append([f"  {one_line(label.name, NAME_LIMIT)}", *(count[label] for count in counts)])
    rest = labels[MAX_CLASSES:]
    if rest:
        rows.append([f"  and {len(rest)} more classes"])
        for count in counts:
            rows[-1].append(sum(count[label] for label in rest))
    lines = [tabulate(rows, headers=["", *files], tablefmt="simple", preserve_whitespace=True)]
    absent = [label.name for label in labels if counts[0][label] == 0]
    if absent:
        lines.append(f"classes without objects in {next(iter(files))}: {preview(absent)}")
    images: list[dict[str, Any]] = []
    for data in files.values():
        images += data.images.values()
    if images:
        widths = _range([image["width"] for image in images])
        heights = _range([image["height"] for image in images])
        lines.append(f"images are {widths} pixels wide and {heights} high")
    return "\n".join(lines)


def _objects_by_class(data: coco.CocoFile) -> Counter[ClassLabel]:
    """Count the objects of each class, also of those without objects; crowds do not count.

    Classes are identified by name, since files may number the same classes differently.
    """
    repetitions: Counter[str] = Counter()
    labels = {}
    for category_id, name in data.categories.items():
        labels[category_id] = ClassLabel(name, repetitions[name])
        repetitions[name] += 1
    counts = Counter(dict.fromkeys(labels.values(), 0))
    for objects in data.objects.values():
        for item in objects:
            if not item["iscrowd"]:
                counts[labels[item["category_id"]]] += 1
    return counts


def _range(numbers: Sequence[int]) -> str:
    low, high = min(numbers), max(numbers)
    return str(low) if low == high else f"{low} to {high}"
