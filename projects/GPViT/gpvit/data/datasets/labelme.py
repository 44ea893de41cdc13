"""Reading of labelme files, one per image, including those that other programs write.

Polygons, rectangles and masks become objects; rotated rectangles (X-AnyLabeling, newer labelme)
become polygons. Circles, lines and points have no outline and are left out.
"""

import base64
import io
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
from ...utils.text import PATH_LIMIT, one_line, short_repr
from ..image_io import size_of
from ..masks import polygon_faults
from . import image_names
from .coco import usable_size
from .file_tree import Tree
from .to_coco import (
    REASON,
    ConvertedDataset,
    ConvertedImage,
    Detections,
    Fault,
    Object,
    by_folder,
    readable,
)

# Shape types that become polygons: rotated rectangles in labelme and X-AnyLabeling, given by their
# four corners in order.
CORNERS = ("rotation", "oriented_rectangle", "quadrilateral")
SHAPES = ("polygon", "rectangle", "mask")

Polygons = list[list[float]]  # x, y, x, y, ... in pixels


class Shape(NamedTuple):
    """A shape of a labelme file; shapes are numbered from 1."""

    number: int
    label: str
    kind: str
    points: list[list[float]]
    group: str | float | None
    mask: Any


@dataclass
class LabelFile:
    """A labelme file: its path in the dataset, height and width of its image, and its shapes."""

    path: str
    size: tuple[int, int]
    shapes: list[Shape]


class Part(NamedTuple):
    """A valid shape.

    number: of the shape.
    box: x0, y0, x1, y1 in pixels.
    mask: polygons or a compressed RLE; an empty list for a rectangle.
    """

    number: int
    box: list[float]
    mask: Polygons | dict[str, Any]


def from_labelme(json_files: Sequence[Path], tree: Tree) -> ConvertedDataset:
    """Read labelme files, one per image.

    Images without a labelme file are left out, because they may not have been annotated.

    Args:
        json_files: the labelme files.
        tree: the files of the dataset.

    Raises:
        UserError: none of them can be used.
    """
    reader = _Reader(tree)
    for file in json_files:
        reader.read(file)
    files, faults = reader.files, reader.faults
    if not files:
        reasons = preview([fault.detail for fault in faults])
        raise UserError(f"{tree.root}: no labelme file can be used: {reasons}")
    used, labels = set(files), set[str]()
    for fault in faults:
        if fault.image is not None:
            used.add(fault.image)
    for label_file in files.values():
        labels.update(shape.label for shape in label_file.shapes)
    classes = sorted(labels)
    images = []
    for name, label_file in sorted(files.items()):
        objects, reasons_by_shape = _labelme_objects(label_file, classes)
        origin = f"{label_file.path}, shape"
        images.append(ConvertedImage(name, *label_file.size, objects, origin))
        for number, reason in reasons_by_shape:
            faults.append(Fault("shape", _describe(label_file.path, number, reason), name))
    notes = reader.notes()
    if others := [name for name in (*tree.images, *tree.unread) if name not in used]:
        notes.append(f"left out: {len(others)} images without a labelme file: {preview(others)}")
    return ConvertedDataset(classes, images, by_folder(sorted(used)), notes, faults)


def _describe(path: str, number: int, reason: str) -> str:
    return f"{one_line(path, PATH_LIMIT)}, shape {number}: {reason}"


