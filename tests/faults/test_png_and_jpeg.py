"""Kinds of PNG, JPEG and small formats: each is read right, by files made byte by byte, or refused for what is true of it."""

import io
import itertools
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import imagecodecs
import numpy as np
import pytest
from gpvit.conversion import size_of
from gpvit.errors import UserError
from gpvit.images import TURNS, from_pillow, read_image
from PIL import Image

HEIGHT, WIDTH = 17, 24
Y, X = np.mgrid[:HEIGHT, :WIDTH]
X, Y = X / (WIDTH - 1), Y / (HEIGHT - 1)
GRAY = ((X + 2 * Y) / 3)[..., None]
COLOR = np.stack([X, 0.1 + 0.8 * Y, 1 - (X + Y) / 2], axis=2)
ALPHA = (1 - X * Y)[..., None]
KINDS = {"gray": (0, (1, 2, 4, 8, 16)), "RGB": (2, (8, 16)), "palette": (3, (1, 2, 4, 8))}  # color type, bits
KINDS |= {"gray with alpha": (4, (8, 16)), "RGB with alpha": (6, (8, 16))}
ADAM7 = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]


def reason_of(path: Path) -> str:
    with pytest.raises(UserError) as error:
        read_image(path)
    return str(error.value).removeprefix(f"{path}: cannot be read: ")


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def exif(orientation: int) -> bytes:
    return b"MM\0*" + struct.pack(">IHHHIHHI", 8, 1, 0x0112, 3, 1, orientation, 0, 0)


def png(samples: np.ndarray, color_type: int, bits: int, chunks: list[bytes], interlaced: bool) -> bytes:
    """A file of samples (H, W, channels) whose rows are stored without a filter."""
    parts = [samples[y::down, x::right] for y, x, down, right in ADAM7] if interlaced else [samples]
    rows = b""
    for row in itertools.chain.from_iterable(part for part in parts if part.shape[1]):
        values = row.ravel()
        ones = (values[:, None] >> np.arange(bits)[::-1]) & 1  # the bits of each sample, the most significant first
        rows += b"\0" + np.packbits(ones.astype(np.uint8)).tobytes()
    header = struct.pack(">IIBBBBB", *samples.shape[1::-1], bits, color_type, 0, 0, interlaced)
    body = b"".join(chunks) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + body


@pytest.mark.parametrize("transparent", [False, True])
@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize(("kind", "bits"), [(kind, bits) for kind, (_, depths) in KINDS.items() for bits in depths])
def test_every_kind_of_png_is_read_right(
    tmp_path: Path, capfd: pytest.CaptureFixture, kind: str, bits: int, interlaced: bool, transparent: bool
) -> None:
    full, path = 2**bits - 1, tmp_path / "image.png"
    values = COLOR if "RGB" in kind else GRAY
    values = np.concatenate([values, ALPHA], axis=2) if "alpha" in kind else values
    samples = np.round(values * full).astype(int)
    chunks = [chunk(b"gAMA", struct.pack(">I", 100_000)), chunk(b"tIME", bytes(7)), chunk(b"iCCP", b"x\0\0" + zlib.compress(bytes(200)))]
    alpha = samples[..., -1:] / full if "alpha" in kind else np.ones((HEIGHT, WIDTH, 1))
    palette = np.stack([np.arange(2**bits)[::-1], np.arange(2**bits) * 5 % 2**bits, np.arange(2**bits)], axis=1) * (
        255 // full if kind == "palette" else 1
    )
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
        hidden = samples[5, 7] if bits > 1 else np.array([1])  # of black and white, something must be left to see
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
                with pytest.raises(UserError, match="of which Pillow makes another image; give its path"):
                    from_pillow(opened)
                continue
            assert np.abs(from_pillow(opened) - turned).max() <= (2 if bits == 16 else 1.01)
    assert not capfd.readouterr().err


def test_of_an_animated_png_the_first_frame_is_read(tmp_path: Path) -> None:
    frames = [Image.fromarray((COLOR * 255).round().astype(np.uint8)), Image.new("RGB", (WIDTH, HEIGHT))]
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


def encoded(samples: np.ndarray, color: str, subsampling: str = "444", **options: Any) -> bytes:
    """Samples (H, W, channels) as they are, whatever color space they are in, without a word about it in the file."""
    content = imagecodecs.jpeg8_encode(samples, 98, colorspace=color, outcolorspace=color, subsampling=subsampling, **options)
    return without(without(content, 0xE0), 0xEE)
