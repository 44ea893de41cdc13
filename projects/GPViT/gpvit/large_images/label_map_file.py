"""Label maps of any size as tiled TIFFs, which are written tile by tile."""

import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from ..data.label_maps import Color
from ..streaming.segmenter import TILE, ClassesOfTile
from ..utils.errors import UserError
from ..utils.files import atomic_write

# Bytes of pixels up to which offsets of 32 bits are enough, whatever compression and tags add.
CLASSIC_LIMIT = 2**32 - 2**28


def save_label_map_tiles(
    path: str | os.PathLike,
    tiles: Iterable[ClassesOfTile],
    height: int,
    width: int,
    palette: Sequence[Color],
    num_classes: int,
) -> None:
    """Write class indices as a tiled TIFF, compressed by Deflate, while the tiles are computed.

    It is of 8 bits, with the palette if there is one, or of 16 bits if there are more than 256
    classes; and a BigTIFF if it may not fit into a TIFF. One tile is in memory. The file replaces
    an older one only when it is complete.

    Args:
        path: to write.
        tiles: as :func:`.segment` yields them: of TILE x TILE pixels, row by row.
        height, width: of the image.
        palette: color of each class; used for 8 bits.
        num_classes: more than any of the class indices.

    Raises:
        UserError: tifffile is not installed, or the file cannot be written.
        ValueError: the tiles are others.
    """
    tifffile = _import_tifffile()
    dtype = np.dtype(np.uint8 if num_classes <= 256 else np.uint16)
    colors = None
    if palette and dtype == np.uint8:
        colors = np.zeros((3, 256), np.uint16)
        # The colors of a TIFF have 16 bits: 255 becomes 65535.
        colors[:, : len(palette)] = 257 * np.array(palette[:256], np.uint16).T
    sides = [-(-side // TILE) * TILE for side in (height, width)]  # rounded up to tiles
    with atomic_write(path) as partial:
        tifffile.imwrite(
            partial,
            _padded(tiles, height, width, dtype),
            shape=(height, width),
            dtype=dtype,
            tile=(TILE, TILE),
            photometric="minisblack" if colors is None else "palette",
            colormap=colors,
            compression="zlib",
            bigtiff=sides[0] * sides[1] * dtype.itemsize > CLASSIC_LIMIT,
            metadata=None,
            maxworkers=1,  # tiles are computed in this thread, and one at a time is kept
        )


def _import_tifffile() -> Any:
    try:
        import tifffile
    except ImportError:
        raise UserError(
            "label maps of large images are written by tifffile: pip install tifffile"
        ) from None
    return tifffile


def _padded(
    tiles: Iterable[ClassesOfTile], height: int, width: int, dtype: np.dtype
) -> Iterator[np.ndarray]:
    """Yield the pixels of tiles, filled up with zeros to TILE x TILE."""
    corners = itertools.product(range(0, height, TILE), range(0, width, TILE))
    for (top, left), (rows, columns, classes) in zip(corners, tiles, strict=True):
        size = min(TILE, height - top), min(TILE, width - left)
        if (rows.start, columns.start) != (top, left) or classes.shape != size:
            raise ValueError(f"got another tile than that of {size} pixels at {(top, left)}")
        pixels = np.zeros((TILE, TILE), dtype)
        pixels[: size[0], : size[1]] = classes.numpy()
        yield pixels
