"""Kinds of PNG, JPEG and other formats, most made byte by byte: each is read right, or refused for what is true of it."""

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
KINDS = {
    "gray": (0, (1, 2, 4, 8, 16)),
    "RGB": (2, (8, 16)),
    "palette": (3, (1, 2, 4, 8)),
}  # color type, bits
KINDS |= {"gray with alpha": (4, (8, 16)), "RGB with alpha": (6, (8, 16))}
ADAM7 = [
    (0, 0, 8, 8),
    (0, 4, 8, 8),
    (4, 0, 8, 4),
    (0, 2, 4, 4),
    (2, 0, 4, 2),
    (0, 1, 2, 2),
    (1, 0, 2, 1),
]


def reason_of(path: Path) -> str:
    with pytest.raises(UserError) as error:
        read_image(path)
    return str(error.value).removeprefix(f"{path}: cannot be read: ")


def chunk(name: bytes, content: bytes) -> bytes:
    return (
        struct.pack(">I", len(content))
        + name
        + content
        + struct.pack(">I", zlib.crc32(name + content))
    )


def exif(orientation: int) -> bytes:
    return b"MM\0*" + struct.pack(">IHHHIHHI", 8, 1, 0x0112, 3, 1, orientation, 0, 0)


def png(
    samples: np.ndarray, color_type: int, bits: int, chunks: list[bytes], interlaced: bool
) -> bytes:
    """A file of samples (H, W, channels) whose rows are stored without a filter."""
    parts = [samples[y::down, x::right] for y, x, down, right in ADAM7] if interlaced else [samples]
    rows = b""
    for row in itertools.chain.from_iterable(part for part in parts if part.shape[1]):
        values = row.ravel()
        ones = (
            values[:, None] >> np.arange(bits)[::-1]
        ) & 1  # the bits of each sample, the most significant first
        rows += b"\0" + np.packbits(ones.astype(np.uint8)).tobytes()
    header = struct.pack(">IIBBBBB", *samples.shape[1::-1], bits, color_type, 0, 0, interlaced)
    body = b"".join(chunks) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + body


