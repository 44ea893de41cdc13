"""Reading image files as RGB: one defined conversion for each kind of file, or an error.

RGB, gray, palette, YCbCr and CMYK of up to 8 bits: converted to RGB by Pillow. Color profiles are
not applied.

Alpha, including that of a palette or of a single transparent color: blended over white, as
browsers display it. Refused if nothing remains visible.

One channel of integers that are deeper than 8 bits, or signed: the minimum of the image becomes 0
and its maximum 255, linearly, because instruments use only a part of the 16-bit range.

16-bit color, or 16 bits with alpha: 0 stays 0, and 2**n - 1 becomes 255, where n, 8 to 16, is the
smallest number of bits that holds the maximum of the image. So the colors are kept, and a photo
looks like its 8-bit version. CMYK: the upper 8 of 16 bits.

Floats: 0 to 1 becomes 0 to 255. Refused if a value is outside of this range or NaN, because black
and white are then undefined.

Orientation by EXIF (not XMP), and that of a TIFF: applied; (H, W) is the image as viewers display
it. Several frames or pages: the first.

TIFF: see :mod:`.tiff` for the supported kinds.

Refused: other color spaces (CIELAB, ...); JPEG of more than 8 bits; JPEG 2000 of less than 8 bits,
of more than 16, and of more than 8 if it is gray with alpha; other file formats; more than
MAX_PIXELS, before anything is decoded; truncated, damaged, empty and missing files.

The scale of an image of more than 8 bits depends on that image alone, and one bright pixel darkens
all others. To use a different scale, save 8-bit images.
"""

import errno
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import cv2
import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError
from PIL.ImageFile import ImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile

from ..utils.errors import UserError
from ..utils.files import atomic_write
from ..utils.text import PATH_LIMIT, one_line
from .tiff import (
    BGR_TO_RGB,
    FLOAT,
    PALETTE,
    PREMULTIPLIED,
    SIGNED,
    TAGS,
    UNSPECIFIED,
    WHITE_IS_ZERO,
    Page,
    Refused,
)

PNG = b"\x89PNG\r\n\x1a\n"  # signature
PNG_PIXEL_CHUNKS = (b"IHDR", b"tRNS", b"IDAT", b"IEND")  # chunks that determine the pixels
JPEG = b"\xff\xd8"  # signature: the marker SOI
# JPEG frame headers (SOFn), which have depth and size: 0xC0 to 0xCF except DHT, JPG and DAC.
FRAMES, JPEG_LS = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}, 0xF7
EXIF = ("exif", "Raw profile type exif")  # keys in Pillow's info; the second in PNG by ImageMagick
MAX_PIXELS = 100_000_000
NOT_OPENED = {errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.ELOOP}
# Other formats are excluded, because some of Pillow's readers run external programs.
FORMATS = ("JPEG", "PNG", "TIFF", "BMP", "GIF", "WEBP", "JPEG2000", "PPM")
# Pillow's JPEG reader also opens MPO, which is several JPEG images in one file.
SUFFIXES = {
    suffix for suffix, kind in Image.registered_extensions().items() if kind in (*FORMATS, "MPO")
}
PLAIN_MODES = ("1", "L", "P", "RGB", "RGBX", "YCbCr", "CMYK")  # Pillow's modes of up to 8 bits

# EXIF orientation -> what turns the stored pixels upright.
TURNS: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.swapaxes(0, 1),
    6: lambda pixels: np.rot90(pixels, -1),
    7: lambda pixels: pixels[::-1, ::-1].swapaxes(0, 1),
    8: lambda pixels: np.rot90(pixels),
}

TOO_LARGE = (
    f"it has more than {MAX_PIXELS // 1_000_000} million pixels; make it smaller, or let gpvit "
    "predict read it with --stream or --tile 1024"
)


