"""labelme's files, one for each image, and those that other programs write in its format.

Polygons, rectangles and masks are objects; rotated rectangles (X-AnyLabeling, newer labelme) are polygons. Circles, lines
and points have no outline and are left out.
"""

import base64
import io
import itertools
import json
import os
import unicodedata
import urllib.parse
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from pycocotools import mask as mask_api
from supervision.dataset.formats.labelme import labelme_shapes_to_detections

from ...utils.errors import UserError, preview
from ...utils.text import PATH_LIMIT, one_line, shown
from ..masks import polygon_faults
from . import image_names
from .coco import usable_size
from .file_tree import Tree
from .to_coco import (
    REASON,
    ConvertedImage,
    DataSet,
    Detections,
    Fault,
    Object,
    by_folder,
    readable,
    size_of,
)

# Of labelme and X-AnyLabeling. A rotated rectangle has its four corners, in order.
CORNERS, SHAPES = (
    ("rotation", "oriented_rectangle", "quadrilateral"),
    ("polygon", "rectangle", "mask"),
)


class Shape(NamedTuple):
    """A shape of a labelme file, by its number from 1."""

    number: int
    label: str
    kind: str
    points: list[list[float]]
    group: str | float | None
    mask: Any


@dataclass
class LabelFile:
    """A labelme file: its path in the dataset, height and width in pixels of its image, and its shapes."""

    path: str
    size: tuple[int, int]
    shapes: list[Shape]


def from_labelme(json_files: Sequence[Path], tree: Tree) -> DataSet:
    """Reads labelme's files, one for each image. Images without one are left out: nobody has looked at them.

    Args:
        json_files: labelme's.
        tree: the files of the dataset.

    Raises:
        UserError: none of them can be used.
    """
    files: dict[str, LabelFile] = {}
    faults: list[Fault] = []
    kinds: Counter[str] = Counter()
    moved: list[str] = []
    for file in json_files:
        faults += _read_labelme(file, tree, files, kinds, moved)
    if not files:
        raise UserError(
            f"{tree.root}: no labelme file can be used: {preview([fault.detail for fault in faults])}"
        )
    used = {*files} | {fault.image for fault in faults if fault.image is not None}
    classes = sorted({shape.label for file in files.values() for shape in file.shapes})
    pictures = []
    for name, labels in sorted(files.items()):
        objects, reasons = _labelme_objects(labels, classes)
        pictures.append(ConvertedImage(name, *labels.size, objects, f"{labels.path}, shape"))
        faults += [
            Fault("shape", _of_shape(labels.path, number, reason), name)
            for number, reason in reasons
        ]
    notes = []
    if kinds:
        notes.append(
            f"left out: {kinds.total()} shapes that are no outlines ({', '.join(sorted(kinds))})"
        )
    if moved:
        count = f"{len(moved)} images are not where their labelme files say"
        notes.append(f"{count}; found by their names: {preview(moved)}")
    if others := [name for name in (*tree.pictures, *tree.unread) if name not in used]:
        notes.append(f"left out: {len(others)} images without a labelme file: {preview(others)}")
    return DataSet(classes, pictures, by_folder(sorted(used)), notes, faults)


def _of_shape(path: str, number: int, reason: str) -> str:
    return f"{one_line(path, PATH_LIMIT)}, shape {number}: {reason}"


