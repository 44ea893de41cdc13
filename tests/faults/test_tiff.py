"""Kinds of TIFF files, combined pairwise: each is read as tifffile reads it, or is refused for what is true of it."""

import io
import itertools
import random
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import tifffile
from gpvit.conversion import size_of
from gpvit.errors import UserError
from gpvit.images import TURNS, read_image
from PIL import Image

HEIGHT, WIDTH = 17, 24
COLORS = {"white is 0": 1, "black is 0": 1, "RGB": 3, "palette": 1, "CMYK": 4, "YCbCr": 3, "CIELAB": 3}  # channels
PHOTOMETRIC = dict(zip(COLORS, ("miniswhite", "minisblack", "rgb", "minisblack", "separated", "ycbcr", "cielab")))
EXTRA = {"none": (), "unspecified": (0,), "premultiplied": (1,), "alpha": (2,), "two": (0, 0)}
LOSSLESS = {"none": None, "reversed bits": None, "LZW": "lzw", "deflate": "deflate", "PackBits": "packbits", "Zstandard": "zstd", "LZMA": "lzma"}
OPTIONAL = ("Zstandard", "LZMA", "WebP")  # compressions that only some builds of the decoders read
LOSSY = {"JPEG": "jpeg", "WebP": "webp", "JPEG 2000": "jpeg2000"}


class Kind(NamedTuple):
    """What a file is; the defaults are what most files are."""

    color: str = "RGB"
    depth: str = "u8"
    extra: str = "none"
    planes: str = "interleaved"
    compression: str = "none"
    predictor: str = "none"
    order: str = "<"
    orientation: int = -1  # -1 for none
    layout: str = "strip"
    file: str = "plain"

    @property
    def bits(self) -> int:
        return int(self.depth[1:])

    @property
    def channels(self) -> int:
        return COLORS[self.color] + len(EXTRA[self.extra])

    @property
    def gray(self) -> bool:
        return self.color in ("white is 0", "black is 0")


VALUES = Kind(
    color=tuple(COLORS),
    depth=("u1", "u2", "u4", "u8", "u12", "u16", "u32", "i8", "i16", "i32", "f16", "f32", "f64"),
    extra=tuple(EXTRA),
    planes=("interleaved", "separate"),
    compression=(*LOSSLESS, *LOSSY, "CCITT"),
    predictor=("none", "horizontal", "float"),
    order=("<", ">"),
    orientation=tuple(range(-1, 10)),
    layout=("strip", "strips", "tiles"),
    file=("plain", "BigTIFF", "two pages"),
)


def can_be_written(kind: Kind) -> bool:
    """Whether there is such a file, and tifffile (of CCITT: Pillow) writes it."""
    whole = kind.bits in (8, 16, 32, 64)
    predictable = kind.compression in ("LZW", "deflate", "Zstandard", "LZMA")
    rules = (
        kind.planes == "interleaved" or kind.channels > 1,
        kind.color != "palette" or (kind.depth in ("u1", "u2", "u4", "u8") and kind.extra == "none"),
        kind.color != "YCbCr" or kind.depth == "u8",
        kind.predictor == "none" or (predictable and whole),
        kind.predictor != "float" or kind.depth[0] == "f",
        kind.predictor != "horizontal" or kind.depth[0] != "f",
        whole or kind.depth == "u1" or kind.compression in ("none", "reversed bits"),
        kind.depth != "u1" or (kind.channels == 1 and (kind.gray or kind.compression in ("none", "reversed bits"))),
        kind.depth != "u12" or kind.order == "<",
        kind.compression != "JPEG" or (kind.depth == "u8" and kind.extra == "none"),
        kind.compression != "WebP" or (kind.depth == "u8" and kind.channels in (3, 4) and kind.planes == "interleaved"),
        kind.compression != "JPEG 2000" or kind.depth in ("u8", "u16"),
        kind.compression != "CCITT" or (kind.gray and kind.depth == "u1" and kind.extra == "none"),
    )
    return all(rules)


def pairwise() -> list[Kind]:
    """Kinds in which any two values of :data:`VALUES` meet that can, found greedily."""
    chance = random.Random(0)
    # These columns limit each other; the others go with all of them.
    limited = VALUES[:7]
    contents = [values for values in itertools.product(*limited) if can_be_written(Kind(*values))]
    wanted = set()
    for (i, values), (j, others) in itertools.combinations(enumerate(VALUES), 2):
        both_limited = j < len(limited)
        pairs = {(c[i], c[j]) for c in contents} if both_limited else itertools.product(values, others)
        wanted |= {((i, value), (j, other)) for value, other in pairs}
    kinds = []
    while wanted:
        pair = min(wanted)
        columns = [(column, value) for column, value in pair if column < len(limited)]
        fitting = [content for content in contents if all(content[column] == value for column, value in columns)]
        best, covered = (), set()
        for _ in range(20):
            values = [*chance.choice(fitting), *map(chance.choice, VALUES[len(limited) :])]
            for column, value in pair:
                values[column] = value
            gained = wanted.intersection(itertools.combinations(enumerate(values), 2))
            if len(gained) > len(covered):
                best, covered = values, gained
        kinds.append(Kind(*best))
        wanted -= covered
    return kinds


