"""Files of annotations in COCO format: what may be wrong in them, and what training and evaluation make of it.

:data:`RULES` is the whole table; ``python tools/check_data.py --rules`` prints it. What is wrong with the file, an
image or a class stops, before anything is trained or evaluated. What is wrong with one object changes that object or
leaves it out, in training and evaluation alike, and the log says how often.
"""

import contextlib
import io
import json
import logging
import os
import reprlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from detectron2.structures import BoxMode
from detectron2.utils.logger import log_first_n
from pycocotools import mask as mask_api
from pycocotools.coco import COCO

from .errors import UserError
from .images import MAX_PIXELS, read_image
from .utils.text import LINE_LIMIT, PATH_LIMIT, one_line

MAX_DETECTIONS = 100  # that a detector gives of an image, and AP counts, unless dataloader.max_detections is another
SLACK = 1.0  # pixels by which a box may leave its image without being counted: rounding, and boxes that count corners
# How long the outlines of an object may be, in times of the image's height and width together, and at most in pixels.
# pycocotools takes 80 bytes for a pixel of outline and does not check whether there is so much memory. In COCO and the
# data sets at hand no object comes to more than 4 times; an outline around every single pixel of 125 x 125 comes to 250.
OUTLINE_SIDES, OUTLINE_PIXELS = 250, 10_000_000
ANEW = "made anew from the mask; without one the object is left out"
LATER = "correct them; training stops when it comes to one, or skips it if told to"


class Rule(NamedTuple):
    """What is done about one kind of problem.

    action: "stop", "drop" (the object is left out), "mend" (it is changed) or "note" (it is only told).
    what: the problem, to follow a number.
    then: what training and evaluation make of it, or what to do if they stop.
    """

    action: str
    what: str
    then: str


RULES = {
    "format": Rule("stop", "not in COCO format", "export the file again, as JSON in UTF-8"),
    "no categories": Rule("stop", "no categories declared", 'declare the classes under "categories"'),
    "no images": Rule("stop", "no images", 'list the images under "images"'),
    "no objects": Rule("stop", "no object to train on", "annotate some; crowds do not count"),
    "classes differ": Rule("stop", "train.json and val.json declare different classes", "declare the same in both"),
    "category": Rule("stop", "categories have no whole number as id or no name", "give them both"),
    "group": Rule("note", "categories are only the name of a group of all others, as Roboflow's first", "left out"),
    "category twice": Rule("stop", "categories have the id of another one", "give each its own"),
    "image": Rule("stop", "images have no whole number as id or no file_name", "give them both"),
    "image twice": Rule("stop", "images have the id of another one", "give each its own, also in the annotations"),
    "image size": Rule("stop", "images have no usable width and height", f"give both, with at most {MAX_PIXELS} pixels"),
    "unreadable": Rule("stop", "images cannot be read", LATER),
    "size differs": Rule("stop", "images have another size than their annotations say", LATER),
    "annotation": Rule("stop", "annotations have no whole number as id or image_id", "give them both"),
    "undeclared": Rule("stop", "annotations are of a category that is not declared", "declare it or remove them"),
    "no mask": Rule("stop", "annotations have no segmentation", "add it, or use a detector of boxes (RetinaNet)"),
    "label file": Rule("stop", "label files cannot be used", "correct or remove them"),
    "line": Rule("drop", "lines of label files are no objects", "left out"),
    "class": Rule("drop", "lines of label files are of a class that has no name in the YAML file", "left out"),
    "shape": Rule("drop", "shapes of labelme files are no objects", "left out"),
    "no such image": Rule("drop", "annotations are of an image that is not listed", "left out"),
    "mask": Rule("drop", "annotations have a segmentation that is no mask of the image's size", "left out"),
    "polygon": Rule("mend", "annotations have unusable polygons", "these are left out, and objects that have no others"),
    "box": Rule("mend", "boxes are not four finite numbers", ANEW),
    "empty box": Rule("mend", "boxes have no positive width and height", ANEW),
    "box outside": Rule("mend", "boxes lie outside of the image", ANEW),
    "box clipped": Rule("mend", f"boxes leave the image by more than {SLACK:g} pixel", "clipped to the image"),
    "ignored": Rule("mend", 'annotations have "ignore", or an iscrowd other than 0 and 1', "taken for crowds"),
    "crowd": Rule("note", "annotations are crowds", "not trained on; in evaluation, what is found in them is not wrong"),
    "area": Rule("note", "annotations have no area between 0 and the image's", "made anew from the mask or box"),
    "annotation twice": Rule("note", "annotations have the id of another one", "all are used"),
    "same name": Rule("note", "categories have the name of another one", "separate classes; AP by name shows only one"),
    "empty image": Rule("note", "images have no object to learn from", "not trained on, but evaluated"),
    "many objects": Rule(
        "note",
        f"images have more than {MAX_DETECTIONS} objects",
        f"a detector gives, and AP counts, at most dataloader.max_detections of them, {MAX_DETECTIONS} unless it is raised",
    ),
}
WHOLE_FILE = ("format", "no categories", "no images", "no objects", "classes differ")
Tell = Callable[[str, str], None]  # takes a kind of problem and what exactly is wrong
shown = reprlib.repr


