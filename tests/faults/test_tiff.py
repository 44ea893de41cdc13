"""TIFF files, in pairwise combinations, are decoded as by tifffile or rejected with the reason."""

import io
import itertools
import logging
import random
import struct
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import tifffile
from gpvit.data.image_io import TURNS, from_pillow, read_image, size_of
from gpvit.utils.errors import UserError
from PIL import Image, UnidentifiedImageError

HEIGHT, WIDTH = 17, 24
# Color space -> number of channels.
COLORS = {
    "white is 0": 1,
    "black is 0": 1,
    "RGB": 3,
    "palette": 1,
    "CMYK": 4,
    "YCbCr": 3,
    "CIELAB": 3,
}
PHOTOMETRIC = {  # for tifffile
    "white is 0": "miniswhite",
    "black is 0": "minisblack",
    "RGB": "rgb",
    "palette": "minisblack",
    "CMYK": "separated",
    "YCbCr": "ycbcr",
    "CIELAB": "cielab",
}
EXTRA = {"none": (), "unspecified": (0,), "premultiplied": (1,), "alpha": (2,), "two": (0, 0)}
LOSSLESS = {
    "none": None,
    "reversed bits": None,
    "LZW": "lzw",
    "deflate": "deflate",
    "PackBits": "packbits",
    "Zstandard": "zstd",
    "LZMA": "lzma",
}
OPTIONAL = ("Zstandard", "LZMA", "WebP")  # only some builds of the decoders support these
LOSSY = {"JPEG": "jpeg", "WebP": "webp", "JPEG 2000": "jpeg2000"}


# TIFF tags.
WIDTH_TAG, HEIGHT_TAG, BITS, COMPRESSION, PHOTOMETRIC_TAG = 256, 257, 258, 259, 262
FILL_ORDER, STRIP_OFFSETS, ORIENTATION, CHANNELS, ROWS_PER_STRIP = 266, 273, 274, 277, 278
STRIP_BYTE_COUNTS, COLORMAP, TILE_HEIGHT, EXTRA_SAMPLES, SAMPLE_FORMAT = 279, 320, 323, 338, 339
XMP, PLACEHOLDER = 700, 269


class Kind(NamedTuple):
    """The properties of a file; the defaults are the most common ones."""

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
    """Whether such files exist and tifffile (Pillow for CCITT) can write them."""
    whole_bytes = kind.bits in (8, 16, 32, 64)
    plain = kind.compression in ("none", "reversed bits")
    predictable = kind.compression in ("LZW", "deflate", "Zstandard", "LZMA")
    bilevel = kind.channels == 1 and (kind.gray or plain)
    palette = kind.depth in ("u1", "u2", "u4", "u8") and kind.extra == "none"
    webp = kind.depth == "u8" and kind.channels in (3, 4) and kind.planes == "interleaved"
    rules = (
        kind.planes == "interleaved" or kind.channels > 1,
        kind.color != "palette" or palette,
        kind.color != "YCbCr" or kind.depth == "u8",
        kind.predictor == "none" or (predictable and whole_bytes),
        kind.predictor != "float" or kind.depth[0] == "f",
        kind.predictor != "horizontal" or kind.depth[0] != "f",
        whole_bytes or kind.depth == "u1" or plain,
        kind.depth != "u1" or bilevel,
        kind.depth != "u12" or kind.order == "<",
        kind.compression != "JPEG" or (kind.depth == "u8" and kind.extra == "none"),
        kind.compression != "WebP" or webp,
        kind.compression != "JPEG 2000" or kind.depth in ("u8", "u16"),
        kind.compression != "CCITT" or (kind.gray and kind.depth == "u1" and kind.extra == "none"),
    )
    return all(rules)


def pairwise(accept: Callable[[Kind], bool]) -> list[Kind]:
    """Accepted kinds that together contain each possible pair of :data:`VALUES`, found greedily."""
    chance = random.Random(0)
    # Columns before the orientation restrict each other; the others combine with everything.
    limited = VALUES.index(ORIENTATIONS)
    contents = []
    for content in itertools.product(*VALUES[:limited]):
        if accept(Kind(*content)):
            contents.append(content)
    values = [*map(set, zip(*contents)), *VALUES[limited:]]
    wanted = set()  # pairs of (column, value)
    for i, j in itertools.combinations(range(len(values)), 2):
        if j < limited:
            pairs = {(content[i], content[j]) for content in contents}
        else:
            pairs = itertools.product(values[i], values[j])
        for value, other in pairs:
            wanted.add(((i, value), (j, other)))
    kinds = []
    while wanted:
        kind, covered = best_kind(min(wanted), wanted, contents, chance)
        kinds.append(kind)
        wanted -= covered
    return kinds