def _read_labelme(
    file: Path, tree: Tree, files: dict[str, LabelFile], kinds: Counter[str], moved: list[str]
) -> list[Fault]:
    """Reads a labelme file into ``files``, by the path of its image.

    Counts the shapes that have no outline in ``kinds``, and adds to ``moved`` what is said to be
    elsewhere than it is.
    """
    path = str(tree.relative(file))
    shown_path = one_line(path, PATH_LIMIT)
    try:
        content = json.loads(file.read_bytes())
        shapes, said = list(content["shapes"]), str(content.get("imagePath") or "")
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        reason = f"{type(error).__name__}: {one_line(error, REASON)}"
        return [
            Fault(
                "label file",
                f"{shown_path}: cannot be read as labelme's ({reason})",
                _picture_of(file, "", tree),
            )
        ]
    name = _picture_of(file, said, tree)
    if name is None:
        return [Fault("label file", f"{shown_path}: {_not_found(file, said, tree)}", None)]
    if name in files:
        reason = f"is of the same image as {one_line(files[name].path, PATH_LIMIT)}, {one_line(name, PATH_LIMIT)}"
        return [Fault("label file", f"{shown_path}: {reason}", name)]
    height, width = (_side(content.get(side)) for side in ("imageHeight", "imageWidth"))
    try:
        size = (height, width) if usable_size(height, width) else size_of(tree.root / name)
    except UserError as error:
        return [Fault("unreadable", str(error), name)]
    if said and name != _as_said(file, said, tree):
        moved.append(f"{path}: {one_line(said)} is {name}")
    faults = []
    files[name] = LabelFile(path, size, [])
    for number, entry in enumerate(shapes, start=1):
        try:
            shape = _shape(number, entry)
        except (ValueError, OverflowError) as error:
            faults.append(Fault("shape", _of_shape(path, number, one_line(error, REASON)), name))
            continue
        if shape.kind in SHAPES:
            files[name].shapes.append(shape)
        else:
            kinds[one_line(shape.kind)] += 1
    return faults


def _side(value: Any) -> int:
    """A side of an image in pixels; 0 if that is not what it is."""
    known = (
        isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < float("inf")
    )
    return int(value) if known else 0


def _shape(number: int, entry: Any) -> Shape:
    """A shape of a labelme file. Raises a ValueError or OverflowError that says what is wrong with it."""
    if not isinstance(entry, dict):
        raise ValueError(f"{shown(entry)} is no JSON object")
    label, group = entry.get("label"), entry.get("group_id")
    group = None if group == "" else group
    kind = str(entry.get("shape_type") or "polygon").lower()  # old files do not say it
    if label is None or label == "":
        raise ValueError("it has no label")
    if not isinstance(label, str | int | float):
        raise ValueError(f"label {shown(label)} is no text")
    if not isinstance(group, str | int | float | None):
        raise ValueError(f"group_id {shown(group)} is no number")
    try:
        points = [[float(x), float(y)] for x, y in entry["points"]]
    except (KeyError, ValueError, TypeError):
        raise ValueError(f"points {shown(entry.get('points'))} are no pairs of numbers") from None
    if not np.isfinite(points).all():
        raise ValueError("NaN or infinity in its points")
    return Shape(
        number, str(label), "polygon" if kind in CORNERS else kind, points, group, entry.get("mask")
    )


def _as_said(file: Path, said: str, tree: Tree) -> str | None:
    """The file that is where a labelme file says that its image is."""
    folder = str(tree.relative(file).parent)
    folders = [folder] if _is_bare(said) else [folder, ""]
    return tree.find(said, folders, []) if said else None


def _is_bare(said: str) -> bool:
    """Whether an image is said to be in the labelme file's own folder."""
    return len(PureWindowsPath(said).parts) < 2


def _picture_of(file: Path, said: str, tree: Tree) -> str | None:
    """The path of a labelme file's image.

    It is the one that the file says, as :meth:`.Tree.find` understands it; or the only one of that name, or with most of the
    folders that are said; or the only one of the file's own name, in its folder or elsewhere. If
    the folder that is said is here and has other images, nothing is looked for elsewhere: the image
    was deleted.
    """
    found = _as_said(file, said, tree)
    if found in tree.pictures:
        return found
    folder = os.path.normpath(tree.relative(file).parent).removeprefix(".")
    parts = PureWindowsPath(said).parts  # it takes / as well
    least = image_names.known_folders(parts[:-1], tree.picture_folder_ends)
    here_only = _is_bare(said) and folder in tree.picture_folders

    def allowed(path: str) -> bool:
        return os.path.dirname(path) == folder if here_only else _common_end(path, parts) >= least

    found = tree.find(said, [folder, ""], [folder, ""]) if said else None
    if found in tree.pictures and allowed(found):
        return found
    named = [path for path in _same_name(parts[-1], tree) if allowed(path)] if parts else []
    most = max((_common_end(path, parts) for path in named), default=0)
    same = tree.by_stem.get(file.stem, [])
    beside = [path for path in same if os.path.dirname(path) == folder]
    for paths in (
        [path for path in named if _common_end(path, parts) == most],
        beside,
        [] if here_only or least else same,
    ):
        if len(paths) == 1:
            return paths[0]
    return None


