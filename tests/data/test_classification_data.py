"""Images for classification: their transforms, ImageNet, class folders, and objects as images."""

import json
import math
import random
import shutil
import sys
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import cv2
import detectron2.data.transforms as T
import numpy as np
import pytest
import torch
from conftest import REPOSITORY
from detectron2.config import instantiate
from detectron2.data import DatasetCatalog, MetadataCatalog
from gpvit.cli import check_data, view_data
from gpvit.config import load_config
from gpvit.data import (
    CenterCrop,
    ClassificationMapper,
    RandAugment,
    RandomErasing,
    RandomResizedCrop,
    ResizeShorterSide,
)
from gpvit.data.classification_mapper import read_classified
from gpvit.data.classification_transforms import MEAN, STD
from gpvit.data.datasets import imagenet
from gpvit.data.datasets.class_folders import (
    ClassificationData,
    find_class_folders,
    find_classification,
)
from gpvit.data.datasets.register import register_classification_folder, use_folder
from gpvit.model_zoo import IMAGENET_CLASSES
from gpvit.utils.errors import UserError
from gpvit.utils.fingerprint import dataset_fingerprint
from gpvit.utils.seed import seed_everything
from PIL import Image
from timm.data import ImageNetInfo
from timm.data.auto_augment import _RAND_INCREASING_TRANSFORMS
from torchvision.transforms import functional as torchvision_functional

DRAWS = 10_000


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def apply(augmentation: T.Augmentation, image: np.ndarray) -> np.ndarray:
    return augmentation.get_transform(image).apply_image(image)


# Transforms


@pytest.mark.parametrize(
    "size", [(211, 333), (500, 375), (256, 256), (256, 300), (37, 1000), (1000, 37), (301, 257)]
)
def test_test_transform_is_that_of_torchvision(size: tuple[int, int]) -> None:
    image = noise(*size)
    ours = apply(CenterCrop(224), apply(ResizeShorterSide(256), image))
    resized = torchvision_functional.resize(
        Image.fromarray(image), 256, torchvision_functional.InterpolationMode.BICUBIC
    )
    expected = torchvision_functional.center_crop(resized, [224, 224])
    assert np.array_equal(ours, np.asarray(expected))


