"""PNG, JPEG and other formats are decoded correctly or rejected with the reason.

Most files are encoded here byte by byte.
"""

import io
import itertools
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
from gpvit.data.datasets.to_coco import size_of
from gpvit.data.image_io import TURNS, from_pillow, read_image
from gpvit.utils.errors import UserError
from PIL import Image

HEIGHT, WIDTH = 17, 24
Y, X = np.mgrid[:HEIGHT, :WIDTH]
X, Y = X / (WIDTH - 1), Y / (HEIGHT - 1)
GRAY = ((X + 2 * Y) / 3)[..., None]
COLOR = np.stack([X, 0.1 + 0.8 * Y, 1 - (X + Y) / 2], axis=2)
ALPHA = (1 - X * Y)[..., None]
COLOR_TYPES = {"gray": 0, "RGB": 2, "palette": 3, "gray with alpha": 4, "RGB with alpha": 6}
PNG_KINDS = [  # color type and bit depth
    *itertools.product(["gray"], (1, 2, 4, 8, 16)),
    *itertools.product(["palette"], (1, 2, 4, 8)),
    *itertools.product(["RGB", "gray with alpha", "RGB with alpha"], (8, 16)),
]
# The passes of Adam7 interlacing: first row and column, then steps between rows and columns.
ADAM7 = [
    (0, 0, 8, 8),
    (0, 4, 8, 8),
    (4, 0, 8, 4),
    (0, 2, 4, 4),
    (2, 0, 4, 2),
    (0, 1, 2, 2),
    (1, 0, 2, 1),
]


PILLOW_IS_WRONG = "which Pillow decodes incorrectly; pass its path"


def reason_of(path: Path) -> str:
    with pytest.raises(UserError) as error:
        read_image(path)
    return str(error.value).removeprefix(f"{path}: cannot be read: ")


def chunk(name: bytes, content: bytes) -> bytes:
    """A chunk of a PNG file: length, name, content and checksum."""
    checksum = zlib.crc32(name + content)
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", checksum)


def exif(orientation: int) -> bytes:
    """A TIFF header with one directory entry: tag, type (unsigned short), count and value."""
    return b"MM\0*" + struct.pack(">IHHHIHHI", 8, 1, 0x0112, 3, 1, orientation, 0, 0)


def png(
    samples: np.ndarray, color_type: int, bits: int, chunks: list[bytes], interlaced: bool
) -> bytes:
    """A PNG file of samples (H, W, channels) with unfiltered rows."""
    parts = [samples]
    if interlaced:
        parts = [samples[top::down, left::right] for top, left, down, right in ADAM7]
    rows = b""
    for part in parts:
        if not part.shape[1]:
            continue
        for row in part:
            # (samples, bits), the most significant bit first
            row_bits = (row.ravel()[:, None] >> np.arange(bits)[::-1]) & 1
            rows += b"\0" + np.packbits(row_bits.astype(np.uint8)).tobytes()
    header = struct.pack(">IIBBBBB", *samples.shape[1::-1], bits, color_type, 0, 0, interlaced)
    body = b"".join(chunks) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + body