class Problem(NamedTuple):
    """One problem, of a kind that RULES has; ids where they are known, and what exactly is wrong."""

    kind: str
    image_id: int | None = None
    annotation_id: int | None = None
    detail: str = ""


@dataclass
class CocoFile:
    """What a file of annotations holds once the rules are applied.

    Attributes:
        path: of the file.
        image_root: the folder of its images.
        categories: names by id, in the order of the ids.
        images: by id, in the order of the ids: file_name, height and width in pixels.
        objects: the usable annotations of each image, in COCO's format.
        annotations: how many annotations there are, usable or not.
        problems: all that were found, in the order of RULES.
        given: what the user has, if the file was made of it.
    """

    path: str
    image_root: str
    categories: dict[int, str] = field(default_factory=dict)
    images: dict[int, dict[str, Any]] = field(default_factory=dict)
    objects: dict[int, list[dict[str, Any]]] = field(default_factory=dict)
    annotations: int = 0
    problems: list[Problem] = field(default_factory=list)
    given: str = ""

    def summary(self) -> str:
        used = sum(len(objects) for objects in self.objects.values())
        return (
            f"{one_line(self.path, PATH_LIMIT)}: {len(self.images)} images, "
            f"{used} of {self.annotations} annotations used, "
            f"{len(self.categories)} classes"
        )

    def stop_if_fatal(self) -> None:
        """Raises a UserError if there is a problem that stops training and evaluation."""
        fatal = [(kind, problems) for kind, problems in grouped(self.problems).items() if RULES[kind].action == "stop"]
        if fatal:
            reasons = "; ".join(f"{phrase(kind, problems)}: {RULES[kind].then}" for kind, problems in fatal)
            command = f"python tools/check_data.py --annotations-only {self.given or self.path}"
            raise UserError(f"{self.path}: {reasons}. All problems: {command}")

    def records(self) -> list[dict[str, Any]]:
        """The images as Detectron2's records, with annotation ids; says in the log what the rules did, once.

        Raises:
            UserError: there is a problem that stops.
        """
        self.stop_if_fatal()
        log_first_n(logging.INFO, self.summary(), name=__name__, key="message")
        for kind, problems in grouped(self.problems).items():
            message = one_line(f"{self.path}: {phrase(kind, problems)}: {RULES[kind].then}", LINE_LIMIT)
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
                    | {"bbox_mode": BoxMode.XYWH_ABS, "category_id": contiguous[item["category_id"]]}
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
            "annotations": [item | {"id": number} for number, item in enumerate(everything, start=1)],
        }
        with contextlib.redirect_stdout(io.StringIO()):
            api.createIndex()
        return api


def grouped(problems: list[Problem]) -> dict[str, list[Problem]]:
    """Problems by kind, in the order of RULES."""
    groups: dict[str, list[Problem]] = {kind: [] for kind in RULES}
    for problem in problems:
        groups[problem.kind].append(problem)
    return {kind: group for kind, group in groups.items() if group}


