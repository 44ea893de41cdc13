"""Annotation files in COCO format: read and check them, and fix or drop what cannot be used.

:data:`.RULES` lists all kinds of problems; ``gpvit check-data --rules`` prints them. A problem of
the file, of an image or of a class stops before training or evaluation starts. A problem of one
object changes or drops that object, in training and evaluation alike, and the log has the counts.
"""

import contextlib
import gc
import io
import json
import logging
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from detectron2.structures import BoxMode
from detectron2.utils.logger import log_first_n
from pycocotools import mask as mask_api
from pycocotools.coco import COCO

from ...utils.errors import UserError
from ...utils.text import PATH_LIMIT, one_line, short_repr
from ..image_io import MAX_PIXELS, read_image
from ..masks import as_numbers, compressed, outline_of, run_length_fault, with_too_long
from . import image_names
from .coco_rules import (
    MAX_DETECTIONS,
    SLACK,
    Problem,
    dropped_or_fixed,
    log_problems,
    ordered,
    raise_if_fatal,
)
from .copies import find_copies

LARGEST_ID = 2**53  # IDs from here on are not exact as floats, which the evaluation uses for them
# A box contradicts its mask if its IoU with the bounding box of the mask is below MIN_IOU, and a
# side differs by more than MAX_DIFFERENCE pixels: for small objects, rounding alone lowers the IoU.
# Loosely drawn boxes are kept; the lowest IoU in the annotations of COCO that were tested is 0.9.
MIN_IOU, MAX_DIFFERENCE = 0.5, 2.0
NORMALIZED = 0.01  # fraction of annotations with normalized coordinates from which they stop

Finding = tuple[str, str]  # kind of a problem of one object, and details


@dataclass
class CocoFile:
    """The usable contents of an annotation file, after the rules are applied.

    Attributes:
        path: of the file.
        image_root: the folder of its images.
        categories: names by ID, in the order of the IDs.
        images: by ID, in the order of the IDs: file_name, which is where the image was found in
            image_root, height and width in pixels.
        objects: the usable annotations of each image, in COCO format.
        num_annotations: in the file, usable or not.
        problems: all problems that were found, in the order of RULES.
        given: path of the user's dataset, if the file was converted from it.
        written: names in the file, by image ID, of images that were found under another name.
    """

    path: str
    image_root: str
    categories: dict[int, str] = field(default_factory=dict)
    images: dict[int, dict[str, Any]] = field(default_factory=dict)
    objects: dict[int, list[dict[str, Any]]] = field(default_factory=dict)
    num_annotations: int = 0
    problems: list[Problem] = field(default_factory=list)
    given: str = ""
    written: dict[int, str] = field(default_factory=dict)

    def real_paths(self, folders: image_names.FolderCache | None = None) -> dict[int, str]:
        """Return the paths of the images by ID, without links; their names if no image_root."""
        folders = folders or image_names.FolderCache()
        paths = {}
        for image_id, image in self.images.items():
            name = image["file_name"]
            if name and self.image_root:
                paths[image_id] = folders.real(os.path.join(self.image_root, name))
            elif name:
                paths[image_id] = os.path.normpath(name)
        return paths

    def summary(self) -> str:
        used = sum(map(len, self.objects.values()))
        return (
            f"{one_line(self.path, PATH_LIMIT)}: {len(self.images)} images, "
            f"{used} of {self.num_annotations} annotations used, "
            f"{len(self.categories)} classes"
        )

    def raise_if_fatal(self) -> None:
        """Raise a UserError if there is a problem that stops training and evaluation."""
        options = f"--annotations-only --data {self.given or self.path}"
        raise_if_fatal(self.path, self.problems, options)

    def records(self) -> list[dict[str, Any]]:
        """Return the images as records of Detectron2, with annotation IDs; log the problems once.

        Raises:
            UserError: there is a problem that stops.
        """
        self.raise_if_fatal()
        log_first_n(logging.INFO, self.summary(), name=__name__, key="message")
        log_problems(self.path, self.problems)
        # Detectron2 numbers the classes from 0, in the order of their IDs.
        classes = {category_id: number for number, category_id in enumerate(self.categories)}
        records = []
        for image_id, image in self.images.items():
            record = {
                "file_name": os.path.join(self.image_root, image["file_name"]),
                "height": image["height"],
                "width": image["width"],
                "image_id": image_id,
                "annotations": [_as_record(item, classes) for item in self.objects[image_id]],
            }
            records.append(record)
        return records

    def coco(self) -> COCO:
        """Return the contents for COCO's evaluation.

        It needs area and iscrowd of all annotations. Annotations are numbered from 1, since it
        treats an ID of 0 as unmatched.
        """
        images = [{"id": image_id} | image for image_id, image in self.images.items()]
        categories = [
            {"id": category_id, "name": name} for category_id, name in self.categories.items()
        ]
        annotations: list[dict[str, Any]] = []
        for objects in self.objects.values():
            for item in objects:
                annotations.append(item | {"id": len(annotations) + 1})
        api = COCO()
        api.dataset = {"images": images, "categories": categories, "annotations": annotations}
        with contextlib.redirect_stdout(io.StringIO()):
            api.createIndex()
        return api