def read_image(path: str | os.PathLike, max_pixels: int | None = None) -> np.ndarray:
    """Read an image file, converted as described above.

    Args:
        path: of the file.
        max_pixels: of an image that is not refused; by default MAX_PIXELS.

    Returns:
        (H, W, 3), RGB, uint8, which owns its memory.

    Raises:
        UserError: it cannot be read or converted; the message has the path, what is wrong and
            what to do.
    """
    try:
        with warnings.catch_warnings():
            # Pillow warns about damaged metadata, and about images smaller than MAX_PIXELS.
            warnings.filterwarnings("ignore", module="PIL")
            return _read(Path(path), MAX_PIXELS if max_pixels is None else max_pixels)
    except Refused as reason:
        problem = str(reason)
    except Image.DecompressionBombError:
        problem = TOO_LARGE
    except UnidentifiedImageError:
        with open(path, "rb") as file:
            jpeg_kind = _jpeg_kind(file.read(1_000_000))  # includes all headers
        if jpeg_kind:
            problem = f"it is a JPEG of {jpeg_kind}, which is not supported; save it as 8-bit RGB"
        else:
            formats = ", ".join(FORMATS)
            problem = (
                f"it is not an image in {formats}, or its header is damaged; convert or replace it"
            )
    except OSError as error:
        if error.errno in NOT_OPENED:
            problem = f"it cannot be opened ({error.strerror}); check its path and its permissions"
        else:
            problem = _damaged(error)
    except Exception as error:  # decoders raise errors of many types on damaged files
        problem = _damaged(error)
    raise UserError(f"{one_line(Path(path), PATH_LIMIT)}: cannot be read: {problem}")


def _damaged(error: Exception) -> str:
    details = " ".join(str(error).split())
    return f"it is damaged or incomplete ({type(error).__name__}: {details}); replace it"


def _read(path: Path, max_pixels: int) -> np.ndarray:
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError, ValueError):
        raise Refused("it does not exist; check the path") from None
    if not path.is_file():
        raise Refused("it is not a file; give the path of an image")
    if path.stat().st_size == 0:
        raise Refused("it is empty (0 bytes); replace it")
    with path.open("rb") as file:
        page = Page.read(file)
        if page:
            return _read_tiff(file, page, max_pixels)
        with Image.open(file, formats=FORMATS) as image:
            if image.width * image.height > max_pixels:
                raise Refused(TOO_LARGE)
            bits = _jpeg2000_bits(path.read_bytes()) if image.format == "JPEG2000" else 16
            if bits > 8 and _is_deep_color(image):
                image.load()  # raises an error if the file is damaged
                return _upright(image, _deep_color(path, bits))
            return _upright(image, _convert(image))


def _read_tiff(file: BinaryIO, page: Page, max_pixels: int) -> np.ndarray:
    if page.width * page.height > max_pixels:
        raise Refused(TOO_LARGE)
    page.require_readable()
    if not (page.is_deep_color or page.is_swapped_by_pillow):
        # Pass the file, not its path: given a path, Pillow maps an uncompressed file into memory,
        # and does so with the wrong width if its orientation exchanges the sides.
        try:
            with Image.open(file, formats=["TIFF"]) as image:
                return _from_pillow_tiff(image, page)
        except UnidentifiedImageError:
            if not page.is_deep_gray:
                raise page.not_read() from None
    file.seek(0)
    return np.ascontiguousarray(_from_samples(page.decode(file.read()), page))


def from_pillow(image: Image.Image) -> np.ndarray:
    """Convert an image that Pillow has opened to the result of :func:`read_image`.

    Of 16-bit color, Pillow keeps only the upper 8 bits.

    Raises:
        UserError: it cannot be converted.
    """
    try:
        _require_decoded_correctly(image)
        if not isinstance(image, TiffImageFile):
            return _upright(image, _convert(image))
        page = Page.of(image.tag_v2)
        page.require_readable()
        if page.is_swapped_by_pillow or (page.is_deep_color and page.planes):
            raise _decoded_incorrectly(f"it is a TIFF of {page}")
        # Without a name, Pillow does not map the file into memory (see _read_tiff).
        filename, image.filename = image.filename, ""
        try:
            return _from_pillow_tiff(image, page)
        finally:
            image.filename = filename
    except Refused as reason:
        raise UserError(f"the image cannot be used: {reason}") from None


def _require_decoded_correctly(image: Image.Image) -> None:
    """Raise Refused for an opened PNG or JPEG 2000 that Pillow decodes incorrectly."""
    if not isinstance(image, ImageFile):
        return
    if isinstance(image, PngImageFile) and _is_deep_color(image) and "transparency" in image.info:
        raise _decoded_incorrectly("it is 16-bit color with a transparent color")
    if image.format == "JPEG2000" and image.tile and image.fp:  # not loaded yet
        image.fp.seek(0)
        if _jpeg2000_bits(image.fp.read()) > 8 and _is_deep_color(image):
            # Pillow rounds to 8 bits, and the brightest values to 256, which overflow to 0.
            raise _decoded_incorrectly("it is a JPEG 2000 of deep color")


def _decoded_incorrectly(kind: str) -> Refused:
    return Refused(f"{kind}, which Pillow decodes incorrectly; pass its path")


