"""Kinds of TIFF files, combined pairwise: each is read as tifffile reads it, or is refused for what is true of it."""

import io
import itertools
import logging
import random
import struct
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import tifffile
from gpvit.data.datasets.to_coco import size_of
from gpvit.data.image_io import TURNS, from_pillow, read_image
from gpvit.utils.errors import UserError
from PIL import Image, UnidentifiedImageError

HEIGHT, WIDTH = 17, 24
COLORS = {
    "white is 0": 1,
    "black is 0": 1,
    "RGB": 3,
    "palette": 1,
    "CMYK": 4,
    "YCbCr": 3,
    "CIELAB": 3,
}  # channels
PHOTOMETRIC = dict(
    zip(COLORS, ("miniswhite", "minisblack", "rgb", "minisblack", "separated", "ycbcr", "cielab"))
)
EXTRA = {"none": (), "unspecified": (0,), "premultiplied": (1,), "alpha": (2,), "two": (0, 0)}
LOSSLESS = {"none": None, "reversed bits": None}
LOSSLESS |= {
    "LZW": "lzw",
    "deflate": "deflate",
    "PackBits": "packbits",
    "Zstandard": "zstd",
    "LZMA": "lzma",
}
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


ORIENTATIONS = tuple(range(-1, 10))
VALUES = Kind(
    color=tuple(COLORS),
    depth=("u1", "u2", "u4", "u8", "u12", "u16", "u32", "i8", "i16", "i32", "f16", "f32", "f64"),
    extra=tuple(EXTRA),
    planes=("interleaved", "separate"),
    compression=(*LOSSLESS, *LOSSY, "CCITT"),
    predictor=("none", "horizontal", "float"),
    order=("<", ">"),
    orientation=ORIENTATIONS,
    layout=("strip", "strips", "tiles"),
    file=("plain", "BigTIFF", "two pages"),
)


def can_be_written(kind: Kind) -> bool:
    """Whether there is such a file, and tifffile (of CCITT: Pillow) writes it."""
    whole = kind.bits in (8, 16, 32, 64)
    predictable = kind.compression in ("LZW", "deflate", "Zstandard", "LZMA")
    rules = (
        kind.planes == "interleaved" or kind.channels > 1,
        kind.color != "palette"
        or (kind.depth in ("u1", "u2", "u4", "u8") and kind.extra == "none"),
        kind.color != "YCbCr" or kind.depth == "u8",
        kind.predictor == "none" or (predictable and whole),
        kind.predictor != "float" or kind.depth[0] == "f",
        kind.predictor != "horizontal" or kind.depth[0] != "f",
        whole or kind.depth == "u1" or kind.compression in ("none", "reversed bits"),
        kind.depth != "u1"
        or (kind.channels == 1 and (kind.gray or kind.compression in ("none", "reversed bits"))),
        kind.depth != "u12" or kind.order == "<",
        kind.compression != "JPEG" or (kind.depth == "u8" and kind.extra == "none"),
        kind.compression != "WebP"
        or (kind.depth == "u8" and kind.channels in (3, 4) and kind.planes == "interleaved"),
        kind.compression != "JPEG 2000" or kind.depth in ("u8", "u16"),
        kind.compression != "CCITT" or (kind.gray and kind.depth == "u1" and kind.extra == "none"),
    )
    return all(rules)


def pairwise(accept: Callable[[Kind], bool]) -> list[Kind]:
    """Kinds that are accepted, in which any two values of :data:`VALUES` meet that can; found greedily."""
    chance = random.Random(0)
    limited = VALUES.index(
        ORIENTATIONS
    )  # the columns before limit each other, the others go with all of them
    contents = [
        content for content in itertools.product(*VALUES[:limited]) if accept(Kind(*content))
    ]
    values = [*map(set, zip(*contents)), *VALUES[limited:]]
    wanted = set()
    for i, j in itertools.combinations(range(len(values)), 2):
        together = itertools.product(values[i], values[j])
        if j < limited:
            together = {(content[i], content[j]) for content in contents}
        wanted |= {((i, value), (j, other)) for value, other in together}
    kinds = []
    while wanted:
        pair = min(wanted)
        fitting = contents
        for column, value in pair:
            if column < limited:
                fitting = [content for content in fitting if content[column] == value]
        best, covered = (), set()
        for _ in range(20):
            candidate = [*chance.choice(fitting), *map(chance.choice, VALUES[limited:])]
            for column, value in pair:
                candidate[column] = value
            gained = wanted.intersection(itertools.combinations(enumerate(candidate), 2))
            if len(gained) > len(covered):
                best, covered = candidate, gained
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
    return np.stack([places[::-1], places * 5 % 2**bits, places]).astype(np.uint16) * np.uint16(
        65535 // (2**bits - 1)
    )