def _as_record(item: dict[str, Any], classes: Mapping[int, int]) -> dict[str, Any]:
    """Convert an annotation from COCO's format to Detectron2's."""
    keys = ("id", "iscrowd", "bbox", "segmentation")
    record = {key: item[key] for key in keys if key in item}
    record |= {"bbox_mode": BoxMode.XYWH_ABS, "category_id": classes[item["category_id"]]}
    return record


def read(
    json_file: str | os.PathLike,
    image_root: str | os.PathLike,
    *,
    masks: bool = True,
    train: bool = False,
    open_images: bool = False,
) -> CocoFile:
    """Read an annotation file, apply the rules, and list all problems instead of raising.

    Args:
        json_file: annotations in COCO format.
        image_root: folder of the images.
        masks: whether every annotation needs a mask. If not, masks are neither checked nor
            returned.
        train: whether there must be an object to train on.
        open_images: whether to read every image as well.
    """
    data = CocoFile(str(json_file), str(image_root))
    with _no_garbage_collection():
        not_found = _read(data, masks, train)
    if open_images:
        data.problems = ordered([*data.problems, *_open_images(data, not_found)])
    return data


@contextlib.contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Disable garbage collection: a third faster with millions of objects and no cycles."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _read(data: CocoFile, masks: bool, train: bool) -> dict[int, str]:
    """Read a file without its images. Return why images were not found, by ID."""
    try:
        content = _parse(Path(data.path))
    except (OSError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split()) or "nested too deeply"
        data.problems.append(Problem("format", detail=f"{type(error).__name__}: {reason}"))
        return {}
    groups = [entry for entry in content["categories"] if _is_group(entry, content)]
    categories = [entry for entry in content["categories"] if entry not in groups]
    found = [*_read_categories(data, categories), *_read_images(data, content["images"])]
    found += [Problem("group", detail=short_repr(entry["name"])) for entry in groups]
    renamed, not_found = _find_images(data)
    found += renamed
    entries = content["annotations"]
    of_objects = _judge_together(data, entries, _read_annotations(data, entries, masks))
    found += of_objects
    counts = _counts_without_crowds(data)
    empty = [Problem("empty image", image_id) for image_id in data.images if counts[image_id] == 0]
    found += empty
    crowded = [image_id for image_id, count in counts.items() if count > MAX_DETECTIONS]
    for image_id in sorted(crowded, key=counts.__getitem__, reverse=True):
        found.append(Problem("many objects", image_id, detail=f"{counts[image_id]} objects"))
    # With normalized coordinates, which stop as well, this would only be a consequence.
    normalized = any(problem.kind == "normalized" for problem in of_objects)
    if train and len(empty) == len(data.images) > 0 and not normalized:
        found.append(Problem("no objects", detail=dropped_or_fixed(of_objects)))
    data.problems = ordered(found)
    return not_found


