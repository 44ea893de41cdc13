"""TIFF files: which of their many kinds are supported, and decoding of those that Pillow lacks.

A TIFF combines color space, depth, channels and compression freely, and decoders turn some
combinations into wrong images without an error. So only the following kinds are read; others are
refused with an error that names them:

Gray of 1, 2, 4, 8, 12, 16 or 32 bits, signed gray of 8, 16 or 32 bits, floats of 32 or 64 bits;
with alpha only 8 bits. RGB of 8 or 16 bits and floats of 32 or 64 bits, also with alpha, and with
extra channels of unspecified meaning, which are left out. Palettes of up to 8 bits, CMYK of 8 or
16 bits, compressed YCbCr of 8 bits. Their channels may be interleaved, and those of RGB and 8-bit
CMYK also in separate planes.

Compression by LZW, deflate, PackBits, JPEG or CCITT (fax), or none; other methods if the installed
decoders were built with them.
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

# Both decoders would print problems with a file on stderr. Pillow may be built without libtiff, or
# with one that cannot be accessed like this.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
with suppress(OSError, AttributeError):
    ctypes.CDLL(Image.core.__file__).TIFFSetErrorHandler(None)

BGR_TO_RGB = [2, 1, 0, 3]  # OpenCV's order of channels; the last one is alpha, if there is any

TAGS = {info.name: number for number, info in TiffTags.TAGS_V2.items()}
# Values of PhotometricInterpretation.
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
# Values of SampleFormat.
UNSIGNED, SIGNED, FLOAT = 1, 2, 3
FORMATS = {
    UNSIGNED: "integers",
    SIGNED: "signed integers",
    FLOAT: "floats",
    5: "complex integers",
    6: "complex floats",
}
DTYPES = {UNSIGNED: "u", SIGNED: "i", FLOAT: "f"}
UNSPECIFIED, PREMULTIPLIED, STRAIGHT = 0, 1, 2  # values of ExtraSamples; the last two are alpha
# Supported (SampleFormat, BitsPerSample) of each color space.
_FLOATS = {(FLOAT, 32), (FLOAT, 64)}
_UNSIGNED_GRAY = {(UNSIGNED, bits) for bits in (1, 2, 4, 8, 12, 16, 32)}
_SIGNED_GRAY = {(SIGNED, 8), (SIGNED, 16), (SIGNED, 32)}
KINDS = {
    RGB: {(UNSIGNED, 8), (UNSIGNED, 16)} | _FLOATS,
    PALETTE: {(UNSIGNED, 1), (UNSIGNED, 2), (UNSIGNED, 4), (UNSIGNED, 8)},
    SEPARATED: {(UNSIGNED, 8), (UNSIGNED, 16)},
    YCBCR: {(UNSIGNED, 8)},
    BLACK_IS_ZERO: _UNSIGNED_GRAY | _SIGNED_GRAY | _FLOATS,
    WHITE_IS_ZERO: (_UNSIGNED_GRAY | _SIGNED_GRAY | _FLOATS) - {(UNSIGNED, 12), (SIGNED, 8)},
}
USUAL_COMPRESSIONS = {1, 2, 3, 4, 5, 7, 8, 32773, 32946}  # decoded by every build of libtiff
UNCOMPRESSED, OLD_JPEG, JPEG = 1, 6, 7
MAX_TAGS = 4096  # in a directory, which usually has tens
OTHER_COMPRESSIONS = {
    OLD_JPEG: "old-style JPEG",
    33003: "JPEG 2000",
    33005: "JPEG 2000",
    34712: "JPEG 2000",
    34887: "LERC",
    34925: "LZMA",
    50000: "Zstandard",
    50001: "WebP",
    50002: "JPEG XL",
    52546: "JPEG XL",
}
# Tags with the same value for every plane; StripOffsets and the like have a part for each plane.
SHARED_BY_PLANES = (
    "ImageWidth",
    "ImageLength",
    "Compression",
    "FillOrder",
    "Orientation",
    "RowsPerStrip",
    "Predictor",
    "TileWidth",
    "TileLength",
)


class Refused(ValueError):
    """Why an image is refused, and what to do."""


def damaged(details: str) -> Refused:
    return Refused(f"it is damaged or incomplete ({details}); replace it")


@dataclass(frozen=True)
class Page:
    """The properties of a page of a TIFF file, from its tags.

    Attributes:
        tags: as read by Pillow.
        height, width: as stored, before the orientation is applied.
        color: PhotometricInterpretation.
        bits: per sample.
        format: SampleFormat.
        samples: number of channels.
        extra: the meaning of the last of these (ExtraSamples), as far as it is specified.
        planes: whether each channel is stored in a separate plane.
        compression: number of the method.
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
        """Read the first page of a file; return None if it is not a TIFF.

        Raises:
            Refused: its tags cannot be understood.
        """
        # Header: byte order (II or MM) and version, 42 ("*") or 43 ("+") for BigTIFF, whose header
        # has 16 bytes instead of 8.
        header = file.read(16)
        if header[:4] == b"MM\0+":
            raise Refused(
                "it is a BigTIFF in big-endian order, which is not supported; save it in "
                "little-endian order"
            )
        if not header.startswith(tuple(PREFIXES)):
            return None
        is_big = header[2:3] == b"+"
        tags = ImageFileDirectory_v2(header if is_big else header[:8])
        file.seek(tags.next)
        # The directory begins with its number of entries. Pillow would try to read them all.
        number = int.from_bytes(
            file.read(8 if is_big else 2), "big" if tags.prefix == b"MM" else "little"
        )
        if number > MAX_TAGS:
            raise damaged(f"it has {number} tags")
        file.seek(tags.next)
        tags.load(file)
        return cls.of(tags)

    @classmethod
    def of(cls, tags: ImageFileDirectory_v2) -> "Page":
        """Create a page from tags that Pillow has read.

        Raises:
            Refused: they cannot be understood.
        """
        bits, formats = _numbers(tags, "BitsPerSample", 1), _numbers(tags, "SampleFormat", UNSIGNED)
        if len({*bits}) > 1 or len({*formats}) > 1:
            raise Refused(
                "its channels have different depths, which is not supported; save it as 8-bit RGB"
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
            compression=_numbers(tags, "Compression", UNCOMPRESSED)[0],
        )

    @property
    def is_gray(self) -> bool:
        return self.color in (WHITE_IS_ZERO, BLACK_IS_ZERO)

    @property
    def bits_reversed(self) -> bool:
        return _numbers(self.tags, "FillOrder", 1)[0] == 2

    @property
    def is_deep_color(self) -> bool:
        """Whether Pillow keeps only the upper 8 bits, or cannot read it."""
        return self.color == RGB and self.bits > 8

    @property
    def is_deep_gray(self) -> bool:
        """Whether it is gray of 16, 32 or 64 bits."""
        return self.is_gray and self.bits > 12

    @property
    def is_big_endian(self) -> bool:
        return self.tags.prefix == b"MM"

    @property
    def is_swapped_by_pillow(self) -> bool:
        """Whether Pillow may read the bytes of its samples in the wrong order."""
        return self.is_deep_gray and self.is_big_endian and self.compression != UNCOMPRESSED

    @property
    def dtype(self) -> np.dtype:
        """The type of samples of 8 bits or more."""
        return np.dtype(f"{DTYPES[self.format]}{self.bits // 8}")

    @property
    def num_extra(self) -> int:
        """Number of channels in addition to those of the color space."""
        return self.samples - CHANNELS.get(self.color, 1)

    @property
    def parts(self) -> str:
        """How the pixels are stored, "Tile" or "Strip": the beginning of the names of some tags."""
        return "Tile" if TAGS["TileOffsets"] in self.tags else "Strip"

    def require_readable(self) -> None:
        """Raise Refused if the page is of a kind that is not supported."""
        if self.color not in COLORS:
            name = OTHER_COLORS.get(self.color, f"number {self.color}")
            raise Refused(f"it has the color space {name}; save it as RGB")
        if self.is_gray and self.num_extra > 0 and not any(self.extra):
            raise Refused(
                f"it has {self.samples} channels that are not labeled RGB; save three of them as "
                "RGB"
            )
        if self.color == SEPARATED and (
            self.num_extra < 0 or _numbers(self.tags, "InkSet", 1)[0] != 1
        ):
            raise Refused("it has inks other than CMYK; save it as RGB")
        if self.num_extra < 0:
            raise damaged(f"{self.samples} channels are too few for {COLORS[self.color]}")
        if self.color == YCBCR and self.compression == UNCOMPRESSED:
            # Pillow assumes pixels of another size.
            raise Refused("it is YCbCr without compression, which is not supported; save it as RGB")
        if (self.format, self.bits) not in KINDS[self.color] or not self._has_known_layout():
            raise self.not_read()
        if self.compression not in COMPRESSION_INFO:
            raise self.not_decoded()
        if self.compression != OLD_JPEG:  # whose pixels may be stored anywhere
            self._require_all_parts()

    def _has_known_layout(self) -> bool:
        """Whether this color and depth is decoded correctly with these channels in this order."""
        # The meaning of each extra channel is specified, or there is one without a meaning.
        specified = len(self.extra) == self.num_extra or (self.num_extra == 1 and not self.extra)
        is_bitmap = self.is_gray and self.bits == 1
        if not specified or (self.bits_reversed and self.bits <= 8 and not is_bitmap):
            return False
        if self.is_deep_color:
            # Interleaved, with at most one extra channel; or in planes, with any number of extra
            # channels, of which only the first may be alpha.
            return not any(self.extra[1:]) if self.planes else self.samples <= 4
        if self.planes:
            alpha = self.color == RGB and self.extra == (STRAIGHT,)
            is_rgb_or_cmyk = self.color in (RGB, SEPARATED)
            return is_rgb_or_cmyk and self.bits == 8 and (alpha or not self.num_extra)
        if self.is_gray and self.num_extra:
            kind = (self.color, self.format, self.bits, self.num_extra)
            return kind == (BLACK_IS_ZERO, UNSIGNED, 8, 1)
        if self.bits == 12:
            return not self.is_big_endian and self.compression == UNCOMPRESSED
        if self.color == SEPARATED:
            return not any(self.extra) and (self.bits == 8 or not self.num_extra)
        return not self.num_extra or self.color == RGB

    def _require_all_parts(self) -> None:
        """Raise Refused if strips or tiles are missing or empty.

        Decoders turn these into black areas, or into an image of the header.
        """
        if self.parts == "Tile":
            rows = _numbers(self.tags, "TileLength")[0]
            columns = _numbers(self.tags, "TileWidth")[0]
        else:
            rows, columns = _numbers(self.tags, "RowsPerStrip", self.height)[0], self.width
        if rows < 1 or columns < 1:
            raise damaged("its strips or tiles have no pixels")
        # -(-a // b) rounds up: parts at the right and lower border may extend beyond the image.
        parts_per_plane = -(-self.height // rows) * -(-self.width // columns)
        needed = parts_per_plane * (self.samples if self.planes else 1)
        offsets = _numbers(self.tags, f"{self.parts}Offsets")
        if len(offsets) < needed:
            raise damaged(f"it has {len(offsets)} of {needed} strips or tiles")
        sizes = _numbers(self.tags, f"{self.parts}ByteCounts", 1)  # old files may lack this tag
        if 0 in offsets[:needed] or 0 in sizes[:needed]:
            raise Refused(
                "it has strips or tiles without data (a sparse TIFF), which is not supported; save "
                "it with all of them"
            )

    def not_read(self) -> Refused:
        return Refused(f"it is a TIFF of {self}, which is not supported; save it as 8-bit RGB")

    def not_decoded(self, details: str = "its pixels cannot be decoded") -> Refused:
        """Return why a decoder may have failed."""
        if self.compression in USUAL_COMPRESSIONS:
            return damaged(details)
        name = OTHER_COMPRESSIONS.get(self.compression, f"number {self.compression}")
        return Refused(
            f"its compression, {name}, cannot be decoded here; save it with LZW or uncompressed"
        )

    def __str__(self) -> str:
        channels = COLORS[self.color]
        if self.num_extra > 0:
            channels += f" with {self.num_extra} extra channel{'s' * (self.num_extra > 1)}"
        if PREMULTIPLIED in self.extra:
            channels += " (premultiplied)"
        planes = " in separate planes" if self.planes else ""
        bits = " in reversed bit order" if self.bits_reversed else ""
        return f"{channels}, {self.bits}-bit {FORMATS.get(self.format, 'data')}{planes}{bits}"

    def decode(self, content: bytes) -> np.ndarray:
        """Decode samples of more than 8 bits by OpenCV, with the orientation applied.

        Args:
            content: of the file.

        Returns:
            (H, W) or (H, W, 3 or 4).

        Raises:
            Refused: they cannot be decoded.
        """
        offsets = _numbers(self.tags, f"{self.parts}Offsets")
        sizes = _numbers(self.tags, f"{self.parts}ByteCounts")
        if any(offset + size > len(content) for offset, size in zip(offsets, sizes)):
            raise damaged("it ends before its pixels do")
        if not self.planes:
            return self._decode(content)
        # OpenCV decodes planes incorrectly. So decode each as a gray image.
        planes = []
        for number in range(min(self.samples, 4)):  # color and alpha
            planes.append(self._decode(self._plane(content, number)))
        return np.stack(planes, axis=2)

    def _decode(self, content: bytes) -> np.ndarray:
        values = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
        if values is None:
            raise self.not_decoded()
        if values.dtype != self.dtype:
            raise self.not_read()
        return values if values.ndim == 2 else values[..., BGR_TO_RGB[: values.shape[2]]]

    def _plane(self, content: bytes, number: int) -> bytes:
        """Build a gray TIFF of one channel: the same content, followed by other tags."""
        order = ">" if self.is_big_endian else "<"
        content += b"\0" * (len(content) % 2)  # a directory begins at an even offset
        directory = _pack_directory(self._plane_tags(number), order, len(content))
        # Header: byte order, version (42), offset of the directory. It has 8 bytes, which replace
        # those of the file, so that the offsets of strips and tiles stay valid.
        header = self.tags.prefix + struct.pack(f"{order}HI", 42, len(content))
        return header + content[8:] + directory

    def _plane_tags(self, number: int) -> dict[str, tuple[int, ...]]:
        """The tags, by their names, of a gray TIFF of one channel."""
        fields: dict[str, tuple[int, ...]] = {
            "PhotometricInterpretation": (BLACK_IS_ZERO,),
            "SamplesPerPixel": (1,),
            "BitsPerSample": (self.bits,),
            "SampleFormat": (self.format,),
        }
        for name in SHARED_BY_PLANES:
            if TAGS[name] in self.tags:
                fields[name] = _numbers(self.tags, name)
        for name in ("StripOffsets", "StripByteCounts", "TileOffsets", "TileByteCounts"):
            if TAGS[name] in self.tags:
                # All strips or tiles of the first plane, then all of the second one, ...
                values = _numbers(self.tags, name)
                length = len(values) // self.samples
                fields[name] = values[number * length : (number + 1) * length]
        return fields


def _pack_directory(fields: dict[str, tuple[int, ...]], order: str, offset: int) -> bytes:
    """Encode a TIFF directory.

    Its layout, with all values as 32-bit integers (type 4):

        number of entries   2 bytes
        entries             12 bytes each, in order of their tags: tag (2), type (2),
                            number of values (4), the value or the offset of the values (4)
        next directory      4 bytes, 0 for none
        values              of the entries with more than one

    Args:
        fields: values by the names of tags.
        order: ">" for big-endian, "<" for little-endian.
        offset: of the directory in the file.
    """
    start = offset + 2 + 12 * len(fields) + 4  # offset of the values behind the entries
    entries, behind = b"", b""
    for tag, values in sorted((TAGS[name], values) for name, values in fields.items()):
        packed = struct.pack(f"{order}{len(values)}I", *values)
        if len(values) > 1:
            position = start + len(behind)
            behind += packed
            packed = struct.pack(f"{order}I", position)
        entries += struct.pack(f"{order}HHI", tag, 4, len(values)) + packed
    return struct.pack(f"{order}H", len(fields)) + entries + b"\0\0\0\0" + behind


def _numbers(tags: ImageFileDirectory_v2, name: str, default: int | None = None) -> tuple[int, ...]:
    """Return the values of a tag that must be integers.

    Raises:
        Refused: they are not, or there are none.
    """
    found = tags.get(TAGS[name], default)
    values = found if isinstance(found, tuple) else (found,)
    if not values or not all(isinstance(value, int) for value in values):
        raise damaged(f"its tag {name} has no integer values")
    return values
