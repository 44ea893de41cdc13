"""Polygons and RLE: what is wrong with them, before they go to pycocotools."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from pycocotools import mask as mask_api

from ..utils.text import shown

# How long the outlines of an object may be, in times of the image's height and width together, and at most in pixels.
# pycocotools takes 80 bytes for a pixel of outline and does not check whether there is so much memory. In COCO and the
# data sets at hand no object comes to more than 4 times; an outline around every single pixel of 125 x 125 comes to 250.
OUTLINE_SIDES, OUTLINE_PIXELS = 250, 10_000_000


class Outline(NamedTuple):
    """What is wrong with a polygon, or ""; its numbers, and the corners x1, y1, x2, y2 around it."""

    fault: str
    points: np.ndarray = np.empty(0)
    extent: Sequence[float] = ()


def polygon_faults(polygons: list[Any], height: int, width: int) -> list[str]:
    """What is wrong with each polygon of an object in an image of that size, or ""; what is too long for the others, too."""
    return with_too_long(
        [outline_of(polygon, height, width) for polygon in polygons], height, width
    )


def with_too_long(outlines: list[Outline], height: int, width: int) -> list[str]:
    """The faults of an object's polygons, with those that are too long for the others."""
    limit = min(OUTLINE_SIDES * (height + width), OUTLINE_PIXELS)
    faults = [outline.fault for outline in outlines]
    # No step is longer than the longer side; what is short by that need not be measured.
    good = [(len(outline.points) / 2, outline.extent) for outline in outlines if not outline.fault]
    if sum(count * (1 + max(x2 - x1, y2 - y1)) for count, (x1, y1, x2, y2) in good) <= limit:
        return faults
    total = 0.0
    for number, outline in enumerate(outlines):
        if not outline.fault:
            length = outline_length(outline.points)
            if total + length > limit:
                faults[number] = f"an outline of more than {limit} pixels"
            else:
                total += length
    return faults


def outline_of(polygon: Any, height: int, width: int) -> Outline:
    numbers = as_numbers(polygon)
    if numbers is None:
        pairs = (
            isinstance(polygon, list)
            and polygon
            and all(isinstance(point, list) for point in polygon)
        )
        return Outline(
            "points in lists of their own, not x, y, x, y" if pairs else "not a list of numbers"
        )
    if len(numbers) % 2:
        return Outline("an odd number of coordinates")
    if len(numbers) < 6:
        return Outline("fewer than three points")
    if not np.isfinite(numbers).all():
        return Outline("NaN or infinity")
    xs, ys = polygon[0::2], polygon[1::2]  # of lists, these are faster than NumPy's
    extent = (min(xs), min(ys), max(xs), max(ys))
    for low, high, side in ((extent[0], extent[2], width), (extent[1], extent[3], height)):
        if low == high or high <= 0 or low >= side:
            return Outline("no area inside of the image")
        if low < -side or high > 2 * side:
            return Outline("further outside of the image than the image is large")
    return Outline("", numbers, extent)


def outline_length(polygon: np.ndarray) -> float:
    """How many steps pycocotools takes around a polygon (x, y, x, y, ...), in pixels; each point counts for one, too."""
    points = polygon.reshape(-1, 2)
    return float(np.abs(points - np.roll(points, 1, axis=0)).max(axis=1).sum()) + len(points)


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
        numbers = as_numbers(polygon.tolist() if isinstance(polygon, np.ndarray) else polygon)
        if numbers is None:
            return "a polygon is no list of numbers"
        polygons.append(numbers[: len(numbers) // 2 * 2])
    return outlines_fault(polygons, min(OUTLINE_SIDES * (height + width), OUTLINE_PIXELS))


def outlines_fault(polygons: Sequence[np.ndarray], limit: int = OUTLINE_PIXELS) -> str:
    """What would make pycocotools ask for more memory than for ``limit`` pixels of outline, or ""."""
    if not all(
        (np.abs(polygon) <= OUTLINE_PIXELS).all() for polygon in polygons
    ):  # NaN, too, is not
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
        lengths = (
            run_lengths(counts) if len(counts) <= 7 * (height * width + 1) else None
        )  # 7 characters for a pixel
    else:
        lengths = as_numbers(counts)
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
    return mask_api.frPyObjects(
        {"size": [height, width], "counts": list(map(int, counts))}, height, width
    )


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


def as_numbers(value: Any) -> np.ndarray | None:
    """A list of numbers, and of nothing else, as (n,) float64."""
    if not isinstance(value, list):
        return None
    try:
        array = np.asarray(value)
    except ValueError:  # lists of different lengths in it
        return None
    return array.astype(np.float64) if array.ndim == 1 and array.dtype.kind in "iuf" else None
