"""YOLO segmentation and labelme to COCO format, by the package supervision.

supervision reads and checks the annotations of each image. The outlines are taken as they are in the files: its own
conversion fills them into masks of whole pixels and outlines these again (mean IoU with the original: 0.990 on photos
of fruits, 0.945 on nuclei), and makes crowds, which nothing is trained on, of objects in several parts.

What is only a box there stays one: four numbers (YOLO), a rectangle (labelme).
"""

import json
import os
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePath, PureWindowsPath
from typing import Any, NamedTuple

import numpy as np
from PIL import ExifTags, Image

from .annotations import shown
from .errors import UserError, listed
from .images import FORMATS, read_image
from .layouts import WORDS, Tree, class_names, split_of
from .utils.text import one_line
from .utils.yaml_io import read_yaml

try:
    from supervision import Detections
    from supervision.dataset.formats.labelme import SUPPORTED_SHAPE_TYPES, labelme_shapes_to_detections
    from supervision.dataset.formats.yolo import yolo_annotations_to_detections
except ImportError:
    raise UserError("YOLO and labelme data needs the package supervision: pip install 'supervision>=0.31'") from None


class Object(NamedTuple):
    """category: from 0; box: x0, y0, x1, y1 in pixels; outlines: polygons x, y, x, y, ... in pixels, or none."""

    category: int
    box: Sequence[float]
    outlines: list[list[float]]


class Picture(NamedTuple):
    """An image by its path in the data set, with height and width in pixels and its objects."""

    name: str
    height: int
    width: int
    objects: list[Object]


class DataSet(NamedTuple):
    """What was read: names of the classes, images in the order of their names, their stated splits, and remarks."""

    classes: Sequence[str]
    pictures: list[Picture]
    splits: dict[str, str | None]
    notes: list[str]

    def coco(self, names: Iterable[str]) -> dict[str, list[dict[str, Any]]]:
        """The images of these names in COCO format; ids are the same whichever others are with them."""
        chosen, wanted = [(id, p) for id, p in enumerate(self.pictures, start=1)], set(names)
        firsts = np.cumsum([1, *(len(picture.objects) for picture in self.pictures)]).tolist()
        chosen = [(id, picture) for id, picture in chosen if picture.name in wanted]
        return {
            "categories": [{"id": id, "name": name} for id, name in enumerate(self.classes, start=1)],
            "images": [{"id": id, "file_name": p.name, "height": p.height, "width": p.width} for id, p in chosen],
            "annotations": [
                {"id": number, "image_id": id, **_annotation(item)}
                for id, picture in chosen
                for number, item in enumerate(picture.objects, start=firsts[id - 1])
            ],
        }


def _annotation(item: Object) -> dict[str, Any]:
    x0, y0, x1, y1 = map(float, item.box)
    found = {"category_id": item.category + 1, "bbox": [x0, y0, x1 - x0, y1 - y0], "iscrowd": 0}
    if not item.outlines:
        return found | {"area": (x1 - x0) * (y1 - y0)}
    return found | {"segmentation": item.outlines, "area": sum(map(_area, item.outlines))}


def _area(outline: list[float]) -> float:
    x, y = np.asarray(outline[0::2]), np.asarray(outline[1::2])
    return abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2


def from_yolo(yaml_file: Path, tree: Tree) -> DataSet:
    """Reads a YOLO data set: lines of a class and the corners of an outline, or a box, all as shares of the image's sides.

    Args:
        yaml_file: has the names of the classes, and may say where the images of each split are.
        tree: the files of the data set. The labels of images/.../NAME.jpg are in labels/.../NAME.txt or beside it. An image
            without is one without objects, if others of its folder have labels.

    Raises:
        UserError: no labels, or something in them that cannot be read.
    """
    try:
        text = yaml_file.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {yaml_file}: {error.strerror}") from None
    content = read_yaml(text, str(yaml_file))
    classes = class_names(yaml_file)
    if not classes:
        raise UserError(f'{yaml_file} has no "names" of classes, numbered from 0')
    if "kpt_shape" in content:
        raise UserError(f"{yaml_file} is of key points (kpt_shape), not of outlines")
    labels = {name: _label_of(name, tree) for name in tree.pictures}
    folders = {PurePath(name).parent for name, label in labels.items() if label}
    splits = _yolo_splits(content, yaml_file, tree, [name for name in labels if PurePath(name).parent in folders])
    if not splits:
        raise UserError(f"{yaml_file}: {tree.root} has no images with labels, images/NAME.jpg with labels/NAME.txt")
    pictures = []
    for name, (height, width) in zip(splits, _sizes(tree.root, splits)):
        label = labels[name]
        objects = _yolo_objects(tree.root / label, height, width, len(classes)) if label else []
        pictures.append(Picture(name, height, width, objects))
    without = sum(labels[name] is None for name in splits)
    notes = [f"{without} images have no file of labels: taken for images without objects"] if without else []
    return DataSet(classes, pictures, splits, notes)