def _counts_without_crowds(data: CocoFile) -> dict[int, int]:
    """Return the number of objects of each image that are not crowds, by image ID."""
    counts = {}
    for image_id, objects in data.objects.items():
        counts[image_id] = sum(not item["iscrowd"] for item in objects)
    return counts


def load_json(path: Path) -> Any:
    """Return the content of a JSON file in UTF-8, UTF-16 or UTF-32.

    Raises:
        OSError, ValueError, RecursionError: it cannot be read or parsed.
    """
    content = path.read_bytes()
    if content.startswith(b"\x1f\x8b"):  # the magic number of gzip
        raise ValueError("the file is compressed by gzip; unpack it")
    return json.loads(content)


def _parse(path: Path) -> dict[str, list[dict]]:
    """Return the three lists of a COCO file. Raises as :func:`load_json` does."""
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
        category_id, name = _as_id(entry.get("id")), entry.get("name")
        if category_id is None or not isinstance(name, str):
            yield Problem("category", detail=f"entry {number}, id {_invalid_id(entry.get('id'))}")
        elif category_id in data.categories:
            yield Problem("category twice", detail=f"entry {number}, id {category_id}")
        else:
            if name in data.categories.values():
                yield Problem("same name", detail=f"entry {number}, {short_repr(name)}")
            data.categories[category_id] = name
    data.categories = dict(sorted(data.categories.items()))


def _is_group(entry: dict, content: dict[str, list[dict]]) -> bool:
    """Whether a category is the group that Roboflow exports before the classes.

    It has ID 0 and no objects, and is the supercategory of all others. As a class, it would never
    be detected.
    """
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
        image_id, name = _as_id(entry.get("id")), entry.get("file_name")
        width, height = _as_id(entry.get("width")), _as_id(entry.get("height"))
        if image_id is None:
            yield Problem("image", detail=f"entry {number}, id {_invalid_id(entry.get('id'))}")
            continue
        if image_id in data.images:
            yield Problem("image twice", image_id, detail=f"entry {number}")
            continue
        if not isinstance(name, str) or not name:
            yield Problem("image", image_id, detail="no file_name")
            name = ""
        if not usable_size(height, width):
            size = f"{short_repr(entry.get('width'))} x {short_repr(entry.get('height'))}"
            yield Problem("image size", image_id, detail=size)
            width = height = 0
        data.images[image_id] = {"file_name": name, "height": height, "width": width}
        data.objects[image_id] = []
    data.images = dict(sorted(data.images.items()))


def usable_size(height: Any, width: Any) -> bool:
    """Whether these are integers, the size in pixels of an image that can be read."""
    if type(height) is not int or type(width) is not int:  # a bool is not a size
        return False
    return height > 0 and width > 0 and height * width <= MAX_PIXELS


def _find_images(data: CocoFile) -> tuple[list[Problem], dict[int, str]]:
    """Find the images that do not exist under their names, and images that are listed twice.

    Returns:
        The problems, and the reasons why images were not found, by ID.
    """
    folders = image_names.FolderCache()
    missing: dict[int, str] = {}
    taken: set[str] = set()  # paths of the others, relative to image_root
    for image_id, image in data.images.items():
        name = image["file_name"]
        if not name or not data.image_root:
            continue
        if not folders.has(os.path.join(data.image_root, name)):
            missing[image_id] = name
        elif os.path.isabs(name):
            taken.add(os.path.relpath(name, data.image_root))
        else:
            taken.add(os.path.normpath(name))
    problems, not_found = [], {}
    if missing:
        paths = image_names.files_below(data.image_root)
        matches = image_names.match(missing.values(), paths, taken)
        for image_id, name in missing.items():
            path, fault = matches[name]
            if path:
                data.written[image_id], data.images[image_id]["file_name"] = name, path
                detail = f"{one_line(name)} is {one_line(path)}"
                problems.append(Problem("image name", image_id, detail=detail))
            else:
                not_found[image_id] = fault
    first_ids: dict[str, int] = {}
    for image_id, path in data.real_paths(folders).items():
        first = first_ids.setdefault(path, image_id)
        if first != image_id:
            detail = f"{one_line(data.images[image_id]['file_name'])}, same as {first}"
            problems.append(Problem("file twice", image_id, detail=detail))
    return problems, not_found


