"""YOLO segmentation and labelme to COCO format, by the package supervision.

supervision reads and checks the annotations of each image. The outlines are taken as they are in the files: its own
conversion fills them into masks of whole pixels and outlines these again (mean IoU with the original: 0.990 on photos
of fruits, 0.945 on nuclei), and makes crowds, which nothing is trained on, of objects in several parts.

What is only a box there stays one: four numbers (YOLO), a rectangle (labelme).

An object that cannot be read is left out, and a file that cannot be read stops, but only at the end: all of them are
listed, with file and line, as the other problems of annotations are.
"""

import contextlib
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePath
from typing import Any, NamedTuple, TypeVar

import numpy as np
from PIL import Image
from pycocotools import mask as mask_api
from supervision import Detections

from ...utils.errors import UserError
from ...utils.text import one_line
from ..image_io import FORMATS, exif_orientation, read_image
from .file_tree import split_of

T = TypeVar("T")
REASON = 200  # characters of why something cannot be read


class Object(NamedTuple):
    """An object of an image.

    category: from 0; box: x0, y0, x1, y1 in pixels; mask: polygons x, y, x, y, ... in pixels, an RLE, or none; number: of
    the line or shape.
    """

    category: int
    box: Sequence[float]
    mask: list[list[float]] | dict[str, Any]
    number: int


class ConvertedImage(NamedTuple):
    """An image by its path in the dataset, with height and width in pixels, its objects, and where they are from."""

    name: str
    height: int
    width: int
    objects: list[Object]
    origin: str


class Fault(NamedTuple):
    """What is wrong: a kind of problem that annotations.RULES has, with the image that it is of if that is there."""

    kind: str
    detail: str
    image: str | None


class DataSet(NamedTuple):
    """What was read.

    classes: their names; pictures: images in the order of their names; splits: of each image that is there, as stated;
    notes: what was decided; faults: all that were found.
    """

    classes: Sequence[str]
    pictures: list[ConvertedImage]
    splits: Mapping[str, str | None]
    notes: list[str]
    faults: list[Fault]

    def _chosen(self, names: Iterable[str]) -> Iterator[tuple[int, int, ConvertedImage]]:
        """The images of these names, with their ids and those of their first annotations.

        These are the same whichever others are chosen.
        """
        wanted, first = set(names), 1
        for id, picture in enumerate(self.pictures, start=1):
            if picture.name in wanted:
                yield id, first, picture
            first += len(picture.objects)

    def coco(self, names: Iterable[str]) -> dict[str, list[dict[str, Any]]]:
        """The images of these names in COCO format."""
        chosen = list(self._chosen(names))
        return {
            "categories": [
                {"id": id, "name": name} for id, name in enumerate(self.classes, start=1)
            ],
            "images": [
                {"id": id, "file_name": p.name, "height": p.height, "width": p.width}
                for id, _, p in chosen
            ],
            "annotations": [
                {"id": number, "image_id": id, **_annotation(item)}
                for id, first, picture in chosen
                for number, item in enumerate(picture.objects, start=first)
            ],
        }

    def origins(self, names: Iterable[str]) -> dict[str, Any]:
        """What :meth:`.Layout.trace` needs to say of problems with these images what file and line they are in."""
        wanted = set(names)
        return {
            "problems": [
                (kind, detail)
                for kind, detail, image in self.faults
                if image is None or image in wanted
            ],
            "objects": {
                id: (picture.origin, first, [item.number for item in picture.objects])
                for id, first, picture in self._chosen(wanted)
                if picture.objects
            },
        }


def _annotation(item: Object) -> dict[str, Any]:
    x0, y0, x1, y1 = map(float, item.box)
    found = {"category_id": item.category + 1, "bbox": [x0, y0, x1 - x0, y1 - y0], "iscrowd": 0}
    if not item.mask:
        return found | {"area": (x1 - x0) * (y1 - y0)}
    area = (
        float(mask_api.area(item.mask))
        if isinstance(item.mask, dict)
        else sum(map(_area, item.mask))
    )
    return found | {"segmentation": item.mask, "area": area}


def _area(outline: list[float]) -> float:
    x, y = np.asarray(outline[0::2]), np.asarray(outline[1::2])
    return abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2


# YOLO.


def by_folder(names: Iterable[str]) -> dict[str, str | None]:
    """The split that the folders of each image say."""
    return {name: split_of(PurePath(name).parent) for name in names}


# Used for labelme as well.


def readable(
    items: list[T], read: Callable[[list[T]], Detections]
) -> tuple[list[T], Detections, list[tuple[T, str]]]:
    """Reads many items at once, or if that fails, those that can be read.

    Returns:
        The items that were read, what was read, and the other items with the reasons.
    """
    with contextlib.suppress(ValueError, OverflowError):
        return items, read(items), []
    good, faults = [], []
    for item in items:
        try:
            read([item])
            good.append(item)
        except (ValueError, OverflowError) as error:
            faults.append((item, one_line(str(error).rstrip("."), REASON)))
    return good, read(good), faults


def category_numbers(found: Detections) -> list[int]:
    """The classes of objects."""
    return [] if found.class_id is None else found.class_id.tolist()


def size_of(path: Path) -> tuple[int, int]:
    """Height and width, by its header, of an image as :func:`gpvit.data.image_io.read_image` gives it.

    Raises:
        UserError: it has no header that can be read.
    """
    if not path.is_file():  # a pipe would be waited for
        return read_image(path).shape[:2]  # which says what is wrong
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", module="PIL"
        )  # as read_image, which is to say what is wrong
        try:
            image = Image.open(path, formats=FORMATS)
        except Exception:
            return read_image(path).shape[:2]
        turned = exif_orientation(image) in (5, 6, 7, 8)
    with image:
        return (image.width, image.height) if turned else (image.height, image.width)


def sizes_of(root: Path, names: Iterable[str]) -> Iterator[tuple[int, int] | UserError]:
    """The size of each of many images, or why it has none."""

    def look(name: str) -> tuple[int, int] | UserError:
        try:
            return size_of(root / name)
        except UserError as error:
            return error

    with ThreadPoolExecutor() as pool:
        yield from pool.map(look, names)