def _label_of(name: str, tree: Tree) -> str | None:
    path = PurePath(name).with_suffix(".txt")
    parts = list(path.parts)
    if "images" in parts:
        parts[len(parts) - 1 - parts[::-1].index("images")] = "labels"
    return next((str(found) for found in (PurePath(*parts), path) if str(found) in tree.paths), None)


def _yolo_splits(content: dict, yaml_file: Path, tree: Tree, names: list[str]) -> dict[str, str | None]:
    """The images of the data set with their splits: those in the folders that the YAML file says, if it says two of them.

    Else all, by the words in their folders.
    """
    stated: dict[Path, str] = {}
    for split in WORDS:
        said = content.get(split)
        bases = (yaml_file.parent / str(content.get("path") or ""), yaml_file.parent)
        # Roboflow's paths begin one folder too high
        tried = [base / end for end in (said, said.removeprefix("../")) for base in bases] if isinstance(said, str) else []
        if folder := next((folder for folder in tried if os.path.isdir(folder)), None):  # False of what is no path, too
            stated.setdefault(folder.resolve(), split)
    above = {name: [stated[f] for f in (tree.root / name).resolve().parents if f in stated] for name in names}
    found: dict[str, str | None] = {name: splits[0] for name, splits in above.items() if splits}
    there = {*found.values()}
    return found if "train" in there and len(there) > 1 else by_folder(names)


def by_folder(names: Iterable[str]) -> dict[str, str | None]:
    """The split that the folders of each image say."""
    return {name: split_of(PurePath(name).parent) for name in names}