def images_in_both(train: CocoFile, val: CocoFile, *, copies: bool = False) -> list[Problem]:
    """Return a problem for each training image that is also a validation image.

    Args:
        train, val: the files of the splits.
        copies: whether files with the same bytes count as the same image, unless they have a single
            color, such as black frames.
    """
    train_paths, val_paths = train.real_paths(), val.real_paths()
    # Training path -> validation path of the same image; without copies, they are equal.
    same = find_copies(train_paths.values(), val_paths.values()) if copies else {}
    same |= {path: path for path in val_paths.values()}
    problems = []
    for image_id, path in train_paths.items():
        if path in same:
            detail = one_line(train.images[image_id]["file_name"])
            if same[path] != path:
                detail += f", the same as {one_line(same[path], PATH_LIMIT)}"
            problems.append(Problem("both splits", image_id, detail=detail))
    return problems


def _read_annotations(data: CocoFile, entries: list[dict], masks: bool) -> list[Problem]:
    """Check the annotations, and add the usable ones to ``data.objects``. Return the problems."""
    data.num_annotations = len(entries)
    problems: list[Problem] = []
    seen_ids: set[int] = set()
    seen = SeenObjects()
    for number, entry in enumerate(entries):
        annotation_id, image_id = _as_id(entry.get("id")), _as_id(entry.get("image_id"))
        category_id = _as_id(entry.get("category_id"))
        findings: list[Finding] = []
        if annotation_id is None or image_id is None:
            invalid = [f"{key} {_invalid_id(entry.get(key))}" for key in ("id", "image_id")]
            findings.append(("annotation", f"entry {number}, {', '.join(invalid)}"))
        if category_id not in data.categories:
            findings.append(("undeclared", f"category_id {short_repr(entry.get('category_id'))}"))
        if masks and not entry.get("segmentation"):
            findings.append(("no mask", ""))
        if image_id is not None and image_id not in data.images:
            findings.append(("no such image", f"image_id {image_id}"))
        # An image without a usable size has height 0, and stops by itself.
        if not findings and image_id is not None and data.images[image_id]["height"]:
            image = data.images[image_id]
            result = _check_object(entry, image["height"], image["width"], masks, findings)
            if result is not None:
                values, key = result
                ids = {"id": annotation_id, "image_id": image_id, "category_id": category_id}
                item = ids | values
                first = seen.first_with((image_id, category_id, *key), item)
                if first is None:
                    data.objects[image_id].append(item)
                else:
                    findings.append(("object twice", f"same as {first['id']}"))
        if annotation_id in seen_ids:
            findings.append(("annotation twice", ""))
        if annotation_id is not None:
            seen_ids.add(annotation_id)
        for kind, detail in findings:
            problems.append(Problem(kind, image_id, annotation_id, detail))
    return problems


def _judge_together(data: CocoFile, entries: list[dict], found: list[Problem]) -> list[Problem]:
    """Return the problems of objects, with those that only show in all objects together.

    Coordinates between 0 and 1 are normalized if many objects have them. Boxes that leave their
    images are corners if all boxes could be.
    """
    fractional = sum(problem.kind == "normalized" for problem in found)
    within = fractional + sum(problem.kind == "first pixel" for problem in found)
    # A few objects may really be that small, and many may be single pixels in integer coordinates,
    # but not all objects of a file.
    many = fractional >= max(2, NORMALIZED * len(entries)) or within == len(entries) > 1
    for number, problem in enumerate(found):
        if problem.kind in ("normalized", "first pixel"):
            found[number] = problem._replace(kind="normalized" if many else "first pixel")
    clipped = [problem for problem in found if problem.kind == "box clipped"]
    if len(clipped) > 1 and all(_may_be_corners(entry, data) for entry in entries):
        found += [problem._replace(kind="corners") for problem in clipped]
    return found


