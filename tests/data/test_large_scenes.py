"""Large scenes are computed region by region, with the same result whatever the regions are."""

import hashlib
import json
import runpy
import sys
import tracemalloc
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import REPOSITORY
from gpvit.data.datasets import large_scenes, synthetic
from gpvit.data.datasets.large_scenes import LargeScene, SceneObject, make_large_scene
from gpvit.utils.errors import UserError
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

DIGEST = "f8336a1760bcb5e7462788ac65a407f579eb276367debdfd418c6210a8452af5"
HEIGHT, WIDTH = 700, 1100  # several blocks, fields and cells
ALL = slice(None)


@pytest.fixture(scope="module")
def scene() -> LargeScene:
    return make_large_scene("val", 3, HEIGHT, WIDTH, large_size=(100, 400), large_per_megapixel=8)


@pytest.fixture(scope="module")
def pixels(scene) -> np.ndarray:
    return scene.read(ALL, ALL)


@pytest.fixture(scope="module")
def objects(scene) -> list[SceneObject]:
    return list(scene.objects())


def clear_caches() -> None:
    for function in vars(large_scenes).values():
        if hasattr(function, "cache_clear"):
            function.cache_clear()


def place(found: SceneObject) -> tuple[slice, slice]:
    """Rows and columns of an object in its scene."""
    left, top, width, height = found.bbox
    return slice(top, top + height), slice(left, left + width)


def describe(found: SceneObject) -> tuple:
    """An object as values that can be compared."""
    return found.name, found.bbox, found.mask.tobytes(), found.is_fragment


# Reproducible


def test_content_is_the_pinned_one(pixels, objects):
    found = hashlib.sha256(pixels.tobytes())
    for item in objects:
        found.update(repr(describe(item)).encode())
    assert found.hexdigest() == DIGEST, (
        "if the change is meant, raise LARGE_SCENES_VERSION and pin the new digest"
    )


@pytest.mark.parametrize(
    "argument", [{"split": "train"}, {"index": 4}, {"seed": 1}], ids=["split", "index", "seed"]
)
def test_split_index_and_seed_change_pixels_and_objects(argument):
    original = dict(split="val", index=3, height=300, width=300, seed=0)
    one, other = make_large_scene(**original), make_large_scene(**{**original, **argument})
    assert not np.array_equal(one.read(ALL, ALL), other.read(ALL, ALL))
    assert list(map(describe, one.objects())) != list(map(describe, other.objects()))


@pytest.mark.parametrize(
    ("rows", "columns"),
    [
        (slice(0, 1), slice(0, WIDTH)),
        (slice(250, 263), slice(505, 530)),  # across blocks and cells
        (slice(111, HEIGHT), slice(300, 301)),
        (slice(-200, None), slice(-150, -50)),
        (slice(650, 10_000), slice(37, 400)),  # as in an array, beyond the end
    ],
)
def test_any_region_has_the_pixels_of_the_complete_scene(scene, pixels, rows, columns):
    clear_caches()  # nothing depends on what was read before
    assert np.array_equal(scene.read(rows, columns), pixels[rows, columns])


def test_empty_region_has_no_pixels_and_no_objects(scene):
    assert scene.read(slice(50, 50), slice(90, 20)).shape == (0, 0, 3)
    assert not list(scene.objects(slice(50, 50), slice(90, 20)))


def test_smaller_scene_is_the_corner_of_a_larger_one(scene, pixels):
    small = LargeScene(scene.plane, 200, 300)
    assert np.array_equal(small.read(ALL, ALL), pixels[:200, :300])


def test_a_region_of_a_huge_scene_takes_the_memory_of_the_region():
    clear_caches()
    huge = make_large_scene("train", 0, 10_000_000, 10_000_000)
    region = slice(7_000_000, 7_000_600), slice(9_000_000, 9_000_600)
    tracemalloc.start()
    try:
        assert huge.read(*region).std() > 5
        assert len(list(huge.objects(*region))) < 1000
        assert tracemalloc.get_traced_memory()[1] < 150 * 2**20
    finally:
        tracemalloc.stop()


# Objects


