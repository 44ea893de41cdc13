"""Convert YOLO segmentation and labelme to COCO format, with the package supervision.

supervision reads and checks the annotations of each image. Outlines are copied from the files
unchanged: supervision's own conversion rasterizes them and traces the masks (mean IoU with the
original: 0.990 on photos of fruits, 0.945 on nuclei), and turns objects of several parts into
crowds, which are not trained on.

Objects that are only a box in the files, four numbers in YOLO or a rectangle in labelme, have no
mask.

An object that cannot be read is dropped, and a file that cannot be read stops, but not before all
of them are listed with file and line, together with the other problems of the annotations.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePath
from typing import Any, NamedTuple, TypeVar

import numpy as np
from pycocotools import mask as mask_api
from supervision import Detections

from ...utils.errors import UserError
from ...utils.text import one_line
from ..image_io import size_of
from .file_tree import split_of

T = TypeVar("T")
REASON = 200  # characters of the reason why something cannot be read


class Object(NamedTuple):
    """An object of an image.

    category: class number, from 0.
    box: x0, y0, x1, y1 in pixels.
    mask: polygons x, y, x, y, ... in pixels, an RLE, or an empty list.
    number: of its line or shape in the file.
    """

    category: int
    box: Sequence[float]
    mask: list[list[float]] | dict[str, Any]
    number: int


class ConvertedImage(NamedTuple):
    """An image with its objects.

    name: its path in the dataset.
    height, width: in pixels.
    objects: in the order of the file.
    origin: where the objects are from, without their numbers, such as "labels/a.txt, line".
    """

    name: str
    height: int
    width: int
    objects: list[Object]
    origin: str


class Fault(NamedTuple):
    """A problem of the conversion.

    kind: a key of :data:`.RULES`.
    detail: file, line and reason.
    image: the name of the image, or None if there is none.
    """

    kind: str
    detail: str
    image: str | None


class ConvertedDataset(NamedTuple):
    """The contents of a dataset in another format.

    classes: their names.
    images: sorted by name.
    splits: the stated split, if any, of each existing image.
    notes: decisions to report to the user.
    faults: all problems of the conversion.
    """

    classes: Sequence[str]
    images: list[ConvertedImage]
    splits: Mapping[str, str | None]
    notes: list[str]
    faults: list[Fault]

    def _selected(self, names: Iterable[str]) -> Iterator[tuple[int, int, ConvertedImage]]:
        """Yield the images of these names, each with its ID and the ID of its first annotation.

        IDs do not depend on which images are selected.
        """
        wanted, first_id = set(names), 1
        for id, image in enumerate(self.images, start=1):
            if image.name in wanted:
                yield id, first_id, image
            first_id += len(image.objects)

    def coco(self, names: Iterable[str]) -> dict[str, list[dict[str, Any]]]:
        """Return the images of these names in COCO format. All IDs count from 1."""
        categories = [{"id": id, "name": name} for id, name in enumerate(self.classes, start=1)]
        images, annotations = [], []
        for id, first_id, image in self._selected(names):
            size = {"height": image.height, "width": image.width}
            images.append({"id": id, "file_name": image.name, **size})
            for number, item in enumerate(image.objects, start=first_id):
                annotations.append({"id": number, "image_id": id, **_annotation(item)})
        return {"categories": categories, "images": images, "annotations": annotations}

    def origins(self, names: Iterable[str]) -> dict[str, Any]:
        """Return the origins of the objects of these images, for JSON.

        They are used by :meth:`.Layout.refer_to_user_files`.

        problems: kind and detail of the faults of these images, and of those without an image.
        objects: by image ID: origin, ID of the first annotation, and numbers of the objects.
        """
        wanted = set(names)
        problems = []
        for kind, detail, image_name in self.faults:
            if image_name is None or image_name in wanted:
                problems.append((kind, detail))
        objects = {}
        for id, first_id, image in self._selected(wanted):
            if image.objects:
                numbers = [item.number for item in image.objects]
                objects[id] = (image.origin, first_id, numbers)
        return {"problems": problems, "objects": objects}


def _annotation(item: Object) -> dict[str, Any]:
    """Convert an object to an annotation in COCO format, without IDs of its own and its image."""
    x0, y0, x1, y1 = map(float, item.box)
    width, height = x1 - x0, y1 - y0
    result = {"category_id": item.category + 1, "bbox": [x0, y0, width, height], "iscrowd": 0}
    if not item.mask:
        return result | {"area": width * height}
    if isinstance(item.mask, dict):
        area = float(mask_api.area(item.mask))
    else:
        area = sum(map(_polygon_area, item.mask))
    return result | {"segmentation": item.mask, "area": area}


def _polygon_area(outline: list[float]) -> float:
    """Return the area of a polygon x, y, x, y, ..., by the shoelace formula."""
    x, y = np.asarray(outline[0::2]), np.asarray(outline[1::2])
    return abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2


def by_folder(names: Iterable[str]) -> dict[str, str | None]:
    """Return the split of each image by words in the names of its folders, or None."""
    return {name: split_of(PurePath(name).parent) for name in names}


def readable(
    items: list[T], read: Callable[[list[T]], Detections]
) -> tuple[list[T], Detections, list[tuple[T, str]]]:
    """Read many items at once or, if that fails, those that can be read.

    Returns:
        The items that were read, the result, and the other items with the reasons.
    """
    with contextlib.suppress(ValueError, OverflowError):
        return items, read(items), []
    valid, faults = [], []
    for item in items:
        try:
            read([item])
            valid.append(item)
        except (ValueError, OverflowError) as error:
            faults.append((item, one_line(str(error).rstrip("."), REASON)))
    return valid, read(valid), faults


def category_numbers(detections: Detections) -> list[int]:
    """Return the classes of objects."""
    return [] if detections.class_id is None else detections.class_id.tolist()


def sizes_of(root: Path, names: Iterable[str]) -> Iterator[tuple[int, int] | UserError]:
    """Yield the size of each image, or the reason why it has none."""

    def size_or_error(name: str) -> tuple[int, int] | UserError:
        try:
            return size_of(root / name)
        except UserError as error:
            return error

    with ThreadPoolExecutor() as pool:
        yield from pool.map(size_or_error, names)
