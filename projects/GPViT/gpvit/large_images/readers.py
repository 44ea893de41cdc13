"""Reading images of any size: decoded once, part by part, and then read by regions.

Up to MAX_PIXELS, any file that :mod:`gpvit.data.image_io` reads, with the same pixels. Larger ones:

    TIFF, also BigTIFF and pyramids, of which the first page is read: gray of 8 or 16 bits or
        floats, RGB of 8 or 16 bits, RGB of 8 bits with alpha, palettes, and YCbCr compressed by
        JPEG. Memory holds a tile or strip at a time.
    other formats, which Pillow decodes in memory: up to 1 gigapixel.
    .npy files and arrays, (H, W, 3), RGB, uint8, which are mapped into memory as they are.

Refused: files whose pixels have more than 200 times their size, which a photo never reaches
(decompression bombs); TIFFs with tiles or strips of more than 256 MiB.
"""

import io
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from ..data import image_io
from ..data.image_io import (
    TURNS,
    blend_over_white,
    read_image,
    require_0_to_1,
    rounded,
    scale_gray,
    size_of,
    white_of,
)
from ..data.tiff import (
    FLOAT,
    OLD_JPEG,
    JPEG,
    PALETTE,
    PREMULTIPLIED,
    RGB,
    STRAIGHT,
    TAGS,
    UNSIGNED,
    WHITE_IS_ZERO,
    YCBCR,
    Page,
    Refused,
    damaged,
)
from ..streaming.storage import mapped_arrays
from ..utils.errors import UserError
from ..utils.text import PATH_LIMIT, one_line

GIGAPIXEL = 2**30
MAX_RATIO = 200  # of decoded to stored bytes
LARGEST_PART = 2**28  # bytes of a tile or strip, which is decoded in memory
OWN_SIZES = {JPEG, 50001}  # compressions whose data has a size of its own; the second is WebP
BUFFER = 2**24  # compressed bytes that are read at once
SCAN = 512  # rows that are looked at together


def open_large(source: Any, folder: str | os.PathLike | None = None) -> Any:
    """Open an image of any size, which is read by regions.

    Args:
        source: path of an image or .npy file, an array (H, W, 3), RGB, uint8, or another object
            that returns such arrays for ``source[rows, columns]`` and has a ``shape``.
        folder: for the decoded pixels of large files, which have no name there and vanish with the
            image; by default that of :mod:`tempfile`.

    Returns:
        An object with ``shape`` (H, W, 3) that returns (h, w, 3), RGB, uint8, for
        ``pixels[rows, columns]`` with two slices.

    Raises:
        UserError: it cannot be read, or there is too little space in the folder.
    """
    if isinstance(source, np.ndarray):
        return _checked(source, "an array")
    if not isinstance(source, str | os.PathLike):
        if getattr(source, "shape", ())[2:] != (3,):
            raise UserError(f"an image must be a path or (height, width, 3), got {type(source)}")
        return source
    path = Path(source)
    name = one_line(path, PATH_LIMIT)
    if path.suffix.lower() == ".npy" and path.is_file():
        try:
            array = np.load(path, mmap_mode="r", allow_pickle=False)
        except Exception as error:  # NumPy raises errors of many types on damaged headers
            raise UserError(f"{name}: cannot be read: {one_line(error)}") from None
        return _checked(array, name)
    with _without_pillow_limit():
        try:
            page = _page_of(path)
            height, width = (page.height, page.width) if page else size_of(path)
            if height * width <= image_io.MAX_PIXELS:
                return read_image(path)
            return _open_larger(path, page, height * width, folder)
        except Refused as reason:
            raise UserError(f"{name}: cannot be read: {reason}") from None
        except OSError as error:
            raise UserError(f"{name}: cannot be read: {error.strerror or error}") from None


