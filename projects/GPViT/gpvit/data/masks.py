"""Checks of polygon and RLE masks before they are passed to pycocotools, and RLE decoding."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from pycocotools import mask as mask_api

from ..utils.text import short_repr

# Limit on the total outline of an object: OUTLINE_SIDES times (height + width) of its image, and
# at most OUTLINE_PIXELS. pycocotools allocates 80 bytes per pixel of outline without checking how
# much memory there is. No object in COCO or in the custom datasets that were tested exceeds a
# factor of 4; an outline around every single pixel of a 125 x 125 image reaches 250.
OUTLINE_SIDES, OUTLINE_PIXELS = 250, 10_000_000


class Outline(NamedTuple):
    """A checked polygon.

    fault: what is wrong with it, or "".
    points: its coordinates x, y, x, y, ...
    extent: its bounding box x1, y1, x2, y2.
    """

    fault: str
    points: np.ndarray = np.empty(0)
    extent: Sequence[float] = ()


def polygon_faults(polygons: list[Any], height: int, width: int) -> list[str]:
    """Return what is wrong with each polygon of an object, or "".

    This includes polygons that exceed the limit on the outline of the object.

    Args:
        polygons: of one object.
        height, width: of its image.
    """
    outlines = [outline_of(polygon, height, width) for polygon in polygons]
    return with_too_long(outlines, height, width)


def with_too_long(outlines: list[Outline], height: int, width: int) -> list[str]:
    """Return the faults of an object's polygons, including those that exceed the outline limit."""
    limit = min(OUTLINE_SIDES * (height + width), OUTLINE_PIXELS)
    faults = [outline.fault for outline in outlines]
    # A cheap upper bound: no step around a polygon is longer than the longer side of its extent.
    # Nearly all objects are within the limit by this bound, and are not measured exactly.
    bound = 0.0
    for outline in outlines:
        if not outline.fault:
            x1, y1, x2, y2 = outline.extent
            bound += len(outline.points) / 2 * (1 + max(x2 - x1, y2 - y1))
    if bound <= limit:
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
    """Check a polygon of an object in an image of this size, except for its length."""
    numbers = as_numbers(polygon)
    if numbers is None:
        nested = isinstance(polygon, list) and polygon
        if nested and all(isinstance(point, list) for point in polygon):
            return Outline("points in nested lists, not x, y, x, y")
        return Outline("not a list of numbers")
    if len(numbers) % 2:
        return Outline("an odd number of coordinates")
    if len(numbers) < 6:
        return Outline("fewer than three points")
    if not np.isfinite(numbers).all():
        return Outline("NaN or infinity")
    xs, ys = polygon[0::2], polygon[1::2]  # on short lists, Python's min and max beat NumPy's
    extent = (min(xs), min(ys), max(xs), max(ys))
    for low, high, side in ((extent[0], extent[2], width), (extent[1], extent[3], height)):
        if low == high or high <= 0 or low >= side:
            return Outline("no area inside of the image")
        if low < -side or high > 2 * side:
            return Outline("further outside of the image than the image is large")
    return Outline("", numbers, extent)


def outline_length(polygon: np.ndarray) -> float:
    """Return the number of steps in pixels that pycocotools takes around a polygon (x, y, ...).

    An edge takes max(abs(dx), abs(dy)) steps, and each point one more.
    """
    points = polygon.reshape(-1, 2)
    edges = np.abs(points - np.roll(points, 1, axis=0))  # (n, 2), the closing edge included
    return float(edges.max(axis=1).sum()) + len(points)


