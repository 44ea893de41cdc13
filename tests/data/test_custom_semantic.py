"""Folders of images and label maps, and objects as label maps, become datasets."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import REPOSITORY
from detectron2.data import DatasetCatalog, MetadataCatalog
from gpvit.cli import check_data, view_data
from gpvit.config import load_config
from gpvit.data import SemanticMapper
from gpvit.data.datasets import custom_semantic
from gpvit.data.datasets.custom_semantic import SemanticData, balanced_weights, find_semantic
from gpvit.data.datasets.label_folders import find_pairs
from gpvit.data.datasets.register import check_classes, register_semantic_folder, use_folder
from gpvit.data.label_maps import class_palette, draw_objects, labels_of, pack_color, palette_of
from gpvit.utils.errors import UserError
from gpvit.visualization.label_drawing import draw_labels
from PIL import Image

HEIGHT, WIDTH = 20, 30
COLORS = {"road": (10, 20, 30), "car": (200, 0, 0), "tree": (0, 150, 0)}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def stripes(*values: int) -> np.ndarray:
    """A label map of vertical stripes of these values."""
    return np.repeat(np.array(values, np.uint8), WIDTH // len(values))[None].repeat(HEIGHT, 0)


def write(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def write_image(path: Path, seed: int = 0) -> None:
    write(path, np.full((HEIGHT, WIDTH, 3), seed, np.uint8))


def write_pairs(
    folder: Path, images: str, labels: str, names: Sequence[str], values: Sequence[int] = (0, 1, 2)
) -> None:
    """Write images and label maps with these patterns of paths, such as images/train/{}.jpg."""
    for number, name in enumerate(names):
        write_image(folder / images.format(name), number)
        write(folder / labels.format(name), stripes(*values))


def files_of(data: SemanticData, split: str) -> list[tuple[str, str]]:
    """Images and label maps of a split, by their names."""
    pairs = []
    for record in data.splits[split].records:
        image, label = Path(record["file_name"]), Path(record["sem_seg_file_name"])
        pairs.append((image.name, label.name))
    return pairs


LAYOUTS = [
    ("images/{split}/{{}}.jpg", "labels/{split}/{{}}.png"),
    ("{split}/images/{{}}.jpg", "{split}/masks/{{}}.png"),
    ("{split}/img/{{}}.jpg", "{split}/GT/{{}}_mask.png"),
    ("{split}/{{}}.jpg", "{split}/{{}}_mask.png"),  # Roboflow
    ("data/JPEGImages/{split}/{{}}.jpg", "data/SegmentationClass/{split}/{{}}.png"),
]


@pytest.mark.parametrize("images, labels", LAYOUTS)
@pytest.mark.parametrize("val", ["val", "valid", "validation", "test"])
def test_splits_are_found_in_any_layout(images: str, labels: str, val: str, tmp_path: Path) -> None:
    for split, names in (("train", ["a", "b"]), (val, ["c"])):
        write_pairs(tmp_path, images.format(split=split), labels.format(split=split), names)
    data = find_semantic(str(tmp_path))
    assert [image for image, _ in files_of(data, "train")] == ["a.jpg", "b.jpg"]
    assert [image for image, _ in files_of(data, "val")] == ["c.jpg"]
    for split in data.splits.values():
        for record in split.records:
            stem = Path(record["file_name"]).stem
            assert Path(record["sem_seg_file_name"]).stem.removesuffix("_mask") == stem
            assert np.array_equal(labels_of(record), stripes(0, 1, 2))
    assert len(data.classes) == 3


def test_a_fifth_is_held_out_without_splits(tmp_path: Path) -> None:
    write_pairs(tmp_path, "images/{}.jpg", "masks/{}.png", list("abcdefghij"))
    data = find_semantic(str(tmp_path))
    assert len(data.splits["train"].records) == 8 and len(data.splits["val"].records) == 2
    assert "2 of 10 images are held out" in data.summary()


def test_instances_of_pascal_voc_are_not_label_maps(tmp_path: Path) -> None:
    write_pairs(tmp_path, "JPEGImages/{}.jpg", "SegmentationClass/{}.png", "abcdef")
    for name in "abcdef":
        write(tmp_path / "SegmentationObject" / f"{name}.png", stripes(1, 2, 3))
    assert len(find_semantic(str(tmp_path)).classes) == 3


def test_files_without_counterpart_are_reported_and_left_out(tmp_path: Path) -> None:
    write_pairs(tmp_path, "images/train/{}.jpg", "labels/train/{}.png", ["a", "b"])
    write_pairs(tmp_path, "images/val/{}.jpg", "labels/val/{}.png", ["c"])
    write_image(tmp_path / "images/train/alone.jpg")
    write(tmp_path / "labels/val/lonely.png", stripes(0, 1))
    data = find_semantic(str(tmp_path))
    problems = [(problem.kind, problem.detail) for problem in data.splits["train"].problems]
    assert ("no label map", "images/train/alone.jpg") in problems
    assert ("no image", "labels/val/lonely.png") in problems
    assert len(data.splits["train"].records) == 2 and len(data.splits["val"].records) == 1
    data.splits["train"].raise_if_fatal(str(tmp_path))


@pytest.mark.parametrize("second", ["images/a.png", "masks/a_mask.png"])
def test_ambiguous_pairs_raise(second: str, tmp_path: Path) -> None:
    write_pairs(tmp_path, "images/{}.jpg", "masks/{}.png", ["a", "b"])
    write_image(tmp_path / second)
    with pytest.raises(UserError, match="have the same name; keep one|several label maps"):
        find_semantic(str(tmp_path))


def test_suffixes_in_capitals_are_recognized(tmp_path: Path) -> None:
    for name in "ab":
        write_image(tmp_path / f"{name}.JPG")
        write(tmp_path / f"{name}_mask.PNG", stripes(0, 1))
    assert len(find_semantic(str(tmp_path)).classes) == 2


def test_images_of_the_same_name_without_label_map_are_none_of_our_business(
    tmp_path: Path,
) -> None:
    for suffix in (".jpg", ".png"):
        write_image(tmp_path / "images" / f"a{suffix}")
    assert find_pairs(str(tmp_path)) is None


# Classes


def test_classes_are_the_values_that_occur_without_a_list(tmp_path: Path) -> None:
    write_pairs(tmp_path, "images/{}.jpg", "labels/{}.png", "abcdef", (0, 255, 3))
    data = find_semantic(str(tmp_path))
    assert data.classes == ["class 0", "class 1", "class 2", "class 3"]
    assert "the classes are the values that occur" in data.summary()
    train = data.splits["train"]
    assert train.pixels[0].tolist() == [200, 0, 0, 200] and train.ignored[0] == 200
    unused = [problem.detail for problem in train.problems if problem.kind == "unused class"]
    assert unused == ["class 1", "class 2"]


def test_names_are_listed_in_a_text_file(tmp_path: Path) -> None:
    write_pairs(tmp_path, "images/{}.jpg", "labels/{}.png", "abcdef")
    (tmp_path / "classes.txt").write_text("road\n\ncar \ntree\n")
    assert find_semantic(str(tmp_path)).classes == ["road", "car", "tree"]


@pytest.mark.parametrize("values", [(0, 1), (0, 255)])
def test_single_name_is_that_of_the_foreground(values: tuple[int, int], tmp_path: Path) -> None:
    write_pairs(tmp_path, "images/{}.jpg", "labels/{}.png", "abcdef", values)
    (tmp_path / "classes.txt").write_text("nucleus\n")
    data = find_semantic(str(tmp_path))
    assert data.classes == ["background", "nucleus"]
    assert labels_of(data.splits["train"].records[0]).tolist() == stripes(0, 1).tolist()


def test_masks_of_0_and_255_have_a_foreground(tmp_path: Path) -> None:
    write_pairs(tmp_path, "images/{}.jpg", "labels/{}.png", "abcdef", (0, 255))
    data = find_semantic(str(tmp_path))
    assert data.classes == ["background", "foreground"]
    train = data.splits["train"]
    assert train.pixels[0].tolist() == [300, 300] and not train.ignored.any()
    assert [problem.kind for problem in train.problems] == ["0 and 255"]
    train.raise_if_fatal("x")


def test_image_without_labeled_pixel_is_reported(tmp_path: Path) -> None:
    write_pairs(tmp_path, "images/train/{}.jpg", "labels/train/{}.png", "ab", (0, 1))
    write_pairs(tmp_path, "images/val/{}.jpg", "labels/val/{}.png", "c", (0, 1))
    write(tmp_path / "labels/train/b.png", stripes(255))
    [problem] = find_semantic(str(tmp_path)).splits["train"].problems
    assert problem.kind == "unlabeled" and problem.detail.endswith("b.jpg")


def test_255_is_ignored_next_to_other_values(tmp_path: Path) -> None:
    write_pairs(tmp_path, "images/{}.jpg", "labels/{}.png", "abcdef", (0, 255))
    write(tmp_path / "labels/a.png", stripes(0, 1, 255))
    data = find_semantic(str(tmp_path))
    assert [int(split.ignored.sum()) for split in data.splits.values()] != [0, 0]


def colored(colors: Sequence[tuple[int, int, int]]) -> np.ndarray:
    pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    step = WIDTH // len(colors)
    for number, color in enumerate(colors):
        pixels[:, number * step : (number + 1) * step] = color
    return pixels


CVAT = "# label:color_rgb:parts:actions\n"
LISTS = {
    "class_dict.csv": "name, r, g, b\n"
    + "".join(f"{name},{r},{g},{b}\n" for name, (r, g, b) in COLORS.items())
    + "void,0,0,0\n",
    "labelmap.txt": CVAT
    + "".join(f"{name}:{r},{g},{b}::\n" for name, (r, g, b) in COLORS.items())
    + "unlabeled:0,0,0::\n",
}


@pytest.mark.parametrize("name", LISTS)
@pytest.mark.parametrize("palette", [False, True])
def test_colors_are_listed_by_class(name: str, palette: bool, tmp_path: Path) -> None:
    write_pairs(tmp_path, "images/{}.jpg", "labels/{}.png", "abcdef")
    for letter in "abcdef":
        image = Image.fromarray(colored([*COLORS.values(), (0, 0, 0)]))
        if palette:
            image = image.quantize(8)  # other indices than those of the classes
        image.save(tmp_path / "labels" / f"{letter}.png")
    (tmp_path / name).write_text(LISTS[name])
    data = find_semantic(str(tmp_path))
    assert data.classes == list(COLORS) and data.palette == list(COLORS.values())
    record = data.splits["train"].records[0]
    assert np.unique(labels_of(record)).tolist() == [0, 1, 2, 255]
    assert data.splits["train"].pixels[0].tolist() == [140] * 3
    assert data.splits["train"].ignored[0] == 180


def test_roboflow_lists_values(tmp_path: Path) -> None:
    write_pairs(tmp_path, "train/{}.jpg", "train/{}_mask.png", "abcdef", (0, 2, 5))
    (tmp_path / "train" / "_classes.csv").write_text("Pixel Value, Class\n0, road\n2, car\n5, tree")
    data = find_semantic(str(tmp_path))
    assert data.classes == ["road", "car", "tree"]
    assert np.array_equal(labels_of(data.splits["train"].records[0]), stripes(0, 1, 2))


def test_gray_color_images_are_label_maps(tmp_path: Path) -> None:
    write_pairs(tmp_path, "images/{}.jpg", "labels/{}.png", "abcdef")
    for name in "abcdef":
        write(tmp_path / f"labels/{name}.png", np.stack([stripes(0, 1, 2)] * 3, axis=-1))
    assert len(find_semantic(str(tmp_path)).classes) == 3


@pytest.mark.parametrize(
    "name, text, message",
    [
        ("class_dict.csv", "name,r,g,b\nroad,1,2\n", "line 2 has no color"),
        ("class_dict.csv", "name,r,g,b\nroad,1,2,300\n", "line 2 has no color"),
        ("class_dict.csv", "name,r,g,b\nroad,1,2,3\ncar,1,2,3\n", "that of two classes"),
        ("class_dict.csv", "name,r,g,b\n", "lists no class"),
        ("_classes.csv", "Pixel Value, Class\nroad, 1\n", "line 2 is not VALUE,NAME"),
        ("_classes.csv", "Pixel Value, Class\n1, a\n1, b\n", "has the value 1 of a line before"),
        ("labelmap.txt", "road\n", "line 1 has no color"),
        ("labelmap.txt", ":1,2,3::\n", "a class has no name"),
        ("classes.txt", "a\nb\na\n", "has the class a twice"),
        ("classes.txt", "a" * (1 << 21), "larger than"),
        ("classes.txt", "\n".join(map(str, range(2000))), "more than 1024 classes"),
        ("class_dict.csv", 'name,r,g,b\n"' + "a" * 200_000, "field larger than"),
        ("_classes.csv", "Pixel Value, Class\n99999999999999999999, a\n", "not VALUE,NAME"),
    ],
)
def test_faulty_class_list_raises_one_line(
    name: str, text: str, message: str, tmp_path: Path
) -> None:
    write_pairs(tmp_path, "images/{}.jpg", "labels/{}.png", "ab")
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message) as error:
        find_semantic(str(tmp_path))
    assert name in str(error.value) and "\n" not in str(error.value)


def test_lists_of_different_classes_raise(tmp_path: Path) -> None:
    write_pairs(tmp_path, "{}.jpg", "{}_mask.png", "ab")
    (tmp_path / "classes.txt").write_text("a\nb")
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "classes.txt").write_text("a\nc")
    with pytest.raises(UserError, match="list different classes; remove one"):
        find_semantic(str(tmp_path))


def test_list_with_colors_counts_next_to_names_alone(tmp_path: Path) -> None:
    write_pairs(tmp_path, "images/{}.jpg", "labels/{}.png", "ab")
    for name in "ab":
        write(tmp_path / f"labels/{name}.png", colored(list(COLORS.values())))
    (tmp_path / "classes.txt").write_text("\n".join(COLORS))
    (tmp_path / "class_dict.csv").write_text(LISTS["class_dict.csv"])
    assert find_semantic(str(tmp_path)).palette == list(COLORS.values())


# Problems


def problems_of(
    tmp_path: Path, label: np.ndarray | Image.Image | None, suffix: str = ".png"
) -> str:
    """The error of a dataset of two classes, one label map of which is replaced."""
    write_pairs(tmp_path, "images/train/{}.jpg", "labels/train/{}.png", "ab", (0, 1))
    write_pairs(tmp_path, "images/val/{}.jpg", "labels/val/{}.png", "c", (0, 1))
    (tmp_path / "classes.txt").write_text("road\ncar")
    path = tmp_path / "labels/train/a.png"
    if label is None:
        path.write_bytes(path.read_bytes()[:50])
    else:
        path.unlink()
        image = Image.fromarray(label) if isinstance(label, np.ndarray) else label
        image.save(path.with_suffix(suffix))
    with pytest.raises(UserError) as error:
        register_semantic_folder(str(tmp_path), "train")
    message = str(error.value)
    assert "a" + suffix in message and "\n" not in message and "gpvit check-data" in message
    return message


def test_value_that_is_no_class_raises(tmp_path: Path) -> None:
    message = problems_of(tmp_path, stripes(0, 1, 7))
    assert "1 label maps have values that are no class" in message and "a.png: 7" in message


def test_colors_without_list_raise(tmp_path: Path) -> None:
    message = problems_of(tmp_path, colored([(1, 2, 3), (4, 5, 6)]))
    assert "(1, 2, 3), (4, 5, 6)" in message and "add class_dict.csv" in message


def test_size_that_differs_raises(tmp_path: Path) -> None:
    message = problems_of(tmp_path, stripes(0, 1)[:10])
    assert "30 x 10, its image is 30 x 20" in message


def test_damaged_label_map_raises(tmp_path: Path) -> None:
    assert "cannot be read as a label map" in problems_of(tmp_path, None)


def test_jpeg_label_map_raises(tmp_path: Path) -> None:
    assert "JPEG file, which changes values" in problems_of(tmp_path, stripes(0, 1), ".jpg")


def test_photo_as_label_map_raises(tmp_path: Path) -> None:
    values = np.arange(HEIGHT * WIDTH, dtype=np.uint16).reshape(HEIGHT, WIDTH)
    assert "has 600 different values" in problems_of(tmp_path, values)


def test_negative_value_raises(tmp_path: Path) -> None:
    label = Image.fromarray(stripes(0, 1).astype(np.int32) - 1)
    assert "a.tif: -1" in problems_of(tmp_path, label, ".tif")


def test_value_above_all_class_indices_raises(tmp_path: Path) -> None:
    write_pairs(tmp_path, "images/{}.jpg", "labels/{}.png", "ab")
    write(tmp_path / "labels/a.png", stripes(0, 1).astype(np.uint16) * 65535)
    with pytest.raises(UserError, match="have the value 65535, but there can be at most 1024"):
        find_semantic(str(tmp_path))


def test_fault_that_is_gone_is_not_remembered(tmp_path: Path) -> None:
    write_pairs(tmp_path, "images/{}.jpg", "labels/{}.png", "abcdef")
    path = tmp_path / "labels/a.png"
    content, status = path.read_bytes(), path.stat()
    path.write_bytes(b"x" * len(content))
    os.utime(path, ns=(status.st_mtime_ns, status.st_mtime_ns))
    find_semantic(str(tmp_path))
    path.write_bytes(content)
    os.utime(path, ns=(status.st_mtime_ns, status.st_mtime_ns))
    for split in find_semantic(str(tmp_path)).splits.values():
        split.raise_if_fatal(str(tmp_path))


def test_single_class_raises(tmp_path: Path) -> None:
    write_pairs(tmp_path, "images/{}.jpg", "labels/{}.png", "abcdef", (1,))
    with pytest.raises(UserError, match="all labeled pixels are of one class"):
        register_semantic_folder(str(tmp_path), "train")


def test_folder_without_annotations_raises(tmp_path: Path) -> None:
    write_image(tmp_path / "a.jpg")
    with pytest.raises(UserError, match="no annotations are recognized"):
        find_semantic(str(tmp_path))


def test_counts_are_cached_until_a_label_map_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_pairs(tmp_path / "d", "images/{}.jpg", "labels/{}.png", "abcdef")
    first = find_semantic(str(tmp_path / "d"))
    monkeypatch.setattr(custom_semantic, "_count_file", pytest.fail)
    again = find_semantic(str(tmp_path / "d"))
    assert np.array_equal(again.splits["train"].pixels, first.splits["train"].pixels)
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in "abcdef":
        write(tmp_path / f"d/labels/{name}.png", stripes(1, 1, 2))
        os.utime(tmp_path / f"d/labels/{name}.png", ns=(1, 1))
    assert find_semantic(str(tmp_path / "d")).splits["train"].pixels[0].tolist() == [0, 400, 200]


# Objects


def rectangle(x0: int, y0: int, x1: int, y1: int, category: int, **others: object) -> dict:
    return {
        "category_id": category,
        "segmentation": [[x0, y0, x1, y0, x1, y1, x0, y1]],
    } | others


def test_smaller_object_is_on_top() -> None:
    small, large = rectangle(5, 5, 10, 10, 0), rectangle(0, 0, 20, 20, 1)
    crowd = rectangle(15, 0, 30, 20, 2, iscrowd=1)
    for objects in ([small, large, crowd], [crowd, large, small]):
        labels = draw_objects(objects, HEIGHT, WIDTH)
        assert labels[7, 7] == 1 and labels[7, 2] == 2 and labels[2, 17] == 2
        assert (labels[:, 21:] == 255).all() and labels.dtype == np.uint8
    assert not draw_objects([], HEIGHT, WIDTH).any()


def test_later_object_of_equal_area_is_on_top() -> None:
    objects = [rectangle(0, 0, 10, 10, 0), rectangle(5, 0, 15, 10, 1)]
    assert draw_objects(objects, HEIGHT, WIDTH)[5, 7] == 2
    assert draw_objects(objects[::-1], HEIGHT, WIDTH)[5, 7] == 1


def test_crowd_among_many_classes_is_ignored() -> None:
    crowd = rectangle(0, 0, 9, 9, 300, iscrowd=1)
    labels = draw_objects([crowd, rectangle(10, 0, 20, 9, 2)], HEIGHT, WIDTH, 65535)
    assert labels[3, 3] == 65535 and labels[3, 15] == 3


def test_object_without_mask_raises_with_its_image() -> None:
    record = {"file_name": "x.jpg", "height": 9, "width": 9, "annotations": [{"category_id": 0}]}
    with pytest.raises(UserError, match="x.jpg: annotation id None cannot be used .it has no mask"):
        labels_of(record)


def test_masks_of_a_coco_file_are_label_maps(synthetic_data: Path) -> None:
    data = find_semantic(str(synthetic_data))
    assert data.classes[0] == "background" and len(data.classes) == 4
    for split in data.splits.values():
        for record, pixels in zip(split.records, split.pixels):
            labels = labels_of(record)
            assert np.bincount(labels[labels != 255], minlength=4).tolist() == pixels.tolist()
            covered = np.zeros(labels.shape, bool)
            for item in record["annotations"]:
                mask = draw_objects([item | {"category_id": 0, "iscrowd": 0}], *labels.shape)
                covered |= mask.astype(bool)
            assert np.array_equal(labels > 0, covered)


# Registration


def test_config_gets_datasets_classes_and_weights(tmp_path: Path) -> None:
    write_pairs(tmp_path, "images/train/{}.jpg", "labels/train/{}.png", "ab", (0, 0, 1))
    write_pairs(tmp_path, "images/val/{}.jpg", "labels/val/{}.png", "c", (0, 1))
    config = str(REPOSITORY / "configs" / "quickstart_semantic.py")
    cfg = load_config(config, ["model.sem_seg_head.class_weights=balanced"])
    with pytest.raises(UserError, match="class_weights=balanced needs a custom dataset"):
        cfg.dataloader.test.dataset.names = cfg.dataloader.train.dataset.names = "ade20k_val"
        cfg.model.sem_seg_head.num_classes = 150
        check_classes(cfg, train=True)
    use_folder(cfg, str(tmp_path), train=True)
    assert check_classes(cfg, train=True) == ["background", "foreground"]
    head = cfg.model.sem_seg_head
    assert head.num_classes == 2 and head.ignore_value == 255
    assert head.class_weights == pytest.approx([0.75, 1.5])
    name = cfg.dataloader.train.dataset.names
    assert cfg.dataloader.evaluator.dataset_name == cfg.dataloader.test.dataset.names
    assert len(DatasetCatalog.get(name)) == 2
    metadata = MetadataCatalog.get(name)
    assert metadata.stuff_colors == class_palette(2) and metadata.ignore_label == 255


def test_missing_split_raises(tmp_path: Path) -> None:
    write_pairs(tmp_path, "images/val/{}.jpg", "labels/val/{}.png", "ab")
    with pytest.raises(UserError, match="no images for train, only for val"):
        register_semantic_folder(str(tmp_path), "train")


def test_balanced_weights_are_median_frequencies() -> None:
    # Class 0: 60 of 120 pixels of both images; class 1: 50 of 60 of one; class 2: none.
    pixels = np.array([[10, 50, 0, 0], [50, 0, 0, 10]])
    frequencies = [60 / 120, 50 / 60, 10 / 60]
    median = sorted(frequencies)[1]
    expected = [median / frequencies[0], median / frequencies[1], 1, median / frequencies[2]]
    assert balanced_weights(pixels) == pytest.approx(expected)


# Palettes


def test_palette_is_that_of_pascal_voc() -> None:
    expected = [(0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0), (0, 0, 128)]
    assert class_palette(5) == expected
    assert class_palette(256)[255] == (224, 224, 192) and len(set(class_palette(256))) == 256


def test_palette_of_label_maps_is_used(tmp_path: Path) -> None:
    write_pairs(tmp_path, "images/{}.jpg", "labels/{}.png", "abcdef")
    for path in (tmp_path / "labels").iterdir():
        image = Image.open(path)
        image.putpalette([9, 8, 7, 6, 5, 4, 3, 2, 1])
        image.save(path)
    assert palette_of(path)[:3] == [(9, 8, 7), (6, 5, 4), (3, 2, 1)]
    assert find_semantic(str(tmp_path)).palette == [(9, 8, 7), (6, 5, 4), (3, 2, 1)]


def test_color_is_one_number() -> None:
    assert pack_color((1, 2, 3)) == 0x010203
    assert pack_color(np.array([[[255, 0, 0], [0, 0, 1]]], np.uint8)).tolist() == [[0xFF0000, 1]]


# Commands


def test_check_data_lists_shares_and_problems(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_pairs(tmp_path / "d", "images/train/{}.jpg", "labels/train/{}.png", "ab", (0, 0, 1))
    write_pairs(tmp_path / "d", "images/val/{}.jpg", "labels/val/{}.png", "c", (0, 1))
    write_image(tmp_path / "d/images/train/alone.jpg")
    assert check_data.main(["--data", str(tmp_path / "d")]) == 0
    output = capsys.readouterr().out
    assert "foreground" in output and "33.33%" in output and "50.00%" in output
    assert "dropped: 1 images have no label map" in output
    write(tmp_path / "d/labels/train/b.png", stripes(0, 1, 9))
    problems = str(tmp_path / "problems.json")
    assert check_data.main(["--data", str(tmp_path / "d"), "--json", problems]) == 0  # a new class
    (tmp_path / "d/classes.txt").write_text("road\ncar")
    assert check_data.main(["--data", str(tmp_path / "d"), "--json", problems]) == 1
    assert "stops training: 1 label maps have values that are no class" in capsys.readouterr().out
    kinds = [problem["kind"] for problem in json.loads(Path(problems).read_text())]
    assert kinds == ["no label map", "value"]


def test_check_data_reads_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_pairs(tmp_path, "images/{}.png", "labels/{}.png", "abcdef")
    path = tmp_path / "images/b.png"
    path.write_bytes(path.read_bytes()[:-30])
    assert check_data.main(["--data", str(tmp_path), "--annotations-only"]) == 0
    assert check_data.main(["--data", str(tmp_path)]) == 1
    assert "1 images cannot be read" in capsys.readouterr().out


def test_check_data_takes_objects_as_label_maps(
    synthetic_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--data", str(synthetic_data), "--semantic", "--annotations-only"]
    assert check_data.main(arguments) == 0
    output = capsys.readouterr().out
    assert "background" in output and "label maps are drawn from the objects" in output


def test_view_data_draws_label_maps_with_legend(tmp_path: Path) -> None:
    write_pairs(tmp_path / "d", "images/train/{}.png", "labels/train/{}.png", "ab", (0, 1))
    write_pairs(tmp_path / "d", "images/val/{}.png", "labels/val/{}.png", "c", (0, 1))
    output = tmp_path / "out"
    arguments = ["--data", str(tmp_path / "d"), "--output", str(output), "--ids", "1"]
    assert view_data.main(arguments) == 0
    drawing = cv2.imread(str(output / "1_a.png"))[..., ::-1]
    assert drawing.shape[1] == 960 and drawing.shape[0] > 640  # enlarged, with a legend
    background, foreground = drawing[100, 100].astype(int), drawing[100, 900].astype(int)
    assert foreground[0] > background[0] + 50 and foreground[1] < 20  # VOC's color of class 1
    assert (output / "sheet.png").exists()
    assert view_data.main([*arguments, "--overwrite", "--classes", "foreground"]) == 0
    drawing = cv2.imread(str(output / "1_a.png"))[..., ::-1]
    assert (drawing[100, 100] < 5).all()  # the image itself, which is black
    with pytest.raises(UserError, match="there are no classes cat"):
        view_data.main([*arguments, "--overwrite", "--classes", "cat"])


def test_view_data_lists_label_maps_of_another_size(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_pairs(tmp_path / "d", "images/train/{}.png", "labels/train/{}.png", "a", (0, 1))
    write_pairs(tmp_path / "d", "images/val/{}.png", "labels/val/{}.png", "c", (0, 1))
    write(tmp_path / "d/labels/train/a.png", stripes(0, 1)[:9])
    arguments = ["--data", str(tmp_path / "d"), "--output", str(tmp_path / "out")]
    assert view_data.main(arguments) == 1
    assert "a.png: differs in size from its image" in capsys.readouterr().err


@pytest.mark.parametrize("size", [(1, 1), (2, 2), (3000, 2), (2, 3000), (700, 700)])
def test_label_map_of_any_size_is_drawn(size: tuple[int, int]) -> None:
    labels = np.zeros(size, np.uint8)
    labels[: size[0] // 2] = 1
    image = np.zeros((*size, 3), np.uint8)
    drawing = draw_labels(image, labels, ["a", "b"], class_palette(2), resize=False)
    assert drawing.shape == image.shape
    assert draw_labels(image, labels, ["a", "b"], class_palette(2)).ndim == 3


def test_drawn_label_map_of_an_image_of_another_size_raises(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png")
    record = {"file_name": str(tmp_path / "a.png"), "height": WIDTH, "width": HEIGHT}
    mapper = SemanticMapper(True, augmentations=[], image_format="RGB")
    with pytest.raises(UserError, match="is 30 x 20 pixels, but 20 x 30 in its annotations"):
        mapper(record | {"annotations": []})
