"""Files of annotations in COCO format: what may be wrong in them, and what training and evaluation make of it.

:data:`.RULES` is the whole table; ``gpvit check-data --rules`` prints it. What is wrong with the file, an
image or a class stops, before anything is trained or evaluated. What is wrong with one object changes that object or
leaves it out, in training and evaluation alike, and the log says how often.
"""

import contextlib
import gc
import hashlib
import io
import json
import logging
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from detectron2.structures import BoxMode
from detectron2.utils.logger import log_first_n
from pycocotools import mask as mask_api
from pycocotools.coco import COCO

from ...utils.errors import UserError
from ...utils.text import LINE_LIMIT, PATH_LIMIT, one_line, shown
from ..image_io import MAX_PIXELS, read_image
from ..masks import as_numbers, compressed, outline_of, run_length_fault, with_too_long
from . import image_names
from .coco_rules import MAX_DETECTIONS, RULES, SLACK, Problem, grouped, left_out, phrase

LARGEST_ID = 2**53  # from which on floats, which the evaluation has them in, are not exact
# A box contradicts its mask if the box around the mask has less than this IoU with it, and a side of
# one is more than this many pixels from that of the other: else rounding would count with small
# objects. Boxes that are drawn loosely stay; in COCO's annotations at hand the least IoU is 0.9.
SAME_BOX, SAME_SIDE = 0.5, 2.0
NORMALIZED = 0.01  # share of the annotations with coordinates from 0 to 1 that stops
Tell = Callable[[str, str], None]  # takes a kind of problem and what exactly is wrong


@dataclass
class CocoFile:
    """What a file of annotations holds once the rules are applied.

    Attributes:
        path: of the file.
        image_root: the folder of its images.
        categories: names by id, in the order of the ids.
        images: by id, in the order of the ids: file_name, which is where it was found in image_root,
            height and width in pixels.
        objects: the usable annotations of each image, in COCO's format.
        annotations: how many annotations there are, usable or not.
        problems: all that were found, in the order of RULES.
        given: what the user has, if the file was made of it.
        written: the names in the file, by id, of images that are found under another name.
    """

    path: str
    image_root: str
    categories: dict[int, str] = field(default_factory=dict)
    images: dict[int, dict[str, Any]] = field(default_factory=dict)
    objects: dict[int, list[dict[str, Any]]] = field(default_factory=dict)
    annotations: int = 0
    problems: list[Problem] = field(default_factory=list)
    given: str = ""
    written: dict[int, str] = field(default_factory=dict)

    def real_paths(self, folders: image_names.Folders | None = None) -> dict[int, str]:
        """The paths of the images by id, without links; without image_root, their names."""
        names = {id: image["file_name"] for id, image in self.images.items() if image["file_name"]}
        if not self.image_root:
            return {id: os.path.normpath(name) for id, name in names.items()}
        folders = folders or image_names.Folders()
        return {id: folders.real(os.path.join(self.image_root, name)) for id, name in names.items()}

    def summary(self) -> str:
        used = sum(len(objects) for objects in self.objects.values())
        return (
            f"{one_line(self.path, PATH_LIMIT)}: {len(self.images)} images, "
            f"{used} of {self.annotations} annotations used, "
            f"{len(self.categories)} classes"
        )

    def raise_if_fatal(self) -> None:
        """Raises a UserError if there is a problem that stops training and evaluation."""
        fatal = [
            (kind, problems)
            for kind, problems in grouped(self.problems).items()
            if RULES[kind].action == "stop"
        ]
        if fatal:
            reasons = "; ".join(
                f"{phrase(kind, problems)}: {RULES[kind].then}" for kind, problems in fatal
            )
            command = f"gpvit check-data --annotations-only --data {self.given or self.path}"
            raise UserError(f"{self.path}: {reasons}. All problems: {command}")

    def records(self) -> list[dict[str, Any]]:
        """The images as Detectron2's records, with annotation ids; says in the log what the rules did, once.

        Raises:
            UserError: there is a problem that stops.
        """
        self.raise_if_fatal()
        log_first_n(logging.INFO, self.summary(), name=__name__, key="message")
        for kind, problems in grouped(self.problems).items():
            message = one_line(
                f"{self.path}: {phrase(kind, problems)}: {RULES[kind].then}", LINE_LIMIT
            )
            level = logging.INFO if RULES[kind].action == "note" else logging.WARNING
            log_first_n(level, message, name=__name__, key="message")
        contiguous = {id: i for i, id in enumerate(self.categories)}
        keys = ("id", "iscrowd", "bbox", "segmentation")
        return [
            {
                "file_name": os.path.join(self.image_root, image["file_name"]),
                "height": image["height"],
                "width": image["width"],
                "image_id": id,
                "annotations": [
                    {key: item[key] for key in keys if key in item}
                    | {
                        "bbox_mode": BoxMode.XYWH_ABS,
                        "category_id": contiguous[item["category_id"]],
                    }
                    for item in self.objects[id]
                ],
            }
            for id, image in self.images.items()
        ]

    def coco(self) -> COCO:
        """The same for COCO's evaluation, which needs area and iscrowd everywhere and annotation ids from 1 on."""
        api = COCO()
        everything = [item for objects in self.objects.values() for item in objects]
        api.dataset = {
            "images": [{"id": id} | image for id, image in self.images.items()],
            "categories": [{"id": id, "name": name} for id, name in self.categories.items()],
            "annotations": [
                item | {"id": number} for number, item in enumerate(everything, start=1)
            ],
        }
        with contextlib.redirect_stdout(io.StringIO()):
            api.createIndex()
        return api


