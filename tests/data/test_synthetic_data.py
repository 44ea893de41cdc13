"""The generated data set is reproducible, exact and as varied as it says."""

import hashlib
import itertools
import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import REPOSITORY
from gpvit.data.datasets import synthetic
from gpvit.utils.errors import UserError
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

SPLITS = ("train", "val")
SMALL_SET_DIGEST = "72a71a2889aa453d9ddea8b6aa0dbe4ed33bcbfd0659172dff9876d2a5fc8c6a"


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """A set of 60 training and 20 validation images."""
    out = tmp_path_factory.mktemp("data") / "synthetic"
    synthetic.make_dataset(out, train=60, val=20)
    return out


@pytest.fixture(scope="module")
def coco(data) -> dict[str, COCO]:
    return {split: COCO(str(data / "annotations" / f"{split}.json")) for split in SPLITS}


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    """The first images of the same data set."""
    out = tmp_path_factory.mktemp("small") / "synthetic"
    synthetic.make_dataset(out, train=8, val=7)
    return out


def load(data: Path, split: str) -> dict:
    return json.loads((data / "annotations" / f"{split}.json").read_text())


def pixels(data: Path, file_name: str) -> np.ndarray:
    return np.array(Image.open(data / "images" / file_name))


def digest(data: Path) -> str:
    """Hash of decoded pixels and annotations, whatever the PNG compression and JSON layout."""
    found = hashlib.sha256()
    for split in SPLITS:
        content = load(data, split)
        found.update(json.dumps(content, sort_keys=True).encode())
        for image in content["images"]:
            found.update(pixels(data, image["file_name"]).tobytes())
    return found.hexdigest()


def objects(coco: dict[str, COCO]) -> list[tuple[COCO, dict]]:
    found = []
    for api in coco.values():
        found += [(api, annotation) for annotation in api.anns.values()]
    return found


def fill(polygons: list[list[float]], height: int, width: int) -> np.ndarray:
    """Polygons filled by pycocotools."""
    return coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(polygons, height, width))).astype(
        bool
    )


def touches_border(image: dict, annotation: dict) -> bool:
    x, y, width, height = annotation["bbox"]
    return x == 0 or y == 0 or x + width == image["width"] or y + height == image["height"]


# Reproducible


def test_content_is_the_pinned_one(small):
    assert digest(small) == SMALL_SET_DIGEST, (
        "if the change is meant, raise VERSION and pin the new digest"
    )


def test_same_arguments_give_the_same_set_and_another_seed_another(small, tmp_path):
    synthetic.make_dataset(tmp_path / "again", train=8, val=7, seed=0)
    synthetic.make_dataset(tmp_path / "other", train=8, val=7, seed=1)
    assert digest(tmp_path / "again") == digest(small)
    assert not np.array_equal(
        pixels(tmp_path / "other", "val_00000.png"), pixels(small, "val_00000.png")
    )


@pytest.mark.long
def test_a_larger_set_starts_with_the_images_of_a_smaller_one(small, data):
    for split in SPLITS:
        few, many = load(small, split), load(data, split)
        assert few["images"] == many["images"][: len(few["images"])]
        assert few["annotations"] == many["annotations"][: len(few["annotations"])]
        assert len(few["annotations"]) < len(many["annotations"])
        for image in few["images"]:
            assert np.array_equal(
                pixels(small, image["file_name"]), pixels(data, image["file_name"])
            )


# Exact


@pytest.mark.parametrize("density", [0.1, 0.5, 0.9])
def test_polygons_of_random_pixels_fill_to_the_same_mask(density):
    random = np.random.default_rng(0)
    for _ in range(60):  # holes, single pixels and corner contacts abound
        height, width = random.integers(1, 24, 2)
        mask = random.random((height, width)) < density
        if mask.any():
            assert np.array_equal(fill(synthetic.mask_to_polygons(mask), height, width), mask)


def test_polygons_of_blobs_fill_to_the_same_mask():
    random = np.random.default_rng(1)
    for _ in range(20):
        mask = random.random((8, 11)).repeat(7, 0).repeat(5, 1) < 0.6
        mask ^= random.random(mask.shape) < 0.01
        assert np.array_equal(fill(synthetic.mask_to_polygons(mask), *mask.shape), mask)