def _may_be_corners(entry: dict, data: CocoFile) -> bool:
    """Whether the box of an annotation without a mask may be x, y, x, y."""
    numbers = _four_numbers(entry.get("bbox"))
    image = data.images.get(_as_id(entry.get("image_id")) or 0)
    if numbers is None or image is None:
        return True
    x1, y1, x2, y2 = numbers
    inside = x2 <= image["width"] + SLACK and y2 <= image["height"] + SLACK
    return inside and x1 < x2 and y1 < y2 and not entry.get("segmentation")


class SeenObjects:
    """The objects that were read so far, to find repeated ones."""

    def __init__(self) -> None:
        self._first: dict[tuple, dict] = {}
        self._by_mask: dict[tuple, dict[Any, dict]] = {}

    def first_with(self, values: tuple, item: dict) -> dict | None:
        """Return the first object with these values and the same mask; None if it is ``item``."""
        first = self._first.setdefault(values, item)
        if first is item:
            return None
        # Comparing masks takes longer, so they are only compared if all values are equal.
        by_mask = self._by_mask.setdefault(values, {_hashable(first.get("segmentation")): first})
        other = by_mask.setdefault(_hashable(item.get("segmentation")), item)
        return None if other is item else other


def _hashable(mask: list[list[float]] | dict | None) -> Any:
    if isinstance(mask, dict):
        counts = mask["counts"]
        return counts.encode() if isinstance(counts, str) else counts
    return mask and tuple(map(tuple, mask))


def _check_object(
    entry: dict, height: int, width: int, masks: bool, findings: list[Finding]
) -> tuple[dict[str, Any], tuple] | None:
    """Apply the rules to an annotation.

    Args:
        entry: the annotation as in the file.
        height, width: of its image.
        masks: whether it needs a mask.
        findings: its problems are appended to this list.

    Returns:
        Its bbox, segmentation, area and iscrowd, and the values that a repeated annotation of the
        same object has in common with it, except for the mask. None if it is dropped.
    """
    segmentation = entry.get("segmentation")
    numbers = _four_numbers(entry.get("bbox"))
    box, box_finding = _check_box(entry.get("bbox"), numbers, height, width)
    mask, extent = None, None
    if masks:
        mask, extent = _check_mask(segmentation, height, width, findings)
    elif segmentation and box and not _surely_agrees(box, numbers, segmentation, height, width):
        # Only for the comparison with the box: problems of an unused mask are not reported.
        mask, extent = _check_mask(segmentation, height, width, [])
    misplaced = _is_mask_misplaced(segmentation, extent, box, numbers, height, width)
    if misplaced and not masks:
        mask, extent = None, None
    _check_first_pixel(entry, numbers, extent, height, width, masks, findings)
    if misplaced and mask:
        findings.append(("mask", "within the first pixel, but the box is elsewhere"))
    if masks and (misplaced or mask is None):
        return None
    box = _choose_box(entry, numbers, box, box_finding, extent if mask else None, masks, findings)
    if box is None:
        return None
    item: dict[str, Any] = {"segmentation": mask} if masks else {}
    item["bbox"] = box
    item |= _area_and_crowd(entry, box, height, width, mask if masks else None, findings)
    polygons = len(segmentation) if isinstance(segmentation, list) else 0  # also the unusable ones
    return item, (numbers, item["area"], item["iscrowd"], polygons)