def _same_name(name: str, tree: Tree) -> list[str]:
    """The images of that name, also percent-encoded, in another Unicode form, or as it was before Label Studio had it."""
    names = [name, urllib.parse.unquote(name, errors="surrogateescape")]
    uploaded = image_names.UPLOADED
    names += [uploaded.sub("", name, count=1) for name in names if uploaded.match(name)]
    names += [unicodedata.normalize(unicode, name) for unicode in ("NFC", "NFD") for name in names]
    for name in dict.fromkeys(names):
        if found := [path for path in tree.by_name.get(name, []) if path in tree.pictures]:
            return found
    return []


def _common_end(path: str, parts: Sequence[str]) -> int:
    """How many folders at the end of two paths are the same."""
    pairs = zip(reversed(path.split(os.sep)[:-1]), reversed(parts[:-1]))
    return len(list(itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)))


def _not_found(file: Path, said: str, tree: Tree) -> str:
    folder = str(tree.relative(file).parent)
    found = tree.find(said, [folder, ""], [folder, ""]) if said else None
    if found in tree.unread:
        return f"its image, {one_line(found, PATH_LIMIT)}, is of a kind that is not read"
    image = f"its image, {one_line(said, PATH_LIMIT)}," if said else "its image"
    return f"{image} is not there, or more than once; looked for by its path, its name, and the name {one_line(file.stem)}"


def _labelme_objects(
    labels: LabelFile, classes: list[str]
) -> tuple[list[Object], list[tuple[int, str]]]:
    """The objects of a file, and why shapes are none, with their numbers.

    Shapes with the same label and group_id are one object. A rectangle alone has no mask, and with others its four corners.
    """
    numbers = {name: number for number, name in enumerate(classes)}
    height, width = labels.size

    def boxes(shapes: list[Shape]) -> Detections:
        plain = [
            {"label": shape.label, "shape_type": shape.kind, "points": shape.points}
            for shape in shapes
        ]
        return labelme_shapes_to_detections(plain, numbers, (width, height), with_masks=False)

    outlined, found, faults = readable(
        [shape for shape in labels.shapes if shape.kind != "mask"], boxes
    )
    reasons = [(shape.number, reason) for shape, reason in faults]
    parts: dict[
        int, tuple[list[float], list[list[float]] | dict]
    ] = {}  # box and mask, by the number of the shape
    for shape, box in zip(outlined, found.xyxy.tolist()):
        parts[shape.number] = (box, [_outline(shape)] if shape.kind == "polygon" else [])
    for shape in labels.shapes:
        if shape.kind == "mask":
            try:
                mask = _pixels(shape, height, width)
            except ValueError as error:
                reasons.append((shape.number, one_line(error, REASON)))
                continue
            x, y, w, h = mask_api.toBbox(mask).tolist()
            parts[shape.number] = ([x, y, x + w, y + h], mask)
    groups: dict[Any, list[Shape]] = {}
    for shape in labels.shapes:
        if shape.number in parts:
            key = shape.number if shape.group is None else (shape.label, shape.group)
            groups.setdefault(key, []).append(shape)
    objects = []
    for shapes in groups.values():
        if any(
            shape.kind != "rectangle" for shape in shapes
        ):  # then its rectangles are parts of its mask, too
            for index, shape in enumerate(shapes):
                if shape.kind == "rectangle":
                    box = parts[shape.number][0]
                    shapes[index] = _with_corners(shape, *box)
                    parts[shape.number] = (box, [_outline(shapes[index])])
        if any(shape.kind == "mask" for shape in shapes):
            undrawn = _undrawn(shapes, height, width)
            reasons += undrawn.items()
            shapes = [shape for shape in shapes if shape.number not in undrawn]
        box = np.array([parts[shape.number][0] for shape in shapes])
        union = [*box[:, :2].min(axis=0).tolist(), *box[:, 2:].max(axis=0).tolist()]
        joined = _joined([parts[shape.number][1] for shape in shapes], height, width)
        objects.append(Object(numbers[shapes[0].label], union, joined, shapes[0].number))
    return objects, sorted(reasons)


