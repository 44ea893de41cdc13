"""Image files as RGB: for every kind of file one conversion, or a refusal that says why.

RGB, gray, palette, YCbCr and CMYK of up to 8 bits: RGB by Pillow. Color profiles are not applied.

Alpha, also of a palette or of one color: what is not opaque is blended over white, as browsers show it. Refused if
nothing is left to see.

One channel of integers deeper than 8 bits, or signed: the image's own darkest value becomes 0 and its brightest 255,
linearly, as instruments use only a part of 16 bits.

16-bit color, or 16 bits with alpha: 0 stays 0, and what the fewest bits, 8 to 16, that hold the brightest value can
hold becomes 255. So colors stay, and a photo looks as its 8-bit version. CMYK: the upper 8 of 16 bits.

Floats: 0 to 1 becomes 0 to 255. Refused if a value is outside or NaN, as then nothing says what is black and white.

Orientation by EXIF (not XMP), and that of a TIFF: applied; (H, W) is the image as viewers show it. Several frames
or pages: the first.

TIFF: :mod:`.tiff` has the kinds that are read.

Refused: other color spaces (CIELAB, ...); JPEG of more than 8 bits; JPEG 2000 of fewer, of more than 16, and of more
than 8 if it is gray with alpha; other kinds of files; more than MAX_PIXELS, before anything is decoded; truncated,
damaged, empty and missing files.

The scale of a deep image depends on that image alone, and one bright pixel darkens the rest. For another scale save
8-bit images.
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

PNG = b"\x89PNG\r\n\x1a\n"  # how such a file begins
JPEG = b"\xff\xd8"
# The markers before the size of a JPEG: all from 0xC0 to 0xCF, but for three with another meaning.
FRAMES, JPEG_LS = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}, 0xF7
EXIF = ("exif", "Raw profile type exif")  # where Pillow keeps it; the second in PNG by ImageMagick
MAX_PIXELS = 100_000_000
NOT_OPENED = {errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.ELOOP}
FORMATS = (
    "JPEG",
    "PNG",
    "TIFF",
    "BMP",
    "GIF",
    "WEBP",
    "JPEG2000",
    "PPM",
)  # of Pillow's others, some run programs
# JPEG's reader takes MPO as well, which is several JPEG in one file.
SUFFIXES = {
    suffix for suffix, kind in Image.registered_extensions().items() if kind in (*FORMATS, "MPO")
}
PLAIN_MODES = ("1", "L", "P", "RGB", "RGBX", "YCbCr", "CMYK")  # Pillow's names, as below

# What turns the stored picture into the one to be seen, by its EXIF orientation.
TURNS: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.swapaxes(0, 1),
    6: lambda pixels: np.rot90(pixels, -1),
    7: lambda pixels: pixels[::-1, ::-1].swapaxes(0, 1),
    8: lambda pixels: np.rot90(pixels),
}


def read_image(path: str | os.PathLike) -> np.ndarray:
    """The picture of a file, converted as said above.

    Returns:
        (H, W, 3), RGB, uint8, in its own memory.

    Raises:
        UserError: it cannot be read or converted; the message has the path, what is wrong and what to do.
    """
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", module="PIL"
            )  # of damaged metadata, and of less than MAX_PIXELS
            return _read(Path(path))
    except Refused as reason:
        problem = str(reason)
    except Image.DecompressionBombError:
        problem = TOO_LARGE
    except UnidentifiedImageError:
        with open(path, "rb") as file:
            kind = _jpeg_kind(file.read(1_000_000))  # all that comes before the pixels
        problem = f"it is no image in {', '.join(FORMATS)}, or its header is damaged; convert or replace it"
        problem = (
            f"it is a JPEG of {kind}, which is not read; save it as 8-bit RGB" if kind else problem
        )
    except OSError as error:
        if error.errno in NOT_OPENED:
            problem = f"it cannot be opened ({error.strerror}); check its path and its permissions"
        else:
            problem = _damaged(error)
    except Exception as error:  # what decoders raise on damaged files is not limited to a few types
        problem = _damaged(error)
    raise UserError(f"{one_line(Path(path), PATH_LIMIT)}: cannot be read: {problem}")


def _damaged(error: Exception) -> str:
    details = " ".join(str(error).split())
    return f"it is damaged or incomplete ({type(error).__name__}: {details}); replace it"


TOO_LARGE = f"it has more than {MAX_PIXELS // 1_000_000} million pixels; cut it into tiles or make it smaller"


def _read(path: Path) -> np.ndarray:
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError, ValueError):
        raise Refused("it does not exist; check the path") from None
    if not path.is_file():
        raise Refused("it is no file; give the path of an image")
    if path.stat().st_size == 0:
        raise Refused("it is empty (0 bytes); replace it")
    with path.open("rb") as file:
        page = Page.read(file)
        if page:
            return _read_tiff(file, page)
        with Image.open(file, formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise Refused(TOO_LARGE)
            bits = _jpeg2000_bits(path.read_bytes()) if image.format == "JPEG2000" else 16
            if bits > 8 and _is_deep_color(image):
                image.load()  # finds damage
                return _upright(image, _deep_color(path, bits))
            return _upright(image, _convert(image))


def _read_tiff(file: BinaryIO, page: Page) -> np.ndarray:
    if page.width * page.height > MAX_PIXELS:
        raise Refused(TOO_LARGE)
    page.require_readable()
    if not (page.is_deep_color or page.is_swapped_by_pillow):
        # Not by its path: Pillow would map an uncompressed file into memory, a turned one with the wrong width.
        try:
            with Image.open(file, formats=["TIFF"]) as image:
                return _from_pillow_tiff(image, page)
        except UnidentifiedImageError:
            if not page.is_deep_gray:
                raise page.not_read() from None
    file.seek(0)
    return np.ascontiguousarray(_from_samples(page.decode(file.read()), page))


def from_pillow(image: Image.Image) -> np.ndarray:
    """A picture that Pillow has opened, as :func:`read_image` gives it; of 16-bit color Pillow keeps the upper 8 bits.

    Raises:
        UserError: it cannot be converted.
    """
    try:
        if (
            isinstance(image, PngImageFile)
            and _is_deep_color(image)
            and "transparency" in image.info
        ):
            raise Refused(
                "it is 16-bit color with a transparent one, of which Pillow makes another image; give its path"
            )
        if (
            isinstance(image, ImageFile) and image.format == "JPEG2000" and image.tile and image.fp
        ):  # not loaded yet
            image.fp.seek(0)
            if _jpeg2000_bits(image.fp.read()) > 8 and _is_deep_color(image):
                # It rounds to the upper 8 bits, and the brightest to 256, of which it keeps 0.
                raise Refused(
                    "it is a JPEG 2000 of deep color, of which Pillow makes another image; give its path"
                )
        if not isinstance(image, TiffImageFile):
            return _upright(image, _convert(image))
        page = Page.of(image.tag_v2)
        page.require_readable()
        if page.is_swapped_by_pillow or (page.is_deep_color and page.planes):
            raise Refused(
                f"it is a TIFF of {page}, of which Pillow makes another image; give its path"
            )
        filename, image.filename = image.filename, ""  # so that it is not mapped, as above
        try:
            return _from_pillow_tiff(image, page)
        finally:
            image.filename = filename
    except Refused as reason:
        raise UserError(f"the image cannot be used: {reason}") from None


def _from_pillow_tiff(image: Image.Image, page: Page) -> np.ndarray:
    """A TIFF that Pillow has opened, which turns it itself."""
    image.info.pop("xmp", None)  # or Pillow would turn it by that, too
    try:
        image.load()
    except OSError as error:
        raise page.not_decoded(str(error)) from None
    if page.is_gray and not page.further and (page.bits > 8 or page.format == SIGNED):
        # Pillow takes all integers of 8 bits as unsigned, and all of 32 bits as signed.
        values = np.asarray(image)
        if values.dtype.itemsize * 8 == page.bits:
            values = values.view(
                page.dtype.newbyteorder(values.dtype.byteorder)
            )  # it may be that of the file
        return _from_samples(values, page)
    if page.color == PALETTE and max(page.tags[TAGS["ColorMap"]]) < 256:
        # Some programs write 8 bits where 16 are due, of which Pillow would make black.
        return np.array(page.tags[TAGS["ColorMap"]], np.uint8).reshape(3, -1).T[np.asarray(image)]
    return np.ascontiguousarray(_convert(image))


def _from_samples(values: np.ndarray, page: Page) -> np.ndarray:
    """The samples of a TIFF that are deeper than 8 bits, or signed: (H, W) or (H, W, channels)."""
    if values.ndim == 3:
        values = values[..., : 3 if page.extra[:1] == (UNSPECIFIED,) else 4]
        return _from_color(values, premultiplied=page.extra[:1] == (PREMULTIPLIED,))
    pixels = _from_floats(values) if page.format == FLOAT else _from_deep_gray(values)
    return 255 - pixels if page.color == WHITE_IS_ZERO else pixels


def _upright(image: Image.Image, pixels: np.ndarray) -> np.ndarray:
    turn = TURNS.get(exif_orientation(image))
    return np.ascontiguousarray(turn(pixels) if turn else pixels)


def _convert(image: Image.Image) -> np.ndarray:
    """An image that Pillow has opened as RGB, not turned."""
    if isinstance(image, PngImageFile) and isinstance(image.info.get("transparency"), int):
        _scale_transparent_gray(image)
    image.load()
    if image.mode == "F":
        return _from_floats(np.asarray(image))
    if image.mode.startswith("I"):
        values = np.asarray(image)
        return _over_white(_from_deep_gray(values), values != image.info.get("transparency"))
    if image.has_transparency_data:
        pixels = np.asarray((image.convert("LA") if image.mode == "La" else image).convert("RGBA"))
        return _over_white(pixels[..., :3], pixels[..., 3] / np.float32(255))
    if image.mode in PLAIN_MODES:
        return np.array(image.convert("RGB"))
    raise Refused(f"it has the color space {image.mode}; save it as RGB")


def _from_floats(values: np.ndarray) -> np.ndarray:
    _require_0_to_1(values)
    gray = _rounded(values * np.float32(255))
    _require_contrast(values, gray)
    return np.repeat(gray[..., None], 3, axis=2)


def _require_0_to_1(values: np.ndarray) -> None:
    if not (values.min() >= 0 and values.max() <= 1):  # NaN neither
        raise Refused(
            f"it holds floats from {values.min():.6g} to {values.max():.6g}, where 0 (black) to 1 (white) is "
            "expected; scale them, or save 8-bit integers"
        )


def _from_deep_gray(values: np.ndarray) -> np.ndarray:
    low, high = int(values.min()), int(values.max())
    gray = _rounded((values.astype(np.float64) - low) * (255 / max(high - low, 1)))
    return np.repeat(gray[..., None], 3, axis=2)


def _is_deep_color(image: ImageFile) -> bool:
    """Whether Pillow keeps only the upper 8 bits of a file that it has opened, and not loaded, if these are not all."""
    if image.mode not in ("RGB", "RGBA") or not image.tile:
        return False
    if image.format == "PPM":
        return (
            isinstance(image.tile[0].args, tuple) and image.tile[0].args[-1] > 255
        )  # the file's white
    return image.format == "JPEG2000" or (image.format == "PNG" and ";16" in str(image.tile))


def _jpeg2000_bits(content: bytes) -> int:
    """The depth of a JPEG 2000. Raises Refused for one that decoders would change, or would not decode."""
    size = content[content.index(b"\xff\x4f\xff\x51") :]  # where the codestream begins
    depths = size[
        42 : 42 + 3 * int.from_bytes(size[40:42], "big") : 3
    ]  # each less one, and 128 more if it is signed
    bits, signed = [(depth & 127) + 1 for depth in depths], max(depths) >= 128
    # Of deeper ones Pillow makes black of white, and OpenCV does not read them; nor any gray with alpha.
    too_deep = max(bits) > (8 if len(bits) == 2 else 16)
    if min(bits) < 8 or (signed and len(bits) > 1) or too_deep:
        kind = f"{max(bits) if too_deep else min(bits)}-bit {'signed ' * signed}integers"
        raise Refused(
            f"it is a JPEG 2000 of {kind} in {len(bits)} channels, which is not read; save it as 8-bit PNG"
        )
    return max(bits)


def _jpeg_kind(content: bytes) -> str | None:
    """What a JPEG that Pillow does not know is of; None if it is none, or nothing is special."""
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
    """Of 2 or 4 bits, the transparent gray is as the PNG has it, and Pillow compares it with pixels of 8 bits."""
    bits = {"L;2": 2, "L;4": 4}.get(str(image.tile[0].args), 8) if image.tile else 8
    image.info["transparency"] *= 255 // (2**bits - 1)


def _deep_color(path: Path, bits: int) -> np.ndarray:
    """A file of color of more than 8 bits, of which Pillow would keep the upper 8."""
    # OpenCV takes the end of the file for damage if it is the end of a number (PPM).
    content = _without_metadata(path.read_bytes()) + b"\n"
    pixels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None or pixels.dtype != np.uint16 or pixels.ndim != 3:
        raise Refused("it is 16-bit color that cannot be decoded; save it as 8-bit PNG")
    return _from_color(pixels[..., BGR_TO_RGB[: pixels.shape[2]]], opaque=2**bits - 1)


def _without_metadata(content: bytes) -> bytes:
    """A file, of a PNG only the chunks that make pixels: of others, such as profiles, OpenCV prints what it dislikes."""
    if not content.startswith(PNG):
        return content
    start, kept = len(PNG), [PNG]
    while start < len(content):
        length = int.from_bytes(content[start : start + 4], "big")
        end = start + 12 + length
        if content[start + 4 : start + 8] in (b"IHDR", b"tRNS", b"IDAT", b"IEND"):
            kept.append(content[start:end])
        start = end
    return b"".join(kept)


def _from_color(
    values: np.ndarray, *, opaque: int = 65535, premultiplied: bool = False
) -> np.ndarray:
    """Color of 16 bits or floats.

    Args:
        values: (H, W, 3), or (H, W, 4) with alpha.
        opaque: the largest alpha, unless they are floats.
        premultiplied: whether the colors are multiplied by alpha.
    """
    deep = values.dtype == np.uint16
    if not deep:
        _require_0_to_1(values)
    rgb, alpha = values[..., :3], values[..., 3:] / np.float32(opaque if deep else 1)
    if premultiplied:
        # A color larger than its alpha is none, and would count as the brightest.
        rgb = np.minimum(rgb, values[..., 3:]) / np.maximum(alpha, np.float32(1e-6))
    white = 2 ** max(8, int(rgb.max()).bit_length()) - 1 if deep else 1
    scaled = np.minimum(rgb * np.float32(255 / white), 255)
    _require_contrast(rgb, _rounded(scaled))
    return _over_white(scaled, alpha[..., 0]) if alpha.size else _rounded(scaled)


def _require_contrast(values: np.ndarray, scaled: np.ndarray) -> None:
    if scaled.min() == scaled.max() and values.min() < values.max():
        reach = f"{values.min()} to {values.max()}"
        raise Refused(f"its values, {reach}, would all become {scaled.min()} of 255; scale them")


def _over_white(rgb: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Args: rgb: (H, W, 3), 0 to 255; alpha: (H, W), 0 (transparent) to 1 (opaque)."""
    if alpha.min() == 1:
        return _rounded(rgb)
    blended = _rounded(255 - (255 - rgb) * alpha[..., None])
    if (blended == 255).all():
        raise Refused(
            "it is white or transparent everywhere, so that nothing can be seen; save it without alpha"
        )
    return blended


