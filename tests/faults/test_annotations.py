"""Each fault of an annotation file has a rule and is reported with ids, never by a traceback."""

import contextlib
import copy
import gzip
import io
import itertools
import json
import logging
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from children import in_a_child
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data import transforms as T
from detectron2.data.datasets import load_coco_json, register_coco_instances
from detectron2.structures import Boxes, BoxMode, Instances
from gpvit.cli import check_data
from gpvit.data import InstanceMapper, register_folder
from gpvit.data.datasets import coco as annotations
from gpvit.data.datasets.coco import read
from gpvit.data.datasets.coco_rules import RULES, grouped
from gpvit.data.masks import polygon_faults
from gpvit.evaluation import COCOEvaluator
from gpvit.evaluation.cocoeval import COCOeval
from gpvit.utils.errors import UserError
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as mask_api
from pycocotools.coco import COCO

pytestmark = pytest.mark.long

HEIGHT, WIDTH = 24, 32
MAPPER = dict(
    image_format="RGB", use_instance_mask=True, instance_mask_format="bitmask", recompute_boxes=True
)
NAN, INF = float("nan"), float("inf")


def pixels(x: int, y: int, w: int, h: int) -> np.ndarray:
    """The mask of a box, in the column-major order of pycocotools."""
    mask = np.zeros((HEIGHT, WIDTH), np.uint8, order="F")
    mask[y : y + h, x : x + w] = 1
    return mask


def compressed(x: int, y: int, w: int, h: int) -> dict:
    rle = mask_api.encode(pixels(x, y, w, h))
    return {"size": [HEIGHT, WIDTH], "counts": rle["counts"].decode()}


def run_lengths(x: int, y: int, w: int, h: int) -> dict:
    """The uncompressed RLE of a box that does not touch the last row."""
    # Runs go down the columns: the background up to the box, then its columns and the gaps between
    # them, then the background after it.
    inside = [h, HEIGHT - h] * w
    before, after = x * HEIGHT + y, (WIDTH - x - w) * HEIGHT + HEIGHT - h - y
    return {"size": [HEIGHT, WIDTH], "counts": [before, *inside[:-1], after]}


def image_record(id: int, file_name: str) -> dict:
    return {"id": id, "file_name": file_name, "width": WIDTH, "height": HEIGHT}