def samples_of(kind: Kind) -> np.ndarray:
    """Samples (HEIGHT, WIDTH, channels) that are another image when they are turned; alpha has all values."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    x, y = x / (WIDTH - 1), y / (HEIGHT - 1)
    values = np.stack([x, y, (x + 2 * y) / 3, 0.1 + 0.8 * x * y, 1 - x], axis=2)
    values = np.concatenate([values, values[::-1]], axis=2)[..., : kind.channels]
    if kind.channels == 1:
        values = (x + 2 * y)[..., None] / 3
    if kind.extra == "premultiplied":
        values[..., :-1] *= values[..., -1:]
    if kind.depth[0] == "f":
        return values.astype(f"f{kind.bits // 8}")
    low = -(2 ** (kind.bits - 1)) if kind.depth[0] == "i" else 0
    size = 1 if kind.bits <= 8 else 2 if kind.bits <= 16 else 4
    return (np.round(values * (2**kind.bits - 1)) + low).astype(f"{kind.depth[0]}{size}")


def colormap(bits: int) -> np.ndarray:
    """(3, 2 ** bits), 16-bit, that is neither gray nor in order."""
    places = np.arange(2**bits)
    return np.stack([places[::-1], places * 5 % 2**bits, places]).astype(np.uint16) * np.uint16(65535 // (2**bits - 1))


def write(path: Path, kind: Kind) -> np.ndarray:
    """Writes a file by tifffile, and gives the samples in it, (HEIGHT, WIDTH, channels), as tifffile reads them."""
    samples = samples_of(kind)
    options: dict = {"photometric": PHOTOMETRIC[kind.color], "extrasamples": EXTRA[kind.extra] or None, "metadata": None}
    options |= {"compression": (LOSSLESS | LOSSY | {"CCITT": "packbits"})[kind.compression], "rowsperstrip": HEIGHT}
    if kind.channels > 1:
        options["planarconfig"] = "separate" if kind.planes == "separate" else "contig"
    if kind.depth == "u1" and kind.gray:
        samples = samples.astype(bool)
    elif kind.bits not in (8, 16, 32, 64):
        options["bitspersample"] = kind.bits
    if kind.predictor != "none":
        options["predictor"] = kind.predictor if kind.predictor != "float" else "floatingpoint"
    if kind.layout == "strips":
        options["rowsperstrip"] = 5
    elif kind.layout == "tiles":
        options |= {"tile": (16, 16), "rowsperstrip": None}
    tags = [(274, "H", 1, kind.orientation, True)] if kind.orientation >= 0 else []
    if kind.compression == "reversed bits":
        tags.append((269, "H", 1, 2, True))
    if kind.color == "palette":
        tags.append((320, "H", 3 * 2**kind.bits, colormap(kind.bits).ravel(), True))
    data = samples[..., 0] if kind.channels == 1 else np.moveaxis(samples, 2, 0) if kind.planes == "separate" else samples
    with tifffile.TiffWriter(path, bigtiff=kind.file == "BigTIFF", byteorder=kind.order) as writer:
        if kind.compression == "CCITT":
            parts = ccitt_parts(data, kind.layout)
            writer.write(parts, shape=data.shape, dtype=bool, extratags=tags, **options)
        else:
            writer.write(data, extratags=tags, **options)
        if kind.file == "two pages":
            writer.write(data[..., ::-1, :] if data.ndim == 3 else data[::-1], **options)
    with tifffile.TiffFile(path, mode="r+") as file:
        tags = file.pages[0].tags
        if kind.compression == "CCITT":
            tags[259].overwrite(4)
        if kind.compression == "reversed bits":
            reverse_bits(file)
        if kind.color == "palette":
            tags[262].overwrite(3)
    read = tifffile.imread(path, key=0)
    if kind.compression not in LOSSY:
        assert np.array_equal(read, data)
    return read[..., None] if read.ndim == 2 else np.moveaxis(read, 0, 2) if kind.planes == "separate" else read


def ccitt_parts(bits: np.ndarray, layout: str):
    """Strips or tiles in Group 4 encoding, which only Pillow writes."""
    height, width = {"strip": (HEIGHT, WIDTH), "strips": (5, WIDTH), "tiles": (16, 16)}[layout]
    if layout == "tiles":
        bits = np.pad(bits, ((0, -HEIGHT % 16), (0, -WIDTH % 16)))
    for y, x in itertools.product(range(0, len(bits), height), range(0, bits.shape[1], width)):
        file = io.BytesIO()
        Image.fromarray(bits[y : y + height, x : x + width]).save(file, "TIFF", compression="group4")
        with Image.open(file) as image:
            start, length = image.tag_v2[273][0], image.tag_v2[279][0]
        yield file.getvalue()[start : start + length]


def reverse_bits(file: tifffile.TiffFile) -> None:
    table = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
    for start, length in zip(file.pages[0].dataoffsets, file.pages[0].databytecounts):
        file.filehandle.seek(start)
        reversed_ = file.filehandle.read(length).translate(table)
        file.filehandle.seek(start)
        file.filehandle.write(reversed_)
    file.filehandle.seek(file.pages[0].tags[269].offset)
    file.filehandle.write((266).to_bytes(2, "little" if file.byteorder == "<" else "big"))


def is_read(kind: Kind) -> bool:
    """Whether the color space, depth and channels of a kind are among those that are read."""
    depths = {
        "palette": "u1 u2 u4 u8",
        "RGB": "u8 u16 f32 f64",
        "CMYK": "u8 u16",
        "YCbCr": "u8",
        "black is 0": "u1 u2 u4 u8 u12 u16 u32 i8 i16 i32 f32 f64",
        "white is 0": "u1 u2 u4 u8 u16 u32 i16 i32 f32 f64",
    }
    extra = {
        "RGB": "none unspecified premultiplied alpha two",
        "CMYK": "none unspecified two" if kind.bits == 8 else "none",
        "black is 0": "none premultiplied alpha" if kind.depth == "u8" else "none",
    }
    planes = {"RGB": "none alpha" if kind.bits == 8 else extra["RGB"], "CMYK": "none" if kind.bits == 8 else ""}
    if kind.color == "RGB" and kind.bits > 8:
        extra["RGB"] = "none unspecified premultiplied alpha"
    whole = kind.bits > 8 or (kind.gray and kind.bits == 1)
    return (
        kind.depth in depths[kind.color].split()
        and kind.extra in (extra.get(kind.color, "none") if kind.planes == "interleaved" else planes.get(kind.color, "")).split()
        and (kind.compression != "reversed bits" or (whole and kind.depth != "u12"))
        and (kind.color != "CMYK" or kind.compression != "reversed bits")
    )


def refusal(kind: Kind) -> str | None:
    """What must be said of a kind that is refused; None if it must be read."""
    further = len(EXTRA[kind.extra])
    if kind.order == ">" and kind.file == "BigTIFF":
        return "it is a BigTIFF in big-endian order, which is not read; save it in little-endian order"
    if kind.color == "CIELAB":
        return "it has the color space CIELAB; save it as RGB"
    if kind.gray and kind.extra in ("unspecified", "two"):
        return f"it has {kind.channels} channels that are not called RGB; save three of them as RGB"
    if not is_read(kind):
        color = {"CMYK": "inks"}.get(kind.color, "gray" if kind.gray else kind.color)
        channels = ["", " with 1 further channel", " with 2 further channels"][further]
        depth = {"u": "integers", "i": "signed integers", "f": "floats"}[kind.depth[0]]
        planes = " in separate planes" if kind.planes == "separate" else ""
        bits = " in reversed order of bits" if kind.compression == "reversed bits" else ""
        return f"it is a TIFF of {color}{channels}, {kind.bits}-bit {depth}{planes}{bits}, which is not read"
    if kind.compression in ("JPEG 2000", *OPTIONAL):
        return f"its compression, {kind.compression}, cannot be decoded here; save it with LZW or uncompressed"
    return None


def expected(samples: np.ndarray, kind: Kind) -> np.ndarray:
    """The image, float, upright, by the rules in gpvit/images.py, from all samples as they are stored."""
    values, alpha = samples.astype(float), None
    full = 2**kind.bits - 1 if kind.depth[0] == "u" else 1
    if kind.extra in ("premultiplied", "alpha"):
        alpha = values[..., -1:] / full
    values = values[..., : COLORS[kind.color]]
    if alpha is not None and kind.extra == "premultiplied":
        values = np.divide(values, alpha, out=np.zeros_like(values), where=alpha > 0)
    if kind.color == "palette":
        rgb = colormap(kind.bits).T[samples[..., 0].astype(int)] // 256
    elif kind.gray and kind.depth in ("u12", "u16", "u32", "i8", "i16", "i32"):
        rgb = (values - values.min()) / (values.max() - values.min()) * 255
    else:
        rgb = values / full * 255
    if kind.color == "white is 0":
        rgb = 255 - rgb
    elif kind.color == "CMYK":
        rgb = (255 - rgb[..., :3]) * (255 - rgb[..., 3:]) / 255
    elif kind.color == "YCbCr" and kind.compression != "JPEG":  # tifffile makes RGB of JPEG
        y, blue, red = rgb[..., :1], rgb[..., 1:2] - 128, rgb[..., 2:] - 128
        rgb = np.concatenate([y + 1.402 * red, y - 0.344136 * blue - 0.714136 * red, y + 1.772 * blue], axis=2)
    if alpha is not None:
        rgb = 255 - (255 - rgb) * alpha
    turn = TURNS.get(kind.orientation)
    rgb = np.broadcast_to(rgb, (HEIGHT, WIDTH, 3)).clip(0, 255)
    return turn(rgb) if turn else rgb
