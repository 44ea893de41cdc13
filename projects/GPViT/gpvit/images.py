"""Image files as RGB: for every kind of file one conversion, or a refusal that says why.

8-bit RGB, gray, 1-bit, palette, YCbCr, CMYK: RGB by Pillow. Colour profiles are not applied.

Alpha, also of a palette or of one colour: what is not opaque is blended over white, as browsers show it. Refused if
nothing is left to see.

One channel of integers deeper than 8 bits: the image's own darkest value becomes 0 and its brightest 255, linearly, as
instruments use only a part of 16 bits.

16-bit colour, or 16 bits with alpha: 0 stays 0, and what the fewest bits, 8 to 16, that hold the brightest value can
hold becomes 255. So colours stay, and a photo looks as its 8-bit version.

Floats: 0 to 1 becomes 0 to 255. Refused if a value is outside or NaN, as then nothing says what is black and white.

EXIF orientation: applied; (H, W) is the picture as viewers show it. Several frames or pages: the first.

Refused: other colour spaces (CIELAB, ...); other kinds of files; more than MAX_PIXELS, before anything is decoded;
truncated, damaged, empty and missing files.

The scale of a deep image depends on that image alone, and one bright pixel darkens the rest. For another scale save
8-bit images.
"""

import os
import warnings
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from .errors import UserError
from .utils.text import PATH_LIMIT, one_line

MAX_PIXELS = 100_000_000
FORMATS = ("JPEG", "PNG", "TIFF", "BMP", "GIF", "WEBP", "JPEG2000", "PPM")  # of Pillow's others, some run programs
# JPEG's reader takes MPO as well, which is several JPEG in one file.
SUFFIXES = {suffix for suffix, kind in Image.registered_extensions().items() if kind in (*FORMATS, "MPO")}
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
            warnings.filterwarnings("ignore", module="PIL")  # of damaged metadata, and of less than MAX_PIXELS
            return _read(Path(path))
    except _Refused as reason:
        problem = str(reason)
    except Image.DecompressionBombError:
        problem = TOO_LARGE
    except UnidentifiedImageError:
        problem = f"it is no image in {', '.join(FORMATS)}, or its header is damaged; convert or replace it"
    except Exception as error:  # what decoders raise on damaged files is not limited to a few types
        details = " ".join(str(error).split())
        problem = f"it is damaged or incomplete ({type(error).__name__}: {details}); replace it"
    raise UserError(f"{one_line(Path(path), PATH_LIMIT)}: cannot be read: {problem}")


class _Refused(ValueError):
    """Why an image is refused, and what to do."""


TOO_LARGE = f"it has more than {MAX_PIXELS // 1_000_000} million pixels; cut it into tiles or make it smaller"


def _read(path: Path) -> np.ndarray:
    if not path.exists():
        raise _Refused("it does not exist; check the path")
    if not path.is_file():
        raise _Refused("it is no file; give the path of an image")
    if path.stat().st_size == 0:
        raise _Refused("it is empty (0 bytes); replace it")
    image = Image.open(path, formats=FORMATS)
    with image:
        if image.width * image.height > MAX_PIXELS:
            raise _Refused(TOO_LARGE)
        deep = ";16" in str(image.tile) or image.format in ("PPM", "JPEG2000")  # their tiles do not say
        image.load()
        colour = _deep_colour(path) if deep and image.mode in ("RGB", "RGBA") else None
        return _upright(image, _convert(image) if colour is None else colour)


def from_pillow(image: Image.Image) -> np.ndarray:
    """A picture that Pillow has opened, as :func:`read_image` gives it; of 16-bit colour Pillow keeps the upper 8 bits.

    Raises:
        UserError: it cannot be converted.
    """
    try:
        return _upright(image, _convert(image))
    except _Refused as reason:
        raise UserError(f"the image cannot be used: {reason}") from None


def _upright(image: Image.Image, pixels: np.ndarray) -> np.ndarray:
    turn = TURNS.get(_orientation(image))
    return np.ascontiguousarray(turn(pixels) if turn else pixels)


def _convert(image: Image.Image) -> np.ndarray:
    """A loaded image as RGB."""
    if image.mode == "F":
        return _from_floats(np.asarray(image))
    if image.mode.startswith("I"):
        return _from_deep_gray(np.asarray(image))
    if image.has_transparency_data:
        pixels = np.asarray(image.convert("RGBA"))
        return _over_white(pixels[..., :3], pixels[..., 3] / np.float32(255))
    if image.mode in PLAIN_MODES:
        return np.array(image.convert("RGB"))
    raise _Refused(f"it has the colour space {image.mode}; save it as RGB")


def _from_floats(values: np.ndarray) -> np.ndarray:
    if not (values.min() >= 0 and values.max() <= 1):  # NaN neither
        raise _Refused(
            f"it holds floats from {values.min():.6g} to {values.max():.6g}, where 0 (black) to 1 (white) is "
            "expected; scale them, or save 8-bit integers"
        )
    gray = _rounded(values * np.float32(255))
    _require_contrast(values, gray)
    return np.repeat(gray[..., None], 3, axis=2)


def _from_deep_gray(values: np.ndarray) -> np.ndarray:
    low, high = int(values.min()), int(values.max())
    gray = _rounded((values.astype(np.float64) - low) * (255 / max(high - low, 1)))
    return np.repeat(gray[..., None], 3, axis=2)


def _deep_colour(path: Path) -> np.ndarray | None:
    """A picture of 16-bit colour, of which Pillow would keep the upper 8 bits; None if it is not 16-bit."""
    pixels = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None:
        raise _Refused("it is 16-bit colour that cannot be decoded; save it as 8-bit PNG")
    if pixels.dtype != np.uint16:
        return None
    rgb = pixels[..., 2::-1]
    bits = max(8, int(rgb.max()).bit_length())
    scaled = rgb * np.float32(255 / (2**bits - 1))
    _require_contrast(rgb, _rounded(scaled))
    return _over_white(scaled, pixels[..., 3] / np.float32(65535)) if pixels.shape[2] == 4 else _rounded(scaled)


def _require_contrast(values: np.ndarray, scaled: np.ndarray) -> None:
    if scaled.min() == scaled.max() and values.min() < values.max():
        reach = f"{values.min()} to {values.max()}"
        raise _Refused(f"its values, {reach}, would all become {scaled.min()} of 255; scale them")


def _over_white(rgb: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Args: rgb: (H, W, 3), 0 to 255; alpha: (H, W), 0 (transparent) to 1 (opaque)."""
    if alpha.min() == 1:
        return _rounded(rgb)
    blended = _rounded(255 - (255 - rgb) * alpha[..., None])
    if (blended == 255).all():
        raise _Refused("it is white or transparent everywhere, so that nothing can be seen; save it without alpha")
    return blended


def _rounded(values: np.ndarray) -> np.ndarray:
    return values.copy() if values.dtype == np.uint8 else (values + np.float32(0.5)).astype(np.uint8)


def _orientation(image: Image.Image) -> int:
    """EXIF orientation of a loaded image; of a TIFF it is 1, as decoders turn these themselves."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # damaged EXIF; the picture is there all the same
        return 1