def phrase(kind: str, problems: list[Problem]) -> str:
    """How many of a kind, and the first."""
    first = problems[0]
    id = first.image_id if first.annotation_id is None else first.annotation_id
    if kind in WHOLE_FILE:
        return RULES[kind].what + (f" ({first.detail})" if first.detail else "")
    named = first.detail if id is None else f"id {id}" + (f" ({first.detail})" if first.detail else "")
    return f"{len(problems)} {RULES[kind].what}, first {named}"


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
    try:
        content = _parse(Path(json_file))
    except (OSError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split()) or "nested too deeply"
        data.problems.append(Problem("format", detail=f"{type(error).__name__}: {reason}"))
        return data
    groups = [entry for entry in content["categories"] if _is_group(entry, content)]
    categories = [entry for entry in content["categories"] if entry not in groups]
    found = [*_read_categories(data, categories), *_read_images(data, content["images"])]
    found += [Problem("group", detail=shown(entry["name"])) for entry in groups]
    found += _read_annotations(data, content["annotations"], masks)
    empty = [Problem("empty image", id) for id in data.images if all(item["iscrowd"] for item in data.objects[id])]
    found += empty
    counts = {id: sum(not item["iscrowd"] for item in objects) for id, objects in data.objects.items()}
    many = sorted((id for id, count in counts.items() if count > MAX_DETECTIONS), key=lambda id: -counts[id])
    found += [Problem("many objects", id, detail=f"{counts[id]} objects") for id in many]
    if train and len(empty) == len(data.images) > 0:
        found.append(Problem("no objects"))
    if open_images:
        found += _open_images(data)
    data.problems = [problem for problems in grouped(found).values() for problem in problems]
    return data


def _parse(path: Path) -> dict[str, list[dict]]:
    """The three lists of a file. Raises OSError, ValueError or RecursionError."""
    content = json.loads(path.read_bytes().decode("utf-8"))
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
            yield Problem("category", detail=f"entry {number}")
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
            yield Problem("image", detail=f"entry {number}")
            continue
        if id in data.images:
            yield Problem("image twice", id, detail=f"entry {number}")
            continue
        if not isinstance(name, str) or not name:
            yield Problem("image", id, detail="no file_name")
            name = ""
        if not usable_size(height, width):
            yield Problem("image size", id, detail=" x ".join(shown(entry.get(side)) for side in ("width", "height")))
            width = height = 0
        data.images[id] = {"file_name": name, "height": height, "width": width}
        data.objects[id] = []
    data.images = dict(sorted(data.images.items()))


def usable_size(height: Any, width: Any) -> bool:
    """Whether these are whole numbers of pixels of an image that can be read."""
    return all(type(side) is int and side > 0 for side in (height, width)) and height * width <= MAX_PIXELS


def _read_annotations(data: CocoFile, entries: list[dict], masks: bool) -> Iterator[Problem]:
    data.annotations = len(entries)
    ids: set[int] = set()
    for number, entry in enumerate(entries):
        id, image_id, category_id = (_whole(entry.get(key)) for key in ("id", "image_id", "category_id"))
        found: list[tuple[str, str]] = []
        if id is None or image_id is None:
            found.append(("annotation", f"entry {number}"))
        if category_id not in data.categories:
            found.append(("undeclared", f"category_id {shown(entry.get('category_id'))}"))
        if masks and not entry.get("segmentation"):
            found.append(("no mask", ""))
        if image_id is not None and image_id not in data.images:
            found.append(("no such image", f"image_id {image_id}"))
        if not found and image_id is not None and (image := data.images[image_id])["height"]:
            item = _object(entry, image["height"], image["width"], masks, lambda *why, found=found: found.append(why))
            if item:
                data.objects[image_id].append({"id": id, "image_id": image_id, "category_id": category_id} | item)
        if id in ids:
            found.append(("annotation twice", ""))
        ids |= set() if id is None else {id}
        yield from (Problem(kind, image_id, id, detail) for kind, detail in found)


def _object(entry: dict, height: int, width: int, masks: bool, tell: Tell) -> dict[str, Any] | None:
    """Box, mask, area and iscrowd of an annotation by the rules, or None if it is left out; tells what it finds."""
    item: dict[str, Any] = {}
    mask = _mask(entry["segmentation"], height, width, tell) if masks else None
    if mask is not None:
        item["segmentation"] = mask
    elif masks:
        return None
    box = _box(entry.get("bbox"), height, width, tell) or (_extent(mask, height, width) if mask is not None else None)
    if box is None:
        return None
    area: Any = entry.get("area")
    crowd = entry.get("iscrowd") or 0
    if _numbers([area]) is None or not 0 < area <= height * width:
        tell("area", shown(area))
        area = _area(mask, height, width) if mask is not None else box[2] * box[3]
    if crowd not in (0, 1) or entry.get("ignore"):
        tell("ignored", f"iscrowd {shown(crowd)}, ignore {shown(entry.get('ignore'))}")
        crowd = 1
    if crowd:
        tell("crowd", "")
    return item | {"bbox": box, "area": float(area), "iscrowd": int(crowd)}