def best_kind(
    pair: tuple, wanted: set[tuple], contents: list[tuple], chance: random.Random
) -> tuple[Kind, set[tuple]]:
    """Of 20 random kinds with this pair, the one with most wanted pairs; and these pairs."""
    limited = len(contents[0])
    for column, value in pair:
        if column < limited:
            contents = [content for content in contents if content[column] == value]
    best, covered = (), set()
    for _ in range(20):
        candidate = [*chance.choice(contents), *map(chance.choice, VALUES[limited:])]
        for column, value in pair:
            candidate[column] = value
        gained = wanted.intersection(itertools.combinations(enumerate(candidate), 2))
        if len(gained) > len(covered):
            best, covered = candidate, gained
    return Kind(*best), covered


def samples_of(kind: Kind) -> np.ndarray:
    """Samples (HEIGHT, WIDTH, channels) without symmetry; alpha has values from 0 to 1."""
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
    """(3, 2 ** bits), 16-bit, neither gray nor sorted."""
    places = np.arange(2**bits)
    colors = np.stack([places[::-1], places * 5 % 2**bits, places]).astype(np.uint16)
    return colors * np.uint16(65535 // (2**bits - 1))


def write(path: Path, kind: Kind) -> np.ndarray:
    """Write a file and returns its samples, (HEIGHT, WIDTH, channels), as read by tifffile."""
    samples = samples_of(kind)
    if kind.depth == "u1" and kind.gray:
        samples = samples.astype(bool)
    data = samples
    if kind.channels == 1:
        data = samples[..., 0]
    elif kind.planes == "separate":
        data = np.moveaxis(samples, 2, 0)
    options, tags = write_options(kind), extra_tags(kind)
    with tifffile.TiffWriter(path, bigtiff=kind.file == "BigTIFF", byteorder=kind.order) as writer:
        if kind.compression == "CCITT":
            parts = ccitt_parts(data, kind.layout)
            writer.write(parts, shape=data.shape, dtype=bool, extratags=tags, **options)
        else:
            writer.write(data, extratags=tags, **options)
        if kind.file == "two pages":
            writer.write(data[..., ::-1, :] if data.ndim == 3 else data[::-1], **options)
    # Replace what tifffile does not write itself.
    with tifffile.TiffFile(path, mode="r+") as file:
        tags = file.pages[0].tags
        if kind.compression == "CCITT":
            tags[COMPRESSION].overwrite(4)  # Group 4
        if kind.compression == "reversed bits":
            reverse_bits(file)
        if kind.color == "palette":
            tags[PHOTOMETRIC_TAG].overwrite(3)  # palette
    read = tifffile.imread(path, key=0)
    if kind.compression not in LOSSY:
        assert np.array_equal(read, data)
    if read.ndim == 2:
        return read[..., None]
    return np.moveaxis(read, 0, 2) if kind.planes == "separate" else read


def write_options(kind: Kind) -> dict[str, Any]:
    """The arguments of tifffile."""
    options: dict[str, Any] = {
        "photometric": PHOTOMETRIC[kind.color],
        "extrasamples": EXTRA[kind.extra] or None,
        "metadata": None,
        "compression": (LOSSLESS | LOSSY | {"CCITT": "packbits"})[kind.compression],
        "rowsperstrip": HEIGHT,
    }
    if kind.channels > 1:
        options["planarconfig"] = "separate" if kind.planes == "separate" else "contig"
    if kind.bits not in (8, 16, 32, 64) and not (kind.depth == "u1" and kind.gray):
        options["bitspersample"] = kind.bits
    if kind.predictor != "none":
        options["predictor"] = kind.predictor if kind.predictor != "float" else "floatingpoint"
    if kind.layout == "strips":
        options["rowsperstrip"] = 5
    elif kind.layout == "tiles":
        options |= {"tile": (16, 16), "rowsperstrip": None}
    return options


def extra_tags(kind: Kind) -> list[tuple]:
    """Tags as (number, type, count, value, only on the first page)."""
    tags: list[tuple] = []
    if kind.orientation >= 0:
        tags.append((ORIENTATION, "H", 1, kind.orientation, True))
    if kind.compression == "reversed bits":
        # A placeholder that reverse_bits turns into FillOrder, which tifffile does not write.
        tags.append((PLACEHOLDER, "H", 1, 2, True))
    if kind.color == "palette":
        tags.append((COLORMAP, "H", 3 * 2**kind.bits, colormap(kind.bits).ravel(), True))
    return tags


def ccitt_parts(bits: np.ndarray, layout: str) -> Iterator[bytes]:
    """Strips or tiles in Group 4 encoding, which only Pillow can write."""
    height, width = {"strip": (HEIGHT, WIDTH), "strips": (5, WIDTH), "tiles": (16, 16)}[layout]
    if layout == "tiles":
        bits = np.pad(bits, ((0, -HEIGHT % 16), (0, -WIDTH % 16)))  # to multiples of 16
    for y, x in itertools.product(range(0, len(bits), height), range(0, bits.shape[1], width)):
        file = io.BytesIO()
        part = Image.fromarray(bits[y : y + height, x : x + width])
        part.save(file, "TIFF", compression="group4")
        with Image.open(file) as image:
            start, length = image.tag_v2[STRIP_OFFSETS][0], image.tag_v2[STRIP_BYTE_COUNTS][0]
        yield file.getvalue()[start : start + length]


def reverse_bits(file: tifffile.TiffFile) -> None:
    """Reverse the bits of each byte of the pixels, and turns the placeholder into FillOrder."""
    table = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
    page = file.pages[0]
    for start, length in zip(page.dataoffsets, page.databytecounts):
        file.filehandle.seek(start)
        reversed_bits = file.filehandle.read(length).translate(table)
        file.filehandle.seek(start)
        file.filehandle.write(reversed_bits)
    file.filehandle.seek(page.tags[PLACEHOLDER].offset)  # where its number stands
    file.filehandle.write(FILL_ORDER.to_bytes(2, "little" if file.byteorder == "<" else "big"))


def is_read(kind: Kind) -> bool:
    """Whether the color space, bit depth and channels of a kind are supported."""
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


def expected_error(kind: Kind) -> str | None:
    """The reason if a kind must be rejected; None if it must be read."""
    if kind.order == ">" and kind.file == "BigTIFF":
        return (
            "it is a BigTIFF in big-endian order, which is not supported; "
            "save it in little-endian order"
        )
    if kind.color == "CIELAB":
        return "it has the color space CIELAB; save it as RGB"
    if kind.gray and kind.extra in ("unspecified", "two"):
        return (
            f"it has {kind.channels} channels that are not labeled RGB; save three of them as RGB"
        )
    if kind.color == "YCbCr" and kind.compression in ("none", "reversed bits"):
        return "it is YCbCr without compression, which is not supported; save it as RGB"
    if not is_read(kind) or (kind.gray and kind.extra == "premultiplied"):
        return f"it is a TIFF of {description(kind)}, which is not supported"
    if kind.compression in ("JPEG 2000", *OPTIONAL):
        return (
            f"its compression, {kind.compression}, cannot be decoded here; "
            "save it with LZW or uncompressed"
        )
    return None


def description(kind: Kind) -> str:
    """The color space, channels and samples of a kind, as in error messages."""
    color = "gray" if kind.gray else kind.color
    further = len(EXTRA[kind.extra])
    channels = ["", " with 1 extra channel", " with 2 extra channels"][further]
    channels += " (premultiplied)" if kind.extra == "premultiplied" else ""
    depth = {"u": "integers", "i": "signed integers", "f": "floats"}[kind.depth[0]]
    planes = " in separate planes" if kind.planes == "separate" else ""
    bits = " in reversed bit order" if kind.compression == "reversed bits" else ""
    return f"{color}{channels}, {kind.bits}-bit {depth}{planes}{bits}"


def expected_image(samples: np.ndarray, kind: Kind) -> np.ndarray:
    """The upright image of stored samples, as floats, by the rules in gpvit/data/image_io.py."""
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
    elif kind.color == "YCbCr" and kind.compression != "JPEG":  # tifffile decodes JPEG to RGB
        y, blue, red = rgb[..., :1], rgb[..., 1:2] - 128, rgb[..., 2:] - 128
        green = y - 0.344136 * blue - 0.714136 * red  # ITU-R BT.601
        rgb = np.concatenate([y + 1.402 * red, green, y + 1.772 * blue], axis=2)
    if alpha is not None:
        rgb = 255 - (255 - rgb) * alpha
    turn = TURNS.get(kind.orientation)
    rgb = np.broadcast_to(rgb, (HEIGHT, WIDTH, 3)).clip(0, 255)
    return turn(rgb) if turn else rgb


@pytest.fixture(scope="module")
def kinds() -> list[Kind]:
    """Pairwise combinations of all kinds that can be written, and of those that are supported."""
    read = pairwise(lambda kind: can_be_written(kind) and expected_error(kind) is None)
    return [*dict.fromkeys(pairwise(can_be_written) + read)]


@pytest.fixture(autouse=True)
def silent_tifffile(monkeypatch: pytest.MonkeyPatch) -> None:
    """Silence the warnings about the invalid orientations 0 and 9."""
    monkeypatch.setattr(logging.getLogger("tifffile"), "disabled", True)


def test_tiff_is_decoded_correctly_or_rejected_with_reason(
    tmp_path: Path, kinds: list[Kind], capfd: pytest.CaptureFixture
) -> None:
    path, counts = tmp_path / "image.tiff", Counter()
    for kind in kinds:
        samples = write(path, kind)
        reason = expected_error(kind)
        try:
            image = read_image(path)
        except UserError as error:
            message = str(error)
            assert reason and f"{path}: cannot be read: {reason}" in message, (kind, message)
            counts["rejected"] += 1
            continue
        since_pillow_13 = kind.gray and kind.extra == "premultiplied"
        assert reason is None or kind.compression in OPTIONAL or since_pillow_13, kind
        tolerance = 1.01
        if kind.compression in LOSSY:
            tolerance = 8
        elif kind.color == "CMYK":  # Pillow converts 8-bit CMYK to RGB in integers
            tolerance = 2
        assert np.abs(image - expected_image(samples, kind)).max() <= tolerance, kind
        assert size_of(path) == image.shape[:2], kind
        counts["decoded"] += 1
    assert not capfd.readouterr().err
    with capfd.disabled():
        print(f"\n{len(kinds)} files, of these {dict(counts)}")
    assert len(kinds) <= 400 and counts["decoded"] > 100


def test_image_opened_by_pillow_is_correct_or_rejected(tmp_path: Path, kinds: list[Kind]) -> None:
    path = tmp_path / "image.tiff"
    for kind in kinds:
        if expected_error(kind) is not None:
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
                assert "which Pillow decodes incorrectly; pass its path" in str(error), kind
                assert kind.bits > 8, kind
                continue
        tolerance = 1.01
        if kind.compression in LOSSY:
            tolerance = 8
        elif kind.bits == 16:
            tolerance = 3
        assert np.abs(image - expected_image(samples, kind)).max() <= tolerance, kind


def change(path: Path, tag: int, value: int) -> None:
    """Replace the value of a tag, even by an invalid one."""
    with tifffile.TiffFile(path, mode="r+") as file:
        file.pages[0].tags[tag].overwrite(value)


def reason_of(path: Path) -> str:
    with pytest.raises(UserError) as error:
        read_image(path)
    return str(error.value).removeprefix(f"{path}: cannot be read: ")


@pytest.mark.parametrize(
    ("kind", "tag", "value", "reason"),
    [
        (Kind(), WIDTH_TAG, 0, "it is damaged or incomplete (it has 0 x 17 pixels of 3 samples)"),
        (Kind(), HEIGHT_TAG, 10**7, "it has more than 100 million pixels"),
        (Kind(depth="u16"), HEIGHT_TAG, 10**7, "it has more than 100 million pixels"),
        (Kind(), HEIGHT_TAG, 900, "it is damaged or incomplete (it has 1 of 53 strips or tiles)"),
        (
            Kind(depth="u16", planes="separate"),
            HEIGHT_TAG,
            900,
            "it is damaged or incomplete (it has 3 of 159 strips or tiles)",
        ),
        (
            Kind(layout="tiles"),
            TILE_HEIGHT,
            0,
            "it is damaged or incomplete (its strips or tiles have no pixels)",
        ),
        (
            Kind(),
            ROWS_PER_STRIP,
            0,
            "it is damaged or incomplete (its strips or tiles have no pixels)",
        ),
        (
            Kind(color="black is 0"),
            PHOTOMETRIC_TAG,
            2,
            "it is damaged or incomplete (1 channels are too few for RGB)",
        ),
        (
            Kind(),
            CHANNELS,
            65535,
            "it is a TIFF of RGB with 65532 extra channels, 8-bit integers, which is not supported",
        ),
        (
            Kind(color="black is 0"),
            PHOTOMETRIC_TAG,
            32803,
            "it has the color space color filter array; save it as RGB",
        ),
        (
            Kind(color="black is 0"),
            PHOTOMETRIC_TAG,
            4711,
            "it has the color space number 4711; save it as RGB",
        ),
        (Kind(color="CMYK"), CHANNELS, 3, "it has inks other than CMYK; save it as RGB"),
        (Kind(), COMPRESSION, 34887, "its compression, LERC, cannot be decoded here"),
        (
            Kind(depth="u16"),
            COMPRESSION,
            4711,
            "its compression, number 4711, cannot be decoded here",
        ),
        (Kind(), COMPRESSION, 5, "it is damaged or incomplete (decoder error -2)"),
        (
            Kind(depth="u16"),
            COMPRESSION,
            5,
            "it is damaged or incomplete (its pixels cannot be decoded)",
        ),
        (
            Kind(color="black is 0", depth="f32"),
            SAMPLE_FORMAT,
            4,
            "it is a TIFF of gray, 32-bit data, which is not supported",
        ),
        (
            Kind(color="black is 0", depth="f64"),
            SAMPLE_FORMAT,
            6,
            "it is a TIFF of gray, 64-bit complex floats, which is not supported",
        ),
        (
            Kind(color="black is 0", depth="f32"),
            BITS,
            24,
            "it is a TIFF of gray, 24-bit floats, which is not supported",
        ),
    ],
)
def test_unsupported_page_is_rejected_with_reason(
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
        (b"II*\0\xff\xff\xff\xff", "its tag ImageLength has no integer values"),
        (b"MM\0+" + bytes(12), "it is a BigTIFF in big-endian order, which is not supported"),
        (b"II+\0\x08\0\0\0", "it is damaged or incomplete"),
        (b"MM*\0" + bytes(100), "it is damaged or incomplete"),
    ],
)
def test_header_without_tags_is_rejected(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "image.tiff").write_bytes(content)
    assert reason in reason_of(tmp_path / "image.tiff")