def _from_pillow_tiff(image: Image.Image, page: Page) -> np.ndarray:
    """Convert a TIFF that Pillow has opened; Pillow itself applies the orientation of a TIFF."""
    image.info.pop("xmp", None)  # else Pillow would also apply the orientation in XMP
    try:
        image.load()
    except OSError as error:
        raise page.not_decoded(str(error)) from None
    if page.is_gray and not page.num_extra and (page.bits > 8 or page.format == SIGNED):
        # Pillow reads all 8-bit integers as unsigned and all 32-bit integers as signed.
        # Reinterpret the bits, in the byte order that the array has (it may be that of the file).
        values = np.asarray(image)
        if values.dtype.itemsize * 8 == page.bits:
            values = values.view(page.dtype.newbyteorder(values.dtype.byteorder))
        return _from_samples(values, page)
    if page.color == PALETTE:
        color_map = page.tags[TAGS["ColorMap"]]
        if max(color_map) < 256:
            # Some programs write 8-bit values where 16 bits are specified; Pillow would keep the
            # upper 8 bits, which are black. The map has all reds, then all greens, then all blues.
            return np.array(color_map, np.uint8).reshape(3, -1).T[np.asarray(image)]
    return np.ascontiguousarray(_convert(image))


def _from_samples(values: np.ndarray, page: Page) -> np.ndarray:
    """Convert TIFF samples deeper than 8 bits, or signed: (H, W) or (H, W, channels)."""
    if values.ndim == 3:
        values = values[..., : 3 if page.extra[:1] == (UNSPECIFIED,) else 4]
        return _from_color(values, premultiplied=page.extra[:1] == (PREMULTIPLIED,))
    pixels = _from_floats(values) if page.format == FLOAT else _from_deep_gray(values)
    return 255 - pixels if page.color == WHITE_IS_ZERO else pixels


def _upright(image: Image.Image, pixels: np.ndarray) -> np.ndarray:
    turn = TURNS.get(exif_orientation(image))
    return np.ascontiguousarray(turn(pixels) if turn else pixels)


def _convert(image: Image.Image) -> np.ndarray:
    """Convert an image that Pillow has opened to RGB; the orientation is not applied."""
    if isinstance(image, PngImageFile) and isinstance(image.info.get("transparency"), int):
        _scale_transparent_gray(image)
    image.load()
    if image.mode == "F":
        return _from_floats(np.asarray(image))
    if image.mode.startswith("I"):
        values = np.asarray(image)
        return _over_white(_from_deep_gray(values), values != image.info.get("transparency"))
    if image.has_transparency_data:
        # Pillow converts premultiplied gray ("La") to "LA" only.
        rgba = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
        pixels = np.asarray(rgba)
        return _over_white(pixels[..., :3], pixels[..., 3] / np.float32(255))
    if image.mode in PLAIN_MODES:
        return np.array(image.convert("RGB"))
    raise Refused(f"it has the color space {image.mode}; save it as RGB")


def _from_floats(values: np.ndarray) -> np.ndarray:
    require_0_to_1(values.min(), values.max())
    gray = rounded(values * np.float32(255))
    _require_contrast(values, gray)
    return np.repeat(gray[..., None], 3, axis=2)


def require_0_to_1(low: float, high: float) -> None:
    """Raise Refused if floats have no defined black and white."""
    if not (low >= 0 and high <= 1):  # also catches NaN
        raise Refused(
            f"it holds floats from {low:.6g} to {high:.6g}, where 0 (black) to 1 (white) is "
            "expected; scale them, or save 8-bit integers"
        )


def _from_deep_gray(values: np.ndarray) -> np.ndarray:
    return scale_gray(values, int(values.min()), int(values.max()))