def mask_fault(mask: Any, height: int, width: int) -> str:
    """Return why a mask must not be passed to pycocotools, or "".

    For masks that did not pass the checks of annotation files.

    Args:
        mask: polygons or RLE, of a dataset that was registered with Detectron2 by other means.
        height, width: of its image.
    """
    if not mask:
        return "it has no mask"
    if isinstance(mask, dict):
        fault = run_length_fault(mask, height, width)
        if not fault and not all(type(side) is int for side in mask["size"]):  # 40.0 == 40
            fault = f"size {short_repr(mask['size'])}, which must be integers"
        return f"its mask has {fault}" if fault else ""
    if not isinstance(mask, list):
        return "its mask is neither polygons nor RLE"
    polygons = []
    for polygon in mask:
        numbers = as_numbers(polygon.tolist() if isinstance(polygon, np.ndarray) else polygon)
        if numbers is None:
            return "a polygon is not a list of numbers"
        polygons.append(numbers[: len(numbers) // 2 * 2])  # pycocotools ignores an odd last number
    return outlines_fault(polygons, min(OUTLINE_SIDES * (height + width), OUTLINE_PIXELS))


def outlines_fault(polygons: Sequence[np.ndarray], limit: int = OUTLINE_PIXELS) -> str:
    """Return why polygons have an outline of more than ``limit`` pixels, or ""."""
    for polygon in polygons:
        if not (np.abs(polygon) <= OUTLINE_PIXELS).all():  # also catches NaN
            return "a polygon is not finite or far outside of the image"
    if sum(map(outline_length, polygons)) > limit:
        return f"its polygons have an outline of more than {limit} pixels"
    return ""


def run_length_fault(mask: dict[str, Any], height: int, width: int) -> str:
    """Return what is wrong with an RLE for an image of this size, or "".

    pycocotools reads out of bounds if the runs cover less than the image.
    """
    size, counts = mask.get("size"), mask.get("counts")
    if size != [height, width]:
        return f"size {short_repr(size)}, the image has {[height, width]}"
    pixels = height * width
    if isinstance(counts, (str, bytes)):
        # At most one run per pixel and an empty first one, of up to 7 characters each.
        lengths = run_lengths(counts) if len(counts) <= 7 * (pixels + 1) else None
    else:
        lengths = as_numbers(counts)
    if lengths is None or not ((lengths >= 0) & (lengths <= pixels)).all():
        fills = False
    else:
        fills = lengths.sum() == pixels and not (lengths % 1).any()
    return "" if fills else "run lengths that do not fill the image"


def compressed(mask: dict[str, Any], height: int, width: int) -> dict[str, Any]:
    """Convert a valid RLE to the form that pycocotools takes.

    Its size becomes integers (not 40.0), and its run lengths a compressed string.
    """
    counts = mask["counts"]
    if isinstance(counts, (str, bytes)):
        return {"size": [height, width], "counts": counts}
    rle = {"size": [height, width], "counts": list(map(int, counts))}
    return mask_api.frPyObjects(rle, height, width)


def run_lengths(text: str | bytes) -> np.ndarray | None:
    """Decode the run lengths of a compressed RLE, or return None if the string is malformed.

    This is a vectorized ``rleFrString`` of pycocotools. A number is a sequence of characters
    with codes 48 + c, where c has 6 bits:

        bit 5      another character of the same number follows
        bits 4-0   a digit in base 32, least significant digit first

    Bit 4 of the last character is the sign (two's complement). The first three numbers are run
    lengths; the others are differences from the run length two positions before.
    """
    text = text.encode(errors="surrogatepass") if isinstance(text, str) else text
    codes = np.frombuffer(text, np.uint8).astype(np.int64) - 48
    # A set bit 5 in the last character means that the string is truncated.
    if len(codes) == 0 or codes.min() < 0 or codes.max() > 63 or codes[-1] & 32:
        return None
    # First and last character of each number, and how many it has: (n,) each.
    ends = np.flatnonzero((codes & 32) == 0)
    starts = np.append(0, ends[:-1] + 1)
    digits = ends - starts + 1
    if digits.max() > 7:  # 7 digits hold the 32 bits of a run length
        return None
    place = np.arange(len(codes)) - np.repeat(starts, digits)  # of each digit in its number
    lengths = np.add.reduceat((codes & 31) << (5 * place), starts)
    # Sign extension: subtract 2 to the number of bits read.
    lengths -= np.where(codes[ends] & 16, 1 << (5 * digits), 0)
    # Undo the differences, separately for odd and even positions; position 0 is in none of them.
    lengths[1::2] = lengths[1::2].cumsum()
    lengths[2::2] = lengths[2::2].cumsum()
    return lengths


def as_numbers(value: Any) -> np.ndarray | None:
    """Convert a flat list of numbers to a (n,) float64 array; return None for anything else."""
    if not isinstance(value, list):
        return None
    try:
        array = np.asarray(value)
    except ValueError:  # it contains lists of different lengths
        return None
    return array.astype(np.float64) if array.ndim == 1 and array.dtype.kind in "iuf" else None
