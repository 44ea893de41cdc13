"""Label maps are read as class indices, and paired with their images by name."""

from pathlib import Path

import numpy as np
import official
import pytest
from gpvit.data import SemanticMapper
from gpvit.data.datasets.semantic import pair_by_stem
from gpvit.data.label_maps import read_labels, save_labels
from gpvit.utils.errors import UserError
from PIL import Image

INDICES = np.arange(12, dtype=np.uint8).reshape(3, 4)


def test_palette_image_keeps_its_indices(tmp_path: Path) -> None:
    image = Image.fromarray(INDICES, "P")
    image.putpalette([255, 0, 0, 128, 0, 0] * 6)  # gray values would be 76 and 38
    image.save(tmp_path / "x.png")
    assert np.array_equal(read_labels(tmp_path / "x.png"), INDICES)


def test_16_bit_labels_are_not_cut(tmp_path: Path) -> None:
    labels = INDICES.astype(np.int32) * 100
    save_labels(tmp_path / "x.png", labels)
    assert np.array_equal(read_labels(tmp_path / "x.png"), labels)


def test_offset_maps_zero_to_ignored_as_officially(tmp_path: Path) -> None:
    Image.fromarray(np.arange(256, dtype=np.uint8)[None]).save(tmp_path / "x.png")
    labels = read_labels(tmp_path / "x.png", offset=1)
    expected = official.arrays("segmentation_data")["reduce_zero_label_of_0_to_255"]
    assert labels.dtype == np.uint8 and np.array_equal(labels[0], expected)


def test_color_image_is_no_label_map(tmp_path: Path) -> None:
    Image.fromarray(np.eye(3, dtype=np.uint8)[None]).save(tmp_path / "x.png")
    with pytest.raises(UserError, match="x.png: is a color image, not a label map"):
        read_labels(tmp_path / "x.png")


def test_damaged_label_map_raises_one_line(tmp_path: Path) -> None:
    save_labels(tmp_path / "x.png", INDICES)
    content = (tmp_path / "x.png").read_bytes()
    (tmp_path / "x.png").write_bytes(content[:40])
    with pytest.raises(UserError, match="x.png: cannot be read as a label map") as error:
        read_labels(tmp_path / "x.png")
    assert "\n" not in str(error.value)


def write_pair(folder: Path, stem: str, size: tuple[int, int] = (3, 4)) -> None:
    for kind in ("images", "labels"):
        (folder / kind / stem).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((3, 4, 3), np.uint8)).save(folder / "images" / f"{stem}.jpg")
    save_labels(folder / "labels" / f"{stem}.png", np.zeros(size, np.uint8))


def test_images_and_label_maps_are_paired_by_stem_in_subfolders(tmp_path: Path) -> None:
    for stem in ("a/1", "b/1"):
        write_pair(tmp_path, stem)
    records = pair_by_stem(tmp_path / "images", tmp_path / "labels")
    assert [record["file_name"] for record in records] == [
        str(tmp_path / "images" / "a" / "1.jpg"),
        str(tmp_path / "images" / "b" / "1.jpg"),
    ]
    assert records[1]["sem_seg_file_name"] == str(tmp_path / "labels" / "b" / "1.png")


@pytest.mark.parametrize("kind", ["images", "labels"])
def test_file_without_counterpart_raises(tmp_path: Path, kind: str) -> None:
    for stem in ("1", "2"):
        write_pair(tmp_path, stem)
    next((tmp_path / kind).glob("2.*")).unlink()
    with pytest.raises(UserError, match="1 of 2 files have none of the same name in .*: 2\\."):
        pair_by_stem(tmp_path / "images", tmp_path / "labels")


def test_two_images_of_a_name_raise(tmp_path: Path) -> None:
    write_pair(tmp_path, "1")
    Image.fromarray(np.zeros((3, 4, 3), np.uint8)).save(tmp_path / "images" / "1.png")
    with pytest.raises(UserError, match="1.jpg and 1.png|1.png and 1.jpg"):
        pair_by_stem(tmp_path / "images", tmp_path / "labels")


def test_label_map_of_another_size_raises_with_both_sizes(tmp_path: Path) -> None:
    write_pair(tmp_path, "1", size=(5, 4))
    [record] = pair_by_stem(tmp_path / "images", tmp_path / "labels")
    mapper = SemanticMapper(True, augmentations=[], image_format="RGB")
    with pytest.raises(UserError, match="1.png: is 4 x 5 pixels, but its image is 4 x 3"):
        mapper(record)