def test_objects_of_a_region_are_those_of_the_scene_cut_at_its_border(scene, objects):
    clear_caches()
    rows, columns = slice(200, 520), slice(390, 710)
    owner = np.zeros((HEIGHT, WIDTH), int)
    for number, found in enumerate(objects, start=1):
        owner[place(found)][found.mask] = number
    expected = []
    for number, found in enumerate(objects, start=1):
        mask = owner[rows, columns] == number
        if mask.any():
            expected.append((found.name, int(mask.sum())))
    cut = list(scene.objects(rows, columns))
    assert sorted((found.name, int(found.mask.sum())) for found in cut) == sorted(expected)
    assert any(found.is_fragment for found in cut)
    for found in cut:
        assert len(np.unique(owner[place(found)][found.mask])) == 1  # positions in the scene


def test_masks_are_tight_and_never_overlap(objects):
    count = np.zeros((HEIGHT, WIDTH), int)
    for found in objects:
        assert found.mask.any(0)[[0, -1]].all() and found.mask.any(1)[[0, -1]].all()
        count[place(found)] += found.mask
    assert count.max() == 1


@pytest.fixture
def plain(monkeypatch):
    """Scenes of one background color, whose shapes have one color each."""
    clear_caches()
    for name in ("FIELD_TEXTURE", "FIELD_JITTER", "PATH_LIGHT", "NOISE", "SHAPE_TEXTURE"):
        monkeypatch.setattr(large_scenes, name, 0)
    monkeypatch.setattr(large_scenes, "SHADE", (0, 0, 0))
    monkeypatch.setattr(large_scenes, "FIELD_COLORS", ((100, 100, 100),))
    monkeypatch.setattr(large_scenes, "DISTRACTOR_SHARE", 0)
    yield
    clear_caches()


def test_masks_are_exactly_what_stands_out_of_a_plain_background(plain, scene):
    image = scene.read(ALL, ALL).astype(int)
    labeled = np.zeros((HEIGHT, WIDTH), bool)
    for found in scene.objects():
        labeled[place(found)] |= found.mask
    # Edges are antialiased: only pixels whose 5 x 5 neighbors are alike are compared.
    kernel = np.ones((5, 5), np.uint8)
    is_far = cv2.dilate(labeled.astype(np.uint8), kernel) == 0
    is_inside = cv2.erode(labeled.astype(np.uint8), kernel) == 1
    assert (image[is_far] == 100).all()
    contrast = abs(image[is_inside] - 100).sum(1)
    assert (contrast > 0).all() and (contrast >= large_scenes.MIN_CONTRAST).mean() > 0.9
    assert is_far.mean() > 0.2 and is_inside.mean() > 0.05


def test_sizes_and_classes_are_those_of_the_settings(objects):
    whole = [found for found in objects if not found.is_fragment]
    sides = np.array([max(found.bbox[2:]) for found in whole])
    large = sides > large_scenes.SMALL_SIZE[1] * large_scenes.MAX_ASPECT + 2
    assert 2 <= large.sum() <= 0.2 * len(whole)
    assert sides[large].max() <= 400 * large_scenes.MAX_ASPECT + 2
    assert sides[~large].min() < 12 and sides[~large].max() > 30
    assert {found.name for found in whole} == set(synthetic.CLASSES)


def test_shapes_of_all_cells_keep_their_distance():
    plane = make_large_scene("train", 0, 1, 1, large_per_megapixel=2).plane
    box = large_scenes.Box(8192, 11_000, 8192, 11_000)
    for layer in (large_scenes.LARGE, large_scenes.SMALL):
        items = large_scenes.items_in(plane, box, (layer,))
        y, x, radius = np.array([(item.y, item.x, item.length) for item in items]).T
        distance = np.hypot(y[:, None] - y, x[:, None] - x)
        smaller = np.minimum(radius[:, None], radius)
        closest = radius[:, None] + radius - smaller * large_scenes.MAX_DEPTH_PERCENT / 100
        np.fill_diagonal(distance, np.inf)
        assert (distance >= closest - 1).all()  # in 1/64 pixel
        assert len(items) > 2 and (distance < 1.5 * closest).any()