def write(path: Path, kind: Kind) -> np.ndarray:
    """Writes a file by tifffile, and gives the samples in it, (HEIGHT, WIDTH, channels), as tifffile reads them."""
    samples = samples_of(kind)
    options: dict = {
        "photometric": PHOTOMETRIC[kind.color],
        "extrasamples": EXTRA[kind.extra] or None,
        "metadata": None,
    }
    options |= {
        "compression": (LOSSLESS | LOSSY | {"CCITT": "packbits"})[kind.compression],
        "rowsperstrip": HEIGHT,
    }
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
    data = (
        samples[..., 0]
        if kind.channels == 1
        else np.moveaxis(samples, 2, 0)
        if kind.planes == "separate"
        else samples
    )
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
    return (
        read[..., None]
        if read.ndim == 2
        else np.moveaxis(read, 0, 2)
        if kind.planes == "separate"
        else read
    )


def ccitt_parts(bits: np.ndarray, layout: str) -> Iterator[bytes]:
    """Strips or tiles in Group 4 encoding, which only Pillow writes."""
    height, width = {"strip": (HEIGHT, WIDTH), "strips": (5, WIDTH), "tiles": (16, 16)}[layout]
    if layout == "tiles":
        bits = np.pad(bits, ((0, -HEIGHT % 16), (0, -WIDTH % 16)))
    for y, x in itertools.product(range(0, len(bits), height), range(0, bits.shape[1], width)):
        file = io.BytesIO()
        Image.fromarray(bits[y : y + height, x : x + width]).save(
            file, "TIFF", compression="group4"
        )
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
        ("RGB", "interleaved"): "none unspecified premultiplied alpha two",
        ("RGB", "separate"): "none alpha",
        ("CMYK", "interleaved"): "none unspecified two",
        ("CMYK", "separate"): "none",
        ("YCbCr", "separate"): "",
        ("black is 0", "interleaved"): "none premultiplied alpha",
    }
    if kind.depth != "u8":
        of_one_plane = "none unspecified premultiplied alpha"
        extra = {
            ("RGB", "interleaved"): of_one_plane,
            ("RGB", "separate"): f"{of_one_plane} two",
            ("CMYK", "separate"): "",
        }
    if kind.compression == "reversed bits":
        depths = {
            "RGB": "u16 f32 f64",
            "black is 0": "u1 u16 u32 i16 i32 f32 f64",
            "white is 0": "u1 u16 u32 i16 i32 f32 f64",
        }
    return (
        kind.depth in depths.get(kind.color, "").split()
        and kind.extra in extra.get((kind.color, kind.planes), "none").split()
        and (kind.depth != "u12" or kind.compression == "none")
    )


def refusal(kind: Kind) -> str | None:
    """What must be said of a kind if it is refused; None if it must be read."""
    further = len(EXTRA[kind.extra])
    if kind.order == ">" and kind.file == "BigTIFF":
        return (
            "it is a BigTIFF in big-endian order, which is not read; save it in little-endian order"
        )
    if kind.color == "CIELAB":
        return "it has the color space CIELAB; save it as RGB"
    if kind.gray and kind.extra in ("unspecified", "two"):
        return f"it has {kind.channels} channels that are not called RGB; save three of them as RGB"
    if kind.color == "YCbCr" and kind.compression in ("none", "reversed bits"):
        return "it is YCbCr without compression, which is not read; save it as RGB"
    if not is_read(kind) or (kind.gray and kind.extra == "premultiplied"):
        color = "gray" if kind.gray else kind.color
        channels = ["", " with 1 further channel", " with 2 further channels"][further]
        channels += " (premultiplied)" if kind.extra == "premultiplied" else ""
        depth = {"u": "integers", "i": "signed integers", "f": "floats"}[kind.depth[0]]
        planes = " in separate planes" if kind.planes == "separate" else ""
        bits = " in reversed order of bits" if kind.compression == "reversed bits" else ""
        return f"it is a TIFF of {color}{channels}, {kind.bits}-bit {depth}{planes}{bits}, which is not read"
    if kind.compression in ("JPEG 2000", *OPTIONAL):
        return f"its compression, {kind.compression}, cannot be decoded here; save it with LZW or uncompressed"
    return None


