"""TIFF files: which of their many kinds are read, and the pixels of those that Pillow does not know.

A TIFF combines color space, depth, channels and compression freely, and decoders turn some combinations into other images
without an error. So a kind is read if it is one of these, and is refused by its name otherwise:

Gray of 1, 2, 4, 8, 12, 16 or 32 bits, signed gray of 8, 16 or 32 bits, floats of 32 or 64 bits; with alpha only 8 bits.
RGB of 8 or 16 bits and floats of 32 or 64 bits, also with alpha, and with channels that have no stated meaning, which are
left out. Palettes of up to 8 bits, CMYK of 8 or 16 bits, compressed YCbCr of 8 bits. Their channels may be interleaved,
and those of RGB and 8-bit CMYK in separate planes.

Compressed by LZW, deflate, PackBits, JPEG or for faxes (CCITT), or not; by others as far as the decoders were built with
them.
"""

import ctypes
import struct
from contextlib import suppress
from dataclasses import dataclass
from typing import BinaryIO

import cv2
import numpy as np
from PIL import Image, TiffTags
from PIL.TiffImagePlugin import COMPRESSION_INFO, PREFIXES, ImageFileDirectory_v2

# Both decoders would print on stderr what is wrong with a file.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
with suppress(
    OSError, AttributeError
):  # a Pillow without libtiff, or with one that cannot be reached
    ctypes.CDLL(Image.core.__file__).TIFFSetErrorHandler(None)

BGR_TO_RGB = [2, 1, 0, 3]  # OpenCV's order of channels, with alpha if there is any

TAGS = {info.name: number for number, info in TiffTags.TAGS_V2.items()}
WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, SEPARATED, YCBCR = 0, 1, 2, 3, 5, 6
COLORS = {
    WHITE_IS_ZERO: "gray",
    BLACK_IS_ZERO: "gray",
    RGB: "RGB",
    PALETTE: "palette",
    SEPARATED: "CMYK",
    YCBCR: "YCbCr",
}
OTHER_COLORS = {
    8: "CIELAB",
    9: "ICCLAB",
    10: "ITULAB",
    32803: "color filter array",
    32844: "LogL",
    32845: "LogLuv",
}
CHANNELS = {RGB: 3, SEPARATED: 4, YCBCR: 3}  # others have one
UNSIGNED, SIGNED, FLOAT = 1, 2, 3
FORMATS = {
    UNSIGNED: "integers",
    SIGNED: "signed integers",
    FLOAT: "floats",
    5: "complex integers",
    6: "complex floats",
}
DTYPES = {UNSIGNED: "u", SIGNED: "i", FLOAT: "f"}
UNSPECIFIED, PREMULTIPLIED, STRAIGHT = 0, 1, 2  # what a further channel is; the last two are alpha
KINDS = {  # which formats and bits of a color are read
    RGB: {(UNSIGNED, 8), (UNSIGNED, 16), (FLOAT, 32), (FLOAT, 64)},
    PALETTE: {(UNSIGNED, bits) for bits in (1, 2, 4, 8)},
    SEPARATED: {(UNSIGNED, 8), (UNSIGNED, 16)},
    YCBCR: {(UNSIGNED, 8)},
    BLACK_IS_ZERO: {(UNSIGNED, bits) for bits in (1, 2, 4, 8, 12, 16, 32)}
    | {(SIGNED, 8), (SIGNED, 16), (SIGNED, 32), (FLOAT, 32), (FLOAT, 64)},
}
KINDS[WHITE_IS_ZERO] = KINDS[BLACK_IS_ZERO] - {(UNSIGNED, 12), (SIGNED, 8)}
USUAL_COMPRESSIONS = {1, 2, 3, 4, 5, 7, 8, 32773, 32946}  # which every libtiff decodes
OLD_JPEG = 6
OTHER_COMPRESSIONS = {
    OLD_JPEG: "old-style JPEG",
    33003: "JPEG 2000",
    33005: "JPEG 2000",
    34712: "JPEG 2000",
    34887: "LERC",
}
OTHER_COMPRESSIONS |= {
    34925: "LZMA",
    50000: "Zstandard",
    50001: "WebP",
    50002: "JPEG XL",
    52546: "JPEG XL",
}
# What is the same for each plane; of StripOffsets and the like each has its part.
OF_ALL_PLANES = [
    "ImageWidth",
    "ImageLength",
    "Compression",
    "FillOrder",
    "Orientation",
    "RowsPerStrip",
    "Predictor",
]
OF_ALL_PLANES += ["TileWidth", "TileLength"]