@pytest.mark.parametrize("depth", ["u16", "i16", "u32", "i32", "f32", "f64"])
def test_big_endian_uncompressed_gray_is_decoded_correctly(tmp_path: Path, depth: str) -> None:
    path = tmp_path / "image.tiff"
    for color, layout, orientation in itertools.product(
        ("black is 0", "white is 0"), ("strip", "strips", "tiles"), range(1, 9)
    ):
        kind = Kind(color=color, depth=depth, order=">", layout=layout, orientation=orientation)
        expected = expected_image(write(path, kind), kind)
        assert np.abs(read_image(path) - expected).max() <= 1.01, kind
        with suppress(UnidentifiedImageError), Image.open(path) as opened:
            assert np.abs(from_pillow(opened) - expected).max() <= 1.01, kind


@pytest.mark.parametrize(
    ("planes", "depth"),
    [("contig", "u8"), *itertools.product(("contig", "separate"), ("u16", "f32", "f64"))],
)
def test_premultiplied_color_above_alpha_does_not_darken_other_pixels(
    tmp_path: Path, planes: str, depth: str
) -> None:
    samples = np.full((HEIGHT, WIDTH, 4), 255.0)
    samples[..., :3] = np.linspace(5, 255, WIDTH)[:, None]
    expected = samples[..., :3].copy()
    samples[2, 3], expected[2, 3] = (5, 5, 5, 0), 255  # transparent, and so white
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
    assert np.abs(read_image(tmp_path / "image.tiff") - expected).max() <= 1


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
def test_sparse_tiff_is_rejected(
    tmp_path: Path, kind: Kind, empty: tuple[str, ...], layout: str
) -> None:
    path = tmp_path / "image.tiff"
    write(path, kind._replace(layout=layout))
    prefix = "Tile" if layout == "tiles" else "Strip"
    with tifffile.TiffFile(path, mode="r+") as file:
        for name in empty:
            tag = file.pages[0].tags[prefix + name]
            tag.overwrite((tag.value[0], 0, *tag.value[2:]))
    reason = "it has strips or tiles without data (a sparse TIFF), which is not supported"
    assert reason in reason_of(path)