def read(
    json_file: str | os.PathLike,
    image_root: str | os.PathLike,
    *,
    masks: bool = True,
    train: bool = False,
    open_images: bool = False,
) -> CocoFile:
    """Reads a file of annotations, applies the rules and lists all problems. Nothing in the file raises an error.

    Args:
        json_file: annotations in COCO format.
        image_root: folder of the images.
        masks: whether every annotation must have a mask; without, masks are neither looked at nor given.
        train: whether there must be an object to train on.
        open_images: whether to read every image, too.
    """
    data = CocoFile(str(json_file), str(image_root))
    with _no_garbage_collection():
        not_found = _read(data, masks, train)
    if open_images:
        data.problems += _open_images(data, not_found)
        data.problems = [
            problem for problems in grouped(data.problems).values() for problem in problems
        ]
    return data


@contextlib.contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """For a file with millions of objects of which none refers to another that holds it, a third faster."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _read(data: CocoFile, masks: bool, train: bool) -> dict[int, str]:
    """Reads a file but for its images. Gives the ids of images that are not found, and why."""
    try:
        content = _parse(Path(data.path))
    except (OSError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split()) or "nested too deeply"
        data.problems.append(Problem("format", detail=f"{type(error).__name__}: {reason}"))
        return {}
    groups = [entry for entry in content["categories"] if _is_group(entry, content)]
    categories = [entry for entry in content["categories"] if entry not in groups]
    found = [*_read_categories(data, categories), *_read_images(data, content["images"])]
    found += [Problem("group", detail=shown(entry["name"])) for entry in groups]
    renamed, not_found = _find_images(data)
    found += renamed
    objects = _judge(
        data, content["annotations"], list(_read_annotations(data, content["annotations"], masks))
    )
    found += objects
    empty = [
        Problem("empty image", id)
        for id in data.images
        if all(item["iscrowd"] for item in data.objects[id])
    ]
    found += empty
    counts = {id: sum(not item["iscrowd"] for item in items) for id, items in data.objects.items()}
    many = sorted(
        (id for id, count in counts.items() if count > MAX_DETECTIONS), key=lambda id: -counts[id]
    )
    found += [Problem("many objects", id, detail=f"{counts[id]} objects") for id in many]
    if (
        train
        and len(empty) == len(data.images) > 0
        and not any(problem.kind == "normalized" for problem in objects)
    ):
        found.append(Problem("no objects", detail=left_out(objects)))
    data.problems = [problem for problems in grouped(found).values() for problem in problems]
    return not_found


def load_json(path: Path) -> Any:
    """What is in a JSON file, in UTF-8, UTF-16 or UTF-32.

    Raises:
        OSError, ValueError, RecursionError: it cannot be read.
    """
    content = path.read_bytes()
    if content.startswith(b"\x1f\x8b"):
        raise ValueError("the file is compressed by gzip; unpack it")
    return json.loads(content)


def _parse(path: Path) -> dict[str, list[dict]]:
    """The three lists of a file. Raises as :func:`load_json` does."""
    content = load_json(path)
    if not isinstance(content, dict):
        raise ValueError("the file is not a JSON object")
    lists = {name: content.get(name, []) for name in ("categories", "images", "annotations")}
    for name, entries in lists.items():
        if not isinstance(entries, list):
            raise ValueError(f'"{name}" is not a list')
        for number, entry in enumerate(entries):
            if not isinstance(entry, dict):
                raise ValueError(f"{name}[{number}] is not an object")
    return lists


def _read_categories(data: CocoFile, entries: list[dict]) -> Iterator[Problem]:
    if not entries:
        yield Problem("no categories")
    for number, entry in enumerate(entries):
        id, name = _whole(entry.get("id")), entry.get("name")
        if id is None or not isinstance(name, str):
            yield Problem("category", detail=f"entry {number}, id {_shown_id(entry.get('id'))}")
        elif id in data.categories:
            yield Problem("category twice", detail=f"entry {number}, id {id}")
        else:
            if name in data.categories.values():
                yield Problem("same name", detail=f"entry {number}, {shown(name)}")
            data.categories[id] = name
    data.categories = dict(sorted(data.categories.items()))


def _is_group(entry: dict, content: dict[str, list[dict]]) -> bool:
    """Whether a category is what Roboflow writes before the others, of which no object is: it would never be found."""
    others = [other for other in content["categories"] if other is not entry]
    return (
        (entry.get("id"), entry.get("supercategory")) == (0, "none")
        and isinstance(entry.get("name"), str)
        and bool(others)
        and all(other.get("supercategory") == entry["name"] for other in others)
        and all(item.get("category_id") != 0 for item in content["annotations"])
    )


def _read_images(data: CocoFile, entries: list[dict]) -> Iterator[Problem]:
    if not entries:
        yield Problem("no images")
    for number, entry in enumerate(entries):
        id, name = _whole(entry.get("id")), entry.get("file_name")
        width, height = _whole(entry.get("width")), _whole(entry.get("height"))
        if id is None:
            yield Problem("image", detail=f"entry {number}, id {_shown_id(entry.get('id'))}")
            continue
        if id in data.images:
            yield Problem("image twice", id, detail=f"entry {number}")
            continue
        if not isinstance(name, str) or not name:
            yield Problem("image", id, detail="no file_name")
            name = ""
        if not usable_size(height, width):
            yield Problem(
                "image size",
                id,
                detail=" x ".join(shown(entry.get(side)) for side in ("width", "height")),
            )
            width = height = 0
        data.images[id] = {"file_name": name, "height": height, "width": width}
        data.objects[id] = []
    data.images = dict(sorted(data.images.items()))


def usable_size(height: Any, width: Any) -> bool:
    """Whether these are whole numbers of pixels of an image that can be read."""
    return (
        all(type(side) is int and side > 0 for side in (height, width))
        and height * width <= MAX_PIXELS
    )


def _find_images(data: CocoFile) -> tuple[list[Problem], dict[int, str]]:
    """Finds images that are not there under their names.

    Returns:
        The problems, and by id why some images are not found.
    """
    folders = image_names.Folders()
    missing: dict[int, str] = {}
    taken: set[str] = set()
    for id, image in data.images.items() if data.image_root else ():
        name = image["file_name"]
        if name and not folders.has(os.path.join(data.image_root, name)):
            missing[id] = name
        elif name:
            taken.add(
                os.path.relpath(name, data.image_root)
                if os.path.isabs(name)
                else os.path.normpath(name)
            )
    problems, not_found = [], {}
    matches = (
        image_names.match(missing.values(), image_names.files_below(data.image_root), taken)
        if missing
        else {}
    )
    for id, name in missing.items():
        path, fault = matches[name]
        if path:
            data.written[id], data.images[id]["file_name"] = name, path
            problems.append(
                Problem("image name", id, detail=f"{one_line(name)} is {one_line(path)}")
            )
        else:
            not_found[id] = fault
    firsts: dict[str, int] = {}
    for id, path in data.real_paths(folders).items():
        first = firsts.setdefault(path, id)
        if first != id:
            problems.append(
                Problem(
                    "file twice", id, detail=f"{one_line(data.images[id]['file_name'])}, as {first}"
                )
            )
    return problems, not_found


def images_in_both(train: CocoFile, val: CocoFile, *, copies: bool = False) -> list[Problem]:
    """The images of the one file that are those of the other, too.

    Args:
        copies: whether to look for copies, too, which are other files with the same bytes; those of one color, such as
            black frames, are none.
    """
    paths, validated = train.real_paths(), val.real_paths()
    same = _copies(paths.values(), validated.values()) if copies else {}
    same |= {path: path for path in validated.values()}
    problems = []
    for id, path in paths.items():
        if path in same:
            copied = (
                "" if same[path] == path else f", the same as {one_line(same[path], PATH_LIMIT)}"
            )
            problems.append(
                Problem("both splits", id, detail=one_line(train.images[id]["file_name"]) + copied)
            )
    return problems


def _copies(paths: Iterable[str], others: Iterable[str]) -> dict[str, str]:
    """The paths whose files have the same bytes as one of the others, with that; files that cannot be read have none."""
    by_size: dict[int, list[str]] = {}
    for path in others:
        with contextlib.suppress(OSError, ValueError):
            by_size.setdefault(os.path.getsize(path), []).append(path)
    digests: dict[str, bytes] = {}

    def digest(path: str) -> bytes:
        if path not in digests:
            digests[path] = hashlib.sha256(Path(path).read_bytes()).digest()
        return digests[path]

    found = {}
    for path in paths:
        with contextlib.suppress(OSError, ValueError):
            for other in by_size.get(os.path.getsize(path), ()):
                if (
                    path not in found
                    and path != other
                    and digest(path) == digest(other)
                    and not _has_one_color(path)
                ):
                    found[path] = other
    return found


def _has_one_color(path: str) -> bool:
    try:
        image = read_image(path)
    except UserError:
        return False
    return bool((image == image[0, 0]).all())


def _read_annotations(data: CocoFile, entries: list[dict], masks: bool) -> Iterator[Problem]:
    data.annotations = len(entries)
    ids: set[int] = set()
    seen = Seen()
    for number, entry in enumerate(entries):
        id, image_id, category_id = (
            _whole(entry.get(key)) for key in ("id", "image_id", "category_id")
        )
        found: list[tuple[str, str]] = []
        if id is None or image_id is None:
            ids_shown = ", ".join(
                f"{key} {_shown_id(entry.get(key))}" for key in ("id", "image_id")
            )
            found.append(("annotation", f"entry {number}, {ids_shown}"))
        if category_id not in data.categories:
            found.append(("undeclared", f"category_id {shown(entry.get('category_id'))}"))
        if masks and not entry.get("segmentation"):
            found.append(("no mask", ""))
        if image_id is not None and image_id not in data.images:
            found.append(("no such image", f"image_id {image_id}"))
        if not found and image_id is not None and (image := data.images[image_id])["height"]:
            made = _object(
                entry,
                image["height"],
                image["width"],
                masks,
                lambda *why, found=found: found.append(why),
            )
            if made:
                item = {"id": id, "image_id": image_id, "category_id": category_id} | made[0]
                other = seen.same_as((image_id, category_id, *made[1]), item)
                if other:
                    found.append(("object twice", f"as {other['id']}"))
                else:
                    data.objects[image_id].append(item)
        if id in ids:
            found.append(("annotation twice", ""))
        ids |= set() if id is None else {id}
        yield from (Problem(kind, image_id, id, detail) for kind, detail in found)


def _judge(data: CocoFile, entries: list[dict], found: list[Problem]) -> list[Problem]:
    """The problems of objects, with what can only be said of all of them together."""
    fractions = sum(problem.kind == "normalized" for problem in found)
    within = fractions + sum(problem.kind == "first pixel" for problem in found)
    # A few may be small objects in the corner, and so may pixels there be, but not everywhere.
    many = fractions >= max(2, NORMALIZED * len(entries)) or within == len(entries) > 1
    for number, problem in enumerate(found):
        if problem.kind in ("normalized", "first pixel"):
            found[number] = problem._replace(kind="normalized" if many else "first pixel")
    clipped = [problem for problem in found if problem.kind == "box clipped"]
    if len(clipped) > 1 and all(_may_be_corners(entry, data) for entry in entries):
        found += [problem._replace(kind="corners") for problem in clipped]
    return found


def _may_be_corners(entry: dict, data: CocoFile) -> bool:
    """Whether nothing speaks against x, y, x, y in a box that has no mask."""
    numbers, image = (
        _four_numbers(entry.get("bbox")),
        data.images.get(_whole(entry.get("image_id")) or 0),
    )
    if numbers is None or image is None:
        return True
    x1, y1, x2, y2 = numbers
    inside = x2 <= image["width"] + SLACK and y2 <= image["height"] + SLACK
    return inside and x1 < x2 and y1 < y2 and not entry.get("segmentation")


class Seen:
    """Objects that were read, to find those that repeat one."""

    def __init__(self) -> None:
        self._first: dict[tuple, dict] = {}
        self._by_mask: dict[tuple, dict[Any, dict]] = {}

    def same_as(self, values: tuple, item: dict) -> dict | None:
        """The first object with these values and the same mask, if this is not the first."""
        first = self._first.setdefault(values, item)
        if first is item:
            return None
        # Masks are compared, which takes longer, where all else is the same.
        by_mask = self._by_mask.setdefault(values, {_hashable(first.get("segmentation")): first})
        other = by_mask.setdefault(_hashable(item.get("segmentation")), item)
        return None if other is item else other


def _hashable(mask: list[list[float]] | dict | None) -> Any:
    if isinstance(mask, dict):
        counts = mask["counts"]
        return counts.encode() if isinstance(counts, str) else counts
    return mask and tuple(map(tuple, mask))


def _object(
    entry: dict, height: int, width: int, masks: bool, tell: Tell
) -> tuple[dict[str, Any], tuple] | None:
    """Box, mask, area and iscrowd of an annotation by the rules, or None if it is left out.

    With it come the values that another annotation of the same object has, too, but for the mask.
    """
    outline, value = entry.get("segmentation"), entry.get("bbox")
    numbers = _four_numbers(value)
    box, fault = _box(value, numbers, height, width)
    mask, extent = None, None
    if masks:
        mask, extent = _mask(outline, height, width, tell)
    elif outline and box and not _agrees(box, numbers, outline, height, width):
        mask, extent = _mask(outline, height, width, _ignore)  # to say so, if it can be used

    box_within = _in_first_pixel(numbers, height, width)
    mask_within = isinstance(outline, list) and _in_first_pixel(extent, height, width)
    alone = mask_within and not box_within and box and _contradicts(box, numbers, extent)
    if alone and not masks:  # the box is in pixels
        mask, extent = None, None
    elif mask_within or (box_within and (extent is None or not masks)):
        whole = all(number == int(number) for number in (*(numbers or ()), *(extent or ())))
        where = (
            f"segmentation {shown(outline)}"
            if mask_within and not box_within
            else f"bbox {shown(value)}"
        )
        tell("first pixel" if whole else "normalized", f"{where} in {width} x {height}")
    if alone and mask:
        tell("mask", "within the first pixel, and the box is elsewhere")
    if masks and (alone or mask is None):
        return None

    around = _box_around(extent) if mask and extent else None
    differs = box and around and _contradicts(box, numbers, extent)
    if differs:
        tell(
            "box differs" if masks else "box alone differs",
            f"{shown(value)}, the mask's is {shown(around)}",
        )
    if fault and not (differs and masks):
        tell(*fault)
    if masks and (differs or box is None):
        box = around
    if box is None:
        return None
    item: dict[str, Any] = {"segmentation": mask} if masks else {}
    item |= {
        "bbox": box,
        **_area_and_crowd(entry, box, height, width, mask if masks else None, tell),
    }
    polygons = len(outline) if isinstance(outline, list) else 0  # also those that are left out
    return item, (numbers, item["area"], item["iscrowd"], polygons)


def _area_and_crowd(
    entry: dict,
    box: list[float],
    height: int,
    width: int,
    mask: list[list[float]] | dict | None,
    tell: Tell,
) -> dict[str, Any]:
    area: Any = entry.get("area")
    crowd = entry.get("iscrowd") or 0
    if not _area_fits(area, *box[2:]):
        tell("area", shown(area))
        area = box[2] * box[3] if mask is None else _area(mask, height, width)
    if crowd not in (0, 1) or entry.get("ignore"):
        tell("ignored", f"iscrowd {shown(crowd)}, ignore {shown(entry.get('ignore'))}")
        crowd = 1
    if crowd:
        tell("crowd", "")
    return {"area": float(area), "iscrowd": int(crowd)}


def _ignore(kind: str, detail: str) -> None:
    """Of one object that it has a problem which does not matter."""


def _four_numbers(value: Any) -> tuple[float, ...] | None:
    """Four finite numbers, or None."""
    if not isinstance(value, list) or len(value) != 4:
        return None
    if not all(isinstance(number, int | float) for number in value):
        return None
    try:
        numbers = tuple(map(float, value))
    except OverflowError:
        return None
    return numbers if all(map(math.isfinite, numbers)) else None


def _in_first_pixel(values: Sequence[float] | None, height: int, width: int) -> bool:
    """Whether numbers of a box or mask are about 0 to 1, in an image of more than one pixel each way."""
    return (
        values is not None and min(height, width) > 1 and min(values) >= -0.1 and max(values) <= 1.1
    )


def _contradicts(
    box: Sequence[float], numbers: Sequence[float] | None, extent: Sequence[float] | None
) -> bool:
    """Whether a box, x, y, width, height, is not that of a mask, which extends from x1, y1 to x2, y2.

    ``numbers`` are those of the file, before the box was clipped to the image.
    """
    assert numbers is not None and extent is not None
    x, y, width, height = box
    corners = (x, y, x + width, y + height)
    if all(abs(side - true) <= SAME_SIDE for side, true in zip(corners, extent)):
        return False
    x1, y1, x2, y2 = extent
    common = max(0.0, min(x2, x + width) - max(x1, x)) * max(0.0, min(y2, y + height) - max(y1, y))
    if common < SAME_BOX * (width * height + (x2 - x1) * (y2 - y1) - common):
        return True
    # Near the image's corner, a box of x, y, x, y is nearly the same; but then it fits to the pixel.
    return all(abs(side - true) <= SAME_SIDE for side, true in zip(numbers, extent))


def _box_around(extent: Sequence[float]) -> list[float]:
    x1, y1, x2, y2 = extent
    return [x1, y1, x2 - x1, y2 - y1]


def _agrees(
    box: Sequence[float], numbers: Sequence[float] | None, outline: Any, height: int, width: int
) -> bool:
    """Whether a box surely does not contradict its polygons; False of what is no polygons."""
    try:
        xs = [x for polygon in outline for x in polygon[0::2]]
        ys = [y for polygon in outline for y in polygon[1::2]]
        extent = (max(min(xs), 0), max(min(ys), 0), min(max(xs), width), min(max(ys), height))
        return not _contradicts(box, numbers, extent)
    except (TypeError, ValueError, KeyError, OverflowError):
        return False


def _box(
    value: Any, numbers: Sequence[float] | None, height: int, width: int
) -> tuple[list[float] | None, tuple[str, str] | None]:
    """x, y, width and height in pixels inside of the image, or None; kind and detail of a problem."""
    if numbers is None:
        return None, ("box", shown(value))
    x, y, w, h = numbers
    if w <= 0 or h <= 0:
        return None, ("empty box", f"{w:g} x {h:g}")
    x1, y1, x2, y2 = max(x, 0.0), max(y, 0.0), min(x + w, width), min(y + h, height)
    in_image = f"{shown(value)} in {width} x {height}"
    if x2 <= x1 or y2 <= y1:
        return None, ("box outside", in_image)
    clipped = max(x1 - x, y1 - y, x + w - x2, y + h - y2) > SLACK
    inside = (x1, y1) == (x, y) and x + w <= width and y + h <= height
    return (
        [x, y, w, h] if inside else [x1, y1, x2 - x1, y2 - y1],
        ("box clipped", in_image) if clipped else None,
    )


def _area_fits(area: Any, width: float, height: float) -> bool:
    """Whether an area may be that of an object in a box of this size, with the pixels at its sides."""
    if not isinstance(area, int | float) or isinstance(area, bool):
        return False
    # A share of the image's area is at most 1.
    return 0 < area <= (width + SAME_SIDE) * (height + SAME_SIDE) and (
        area > 1 or width * height <= 16
    )


def _mask(
    value: Any, height: int, width: int, tell: Tell
) -> tuple[list[list[float]] | dict | None, list[float] | None]:
    """Polygons or compressed RLE of an image's size, or None; the corners x1, y1, x2, y2 around them."""
    if isinstance(value, dict):
        fault = run_length_fault(value, height, width)
        rle = None if fault else compressed(value, height, width)
        if rle is None or not mask_api.area(rle):
            tell("mask", fault or "no pixel")
            return None, None
        x, y, w, h = mask_api.toBbox(rle).tolist()
        return rle, [x, y, x + w, y + h]
    if not isinstance(value, list):
        tell("mask", "neither polygons nor RLE")
        return None, None
    if as_numbers(value) is not None and value:
        tell("polygon", "a flat list of numbers, not a list of polygons")
        return None, None
    looked = [outline_of(polygon, height, width) for polygon in value]
    faults = with_too_long(looked, height, width)
    if any(faults):
        tell("polygon", ", ".join(sorted({*faults} - {""})))
    kept = [number for number, fault in enumerate(faults) if not fault]
    if not kept:
        return None, None
    sides = list(zip(*(looked[number].extent for number in kept)))
    extent = [
        max(min(sides[0]), 0.0),
        max(min(sides[1]), 0.0),
        min(max(sides[2]), width),
        min(max(sides[3]), height),
    ]
    # Between the centers of pixels, or drawn to and fro, even a large outline has no pixel. Nothing that is
    # faster than drawing it tells.
    if not any(
        mask_api.area(
            mask_api.frPyObjects([looked[number].points for number in kept], height, width)
        )
    ):
        tell("mask", "no pixel")
        return None, extent
    return [value[number] for number in kept], extent