def expected(samples: np.ndarray, kind: Kind) -> np.ndarray:
    """The image, float, upright, by the rules in gpvit/data/image_io.py, from all samples as they are stored."""
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
        rgb = np.concatenate(
            [y + 1.402 * red, y - 0.344136 * blue - 0.714136 * red, y + 1.772 * blue], axis=2
        )
    if alpha is not None:
        rgb = 255 - (255 - rgb) * alpha
    turn = TURNS.get(kind.orientation)
    rgb = np.broadcast_to(rgb, (HEIGHT, WIDTH, 3)).clip(0, 255)
    return turn(rgb) if turn else rgb


@pytest.fixture(scope="module")
def kinds() -> list[Kind]:
    """Pairwise combinations of all that can be written, and of those that are read."""
    read = pairwise(lambda kind: can_be_written(kind) and refusal(kind) is None)
    return [*dict.fromkeys(pairwise(can_be_written) + read)]


@pytest.fixture(autouse=True)
def silent_tifffile(monkeypatch: pytest.MonkeyPatch) -> None:
    """It logs that orientations 0 and 9 are none."""
    monkeypatch.setattr(logging.getLogger("tifffile"), "disabled", True)


def test_every_kind_is_read_right_or_refused_for_what_it_is(
    tmp_path: Path, kinds: list[Kind], capfd: pytest.CaptureFixture
) -> None:
    path, counts = tmp_path / "image.tiff", Counter()
    for kind in kinds:
        samples = write(path, kind)
        reason = refusal(kind)
        try:
            image = read_image(path)
        except UserError as error:
            message = str(error)
            assert reason and f"{path}: cannot be read: {reason}" in message, (kind, message)
            counts["refused"] += 1
            continue
        new = kind.gray and kind.extra == "premultiplied"  # to Pillow 13
        assert reason is None or kind.compression in OPTIONAL or new, kind
        deviation = np.abs(image - expected(samples, kind)).max()
        # Pillow makes RGB of CMYK of 8 bits.
        assert deviation <= (
            8 if kind.compression in LOSSY else 2 if kind.color == "CMYK" else 1.01
        ), kind
        assert size_of(path) == image.shape[:2], kind
        counts["right"] += 1
    assert not capfd.readouterr().err
    with capfd.disabled():
        print(f"\n{len(kinds)} files, of these {dict(counts)}")
    assert len(kinds) <= 400 and counts["right"] > 100


def test_an_image_that_pillow_has_opened_is_right_or_refused(
    tmp_path: Path, kinds: list[Kind]
) -> None:
    path = tmp_path / "image.tiff"
    for kind in kinds:
        if refusal(kind) is not None:
            continue
        samples = write(path, kind)
        try:
            opened = Image.open(path)
        except UnidentifiedImageError:
            continue
        with opened:
            try:
                image = from_pillow(opened)
            except UserError as error:
                assert "of which Pillow makes another image; give its path" in str(error), kind
                assert kind.bits > 8, kind
                continue
        deviation = np.abs(image - expected(samples, kind)).max()
        assert deviation <= (8 if kind.compression in LOSSY else 3 if kind.bits == 16 else 1.01), (
            kind
        )


def change(path: Path, tag: int, value: int) -> None:
    """Changes the only value of a tag, whatever it means."""
    with tifffile.TiffFile(path, mode="r+") as file:
        file.pages[0].tags[tag].overwrite(value)


def reason_of(path: Path) -> str:
    with pytest.raises(UserError) as error:
        read_image(path)
    return str(error.value).removeprefix(f"{path}: cannot be read: ")


