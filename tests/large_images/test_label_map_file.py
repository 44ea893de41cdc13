"""Label maps that are written tile by tile are TIFFs that others read."""

import itertools
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from gpvit.data.label_maps import class_palette, palette_of, read_labels
from gpvit.large_images import label_map_file
from gpvit.large_images.label_map_file import TILE, save_label_map_tiles
from gpvit.streaming.segmenter import ClassesOfTile
from gpvit.utils.errors import UserError
from PIL import Image

PALETTE = class_palette(9)


def random_classes(height: int, width: int, num_classes: int = 9) -> np.ndarray:
    """Squares of 16 x 16 pixels, so that compression matters."""
    squares = np.random.default_rng(0).integers(0, num_classes, (height // 16 + 1, width // 16 + 1))
    return squares.repeat(16, axis=0).repeat(16, axis=1)[:height, :width]


def tiles_of(classes: np.ndarray) -> Iterator[ClassesOfTile]:
    height, width = classes.shape
    for top, left in itertools.product(range(0, height, TILE), range(0, width, TILE)):
        rows = slice(top, min(top + TILE, height))
        columns = slice(left, min(left + TILE, width))
        yield rows, columns, torch.from_numpy(classes[rows, columns])


@pytest.mark.parametrize("size", [(1, 1), (513, 700), (1200, 512), (40, 1030)])
def test_tifffile_and_pillow_read_classes_and_colors(size: tuple[int, int], tmp_path: Path) -> None:
    path, classes = tmp_path / "labels.tif", random_classes(*size)
    save_label_map_tiles(path, tiles_of(classes), *size, PALETTE, 9)
    assert (tifffile.imread(path) == classes).all()
    assert (read_labels(path) == classes).all()
    assert palette_of(path)[:9] == PALETTE
    with Image.open(path) as image:
        shown = np.asarray(image.convert("RGB"))
    assert (shown == np.array(PALETTE)[classes]).all()
    with tifffile.TiffFile(path) as file:
        (page,) = file.pages
        assert page.dtype == np.uint8 and page.tile == (TILE, TILE)
        assert page.compression == tifffile.COMPRESSION.ADOBE_DEFLATE
        assert not file.is_bigtiff
    assert path.stat().st_size < 4000 + classes.size / 10
    assert list(tmp_path.iterdir()) == [path]


def test_more_than_256_classes_have_16_bits(tmp_path: Path) -> None:
    path, classes = tmp_path / "labels.tif", random_classes(600, 700, 60_000)
    save_label_map_tiles(path, tiles_of(classes), 600, 700, class_palette(256), 60_000)
    found = tifffile.imread(path)
    assert found.dtype == np.uint16 and (found == classes).all()
    assert (read_labels(path) == classes).all()  # by Pillow


def test_256_classes_have_8_bits_and_colors(tmp_path: Path) -> None:
    path, classes = tmp_path / "labels.tif", random_classes(600, 700, 256)
    save_label_map_tiles(path, tiles_of(classes), 600, 700, class_palette(256), 256)
    found = tifffile.imread(path)
    assert found.dtype == np.uint8 and (found == classes).all()
    assert palette_of(path) == class_palette(256)


def test_without_a_palette_it_is_gray(tmp_path: Path) -> None:
    path, classes = tmp_path / "labels.tif", random_classes(20, 30)
    save_label_map_tiles(path, tiles_of(classes), 20, 30, [], 9)
    with Image.open(path) as image:
        assert image.mode == "L" and (np.asarray(image) == classes).all()


def test_large_label_maps_are_bigtiffs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, classes = tmp_path / "labels.tif", random_classes(600, 700)
    monkeypatch.setattr(label_map_file, "CLASSIC_LIMIT", 4 * TILE**2)
    save_label_map_tiles(path, tiles_of(classes), 600, 700, PALETTE, 9)
    assert path.read_bytes()[:4] == b"II*\0"
    monkeypatch.setattr(label_map_file, "CLASSIC_LIMIT", 4 * TILE**2 - 1)
    save_label_map_tiles(path, tiles_of(classes), 600, 700, PALETTE, 9)
    assert path.read_bytes()[:4] == b"II+\0"
    assert (tifffile.imread(path) == classes).all() and (read_labels(path) == classes).all()
    assert palette_of(path)[:9] == PALETTE


def test_each_tile_is_written_before_the_next_one_is_computed(tmp_path: Path) -> None:
    path, classes = tmp_path / "labels.tif", np.random.default_rng(0).integers(0, 9, (2000, 600))
    sizes = []

    def noted() -> Iterator[ClassesOfTile]:
        for tile in tiles_of(classes):
            (partial,) = tmp_path.iterdir()
            sizes.append(partial.stat().st_size)
            yield tile

    save_label_map_tiles(path, noted(), *classes.shape, PALETTE, 9)
    assert len(sizes) == 8 and sizes[1] < 400_000 < sizes[-1]


def test_old_file_stays_when_a_tile_fails(tmp_path: Path) -> None:
    path, classes = tmp_path / "labels.tif", random_classes(600, 700)
    path.write_bytes(b"old")

    def failing() -> Iterator[ClassesOfTile]:
        yield next(tiles_of(classes))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        save_label_map_tiles(path, failing(), 600, 700, PALETTE, 9)
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_tiles_in_another_order_or_too_few_are_refused(tmp_path: Path) -> None:
    path, classes = tmp_path / "labels.tif", random_classes(600, 700)
    tiles = list(tiles_of(classes))
    for wrong in (tiles[::-1], tiles[:3], list(tiles_of(classes.T))):
        with pytest.raises(ValueError, match=r"got another tile|is shorter"):
            save_label_map_tiles(path, wrong, 600, 700, PALETTE, 9)
    assert list(tmp_path.iterdir()) == []


def test_missing_tifffile_is_reported_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tifffile", None)
    with pytest.raises(UserError, match="^label maps .*: pip install tifffile$"):
        save_label_map_tiles(tmp_path / "labels.tif", [], 1, 1, PALETTE, 9)