def _rounded(values: np.ndarray) -> np.ndarray:
    return (
        values.copy() if values.dtype == np.uint8 else (values + np.float32(0.5)).astype(np.uint8)
    )


def exif_orientation(image: Image.Image) -> int:
    """Orientation by the EXIF of an image that Pillow has opened; 1 if it has none, and for a TIFF, which Pillow turns."""
    # Pillow takes that of XMP if there is none in EXIF, unlike OpenCV and browsers.
    bare = Image.new("1", (1, 1))
    try:
        if isinstance(image, PngImageFile) and "exif" not in image.info:
            image.load()  # it may follow the pixels
        bare.info = {name: image.info[name] for name in EXIF if name in image.info}
        return bare.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # damaged EXIF; the picture is there all the same
        return 1


def read_annotated_image(path: str | os.PathLike, height: int, width: int) -> np.ndarray:
    """As :func:`read_image`; raises a UserError, too, for an image of another size than its annotations say."""
    image = read_image(path)
    if image.shape[:2] != (height, width):
        found = "{1} x {0}".format(*image.shape)
        raise UserError(
            f"{path}: is {found} pixels, and {width} x {height} by its annotations; correct them"
        )
    return image


def save_image(path: Path, pixels: np.ndarray) -> None:
    """Writes an image.

    Args:
        path: the kind of file follows from its name.
        pixels: (H, W, 3) or (H, W, 4), RGB or RGBA, uint8.

    Raises:
        UserError: it cannot be written; what was there is still there.
    """
    code = cv2.COLOR_RGBA2BGRA if pixels.shape[2] == 4 else cv2.COLOR_RGB2BGR
    content = cv2.imencode(path.suffix, cv2.cvtColor(pixels, code))[1].tobytes()
    with atomic_write(path) as partial:  # OpenCV itself would only print that the disk is full
        partial.write_bytes(content)