@pytest.mark.parametrize(
    ("kind", "tag", "value", "reason"),
    [
        (Kind(), 256, 0, "it is damaged or incomplete (it has 0 x 17 pixels of 3 samples)"),
        (Kind(), 257, 10**7, "it has more than 100 million pixels"),
        (Kind(depth="u16"), 257, 10**7, "it has more than 100 million pixels"),
        (Kind(), 257, 900, "it is damaged or incomplete (it has 1 of 53 strips or tiles)"),
        (
            Kind(depth="u16", planes="separate"),
            257,
            900,
            "it is damaged or incomplete (it has 3 of 159 strips or tiles)",
        ),
        (
            Kind(layout="tiles"),
            323,
            0,
            "it is damaged or incomplete (its strips or tiles have no pixels)",
        ),
        (Kind(), 278, 0, "it is damaged or incomplete (its strips or tiles have no pixels)"),
        (
            Kind(color="black is 0"),
            262,
            2,
            "it is damaged or incomplete (1 channels are too few for RGB)",
        ),
        (
            Kind(),
            277,
            65535,
            "it is a TIFF of RGB with 65532 further channels, 8-bit integers, which is not read",
        ),
        (
            Kind(color="black is 0"),
            262,
            32803,
            "it has the color space color filter array; save it as RGB",
        ),
        (Kind(color="black is 0"), 262, 4711, "it has the color space number 4711; save it as RGB"),
        (Kind(color="CMYK"), 277, 3, "it has inks other than CMYK; save it as RGB"),
        (Kind(), 259, 34887, "its compression, LERC, cannot be decoded here"),
        (Kind(depth="u16"), 259, 4711, "its compression, number 4711, cannot be decoded here"),
        (Kind(), 259, 5, "it is damaged or incomplete (decoder error -2)"),
        (Kind(depth="u16"), 259, 5, "it is damaged or incomplete (its pixels cannot be decoded)"),
        (
            Kind(color="black is 0", depth="f32"),
            339,
            4,
            "it is a TIFF of gray, 32-bit data, which is not read",
        ),
        (
            Kind(color="black is 0", depth="f64"),
            339,
            6,
            "it is a TIFF of gray, 64-bit complex floats, which is not read",
        ),
        (
            Kind(color="black is 0", depth="f32"),
            258,
            24,
            "it is a TIFF of gray, 24-bit floats, which is not read",
        ),
    ],
)
def test_a_page_that_is_not_read_is_refused_for_what_its_tags_say(
    tmp_path: Path, capfd: pytest.CaptureFixture, kind: Kind, tag: int, value: int, reason: str
) -> None:
    path = tmp_path / "image.tiff"
    write(path, kind)
    change(path, tag, value)
    assert reason in reason_of(path)
    assert not capfd.readouterr().err


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"II*\0", "it is damaged or incomplete"),
        (b"II*\0\xff\xff\xff\xff", "its tag ImageLength has no numbers"),
        (b"MM\0+" + bytes(12), "it is a BigTIFF in big-endian order, which is not read"),
        (b"II+\0\x08\0\0\0", "it is damaged or incomplete"),
        (b"MM*\0" + bytes(100), "it is damaged or incomplete"),
    ],
)
def test_a_header_without_tags_is_damaged(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "image.tiff").write_bytes(content)
    assert reason in reason_of(tmp_path / "image.tiff")


@pytest.mark.parametrize("depth", ["u16", "i16", "u32", "i32", "f32", "f64"])
def test_uncompressed_deep_gray_in_big_endian_order_is_read_right(
    tmp_path: Path, depth: str
) -> None:
    path = tmp_path / "image.tiff"
    for color, layout, orientation in itertools.product(
        ("black is 0", "white is 0"), ("strip", "strips", "tiles"), range(1, 9)
    ):
        kind = Kind(color=color, depth=depth, order=">", layout=layout, orientation=orientation)
        right = expected(write(path, kind), kind)
        assert np.abs(read_image(path) - right).max() <= 1.01, kind
        with suppress(UnidentifiedImageError), Image.open(path) as opened:
            assert np.abs(from_pillow(opened) - right).max() <= 1.01, kind


@pytest.mark.parametrize(
    ("planes", "depth"),
    [("contig", "u8"), *itertools.product(("contig", "separate"), ("u16", "f32", "f64"))],
)
def test_a_premultiplied_color_larger_than_its_alpha_does_not_darken_the_others(
    tmp_path: Path, planes: str, depth: str
) -> None:
    samples = np.full((HEIGHT, WIDTH, 4), 255.0)
    samples[..., :3] = np.linspace(5, 255, WIDTH)[:, None]
    right = samples[..., :3].copy()
    samples[2, 3], right[2, 3] = (5, 5, 5, 0), 255
    if depth == "u16":
        stored = (samples * 257).round().astype(np.uint16)
    elif depth == "u8":
        stored = samples.round().astype(np.uint8)
    else:
        stored = (samples / 255).astype(depth.replace("f", "float"))
    stored = np.moveaxis(stored, 2, 0) if planes == "separate" else stored
    options = {
        "photometric": "rgb",
        "extrasamples": ["assocalpha"],
        "planarconfig": planes,
        "metadata": None,
    }
    tifffile.imwrite(tmp_path / "image.tiff", stored, **options)
    assert np.abs(read_image(tmp_path / "image.tiff") - right).max() <= 1