def test_small_objects_form_clusters():
    scene = make_large_scene("train", 0, 2000, 2000, large_per_megapixel=0)
    counts = np.zeros((10, 10))
    for found in scene.objects():
        counts[found.bbox[1] // 200, found.bbox[0] // 200] += 1
    assert (counts == 0).mean() > 0.1
    assert counts.var() > 3 * counts.mean()  # 1 for independent positions


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(split="test"), "splits train, val"),
        (dict(height=0), "height=0"),
        (dict(seed=-1), "seed=-1"),
        (dict(large_per_megapixel=-1), "large_per_megapixel=-1"),
        (dict(large_size=(100, 2000)), "100 to 2000"),
        (dict(large_size=(300, 200)), "300 to 200"),
    ],
)
def test_bad_arguments_raise(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_large_scene(**{"split": "val", "index": 0, "height": 9, "width": 9, **arguments})


# Files


def run_tool(monkeypatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["make_synthetic_data.py", *arguments])
    runpy.run_path(str(REPOSITORY / "tools" / "make_synthetic_data.py"))["main"]()


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("data") / "scenes"
    with pytest.MonkeyPatch.context() as monkeypatch:
        options = ["--large-scenes", "200x130", "--train", "2", "--val", "1"]
        run_tool(monkeypatch, "--output", str(out), *options, "--large-objects", "20")
    return out


@pytest.mark.parametrize(("split", "count"), [("train", 2), ("val", 1)])
def test_tool_writes_pixels_and_annotations_of_scenes(data, split, count):
    coco = COCO(str(data / "annotations" / f"{split}.json"))
    assert len(coco.imgs) == count
    for index, image in enumerate(coco.imgs.values()):
        scene = make_large_scene(split, index, 130, 200, large_per_megapixel=20)
        written = np.array(Image.open(data / "images" / image["file_name"]))
        assert np.array_equal(written, scene.read(ALL, ALL))
        annotations = coco.loadAnns(coco.getAnnIds([image["id"]]))
        for annotation, found in zip(annotations, scene.objects(), strict=True):
            mask = coco.annToMask(annotation)
            assert np.array_equal(mask[place(found)], found.mask)
            assert mask.sum() == annotation["area"] == found.mask.sum()
            assert annotation["bbox"] == coco_mask.toBbox(annotation["segmentation"]).tolist()
            assert annotation["iscrowd"] == found.is_fragment
            assert annotation["category_id"] == synthetic.CATEGORY_IDS[found.name]


def test_an_existing_dataset_is_kept_and_others_are_refused(data, monkeypatch, capsys):
    options = ["--output", str(data), "--large-scenes", "200x130", "--train", "2", "--val", "1"]
    run_tool(monkeypatch, *options, "--large-objects", "20")
    assert "already exists" in capsys.readouterr().out
    with pytest.raises(UserError, match="not a dataset of large scenes created with these"):
        run_tool(monkeypatch, *options)


def test_scene_above_the_limit_becomes_a_tiled_tiff(tmp_path, monkeypatch):
    tifffile = pytest.importorskip("tifffile")
    monkeypatch.setattr(large_scenes, "MAX_PNG_PIXELS", 1000)
    monkeypatch.setattr(large_scenes, "BLOCK", 64)  # tiles of TIFF are multiples of 16
    large_scenes.make_large_dataset(tmp_path / "data", 1, 1, height=100, width=150)
    (image,) = json.loads((tmp_path / "data/annotations/val.json").read_text())["images"]
    with tifffile.TiffFile(tmp_path / "data/images" / image["file_name"]) as file:
        assert file.is_bigtiff and file.pages[0].tile == (64, 64)
        scene = make_large_scene("val", 0, 100, 150)
        assert np.array_equal(file.asarray(), scene.read(ALL, ALL))


def test_scene_beyond_32_bits_raises(tmp_path):
    with pytest.raises(ValueError, match="70000 x 70000"):
        large_scenes.make_large_dataset(tmp_path / "data", 1, 1, height=70_000, width=70_000)


@pytest.mark.parametrize("text", ["200", "200x", "0x100", "axb", "12345678x1"])
def test_bad_size_ends_in_one_line(tmp_path, monkeypatch, text, capsys):
    with pytest.raises((UserError, SystemExit)) as raised:
        run_tool(monkeypatch, "--output", str(tmp_path / "data"), "--large-scenes", text)
    message = str(raised.value) if raised.type is UserError else capsys.readouterr().err
    assert "WIDTHxHEIGHT" in message or "at least one pixel" in message