def _is_mask_misplaced(
    segmentation: Any,
    extent: Sequence[float] | None,
    box: Sequence[float] | None,
    numbers: Sequence[float] | None,
    height: int,
    width: int,
) -> bool:
    """Whether polygons are within the first pixel, but their box is elsewhere, in pixels."""
    return (
        isinstance(segmentation, list)
        and _in_first_pixel(extent, height, width)
        and box is not None
        and not _in_first_pixel(numbers, height, width)
        and _contradicts(box, numbers, extent)
    )


def _check_first_pixel(
    entry: dict,
    numbers: Sequence[float] | None,
    extent: Sequence[float] | None,
    height: int,
    width: int,
    masks: bool,
    findings: list[Finding],
) -> None:
    """Report an annotation within the first pixel of its image; it may be normalized.

    :func:`_judge_together` decides on that.
    """
    box_within = _in_first_pixel(numbers, height, width)
    is_polygons = isinstance(entry.get("segmentation"), list)
    mask_within = is_polygons and _in_first_pixel(extent, height, width)
    # A box alone in the first pixel is recomputed from its mask if there is one.
    if mask_within or (box_within and (extent is None or not masks)):
        key = "bbox" if box_within else "segmentation"
        coordinates = [*(numbers or ()), *(extent or ())]
        kind = "first pixel" if all(map(_is_integral, coordinates)) else "normalized"
        findings.append((kind, f"{key} {short_repr(entry[key])} in {width} x {height}"))


def _choose_box(
    entry: dict,
    numbers: Sequence[float] | None,
    box: list[float] | None,
    box_finding: Finding | None,
    extent: Sequence[float] | None,
    masks: bool,
    findings: list[Finding],
) -> list[float] | None:
    """Return the box of an annotation, or that of its mask if the two disagree.

    Args:
        entry: the annotation as in the file.
        numbers: its box, as four finite numbers or None.
        box, box_finding: as returned by :func:`_check_box`.
        extent: x1, y1, x2, y2 of its mask; None without a usable mask.
        masks: whether it needs a mask. If not, its own box is kept.
        findings: the problems of the box are appended to this list.
    """
    mask_box = _box_around(extent) if extent else None
    differs = box and mask_box and _contradicts(box, numbers, extent)
    if differs:
        kind = "box differs" if masks else "box alone differs"
        detail = f"{short_repr(entry['bbox'])}, but {short_repr(mask_box)} by the mask"
        findings.append((kind, detail))
    if box_finding and not (differs and masks):
        findings.append(box_finding)
    return mask_box if masks and (differs or box is None) else box


def _area_and_crowd(
    entry: dict,
    box: list[float],
    height: int,
    width: int,
    mask: list[list[float]] | dict | None,
    findings: list[Finding],
) -> dict[str, Any]:
    """Return the area and iscrowd of an annotation, by the rules."""
    area: Any = entry.get("area")
    crowd = entry.get("iscrowd") or 0
    if not _area_fits(area, *box[2:]):
        findings.append(("area", short_repr(area)))
        area = box[2] * box[3] if mask is None else _mask_area(mask, height, width)
    if crowd not in (0, 1) or entry.get("ignore"):
        detail = f"iscrowd {short_repr(crowd)}, ignore {short_repr(entry.get('ignore'))}"
        findings.append(("ignored", detail))
        crowd = 1
    if crowd:
        findings.append(("crowd", ""))
    return {"area": float(area), "iscrowd": int(crowd)}


def _four_numbers(value: Any) -> tuple[float, ...] | None:
    """Return four finite numbers, or None."""
    if not isinstance(value, list) or len(value) != 4:
        return None
    if not all(isinstance(number, int | float) for number in value):
        return None
    try:
        numbers = tuple(map(float, value))
    except OverflowError:  # JSON has integers of any size
        return None
    return numbers if all(map(math.isfinite, numbers)) else None


def _is_integral(number: float) -> bool:
    return number == int(number)