def _box(value: Any, height: int, width: int, tell: Tell) -> list[float] | None:
    """x, y, width and height in pixels inside of the image, or None."""
    numbers = _numbers(value)
    if numbers is None or len(numbers) != 4 or not np.isfinite(numbers).all():
        return tell("box", shown(value))
    x, y, w, h = numbers.tolist()
    if w <= 0 or h <= 0:
        return tell("empty box", f"{w:g} x {h:g}")
    x1, y1, x2, y2 = max(x, 0.0), max(y, 0.0), min(x + w, width), min(y + h, height)
    if x2 <= x1 or y2 <= y1:
        return tell("box outside", f"{shown(value)} in {width} x {height}")
    if max(x1 - x, y1 - y, x + w - x2, y + h - y2) > SLACK:
        tell("box clipped", f"{shown(value)} in {width} x {height}")
    inside = (x1, y1) == (x, y) and x + w <= width and y + h <= height
    return [x, y, w, h] if inside else [x1, y1, x2 - x1, y2 - y1]


def _mask(value: Any, height: int, width: int, tell: Tell) -> list[list[float]] | dict | None:
    """Polygons or compressed RLE of an image's size, or None."""
    if isinstance(value, dict):
        fault = run_length_fault(value, height, width)
        if fault:
            return tell("mask", fault)
        rle = compressed(value, height, width)
        return rle if mask_api.area(rle) else tell("mask", "no pixel")
    if not isinstance(value, list):
        return tell("mask", "neither polygons nor RLE")
    faults = polygon_faults(value, height, width)
    if any(faults):
        tell("polygon", ", ".join(sorted({*faults} - {""})))
    return [polygon for polygon, fault in zip(value, faults) if not fault] or None


def polygon_faults(polygons: list[Any], height: int, width: int) -> list[str]:
    """What is wrong with each polygon of an object in an image of that size, or ""; what is too long for the others, too."""
    limit = min(OUTLINE_SIDES * (height + width), OUTLINE_PIXELS)
    faults, total = [], 0.0
    for polygon in polygons:
        fault = _polygon_fault(polygon, height, width)
        if not fault:
            length = outline_length(np.asarray(polygon, np.float64))
            if total + length > limit:
                fault = f"an outline of more than {limit} pixels"
            else:
                total += length
        faults.append(fault)
    return faults


def outline_length(polygon: np.ndarray) -> float:
    """How many steps pycocotools takes around a polygon (x, y, x, y, ...), in pixels; each point counts for one, too."""
    points = polygon.reshape(-1, 2)
    return float(np.abs(points - np.roll(points, 1, axis=0)).max(axis=1).sum()) + len(points)


def _polygon_fault(polygon: Any, height: int, width: int) -> str:
    numbers = _numbers(polygon)
    if numbers is None:
        return "not a list of numbers"
    if len(numbers) % 2:
        return "an odd number of coordinates"
    if len(numbers) < 6:
        return "fewer than three points"
    if not np.isfinite(numbers).all():
        return "NaN or infinity"
    for values, side in ((numbers[0::2], width), (numbers[1::2], height)):
        low, high = values.min(), values.max()
        if low == high or high <= 0 or low >= side:
            return "no area inside of the image"
        if low < -side or high > 2 * side:
            return "further outside of the image than the image is large"
    return ""


