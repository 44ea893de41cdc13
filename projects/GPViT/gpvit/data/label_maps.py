"""Label maps: images whose pixels are classes.

A label map is an image with one class index per pixel, of 8 or 16 bits, or with a palette, whose
colors do not matter; or an image whose values or colors a dataset lists by class. It can also be
drawn from the objects of an instance dataset (:func:`draw_objects`).
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from PIL import Image

from ..utils.errors import UserError, preview, reason_of
from ..utils.files import atomic_write
from ..utils.text import PATH_LIMIT, one_line
from .cropped_masks import Crop, crop_of_polygons, crop_of_rle
from .masks import compressed, mask_fault

INDEX_MODES = ("1", "L", "P", "I", "I;16", "I;16B")  # of Pillow: one number per pixel
COLOR_MODES = ("RGB", "RGBA", "LA")
# Not JPEG: its compression changes the values.
FORMATS = ("PNG", "TIFF", "BMP", "GIF", "WEBP")
LABEL_MAPS = "label_maps"  # folder of predicted label maps
IGNORED = 255  # label of the pixels that do not count, unless a dataset states another one
Color: TypeAlias = tuple[int, int, int]  # R, G, B


def read_labels(
    path: str | os.PathLike,
    *,
    offset: int = 0,
    values: Mapping[int, int] | None = None,
    colors: Mapping[int, int] | None = None,
    ignore_value: int = IGNORED,
) -> np.ndarray:
    """Read the classes of an image's pixels.

    Args:
        path: of the label map.
        offset: what is subtracted from its values: 1 if class 0 is stored as 1, as in ADE20K.
        values: class of each value that it may have; None if its values are the classes.
        colors: class of each color that it may have, see :func:`pack_color`; None without colors.
        ignore_value: of pixels that do not count; not changed by the offset, and always allowed.

    Returns:
        (H, W), uint8 or int32: class indices or ``ignore_value``.

    Raises:
        UserError: it cannot be read, has colors and ``colors`` is None, or has another value.
    """
    found = read_values(path, colors=colors is not None)
    name = one_line(Path(path), PATH_LIMIT)
    if colors is not None:
        return classes_of(found, colors, name, ignore_value, as_colors=True)
    if found.ndim == 3:
        raise UserError(
            f"{name}: is a color image, not a label map with one class index per pixel; convert "
            "it, or list the color of each class in class_dict.csv"
        )
    if values is not None:
        return classes_of(found, {ignore_value: ignore_value} | dict(values), name, ignore_value)
    if not offset:
        return found
    shifted = found.astype(np.int32) - offset
    shifted[(shifted < 0) | (found == ignore_value)] = ignore_value
    return shifted.astype(np.uint8) if found.dtype == np.uint8 else shifted


def read_values(path: str | os.PathLike, *, colors: bool = False) -> np.ndarray:
    """Read the values of a label map as they are stored.

    Args:
        path: of the label map.
        colors: whether to return colors in any case, those of a palette or of gray values as well.

    Returns:
        (H, W), uint8 or int32: one number per pixel, also of a color image that is gray; or
        (H, W, 3), uint8: the colors, without transparency.

    Raises:
        UserError: it cannot be read.
    """
    name = one_line(Path(path), PATH_LIMIT)
    if not Path(path).is_file():  # opening a pipe would block
        raise UserError(f"{name}: does not exist, or is no file")
    try:
        # By a file object: Pillow maps some TIFFs that it opens by path to wrong rows.
        with open(path, "rb") as file, Image.open(file, formats=[*FORMATS, "JPEG"]) as image:
            kind, mode = image.format, image.mode
            pixels = None
            if kind in FORMATS and colors and mode in (*COLOR_MODES, "P", "1", "L"):
                return np.asarray(image.convert("RGB"))
            if kind in FORMATS and mode in (*INDEX_MODES, *COLOR_MODES):
                pixels = np.asarray(image if mode in INDEX_MODES else image.convert("RGB"))
    except Exception as error:  # decoders raise errors of many types on damaged files
        raise UserError(f"{name}: cannot be read as a label map ({reason_of(error)})") from None
    if kind not in FORMATS:
        raise UserError(f"{name}: is a JPEG file, which changes values; save it as PNG")
    if pixels is None or (colors and pixels.ndim == 2):
        raise UserError(f"{name}: has pixels of an unsupported kind (mode {mode}); save it as PNG")
    if pixels.ndim == 3 and (pixels == pixels[..., :1]).all():
        pixels = pixels[..., 0]
    return pixels.astype(np.uint8 if pixels.dtype in (np.uint8, bool) else np.int32)


def pack_color(color: Sequence[int] | np.ndarray) -> Any:
    """Return a color as one number, 65536 R + 256 G + B; or an array of them, (..., 3) -> (...)."""
    red, green, blue = np.moveaxis(np.asarray(color, dtype=np.int32), -1, 0)
    packed = (red << 16) | (green << 8) | blue
    return int(packed) if packed.ndim == 0 else packed


def shown_value(value: int, *, as_color: bool) -> str:
    """Return a value or a packed color for a message: "7" or "(255, 0, 0)"."""
    return f"({value >> 16}, {value >> 8 & 255}, {value & 255})" if as_color else str(value)


def classes_of(
    found: np.ndarray,
    classes: Mapping[int, int],
    name: str,
    ignore_value: int,
    *,
    as_colors: bool = False,
) -> np.ndarray:
    """Replace the values or colors of a label map by classes.

    Args:
        found: (H, W) or, with ``as_colors``, (H, W, 3).
        classes: class of each value or packed color; a negative class is ignored.
        name: of the file, for the error.
        ignore_value: of pixels that do not count.
        as_colors: whether these are colors.

    Raises:
        UserError: a value has no class.
    """
    packed = pack_color(found) if as_colors else found
    keys = np.array(sorted(classes))
    place = np.searchsorted(keys, packed).clip(max=len(keys) - 1)
    unknown = keys[place] != packed
    if unknown.any():
        others = [
            shown_value(value, as_color=as_colors) for value in np.unique(packed[unknown]).tolist()
        ]
        what = "colors" if as_colors else "values"
        raise UserError(f"{name}: has {what} that are no class, {preview(others)}; correct it")
    targets = np.array([classes[key] for key in keys.tolist()])
    targets[targets < 0] = ignore_value
    dtype = np.uint8 if targets.max() < 256 else np.int32
    return targets.astype(dtype)[place]


def labels_of(record: Mapping[str, Any], ignore_value: int = IGNORED) -> np.ndarray:
    """Return the label map of a record, (H, W).

    Args:
        record: with "sem_seg_file_name" and optionally "label_offset", "label_values" or
            "label_colors", the arguments of :func:`read_labels`; or with "annotations", "height"
            and "width", see :func:`draw_objects`.
        ignore_value: of pixels that do not count.

    Raises:
        UserError: it cannot be read or drawn.
    """
    if "sem_seg_file_name" not in record:
        size = record["height"], record["width"]
        try:
            return draw_objects(record["annotations"], *size, ignore_value)
        except UserError as error:
            raise UserError(f"{record['file_name']}: {error}; correct or remove it") from None
    return read_labels(
        record["sem_seg_file_name"],
        offset=record.get("label_offset", 0),
        values=record.get("label_values"),
        colors=record.get("label_colors"),
        ignore_value=ignore_value,
    )


def draw_objects(
    annotations: Sequence[Mapping[str, Any]], height: int, width: int, ignore_value: int = IGNORED
) -> np.ndarray:
    """Draw the objects of an image as a label map: 0 is background, class k is k + 1.

    Where objects overlap, the one with the smallest area counts; of equal areas, the later one.
    Crowds are ignored where no other object is.

    Args:
        annotations: of Detectron2's format, with "category_id" and "segmentation".
        height, width: of the image.
        ignore_value: of pixels that do not count.

    Raises:
        UserError: an object has no valid mask.
    """
    highest = max((item["category_id"] for item in annotations), default=0) + 1
    labels = np.zeros((height, width), np.uint8 if max(highest, ignore_value) < 256 else np.int32)
    drawn: list[tuple[int, Crop]] = []
    for item in annotations:
        mask = item.get("segmentation")
        fault = mask_fault(mask, height, width)
        if fault:
            raise UserError(f"annotation id {item.get('id')} cannot be used ({fault})")
        if isinstance(mask, dict):
            crop = crop_of_rle(compressed(mask, height, width))
        else:
            assert mask is not None
            crop = crop_of_polygons(mask, height, width)
        drawn.append((ignore_value if item.get("iscrowd") else item["category_id"] + 1, crop))
    # Crowds first; sorting is stable, so that of equal areas the later one is on top.
    drawn.sort(key=lambda entry: (entry[0] != ignore_value, -int(entry[1].pixels.sum())))
    for label, crop in drawn:
        rows, columns = crop.pixels.shape
        part = labels[crop.top : crop.top + rows, crop.left : crop.left + columns]
        part[crop.pixels] = label
    return labels


def class_palette(num_classes: int) -> list[Color]:
    """Return a color for each class index, the same for any number of classes.

    They are those of Pascal VOC: the bits of the index, three at a time from the lowest on, become
    the bits of red, green and blue, from the highest on. Up to 256 classes differ.
    """
    palette = []
    for index in range(num_classes):
        color, bits = [0, 0, 0], index
        for place in range(7, -1, -1):
            for channel in range(3):
                color[channel] |= (bits >> channel & 1) << place
            bits >>= 3
        palette.append((color[0], color[1], color[2]))
    return palette


def palette_of(path: str | os.PathLike) -> list[Color]:
    """Return the palette of a label map up to the first color that repeats; [] without one."""
    try:
        with Image.open(path, formats=FORMATS) as image:
            values = (image.getpalette("RGB") if image.mode == "P" else None) or []
    except Exception:  # damaged, which read_values reports
        return []
    palette: list[Color] = []
    for start in range(0, len(values) - 2, 3):
        color = (values[start], values[start + 1], values[start + 2])
        if color in palette:
            break
        palette.append(color)
    return palette


def label_map_name(name: str) -> str:
    """Return the file name of the label map of an image: with the suffix .png, and unique."""
    return name if name.lower().endswith(".png") else f"{name}.png"


def save_labels(path: Path, classes: np.ndarray, palette: Sequence[Color] = ()) -> None:
    """Write class indices (H, W) as a PNG of 8 bits, or of 16 bits if there are more than 256.

    Args:
        path: to write.
        classes: of the pixels.
        palette: color of each class; used for 8 bits.
    """
    dtype = np.uint8 if classes.max(initial=0) < 256 else np.uint16
    image = Image.fromarray(classes.astype(dtype))
    if palette and dtype == np.uint8:
        image.putpalette(np.array(palette[:256], np.uint8).tobytes())
    with atomic_write(path) as partial:
        image.save(partial, "PNG")