@pytest.mark.parametrize(
    ("rows", "polygons"),
    [
        (["."], 0),
        (["#"], 1),
        (["###", "###"], 1),  # the full image
        (["#.", ".#"], 2),  # a corner contact separates
        ([".#", "#."], 2),
        (["###", "#.#", "###"], 2),  # a hole cuts
        (["#####", "#.#.#", "#####"], 3),
        (["####", "#.##", "##.#", "####"], 2),  # holes that touch by a corner
        (["#####", "#...#", "#.#.#", "#...#", "#####"], 3),  # an island in a hole
    ],
)
def test_polygons_of_known_masks(rows, polygons):
    mask = np.array([list(row) for row in rows]) == "#"
    found = synthetic.mask_to_polygons(mask)
    assert len(found) == polygons
    if polygons:
        assert np.array_equal(fill(found, *mask.shape), mask)


def test_a_rectangle_has_four_corners():
    mask = np.zeros((5, 6), dtype=bool)
    mask[1:3, 2:5] = True
    (polygon,) = synthetic.mask_to_polygons(mask)
    assert sorted(zip(polygon[::2], polygon[1::2], strict=True)) == [(2, 1), (2, 3), (5, 1), (5, 3)]


@pytest.mark.parametrize("value", [0, 1])
def test_run_lengths_of_plain_masks_decode_to_the_same_mask(value):
    mask = np.full((3, 4), value)
    found = coco_mask.decode(coco_mask.frPyObjects(synthetic.mask_to_rle(mask), 3, 4))
    assert np.array_equal(found, mask)


@pytest.mark.parametrize("split", SPLITS)
def test_annotations_decode_to_exactly_the_visible_masks(coco, split):
    for image in coco[split].imgs.values():
        scene = synthetic.make_scene(split, image["id"] - 1)
        annotations = coco[split].loadAnns(coco[split].getAnnIds([image["id"]]))
        assert len(annotations) == len(scene.labels)
        for number, annotation in enumerate(annotations, start=1):
            assert np.array_equal(coco[split].annToMask(annotation) > 0, scene.owner == number)


def test_boxes_and_areas_are_those_of_the_masks(coco):
    for api, annotation in objects(coco):
        rle = api.annToRLE(annotation)
        assert annotation["area"] == coco_mask.area(rle)
        assert annotation["bbox"] == coco_mask.toBbox(rle).tolist()


def test_masks_never_overlap(coco):
    for api in coco.values():
        for image in api.imgs:
            masks = [
                api.annToMask(annotation) for annotation in api.loadAnns(api.getAnnIds([image]))
            ]
            assert not masks or np.sum(masks, axis=0).max() == 1