def mask_fault(mask: Any, height: int, width: int) -> str:
    """Why a mask to which the rules were not applied may not go to pycocotools, or "".

    Args:
        mask: polygons or RLE, of data that is registered with Detectron2 by other means.
        height, width: of its image.
    """
    if not mask:
        return "it has no mask"
    if isinstance(mask, dict):
        fault = run_length_fault(mask, height, width)
        if not fault and not all(type(side) is int for side in mask["size"]):  # 40.0 == 40
            fault = f"size {shown(mask['size'])}, which are no integers"
        return f"its mask has {fault}" if fault else ""
    if not isinstance(mask, list):
        return "its mask is neither polygons nor RLE"
    polygons = []
    for polygon in mask:
        numbers = _numbers(polygon.tolist() if isinstance(polygon, np.ndarray) else polygon)
        if numbers is None:
            return "a polygon is no list of numbers"
        polygons.append(numbers[: len(numbers) // 2 * 2])
    return outlines_fault(polygons, min(OUTLINE_SIDES * (height + width), OUTLINE_PIXELS))


def outlines_fault(polygons: Sequence[np.ndarray], limit: int = OUTLINE_PIXELS) -> str:
    """What would make pycocotools ask for more memory than for ``limit`` pixels of outline, or ""."""
    if not all((np.abs(polygon) <= OUTLINE_PIXELS).all() for polygon in polygons):  # NaN, too, is not
        return "a polygon is not finite or far outside of the image"
    if sum(map(outline_length, polygons)) > limit:
        return f"its polygons have an outline of more than {limit} pixels"
    return ""


def run_length_fault(mask: dict[str, Any], height: int, width: int) -> str:
    """What is wrong with an RLE for an image of that size, or "". pycocotools reads beyond the end of a short one."""
    size, counts = mask.get("size"), mask.get("counts")
    if size != [height, width]:
        return f"size {shown(size)}, the image has {[height, width]}"
    if isinstance(counts, (str, bytes)):
        lengths = run_lengths(counts) if len(counts) <= 7 * (height * width + 1) else None  # 7 characters for a pixel
    else:
        lengths = _numbers(counts)
    if lengths is None or not ((lengths >= 0) & (lengths <= height * width)).all():
        fills = False
    else:
        fills = lengths.sum() == height * width and not (lengths % 1).any()
    return "" if fills else "run lengths that do not fill the image"


def compressed(mask: dict[str, Any], height: int, width: int) -> dict[str, Any]:
    """An RLE without fault as pycocotools takes it: its size of integers, not 40.0, and its run lengths as a text."""
    counts = mask["counts"]
    if isinstance(counts, (str, bytes)):
        return {"size": [height, width], "counts": counts}
    return mask_api.frPyObjects({"size": [height, width], "counts": list(map(int, counts))}, height, width)


def run_lengths(text: str | bytes) -> np.ndarray | None:
    """The run lengths of a compressed RLE: 5 bits a character, the lowest first, as differences to the last but one."""
    text = text.encode(errors="surrogatepass") if isinstance(text, str) else text
    codes = np.frombuffer(text, np.uint8).astype(np.int64) - 48
    if len(codes) == 0 or codes.min() < 0 or codes.max() > 63 or codes[-1] & 32:
        return None
    ends = np.flatnonzero(codes & 32 == 0)
    starts = np.append(0, ends[:-1] + 1)
    digits = ends - starts + 1
    if digits.max() > 7:  # 32 bits
        return None
    place = np.arange(len(codes)) - np.repeat(starts, digits)
    lengths = np.add.reduceat((codes & 31) << 5 * place, starts)
    lengths -= np.where(codes[ends] & 16, 1 << 5 * digits, 0)
    lengths[1::2] = lengths[1::2].cumsum()
    lengths[2::2] = lengths[2::2].cumsum()
    return lengths


def _extent(mask: list[list[float]] | dict, height: int, width: int) -> list[float]:
    if isinstance(mask, dict):
        return mask_api.toBbox(mask).tolist()
    points = np.concatenate([np.reshape(polygon, (-1, 2)) for polygon in mask]).clip(0, [width, height])
    low, high = points.min(axis=0), points.max(axis=0)
    return [*low.tolist(), *(high - low).tolist()]


def _area(mask: list[list[float]] | dict, height: int, width: int) -> float:
    rle = mask if isinstance(mask, dict) else mask_api.merge(mask_api.frPyObjects(mask, height, width))
    return float(mask_api.area(rle))


def _numbers(value: Any) -> np.ndarray | None:
    """A list of numbers, and of nothing else, as (n,) float64."""
    if not isinstance(value, list):
        return None
    try:
        array = np.asarray(value)
    except ValueError:  # lists of different lengths in it
        return None
    return array.astype(np.float64) if array.ndim == 1 and array.dtype.kind in "iuf" else None


def _whole(value: Any) -> int | None:
    """A whole number from 0 on, exact also where JSON's numbers are floats; the evaluation takes no others as ids."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53 else None


def _open_images(data: CocoFile) -> Iterator[Problem]:
    def look(id: int) -> Problem | None:
        image = data.images[id]
        try:
            height, width = read_image(os.path.join(data.image_root, image["file_name"])).shape[:2]
        except UserError as error:
            return Problem("unreadable", id, detail=str(error))
        if (height, width) != (image["height"], image["width"]):
            sizes = f"{width} x {height}, not {image['width']} x {image['height']}"
            turned = "; is it turned by EXIF?" if (width, height) == (image["height"], image["width"]) else ""
            name = one_line(image["file_name"], PATH_LIMIT)
            return Problem("size differs", id, detail=f"{name} is {sizes}{turned}")
        return None

    known = [id for id, image in data.images.items() if image["file_name"] and image["height"]]
    with ThreadPoolExecutor() as pool:
        yield from filter(None, pool.map(look, known))