def scale_gray(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Scale gray linearly, so that low becomes 0 and high 255: (H, W) -> (H, W, 3), uint8."""
    gray = rounded((values.astype(np.float64) - low) * (255 / max(high - low, 1)))
    return np.repeat(gray[..., None], 3, axis=2)


def _is_deep_color(image: ImageFile) -> bool:
    """Whether an opened, not yet loaded image has more bits per channel than the 8 Pillow keeps."""
    if image.mode not in ("RGB", "RGBA") or not image.tile:
        return False
    if image.format == "PPM":
        # The last argument of the decoder is the value of white in the file.
        arguments = image.tile[0].args
        return isinstance(arguments, tuple) and arguments[-1] > 255
    return image.format == "JPEG2000" or (image.format == "PNG" and ";16" in str(image.tile))


def _jpeg2000_bits(content: bytes) -> int:
    """Return the bit depth of a JPEG 2000 file.

    Raises:
        Refused: decoders change its values or cannot decode it.
    """
    # The codestream begins with the markers SOC and SIZ. From there, bytes 40 and 41 are the number
    # of channels. Three bytes for each channel follow, the first of which is its depth - 1, with
    # the top bit set if the channel is signed.
    codestream = content[content.index(b"\xff\x4f\xff\x51") :]
    channels = int.from_bytes(codestream[40:42], "big")
    depths = codestream[42 : 42 + 3 * channels : 3]
    bits, signed = [(depth & 127) + 1 for depth in depths], max(depths) >= 128
    # Pillow turns white into black above 16 bits, and OpenCV cannot decode these. Neither of them
    # decodes gray with alpha of more than 8 bits.
    too_deep = max(bits) > (8 if len(bits) == 2 else 16)
    if min(bits) < 8 or (signed and len(bits) > 1) or too_deep:
        kind = f"{max(bits) if too_deep else min(bits)}-bit {'signed ' * signed}integers"
        raise Refused(
            f"it is a JPEG 2000 of {kind} in {len(bits)} channels, which is not supported; save it "
            "as 8-bit PNG"
        )
    return max(bits)


def _jpeg_kind(content: bytes) -> str | None:
    """Return what is special about a JPEG that Pillow cannot identify.

    None if it is not a JPEG or nothing about it is special.
    """
    # A JPEG is a sequence of segments: 0xFF, marker (1 byte), length (2 bytes, which include
    # themselves), data. The data of a frame header begins with depth (1 byte), height and width
    # (2 bytes each) and number of channels (1 byte).
    start = len(JPEG)
    while content.startswith(JPEG) and content[start : start + 1] == b"\xff":
        marker, frame = content[start + 1], content[start + 4 : start + 10]
        if marker in FRAMES and len(frame) == 6 and (frame[0] != 8 or frame[5] not in (1, 3, 4)):
            return f"{frame[0]}-bit samples in {frame[5]} channels"
        if marker == JPEG_LS:
            return "another kind (JPEG-LS)"
        start += 2 + int.from_bytes(content[start + 2 : start + 4], "big")
    return None


def _scale_transparent_gray(image: ImageFile) -> None:
    """Scale the transparent gray of a PNG of 2 or 4 bits to 8 bits.

    Pillow scales the pixels to 8 bits, but compares them with the value that the file has.
    """
    bits = {"L;2": 2, "L;4": 4}.get(str(image.tile[0].args), 8) if image.tile else 8
    image.info["transparency"] *= 255 // (2**bits - 1)


def _deep_color(path: Path, bits: int) -> np.ndarray:
    """Read color of more than 8 bits, of which Pillow would keep the upper 8."""
    # The line break at the end is for PPM: OpenCV reports damage if the file ends with a digit.
    content = _without_metadata(path.read_bytes()) + b"\n"
    pixels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None or pixels.dtype != np.uint16 or pixels.ndim != 3:
        raise Refused("it is 16-bit color that cannot be decoded; save it as 8-bit PNG")
    return _from_color(pixels[..., BGR_TO_RGB[: pixels.shape[2]]], opaque=2**bits - 1)


def _without_metadata(content: bytes) -> bytes:
    """Remove the chunks of a PNG that do not affect pixels; return other files unchanged.

    OpenCV prints warnings about profiles and other metadata.
    """
    if not content.startswith(PNG):
        return content
    start, kept = len(PNG), [PNG]
    while start < len(content):
        # A chunk: length of the data (4 bytes), type (4 bytes), data, checksum (4 bytes).
        length = int.from_bytes(content[start : start + 4], "big")
        end = start + 12 + length
        if content[start + 4 : start + 8] in PNG_PIXEL_CHUNKS:
            kept.append(content[start:end])
        start = end
    return b"".join(kept)


def _from_color(
    values: np.ndarray, *, opaque: int = 65535, premultiplied: bool = False
) -> np.ndarray:
    """Convert color of 16 bits or floats to 8 bits.

    Args:
        values: (H, W, 3), or (H, W, 4) with alpha.
        opaque: the largest alpha of integers; 1 for floats.
        premultiplied: whether the colors are multiplied by alpha.
    """
    is_integer = values.dtype == np.uint16
    if not is_integer:
        require_0_to_1(values.min(), values.max())
    rgb, alpha = values[..., :3], values[..., 3:] / np.float32(opaque if is_integer else 1)
    if premultiplied:
        # A premultiplied color cannot exceed its alpha; such a value would become the maximum.
        rgb = np.minimum(rgb, values[..., 3:]) / np.maximum(alpha, np.float32(1e-6))
    # The largest value of the smallest number of bits, at least 8, that holds the maximum.
    white = white_of(rgb.max()) if is_integer else 1
    scaled = np.minimum(rgb * np.float32(255 / white), 255)
    _require_contrast(rgb, rounded(scaled))
    return _over_white(scaled, alpha[..., 0]) if alpha.size else rounded(scaled)


def white_of(largest: int) -> int:
    """Return the largest value of the bits, at least 8, that hold the largest one of an image."""
    return 2 ** max(8, int(largest).bit_length()) - 1


def _require_contrast(values: np.ndarray, scaled: np.ndarray) -> None:
    if scaled.min() == scaled.max() and values.min() < values.max():
        reach = f"{values.min()} to {values.max()}"
        raise Refused(f"its values, {reach}, would all become {scaled.min()} of 255; scale them")


def _over_white(rgb: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Blend an image over white.

    Args:
        rgb: (H, W, 3), 0 to 255.
        alpha: (H, W), 0 (transparent) to 1 (opaque).
    """
    if alpha.min() == 1:
        return rounded(rgb)
    blended = blend_over_white(rgb, alpha)
    if (blended == 255).all():
        raise Refused(
            "it is white or transparent everywhere, so that nothing can be seen; save it without "
            "alpha"
        )
    return blended


def blend_over_white(rgb: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """The same for a region of an image, in which nothing may be visible."""
    return rounded(255 - (255 - rgb) * alpha[..., None])


def rounded(values: np.ndarray) -> np.ndarray:
    """Round values from 0 to 255: uint8, a copy."""
    if values.dtype == np.uint8:
        return values.copy()
    return (values + np.float32(0.5)).astype(np.uint8)


def exif_orientation(image: Image.Image) -> int:
    """Return the EXIF orientation of an image that Pillow has opened.

    1 if it has none, and for a TIFF, whose orientation Pillow applies.
    """
    # Pillow falls back to the orientation in XMP, unlike OpenCV and browsers. So give it an image
    # that has nothing but the EXIF data.
    bare = Image.new("1", (1, 1))
    try:
        if isinstance(image, PngImageFile) and "exif" not in image.info:
            image.load()  # EXIF may follow the pixels
        bare.info = {name: image.info[name] for name in EXIF if name in image.info}
        return bare.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # damaged EXIF; the pixels can be read anyway
        return 1


def size_of(path: Path) -> tuple[int, int]:
    """Return height and width of an image, from its header, as :func:`.read_image` would.

    Raises:
        UserError: its header cannot be read.
    """
    if not path.is_file():  # opening a pipe would block
        return read_image(path).shape[:2]  # raises an error with the reason
    with warnings.catch_warnings():
        # Pillow warns about damaged files, which read_image reports.
        warnings.filterwarnings("ignore", module="PIL")
        try:
            image = Image.open(path, formats=FORMATS)
        except Exception:
            return read_image(path).shape[:2]
        transposed = exif_orientation(image) in (5, 6, 7, 8)
    with image:
        return (image.width, image.height) if transposed else (image.height, image.width)


def read_annotated_image(path: str | os.PathLike, height: int, width: int) -> np.ndarray:
    """Read an image like :func:`read_image` and check its size.

    Raises:
        UserError: it cannot be read, or its height and width differ from those given.
    """
    image = read_image(path)
    if image.shape[:2] != (height, width):
        found = "{1} x {0}".format(*image.shape)
        raise UserError(
            f"{path}: is {found} pixels, but {width} x {height} in its annotations; correct them"
        )
    return image


def save_image(path: Path, pixels: np.ndarray) -> None:
    """Write an image file atomically.

    Args:
        path: its suffix determines the format.
        pixels: (H, W, 3) or (H, W, 4), RGB or RGBA, uint8.

    Raises:
        UserError: it cannot be written; an existing file is unchanged.
    """
    code = cv2.COLOR_RGBA2BGRA if pixels.shape[2] == 4 else cv2.COLOR_RGB2BGR
    content = cv2.imencode(path.suffix, cv2.cvtColor(pixels, code))[1].tobytes()
    with atomic_write(path) as partial:  # cv2.imwrite only prints that the disk is full
        partial.write_bytes(content)