class _Reader:
    """Reads labelme files and collects their content.

    Attributes:
        files: the labelme files by the paths of their images.
        faults: problems with files and shapes.
        other_kinds: number of shapes without an outline, by their types.
        moved: images that are not where their labelme files expect them.
    """

    def __init__(self, tree: Tree) -> None:
        self.tree = tree
        self.files: dict[str, LabelFile] = {}
        self.faults: list[Fault] = []
        self.other_kinds: Counter[str] = Counter()
        self.moved: list[str] = []

    def notes(self) -> list[str]:
        """Return what was decided, to be shown to the user."""
        notes = []
        if self.other_kinds:
            kinds = ", ".join(sorted(self.other_kinds))
            notes.append(
                f"left out: {self.other_kinds.total()} shapes without an outline ({kinds})"
            )
        if self.moved:
            count = f"{len(self.moved)} images are not where their labelme files expect them"
            notes.append(f"{count}; found by their names: {preview(self.moved)}")
        return notes

    def read(self, file: Path) -> None:
        path = str(self.tree.relative(file))
        shown_path = one_line(path, PATH_LIMIT)
        try:
            content = json.loads(file.read_bytes())
            shapes, image_path = list(content["shapes"]), str(content.get("imagePath") or "")
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            reason = f"{type(error).__name__}: {one_line(error, REASON)}"
            detail = f"{shown_path}: cannot be read as a labelme file ({reason})"
            self.faults.append(Fault("label file", detail, _image_of(file, "", self.tree)))
            return
        name = _image_of(file, image_path, self.tree)
        if name is None:
            detail = f"{shown_path}: {_not_found(file, image_path, self.tree)}"
            self.faults.append(Fault("label file", detail, None))
            return
        if name in self.files:
            other = one_line(self.files[name].path, PATH_LIMIT)
            reason = f"belongs to the same image as {other}, {one_line(name, PATH_LIMIT)}"
            self.faults.append(Fault("label file", f"{shown_path}: {reason}", name))
            return
        height, width = _side(content.get("imageHeight")), _side(content.get("imageWidth"))
        try:
            size = (height, width) if usable_size(height, width) else size_of(self.tree.root / name)
        except UserError as error:
            self.faults.append(Fault("unreadable", str(error), name))
            return
        if image_path and name != _stated_image(file, image_path, self.tree):
            self.moved.append(f"{path}: {one_line(image_path)} is {name}")
        self.files[name] = LabelFile(path, size, self._read_shapes(shapes, path, name))

    def _read_shapes(self, entries: list[Any], path: str, image: str) -> list[Shape]:
        shapes = []
        for number, entry in enumerate(entries, start=1):
            try:
                shape = _shape(number, entry)
            except (ValueError, OverflowError) as error:
                detail = _describe(path, number, one_line(error, REASON))
                self.faults.append(Fault("shape", detail, image))
                continue
            if shape.kind in SHAPES:
                shapes.append(shape)
            else:
                self.other_kinds[one_line(shape.kind)] += 1
        return shapes