def valid() -> dict:
    """Three images, one of them without objects, and six objects with ids from 10.

    There are polygons, both kinds of RLE, and a crowd.
    """
    objects = [
        (1, 3, [2, 2, 8, 8], [[2, 2, 10, 2, 10, 10, 2, 10]], 0),
        (1, 5, [12, 4, 6, 9], compressed(12, 4, 6, 9), 0),
        (1, 5, [20.5, 4, 8, 8], [[20.5, 4, 28.5, 4, 28.5, 12], [21, 6, 25, 6, 25, 11]], 0),
        (1, 3, [4, 14, 20, 8], run_lengths(4, 14, 20, 8), 1),
        (2, 3, [0, 0, 32, 24], [[0, 0, 32, 0, 32, 24, 0, 24]], 0),
        (2, 5, [5, 5, 10, 10], run_lengths(5, 5, 10, 10), 0),
    ]
    annotations = []
    for id, (image, category, box, mask, crowd) in enumerate(objects, start=10):
        item = {"id": id, "image_id": image, "category_id": category, "bbox": box}
        item |= {"segmentation": mask, "iscrowd": crowd, "area": float(box[2] * box[3])}
        annotations.append(item)
    return {
        "info": {},
        "categories": [{"id": 5, "name": "disc"}, {"id": 3, "name": "cross"}],
        "images": [image_record(id, f"{id}.png") for id in (2, 1, 9)],
        "annotations": annotations,
    }


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The images of :func:`valid`."""
    folder = tmp_path_factory.mktemp("images")
    for id in (1, 2, 9):
        Image.effect_noise((WIDTH, HEIGHT), 50).convert("RGB").save(folder / f"{id}.png")
    return folder


@pytest.fixture
def reader(tmp_path: Path, images: Path) -> Callable[..., annotations.CocoFile]:
    """Write and reads an annotation file."""

    def write_and_read(content: dict | bytes, **options) -> annotations.CocoFile:
        path = tmp_path / "annotations.json"
        path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
        return read(path, images, **options)

    return write_and_read


def faults_of(data: annotations.CocoFile) -> dict[str, list]:
    """Return kinds of problems and their ids, except the crowd and empty image of :func:`valid`."""
    faults = {}
    for kind, problems in grouped(data.problems).items():
        if kind not in ("crowd", "empty image"):
            faults[kind] = [problem.annotation_id or problem.image_id for problem in problems]
    return faults


def used_objects(data: annotations.CocoFile) -> dict[int, dict]:
    """Annotation id -> object."""
    return {item["id"]: item for item in itertools.chain.from_iterable(data.objects.values())}


def used_ids(data: annotations.CocoFile) -> list[int]:
    """The annotation ids in the records, in their order."""
    ids = []
    for record in data.records():
        ids += [item["id"] for item in record["annotations"]]
    return ids


def assert_equal_to_detectron2(data: annotations.CocoFile, name: str) -> None:
    """Assert that Detectron2 loads the same records, under this name."""
    MetadataCatalog.pop(name, None)
    expected = load_coco_json(data.path, data.image_root, name)
    records = data.records()
    for record in records:
        for item in record["annotations"]:
            item.pop("id")
    assert records == expected


def test_valid_file_has_no_faults_and_equals_detectron2(reader) -> None:
    data = reader(valid())
    assert faults_of(data) == {} and len(used_objects(data)) == 6
    assert_equal_to_detectron2(data, "coco_valid")
    classes = MetadataCatalog.get("coco_valid").thing_classes
    assert list(data.categories.values()) == classes == ["cross", "disc"]


@pytest.mark.parametrize(
    ("name", "faults"),
    [("nuclei", {"many objects": [24]}), ("fruits_nuts", {}), ("coco_val_ccby", {})],
)
def test_real_annotations_have_no_faults_and_equal_detectron2(
    real_data: Path, name: str, faults: dict[str, list[int]]
) -> None:
    folder = real_data / name
    data = read(folder / "annotations" / "val.json", folder / "images", open_images=True)
    assert faults_of(data) == faults
    assert_equal_to_detectron2(data, f"coco_{name}")


def change(**values) -> Callable[[dict], None]:
    """Update the first annotation, whose id is 10."""
    return lambda content: content["annotations"][0].update(values)


def remove(key: str, where: str = "annotations") -> Callable[[dict], None]:
    return lambda content: content[where][0].pop(key)


def image(**values) -> Callable[[dict], None]:
    return lambda content: content["images"][0].update(values)


def polygon(*coordinates) -> Callable[[dict], None]:
    return change(segmentation=[list(coordinates)])


def rle(counts, size=(HEIGHT, WIDTH)) -> Callable[[dict], None]:
    return change(segmentation={"size": list(size), "counts": counts})


FULL = HEIGHT * WIDTH
# Kind of fault -> changes of a valid file that have this fault. These faults stop training.
STOPS = {
    "no categories": [lambda c: c["categories"].clear(), lambda c: c.pop("categories")],
    "no images": [lambda c: c["images"].clear(), lambda c: c.pop("images")],
    "no objects": [
        lambda c: c["annotations"].clear(),
        lambda c: c.pop("annotations"),
        lambda c: c.update(annotations=[c["annotations"][3]]),
    ],
    "category": [
        remove("id", "categories"),
        remove("name", "categories"),
        lambda c: c["categories"][0].update(name=7),
    ],
    "category twice": [lambda c: c["categories"].append({"id": 3, "name": "again"})],
    "image": [
        remove("id", "images"),
        remove("file_name", "images"),
        image(id="one"),
        image(file_name=""),
        image(id=1.5),
    ],
    "image twice": [lambda c: c["images"].append(image_record(1, "2.png"))],
    "image size": [
        remove("width", "images"),
        remove("height", "images"),
        image(width=0),
        image(height=-5),
        image(width="32"),
        image(width=NAN),
        image(width=10**9),
    ],
    "annotation": [
        remove("id"),
        remove("image_id"),
        change(id=None),
        change(image_id="1"),
        change(id=True),
        change(id=-1),
        change(id=2**53),
    ],
    "no mask": [
        remove("segmentation"),
        change(segmentation=None),
        change(segmentation=[]),
        change(segmentation={}),
    ],
}


def cases(table: dict[str, list]) -> list[tuple[str, Any]]:
    """Pairs of a kind of fault and each of its values."""
    pairs = []
    for kind, values in table.items():
        pairs += itertools.product([kind], values)
    return pairs


@pytest.mark.parametrize(("kind", "damage"), cases(STOPS))
def test_fault_of_file_image_or_class_raises_one_line(reader, kind: str, damage) -> None:
    content = valid()
    damage(content)
    data = reader(content, train=True)
    assert kind in faults_of(data) and RULES[kind].action == "stop"
    with pytest.raises(UserError) as error:
        data.records()
    message, rule = str(error.value), RULES[kind]
    assert data.path in message and rule.what in message and rule.then in message
    assert "\n" not in message


VALID = json.dumps(valid()).encode()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "JSONDecodeError"),
        (b"\0" * 100, "JSONDecodeError"),
        (VALID[:-20], "JSONDecodeError"),
        (VALID[: len(VALID) // 2], "JSONDecodeError"),
        (b"[]", "not a JSON object"),
        (b"7", "not a JSON object"),
        (VALID.replace(b"cross", b"cr\xf6ss"), "UnicodeDecodeError"),
        (json.dumps(valid()).encode("utf-16")[:-1], "UnicodeDecodeError"),
        (gzip.compress(VALID), "compressed by gzip"),
        (b'{"images": []}\n{"images": []}', "Extra data: line 2"),
        (b"[" * 100_000, "RecursionError"),
        (b'{"images": {}}', '"images" is not a list'),
        (b'{"images": [[]]}', "images[0] is not an object"),
        (b'{"annotations": [null]}', "annotations[0] is not an object"),
        (b'{"images": ' + b"9" * 5000 + b"}", "ValueError"),
    ],
)
def test_non_coco_file_raises_one_line(reader, content: bytes, reason: str) -> None:
    with pytest.raises(UserError, match="not in COCO format") as error:
        reader(content).records()
    assert reason in str(error.value) and "\n" not in str(error.value)


# Faults of one object that exclude it.
DROPS = {
    "undeclared": [
        remove("category_id"),
        change(category_id=99),
        change(category_id="3"),
        change(category_id=None),
    ],
    "no such image": [change(image_id=77)],
    "mask": [
        polygon(10.1, 10.1, 10.3, 10.1, 10.3, 10.3),  # between the centers of pixels
        polygon(1, 3.1, 30, 3.1, 30, 3.4, 1, 3.4),
        # Twice around: by the even-odd rule, nothing is inside.
        polygon(*[2, 2, 10, 2, 10, 10, 2, 10] * 2),
        change(segmentation=[[10.1, 10.1, 10.3, 10.1, 10.3, 10.3], [5.6, 5, 6.4, 5, 6, 9]]),
        rle([FULL, 0]),
        change(segmentation="polygon"),
        change(segmentation=7),
        rle("", size=(HEIGHT, WIDTH)),
        rle([FULL]),
        rle([0, FULL - 1]),
        rle([0, FULL + 1]),
        rle([-1, FULL + 1]),
        rle([0.5, FULL - 0.5]),
        rle([0, NAN]),
        rle([0, INF]),
        rle(["0", str(FULL)]),
        rle([[0, FULL]]),
        rle(None),
        rle(compressed(1, 1, 3, 3)["counts"][:-1]),
        rle(compressed(1, 1, 3, 3)["counts"] + "0"),
        rle("\x7f" * 9),
        rle("é\ud800"),
        rle("P" * 30),  # each character announces another one
        rle(compressed(1, 1, 3, 3)["counts"], size=(WIDTH, HEIGHT)),
        rle(compressed(1, 1, 3, 3)["counts"], size=()),
        rle([0, 100], size=(10, 10)),
        change(segmentation={"size": [HEIGHT, WIDTH]}),
        change(segmentation={"counts": [0, FULL]}),
    ],
    "polygon": [
        polygon(1, 1, 5, 5),
        polygon(1, 1, 5, 1, 5),
        polygon(1, 1, 5, 1, 5, 5, 9),
        polygon(),
        polygon(1, 1, 5, NAN, 5, 5),
        polygon(1, 1, INF, 1, 5, 5),
        polygon("1", "1", "5", "1", "5", "5"),
        polygon(1, 1, None, 1, 5, 5),
        polygon([1, 1], [5, 1], [5, 5]),
        polygon(40, 1, 50, 1, 50, 9),
        polygon(1, 3, 9, 3, 20, 3),  # a line
        polygon(1, 1, 1e9, 1, 5, 5),  # pycocotools would allocate gigabytes
        polygon(1, 1, -1e300, 1, 5, 5),
        polygon(1, 1, 10**400, 1, 5, 5),
        change(segmentation=[1, 1, 5, 1, 5, 5]),
        change(segmentation=[[[1, 1], [5, 1], [5, 5]]]),
    ],
}
REASONS = {  # for frequent errors of programs that write such files
    "a flat list of numbers, not a list of polygons": [1, 1, 5, 1, 5, 5],
    "points in nested lists, not x, y, x, y": [[[1, 1], [5, 1], [5, 5]]],
    "no pixel": [[10.1, 10.1, 10.3, 10.1, 10.3, 10.3]],
}


@pytest.mark.parametrize("reason", REASONS)
def test_reason_for_unusable_mask_is_reported(reader, reason: str) -> None:
    content = valid()
    content["annotations"][0]["segmentation"] = REASONS[reason]
    problems = reader(content).problems
    assert [problem.detail for problem in problems if problem.annotation_id == 10] == [reason]


def test_reason_is_reported_if_all_objects_are_dropped(reader) -> None:
    content = valid()
    for item in content["annotations"]:
        item["category_id"] = str(item["category_id"])
    message = r"no object to train on \(6 annotations have a category that is not"
    with pytest.raises(UserError, match=message):
        reader(content, train=True).records()
    assert [record["annotations"] for record in reader(content).records()] == [[], [], []]


@pytest.mark.parametrize(("kind", "damage"), cases(DROPS))
def test_object_without_usable_mask_or_image_is_dropped(reader, kind: str, damage) -> None:
    content = valid()
    damage(content)
    data = reader(content)
    assert faults_of(data) == {kind: [10]}
    assert used_ids(data) == [11, 12, 13, 14, 15] and len(data.coco().anns) == 5


def test_unusable_polygon_does_not_affect_others(reader) -> None:
    content = valid()
    good = content["annotations"][2]["segmentation"]
    bad = [[1, 1, 5, 5], [1, 1, NAN, 1, 5, 5], [1, 1, 4, 1, 4, 4, 9]]
    content["annotations"][2]["segmentation"] = [bad[0], *good, *bad[1:]]
    data = reader(content)
    assert faults_of(data) == {"polygon": [12]} and used_objects(data)[12]["segmentation"] == good


BOXES = {
    "box": [
        [NAN, 2, 8, 8],
        [2, 2, INF, 8],
        [2, 2, 8],
        [2, 2, 8, 8, 1],
        [],
        None,
        "2 2 8 8",
        ["2", "2", "8", "8"],
        7,
        {},
        [2, 2, None, 8],
        [[2, 2, 8, 8]],
        [True, 2, "8", 8],
        [2, 2, 10**400, 8],
    ],
    "empty box": [[2, 2, 0, 8], [2, 2, 8, 0], [2, 2, -8, 8], [10, 10, -8, -8], [2, 2, 8, -1e-9]],
    "box outside": [
        [40, 2, 8, 8],
        [2, 24, 8, 8],
        [-8, 2, 8, 8],
        [2, -9, 8, 8],
        [1e308, 2, 1e308, 8],
        [5, 5, 1e-300, 4],
    ],
}


@pytest.mark.parametrize(("kind", "box"), cases(BOXES))
@pytest.mark.parametrize("masks", [True, False])
def test_invalid_box_is_computed_from_mask_or_object_is_dropped(
    reader, kind: str, box, masks: bool
) -> None:
    content = valid()
    content["annotations"][0]["bbox"] = content["annotations"][1]["bbox"] = box
    data = reader(content, masks=masks)
    assert faults_of(data) == {kind: [10, 11]}
    objects = used_objects(data)
    if masks:  # a polygon and an RLE
        assert objects[10]["bbox"] == [2, 2, 8, 8] and objects[11]["bbox"] == [12, 4, 6, 9]
    else:
        assert set(objects) == {12, 13, 14, 15}


@pytest.mark.parametrize(
    ("box", "clipped", "counted"),
    [
        ([-4, 3, 10, 5], [0, 3, 6, 5], True),
        ([20, 3, 30, 30], [20, 3, 12, 21], True),
        ([-1e308, -5, INF, 9], None, False),
        ([-1e300, -1e300, 2e300, 2e300], [0, 0, 32, 24], True),
        ([20, 3, 12.5, 5], [20, 3, 12, 5], False),  # rounding
        ([0, 0, 32, 24], [0, 0, 32, 24], False),
        ([0.1, 0.2, 0.3, 0.4], [0.1, 0.2, 0.3, 0.4], False),  # bitwise equal
    ],
)
def test_box_partly_outside_is_clipped_and_reported_beyond_one_pixel(
    reader, box, clipped, counted: bool
) -> None:
    content = valid()
    change(bbox=box)(content)
    data = reader(content, masks=False)
    assert ("box clipped" in faults_of(data)) == counted
    assert used_objects(data).get(10, {}).get("bbox") == clipped


# Faults that only show in other objects of the file, or in the mask.

WIDE, HIGH = 96, 72


def shapes(images: int = 3) -> dict:
    """Images of 96 x 72 pixels with a rectangle and a triangle each; all ids count from 1."""
    content: dict = {
        "categories": [{"id": 3, "name": "box"}, {"id": 5, "name": "tri"}],
        "images": [],
        "annotations": [],
    }
    outlines = [  # category, width, height, area and polygon, relative to the corner of the box
        (3, 24, 18, 24 * 18, [(0, 0), (24, 0), (24, 18), (0, 18)]),
        (5, 26, 24, 26 * 24 / 2, [(0, 0), (26, 0), (13, 24)]),
    ]
    for id in range(1, images + 1):
        image = {"id": id, "file_name": f"{id}.png", "width": WIDE, "height": HIGH}
        content["images"].append(image)
        x, y = 5 + 3 * (id % 4), 4 + 2 * (id % 4)
        for category, w, h, area, points in outlines:
            corners = np.array(points) + (x, y)
            item = {"id": len(content["annotations"]) + 1, "image_id": id, "iscrowd": 0}
            item |= {"category_id": category, "bbox": [x, y, w, h], "area": float(area)}
            content["annotations"].append(item | {"segmentation": [corners.ravel().tolist()]})
            x, y = x + 38, y + 30
    return content


def normalized(coordinates: list[float]) -> list[float]:
    """Divide x by the width and y by the height; both alternate, also in a box."""
    return [value / (HIGH if place % 2 else WIDE) for place, value in enumerate(coordinates)]


def normalize_box(item: dict) -> None:
    item["bbox"] = normalized(item["bbox"])


def normalize_mask(item: dict) -> None:
    item["segmentation"] = [normalized(polygon) for polygon in item["segmentation"]]


def normalize_both(item: dict) -> None:
    normalize_box(item)
    normalize_mask(item)


def to_corners(item: dict) -> None:
    x, y, w, h = item["bbox"]
    item["bbox"] = [x, y, x + w, y + h]


def box_only(item: dict) -> None:
    del item["segmentation"]


def with_rle(item: dict) -> None:
    rle = mask_api.merge(mask_api.frPyObjects(item["segmentation"], HIGH, WIDE))
    item["segmentation"] = {"size": [HIGH, WIDE], "counts": rle["counts"].decode()}


def changed(*changes: Callable[[dict], None], count: int | None = None, images: int = 3) -> dict:
    """Return :func:`shapes` with changes of all or of the first annotations."""
    content = shapes(images)
    for item in content["annotations"][:count]:
        for change in changes:
            change(item)
    return content


@pytest.mark.parametrize("masks", [True, False])
@pytest.mark.parametrize(
    "changes",
    [[normalize_both], [normalize_box, box_only], [to_corners, normalize_box, box_only]],
    ids=lambda c: c[-1].__name__,
)
@pytest.mark.parametrize("count", [None, 2])
def test_normalized_coordinates_of_some_or_all_objects_raise(reader, masks, changes, count) -> None:
    if masks and box_only in changes:
        pytest.skip("without masks only")
    data = reader(changed(*changes, count=count), masks=masks, train=True)
    faults = faults_of(data)
    assert faults["normalized"] == list(range(1, (count or 6) + 1)) and "no objects" not in faults
    message = r"normalized\?, first id 1 \(bbox \[.*\] in 96 x 72\): multiply x and width by"
    with pytest.raises(UserError, match=message):
        data.records()


def test_error_about_normalized_masks_shows_mask(reader) -> None:
    data = reader(changed(normalize_mask), train=True)
    detail = grouped(data.problems)["normalized"][0].detail
    assert detail.startswith("segmentation [[0.") and "bbox" not in detail


@pytest.mark.parametrize("place", ["images", "categories", "annotations"])
def test_too_large_id_is_reported(reader, place: str) -> None:
    content = valid()
    content[place][0]["id"] = 2**60
    details = [problem.detail for problem in reader(content).problems]
    assert f"{2**60}, which is not below 2**53" in "".join(details)


def test_normalized_masks_raise_if_used_and_boxes_are_recomputed_from_masks(reader) -> None:
    assert faults_of(reader(changed(normalize_mask)))["normalized"] == [1, 2, 3, 4, 5, 6]
    assert faults_of(reader(changed(normalize_mask), masks=False)) == {}
    assert faults_of(reader(changed(normalize_box), masks=False))["normalized"] == [
        1,
        2,
        3,
        4,
        5,
        6,
    ]
    data = reader(changed(normalize_box))
    assert faults_of(data) == {"box differs": [1, 2, 3, 4, 5, 6]}
    objects = used_objects(data)
    for item in shapes()["annotations"]:
        assert objects[item["id"]]["bbox"] == item["bbox"]


def test_one_or_few_of_many_objects_below_one_pixel_do_not_stop_training(reader) -> None:
    def corner(item: dict) -> None:
        mask = [[0.2, 0.3, 0.9, 0.3, 0.9, 0.9, 0.2, 0.9]]
        item |= {"bbox": [0.2, 0.3, 0.7, 0.6], "segmentation": mask, "area": 0.4}

    def pixel(item: dict) -> None:
        mask = [[0, 0, 1, 0, 1, 1, 0, 1]]
        item |= {"bbox": [0, 0, 1, 1], "segmentation": mask, "area": 1}

    for content in (changed(corner, count=1), changed(corner, count=2, images=150)):
        data = reader(content)
        assert set(faults_of(data)) == {"first pixel"}
        assert len(used_objects(data)) == len(content["annotations"])
    assert "normalized" in faults_of(reader(changed(corner, count=2, images=90)))
    # Integers are pixels, unless all objects would be complete images in normalized coordinates.
    data = reader(changed(pixel, count=4))
    assert data.records() and faults_of(data)["first pixel"] == [1, 2, 3, 4]
    assert "normalized" in faults_of(reader(changed(pixel)))


def test_objects_in_one_pixel_images_are_not_normalized(reader) -> None:
    content = changed(lambda item: item.update(bbox=[0, 0, 0.9, 0.9], area=0.5), box_only)
    for image in content["images"]:
        image |= {"width": 1, "height": 1}
    data = reader(content, masks=False)
    assert faults_of(data) == {} and len(used_objects(data)) == 6


def test_single_normalized_mask_is_dropped(reader) -> None:
    square = [0, 0, 0.9, 0, 0.9, 0.9, 0, 0.9]
    for mask, reason in ((normalized(square), "no pixel"), (square, "box is elsewhere")):
        content = shapes()
        content["annotations"][0]["segmentation"] = [mask]
        data = reader(content)
        assert faults_of(data) == {"first pixel": [1], "mask": [1]} and data.records()
        assert reason in grouped(data.problems)["mask"][0].detail


def box_is_image(item: dict) -> None:
    item["bbox"] = [0, 0, WIDE, HIGH]


def box_starts_at_center(item: dict) -> None:
    x, y, w, h = item["bbox"]
    item["bbox"] = [x + 12, y + 9, w, h]


def y_before_x(item: dict) -> None:
    x, y, w, h = item["bbox"]
    item["bbox"] = [y, x, h, w]


def half_the_size(item: dict) -> None:
    item["bbox"] = [value / 2 for value in item["bbox"]]


WRONG_BOXES = {
    "corners": to_corners,
    "normalized": normalize_box,
    "image": box_is_image,
    "center": box_starts_at_center,
    "y before x": y_before_x,
    "half the size": half_the_size,
}


@pytest.mark.parametrize("wrong", WRONG_BOXES)
@pytest.mark.parametrize("mask", [None, with_rle])
@pytest.mark.parametrize("crowd", [0, 1])
def test_box_that_contradicts_mask_is_recomputed(reader, wrong: str, mask, crowd: int) -> None:
    changes = [WRONG_BOXES[wrong], lambda item: item.update(iscrowd=crowd)]
    if mask is not None:
        changes.append(mask)
    data = reader(changed(*changes, count=5))
    faults, objects = faults_of(data), used_objects(data)
    ids = faults["box differs"]
    assert set(ids) >= {1, 2, 4} and "box clipped" not in faults
    boxes = {item["id"]: item["bbox"] for item in shapes()["annotations"]}
    for id in ids:
        assert np.allclose(objects[id]["bbox"], boxes[id], atol=1.01)  # an RLE has integer extents
        assert objects[id]["area"] <= 26 * 24  # the larger box
    assert objects[6]["bbox"] == boxes[6]


@pytest.mark.parametrize("mask", [None, with_rle])
def test_loose_or_rounded_box_does_not_contradict_mask(reader, mask) -> None:
    def loosen(item: dict) -> None:
        x, y, w, h = item["bbox"]
        item["bbox"] = [x - 2.5, y - 2.5, w + 5, h + 4]

    def tiny(item: dict) -> None:
        square = [41.5, 41.5, 42.5, 41.5, 42.5, 42.5, 41.5, 42.5]
        item |= {"bbox": [40, 40, 1, 1], "segmentation": [square], "area": 1}

    for change in (loosen, tiny):
        content = changed(change, *([mask] if mask else []), images=1)
        content["annotations"].pop()
        data = reader(content)
        expected = content["annotations"][0]["bbox"]
        assert faults_of(data) == {} and used_objects(data)[1]["bbox"] == expected


def test_corners_near_image_border_are_recognized(reader) -> None:
    content = shapes(1)
    content["annotations"] = content["annotations"][:1]
    [item] = content["annotations"]
    square = [4, 3, 74, 3, 74, 63, 4, 63]
    # As x, y, width and height, this box has an IoU of 0.9 with the mask.
    item |= {"bbox": [4, 3, 74, 63], "segmentation": [square], "area": 4200}
    data = reader(content)
    assert faults_of(data) == {"box differs": [1]}
    assert used_objects(data)[1]["bbox"] == [4, 3, 70, 60]


@pytest.mark.parametrize("wrong", ["corners", "image"])
def test_boxes_that_contradict_unused_masks_are_reported_and_kept(reader, wrong: str) -> None:
    content = changed(WRONG_BOXES[wrong], count=2)
    data = reader(content, masks=False)
    assert faults_of(data)["box alone differs"] == [1, 2]
    assert used_objects(data)[1]["bbox"] == content["annotations"][0]["bbox"]


def test_boxes_that_look_like_corners_are_reported(reader) -> None:
    data = reader(changed(to_corners, box_only), masks=False)
    faults = faults_of(data)
    assert faults["corners"] == faults["box clipped"] != []
    content = changed(to_corners, box_only)
    content["annotations"][0]["bbox"] = [40, 30, 20, 20]  # invalid as corners
    assert "corners" not in faults_of(reader(content, masks=False))


@pytest.mark.parametrize("masks", [True, False])
def test_first_of_duplicate_objects_is_used(reader, masks: bool) -> None:
    content = shapes()
    first, second = content["annotations"][:2]
    content["annotations"] += [
        {**first, "id": 20},
        {**first, "id": 21, "bbox": list(map(float, first["bbox"]))},
        {**first, "id": 22, "category_id": 5},
        {**first, "id": 23, "image_id": 2},
        {**first, "id": 24, "bbox": [*first["bbox"][:3], 18.5]},
        {**first, "id": 25, "iscrowd": 1},
        {**first, "id": 1},
        {**second, "id": 26},
        {**second, "id": 27, "segmentation": [[*second["segmentation"][0], 51, 65]]},
    ]
    data = reader(content, masks=masks)
    assert faults_of(data)["object twice"] == [20, 21, 1, 26] + ([] if masks else [27])
    for problem in grouped(data.problems)["object twice"][:3]:
        assert problem.detail == "same as 1"
    assert {22, 23, 24, 25} <= set(used_objects(data)) and len(data.coco().anns) == 6 + 4 + masks


def test_many_objects_with_same_box_are_compared_quickly(reader) -> None:
    content = shapes(1)
    first = content["annotations"][0]
    [polygon] = first["segmentation"]
    x, y = polygon[:2]
    content["annotations"] = []
    for id in range(1, 3001):
        mask = [[*polygon, x + id / 2000, y]]  # one more point
        content["annotations"].append({**first, "id": id, "segmentation": mask})
    with time_limit(10):
        assert len(used_objects(reader(content))) == 3000


def test_image_listed_under_two_ids_is_reported(reader, images: Path) -> None:
    content = valid()
    content["images"] += [
        image_record(20, "./1.png"),
        image_record(21, str(images / "2.png")),
    ]
    data = reader(content)
    assert faults_of(data) == {"file twice": [20, 21]} and len(data.records()) == 5
    assert grouped(data.problems)["file twice"][0].detail == "./1.png, same as 1"
    data = read(data.path, "")
    assert faults_of(data) == {"file twice": [20]}


@pytest.mark.parametrize("area", [0.05, 1.0, 5000])
def test_area_that_does_not_fit_box_is_recomputed(reader, area: float) -> None:
    data = reader(changed(lambda item: item.update(area=area), count=1))
    assert faults_of(data) == {"area": [1]} and used_objects(data)[1]["area"] == 24 * 18


@pytest.mark.parametrize(
    "encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-be"]
)
def test_every_json_encoding_is_read(tmp_path: Path, images: Path, encoding: str, capsys) -> None:
    content = valid()
    content["categories"][0]["name"] = "Müller €"
    folder_with(valid(), tmp_path / "data", images)
    path = tmp_path / "data" / "annotations" / "val.json"
    path.write_bytes(json.dumps(content, ensure_ascii=False).encode(encoding))
    data = read(path, images)
    assert faults_of(data) == {} and data.categories[5] == "Müller €"
    results = evaluate(register_folder(str(tmp_path / "data"), "val"), perfect)
    assert results["segm"]["AP"] == pytest.approx(100)
    assert run_check(["--data", str(tmp_path / "data")], capsys)[0] == 0
    register_coco_instances(f"plain_{encoding}", {}, str(path), str(images))
    assert len(COCOEvaluator(f"plain_{encoding}", ("bbox",))._coco_api.anns) == 6


def test_overflowing_number_in_unused_mask_is_ignored(reader) -> None:
    content = valid()
    content["annotations"][0]["segmentation"] = [[10**400, 2, 10**400, 2, 10**400, 10]]
    data = reader(content, masks=False)
    assert faults_of(data) == {} and len(used_objects(data)) == 6


def test_faults_of_unused_masks_are_ignored(reader) -> None:
    content = valid()
    for fault, item in zip(["x", None, [[1]], {"size": 1}, 5, []], content["annotations"]):
        item["segmentation"] = fault
    data = reader(content, masks=False)
    assert faults_of(data) == {} and len(used_objects(data)) == 6
    for record in data.records():
        for item in record["annotations"]:
            assert "segmentation" not in item


@pytest.mark.parametrize(
    "values",
    [{"ignore": 1}, {"iscrowd": "yes"}, {"iscrowd": 2}, {"iscrowd": [0]}, {"iscrowd": NAN}],
)
def test_ignored_object_becomes_crowd(reader, values: dict) -> None:
    content = valid()
    change(**values)(content)
    data = reader(content)
    assert faults_of(data) == {"ignored": [10]} and used_objects(data)[10]["iscrowd"] == 1


@pytest.mark.parametrize("value", [0, False, None, 0.0])
def test_missing_or_false_iscrowd_is_no_crowd(reader, value) -> None:
    content = valid()
    change(iscrowd=value)(content)
    assert faults_of(reader(content)) == {} and used_objects(reader(content))[10]["iscrowd"] == 0
    remove("iscrowd")(content)
    assert faults_of(reader(content)) == {} and used_objects(reader(content))[10]["iscrowd"] == 0


@pytest.mark.parametrize("area", ["missing", None, 0, -5, NAN, INF, "64", 10**6, [64]])
def test_invalid_area_is_computed_from_mask_or_box(reader, area) -> None:
    content = valid()
    for item in content["annotations"][:3]:
        item["area"] = area
        if area == "missing":
            del item["area"]
    data = reader(content)
    assert faults_of(data) == {"area": [10, 11, 12]}
    polygons = content["annotations"][2]["segmentation"]
    union = mask_api.merge(mask_api.frPyObjects(polygons, HEIGHT, WIDTH))
    for id, expected in ((10, 64), (11, 54), (12, mask_api.area(union))):
        assert used_objects(data)[id]["area"] == expected
    assert used_objects(reader(content, masks=False))[12]["area"] == 64


def test_duplicate_ids_and_class_names_and_empty_images_are_reported_and_used(
    reader,
) -> None:
    content = valid()
    content["annotations"][4]["id"] = 10
    content["categories"][0]["name"] = "cross"
    data = reader(content)
    assert faults_of(data) == {"annotation twice": [10], "same name": [None]}
    [empty] = grouped(data.problems)["empty image"]
    assert empty.image_id == 9
    assert used_ids(data) == [10, 11, 12, 13, 10, 15]
    assert sorted(data.coco().anns) == [1, 2, 3, 4, 5, 6]


def test_integers_may_be_written_as_floats(reader) -> None:
    content = valid()
    for entry in [*content["annotations"], *content["images"], *content["categories"]]:
        for key, value in entry.items():
            if isinstance(value, int):
                entry[key] = float(value)
    assert (
        faults_of(reader(content)) == {} and reader(content).records() == reader(valid()).records()
    )


def broken_folder(folder: Path, images: Path) -> Path:
    """Write a dataset with one fault of nearly every kind."""
    content = valid()
    first, second, third, *_ = content["annotations"]
    content["annotations"] += [
        {**first, "id": 20, "bbox": [NAN, 0, 1, 1]},
        {**first, "id": 21, "bbox": [2, 2, 0, 8]},
        {**first, "id": 22, "bbox": [99, 2, 8, 8]},
        {**first, "id": 23, "bbox": [-5, 2, 15, 8]},
        {**first, "id": 24, "segmentation": [[1, 1, 5, 5]]},
        {**second, "id": 25, "segmentation": {"size": [9, 9], "counts": [0, 81]}},
        {**third, "id": 26, "image_id": 404},
        {**third, "id": 20, "area": None},
        {**third, "id": 27, "ignore": 1},
    ]
    shutil.copytree(images, folder / "images")
    (folder / "annotations").mkdir()
    (folder / "annotations" / "train.json").write_text(json.dumps(content))
    (folder / "annotations" / "val.json").write_text(json.dumps(valid()))
    return folder


LOGGERS = ("gpvit.data.datasets.coco", "gpvit.data.datasets.coco_rules")
FAULTS_IN_FOLDER = {  # kind -> ids
    "no such image": [26], "mask": [25], "polygon": [24], "box": [20], "empty box": [21],
    "box outside": [22], "box clipped": [23], "ignored": [27], "crowd": [13, 27], "area": [20],
    "annotation twice": [20], "empty image": [9],
}  # fmt: skip


def test_rules_are_applied_and_logged_in_one_line_each(
    tmp_path: Path, images: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = broken_folder(tmp_path / "data", images)
    name = register_folder(str(folder), "train")
    with caplog.at_level(logging.INFO, "gpvit"):
        records = DatasetCatalog.get(name)
    lines = [message for name, _, message in caplog.record_tuples if name in LOGGERS]
    assert lines[0].endswith("train.json: 3 images, 12 of 15 annotations used, 2 classes")
    assert len(lines) == 1 + len(FAULTS_IN_FOLDER)
    for line, (kind, ids) in zip(lines[1:], FAULTS_IN_FOLDER.items()):
        rule = RULES[kind]
        assert f": {len(ids)} {rule.what}, first id {ids[0]}" in line and line.endswith(rule.then)
    mapper = InstanceMapper(is_train=True, augmentations=[], **MAPPER)
    counts = {record["image_id"]: len(mapper(record)["instances"]) for record in records}
    assert counts == {1: 8, 2: 2, 9: 0}  # without crowds
    metadata = MetadataCatalog.get(name)
    assert metadata.evaluator_type == "coco"
    assert metadata.json_file == str(folder / "annotations" / "train.json")
    assert metadata.image_root == str(folder / "images")
    assert metadata.thing_dataset_id_to_contiguous_id == {3: 0, 5: 1}


def run_check(arguments: list[str], capsys) -> tuple[int, str]:
    code = check_data.main(arguments)
    return code, capsys.readouterr().out


def test_check_data_reports_all_faults_with_ids(tmp_path: Path, images: Path, capsys) -> None:
    folder, report = broken_folder(tmp_path / "data", images), tmp_path / "all.json"
    code, text = run_check(["--data", str(folder), "--json", str(report)], capsys)
    assert code == 0
    found: dict[str, list[int]] = {}
    for row in json.loads(report.read_text()):
        if row["file"].endswith("train.json"):
            found.setdefault(row["kind"], []).append(row["annotation_id"] or row["image_id"])
    for kind, ids in FAULTS_IN_FOLDER.items():
        item = "image" if kind == "empty image" else "annotation"
        assert f": {len(ids)} {RULES[kind].what}\n    {item} {ids[0]}" in text
        assert found[kind] == ids


def test_check_data_fails_if_training_would_stop(tmp_path: Path, images: Path, capsys) -> None:
    folder = broken_folder(tmp_path / "data", images)
    path = folder / "annotations" / "train.json"
    content = json.loads(path.read_text())
    content["annotations"][0]["category_id"] = 99
    content["images"] += [
        {"id": 50, "file_name": "missing.png", "width": 9, "height": 9},
        {"id": 51, "file_name": "cut.png", "width": 9, "height": 9},
        {"id": 52, "file_name": "1.png", "width": HEIGHT, "height": WIDTH},
    ]
    path.write_text(json.dumps(content))
    (folder / "images" / "cut.png").write_bytes((images / "1.png").read_bytes()[:200])
    code, text = run_check(["--data", str(folder)], capsys)
    assert code == 1
    undeclared = "dropped: 1 annotations have a category that is not declared"
    rotated = f"(1.png is {WIDTH} x {HEIGHT}, not {HEIGHT} x {WIDTH}; is it rotated by EXIF?)"
    for expected in (
        f"{undeclared}\n    annotation 10 (category_id 99)",
        "stops training: 2 images cannot be read",
        "missing.png: cannot be read: it does not exist",
        "cut.png: cannot be read: it is damaged",
        f"image 52 {rotated}",
        "boxes are not four finite numbers",
    ):
        assert expected in text
    _, text = run_check(["--data", str(folder), "--annotations-only"], capsys)
    assert "cannot be read" not in text


def test_check_data_accepts_file_and_reports_different_classes(
    tmp_path: Path, images: Path, capsys
) -> None:
    folder = broken_folder(tmp_path / "data", images)
    val = folder / "annotations" / "val.json"
    code, text = run_check(["--data", str(val), "--images", str(images)], capsys)
    assert code == 0 and "3 images, 6 of 6 annotations used, 2 classes" in text
    (tmp_path / "alone").mkdir()
    with pytest.raises(UserError, match="--images DIR"):
        check_data.main(["--data", shutil.copy(val, tmp_path / "alone")])
    categories = [{"id": 3, "name": "a"}, {"id": 5, "name": "b"}]
    val.write_text(json.dumps(valid() | {"categories": categories}))
    code, text = run_check(["--data", str(folder)], capsys)
    assert code == 1 and "stops training: train.json and val.json declare different classes" in text
    val.write_text('{"images": [')
    code, text = run_check(["--data", str(folder)], capsys)
    assert code == 1 and "stops training: not in COCO format\n    (JSONDecodeError" in text
    assert "boxes are not four finite numbers" in text  # of the other file
    val.unlink()
    code, text = run_check(["--data", str(folder)], capsys)
    assert code == 0 and "held out for validation" in text


def test_check_data_prints_rules_and_each_rule_has_test(capsys) -> None:
    code, text = run_check(["--rules"], capsys)
    assert code == 0 and all(f"| {rule.what} | " in text for rule in RULES.values())
    tested = {*STOPS, *DROPS, *BOXES, *FAULTS_IN_FOLDER, "format", "same name", "classes differ"}
    tested |= {"unreadable", "size differs", "normalized", "first pixel", "box differs"}
    tested |= {"box alone differs", "corners", "object twice", "file twice"}
    tested |= {"group", "image name", "both splits"}  # in test_custom.py
    tested |= {"many objects"}  # in test_evaluation.py
    # In test_yolo.py and test_labelme.py.
    tested |= {"label file", "line", "class", "shape", "named twice", "named for two"}
    # In test_custom_semantic.py.
    tested |= {"no label map", "no image", "label map", "colors", "value", "0 and 255"}
    tested |= {"one class", "unlabeled", "unused class"}
    # In test_classification_data.py.
    tested |= {"outside classes", "untrained class", "single image", "unvalidated class"}
    tested |= {"unlearned class", "empty split"}
    assert tested == set(RULES)


# The mapper, for records to which the rules were not applied, such as Detectron2's of COCO.


def mapped(images: Path, *objects: dict, height: int = HEIGHT) -> dict:
    record = {"file_name": str(images / "1.png"), "image_id": 5, "height": height, "width": WIDTH}
    mapper = InstanceMapper(is_train=True, augmentations=[], **MAPPER)
    return mapper(record | {"annotations": objects})


def an_object(**values) -> dict:
    return {
        "id": 7, "bbox": [2, 2, 8, 8], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0,
        "segmentation": [[2, 2, 10, 2, 10, 10, 2, 10]],
    } | values  # fmt: skip


@pytest.mark.parametrize(
    "values",
    [
        {"bbox": [NAN, 2, 8, 8]},
        {"bbox": [2, 2, 8]},
        {"bbox": None},
        {"bbox": ["a", 2, 8, 8]},
        {"segmentation": None},
        {"segmentation": [[1, 1, NAN, 1, 5, 5]]},
        {"segmentation": [[1, 1, 1e12, 1, 5, 5]]},
        {"segmentation": [[1, 1, 5]]},
        {"segmentation": "x"},
        {"segmentation": {"size": [HEIGHT, WIDTH], "counts": "0"}},
        {"segmentation": {"size": [HEIGHT, WIDTH], "counts": b"PPP"}},
        {"segmentation": {"size": [9, 9], "counts": compressed(1, 1, 3, 3)["counts"]}},
        {"segmentation": {"size": [HEIGHT, WIDTH], "counts": None}},
        {"category_id": None},
        {"bbox_mode": 77},
    ],
)
def test_mapper_names_path_image_and_annotation_of_invalid_object(
    images: Path, values: dict
) -> None:
    with pytest.raises(UserError) as error:
        mapped(images, an_object(id=3), an_object(**values))
    message = str(error.value)
    assert message.startswith(f"{images / '1.png'}: annotation id 7 cannot be used (")
    assert "(image id 5)" in message and "\n" not in message
    crowd = an_object(**values, iscrowd=1)  # is ignored
    assert len(mapped(images, an_object(id=3), crowd)["instances"]) == 1


def test_mapper_names_both_sizes_if_image_size_differs(images: Path) -> None:
    message = f"is {WIDTH} x {HEIGHT} pixels, but {WIDTH} x 99 in its annotations.*image id 5"
    with pytest.raises(UserError, match=message):
        mapped(images, an_object(), height=99)


def test_mapper_does_not_modify_record(images: Path) -> None:
    masks = [[np.array([2.0, 2, 10, 2, 10, 10])], compressed(2, 2, 8, 8)]
    objects = [an_object(segmentation=mask) for mask in masks]
    record = {"file_name": str(images / "1.png"), "image_id": 5, "annotations": objects}
    before = copy.deepcopy(record)
    mapper = InstanceMapper(
        is_train=True, augmentations=[T.Resize((50, 50)), T.RandomFlip(prob=1.0)], **MAPPER
    )
    assert len(mapper(record)["instances"]) == 2
    np.testing.assert_equal(record, before)


def test_unexpected_mapper_error_names_image(images: Path) -> None:
    def fail(image):
        raise ValueError("two\nlines")

    mapper = InstanceMapper(is_train=False, augmentations=[], image_format="RGB")
    mapper.augmentations = fail
    message = r"1.png: cannot be used \(ValueError: two lines\).*\(image id 5\)"
    with pytest.raises(UserError, match=message):
        mapper({"file_name": str(images / "1.png"), "image_id": 5})
    with pytest.raises(UserError, match="KeyError"):
        mapper({"image_id": 5})


# Evaluation.


def evaluate(name: str, predict: Callable[[int], Instances]) -> dict:
    evaluator = COCOEvaluator(name, tasks=("bbox", "segm"), distributed=False)
    evaluator.reset()
    for record in DatasetCatalog.get(name):
        evaluator.process([{"image_id": record["image_id"]}], [{"instances": predict(record)}])
    return evaluator.evaluate()


def predicted(record: dict, objects: list[dict]) -> Instances:
    """Return objects of an image as predictions."""
    height, width = record["height"], record["width"]
    boxes = torch.tensor([item["bbox"] for item in objects], dtype=torch.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]  # XYWH to XYXY
    masks = torch.zeros(len(objects), height, width, dtype=torch.bool)
    for mask, item in zip(masks, objects):
        rle = item["segmentation"]
        if isinstance(rle, list):
            rle = mask_api.merge(mask_api.frPyObjects(rle, height, width))
        mask[:] = torch.from_numpy(mask_api.decode(rle))
    classes = torch.tensor([item["category_id"] for item in objects], dtype=torch.int64)
    instances = Instances((height, width), pred_boxes=Boxes(boxes), pred_masks=masks)
    instances.scores, instances.pred_classes = torch.full((len(objects),), 0.9), classes
    return instances


def perfect(record: dict) -> Instances:
    return predicted(record, [item for item in record["annotations"] if not item["iscrowd"]])


def nothing(record: dict) -> Instances:
    return predicted(record, [])


def folder_with(content: dict, folder: Path, images: Path) -> str:
    """Write and register a validation set."""
    shutil.copytree(images, folder / "images")
    (folder / "annotations").mkdir()
    (folder / "annotations" / "val.json").write_text(json.dumps(content))
    return register_folder(str(folder), "val")


@pytest.mark.parametrize("ids", ["unchanged", "from 0", "all the same", "large"])
@pytest.mark.parametrize("areas", [True, False])
def test_perfect_detector_has_ap_100_with_any_ids(
    tmp_path: Path, images: Path, ids: str, areas: bool
) -> None:
    content, factor = valid(), 2**49 if ids == "large" else 1
    for image in content["images"]:
        image["id"] *= factor
    for number, item in enumerate(content["annotations"]):
        changed_ids = {"from 0": number, "all the same": 0, "large": 2**52 + number}
        item["id"] = changed_ids.get(ids, item["id"])
        item["image_id"] *= factor
        if not areas:
            del item["area"], item["iscrowd"]
    results = evaluate(folder_with(content, tmp_path / "data", images), perfect)
    assert results["bbox"]["AP"] == results["segm"]["AP"] == pytest.approx(100)


def test_evaluation_drops_same_objects_as_training(tmp_path: Path, images: Path) -> None:
    folder = broken_folder(tmp_path / "data", images)
    shutil.copy(folder / "annotations" / "train.json", folder / "annotations" / "val.json")
    results = evaluate(register_folder(str(folder), "val"), perfect)
    assert results["bbox"]["AP"] == results["segm"]["AP"] == pytest.approx(100)


def test_undeclared_object_is_dropped_from_evaluation(tmp_path: Path, images: Path) -> None:
    content = valid()
    mask = [[1, 1, 6, 1, 6, 6]]
    undeclared = {"id": 99, "image_id": 1, "bbox": [1, 1, 5, 5], "segmentation": mask}
    content["annotations"].append(undeclared)
    results = evaluate(folder_with(content, tmp_path / "data", images), perfect)
    assert results["bbox"]["AP"] == results["segm"]["AP"] == pytest.approx(100)


def test_predicted_crowd_does_not_lower_ap_unlike_false_positive(
    tmp_path: Path, images: Path
) -> None:
    def all_and_crowds(record: dict) -> Instances:
        return predicted(record, record["annotations"])

    crowd = evaluate(folder_with(valid(), tmp_path / "crowd", images), all_and_crowds)
    assert crowd["segm"]["AP"] == pytest.approx(100)
    content = valid()
    box = content["annotations"].pop(3)["bbox"]

    def one_false_positive(record: dict) -> Instances:
        extra = {"bbox": box, "category_id": 0, "segmentation": compressed(*box)}
        extras = [extra] if record["image_id"] == 1 else []
        return predicted(record, [*extras, *record["annotations"]])

    results = evaluate(folder_with(content, tmp_path / "object", images), one_false_positive)
    assert results["segm"]["AP"] < 95


def test_ap_is_0_without_predictions_and_missing_without_objects(
    tmp_path: Path, images: Path, caplog
) -> None:
    results = evaluate(folder_with(valid(), tmp_path / "objects", images), nothing)
    assert results["bbox"]["AP"] == results["segm"]["AP"] == results["segm"]["AP50"] == 0.0

    def one_square(record: dict) -> Instances:
        box = [2, 2, 8, 8]
        square = {"bbox": box, "segmentation": compressed(*box), "category_id": 0}
        return predicted(record, [square])

    only_crowd, no_objects = valid(), valid()
    only_crowd["annotations"] = only_crowd["annotations"][3:4]
    no_objects["annotations"] = []
    for number, content in enumerate([only_crowd, no_objects]):
        for predict in (nothing, one_square):
            name = folder_with(content, tmp_path / f"{number}_{predict.__name__}", images)
            caplog.clear()
            results = evaluate(name, predict)
            assert results == {"bbox": {}, "segm": {}}
            assert "has no objects, so there is no AP" in caplog.text
            json.loads(json.dumps(results), parse_constant=pytest.fail)


def test_rules_do_not_change_official_metrics_of_real_annotations(real_data: Path) -> None:
    folder = real_data / "cocoeval"
    path = folder / "instances_val2014_100.json"
    for task in ("bbox", "segm"):
        predictions = str(folder / f"instances_val2014_fake{task}100_results.json")
        metrics = []
        with contextlib.redirect_stdout(io.StringIO()):
            for ground_truth in (COCO(str(path)), read(path, "").coco()):
                results = ground_truth.loadRes(predictions)
                evaluation = COCOeval(ground_truth, results, task)
                evaluation.params.imgIds = sorted(ground_truth.getImgIds())[:100]
                evaluation.evaluate()
                evaluation.accumulate()
                evaluation.summarize()
                metrics.append(evaluation.stats[:12].tolist())
        assert metrics[0] == metrics[1]


# Random damage.

FUZZED = 2000
VALUES = [
    None, True, False, 0, 1, -1, 2, 0.5, -0.0, NAN, INF, -INF, 1e308, -1e308, 2**31, 2**63,
    -(2**63), 10**30, 10**400, "", "x", "1", "\ud800", "\0", "../../x", [], {}, [[]], [None],
    [[[1]]], [1, 2, 3], [1, 2, 3, 4, 5, 6], [[1, 2, 3]], {"a": 1}, [0, FULL], [FULL, 0],
    "PPPPPPPP", "0" * 50, 1e5, 100, [0] * 6, [[0, 0, 1e7, 0, 0, 1e7]],
    {"size": [1, 1], "counts": [1]},
]  # fmt: skip


def damage_values(content: dict, chance: random.Random) -> dict:
    """Replace, change, remove, repeat or swap values anywhere in nested dicts and lists."""
    places = []

    def walk(node) -> None:
        for key in list(node) if isinstance(node, dict) else range(len(node)):
            places.append((node, key))
            if isinstance(node[key], (dict, list)):
                walk(node[key])

    walk(content)
    actions = ["replace", "replace", "replace", "letter", "letter", "remove", "repeat", "swap"]
    for _ in range(chance.choice([1, 1, 1, 2, 3, 8])):
        place, other = chance.choice(places), chance.choice(places)
        action = chance.choice(actions)
        # The place may have been removed by an earlier action.
        with contextlib.suppress(KeyError, IndexError, TypeError, ValueError, OverflowError):
            damage_value(*place, *other, action, chance)
    return content


def damage_value(node, key, other, other_key, action: str, chance: random.Random) -> None:
    if action == "replace":
        node[key] = copy.deepcopy(chance.choice(VALUES))
    elif action == "letter" and isinstance(node[key], str):
        letters = list(node[key])
        letters[chance.randrange(len(letters))] = chr(chance.randrange(48, 112))
        node[key] = "".join(letters)
    elif action == "letter" and isinstance(node[key], (int, float)):
        node[key] *= chance.choice([-1, 1.0001, 2, 1000])
    elif action == "remove":
        del node[key]
    elif action == "repeat" and isinstance(node, list):
        node.append(copy.deepcopy(node[key]))
    elif action == "swap":
        node[key] = copy.deepcopy(other[other_key])


def damage_bytes(content: bytes, chance: random.Random) -> bytes:
    """Cut, flip, insert, remove or repeat bytes."""
    data = bytearray(content)
    action = chance.choice(["cut", "flip", "insert", "remove", "repeat"])
    place = chance.randrange(len(data))
    length = chance.choice([1, 2, 10, 200])
    if action == "cut":
        del data[place:]
    elif action == "flip":
        for _ in range(length):
            data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    elif action == "insert":
        inserted = bytearray()
        for _ in range(length):
            inserted.append(chance.choice([chance.randrange(256), *b'0123456789-.eE"[]{},:\\']))
        data[place:place] = inserted
    elif action == "remove":
        del data[place : place + length]
    else:
        data[place:place] = data[place : place + length]
    return bytes(data)


def fuzzed(number: int) -> bytes:
    """Return the nth damaged file; bytes are damaged in every third one, values in the others."""
    chance = random.Random(number)
    if number % 3 == 0:
        content = VALID
        for _ in range(chance.choice([1, 1, 2, 5])):
            content = damage_bytes(content, chance) or b"{"
        return content
    return json.dumps(damage_values(valid(), chance)).encode()


@contextlib.contextmanager
def time_limit(seconds: float):
    """Raise TimeoutError if the block takes longer."""

    def stop(*_):
        raise TimeoutError(f"more than {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_2000_damaged_files_give_usable_records_or_user_error(
    tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(images, tmp_path / "images")
    (tmp_path / "annotations").mkdir()
    path = tmp_path / "annotations" / "train.json"
    path.with_name("val.json").write_text(json.dumps(valid()))
    mapper = InstanceMapper(is_train=True, augmentations=[], **MAPPER)
    monkeypatch.setattr(logging.getLogger("gpvit"), "disabled", True)
    outcomes = {"records": 0, "error": 0}
    for number in range(FUZZED):
        path.write_bytes(fuzzed(number))
        masks = number % 4 > 0
        mapper.use_instance_mask = mapper.recompute_boxes = masks
        with time_limit(10):
            try:
                name = register_folder(str(tmp_path), "train", masks=masks)
                records = DatasetCatalog.get(name)
            except UserError as error:
                assert "\n" not in str(error) and str(path) in str(error), number
                outcomes["error"] += 1
                continue
            outcomes["records"] += 1
            for record in records:
                map_damaged_record(mapper, record)
            if number % 10 == 1:
                evaluate_quietly(name, masks)
    assert min(outcomes.values()) > FUZZED / 4


def map_damaged_record(mapper: InstanceMapper, record: dict) -> None:
    """Map a record whose objects follow the rules, but not its image name and size."""
    try:
        instances = mapper(record)["instances"]
    except UserError as error:
        message = str(error)
        assert "cannot be read" in message or "in its annotations" in message, message
        return
    assert torch.isfinite(instances.gt_boxes.tensor).all()
    objects = [item for item in record["annotations"] if not item["iscrowd"]]
    assert len(instances) <= len(objects)


def evaluate_quietly(name: str, masks: bool) -> None:
    """Evaluate on the same file."""
    evaluator = COCOEvaluator(
        name, tasks=("bbox", "segm") if masks else ("bbox",), distributed=False
    )
    evaluator._logger = logging.getLogger("gpvit")
    evaluator.reset()
    with contextlib.redirect_stdout(io.StringIO()):
        for record in DatasetCatalog.get(name):
            predictions = perfect(record) if masks else nothing(record)
            evaluator.process([{"image_id": record["image_id"]}], [{"instances": predictions}])
        ap = evaluator.evaluate()["bbox"].get("AP")
    assert ap is None or 0 <= ap <= 100 + 1e-9


def test_check_data_is_a_command(tmp_path: Path, images: Path) -> None:
    folder = broken_folder(tmp_path / "data", images)
    tool = [sys.executable, "-m", "gpvit", "check-data", "--data"]
    good = subprocess.run([*tool, str(folder)], capture_output=True, text=True)
    assert good.returncode == 0 and "12 of 15 annotations used" in good.stdout and not good.stderr
    bad = subprocess.run([*tool, str(tmp_path / "nowhere")], capture_output=True, text=True)
    assert bad.returncode == 1 and bad.stderr == f"error: {tmp_path / 'nowhere'} does not exist\n"


# Input that would crash the process: pycocotools checks neither memory nor lengths.


def zigzag(points: int, side: int) -> list[float]:
    """Return a polygon that alternates between two opposite corners of an image."""
    return [0, 0, side, side] * (points // 2)


@pytest.mark.parametrize(
    "polygons",
    [
        [zigzag(80_000, 10_000)],
        [zigzag(1_000, 10_000)] * 300,  # each of which alone is accepted
        [[-9999, -9999, 19999, 19998] * 40_000],
    ],
)
def test_outline_too_long_for_memory_is_dropped_and_others_are_used(
    tmp_path: Path, polygons: list[list[float]]
) -> None:
    triangle = [[10, 10, 500, 10, 500, 500]]
    item = {"image_id": 1, "category_id": 1, "bbox": [10, 10, 490, 490]}
    objects = [
        item | {"id": 1, "segmentation": polygons},
        item | {"id": 2, "segmentation": triangle},
        item | {"id": 3, "segmentation": triangle + polygons},
    ]
    images = [{"id": 1, "file_name": "1.png", "height": 10_000, "width": 10_000}]
    content = {"images": images, "categories": [{"id": 1, "name": "a"}], "annotations": objects}
    (tmp_path / "a.json").write_text(json.dumps(content))

    def work() -> tuple[list[int], list[str]]:
        data = read(tmp_path / "a.json", tmp_path)
        masks = [len(item["segmentation"]) for item in data.objects[1]]
        return masks, [problem.detail for problem in grouped(data.problems)["polygon"]]

    masks, details = in_a_child(work)
    assert masks[-2] == 1 and len(details) == 2
    for detail in details:
        assert "an outline of more than 5000000 pixels" in detail


def test_outline_around_every_pixel_is_accepted() -> None:
    squares = []
    for y, x in itertools.product(range(0, 60, 2), repeat=2):
        squares.append([x, y, x + 1, y, x + 1, y + 1, x, y + 1])
    assert polygon_faults(squares, 60, 60) == [""] * 900
    comb = []
    for x in range(0, 100, 2):
        comb += [x, 0, x, 99, x + 1, 99, x + 1, 0]
    assert polygon_faults([comb], 100, 100) == [""]


@pytest.mark.parametrize(
    ("mask", "reason"),
    [
        ([zigzag(100_000, 32)], "an outline of more than 14000 pixels"),
        ([[1e9, 1e9, -1e9, 2e9, 0, 0]], "not finite or far outside"),
        ([["1", "1", "5", "5", "3", "4"]], "not a list of numbers"),
        ({"size": [24, 32], "counts": [100]}, "run lengths that do not fill"),
        ({"size": [24.0, 32.0], "counts": [700, 68]}, "which must be integers"),
        ("mask", "neither polygons nor RLE"),
    ],
)
def test_masks_of_registered_data_are_checked_before_training_and_evaluation(
    images: Path, tmp_path: Path, mask: object, reason: str
) -> None:
    """The rules are not applied to data that Detectron2 reads."""
    item = {"id": 10, "image_id": 1, "category_id": 3, "bbox": [1, 1, 9, 9], "area": 81}
    content = valid() | {"annotations": [item | {"iscrowd": 0, "segmentation": mask}]}
    path = tmp_path / "raw.json"
    path.write_text(json.dumps(content))

    def work() -> list[str]:
        MetadataCatalog.get("raw").set(json_file=str(path), thing_classes=["cross", "disc"])
        messages = []
        for use in (
            lambda: mapped(images, an_object(id=10, segmentation=mask)),
            lambda: COCOEvaluator("raw", ("segm",)),
        ):
            try:
                use()
            except UserError as error:
                messages.append(str(error))
        COCOEvaluator("raw", ("bbox",))  # does not check masks
        return messages

    messages = in_a_child(work)
    assert len(messages) == 2
    for message in messages:
        assert reason in message and "id 10" in message


def test_outline_too_long_after_augmentation_raises(images: Path) -> None:
    enlarge = T.ScaleTransform(HEIGHT, WIDTH, HEIGHT * 4000, WIDTH * 4000)
    enlarge.apply_image = lambda image: image
    annotation = an_object(segmentation=[zigzag(300, 24)])
    record = {"file_name": str(images / "1.png"), "image_id": 1, "annotations": [annotation]}

    def work() -> str:
        with pytest.raises(UserError) as raised:
            InstanceMapper(True, augmentations=[enlarge], **MAPPER)(record)
        return str(raised.value)

    assert "an outline of more than 10000000 pixels" in in_a_child(work)


UNUSUAL = [1e9, -1e9, 2**31, 2**63, 10**40, 1e308, 429496729.5, -429496729.5, True, None, "1"]
NUMBERS = st.one_of(st.integers(-40, 80), st.floats(width=32), st.sampled_from(UNUSUAL))
POLYGONS = st.one_of(
    st.lists(st.integers(-20, 60), min_size=6, max_size=12),
    st.lists(NUMBERS, max_size=9),
    st.builds(
        lambda points, times: points * times,
        st.lists(st.integers(-30, 60), min_size=2, max_size=4),
        st.integers(1, 20_000),
    ),
)
COUNTS = st.one_of(
    st.lists(st.one_of(st.integers(0, HEIGHT * WIDTH), NUMBERS), max_size=6),
    st.lists(st.integers(0, 800), min_size=1, max_size=3).map(
        lambda runs: [*runs, HEIGHT * WIDTH - sum(runs)]
    ),
    st.text(st.characters(min_codepoint=40, max_codepoint=120), max_size=12),
    st.text(max_size=4),
    st.just("o" * 100_000),
)
SIZES = st.one_of(
    st.just([HEIGHT, WIDTH]),
    st.just([float(HEIGHT), WIDTH]),
    st.lists(NUMBERS, max_size=3),
    st.just("24x32"),
)
JUNK = st.recursive(
    st.one_of(NUMBERS, st.text(max_size=3)), lambda inner: st.lists(inner, max_size=3), max_leaves=5
)
MASKS = st.one_of(st.lists(POLYGONS, max_size=4), st.builds(dict, size=SIZES, counts=COUNTS), JUNK)
SIDES = st.sampled_from([(HEIGHT, WIDTH)] * 6 + [(1, 1), (1, 10**8), (30_000, 3), (10**9, 10**9)])


@pytest.mark.parametrize("number", range(4))
def test_500_generated_masks_do_not_crash(tmp_path: Path, number: int) -> None:
    """Each mask is reported or can be decoded in limited memory."""
    path = tmp_path / "made_up.json"

    @seed(number)
    @settings(
        max_examples=125, database=None, deadline=None, suppress_health_check=list(HealthCheck)
    )
    @given(st.lists(MASKS, min_size=1, max_size=3), SIDES)
    def run(masks: list, sides: tuple[int, int]) -> None:
        item = {"image_id": 1, "category_id": 3, "bbox": [0, 0, 5, 5]}
        objects = [item | {"id": id, "segmentation": mask} for id, mask in enumerate(masks, 1)]
        height, width = sides
        image = {"id": 1, "file_name": "1.png", "height": height, "width": width}
        path.write_text(json.dumps(valid() | {"images": [image], "annotations": objects}))
        data = read(path, tmp_path)
        assert len(data.objects[1]) == len(masks) or data.problems
        ground_truth = data.coco()
        for annotation in ground_truth.anns.values():
            assert 0 <= ground_truth.annToMask(annotation).sum() <= height * width

    in_a_child(run)