def _checked(array: np.ndarray, name: str) -> np.ndarray:
    if array.ndim != 3 or array.shape[2] != 3 or array.dtype != np.uint8 or not array.size:
        raise UserError(
            f"{name} must be (height, width, 3), RGB, uint8, got {array.shape} of {array.dtype}"
        )
    return array


@contextmanager
def _without_pillow_limit() -> Iterator[None]:
    """Let Pillow open images of any size; :func:`_require_no_bomb` has the limit."""
    before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


def _page_of(path: Path) -> Page | None:
    """Return the first page of a TIFF, None for other files; raise a UserError if it is damaged."""
    if not path.is_file():
        return None
    try:
        with warnings.catch_warnings(), path.open("rb") as file:
            warnings.simplefilter("ignore")  # Pillow warns about damaged tags
            return Page.read(file)
    except Exception:  # of many types
        read_image(path)  # raises an error with the reason
        raise


def _open_larger(
    path: Path, page: Page | None, pixels: int, folder: str | os.PathLike | None
) -> Any:
    """Open a file of more than MAX_PIXELS."""
    samples = page.samples * max(page.bits // 8, 1) if page else 3
    size = path.stat().st_size
    if pixels * samples > MAX_RATIO * size:
        raise Refused(
            f"{pixels / 1e6:.0f} million pixels in {size / 1e6:.1f} MB are a decompression bomb or "
            "show nothing"
        )
    if page:
        page.require_readable()
        _require_supported(page)
        return _Samples.of(path, page, folder)
    if pixels > GIGAPIXEL:
        raise Refused(
            f"it has {pixels / 1e6:.0f} million pixels and is no TIFF, so that it would be decoded "
            "in memory; convert it to a tiled TIFF"
        )
    return read_image(path, GIGAPIXEL)


class _Samples:
    """The samples of a TIFF as they are stored, which are converted to RGB where they are read.

    Args:
        samples: (H, W) or (H, W, channels).
        convert: a region of them to (h, w, 3), uint8.
    """

    def __init__(self, samples: np.ndarray, convert: Callable[[np.ndarray], np.ndarray]) -> None:
        self.samples, self.convert = samples, convert
        self.shape = (*samples.shape[:2], 3)

    def __getitem__(self, index: tuple[slice, slice]) -> np.ndarray:
        return self.convert(np.ascontiguousarray(self.samples[index]))

    @classmethod
    def of(cls, path: Path, page: Page, folder: str | os.PathLike | None) -> "_Samples":
        samples = _decoded(path, page, folder)
        convert = _conversion(samples, page)
        turn = TURNS.get(page.tags.get(TAGS["Orientation"], 1))
        image = cls(turn(samples) if turn else samples, convert)
        if _has_alpha(page):
            image.require_visible()
        return image

    def require_visible(self) -> None:
        """Raise Refused if all of it is white, or becomes white because it is transparent."""
        for top in range(0, self.shape[0], SCAN):
            if (self[top : top + SCAN, :] != 255).any():
                return
        raise Refused(
            "it is white or transparent everywhere, so that nothing can be seen; save it without "
            "alpha"
        )


def _decoded(path: Path, page: Page, folder: str | os.PathLike | None) -> np.ndarray:
    """Decode the first page of a TIFF, each tile or strip once: (H, W) or (H, W, channels)."""
    tifffile = _import_tifffile()
    try:
        with tifffile.TiffFile(path) as file:
            first = file.pages[0]
            _require_same(first, page)
            ends = map(sum, zip(first.dataoffsets, first.databytecounts))
            if max(ends) > path.stat().st_size:
                raise damaged("it ends before its pixels do")
            if first.is_memmappable and not page.planes:
                return tifffile.memmap(path, page=0, mode="r")
            part = first.tile or (first.rowsperstrip, page.width)
            depth = page.samples * max(page.bits // 8, 1)
            if part[0] * part[1] * depth > LARGEST_PART:
                raise Refused(
                    f"it is stored in parts of {part[1]} x {part[0]} pixels, too large to be "
                    "decoded in memory; save it in tiles (gdal_translate -co TILED=YES)"
                )
            shape = (page.height, page.width, page.samples)
            (samples,) = mapped_arrays(folder, [shape], np.dtype(first.dtype).newbyteorder("="))
            tables = first.jpegtables
            for content, number in file.filehandle.read_segments(
                first.dataoffsets, first.databytecounts, buffersize=BUFFER, flat=True
            ):
                if page.compression in OWN_SIZES:
                    _require_size(content, part)
                pixels, index, size = first.decode(content, number, jpegtables=tables)
                plane, _, top, left, _ = index
                # Tiles may extend beyond the image.
                rows = slice(top, min(top + size[1], page.height))
                columns = slice(left, min(left + size[2], page.width))
                channels = slice(plane, plane + 1) if page.planes else slice(None)
                samples[rows, columns, channels] = pixels[
                    0, : rows.stop - top, : columns.stop - left
                ]
    except (Refused, OSError):
        raise
    except Exception as error:  # decoders raise errors of many types on damaged files
        raise damaged(one_line(error)) from None
    return samples[..., 0] if page.samples == 1 else samples


def _require_same(first: Any, page: Page) -> None:
    """Raise Refused if tifffile understands a page in another way than Pillow."""
    found = first.imagelength, first.imagewidth, first.samplesperpixel, first.imagedepth
    if found != (page.height, page.width, page.samples, 1) or first.tiledepth != 1:
        raise damaged("its tags contradict each other")


def _require_size(content: bytes, part: tuple[int, int]) -> None:
    """Raise Refused if an image that is a tile or strip claims to be larger than that.

    Its decoder takes memory for the size that its header claims.
    """
    with Image.open(io.BytesIO(content), formats=["JPEG", "WEBP"]) as image:
        if image.height > part[0] or image.width > part[1]:
            raise damaged(f"a part of {part[1]} x {part[0]} pixels has {image.size}")


def _has_alpha(page: Page) -> bool:
    """Whether it is RGB with alpha. A fourth channel of unknown meaning is alpha."""
    return page.color == RGB and (
        page.extra[:1] in ((STRAIGHT,), (PREMULTIPLIED,)) or (page.samples == 4 and not page.extra)
    )


def _require_supported(page: Page) -> None:
    """Raise Refused for a kind of TIFF that only :func:`.read_image` reads."""
    is_unsigned = page.format == UNSIGNED
    is_opaque = not _has_alpha(page)
    depths = (8, 16) if page.is_gray or (page.color == RGB and is_opaque) else (8,)
    is_plain = page.color in (RGB, YCBCR, PALETTE) or (page.is_gray and not page.num_extra)
    supported = is_plain and is_unsigned and page.bits in depths
    supported &= is_opaque or page.extra[:1] in ((), (STRAIGHT,))
    # tifffile converts YCbCr only where JPEG does so.
    supported &= page.color != YCBCR or page.compression == JPEG
    supported &= page.compression != OLD_JPEG
    if not supported and not (page.is_gray and page.format == FLOAT and not page.num_extra):
        raise Refused(
            f"it is a TIFF of {page} with more than {image_io.MAX_PIXELS // 10**6} million pixels, "
            "which is not supported; save it as 8-bit RGB"
        )


def _conversion(samples: np.ndarray, page: Page) -> Callable[[np.ndarray], np.ndarray]:
    """Return what converts samples to RGB, uint8, as :mod:`gpvit.data.image_io` does it."""
    is_8_bit = page.bits == 8
    if page.is_gray:
        gray = _gray_conversion(samples, page)
        return (lambda part: 255 - gray(part)) if page.color == WHITE_IS_ZERO else gray
    if page.color == PALETTE:
        color_map = page.tags.get(TAGS["ColorMap"], ())
        if len(color_map) != 3 * 2**page.bits:
            raise damaged(f"its palette has {len(color_map)} values")
        colors = np.array(color_map).reshape(3, -1).T
        colors = (colors // 256 if colors.max() > 255 else colors).astype(np.uint8)
        return lambda part: colors[part]
    if _has_alpha(page):
        return lambda part: blend_over_white(part[..., :3], part[..., 3] / np.float32(255))
    if is_8_bit:
        return lambda part: part[..., :3]
    factor = np.float32(255 / white_of(_range(samples[..., :3])[1]))
    return lambda part: rounded(np.minimum(part[..., :3] * factor, 255))


def _gray_conversion(samples: np.ndarray, page: Page) -> Callable[[np.ndarray], np.ndarray]:
    """Return what converts gray, of which 0 or the minimum is black."""
    if page.bits == 8:
        return lambda part: np.repeat(part[..., None], 3, axis=2)
    low, high = _range(samples)
    if page.format != FLOAT:
        return lambda part: scale_gray(part, low, high)
    require_0_to_1(low, high)
    # Rounded as by read_image, which computes in the precision of the file.
    return lambda part: np.repeat(rounded(part * np.float32(255))[..., None], 3, axis=2)


def _range(samples: np.ndarray) -> tuple[Any, Any]:
    """Return the smallest and the largest value, part by part."""
    low, high = samples[0].min(), samples[0].max()
    for top in range(0, len(samples), SCAN):
        part = samples[top : top + SCAN]
        low, high = np.minimum(low, part.min()), np.maximum(high, part.max())
    return low, high


def _import_tifffile() -> Any:
    try:
        import imagecodecs  # noqa: F401  # decodes what tifffile reads
        import tifffile
    except ImportError:
        raise Refused(
            f"TIFFs of more than {image_io.MAX_PIXELS // 10**6} million pixels are read by "
            "tifffile: pip install tifffile imagecodecs"
        ) from None
    return tifffile


class Georeference(NamedTuple):
    """Where the pixels of a GeoTIFF are.

    Attributes:
        transform: from column and row to the coordinates of the file, rasterio's ``Affine``.
        crs: their coordinate reference system.
    """

    transform: Any
    crs: Any

    def to_lonlat(self, points: np.ndarray) -> np.ndarray:
        """Return longitudes and latitudes (WGS 84) of pixels: (N, 2), x and y -> (N, 2)."""
        from rasterio.warp import transform

        a, b, c, d, e, f, *_ = self.transform  # "@" needs affine 3
        column, row = points.T
        x, y = a * column + b * row + c, d * column + e * row + f
        return np.stack(transform(self.crs, "EPSG:4326", x, y), axis=1)


def georeference(path: str | os.PathLike) -> Georeference:
    """Read where the pixels of a GeoTIFF are, by rasterio.

    Raises:
        UserError: rasterio is not installed, or the file is no GeoTIFF.
    """
    name = one_line(Path(path), PATH_LIMIT)
    page = _page_of(Path(path))
    if not page:  # GDAL also understands names that are not of files, such as addresses
        raise UserError(f"{name}: is not a TIFF and has no map coordinates; write --geojson image")
    if page.tags.get(TAGS["Orientation"], 1) in TURNS:
        # GDAL ignores the orientation, and so do the map coordinates.
        raise UserError(f"{name}: has map coordinates and is rotated; save it upright")
    try:
        import rasterio
    except ImportError:
        raise UserError("map coordinates are read by rasterio: pip install rasterio") from None
    try:
        # Only this format, and no other files.
        with (
            rasterio.Env(GDAL_DISABLE_READDIR_ON_OPEN="EMPTY_DIR", GDAL_PAM_ENABLED="NO"),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            with rasterio.open(os.path.abspath(path), driver="GTiff") as file:
                transform, crs = file.transform, file.crs
    except rasterio.errors.RasterioError as error:
        raise UserError(f"{name}: cannot be read as a GeoTIFF: {one_line(error)}") from None
    if crs is None or transform.is_identity:
        raise UserError(f"{name}: it has no map coordinates; write --geojson image")
    return Georeference(transform, crs)