@pytest.mark.parametrize("size", [(1, 5000), (5000, 1), (3, 100_000)])
def test_center_of_a_very_long_image_is_resized(size: tuple[int, int]) -> None:
    image = np.zeros((*size, 3), np.uint8)
    rows, columns = (
        slice(0, side) if side < 9 else slice(side // 2 - 2, side // 2 + 2) for side in size
    )
    image[rows, columns] = 200
    resized = apply(ResizeShorterSide(64), image)
    assert resized.shape[:2] in ((64, 2048), (2048, 64))
    assert apply(CenterCrop(64), resized)[32, 32].tolist() == [200] * 3


def test_size_that_takes_gigabytes_raises() -> None:
    with pytest.raises(ValueError, match="its sides would be 10000 and 20000 pixels long"):
        ResizeShorterSide(10_000).get_transform(np.zeros((10, 20, 3), np.uint8))


def test_center_crop_keeps_a_shorter_side() -> None:
    image = noise(10, 40)
    assert np.array_equal(apply(CenterCrop(20), image), image[:, 10:30])


def test_random_crops_have_the_area_and_ratio_of_the_recipe() -> None:
    seed_everything(0)
    augmentation, image = RandomResizedCrop(224), np.zeros((400, 600, 3), np.uint8)
    areas, ratios, positions = [], [], []
    for _ in range(DRAWS):
        crop, resize = augmentation.get_transform(image).transforms
        areas.append(crop.w * crop.h / (400 * 600))
        ratios.append(math.log(crop.w / crop.h))
        positions.append((crop.x0 + crop.w / 2, crop.y0 + crop.h / 2))
        assert (resize.new_h, resize.new_w, resize.interp) == (224, 224, Image.Resampling.BICUBIC)
    assert 0.079 < min(areas) < 0.09 and 0.8 < max(areas) <= 1
    assert min(ratios) == pytest.approx(math.log(3 / 4), abs=0.02)
    assert max(ratios) == pytest.approx(math.log(4 / 3), abs=0.02)
    # Areas below 0.6 always fit, so that they are uniform.
    small = np.array(areas)[np.array(areas) < 0.6]
    assert np.mean(small < 0.34) == pytest.approx(0.5, abs=0.02)
    assert np.mean(positions, axis=0) == pytest.approx((300, 200), rel=0.02)


def test_random_crop_of_a_thin_image_is_its_center() -> None:
    crop, _ = RandomResizedCrop(16).get_transform(noise(10, 1000)).transforms
    assert (crop.h, crop.w, crop.x0) == (10, 13, 493)


def test_a_quarter_of_the_images_gets_a_rectangle_of_noise() -> None:
    seed_everything(0)
    augmentation, image = RandomErasing(), np.full((100, 120, 3), 7, np.uint8)
    areas, ratios, values = [], [], []
    for _ in range(DRAWS):
        erased = apply(augmentation, image)
        rows, columns = np.nonzero((erased != 7).any(2))
        if not len(rows):
            continue
        height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
        areas.append(height * width / 12_000)
        ratios.append(math.log(height / width))
        if len(values) < 300:
            part = erased[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
            values.append(part.reshape(-1, 3))
    assert len(areas) / DRAWS == pytest.approx(0.25, abs=0.015)
    assert 0.018 < min(areas) < 0.025 and 0.3 < max(areas) < 0.345
    assert min(ratios) > math.log(0.25) and max(ratios) < math.log(3.6)
    assert np.ptp(ratios) > math.log(3.3 / 0.3) - 0.3
    pixels = np.concatenate(values).astype(float)
    # Clipping to 0 and 255 changes mean and deviation a little.
    assert pixels.mean(0) == pytest.approx(MEAN, abs=2)
    assert pixels.std(0) == pytest.approx(STD, abs=3)
    assert (image == 7).all()


def test_tiny_image_is_not_erased() -> None:
    image = noise(1, 1)
    for _ in range(50):
        assert np.array_equal(apply(RandomErasing(prob=1.0), image), image)


def test_two_of_fifteen_operations_are_drawn_with_half_the_probability() -> None:
    """Of timm, with the magnitudes of the recipe."""
    augmentation = RandAugment()
    drawn: Counter[str] = Counter()
    levels: dict[str, list[float]] = {}

    def record(name: str) -> None:
        def operation(image: Image.Image, *arguments: float, **options: object) -> Image.Image:
            drawn[name] += 1
            levels.setdefault(name, []).extend(arguments[:1])
            assert options["fillcolor"] == (124, 116, 104)
            assert options["resample"] == Image.Resampling.BICUBIC
            return image

        return operation

    for operation in augmentation.augment.ops:
        operation.aug_fn = record(operation.name)
    seed_everything(0)
    image = np.zeros((4, 4, 3), np.uint8)
    for _ in range(DRAWS):
        apply(augmentation, image)
    assert drawn.keys() == set(_RAND_INCREASING_TRANSFORMS) and len(drawn) == 15
    for name, count in drawn.items():
        assert count == pytest.approx(2 * DRAWS * 0.5 / 15, rel=0.15), name
    # Magnitudes are normal(9, 0.5), cut at 10: 30 degrees times 0.9 for a rotation.
    angles = np.abs(levels["Rotate"])
    assert np.median(angles) == pytest.approx(27, abs=0.3) and angles.max() <= 30
    assert np.mean(np.array(levels["Rotate"]) > 0) == pytest.approx(0.5, abs=0.08)
    shears = np.abs(levels["ShearX"])
    assert np.median(shears) == pytest.approx(0.27, abs=0.003) and shears.max() <= 0.3 + 1e-9


def test_rand_augment_without_timm_raises_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "timm.data.auto_augment", None)
    with pytest.raises(UserError, match="RandAugment needs timm: `python -m pip install timm`"):
        RandAugment()


def test_recipe_repeats_with_the_seed_and_flips_half_of_the_images() -> None:
    cfg = load_config(str(REPOSITORY / "configs/published/classifier_gpvit_l1.py"))
    cfg.dataloader.crop_size = 32
    recipe = T.AugmentationList(instantiate(cfg.dataloader.train.mapper.augmentations))
    image = noise(64, 96)

    def augmented(*seed: int) -> np.ndarray:
        seed_everything(*seed)
        item = T.AugInput(image)
        recipe(item)
        return item.image

    images = [augmented(0, position) for position in range(40)]
    assert all(np.array_equal(images[i], augmented(0, i)) for i in range(40))
    assert len({item.tobytes() for item in images}) == 40
    assert all(item.shape == (32, 32, 3) and item.dtype == np.uint8 for item in images)
    flips = 0
    for position in range(1000):
        seed_everything(1, position)
        flip = recipe.augs[1].get_transform(image)
        flips += isinstance(flip, T.HFlipTransform)
    assert flips / 1000 == pytest.approx(0.5, abs=0.05)


# ImageNet


@pytest.fixture(scope="module")
def wordnet_ids() -> list[str]:
    return ImageNetInfo().label_names()


def write(path: Path, pixels: np.ndarray | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise(8, 8) if pixels is None else pixels).save(path)
    return path


def touch(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def test_folders_of_imagenet_are_in_the_order_of_wordnet_ids(
    tmp_path: Path, wordnet_ids: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    for wordnet_id in random.Random(0).sample(wordnet_ids, 1000):
        touch(tmp_path / "train" / wordnet_id / f"{wordnet_id}_1.JPEG")
    touch(tmp_path / "train" / wordnet_ids[7] / "b.JPEG")
    (tmp_path / "train" / wordnet_ids[7] / "notes.txt").touch()
    records = imagenet.read_imagenet(tmp_path / "train", 1_281_167)
    assert len(records) == 1001
    for record in records:
        assert Path(record["file_name"]).parent.name == wordnet_ids[record["label"]]
    assert [record["image_id"] for record in records] == list(range(1, 1002))
    assert "has 1001 images instead of 1281167: its results are not comparable" in caplog.text


def write_flat(folder: Path, number: int) -> list[str]:
    names = [f"ILSVRC2012_val_{index:08}.JPEG" for index in range(1, number + 1)]
    for name in names:
        touch(folder / "val" / name)
    return names


@pytest.mark.parametrize("place", ["val", ".", "meta"])
def test_flat_validation_set_has_the_labels_of_its_list(tmp_path: Path, place: str) -> None:
    names = write_flat(tmp_path, 5)
    labels = [65, 970, 0, 999, 65]
    (tmp_path / place).mkdir(exist_ok=True)
    lines = [f"{name} {label}" for name, label in zip(names, labels)]
    (tmp_path / "val" / ".thumbnails").mkdir()
    text = "\ufeff" + "\n".join(reversed(lines)) + "\n\n"  # with a byte order mark
    (tmp_path / place / "val.txt").write_text(text)
    records = imagenet.read_imagenet(tmp_path / "val", 5)
    assert [Path(record["file_name"]).name for record in records] == names
    assert [record["label"] for record in records] == labels


def test_list_of_kaggle_is_read(tmp_path: Path, wordnet_ids: list[str]) -> None:
    names = write_flat(tmp_path, 1000)
    order = random.Random(0).sample(range(1000), 1000)
    rows = ["ImageId,PredictionString"]
    for name, label in zip(names, order):
        rows.append(f"{name.removesuffix('.JPEG')},{wordnet_ids[label]} 85 1 499 272 ")
    (tmp_path / "LOC_val_solution.csv").write_text("\n".join(rows))
    records = imagenet.read_imagenet(tmp_path / "val", 1000)
    assert [record["label"] for record in records] == order


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([(1, 5), (2, 6)], "does not list 1 images of .*val_00000003"),
        ([(1, 5), (2, 6), (3, 7), (4, 8)], "lacks 1 images of .*val_00000004"),
        ([(1, 5), (2, 6), (3, 1000)], r"val.txt: cannot be used \(ValueError: class 1000\); get"),
        ([(1, 5), (2, 6), (3, "x")], "val.txt: cannot be used .*; get it again"),
    ],
)
def test_wrong_list_raises_one_line(
    tmp_path: Path, lines: list[tuple[int, object]], message: str
) -> None:
    write_flat(tmp_path, 3)
    text = "\n".join(f"ILSVRC2012_val_{index:08}.JPEG {label}" for index, label in lines)
    (tmp_path / "val.txt").write_text(text)
    with pytest.raises(UserError, match=message) as error:
        imagenet.read_imagenet(tmp_path / "val", 3)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("row", ["ILSVRC2012_val_00000001,", "ILSVRC2012_val_00000001", ",,,"])
def test_damaged_list_of_kaggle_raises_one_line(tmp_path: Path, row: str) -> None:
    write_flat(tmp_path, 1)
    (tmp_path / "LOC_val_solution.csv").write_text(f"ImageId,PredictionString\n{row}\n")
    with pytest.raises(UserError, match="LOC_val_solution.csv: cannot be used") as error:
        imagenet.read_imagenet(tmp_path / "val", 1)
    assert "\n" not in str(error.value)


def test_list_of_the_development_kit_is_not_mistaken(tmp_path: Path) -> None:
    write_flat(tmp_path, 2)
    (tmp_path / "ILSVRC2012_validation_ground_truth.txt").write_text("490\n361\n")
    with pytest.raises(UserError, match="numbers the classes in another order"):
        imagenet.read_imagenet(tmp_path / "val", 2)


def test_folders_of_other_classes_are_not_imagenet(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        touch(tmp_path / "train" / name / "1.jpg")
    with pytest.raises(UserError, match=r"has 2 classes \(cat, dog\), which are not the WordNet"):
        imagenet.read_imagenet(tmp_path / "train", 2)


def test_imagenet_is_registered_with_its_classes() -> None:
    for name in ("imagenet_1k_train", "imagenet_1k_val"):
        assert name in DatasetCatalog.list()
        metadata = MetadataCatalog.get(name)
        assert metadata.thing_classes == IMAGENET_CLASSES
        assert metadata.evaluator_type == "classification"


# Class folders


def write_folders(root: Path, *folders: str, number: int = 1) -> None:
    """Write images with different pixels into folders."""
    for folder in folders:
        for image in range(number):
            seed = zlib.crc32(f"{folder}/{image}".encode())
            write(root / folder / f"{image}.png", noise(8, 10, seed))


def contents(data: ClassificationData) -> dict[str, list[tuple[str, str]]]:
    """Path and class of each image, by split."""
    found = {}
    for split, part in data.splits.items():
        found[split] = []
        for record in part.records:
            path = Path(record["file_name"]).relative_to(data.image_root)
            found[split].append((str(path), part.classes[record["label"]]))
    return found


@pytest.mark.parametrize(
    ("train", "val"),
    [
        ("train", "val"), ("Train", "Validation"), ("train", "test"), ("training_set", "test_set"),
        ("train2017", "val2017"), ("pets_train", "pets_valid"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("prefix", ["", "flowers/", "a/b/"])
def test_folders_of_splits_are_recognized(
    tmp_path: Path, train: str, val: str, prefix: str
) -> None:
    for folder in (f"{prefix}{train}/dog", f"{prefix}{train}/cat", f"{prefix}{val}/cat"):
        write_folders(tmp_path, folder)
    data = find_classification(str(tmp_path))
    assert data.classes == ["cat", "dog"]
    assert contents(data) == {
        "train": [(f"{prefix}{train}/cat/0.png", "cat"), (f"{prefix}{train}/dog/0.png", "dog")],
        "val": [(f"{prefix}{val}/cat/0.png", "cat")],
    }


def test_a_fifth_of_each_class_is_held_out(tmp_path: Path) -> None:
    write_folders(tmp_path, "cat", "dog/poodle", number=10)
    write_folders(tmp_path, "rare")
    data = find_classification(str(tmp_path))
    assert data.splits["train"].counts() == [8, 8, 1]
    assert data.splits["val"].counts() == [2, 2, 0]
    assert "4 of 21 images are held out for validation, 20% of each class" in data.summary()
    moved = shutil.copytree(tmp_path, tmp_path.with_name("moved"))
    assert contents(find_classification(str(moved))) == contents(data)


def test_train_alone_is_split(tmp_path: Path) -> None:
    write_folders(tmp_path, "train/cat", "train/dog", number=5)
    data = find_classification(str(tmp_path))
    assert [part.counts() for part in data.splits.values()] == [[4, 4], [1, 1]]


def test_test_images_are_not_used_next_to_val(tmp_path: Path) -> None:
    write_folders(tmp_path, "train/a", "train/b", "val/a", "test/b")
    data = find_classification(str(tmp_path))
    assert "not used: 1 test images" in data.summary()
    assert data.splits["val"].counts() == [1, 0]


@pytest.mark.parametrize(
    "folders",
    [
        ("train", "car", "bus"),
        ("test/1", "car", "bus"),
        ("train/train", "train/car", "val/train"),
        ("val/a", "other/b"),
    ],
)
def test_class_may_be_named_like_a_split(tmp_path: Path, folders: Sequence[str]) -> None:
    write_folders(tmp_path, *folders, number=5)
    data = find_classification(str(tmp_path))
    if "train/train" in folders:
        assert data.classes == ["car", "train"]
        assert [part.counts() for part in data.splits.values()] == [[5, 5], [0, 5]]
    else:
        assert set(data.classes) == {folder.split("/")[0] for folder in folders}
        assert data.splits["val"].counts() == [1] * len(folders)


@pytest.mark.parametrize(
    "folders", [("images/train", "images/val"), ("images",), (".",), ("train", "val")]
)
def test_folders_of_splits_without_classes_are_no_classes(
    tmp_path: Path, folders: Sequence[str]
) -> None:
    write_folders(tmp_path, *folders, number=3)
    assert find_class_folders(str(tmp_path)) is None
    with pytest.raises(UserError, match="nor is there a folder of images for each of several"):
        find_classification(str(tmp_path))


def test_annotated_dataset_is_no_dataset_of_class_folders(
    synthetic_data: Path, tmp_path: Path
) -> None:
    assert find_class_folders(str(synthetic_data)) is None
    write_folders(tmp_path, "north", "south", number=2)
    (tmp_path / "train.json").write_text('{"images": [], "annotations": [')
    assert find_class_folders(str(tmp_path)) is None


def test_unrelated_files_do_not_matter(tmp_path: Path) -> None:
    write_folders(tmp_path, "pets/cat", "pets/dog", number=2)
    write(tmp_path / "logo.png")
    (tmp_path / "index.json").write_text('{"0": "cat"}')
    (tmp_path / "config.yaml").write_text("seed: 1")
    assert find_classification(str(tmp_path)).classes == ["cat", "dog"]


def test_images_outside_of_class_folders_are_left_out(tmp_path: Path) -> None:
    write_folders(tmp_path, ".", "train", "train/cat", "train/dog", "val/cat", "val/dog")
    write_folders(tmp_path, "samples")
    data = find_classification(str(tmp_path))
    problems = [problem.detail for problem in data.splits["train"].problems]
    assert problems == ["0.png", "samples/0.png", "train/0.png"] and data.classes == ["cat", "dog"]
    data.splits["train"].raise_if_fatal(str(tmp_path))


def test_splits_next_to_another_folder_raise(tmp_path: Path) -> None:
    write_folders(tmp_path, "pets/train/cat", "pets/train/dog", "pets/val/cat", "notes")
    with pytest.raises(UserError, match=r"pets has folders of splits, .*; give --data .*/pets$"):
        find_classification(str(tmp_path))


def test_folders_of_pascal_voc_are_no_classes(tmp_path: Path) -> None:
    write_folders(tmp_path, "JPEGImages", "SegmentationClass", number=2)
    assert find_class_folders(str(tmp_path)) is None


def test_names_that_look_the_same_raise(tmp_path: Path) -> None:
    write_folders(tmp_path, "cat", "cat ", "dog")
    with pytest.raises(UserError, match="several classes are called cat; rename"):
        find_classification(str(tmp_path))


@pytest.mark.parametrize("folders", [("cat", "dog"), ("val/cat", "val/dog", "train/x")])
def test_nothing_to_validate_or_train_on_stops(tmp_path: Path, folders: Sequence[str]) -> None:
    write_folders(tmp_path, *folders)
    data = find_classification(str(tmp_path))
    split = "val" if "cat" in folders else "train"
    kind = "there is no image: add some" if split == "val" else "no training image, first cat"
    with pytest.raises(UserError, match=kind):
        data.splits[split].raise_if_fatal("x")


def test_table_sums_up_the_rarest_of_many_classes(tmp_path: Path) -> None:
    for number in range(43):
        write_folders(tmp_path, f"class {number:02}", number=3 if number else 2)
    summary = find_classification(str(tmp_path)).summary()
    assert "and 3 more classes" in summary and "class 00" not in summary


def test_numbers_as_class_names_are_sorted_as_text(tmp_path: Path) -> None:
    write_folders(tmp_path, "10", "2", "1", number=2)
    assert find_classification(str(tmp_path)).classes == ["1", "10", "2"]  # as by torchvision


def test_class_without_training_image_stops(tmp_path: Path) -> None:
    write_folders(tmp_path, "train/cat", "train/dog", "val/cat", "val/Dog")
    with pytest.raises(UserError, match=r"1 classes have no training image, first Dog: add some"):
        register_classification_folder(str(tmp_path), "train")


def test_class_without_validation_image_is_noted(tmp_path: Path) -> None:
    write_folders(tmp_path, "train/cat", "train/dog", number=2)
    write_folders(tmp_path, "val/cat")
    [problem] = find_classification(str(tmp_path)).splits["train"].problems
    assert (problem.kind, problem.detail) == ("unvalidated class", "dog")


def test_check_data_lists_problems_of_class_folders(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    write_folders(data, "train/cat", "val/cat", number=3)
    write_folders(data, "train/dog", number=2)
    (data / "val/dog").mkdir()
    (data / "val/dog/copy.png").write_bytes((data / "train/cat/0.png").read_bytes())
    write_folders(data, "train/bird")
    (data / "train/dog/broken.jpg").write_bytes(b"no image")
    black = np.zeros((8, 8, 3), np.uint8)
    for folder in ("train/cat", "val/dog"):  # the same, but of one color
        write(data / folder / "black.png", black)
    arguments = ["--data", str(data), "--json", str(tmp_path / "problems.json")]
    assert check_data.main(arguments) == 1
    output = capsys.readouterr().out
    assert "stops training: 1 images cannot be read" in output and "broken.jpg" in output
    assert "note: 1 classes have a single image" in output and "(bird)" in output
    problems = json.loads((tmp_path / "problems.json").read_text())
    both = [problem["detail"] for problem in problems if problem["kind"] == "both splits"]
    [detail] = both
    assert "train/cat/0.png, the same as" in detail and "val/dog/copy.png" in detail
    assert check_data.main(["--data", str(data), "--annotations-only"]) == 0


def test_check_data_refuses_options_of_annotations(tmp_path: Path) -> None:
    write_folders(tmp_path, "cat", "dog")
    with pytest.raises(UserError, match="--images and --boxes do not apply to class folders"):
        check_data.main(["--data", str(tmp_path), "--boxes"])


def test_view_data_draws_images_with_their_class(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    write_folders(data, "train/cat", "train/dog", "val/cat", number=3)
    assert view_data.main(["--data", str(data), "--output", str(out), "--classes", "dog"]) == 0
    output = capsys.readouterr().out
    assert output.count(": dog ->") == 3 and "cat" not in output
    drawing = cv2.imread(str(next(out.glob("4_*.png"))))
    assert min(drawing.shape[:2]) == 640
    assert (drawing[:60, :200].max(2) < 60).any()  # the dark box of the label
    with pytest.raises(UserError, match="--images does not apply to class folders"):
        view_data.main(["--data", str(data), "--images", str(data), "--output", str(out / "x")])


def test_fingerprint_depends_on_label_and_box() -> None:
    record = {"file_name": "a.jpg", "image_id": 1, "label": 0}
    others = [record | {"label": 1}, record | {"box": [0.0, 0.0, 1.0, 2.0]}]
    fingerprints = {dataset_fingerprint([entry], ["a", "b"]) for entry in [record, *others]}
    assert len(fingerprints) == 3
    without = {key: value for key, value in record.items() if key != "label"}
    assert dataset_fingerprint([without], ["a"]) != dataset_fingerprint([record], ["a"])


# Objects


def test_objects_are_images_with_a_margin(synthetic_data: Path) -> None:
    data = find_classification(str(synthetic_data))
    assert data.classes == ["disc", "triangle", "cross"]
    content = json.loads((synthetic_data / "annotations" / "val.json").read_text())
    expected = []
    for item in content["annotations"]:
        if not item["iscrowd"] and min(item["bbox"][2:]) >= 2:
            expected.append(item["bbox"])
    records = data.splits["val"].records
    found = []
    for record in records:
        x0, y0, x1, y1 = record["box"]
        found.append([x0, y0, x1 - x0, y1 - y0])
    assert np.allclose(sorted(found), sorted(expected))
    image = cv2.imread(records[0]["file_name"])[..., ::-1]
    x0, y0, x1, y1 = records[0]["box"]
    crop = read_classified(records[0])
    top, left = max(0, int(y0 - 0.1 * (y1 - y0))), max(0, int(x0 - 0.1 * (x1 - x0)))
    assert np.array_equal(crop, image[top : top + crop.shape[0], left : left + crop.shape[1]])
    bottom = min(image.shape[0], math.ceil(y1 + 0.1 * (y1 - y0)))
    assert top + crop.shape[0] == bottom


def test_crowds_and_tiny_objects_are_left_out(tmp_path: Path) -> None:
    write(tmp_path / "a.png", noise(40, 40))
    boxes: Iterable[tuple[list[int], int]] = [
        ([5, 5, 10, 10], 0), ([1, 1, 1, 20], 0), ([20, 20, 8, 8], 1), ([2, 20, 9, 9], 0)
    ]  # fmt: skip
    annotations = []
    for number, (box, crowd) in enumerate(boxes, start=1):
        annotations.append(
            {"id": number, "image_id": 1, "category_id": number % 2 + 1, "bbox": box,
             "area": box[2] * box[3], "iscrowd": crowd}
        )  # fmt: skip
    for split in ("train", "val"):
        content = {
            "images": [{"id": 1, "file_name": "a.png", "width": 40, "height": 40}],
            "annotations": annotations,
            "categories": [{"id": 1, "name": "x"}, {"id": 2, "name": "y"}],
        }
        (tmp_path / f"{split}.json").write_text(json.dumps(content))
    data = find_classification(str(tmp_path))
    assert [record["box"] for record in data.splits["train"].records] == [
        [5, 5, 15, 15], [2, 20, 11, 29]
    ]  # fmt: skip
    assert data.splits["train"].counts() == [1, 1]


def test_single_class_raises(tmp_path: Path) -> None:
    write_folders(tmp_path, "cat", number=4)
    with pytest.raises(UserError, match="nor is there a folder of images for each of several"):
        find_classification(str(tmp_path))


# Configs and mapper


def test_dataset_sets_the_classes_of_the_config(tmp_path: Path) -> None:
    write_folders(tmp_path / "pets", "cat", "dog", "bird", "fox", number=2)
    cfg = load_config(str(REPOSITORY / "configs/quickstart_classifier.py"))
    use_folder(cfg, str(tmp_path / "pets"), train=True)
    assert cfg.model.num_classes == 4
    assert cfg.dataloader.train.dataset.names == "pets_train"
    assert instantiate(cfg.dataloader.evaluator).class_names == ["bird", "cat", "dog", "fox"]


def test_mapper_returns_image_and_label(tmp_path: Path) -> None:
    path = write(tmp_path / "a.png", noise(20, 30))
    mapper = ClassificationMapper(True, augmentations=[CenterCrop(16)], image_format="BGR")
    record = {"file_name": str(path), "image_id": 1, "label": 2}
    mapped = mapper(record)
    assert torch.equal(
        mapped["image"], torch.from_numpy(noise(20, 30)[2:18, 7:23, ::-1].transpose(2, 0, 1).copy())
    )
    assert mapped["label"] == 2 and "image" not in record


def test_mapper_raises_one_line_with_the_path(tmp_path: Path) -> None:
    large = [ResizeShorterSide(10_000)]
    mapper = ClassificationMapper(False, augmentations=large, image_format="RGB")
    path = write(tmp_path / "a.png", noise(8, 16))
    with pytest.raises(UserError, match=r"a.png: cannot be used \(.*20000 pixels long"):
        mapper({"file_name": str(path), "label": 0})
    (tmp_path / "b.png").write_bytes(b"")
    with pytest.raises(UserError, match="b.png: cannot be read"):
        mapper({"file_name": str(tmp_path / "b.png"), "label": 0})
    with pytest.raises(UserError, match="image_format must be one of RGB, BGR, got HSV"):
        ClassificationMapper(False, augmentations=[], image_format="HSV")