@pytest.mark.parametrize("transparent", [False, True])
@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize(
    ("kind", "bits"), [(kind, bits) for kind, (_, depths) in KINDS.items() for bits in depths]
)
def test_every_kind_of_png_is_read_right(
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
    palette = np.stack(
        [np.arange(2**bits)[::-1], np.arange(2**bits) * 5 % 2**bits, np.arange(2**bits)], axis=1
    ) * (255 // full if kind == "palette" else 1)
    if kind == "palette":
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
        hidden = (
            samples[5, 7] if bits > 1 else np.array([1])
        )  # of black and white, something must be left to see
        chunks.append(chunk(b"tRNS", struct.pack(f">{len(hidden)}H", *hidden)))
        alpha = (samples != hidden).any(axis=2, keepdims=True)
    expected = 255 - (255 - expected) * alpha
    for orientation in range(10):
        turning = [] if orientation == 0 else [chunk(b"eXIf", exif(orientation))]
        path.write_bytes(png(samples, KINDS[kind][0], bits, chunks + turning, interlaced))
        turned = TURNS.get(orientation, np.asarray)(np.broadcast_to(expected, (HEIGHT, WIDTH, 3)))
        image = read_image(path)
        assert image.shape == turned.shape and size_of(path) == image.shape[:2]
        assert np.abs(image - turned).max() <= 1.01
        with Image.open(path) as opened:
            if transparent and (kind, bits) == ("RGB", 16):
                with pytest.raises(
                    UserError, match="of which Pillow makes another image; give its path"
                ):
                    from_pillow(opened)
                continue
            assert np.abs(from_pillow(opened) - turned).max() <= (2 if bits == 16 else 1.01)
    assert not capfd.readouterr().err


def test_of_an_animated_png_the_first_frame_is_read(tmp_path: Path) -> None:
    frames = [
        Image.fromarray((COLOR * 255).round().astype(np.uint8)),
        Image.new("RGB", (WIDTH, HEIGHT)),
    ]
    frames[0].save(tmp_path / "image.png", save_all=True, append_images=frames[1:])
    assert np.array_equal(read_image(tmp_path / "image.png"), np.asarray(frames[0]))


# --- JPEG ---


def jpeg_segments(content: bytes) -> Iterator[tuple[int, int, int]]:
    """Marker, start and end of each segment before the pixels."""
    start = 2
    while content[start + 1] != 0xDA:
        end = start + 2 + int.from_bytes(content[start + 2 : start + 4], "big")
        yield content[start + 1], start, end
        start = end


def without(content: bytes, marker: int) -> bytes:
    for found, start, end in [*jpeg_segments(content)][::-1]:
        if found == marker:
            content = content[:start] + content[end:]
    return content


def adobe(transform: int) -> bytes:
    return b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0" + bytes([transform])


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


JPEGS = {
    "gray": (
        jpeg(np.ascontiguousarray(RGB[..., 0]), "GRAYSCALE", "GRAYSCALE"),
        RGB[..., :1].repeat(3, axis=2),
    ),
    "YCbCr": (jpeg(RGB, "YCBCR", "RGB"), RGB),
    "YCbCr by Adobe's marker alone": (
        with_segment(without(jpeg(RGB, "YCBCR", "RGB"), 0xE0), adobe(1)),
        RGB,
    ),
    "YCbCr without a word": (without(jpeg(RGB, "YCBCR", "RGB"), 0xE0), RGB),
    "YCbCr of half the size": (pillow_jpeg(subsampling="4:2:0"), RGB),
    "progressive": (pillow_jpeg(progressive=True), RGB),
    "RGB by Adobe's marker": (jpeg(RGB, "RGB", "RGB"), RGB),
    "RGB by the names of its channels": (without(jpeg(RGB, "RGB", "RGB"), 0xEE), RGB),
    "CMYK, inverted as by Adobe": (jpeg(255 - CMYK, "CMYK", "CMYK"), LIGHT),
    "CMYK, inverted without Adobe's marker": (
        without(jpeg(255 - CMYK, "CMYK", "CMYK"), 0xEE),
        LIGHT,
    ),
    "YCCK": (jpeg(255 - CMYK, "YCCK", "CMYK"), LIGHT),
    "lossless": (imagecodecs.jpeg8_encode(RGB, lossless=True), RGB),
}


@pytest.mark.parametrize("kind", JPEGS)
def test_every_kind_of_jpeg_is_read_right(tmp_path: Path, kind: str) -> None:
    content, expected = JPEGS[kind]
    path, smooth = tmp_path / "image.jpg", kind in ("YCbCr of half the size", "progressive", "YCCK")
    for orientation in (None, *range(10), 65535):
        tag = [] if orientation is None else [b"Exif\0\0" + exif(orientation)]
        segments = [b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body for body in tag]
        path.write_bytes(with_segment(content, b"".join(segments)))
        turned = TURNS.get(orientation, np.asarray)(expected)
        image = read_image(path)
        assert image.shape == turned.shape and size_of(path) == image.shape[:2]
        assert np.abs(image - turned.astype(float)).max() <= (16 if smooth else 3)


def test_of_a_jpeg_with_others_in_it_the_first_is_read(tmp_path: Path) -> None:
    first, second = Image.fromarray(RGB), Image.new("RGB", (9, 9))
    first.save(
        tmp_path / "pair.jpg",
        "MPO",
        save_all=True,
        append_images=[second],
        quality=98,
        subsampling=0,
    )
    thumbnail = io.BytesIO()
    second.save(thumbnail, "JPEG")
    body = b"Exif\0\0" + exif(1) + thumbnail.getvalue()
    segment = b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body
    (tmp_path / "thumbnail.jpg").write_bytes(with_segment(JPEGS["YCbCr"][0], segment))
    for name in ("pair.jpg", "thumbnail.jpg"):
        assert np.abs(read_image(tmp_path / name) - RGB.astype(float)).max() <= 3


def patched(content: bytes, place: int, value: int) -> bytes:
    """A JPEG with a byte of its frame's header changed."""
    start = next(start for marker, start, _ in jpeg_segments(content) if marker == 0xC0)
    return content[: start + place] + bytes([value]) + content[start + place + 1 :]


DEEP = RGB.astype(np.uint16) * 16
REFUSED = {
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
        "it is a JPEG of 8-bit samples in 2 channels, which is not read",
    ),
    "JPEG-LS": (
        imagecodecs.jpegls_encode(RGB),
        "it is a JPEG of another kind (JPEG-LS), which is not read",
    ),
    "hierarchical": (patched(pillow_jpeg(), 1, 0xC5), "it is damaged or incomplete"),
    "JPEG XL": (imagecodecs.jpegxl_encode(RGB), "it is no image in JPEG, PNG"),
    "JPEG XR": (imagecodecs.jpegxr_encode(RGB), "it is no image in JPEG, PNG"),
    "AVIF": (imagecodecs.avif_encode(RGB), "it is no image in JPEG, PNG"),
    "JPEG 2000 of 4 bits": (
        imagecodecs.jpeg2k_encode(RGB >> 4, codecformat="jp2", bitspersample=4),
        "it is a JPEG 2000 of 4-bit integers in 3 channels, which is not read",
    ),
    "JPEG 2000, signed": (
        imagecodecs.jpeg2k_encode(RGB.astype(np.int16), codecformat="j2k"),
        "it is a JPEG 2000 of 16-bit signed integers in 3 channels, which is not read",
    ),
}

DEEP_PAIR = np.concatenate([GRAY, ALPHA], axis=2)
REFUSED |= {
    f"JPEG 2000, gray of {bits} bits with alpha": (
        imagecodecs.jpeg2k_encode(
            np.round(DEEP_PAIR * (2**bits - 1)).astype(np.uint16),
            codecformat="jp2",
            colorspace=2,
            bitspersample=bits,
            reversible=True,
        ),
        f"it is a JPEG 2000 of {bits}-bit integers in 2 channels, which is not read; save it as 8-bit PNG",
    )
    for bits in (12, 16)
}
REFUSED["JPEG 2000 of 20 bits"] = (
    imagecodecs.jpeg2k_encode(
        (GRAY[..., 0] * (2**20 - 1)).astype(np.uint32), bitspersample=20, reversible=True
    ),
    "it is a JPEG 2000 of 20-bit integers in 1 channels, which is not read; save it as 8-bit PNG",
)


@pytest.mark.parametrize("kind", REFUSED)
def test_a_jpeg_of_another_kind_is_refused_for_it(
    tmp_path: Path, capfd: pytest.CaptureFixture, kind: str
) -> None:
    (tmp_path / "image.jpg").write_bytes(REFUSED[kind][0])
    assert REFUSED[kind][1] in reason_of(tmp_path / "image.jpg")
    assert not capfd.readouterr().err


@pytest.mark.parametrize("codec", ["jp2", "j2k"])
@pytest.mark.parametrize("bits", [8, 12, 16])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_jpeg_2000_is_read_right_by_its_depth(
    tmp_path: Path, codec: str, bits: int, channels: int
) -> None:
    values = np.concatenate([COLOR, ALPHA], axis=2)[..., :channels]
    samples = (
        np.round(values * (2**bits - 1)).astype(np.uint8 if bits == 8 else np.uint16).squeeze()
    )
    path = tmp_path / "image.jp2"
    path.write_bytes(
        imagecodecs.jpeg2k_encode(samples, codecformat=codec, bitspersample=bits, reversible=True)
    )
    alpha = values[..., 3:] if channels == 4 else 1
    assert np.abs(read_image(path) - (255 - (255 - values[..., :3] * 255) * alpha)).max() <= 1.5


@pytest.mark.parametrize("codec", ["jp2", "j2k"])
@pytest.mark.parametrize(("channels", "bits"), [(2, 8), *itertools.product((1, 3, 4), (8, 12, 16))])
def test_white_and_opaque_stay_so_in_jpeg_2000(
    tmp_path: Path, codec: str, bits: int, channels: int
) -> None:
    samples = np.full((HEIGHT, WIDTH, channels), 2**bits - 1, np.uint8 if bits == 8 else np.uint16)
    samples[:, :5, : 1 if channels < 3 else 3] = 0
    space = {"colorspace": 2} if channels == 2 else {}  # gray
    path = tmp_path / "image.jp2"
    path.write_bytes(
        imagecodecs.jpeg2k_encode(
            samples.squeeze(), codecformat=codec, bitspersample=bits, reversible=True, **space
        )
    )
    right = np.full((HEIGHT, WIDTH, 3), 255)
    right[:, :5] = 0
    assert np.array_equal(read_image(path), right)
    for opened in (path, io.BytesIO(path.read_bytes())):
        with Image.open(opened) as image:
            if channels > 1 and bits > 8:
                with pytest.raises(
                    UserError, match="of which Pillow makes another image; give its path"
                ):
                    from_pillow(image)
            else:
                assert np.array_equal(from_pillow(image), right)


# --- the small ones ---


@pytest.mark.parametrize("end", ["", "\n", " # end\n"])
@pytest.mark.parametrize("white", [1, 100, 255, 1023, 65535])
@pytest.mark.parametrize("kind", ["P2", "P3", "P5", "P6"])
def test_a_ppm_of_any_white_is_read_right(
    tmp_path: Path, capfd: pytest.CaptureFixture, kind: str, white: int, end: str
) -> None:
    samples = np.round((GRAY if kind in ("P2", "P5") else COLOR) * white).astype(int)
    path = tmp_path / "image.ppm"
    if kind in ("P2", "P3"):
        body = " ".join(map(str, samples.ravel())).encode() + end.encode()
    else:
        body = samples.astype(np.uint8 if white < 256 else ">u2").tobytes()
    path.write_bytes(f"{kind} # made up\n{WIDTH} {HEIGHT}\n{white}\n".encode() + body)
    assert np.abs(read_image(path) - samples / white * 255.0).max() <= 1.01
    assert size_of(path) == (HEIGHT, WIDTH) and not capfd.readouterr().err


@pytest.mark.parametrize("body", [b"1 0 1 0 0 1", b"101001", b"1 0\n1 0 0 1\n"])
def test_a_bitmap_in_letters_has_black_for_1(tmp_path: Path, body: bytes) -> None:
    (tmp_path / "image.pbm").write_bytes(b"P1\n3 2\n" + body)
    assert read_image(tmp_path / "image.pbm")[..., 0].tolist() == [[0, 255, 0], [255, 255, 0]]


def bmp(rows: bytes, bits: int, masks: tuple[int, ...] = (), height: int = HEIGHT) -> bytes:
    """A file of rows of which each fills whole groups of four bytes; masks: of red, green, blue and alpha."""
    size = 108 if masks else 40
    header = struct.pack(
        "<IiiHHIIiiII", size, WIDTH, height, 1, bits, 3 if masks else 0, 0, 0, 0, 0, 0
    )
    header += struct.pack(f"<{len(masks)}I", *masks)
    header = header.ljust(size, b"\0")
    return b"BM" + struct.pack("<IHHI", 14 + size + len(rows), 0, 0, 14 + size) + header + rows


def test_bitmaps_of_16_24_and_32_bits_are_read_right(tmp_path: Path) -> None:
    bgr = RGB[..., ::-1]
    opaque, alpha = (
        np.full((HEIGHT, WIDTH, 1), 255, np.uint8),
        (ALPHA * 255).round().astype(np.uint8),
    )
    packed = (
        (RGB[..., 0] >> 3).astype("<u2") << 11
        | (RGB[..., 1] >> 2).astype("<u2") << 5
        | RGB[..., 2] >> 3
    )
    masks = (0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    cases = {
        "from below": (bmp(bgr[::-1].tobytes(), 24), RGB, 0),
        "from above": (bmp(bgr.tobytes(), 24, height=-HEIGHT), RGB, 0),
        "32 bits, of which 24 count": (
            bmp(np.dstack([bgr, opaque * 0])[::-1].tobytes(), 32),
            RGB,
            0,
        ),
        "alpha": (
            bmp(np.dstack([bgr, alpha])[::-1].tobytes(), 32, masks),
            255 - (255.0 - RGB) * (alpha / 255),
            1,
        ),
        "16 bits": (
            bmp(packed[::-1].astype("<u2").tobytes(), 16, (0xF800, 0x7E0, 0x1F, 0)),
            RGB,
            8,
        ),
    }
    for name, (content, expected, tolerance) in cases.items():
        (tmp_path / "image.bmp").write_bytes(content)
        assert (
            np.abs(read_image(tmp_path / "image.bmp") - expected.astype(float)).max() <= tolerance
        ), name