def _side(value: Any) -> int:
    """Return a side of an image in pixels, or 0 if it is invalid."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return int(value) if is_number and 0 < value < float("inf") else 0


def _shape(number: int, entry: Any) -> Shape:
    """Parse a shape of a labelme file.

    Raises:
        ValueError, OverflowError: with what is wrong with it.
    """
    if not isinstance(entry, dict):
        raise ValueError(f"{short_repr(entry)} is not a JSON object")
    label, group = entry.get("label"), entry.get("group_id")
    group = None if group == "" else group
    kind = str(entry.get("shape_type") or "polygon").lower()  # old files do not have it
    if label is None or label == "":
        raise ValueError("it has no label")
    if not isinstance(label, str | int | float):
        raise ValueError(f"label {short_repr(label)} is not text")
    if not isinstance(group, str | int | float | None):
        raise ValueError(f"group_id {short_repr(group)} is not a number")
    try:
        points = [[float(x), float(y)] for x, y in entry["points"]]
    except (KeyError, ValueError, TypeError):
        reason = f"points {short_repr(entry.get('points'))} are not pairs of numbers"
        raise ValueError(reason) from None
    if not np.isfinite(points).all():
        raise ValueError("NaN or infinity in its points")
    kind = "polygon" if kind in CORNERS else kind
    return Shape(number, str(label), kind, points, group, entry.get("mask"))


def _stated_image(file: Path, image_path: str, tree: Tree) -> str | None:
    """Return the file at the path where a labelme file expects its image, if there is one."""
    folder = str(tree.relative(file).parent)
    folders = [folder] if _is_bare(image_path) else [folder, ""]
    return tree.find(image_path, folders, []) if image_path else None


def _is_bare(image_path: str) -> bool:
    """Whether a path has no folder, so that the image is expected next to the labelme file."""
    return len(PureWindowsPath(image_path).parts) < 2


def _image_of(file: Path, image_path: str, tree: Tree) -> str | None:
    """Return the path of the image of a labelme file, or None if it is not found.

    It is the first of the following, the last three only if there is exactly one such image:

    - The image that ``image_path`` names, as :meth:`.Tree.find` interprets it.
    - The image with that name; of several, the one with the most folders of ``image_path``.
    - The image with the name of the labelme file in the same folder.
    - The image with the name of the labelme file elsewhere.

    If the folder in ``image_path`` exists here and has other images, images elsewhere are not
    considered, because the image was deleted.
    """
    found = _stated_image(file, image_path, tree)
    if found in tree.images:
        return found
    # Relative to the dataset; "" for its root, where normpath returns ".".
    folder = os.path.normpath(tree.relative(file).parent).removeprefix(".")
    parts = PureWindowsPath(image_path).parts  # separated by \ or /
    # How many folders at the end of the path exist here with images.
    num_known = image_names.known_folders(parts[:-1], tree.image_folder_ends)
    here_only = _is_bare(image_path) and folder in tree.image_folders

    def allowed(path: str) -> bool:
        if here_only:
            return os.path.dirname(path) == folder
        return _common_folders(path, parts) >= num_known

    found = tree.find(image_path, [folder, ""], [folder, ""]) if image_path else None
    if found in tree.images and allowed(found):
        return found
    same_name = list(filter(allowed, _same_name(parts[-1], tree))) if parts else []
    common = [_common_folders(path, parts) for path in same_name]
    most = max(common, default=0)
    best = [path for path, count in zip(same_name, common) if count == most]
    same_stem = tree.by_stem.get(file.stem, [])
    next_to_it = [path for path in same_stem if os.path.dirname(path) == folder]
    elsewhere = [] if here_only or num_known else same_stem
    for paths in (best, next_to_it, elsewhere):
        if len(paths) == 1:
            return paths[0]
    return None


def _same_name(name: str, tree: Tree) -> list[str]:
    """Return the images with a name, or else with another spelling of it.

    Spellings differ by percent-encoding, the prefix that Label Studio adds to uploaded files, or
    the Unicode form.
    """
    names = [name, urllib.parse.unquote(name, errors="surrogateescape")]
    for prefixed in list(names):
        if image_names.UPLOADED.match(prefixed):
            names.append(image_names.UPLOADED.sub("", prefixed, count=1))
    spellings = dict.fromkeys(names)
    for unicode_form in ("NFC", "NFD"):
        for spelling in names:
            spellings[unicodedata.normalize(unicode_form, spelling)] = None
    for spelling in spellings:
        found = [path for path in tree.by_name.get(spelling, []) if path in tree.images]
        if found:
            return found
    return []


def _common_folders(path: str, parts: Sequence[str]) -> int:
    """Return how many folders at the end of two paths (without their file names) are the same."""
    count = 0
    for ours, theirs in zip(reversed(path.split(os.sep)[:-1]), reversed(parts[:-1])):
        if ours != theirs:
            break
        count += 1
    return count


def _not_found(file: Path, image_path: str, tree: Tree) -> str:
    folder = str(tree.relative(file).parent)
    found = tree.find(image_path, [folder, ""], [folder, ""]) if image_path else None
    if found in tree.unread:
        return f"its image, {one_line(found, PATH_LIMIT)}, is of an unsupported format"
    image = f"its image, {one_line(image_path, PATH_LIMIT)}," if image_path else "its image"
    return (
        f"{image} does not exist or is ambiguous; searched by its path, its name, and the name "
        f"{one_line(file.stem)}"
    )


def _labelme_objects(
    labels: LabelFile, classes: list[str]
) -> tuple[list[Object], list[tuple[int, str]]]:
    """Return the objects of a file, and the numbers of invalid shapes with the reasons.

    Shapes with the same label and group_id are one object. A rectangle has no mask, unless it is in
    a group with other shapes: then its four corners are a polygon of the mask.
    """
    category_ids = {name: number for number, name in enumerate(classes)}
    parts, reasons = _read_parts(labels, category_ids)
    groups: dict[Any, list[Part]] = {}
    categories: dict[Any, int] = {}
    for shape in labels.shapes:
        if shape.number in parts:
            key = shape.number if shape.group is None else (shape.label, shape.group)
            groups.setdefault(key, []).append(parts[shape.number])
            categories[key] = category_ids[shape.label]
    objects = []
    for key, group in groups.items():
        item, faults = _join(group, categories[key], *labels.size)
        objects.append(item)
        reasons += faults.items()
    return objects, sorted(reasons)


def _read_parts(
    labels: LabelFile, category_ids: dict[str, int]
) -> tuple[dict[int, Part], list[tuple[int, str]]]:
    """Return the valid shapes by their numbers, and the numbers of others with the reasons."""
    height, width = labels.size

    def boxes(shapes: list[Shape]) -> Detections:
        entries = []
        for shape in shapes:
            entry = {"label": shape.label, "shape_type": shape.kind, "points": shape.points}
            entries.append(entry)
        return labelme_shapes_to_detections(
            entries, category_ids, (width, height), with_masks=False
        )

    outlines = [shape for shape in labels.shapes if shape.kind != "mask"]
    valid, found, faults = readable(outlines, boxes)
    reasons = [(shape.number, reason) for shape, reason in faults]
    parts: dict[int, Part] = {}
    for shape, box in zip(valid, found.xyxy.tolist()):
        polygons = [_flatten(shape.points)] if shape.kind == "polygon" else []
        parts[shape.number] = Part(shape.number, box, polygons)
    for shape in labels.shapes:
        if shape.kind == "mask":
            try:
                rle = _decode_mask(shape, height, width)
            except ValueError as error:
                reasons.append((shape.number, one_line(error, REASON)))
                continue
            x, y, w, h = mask_api.toBbox(rle).tolist()
            parts[shape.number] = Part(shape.number, [x, y, x + w, y + h], rle)
    return parts, reasons


def _join(
    parts: list[Part], category: int, height: int, width: int
) -> tuple[Object, dict[int, str]]:
    """Join the shapes of a group to one object.

    Returns:
        The object, and the numbers of shapes that cannot be part of it with the reasons.
    """
    if any(part.mask for part in parts):  # rectangles are parts of the mask, too
        parts = list(map(_with_corners, parts))
    faults: dict[int, str] = {}
    if any(isinstance(part.mask, dict) for part in parts):
        # Polygons are rasterized to be joined with a mask. They must be checked before, because
        # pycocotools accepts any polygon, regardless of the memory it needs.
        polygons = {part.number: part.mask[0] for part in parts if isinstance(part.mask, list)}
        found = polygon_faults(list(polygons.values()), height, width)
        faults = {number: fault for number, fault in zip(polygons, found) if fault}
        parts = [part for part in parts if part.number not in faults]
    boxes = np.array([part.box for part in parts])  # (n, 4)
    union = [*boxes[:, :2].min(axis=0).tolist(), *boxes[:, 2:].max(axis=0).tolist()]
    mask = _joined_mask([part.mask for part in parts], height, width)
    return Object(category, union, mask, parts[0].number), faults


def _with_corners(part: Part) -> Part:
    """Turn a rectangle into a polygon."""
    if part.mask:
        return part
    x0, y0, x1, y1 = part.box
    return part._replace(mask=[[x0, y0, x1, y0, x1, y1, x0, y1]])


def _flatten(points: list[list[float]]) -> list[float]:
    flat = []
    for point in points:
        flat += point
    return flat


def _joined_mask(
    masks: list[Polygons | dict[str, Any]], height: int, width: int
) -> Polygons | dict[str, Any]:
    """Join masks: to a list of polygons if all are polygons, else to an RLE."""
    polygons, rles = [], []
    for mask in masks:
        if isinstance(mask, dict):
            rles.append(mask)
        else:
            polygons += mask
    if not rles:
        return polygons
    if polygons:
        rles += mask_api.frPyObjects(polygons, height, width)
    return _as_text(mask_api.merge(rles))


def _decode_mask(shape: Shape, height: int, width: int) -> dict[str, Any]:
    """Return the RLE of a shape of type "mask": a PNG in base64, and the two corners it spans.

    Raises:
        ValueError: with what is wrong with it.
    """
    if len(shape.points) != 2:
        raise ValueError(f"a mask with {len(shape.points)} points, not two corners")
    left, top = map(int, shape.points[0])
    right, bottom = map(int, shape.points[1])
    try:
        image = Image.open(io.BytesIO(base64.b64decode(shape.mask)), formats=("PNG",))
    except Image.DecompressionBombError:
        raise ValueError("its mask has too many pixels to be opened") from None
    except Exception:  # of whatever type
        raise ValueError("its mask is not a PNG in base64") from None
    with image:
        if left < 0 or top < 0:
            raise ValueError(f"its mask leaves the image, which is {width} x {height}")
        # The second corner is inclusive, and labelme cuts off what is outside of the image.
        expected = (min(right + 1, width) - left, min(bottom + 1, height) - top)
        if image.size != expected:
            raise ValueError(
                f"its mask has {image.width} x {image.height} pixels, but its points span "
                f"{expected[0]} x {expected[1]}"
            )
        try:
            inside = np.asarray(image.convert("L")) > 0
        except Exception as error:  # decoders raise errors of many types on damaged files
            raise ValueError(f"its mask is damaged ({type(error).__name__})") from None
    if not inside.any():
        raise ValueError("its mask has no pixel")
    mask = np.zeros((height, width), np.uint8, order="F")  # as pycocotools needs it
    mask[top : bottom + 1, left : right + 1] = inside  # slicing cuts at the border as well
    return _as_text(mask_api.encode(mask))


def _as_text(rle: dict[str, Any]) -> dict[str, Any]:
    """Convert an RLE of pycocotools to one that JSON can represent."""
    return {"size": list(rle["size"]), "counts": rle["counts"].decode()}