class Refused(ValueError):
    """Why an image is refused, and what to do."""


def damaged(details: str) -> Refused:
    return Refused(f"it is damaged or incomplete ({details}); replace it")


@dataclass(frozen=True)
class Page:
    """What a page of a file holds, by its tags.

    Attributes:
        tags: as Pillow reads them.
        height, width: as stored; the orientation may turn them.
        color: PhotometricInterpretation.
        bits: of a sample.
        format: SampleFormat.
        samples: number of channels.
        extra: what the last of these are (ExtraSamples), as far as it is stated.
        planes: whether the pixels of a channel follow each other.
        compression: its number.
    """

    tags: ImageFileDirectory_v2
    height: int
    width: int
    color: int
    bits: int
    format: int
    samples: int
    extra: tuple[int, ...]
    planes: bool
    compression: int

    @classmethod
    def read(cls, file: BinaryIO) -> "Page | None":
        """The first page of a file; None if it is no TIFF.

        Raises:
            Refused: its tags cannot be understood.
        """
        header = file.read(16)
        if header[:4] == b"MM\0+":
            raise Refused(
                "it is a BigTIFF in big-endian order, which is not read; save it in little-endian order"
            )
        if not header.startswith(tuple(PREFIXES)):
            return None
        tags = ImageFileDirectory_v2(header if header[2:3] == b"+" else header[:8])
        file.seek(tags.next)
        tags.load(file)
        return cls.of(tags)

    @classmethod
    def of(cls, tags: ImageFileDirectory_v2) -> "Page":
        """By tags that Pillow has read. Raises Refused if they cannot be understood."""
        bits, formats = _numbers(tags, "BitsPerSample", 1), _numbers(tags, "SampleFormat", UNSIGNED)
        if len({*bits}) > 1 or len({*formats}) > 1:
            raise Refused(
                "its channels are of different depths, which is not read; save it as 8-bit RGB"
            )
        samples = _numbers(tags, "SamplesPerPixel", 1)[0]
        height, width = _numbers(tags, "ImageLength")[0], _numbers(tags, "ImageWidth")[0]
        if min(samples, height, width) < 1:
            raise damaged(f"it has {width} x {height} pixels of {samples} samples")
        return cls(
            tags,
            height=height,
            width=width,
            color=_numbers(tags, "PhotometricInterpretation", WHITE_IS_ZERO)[0],
            bits=bits[0],
            format=formats[0],
            samples=samples,
            extra=_numbers(tags, "ExtraSamples") if TAGS["ExtraSamples"] in tags else (),
            planes=samples > 1 and _numbers(tags, "PlanarConfiguration", 1)[0] == 2,
            compression=_numbers(tags, "Compression", 1)[0],
        )

    @property
    def is_gray(self) -> bool:
        return self.color in (WHITE_IS_ZERO, BLACK_IS_ZERO)

    @property
    def bits_reversed(self) -> bool:
        return _numbers(self.tags, "FillOrder", 1)[0] == 2

    @property
    def is_deep_color(self) -> bool:
        """Whether Pillow keeps only the upper 8 bits, or does not read it."""
        return self.color == RGB and self.bits > 8

    @property
    def is_deep_gray(self) -> bool:
        """Whether it is of 16, 32 or 64 bits."""
        return self.is_gray and self.bits > 12

    @property
    def is_big_endian(self) -> bool:
        return self.tags.prefix == b"MM"

    @property
    def is_swapped_by_pillow(self) -> bool:
        """Whether Pillow may take the bytes of its samples in the wrong order."""
        return self.is_deep_gray and self.is_big_endian and self.compression != 1

    @property
    def dtype(self) -> np.dtype:
        """Of the samples, if these are 8 bits or deeper."""
        return np.dtype(f"{DTYPES[self.format]}{self.bits // 8}")

    @property
    def further(self) -> int:
        """Number of channels besides those of the color."""
        return self.samples - CHANNELS.get(self.color, 1)

    def require_readable(self) -> None:
        """Raises Refused if it is of a kind that is not read."""
        if self.color not in COLORS:
            name = OTHER_COLORS.get(self.color, f"number {self.color}")
            raise Refused(f"it has the color space {name}; save it as RGB")
        if self.is_gray and self.further > 0 and not any(self.extra):
            raise Refused(
                f"it has {self.samples} channels that are not called RGB; save three of them as RGB"
            )
        if self.color == SEPARATED and (
            self.further < 0 or _numbers(self.tags, "InkSet", 1)[0] != 1
        ):
            raise Refused("it has inks other than CMYK; save it as RGB")
        if self.further < 0:
            raise damaged(f"{self.samples} channels are too few for {COLORS[self.color]}")
        if (
            self.color == YCBCR and self.compression == 1
        ):  # Pillow takes its pixels for larger or smaller ones
            raise Refused("it is YCbCr without compression, which is not read; save it as RGB")
        if (self.format, self.bits) not in KINDS[self.color] or not self._is_known():
            raise self.not_read()
        if self.compression not in COMPRESSION_INFO:
            raise self.not_decoded()
        if self.compression != OLD_JPEG:  # whose pixels may be anywhere
            self._require_all_parts()

    def _is_known(self) -> bool:
        """Whether its channels and their order are such that this color and depth are decoded right."""
        stated = len(self.extra) == self.further or (self.further == 1 and not self.extra)
        if not stated or (
            self.bits_reversed and self.bits <= 8 and not (self.is_gray and self.bits == 1)
        ):
            return False
        if self.is_deep_color:
            # Interleaved, only one further channel; in planes, any number, of which the first may be alpha.
            return not any(self.extra[1:]) if self.planes else self.samples <= 4
        if self.planes:
            alpha = self.color == RGB and self.extra == (STRAIGHT,)
            return self.color in (RGB, SEPARATED) and self.bits == 8 and (alpha or not self.further)
        if self.is_gray and self.further:
            return (self.color, self.format, self.bits, self.further) == (
                BLACK_IS_ZERO,
                UNSIGNED,
                8,
                1,
            )
        if self.bits == 12:
            return not self.is_big_endian and self.compression == 1
        if self.color == SEPARATED:
            return not any(self.extra) and (self.bits == 8 or not self.further)
        return not self.further or self.color == RGB

    def _require_all_parts(self) -> None:
        """Raises Refused if strips or tiles are missing or empty, of which decoders make black areas or show the header."""
        kind = "Tile" if TAGS["TileOffsets"] in self.tags else "Strip"
        if kind == "Tile":
            rows, columns = (
                _numbers(self.tags, "TileLength")[0],
                _numbers(self.tags, "TileWidth")[0],
            )
        else:
            rows, columns = _numbers(self.tags, "RowsPerStrip", self.height)[0], self.width
        if rows < 1 or columns < 1:
            raise damaged("its strips or tiles have no pixels")
        needed = (
            -(-self.height // rows)
            * -(-self.width // columns)
            * (self.samples if self.planes else 1)
        )
        offsets = _numbers(self.tags, f"{kind}Offsets")
        if len(offsets) < needed:
            raise damaged(f"it has {len(offsets)} of {needed} strips or tiles")
        sizes = _numbers(self.tags, f"{kind}ByteCounts", 1)  # which old files may lack
        if 0 in offsets[:needed] or 0 in sizes[:needed]:
            raise Refused(
                "it has strips or tiles without data (a sparse TIFF), which is not read; save it with all of them"
            )

    def not_read(self) -> Refused:
        return Refused(f"it is a TIFF of {self}, which is not read; save it as 8-bit RGB")

    def not_decoded(self, details: str = "its pixels cannot be decoded") -> Refused:
        """Why a decoder may have failed."""
        if self.compression in USUAL_COMPRESSIONS:
            return damaged(details)
        name = OTHER_COMPRESSIONS.get(self.compression, f"number {self.compression}")
        return Refused(
            f"its compression, {name}, cannot be decoded here; save it with LZW or uncompressed"
        )

    def __str__(self) -> str:
        further = (
            f" with {self.further} further channel{'s' * (self.further > 1)}"
            if self.further > 0
            else ""
        )
        further += " (premultiplied)" if PREMULTIPLIED in self.extra else ""
        planes = " in separate planes" if self.planes else ""
        bits = " in reversed order of bits" if self.bits_reversed else ""
        return f"{COLORS[self.color]}{further}, {self.bits}-bit {FORMATS.get(self.format, 'data')}{planes}{bits}"

    def decode(self, content: bytes) -> np.ndarray:
        """The samples of more than 8 bits, by OpenCV, turned by the orientation.

        Args:
            content: of the file.

        Returns:
            (H, W) or (H, W, 3 or 4).

        Raises:
            Refused: they cannot be decoded.
        """
        kind = "Tile" if TAGS["TileOffsets"] in self.tags else "Strip"
        offsets, sizes = (
            _numbers(self.tags, f"{kind}{name}") for name in ("Offsets", "ByteCounts")
        )
        if any(offset + size > len(content) for offset, size in zip(offsets, sizes)):
            raise damaged("it ends before its pixels do")
        if self.planes:  # of which OpenCV would make another image
            shown = min(self.samples, 4)
            return np.stack(
                [self._decode(self._plane(content, number)) for number in range(shown)], axis=2
            )
        return self._decode(content)

    def _decode(self, content: bytes) -> np.ndarray:
        values = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
        if values is None:
            raise self.not_decoded()
        if values.dtype != self.dtype:
            raise self.not_read()
        return values if values.ndim == 2 else values[..., BGR_TO_RGB[: values.shape[2]]]

    def _plane(self, content: bytes, number: int) -> bytes:
        """A TIFF of one channel, as gray: other tags, behind the same content."""
        fields = {
            name: _numbers(self.tags, name) for name in OF_ALL_PLANES if TAGS[name] in self.tags
        }
        for name in ("StripOffsets", "StripByteCounts", "TileOffsets", "TileByteCounts"):
            if TAGS[name] in self.tags:
                values = _numbers(self.tags, name)
                length = len(values) // self.samples
                fields[name] = values[number * length : (number + 1) * length]
        fields |= {"PhotometricInterpretation": (BLACK_IS_ZERO,), "SamplesPerPixel": (1,)}
        fields |= {"BitsPerSample": (self.bits,), "SampleFormat": (self.format,)}

        order = ">" if self.is_big_endian else "<"
        content += b"\0" * (len(content) % 2)  # tags stand at even places
        start = len(content) + 2 + 12 * len(fields) + 4
        entries, behind = b"", b""
        for tag, values in sorted((TAGS[name], values) for name, values in fields.items()):
            packed = struct.pack(f"{order}{len(values)}I", *values)
            if len(values) > 1:  # does not fit in the entry
                behind += packed
                packed = struct.pack(f"{order}I", start + len(behind) - len(packed))
            entries += struct.pack(f"{order}HHI", tag, 4, len(values)) + packed
        header = self.tags.prefix + struct.pack(f"{order}HI", 42, len(content))
        count = struct.pack(f"{order}H", len(fields))
        return header + content[8:] + count + entries + b"\0\0\0\0" + behind


def _numbers(tags: ImageFileDirectory_v2, name: str, default: int | None = None) -> tuple[int, ...]:
    """The values of a tag that must be whole numbers. Raises Refused if they are not, or there are none."""
    found = tags.get(TAGS[name], default)
    values = found if isinstance(found, tuple) else (found,)
    if not values or not all(isinstance(value, int) for value in values):
        raise damaged(f"its tag {name} has no numbers")
    return values
