"""Large files are read by regions, with the pixels that read_image gives small ones."""

import io
import os
import struct
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tifffile
from gpvit.data import image_io
from gpvit.data.image_io import read_image
from gpvit.large_images import readers
from gpvit.large_images.readers import georeference, open_large
from gpvit.streaming import storage
from gpvit.utils.errors import UserError
from PIL import Image

SIZE = 97, 150


@pytest.fixture
def few_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let files of more than 5,000 pixels be large."""
    monkeypatch.setattr(image_io, "MAX_PIXELS", 5000)


def noise(channels: int, dtype: str = "u1", high: int = 256) -> np.ndarray:
    rng = np.random.default_rng(0)
    shape = (*SIZE, channels) if channels > 1 else SIZE
    if dtype == "f4":
        return rng.random(shape, np.float32)
    # Not all of the range, and smooth, so that it can be compressed.
    ramp = np.linspace(0, 0.5, SIZE[1])[:, None] if channels > 1 else np.linspace(0, 0.5, SIZE[1])
    return ((rng.random(shape) / 4 + ramp) * high).astype(dtype)


PALETTE = np.random.default_rng(1).integers(0, 2**16, (3, 256), np.uint16)
KINDS: dict[str, tuple[np.ndarray, dict[str, Any]]] = {
    "RGB": (noise(3), dict(photometric="rgb")),
    "gray": (noise(1), dict(photometric="minisblack")),
    "white is zero": (noise(1), dict(photometric="miniswhite")),
    "deep gray": (noise(1, "u2", 3000), dict(photometric="minisblack")),
    "deep white is zero": (noise(1, "u2", 3000), dict(photometric="miniswhite")),
    "floats": (noise(1, "f4"), dict(photometric="minisblack")),
    "deep RGB": (noise(3, "u2", 4000), dict(photometric="rgb")),
    "planes": (noise(3).transpose(2, 0, 1), dict(photometric="rgb", planarconfig="separate")),
    "alpha": (noise(4), dict(photometric="rgb", extrasamples=["unassalpha"])),
    "fourth channel": (noise(4), dict(photometric="rgb", extrasamples=["unspecified"])),
    "palette": (noise(1), dict(photometric="palette", colormap=PALETTE)),
    "JPEG": (noise(3), dict(photometric="ycbcr", compression="jpeg", subsampling=(1, 1))),
}
LAYOUTS: dict[str, dict[str, Any]] = {
    "tiles": dict(tile=(32, 48), compression="zlib"),
    "LZW strips": dict(rowsperstrip=20, compression="lzw"),
    "uncompressed tiles": dict(tile=(32, 48)),
    "uncompressed": dict(),
    "BigTIFF": dict(tile=(32, 48), bigtiff=True, compression="zlib"),
}


def whole(path: Path) -> np.ndarray:
    """Read an image by regions that fit together."""
    pixels = open_large(path)
    height, width, channels = pixels.shape
    assert channels == 3
    result = np.zeros(pixels.shape, np.uint8)
    for rows in (slice(0, 1), slice(1, 50), slice(50, height)):
        for columns in (slice(0, 70), slice(70, width)):
            region = pixels[rows, columns]
            assert region.dtype == np.uint8 and region.shape == (
                rows.stop - rows.start,
                columns.stop - columns.start,
                3,
            )
            result[rows, columns] = region
    return result


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", KINDS)
def test_pixels_are_those_of_read_image(
    kind: str, layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples, options = KINDS[kind]
    path = tmp_path / "image.tif"
    tifffile.imwrite(path, samples, **LAYOUTS[layout] | options)
    expected = read_image(path)
    monkeypatch.setattr(image_io, "MAX_PIXELS", 5000)
    difference = np.abs(whole(path).astype(int) - expected)
    # Decoders of JPEG round differently.
    assert difference.max() <= (2 if kind == "JPEG" else 0)


def test_fourth_channel_without_meaning_is_alpha(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "image.tif"
    samples, options = KINDS["alpha"]
    tifffile.imwrite(path, samples, tile=(32, 48), **options)
    # The number and type (unsigned short) of ExtraSamples; 337 is a tag that is ignored.
    extra_samples, ignored = struct.pack("<HH", 338, 3), struct.pack("<HH", 337, 3)
    path.write_bytes(path.read_bytes().replace(extra_samples, ignored))
    expected = read_image(path)
    monkeypatch.setattr(image_io, "MAX_PIXELS", 5000)
    assert np.array_equal(whole(path), expected)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied(
    orientation: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "image.tif"
    tag = (274, "H", 1, orientation, True)
    tifffile.imwrite(path, noise(3), tile=(32, 48), compression="zlib", extratags=[tag])
    expected = read_image(path)
    monkeypatch.setattr(image_io, "MAX_PIXELS", 5000)
    pixels = open_large(path)
    assert pixels.shape == expected.shape
    assert np.array_equal(pixels[slice(0, None), slice(0, None)], expected)


def test_first_page_of_a_pyramid_is_read(tmp_path: Path, few_pixels: None) -> None:
    path, samples = tmp_path / "pyramid.tif", noise(3)
    with tifffile.TiffWriter(path, bigtiff=True) as file:
        options = dict(tile=(32, 48), compression="zlib", photometric="rgb")
        file.write(samples, subifds=1, **options)
        file.write(samples[::2, ::2], subfiletype=1, **options)
    assert np.array_equal(whole(path), samples)


def test_each_tile_is_decoded_once(
    tmp_path: Path, few_pixels: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, decoded = tmp_path / "image.tif", []
    tifffile.imwrite(path, noise(3), tile=(32, 48), compression="zlib", photometric="rgb")
    read_segments = tifffile.FileHandle.read_segments

    def counted(file: Any, *args: Any, **options: Any) -> Any:
        for content, number in read_segments(file, *args, **options):
            decoded.append(number)
            yield content, number

    monkeypatch.setattr(tifffile.FileHandle, "read_segments", counted)
    pixels = open_large(path)
    for _ in range(3):
        pixels[slice(0, 90), slice(0, 90)]
    assert decoded == [*range(4 * 4)]


@pytest.mark.parametrize("name", ["image.png", "image.jpg", "image.bmp"])
def test_other_formats_are_decoded_as_before(name: str, tmp_path: Path, few_pixels: None) -> None:
    path, limit = tmp_path / name, Image.MAX_IMAGE_PIXELS
    Image.fromarray(noise(3)).save(path)
    assert np.array_equal(whole(path), read_image(path, 10**5))
    assert limit == Image.MAX_IMAGE_PIXELS
    with pytest.raises(UserError, match="let gpvit predict read it with --stream or --tile 1024"):
        read_image(path, 5000)


def test_image_that_pillow_alone_would_refuse_is_read(
    tmp_path: Path, few_pixels: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "image.png"
    Image.fromarray(noise(3)).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    assert np.array_equal(whole(path), noise(3))


def test_arrays_and_npy_files_are_mapped(tmp_path: Path) -> None:
    path = tmp_path / "image.npy"
    np.save(path, noise(3))
    assert isinstance(open_large(path), np.memmap)
    assert np.array_equal(whole(path), noise(3))
    array = noise(3)
    assert open_large(array) is array


def test_space_is_checked_before_decoding_and_free_afterwards(
    tmp_path: Path, few_pixels: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, folder = tmp_path / "image.tif", tmp_path / "scratch"
    folder.mkdir()
    tifffile.imwrite(path, noise(3), tile=(32, 48), compression="zlib", photometric="rgb")
    image = open_large(path, folder)
    assert image.shape == (*SIZE, 3) and not list(folder.iterdir())
    assert f"{folder}/" in Path("/proc/self/maps").read_text()
    monkeypatch.setattr(storage.shutil, "disk_usage", lambda place: SimpleNamespace(free=1000))
    with pytest.raises(UserError, match="image.tif: cannot be read: this image needs 0.0 GB in"):
        open_large(path, folder)


def bomb_png(path: Path) -> None:
    Image.new("L", (8_000, 8_000)).save(path)


def bomb_tiff(path: Path) -> None:
    zeros = np.zeros((4096, 4096), np.uint8)
    tifffile.imwrite(path, zeros, tile=(1024, 1024), compression="zlib")
    patch(path, ImageWidth=2**16, ImageLength=2**16)


def patch(path: Path, **values: int) -> None:
    """Overwrite tags of a little-endian TIFF."""
    with tifffile.TiffFile(path) as file:
        places = {name: file.pages[0].tags[name] for name in values}
    content = bytearray(path.read_bytes())
    for name, value in values.items():
        tag = places[name]
        code = {3: "<H", 4: "<I"}[tag.dtype]
        struct.pack_into(
            code, content, tag.valueoffset, min(value, 2 ** (16 * (tag.dtype - 2)) - 1)
        )
    path.write_bytes(content)


def one_tile(path: Path) -> None:
    tifffile.imwrite(path, noise(3), compression="zlib", rowsperstrip=SIZE[0], photometric="rgb")


def truncated(path: Path) -> None:
    tifffile.imwrite(path, noise(3), tile=(32, 48), compression="zlib", photometric="rgb")
    path.write_bytes(path.read_bytes()[: -path.stat().st_size // 3])


def damaged_tile(path: Path) -> None:
    tifffile.imwrite(path, noise(3), tile=(32, 48), compression="zlib", photometric="rgb")
    content = bytearray(path.read_bytes())
    content[-3000:-2000] = os.urandom(1000)
    path.write_bytes(content)


def huge_sides(path: Path) -> None:
    one_tile(path)
    patch(path, ImageWidth=65535, ImageLength=65535)


def cmyk(path: Path) -> None:
    tifffile.imwrite(path, noise(4), photometric="separated", tile=(32, 48), compression="zlib")


def cut_at_the_end(path: Path) -> None:
    """Decoders of JPEG fill what is missing with gray."""
    options = dict(tile=(32, 48), compression="jpeg", photometric="rgb")
    tifffile.imwrite(path, noise(3), **options)
    path.write_bytes(path.read_bytes()[:-10])


def large_jpeg_as_tile(path: Path) -> None:
    tifffile.imwrite(path, noise(3), tile=(32, 48), compression="jpeg", photometric="rgb")
    jpeg = io.BytesIO()
    Image.new("RGB", (5000, 5000)).save(jpeg, "JPEG")
    start = path.stat().st_size
    path.write_bytes(path.read_bytes() + jpeg.getvalue())
    with tifffile.TiffFile(path, mode="r+") as file:
        offsets, counts = (file.pages[0].tags[f"Tile{name}"] for name in ("Offsets", "ByteCounts"))
        offsets.overwrite((start, *offsets.value[1:]), dtype="I")
        counts.overwrite((len(jpeg.getvalue()), *counts.value[1:]), dtype="I")


def transparent(path: Path) -> None:
    samples = noise(4)
    samples[..., 3] = 0
    tifffile.imwrite(path, samples, photometric="rgb", extrasamples=["unassalpha"], tile=(32, 48))


def packed_ycbcr(path: Path) -> None:
    options = dict(photometric="ycbcr", subsampling=(1, 1), compression="zlib")
    tifffile.imwrite(path, noise(3), tile=(32, 48), **options)


def many_tags(path: Path) -> None:
    # Header of a BigTIFF, offset and number of entries of its directory.
    path.write_bytes(struct.pack("<2sHHHQQ", b"II", 43, 8, 0, 16, 2**62) + bytes(1_000_000))


def npy_of_long_sides(path: Path) -> None:
    header = b"{'descr': '|u1', 'fortran_order': False, 'shape': (10%s, 4, 3)}\n" % (b"0" * 30)
    path.write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header)


BROKEN: dict[str, tuple[Callable[[Path], None], str]] = {
    "bomb.png": (bomb_png, "64 million pixels in 0.1 MB are a decompression bomb"),
    "bomb.tif": (bomb_tiff, "4295 million pixels in 0.0 MB are a decompression bomb"),
    "huge.tif": (huge_sides, "are a decompression bomb"),
    "truncated.tif": (truncated, "damaged or incomplete"),
    "damaged.tif": (damaged_tile, "damaged or incomplete"),
    "cmyk.tif": (cmyk, "it is a TIFF of CMYK, 8-bit integers with more than 0 million pixels"),
    "cut.tif": (cut_at_the_end, "it ends before its pixels do"),
    "tile.tif": (large_jpeg_as_tile, "a part of 48 x 32 pixels has"),
    "transparent.tif": (transparent, "white or transparent everywhere"),
    "ycbcr.tif": (packed_ycbcr, "it is a TIFF of YCbCr, 8-bit integers with more than"),
    "tags.tif": (many_tags, "it has 4611686018427387904 tags"),
    "sides.npy": (npy_of_long_sides, "cannot be read"),
    "header.npy": (lambda path: path.write_bytes(b"\x93NUMPY\1\0\x10\0" + b"(" * 16), "be read"),
    "missing.tif": (lambda path: None, "it does not exist; check the path"),
    "empty.png": (lambda path: path.touch(), "it is empty"),
    "text.npy": (lambda path: path.write_text("1, 2, 3"), "cannot be read"),
    "floats.npy": (lambda path: np.save(path, np.zeros((4, 4))), r"uint8, got \(4, 4\) of float64"),
    "pickle.npy": (lambda path: np.save(path, np.array([{}])), "cannot be read"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files_end_in_one_line(name: str, tmp_path: Path, few_pixels: None) -> None:
    write, message = BROKEN[name]
    write(tmp_path / name)
    tracemalloc.start()
    with pytest.raises(UserError, match=message) as error:
        open_large(tmp_path / name)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(str(error.value).splitlines()) == 1 and name in str(error.value)
    assert peak < 20_000_000


def test_parts_that_are_too_large_are_refused(
    tmp_path: Path, few_pixels: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers, "LARGEST_PART", 3 * 14_000)
    one_tile(tmp_path / "image.tif")
    with pytest.raises(UserError, match="in parts of 150 x 97 pixels, .*save it in tiles"):
        open_large(tmp_path / "image.tif")


@pytest.mark.parametrize("missing", ["tifffile", "imagecodecs"])
def test_missing_libraries_are_named(
    missing: str, tmp_path: Path, few_pixels: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    tifffile.imwrite(tmp_path / "image.tif", noise(3), tile=(32, 48), compression="zlib")
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(UserError, match="pip install tifffile imagecodecs$"):
        open_large(tmp_path / "image.tif")


def test_missing_rasterio_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rasterio", None)
    tifffile.imwrite(tmp_path / "image.tif", noise(3))
    with pytest.raises(UserError, match="^map coordinates are read by rasterio: pip install"):
        georeference(tmp_path / "image.tif")


def test_georeference_is_that_of_the_file(tmp_path: Path) -> None:
    rasterio = pytest.importorskip("rasterio")
    path = tmp_path / "map.tif"
    # Zone 32 north of UTM: its central meridian is 9 degrees east, at 500 km.
    transform = rasterio.transform.from_origin(500_000, 5_000_000, 10, 10)
    options = dict(driver="GTiff", height=4, width=4, count=1, dtype="uint8")
    with rasterio.open(path, "w", crs="EPSG:32632", transform=transform, **options) as file:
        file.write(np.zeros((1, 4, 4), np.uint8))
    points = georeference(path).to_lonlat(np.array([[0.0, 0.0], [1000.0, 0.0], [0.0, 1000.0]]))
    assert points[0] == pytest.approx([9, 45.1535], abs=1e-3)
    assert points[1][0] > 9.1 and points[2][1] < 45.1
    tifffile.imwrite(tmp_path / "plain.tif", noise(3))
    with pytest.raises(UserError, match="plain.tif: it has no map coordinates"):
        georeference(tmp_path / "plain.tif")
    Image.new("L", (4, 4)).save(tmp_path / "image.png")
    for name in ("image.png", "/vsicurl/http://localhost:9/map.tif"):
        with pytest.raises(UserError, match="is not a TIFF and has no map coordinates"):
            georeference(tmp_path / name)