@pytest.mark.parametrize("depth", ["u16", "f32"])
@pytest.mark.parametrize("planes", ["contig", "separate"])
def test_alpha_as_second_extra_channel_is_rejected(tmp_path: Path, planes: str, depth: str) -> None:
    samples = samples_of(Kind(depth=depth, extra="two"))
    samples = np.moveaxis(samples, 2, 0) if planes == "separate" else samples
    options = {"photometric": "rgb", "extrasamples": (0, 2), "planarconfig": planes}
    tifffile.imwrite(tmp_path / "image.tiff", samples, metadata=None, **options)
    assert "it is a TIFF of RGB with 2 extra channels" in reason_of(tmp_path / "image.tiff")


@pytest.mark.parametrize("depth", ["u4", "u8"])
def test_colormap_of_8_bit_values_is_decoded_correctly(tmp_path: Path, depth: str) -> None:
    kind, path = Kind(color="palette", depth=depth, orientation=6), tmp_path / "image.tiff"
    samples = write(path, kind)
    with tifffile.TiffFile(path, mode="r+") as file:
        file.pages[0].tags[COLORMAP].overwrite((colormap(kind.bits) // 256).ravel())
    assert np.array_equal(read_image(path), expected_image(samples, kind))


@pytest.mark.parametrize("depth", ["u8", "u16"])
def test_xmp_orientation_is_ignored(tmp_path: Path, depth: str) -> None:
    path, xmp = tmp_path / "image.tiff", b'<rdf:Description tiff:Orientation="6"/>'
    samples = samples_of(Kind(depth=depth))
    tifffile.imwrite(path, samples, photometric="rgb", extratags=[(XMP, "B", len(xmp), xmp, True)])
    assert read_image(path).shape == (HEIGHT, WIDTH, 3) and size_of(path) == (HEIGHT, WIDTH)


@pytest.mark.parametrize("depth", ["u8", "u16"])
def test_fourth_channel_without_extra_samples_tag_is_alpha(tmp_path: Path, depth: str) -> None:
    kind, path = Kind(depth=depth, extra="alpha"), tmp_path / "image.tiff"
    samples = write(path, kind)
    # The number and type (unsigned short) of the tag; 337 is another tag, which is ignored.
    extra_samples, ignored = struct.pack("<HH", EXTRA_SAMPLES, 3), struct.pack("<HH", 337, 3)
    path.write_bytes(path.read_bytes().replace(extra_samples, ignored))
    assert np.abs(read_image(path) - expected_image(samples, kind)).max() <= 1


@pytest.mark.parametrize("depth", ["u8", "u16", "f32"])
@pytest.mark.parametrize("planes", ["interleaved", "separate"])
@pytest.mark.parametrize("compression", ["none", "LZW"])
def test_damaged_or_truncated_tiff_raises_one_line(
    tmp_path: Path, capfd: pytest.CaptureFixture, depth: str, planes: str, compression: str
) -> None:
    path, rng = tmp_path / "image.tiff", np.random.default_rng(0)
    write(path, Kind(depth=depth, planes=planes, compression=compression, layout="strips"))
    content = np.fromfile(path, np.uint8)
    for fraction in np.linspace(0, 0.95, 20):
        path.write_bytes(content[: int(len(content) * fraction)].tobytes())
        reason_of(path)
    for _ in range(40):
        damaged = content.copy()
        # Eight bytes anywhere, or in the header and the first directory.
        values = rng.integers(0, 256, 8)
        damaged[rng.integers(0, len(content) if rng.random() < 0.5 else 300, 8)] = values
        path.write_bytes(damaged.tobytes())
        try:
            assert read_image(path).shape[2] == 3
        except UserError as error:
            assert "\n" not in str(error)
    assert not capfd.readouterr().err