@pytest.mark.parametrize("index", [*range(8), synthetic.EMPTY_EVERY // 2])
def test_nothing_but_labelled_objects_stands_out_of_a_plain_background(monkeypatch, index):
    for name, value in {
        "BACKGROUND_TEXTURE": 0,
        "SHAPE_TEXTURE": 0,
        "NOISE": 0,
        "DISTRACTORS": (0, 0),
    }.items():
        monkeypatch.setattr(synthetic, name, value)
    scene = synthetic.make_scene("train", index)
    height, width = scene.owner.shape
    labeled = np.pad(scene.owner > 0, 2)
    near = np.zeros((height, width), int)  # labeled pixels among the 5 x 5 around each one
    for y, x in itertools.product(range(5), repeat=2):
        near += labeled[y : y + height, x : x + width]
    image = scene.pixels().astype(int)
    plain = image[near == 0]
    assert (plain == plain[0]).all()
    assert (abs(image[near == 25] - plain[0]).sum(1) > 0).all()


# Varied


def test_image_sides_are_drawn_one_by_one(data):
    sizes = []
    for split in SPLITS:
        for image in load(data, split)["images"]:
            size = (image["height"], image["width"])
            assert pixels(data, image["file_name"]).shape == (*size, 3)
            sizes.append(size)
    sides = np.array(sizes)
    assert sides.min() >= 256 and sides.max() <= 320
    assert (sides % 2).any()
    assert (sides[:, 0] == sides[:, 1]).mean() < 1 / 4


def test_objects_range_over_tenfold_sizes(coco):
    sides = [
        max(annotation["bbox"][2:]) for _, annotation in objects(coco) if not annotation["iscrowd"]
    ]
    assert max(sides) >= 10 * min(sides)


@pytest.mark.parametrize("split", SPLITS)
def test_every_split_has_all_classes_crowds_and_images_without_objects(coco, split):
    api = coco[split]
    assert {annotation["category_id"] for annotation in api.anns.values()} == set(
        synthetic.CATEGORY_IDS.values()
    )
    assert any(not api.getAnnIds([image]) for image in api.imgs)
    crowds = [annotation for annotation in api.anns.values() if annotation["iscrowd"]]
    assert crowds
    assert all(isinstance(annotation["segmentation"]["counts"], list) for annotation in crowds)
    assert all(
        isinstance(annotation["segmentation"], list)
        for annotation in api.anns.values()
        if not annotation["iscrowd"]
    )


def test_objects_are_cut_by_the_border_and_by_each_other(coco):
    cut = [
        touches_border(api.imgs[annotation["image_id"]], annotation)
        for api, annotation in objects(coco)
    ]
    assert 0.05 < np.mean(cut) < 0.5
    occluded = []  # parts of what was painted whole, away from the border
    for split, api in coco.items():
        for image in list(api.imgs.values())[:20]:
            scene = synthetic.make_scene(split, image["id"] - 1)
            visible = [annotation["area"] for annotation in scene.annotations()]
            inside = [not touches_border(image, annotation) for annotation in scene.annotations()]
            for area, whole, free in zip(visible, scene.full_areas[1:], inside, strict=True):
                assert area >= max(synthetic.MIN_VISIBLE * whole, synthetic.MIN_PIXELS)
                occluded.append(free and area < 0.9 * whole)
    assert 0.1 < np.mean(occluded) < 0.6


def test_mean_colour_does_not_tell_the_class(data, coco):
    colors, classes = [], []
    for api, annotation in objects(coco):
        if not annotation["iscrowd"]:
            image = pixels(data, api.imgs[annotation["image_id"]]["file_name"])
            colors.append(image[api.annToMask(annotation) > 0].mean(0))
            classes.append(annotation["category_id"])
    colors, classes = np.array(colors), np.array(classes)
    means = np.array(
        [colors[classes == one].mean(0) for one in classes]
    )  # (n, 3), of each object's class
    explained = means.var(0) / colors.var(
        0
    )  # of the variance of a channel; 3/n is expected by chance
    assert (explained < 0.03).all()


def test_backgrounds_of_validation_are_never_seen_in_training():
    assert not set(synthetic.TEXTURES["train"]) & set(synthetic.TEXTURES["val"])


# Files


def test_category_ids_have_gaps_and_annotation_ids_are_unique(data):
    for split in SPLITS:
        content = load(data, split)
        ids = sorted(category["id"] for category in content["categories"])
        assert ids != list(range(ids[0], ids[0] + len(ids)))
        assert all(category["supercategory"] for category in content["categories"])
        assert len({annotation["id"] for annotation in content["annotations"]}) == len(
            content["annotations"]
        )
        assert all(image["file_name"].startswith(split) for image in content["images"])
        assert "synthetic" in content["info"]["description"]
        assert content["info"]["seed"] == 0
        assert content["licenses"][0]["name"].startswith("CC0")


def test_a_second_run_keeps_the_set(small, monkeypatch):
    monkeypatch.setattr(synthetic, "make_scene", None)  # making an image would fail
    synthetic.make_dataset(small, train=8, val=7)


@pytest.mark.parametrize("changed", [{"train": 9}, {"val": 8}, {"seed": 1}])
def test_a_set_made_with_other_arguments_is_left_alone(small, changed):
    before = digest(small)
    with pytest.raises(FileExistsError):
        synthetic.make_dataset(small, **{"train": 8, "val": 7, **changed})
    assert digest(small) == before


def test_a_set_made_with_other_settings_is_left_alone(small, monkeypatch):
    monkeypatch.setattr(synthetic, "NOISE", 0)
    with pytest.raises(FileExistsError):
        synthetic.make_dataset(small, train=8, val=7)


def test_a_foreign_folder_is_left_alone(tmp_path):
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "train.json").write_text('["mine"]')
    with pytest.raises(FileExistsError):
        synthetic.make_dataset(tmp_path, train=1, val=1)
    assert [path.name for path in tmp_path.rglob("*")] == ["annotations", "train.json"]


def test_a_run_that_fails_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(synthetic, "make_scene", None)
    with pytest.raises(TypeError):
        synthetic.make_dataset(tmp_path / "synthetic", train=1, val=1)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("arguments", [["--train", "0"], ["--val", "-1"], ["--seed", "-1"], []])
def test_bad_arguments_end_in_one_line(tmp_path, monkeypatch, arguments):
    (tmp_path / "foreign").touch()
    monkeypatch.setattr(
        sys, "argv", ["make_synthetic_data.py", "--output", str(tmp_path), *arguments]
    )
    main = runpy.run_path(str(REPOSITORY / "tools" / "make_synthetic_data.py"))["main"]
    with pytest.raises(UserError):
        main()