def _undrawn(shapes: list[Shape], height: int, width: int) -> dict[int, str]:
    """The polygons that are not to be drawn with a mask, and why, by the numbers of the shapes.

    pycocotools takes any polygon, whatever memory it needs.
    """
    polygons = [shape for shape in shapes if shape.kind == "polygon"]
    faults = polygon_faults([_outline(shape) for shape in polygons], height, width)
    return {shape.number: fault for shape, fault in zip(polygons, faults) if fault}


def _with_corners(rectangle: Shape, x1: float, y1: float, x2: float, y2: float) -> Shape:
    return rectangle._replace(kind="polygon", points=[[x1, y1], [x2, y1], [x2, y2], [x1, y2]])


def _outline(shape: Shape) -> list[float]:
    return [value for point in shape.points for value in point]


def _joined(
    masks: list[list[list[float]] | dict], height: int, width: int
) -> list[list[float]] | dict:
    """One mask of several: of polygons all of them, else an RLE."""
    polygons = [polygon for mask in masks if isinstance(mask, list) for polygon in mask]
    pixels = [mask for mask in masks if isinstance(mask, dict)]
    if not pixels:
        return polygons
    drawn = mask_api.frPyObjects(polygons, height, width) if polygons else []
    return _as_text(mask_api.merge([*pixels, *drawn]))


def _pixels(shape: Shape, height: int, width: int) -> dict[str, Any]:
    """The RLE of a shape "mask": a PNG in base64, from one corner to the other.

    Raises:
        ValueError: what is wrong with it.
    """
    if len(shape.points) != 2:
        raise ValueError(f"a mask with {len(shape.points)} points, not two corners")
    left, top, right, bottom = (int(value) for point in shape.points for value in point)
    try:
        image = Image.open(io.BytesIO(base64.b64decode(shape.mask)), formats=("PNG",))
    except Image.DecompressionBombError:
        raise ValueError("its mask has too many pixels to be opened") from None
    except Exception:  # whatever it is
        raise ValueError("its mask is no PNG in base64") from None
    with image:
        if left < 0 or top < 0:
            raise ValueError(f"its mask leaves the image, which is {width} x {height}")
        # labelme counts the corner itself, and cuts what would be outside of the image.
        expected = (min(right + 1, width) - left, min(bottom + 1, height) - top)
        if image.size != expected:
            sizes = [" x ".join(map(str, size)) for size in (image.size, expected)]
            raise ValueError(f"its mask has {sizes[0]} pixels, and {sizes[1]} by its points")
        try:
            inside = np.asarray(image.convert("L")) > 0
        except (
            Exception
        ) as error:  # what decoders raise on damaged files is not limited to a few types
            raise ValueError(f"its mask is damaged ({type(error).__name__})") from None
    if not inside.any():
        raise ValueError("its mask has no pixel")
    mask = np.zeros((height, width), np.uint8, order="F")
    mask[top : bottom + 1, left : right + 1] = inside  # which cuts as well
    return _as_text(mask_api.encode(mask))


def _as_text(rle: dict[str, Any]) -> dict[str, Any]:
    """An RLE as JSON can hold it."""
    return {"size": list(rle["size"]), "counts": rle["counts"].decode()}