def _yolo_objects(file: Path, height: int, width: int, classes: int) -> list[Object]:
    try:
        lines = [line for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
        found = yolo_annotations_to_detections(lines, (width, height), with_masks=False)
    except (OSError, ValueError, OverflowError) as error:
        raise UserError(f"{file}: {one_line(error, 300)}") from None
    objects = []
    for line, category, box in zip(lines, _numbers(found), found.xyxy):
        if not 0 <= category < classes:
            raise UserError(f"{file}: class {category}, and the YAML file has names for 0 to {classes - 1}")
        numbers = [float(value) for value in line.split()[1:]]
        numbers = numbers[: len(numbers) // 2 * 2] if len(numbers) > 5 else []  # a last one alone is a score
        outline = [number * (height if i % 2 else width) for i, number in enumerate(numbers)]
        objects.append(Object(category, box.tolist(), [outline] if outline else []))
    return objects


class Labels(NamedTuple):
    """A labelme file: its path, height and width in pixels of its image, and its shapes."""

    file: Path
    size: tuple[int, int]
    shapes: list[dict[str, Any]]


def from_labelme(json_files: Sequence[Path], tree: Tree) -> DataSet:
    """Reads labelme's files, one for each image. Images without one are left out: nobody has looked at them.

    Args:
        json_files: labelme's.
        tree: the files of the data set.

    Raises:
        UserError: something in them cannot be read, or an image is not found, or twice.
    """
    labels = _labels(json_files, tree)
    kinds = Counter(shape["shape_type"] for _, _, shapes in labels.values() for shape in shapes)
    others = {kind: count for kind, count in kinds.items() if kind not in SUPPORTED_SHAPE_TYPES}
    for _, _, shapes in labels.values():
        shapes[:] = [shape for shape in shapes if shape["shape_type"] not in others]
    classes = sorted({shape["label"] for _, _, shapes in labels.values() for shape in shapes})
    pictures = [Picture(name, *labels[name].size, _labelme_objects(labels[name], classes)) for name in sorted(labels)]
    notes = [f"left out: {sum(others.values())} shapes that are no outlines ({', '.join(sorted(others))})"] if others else []
    return DataSet(classes, pictures, by_folder(labels), notes)


def _labels(json_files: Sequence[Path], tree: Tree) -> dict[str, Labels]:
    """The files by the paths of their images."""
    labels: dict[str, Labels] = {}
    missing = []
    for file in json_files:
        entry = _entry(file)
        name = _picture_of(file, entry, tree)
        if name is None:
            missing.append(str(file))
        elif name in labels:
            raise UserError(f"{labels[name].file} and {file} are of the same image, {name}; remove one")
        else:
            height, width = entry["imageHeight"], entry["imageWidth"]
            size = (height, width) if height > 0 and width > 0 else size_of(tree.root / name)
            labels[name] = Labels(file, size, entry["shapes"])
    if missing:
        raise UserError(f"the images of {len(missing)} labelme files are not found, or twice: {listed(missing)}")
    return labels


def _entry(file: Path) -> dict[str, Any]:
    """The content of a labelme file, whose shapes have what is needed of them; unknown sides of the image are 0."""
    try:
        content = json.loads(file.read_bytes())
        sides = {side: int(content.get(side) or 0) for side in ("imageHeight", "imageWidth")}
        return content | sides | {"shapes": [_shape(shape) for shape in content["shapes"]]}
    except (OSError, ValueError, TypeError, KeyError, OverflowError, AttributeError, RecursionError) as error:
        raise UserError(f"{file}: cannot be read as labelme's ({type(error).__name__}: {one_line(error, 300)})") from None


def _shape(shape: dict[str, Any]) -> dict[str, Any]:
    """A shape of a labelme file with what is needed of it. Raises what _entry catches."""
    label, group = shape["label"], shape.get("group_id")
    if not isinstance(label, str | int | float):
        raise ValueError(f"label {shown(label)} is no text")
    if not isinstance(group, str | int | float | None):
        raise ValueError(f"group_id {shown(group)} is no number")
    kind = str(shape.get("shape_type") or "polygon")  # of old files, which do not say it
    points = [[float(x), float(y)] for x, y in shape["points"]]
    return shape | {"label": str(label), "shape_type": kind, "points": points}


def _picture_of(file: Path, entry: dict[str, Any], tree: Tree) -> str | None:
    """The path of a labelme file's image: as the file says, or of that name beside it, or the only one of its own name."""
    folder, said = tree.relative(file).parent, PureWindowsPath(str(entry.get("imagePath") or ""))  # it takes / as well
    for path in (os.path.normpath(folder / said.as_posix()), os.path.normpath(folder / said.name)):
        if path in tree.pictures:
            return path
    same = tree.by_stem.get(file.stem, [])
    found = [path for path in same if PurePath(path).parent == folder] or same
    return found[0] if len(found) == 1 else None


def _labelme_objects(labels: Labels, classes: list[str]) -> list[Object]:
    """Shapes with the same label and group_id are one object."""
    file, size, shapes = labels
    try:
        numbers = {name: number for number, name in enumerate(classes)}
        found = labelme_shapes_to_detections(shapes, numbers, size[::-1], with_masks=False)
    except (ValueError, OverflowError) as error:
        raise UserError(f"{file}: {one_line(error, 300)}") from None
    outlines: dict[Any, list[list[float]]] = {}
    for number, shape in enumerate(shapes):
        group = shape.get("group_id")
        mine = outlines.setdefault(number if group is None else (shape["label"], group), [])
        if shape["shape_type"] == "polygon":
            mine.append([value for point in shape["points"] for value in point])
    objects = zip(_numbers(found), found.xyxy, outlines.values())
    return [Object(category, box.tolist(), polygons) for category, box, polygons in objects]


def _numbers(found: Detections) -> list[int]:
    """The classes of objects."""
    return [] if found.class_id is None else found.class_id.tolist()


def size_of(path: Path) -> tuple[int, int]:
    """Height and width, by its header, of an image as :func:`gpvit.images.read_image` gives it.

    Raises:
        UserError: it has no header that can be read.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="PIL")  # as read_image, which is to say what is wrong
        try:
            image = Image.open(path, formats=FORMATS)
        except Exception:
            return read_image(path).shape[:2]
        try:
            orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
        except Exception:
            orientation = 1
    with image:
        turned = orientation in (5, 6, 7, 8) and image.format != "TIFF"  # whose size Pillow has turned already
        return (image.width, image.height) if turned else (image.height, image.width)


def _sizes(root: Path, names: Iterable[str]) -> Iterator[tuple[int, int]]:
    """The size of each of many images."""
    with ThreadPoolExecutor() as pool:
        yield from pool.map(lambda name: size_of(root / name), names)