@pytest.mark.parametrize(
    "kind",
    [
        Kind(color="black is 0"),
        Kind(color="black is 0", depth="u1"),
        Kind(color="black is 0", depth="u16"),
        Kind(color="palette"),
        Kind(color="CMYK"),
        Kind(),
        Kind(extra="alpha"),
        Kind(planes="separate"),
        Kind(depth="u16"),
        Kind(depth="u16", planes="separate"),
        Kind(depth="f32"),
        Kind(compression="LZW"),
        Kind(compression="deflate"),
        Kind(compression="PackBits"),
    ],
)
@pytest.mark.parametrize("empty", [("Offsets", "ByteCounts"), ("Offsets",), ("ByteCounts",)])
@pytest.mark.parametrize("layout", ["strips", "tiles"])
def test_a_sparse_file_is_refused(
    tmp_path: Path, kind: Kind, empty: tuple[str, ...], layout: str
) -> None:
    path = tmp_path / "image.tiff"
    write(path, kind._replace(layout=layout))
    with tifffile.TiffFile(path, mode="r+") as file:
        for name in empty:
            tag = file.pages[0].tags[("Tile" if layout == "tiles" else "Strip") + name]
            tag.overwrite((tag.value[0], 0, *tag.value[2:]))
    assert "it has strips or tiles without data (a sparse TIFF), which is not read" in reason_of(
        path
    )


@pytest.mark.parametrize("depth", ["u16", "f32"])
@pytest.mark.parametrize("planes", ["contig", "separate"])
def test_alpha_behind_another_further_channel_is_not_left_out(
    tmp_path: Path, planes: str, depth: str
) -> None:
    samples = samples_of(Kind(depth=depth, extra="two"))
    samples = np.moveaxis(samples, 2, 0) if planes == "separate" else samples
    options = {"photometric": "rgb", "extrasamples": (0, 2), "planarconfig": planes}
    tifffile.imwrite(tmp_path / "image.tiff", samples, metadata=None, **options)
    assert "it is a TIFF of RGB with 2 further channels" in reason_of(tmp_path / "image.tiff")


@pytest.mark.parametrize("depth", ["u4", "u8"])
def test_a_colormap_of_8_bits_is_not_black(tmp_path: Path, depth: str) -> None:
    kind, path = Kind(color="palette", depth=depth, orientation=6), tmp_path / "image.tiff"
    samples = write(path, kind)
    with tifffile.TiffFile(path, mode="r+") as file:
        file.pages[0].tags[320].overwrite((colormap(kind.bits) // 256).ravel())
    assert np.array_equal(read_image(path), expected(samples, kind))


@pytest.mark.parametrize("depth", ["u8", "u16"])
def test_xmp_does_not_turn_a_tiff(tmp_path: Path, depth: str) -> None:
    path, xmp = tmp_path / "image.tiff", b'<rdf:Description tiff:Orientation="6"/>'
    samples = samples_of(Kind(depth=depth))
    tifffile.imwrite(path, samples, photometric="rgb", extratags=[(700, "B", len(xmp), xmp, True)])
    assert read_image(path).shape == (HEIGHT, WIDTH, 3) and size_of(path) == (HEIGHT, WIDTH)


@pytest.mark.parametrize("depth", ["u8", "u16"])
def test_a_fourth_channel_without_a_meaning_is_alpha(tmp_path: Path, depth: str) -> None:
    kind = Kind(depth=depth, extra="alpha")
    samples = write(tmp_path / "image.tiff", kind)
    content = (tmp_path / "image.tiff").read_bytes()
    (tmp_path / "image.tiff").write_bytes(
        content.replace(struct.pack("<HH", 338, 3), struct.pack("<HH", 337, 3))
    )
    assert np.abs(read_image(tmp_path / "image.tiff") - expected(samples, kind)).max() <= 1


@pytest.mark.parametrize("depth", ["u8", "u16", "f32"])
@pytest.mark.parametrize("planes", ["interleaved", "separate"])
@pytest.mark.parametrize("compression", ["none", "LZW"])
def test_a_damaged_or_truncated_tiff_ends_in_one_line(
    tmp_path: Path, capfd: pytest.CaptureFixture, depth: str, planes: str, compression: str
) -> None:
    path, random = tmp_path / "image.tiff", np.random.default_rng(0)
    write(path, Kind(depth=depth, planes=planes, compression=compression, layout="strips"))
    content = np.fromfile(path, np.uint8)
    for share in np.linspace(0, 0.95, 20):
        path.write_bytes(content[: int(len(content) * share)].tobytes())
        reason_of(path)
    for _ in range(40):
        damaged = content.copy()
        damaged[random.integers(0, len(content) if random.random() < 0.5 else 300, 8)] = (
            random.integers(0, 256, 8)
        )
        path.write_bytes(damaged.tobytes())
        try:
            assert read_image(path).shape[2] == 3
        except UserError as error:
            assert "\n" not in str(error)
    assert not capfd.readouterr().err