def _in_first_pixel(values: Sequence[float] | None, height: int, width: int) -> bool:
    """Whether coordinates are about 0 to 1, in an image of more than one pixel each way."""
    if values is None or min(height, width) <= 1:
        return False
    return min(values) >= -0.1 and max(values) <= 1.1


def _contradicts(
    box: Sequence[float], numbers: Sequence[float] | None, extent: Sequence[float] | None
) -> bool:
    """Whether a box is not that of a mask, see :data:`MIN_IOU`.

    Args:
        box: x, y, width, height, clipped to the image.
        numbers: the box as in the file.
        extent: x1, y1, x2, y2 of the mask.
    """
    assert numbers is not None and extent is not None
    x, y, width, height = box
    if _all_close((x, y, x + width, y + height), extent):
        return False
    x1, y1, x2, y2 = extent
    common_width = max(0.0, min(x2, x + width) - max(x1, x))
    common_height = max(0.0, min(y2, y + height) - max(y1, y))
    common = common_width * common_height
    if common < MIN_IOU * (width * height + (x2 - x1) * (y2 - y1) - common):
        return True
    # Near the upper left corner of the image, x, y, x, y is nearly the same as x, y, width, height,
    # and the IoU is high. But then the numbers are, to the pixel, the corners of the mask.
    return _all_close(numbers, extent)


def _all_close(sides: Sequence[float], others: Sequence[float]) -> bool:
    return all(abs(side - other) <= MAX_DIFFERENCE for side, other in zip(sides, others))


def _box_around(extent: Sequence[float]) -> list[float]:
    x1, y1, x2, y2 = extent
    return [x1, y1, x2 - x1, y2 - y1]


def _surely_agrees(
    box: Sequence[float],
    numbers: Sequence[float] | None,
    segmentation: Any,
    height: int,
    width: int,
) -> bool:
    """Whether a box does not contradict unchecked polygons; False if they are not polygons.

    This is faster than :func:`_check_mask`, and enough for nearly all objects.
    """
    try:
        xs: list[float] = []
        ys: list[float] = []
        for polygon in segmentation:  # x, y, x, y, ...
            xs += polygon[0::2]
            ys += polygon[1::2]
        extent = (max(min(xs), 0), max(min(ys), 0), min(max(xs), width), min(max(ys), height))
        return not _contradicts(box, numbers, extent)
    except (TypeError, ValueError, KeyError, OverflowError):
        return False


def _check_box(
    value: Any, numbers: Sequence[float] | None, height: int, width: int
) -> tuple[list[float] | None, Finding | None]:
    """Return a box clipped to the image, x, y, width, height, or None; and its problem.

    Args:
        value: the box as in the file.
        numbers: the same as four finite numbers, or None.
        height, width: of the image.
    """
    if numbers is None:
        return None, ("box", short_repr(value))
    x, y, w, h = numbers
    if w <= 0 or h <= 0:
        return None, ("empty box", f"{w:g} x {h:g}")
    x1, y1, x2, y2 = max(x, 0.0), max(y, 0.0), min(x + w, width), min(y + h, height)
    in_image = f"{short_repr(value)} in {width} x {height}"
    if x2 <= x1 or y2 <= y1:
        return None, ("box outside", in_image)
    outside = max(x1 - x, y1 - y, x + w - x2, y + h - y2)
    finding = ("box clipped", in_image) if outside > SLACK else None
    inside = (x1, y1) == (x, y) and x + w <= width and y + h <= height
    # x2 - x1 may differ from w by rounding, so a box inside of the image is returned unchanged.
    return [x, y, w, h] if inside else [x1, y1, x2 - x1, y2 - y1], finding


def _area_fits(area: Any, width: float, height: float) -> bool:
    """Whether an area may be that of an object in a box of this size, border pixels included."""
    if not isinstance(area, int | float) or isinstance(area, bool):
        return False
    if not 0 < area <= (width + MAX_DIFFERENCE) * (height + MAX_DIFFERENCE):
        return False
    # An area up to 1 in a large box is a fraction of the image's area.
    return area > 1 or width * height <= 16