@pytest.mark.parametrize("transparent", [False, True])
@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize(("kind", "bits"), PNG_KINDS)
def test_png_is_decoded_correctly(
    tmp_path: Path,
    capfd: pytest.CaptureFixture,
    kind: str,
    bits: int,
    interlaced: bool,
    transparent: bool,
) -> None:
    full, path = 2**bits - 1, tmp_path / "image.png"
    values = COLOR if "RGB" in kind else GRAY
    values = np.concatenate([values, ALPHA], axis=2) if "alpha" in kind else values
    samples = np.round(values * full).astype(int)
    chunks = [
        chunk(b"gAMA", struct.pack(">I", 100_000)),
        chunk(b"tIME", bytes(7)),
        chunk(b"iCCP", b"x\0\0" + zlib.compress(bytes(200))),
    ]
    alpha = samples[..., -1:] / full if "alpha" in kind else np.ones((HEIGHT, WIDTH, 1))
    if kind == "palette":
        places = np.arange(2**bits)
        palette = np.stack([places[::-1], places * 5 % 2**bits, places], axis=1) * (255 // full)
        chunks.append(chunk(b"PLTE", palette.astype(np.uint8).tobytes()))
        expected = palette[samples[..., 0]].astype(float)
    elif kind == "gray" and bits == 16:
        expected = (samples - samples.min()) / (samples.max() - samples.min()) * 255
    else:
        expected = samples[..., : 3 if "RGB" in kind else 1] / full * 255
    if transparent and kind == "palette":
        opacity = np.linspace(0, 255, 2**bits).astype(np.uint8)
        chunks.append(chunk(b"tRNS", opacity.tobytes()))
        alpha = opacity[samples] / 255
    elif transparent and "alpha" not in kind:
        # The key color. An image of one bit must have other colors than white and transparent.
        key = samples[5, 7] if bits > 1 else np.array([1])
        chunks.append(chunk(b"tRNS", struct.pack(f">{len(key)}H", *key)))
        alpha = (samples != key).any(axis=2, keepdims=True)
    expected = 255 - (255 - expected) * alpha
    for orientation in range(10):
        tag = [] if orientation == 0 else [chunk(b"eXIf", exif(orientation))]
        path.write_bytes(png(samples, COLOR_TYPES[kind], bits, chunks + tag, interlaced))
        upright = TURNS.get(orientation, np.asarray)(np.broadcast_to(expected, (HEIGHT, WIDTH, 3)))
        image = read_image(path)
        assert image.shape == upright.shape and size_of(path) == image.shape[:2]
        assert np.abs(image - upright).max() <= 1.01
        with Image.open(path) as opened:
            if transparent and (kind, bits) == ("RGB", 16):
                with pytest.raises(UserError, match=PILLOW_IS_WRONG):
                    from_pillow(opened)
                continue
            assert np.abs(from_pillow(opened) - upright).max() <= (2 if bits == 16 else 1.01)
    assert not capfd.readouterr().err


def test_first_frame_of_animated_png_is_read(tmp_path: Path) -> None:
    first = Image.fromarray((COLOR * 255).round().astype(np.uint8))
    second = Image.new("RGB", (WIDTH, HEIGHT))
    first.save(tmp_path / "image.png", save_all=True, append_images=[second])
    assert np.array_equal(read_image(tmp_path / "image.png"), np.asarray(first))


# --- JPEG ---


def jpeg_segments(content: bytes) -> Iterator[tuple[int, int, int]]:
    """Marker, start and end of each segment before the pixels."""
    start = 2
    while content[start + 1] != 0xDA:  # start of scan
        # 0xFF, the marker, and a length that includes its own two bytes.
        end = start + 2 + int.from_bytes(content[start + 2 : start + 4], "big")
        yield content[start + 1], start, end
        start = end


def without(content: bytes, marker: int) -> bytes:
    """A JPEG without the segments of this marker."""
    for found, start, end in reversed([*jpeg_segments(content)]):
        if found == marker:
            content = content[:start] + content[end:]
    return content


def adobe(transform: int) -> bytes:
    """Adobe's segment (APP14) with a color transform: 0 for none, 1 for YCbCr, 2 for YCCK."""
    return b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0" + bytes([transform])


def app1(body: bytes) -> bytes:
    """A segment for EXIF data."""
    return b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body


def with_segment(content: bytes, segment: bytes) -> bytes:
    return content[:2] + segment + content[2:]


RGB = (COLOR * 255).round().astype(np.uint8)
CMYK = np.concatenate([RGB, (GRAY * 100).round().astype(np.uint8)], axis=2)
LIGHT = (255.0 - CMYK[..., :3]) * (255 - CMYK[..., 3:]) / 255


def jpeg(samples: np.ndarray, stored: str, color: str) -> bytes:
    return imagecodecs.jpeg8_encode(
        samples, 98, colorspace=color, outcolorspace=stored, subsampling="444"
    )


def pillow_jpeg(**options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(RGB).save(file, "JPEG", quality=98, **options)
    return file.getvalue()


APP0, APP14 = 0xE0, 0xEE  # markers of the segments of JFIF and Adobe
FLAT = np.ascontiguousarray(RGB[..., 0])
YCBCR = without(jpeg(RGB, "YCBCR", "RGB"), APP0)
JPEGS = {
    "gray": (jpeg(FLAT, "GRAYSCALE", "GRAYSCALE"), RGB[..., :1].repeat(3, axis=2)),
    "YCbCr": (jpeg(RGB, "YCBCR", "RGB"), RGB),
    "YCbCr by Adobe's marker alone": (with_segment(YCBCR, adobe(1)), RGB),
    "YCbCr without a marker": (YCBCR, RGB),
    "YCbCr with subsampling": (pillow_jpeg(subsampling="4:2:0"), RGB),
    "progressive": (pillow_jpeg(progressive=True), RGB),
    "RGB by Adobe's marker": (jpeg(RGB, "RGB", "RGB"), RGB),
    "RGB by the names of its channels": (without(jpeg(RGB, "RGB", "RGB"), APP14), RGB),
    "CMYK, inverted as by Adobe": (jpeg(255 - CMYK, "CMYK", "CMYK"), LIGHT),
    "CMYK, inverted without Adobe's marker": (
        without(jpeg(255 - CMYK, "CMYK", "CMYK"), APP14),
        LIGHT,
    ),
    "YCCK": (jpeg(255 - CMYK, "YCCK", "CMYK"), LIGHT),
    "lossless": (imagecodecs.jpeg8_encode(RGB, lossless=True), RGB),
}


@pytest.mark.parametrize("kind", JPEGS)
def test_jpeg_is_decoded_correctly(tmp_path: Path, kind: str) -> None:
    content, expected = JPEGS[kind]
    path = tmp_path / "image.jpg"
    tolerance = 16 if kind in ("YCbCr with subsampling", "progressive", "YCCK") else 3
    for orientation in (None, *range(10), 65535):
        segment = b"" if orientation is None else app1(b"Exif\0\0" + exif(orientation))
        path.write_bytes(with_segment(content, segment))
        upright = TURNS.get(orientation, np.asarray)(expected)
        image = read_image(path)
        assert image.shape == upright.shape and size_of(path) == image.shape[:2]
        assert np.abs(image - upright.astype(float)).max() <= tolerance


def test_first_image_of_jpeg_with_several_is_read(tmp_path: Path) -> None:
    first, second = Image.fromarray(RGB), Image.new("RGB", (9, 9))
    options = {"append_images": [second], "quality": 98, "subsampling": 0}
    first.save(tmp_path / "pair.jpg", "MPO", save_all=True, **options)
    thumbnail = io.BytesIO()
    second.save(thumbnail, "JPEG")
    segment = app1(b"Exif\0\0" + exif(1) + thumbnail.getvalue())
    (tmp_path / "thumbnail.jpg").write_bytes(with_segment(JPEGS["YCbCr"][0], segment))
    for name in ("pair.jpg", "thumbnail.jpg"):
        assert np.abs(read_image(tmp_path / name) - RGB.astype(float)).max() <= 3


def patched(content: bytes, place: int, value: int) -> bytes:
    """A baseline JPEG with a byte of its frame header (SOF0) replaced."""
    for marker, start, _ in jpeg_segments(content):
        if marker == 0xC0:
            return content[: start + place] + bytes([value]) + content[start + place + 1 :]
    raise AssertionError("no frame header")


DEEP = RGB.astype(np.uint16) * 16
REJECTED = {
    "12 bits": (
        imagecodecs.jpeg8_encode(DEEP, 98, bitspersample=12),
        "it is a JPEG of 12-bit samples in 3 channels",
    ),
    "12 bits, gray": (
        imagecodecs.jpeg8_encode(DEEP[..., 0].copy(), 98, bitspersample=12),
        "12-bit samples in 1 channels",
    ),
    "16 bits": (
        imagecodecs.jpeg8_encode(DEEP, lossless=True, bitspersample=16),
        "16-bit samples in 3 channels",
    ),
    "two channels": (
        patched(pillow_jpeg(), 9, 2),
        "it is a JPEG of 8-bit samples in 2 channels, which is not supported",
    ),
    "JPEG-LS": (
        imagecodecs.jpegls_encode(RGB),
        "it is a JPEG of another kind (JPEG-LS), which is not supported",
    ),
    "hierarchical": (patched(pillow_jpeg(), 1, 0xC5), "it is damaged or incomplete"),
    "JPEG XL": (imagecodecs.jpegxl_encode(RGB), "it is not an image in JPEG, PNG"),
    "JPEG XR": (imagecodecs.jpegxr_encode(RGB), "it is not an image in JPEG, PNG"),
    "AVIF": (imagecodecs.avif_encode(RGB), "it is not an image in JPEG, PNG"),
    "JPEG 2000 of 4 bits": (
        imagecodecs.jpeg2k_encode(RGB >> 4, codecformat="jp2", bitspersample=4),
        "it is a JPEG 2000 of 4-bit integers in 3 channels, which is not supported",
    ),
    "JPEG 2000, signed": (
        imagecodecs.jpeg2k_encode(RGB.astype(np.int16), codecformat="j2k"),
        "it is a JPEG 2000 of 16-bit signed integers in 3 channels, which is not supported",
    ),
}

DEEP_PAIR = np.concatenate([GRAY, ALPHA], axis=2)
SAVE_AS_PNG = "which is not supported; save it as 8-bit PNG"
for bits in (12, 16):
    samples = np.round(DEEP_PAIR * (2**bits - 1)).astype(np.uint16)
    options = {"codecformat": "jp2", "colorspace": 2, "bitspersample": bits, "reversible": True}
    REJECTED[f"JPEG 2000, gray of {bits} bits with alpha"] = (
        imagecodecs.jpeg2k_encode(samples, **options),
        f"it is a JPEG 2000 of {bits}-bit integers in 2 channels, {SAVE_AS_PNG}",
    )
samples = (GRAY[..., 0] * (2**20 - 1)).astype(np.uint32)
REJECTED["JPEG 2000 of 20 bits"] = (
    imagecodecs.jpeg2k_encode(samples, bitspersample=20, reversible=True),
    f"it is a JPEG 2000 of 20-bit integers in 1 channels, {SAVE_AS_PNG}",
)


@pytest.mark.parametrize("kind", REJECTED)
def test_unsupported_jpeg_is_rejected_with_reason(
    tmp_path: Path, capfd: pytest.CaptureFixture, kind: str
) -> None:
    content, reason = REJECTED[kind]
    (tmp_path / "image.jpg").write_bytes(content)
    assert reason in reason_of(tmp_path / "image.jpg")
    assert not capfd.readouterr().err


@pytest.mark.parametrize("codec", ["jp2", "j2k"])
@pytest.mark.parametrize("bits", [8, 12, 16])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_jpeg_2000_is_decoded_correctly(
    tmp_path: Path, codec: str, bits: int, channels: int
) -> None:
    values = np.concatenate([COLOR, ALPHA], axis=2)[..., :channels]
    dtype = np.uint8 if bits == 8 else np.uint16
    samples = np.round(values * (2**bits - 1)).astype(dtype).squeeze()
    path = tmp_path / "image.jp2"
    options = {"codecformat": codec, "bitspersample": bits, "reversible": True}
    path.write_bytes(imagecodecs.jpeg2k_encode(samples, **options))
    alpha = values[..., 3:] if channels == 4 else 1
    expected = 255 - (255 - values[..., :3] * 255) * alpha
    assert np.abs(read_image(path) - expected).max() <= 1.5


@pytest.mark.parametrize("codec", ["jp2", "j2k"])
@pytest.mark.parametrize(("channels", "bits"), [(2, 8), *itertools.product((1, 3, 4), (8, 12, 16))])
def test_jpeg_2000_keeps_white_and_opaque_pixels(
    tmp_path: Path, codec: str, bits: int, channels: int
) -> None:
    samples = np.full((HEIGHT, WIDTH, channels), 2**bits - 1, np.uint8 if bits == 8 else np.uint16)
    samples[:, :5, : 1 if channels < 3 else 3] = 0
    options = {"codecformat": codec, "bitspersample": bits, "reversible": True}
    if channels == 2:
        options["colorspace"] = 2  # gray
    path = tmp_path / "image.jp2"
    path.write_bytes(imagecodecs.jpeg2k_encode(samples.squeeze(), **options))
    expected = np.full((HEIGHT, WIDTH, 3), 255)
    expected[:, :5] = 0
    assert np.array_equal(read_image(path), expected)
    for opened in (path, io.BytesIO(path.read_bytes())):
        with Image.open(opened) as image:
            if channels > 1 and bits > 8:
                with pytest.raises(UserError, match=PILLOW_IS_WRONG):
                    from_pillow(image)
            else:
                assert np.array_equal(from_pillow(image), expected)


# --- PPM, PBM and BMP ---


@pytest.mark.parametrize("end", ["", "\n", " # end\n"])
@pytest.mark.parametrize("white", [1, 100, 255, 1023, 65535])
@pytest.mark.parametrize("kind", ["P2", "P3", "P5", "P6"])
def test_ppm_with_any_maximum_value_is_decoded_correctly(
    tmp_path: Path, capfd: pytest.CaptureFixture, kind: str, white: int, end: str
) -> None:
    samples = np.round((GRAY if kind in ("P2", "P5") else COLOR) * white).astype(int)
    path = tmp_path / "image.ppm"
    if kind in ("P2", "P3"):
        body = " ".join(map(str, samples.ravel())).encode() + end.encode()
    else:
        body = samples.astype(np.uint8 if white < 256 else ">u2").tobytes()
    path.write_bytes(f"{kind} # a comment\n{WIDTH} {HEIGHT}\n{white}\n".encode() + body)
    assert np.abs(read_image(path) - samples / white * 255.0).max() <= 1.01
    assert size_of(path) == (HEIGHT, WIDTH) and not capfd.readouterr().err


@pytest.mark.parametrize("body", [b"1 0 1 0 0 1", b"101001", b"1 0\n1 0 0 1\n"])
def test_plain_pbm_has_black_for_1(tmp_path: Path, body: bytes) -> None:
    (tmp_path / "image.pbm").write_bytes(b"P1\n3 2\n" + body)
    assert read_image(tmp_path / "image.pbm")[..., 0].tolist() == [[0, 255, 0], [255, 255, 0]]


def bmp(rows: bytes, bits: int, masks: tuple[int, ...] = (), height: int = HEIGHT) -> bytes:
    """A BMP file.

    Args:
        rows: the pixels; the length of each row is a multiple of four bytes.
        bits: per pixel.
        masks: bit masks of red, green, blue and alpha.
        height: negative if the first row is the top one.
    """
    size = 108 if masks else 40  # of BITMAPV4HEADER or BITMAPINFOHEADER
    compression = 3 if masks else 0  # BI_BITFIELDS or BI_RGB
    header = struct.pack("<IiiHHIIiiII", size, WIDTH, height, 1, bits, compression, 0, 0, 0, 0, 0)
    header += struct.pack(f"<{len(masks)}I", *masks)
    header = header.ljust(size, b"\0")
    return b"BM" + struct.pack("<IHHI", 14 + size + len(rows), 0, 0, 14 + size) + header + rows


def test_bmp_of_16_24_and_32_bits_is_decoded_correctly(tmp_path: Path) -> None:
    path, bgr = tmp_path / "image.bmp", RGB[..., ::-1]
    alpha = (ALPHA * 255).round().astype(np.uint8)
    bgra = np.dstack([bgr, alpha])
    bgr0 = np.dstack([bgr, np.zeros_like(alpha)])
    red, green, blue = np.moveaxis(RGB, 2, 0)
    # 5 bits of red, 6 of green and 5 of blue.
    packed = (red >> 3).astype("<u2") << 11 | (green >> 2).astype("<u2") << 5 | blue >> 3
    packed = packed.astype("<u2")
    masks_32 = (0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    masks_16 = (0xF800, 0x7E0, 0x1F, 0)
    blended = 255 - (255.0 - RGB) * (alpha / 255)
    cases = {  # content, expected image and tolerance
        "from bottom": (bmp(bgr[::-1].tobytes(), 24), RGB, 0),
        "from top": (bmp(bgr.tobytes(), 24, height=-HEIGHT), RGB, 0),
        "32 bits without alpha": (bmp(bgr0[::-1].tobytes(), 32), RGB, 0),
        "alpha": (bmp(bgra[::-1].tobytes(), 32, masks_32), blended, 1),
        "16 bits": (bmp(packed[::-1].tobytes(), 16, masks_16), RGB, 8),
    }
    for name, (content, expected, tolerance) in cases.items():
        path.write_bytes(content)
        assert np.abs(read_image(path) - expected.astype(float)).max() <= tolerance, name