def _area(mask: list[list[float]] | dict, height: int, width: int) -> float:
    rle = (
        mask
        if isinstance(mask, dict)
        else mask_api.merge(mask_api.frPyObjects(mask, height, width))
    )
    return float(mask_api.area(rle))


def _whole(value: Any) -> int | None:
    """A whole number from 0 on, exact also where JSON's numbers are floats; the evaluation takes no others as ids."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return (
        value
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < LARGEST_ID
        else None
    )


def _shown_id(value: Any) -> str:
    """What is no id, for a message."""
    too_large = isinstance(value, int) and value >= LARGEST_ID
    return f"{shown(value)}, which is not below 2**53" if too_large else shown(value)


def _open_images(data: CocoFile, not_found: Mapping[int, str]) -> Iterator[Problem]:
    def look(id: int) -> Problem | None:
        image = data.images[id]
        try:
            height, width = read_image(os.path.join(data.image_root, image["file_name"])).shape[:2]
        except UserError as error:
            why = f"; it {not_found[id]}" if id in not_found else ""
            return Problem("unreadable", id, detail=f"{error}{why}")
        if (height, width) != (image["height"], image["width"]):
            sizes = f"{width} x {height}, not {image['width']} x {image['height']}"
            turned = (
                "; is it turned by EXIF?"
                if (width, height) == (image["height"], image["width"])
                else ""
            )
            name = one_line(image["file_name"], PATH_LIMIT)
            return Problem("size differs", id, detail=f"{name} is {sizes}{turned}")
        return None

    known = [id for id, image in data.images.items() if image["file_name"] and image["height"]]
    with ThreadPoolExecutor() as pool:
        yield from filter(None, pool.map(look, known))