def _check_mask(
    value: Any, height: int, width: int, findings: list[Finding]
) -> tuple[list[list[float]] | dict | None, list[float] | None]:
    """Return a usable mask and its extent x1, y1, x2, y2.

    The mask is a list of polygons, a compressed RLE of the image's size, or None.
    """
    if isinstance(value, dict):
        fault = run_length_fault(value, height, width)
        rle = None if fault else compressed(value, height, width)
        if rle is None or not mask_api.area(rle):
            findings.append(("mask", fault or "no pixel"))
            return None, None
        x, y, w, h = mask_api.toBbox(rle).tolist()
        return rle, [x, y, x + w, y + h]
    if not isinstance(value, list):
        findings.append(("mask", "neither polygons nor RLE"))
        return None, None
    if as_numbers(value) is not None and value:
        findings.append(("polygon", "a flat list of numbers, not a list of polygons"))
        return None, None
    outlines = [outline_of(polygon, height, width) for polygon in value]
    faults = with_too_long(outlines, height, width)
    if any(faults):
        findings.append(("polygon", ", ".join(sorted({*faults} - {""}))))
    kept = [number for number, fault in enumerate(faults) if not fault]
    if not kept:
        return None, None
    left, top, right, bottom = zip(*(outlines[number].extent for number in kept))
    extent = [
        max(min(left), 0.0),
        max(min(top), 0.0),
        min(max(right), width),
        min(max(bottom), height),
    ]
    # Even a large outline has no pixel if it lies between the centers of pixels, or runs back over
    # itself. Only drawing it shows this.
    points = [outlines[number].points for number in kept]
    if not any(mask_api.area(mask_api.frPyObjects(points, height, width))):
        findings.append(("mask", "no pixel"))
        return None, extent
    return [value[number] for number in kept], extent


def _mask_area(mask: list[list[float]] | dict, height: int, width: int) -> float:
    if isinstance(mask, dict):
        return float(mask_api.area(mask))
    polygons = mask_api.frPyObjects(mask, height, width)
    return float(mask_api.area(mask_api.merge(polygons)))


def _as_id(value: Any) -> int | None:
    """Return a non-negative integer below :data:`LARGEST_ID`, or None.

    Floats with integral values are accepted, as some programs write all numbers as floats. COCO's
    evaluation takes no other IDs.
    """
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool):
        return None
    return value if 0 <= value < LARGEST_ID else None


def _invalid_id(value: Any) -> str:
    """Return an invalid ID for a message."""
    too_large = isinstance(value, int) and value >= LARGEST_ID
    return f"{short_repr(value)}, which is not below 2**53" if too_large else short_repr(value)


def _open_images(data: CocoFile, not_found: Mapping[int, str]) -> Iterator[Problem]:
    """Read the images, and yield a problem for each that cannot be read or has another size."""

    def check(image_id: int) -> Problem | None:
        image = data.images[image_id]
        try:
            height, width = read_image(os.path.join(data.image_root, image["file_name"])).shape[:2]
        except UserError as error:
            reason = f"; it {not_found[image_id]}" if image_id in not_found else ""
            return Problem("unreadable", image_id, detail=f"{error}{reason}")
        expected = (image["height"], image["width"])
        if (height, width) == expected:
            return None
        detail = (
            f"{one_line(image['file_name'], PATH_LIMIT)} is {width} x {height}, "
            f"not {image['width']} x {image['height']}"
        )
        if (width, height) == expected:
            detail += "; is it rotated by EXIF?"
        return Problem("size differs", image_id, detail=detail)

    known = []
    for image_id, image in data.images.items():
        if image["file_name"] and image["height"]:
            known.append(image_id)
    with ThreadPoolExecutor() as pool:
        yield from filter(None, pool.map(check, known))
