"""Label maps: images whose pixels are classes.

A label map is a PNG of class indices: gray, of 8 or 16 bits, or with a palette, whose colors do not
matter. Its values minus an offset are the classes; what is then negative is ignored.
"""

import os
from pathlib import Path

import numpy as np
from PIL import Image

from ..utils.errors import UserError, reason_of
from ..utils.files import atomic_write
from ..utils.text import PATH_LIMIT, one_line

INDEX_MODES = ("1", "L", "P", "I", "I;16", "I;16B")  # of Pillow: one number per pixel


def read_labels(path: str | os.PathLike, *, offset: int = 0, ignore_value: int = 255) -> np.ndarray:
    """Read the classes of an image's pixels.

    Args:
        path: of the label map.
        offset: what is subtracted from its values: 1 if class 0 is stored as 1, as in ADE20K.
        ignore_value: of pixels that do not count; not changed by the offset.

    Returns:
        (H, W), uint8 or int32: class indices or ``ignore_value``.

    Raises:
        UserError: it cannot be read, or does not have one number per pixel.
    """
    name = one_line(Path(path), PATH_LIMIT)
    try:
        with Image.open(path, formats=["PNG", "TIFF", "BMP", "GIF", "WEBP"]) as image:
            mode = image.mode
            values = np.asarray(image) if mode in INDEX_MODES else None
    except Exception as error:  # decoders raise errors of many types on damaged files
        raise UserError(f"{name}: cannot be read as a label map ({reason_of(error)})") from None
    if values is None:
        raise UserError(
            f"{name}: is a color image ({mode}), not a label map with one class index per pixel; "
            "convert it"
        )
    values = values.astype(np.uint8 if values.dtype in (np.uint8, bool) else np.int32)
    if not offset:
        return values
    shifted = values.astype(np.int32) - offset
    shifted[(shifted < 0) | (values == ignore_value)] = ignore_value
    return shifted.astype(np.uint8) if values.dtype == np.uint8 else shifted


def save_labels(path: Path, classes: np.ndarray) -> None:
    """Write class indices (H, W) as a PNG of 8 bits, or of 16 bits if there are more than 256."""
    dtype = np.uint8 if classes.max(initial=0) < 256 else np.uint16
    with atomic_write(path) as partial:
        Image.fromarray(classes.astype(dtype)).save(partial, "PNG")
