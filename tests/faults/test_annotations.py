"""Whatever is wrong in a file of annotations has a rule, is told with its ids, and never is a traceback."""

import contextlib
import copy
import gzip
import io
import json
import logging
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from children import in_a_child
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data import transforms as T
from detectron2.data.datasets import load_coco_json, register_coco_instances
from detectron2.structures import Boxes, BoxMode, Instances
from faster_coco_eval import COCOeval_faster
from gpvit.cli import check_data
from gpvit.data import InstanceMapper, register_folder
from gpvit.data.datasets import coco as annotations
from gpvit.data.datasets.coco import read
from gpvit.data.datasets.coco_rules import RULES, grouped
from gpvit.data.masks import polygon_faults
from gpvit.evaluation import COCOEvaluator
from gpvit.utils.errors import UserError
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as mask_api
from pycocotools.coco import COCO

HEIGHT, WIDTH = 24, 32
MAPPER = dict(
    image_format="RGB", use_instance_mask=True, instance_mask_format="bitmask", recompute_boxes=True
)
NAN, INF = float("nan"), float("inf")


def pixels(x: int, y: int, w: int, h: int) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), np.uint8, order="F")
    mask[y : y + h, x : x + w] = 1
    return mask


def compressed(x: int, y: int, w: int, h: int) -> dict:
    rle = mask_api.encode(pixels(x, y, w, h))
    return {"size": [HEIGHT, WIDTH], "counts": rle["counts"].decode()}


def run_lengths(x: int, y: int, w: int, h: int) -> dict:
    """Uncompressed, for a box that ends above the lowest row."""
    inside = [h, HEIGHT - h] * w
    return {
        "size": [HEIGHT, WIDTH],
        "counts": [x * HEIGHT + y, *inside[:-1], (WIDTH - x - w) * HEIGHT + HEIGHT - h - y],
    }


def valid() -> dict:
    """Two images with six objects: polygons, both kinds of RLE, and a crowd. Annotation ids are 10 to 15."""
    objects = [
        (1, 3, [2, 2, 8, 8], [[2, 2, 10, 2, 10, 10, 2, 10]], 0),
        (1, 5, [12, 4, 6, 9], compressed(12, 4, 6, 9), 0),
        (1, 5, [20.5, 4, 8, 8], [[20.5, 4, 28.5, 4, 28.5, 12], [21, 6, 25, 6, 25, 11]], 0),
        (1, 3, [4, 14, 20, 8], run_lengths(4, 14, 20, 8), 1),
        (2, 3, [0, 0, 32, 24], [[0, 0, 32, 0, 32, 24, 0, 24]], 0),
        (2, 5, [5, 5, 10, 10], run_lengths(5, 5, 10, 10), 0),
    ]
    return {
        "info": {},
        "categories": [{"id": 5, "name": "disc"}, {"id": 3, "name": "cross"}],
        "images": [{"id": id, "file_name": f"{id}.png", "width": WIDTH, "height": HEIGHT} for id in (2, 1, 9)],
        "annotations": [
            dict(
                id=10 + i, image_id=image, category_id=category, bbox=box, segmentation=mask, iscrowd=crowd,
                area=float(box[2] * box[3]),
            )
            for i, (image, category, box, mask, crowd) in enumerate(objects)
        ],
    }  # fmt: skip


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The images of :func:`valid`."""
    folder = tmp_path_factory.mktemp("images")
    for id in (1, 2, 9):
        Image.effect_noise((WIDTH, HEIGHT), 50).convert("RGB").save(folder / f"{id}.png")
    return folder


@pytest.fixture
def reader(tmp_path: Path, images: Path) -> Callable[..., annotations.CocoFile]:
    """Writes a file and reads it."""

    def write_and_read(content: dict | bytes, **options) -> annotations.CocoFile:
        path = tmp_path / "annotations.json"
        path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
        return read(path, images, **options)

    return write_and_read


def usual(data: annotations.CocoFile) -> dict[str, list]:
    """Kinds of problems and their ids, without what :func:`valid` has itself: a crowd and an image without objects."""
    kinds = {
        kind: [p.annotation_id or p.image_id for p in problems]
        for kind, problems in grouped(data.problems).items()
    }
    return {kind: ids for kind, ids in kinds.items() if kind not in ("crowd", "empty image")}


def used(data: annotations.CocoFile) -> dict[int, dict]:
    return {item["id"]: item for objects in data.objects.values() for item in objects}


def test_a_file_without_faults_has_none_and_gives_what_detectron2_gives(reader) -> None:
    data = reader(valid())
    assert usual(data) == {} and len(used(data)) == 6
    MetadataCatalog.pop("coco_valid", None)
    expected = load_coco_json(data.path, data.image_root, "coco_valid")
    records = data.records()
    for item in (item for record in records for item in record["annotations"]):
        item.pop("id")
    assert records == expected
    assert (
        list(data.categories.values())
        == MetadataCatalog.get("coco_valid").thing_classes
        == ["cross", "disc"]
    )


@pytest.mark.parametrize(
    ("name", "noted"),
    [("nuclei", {"many objects": [24]}), ("fruits_nuts", {}), ("coco_val_ccby", {})],
)
def test_real_annotations_have_no_faults_and_give_what_detectron2_gives(
    real_data: Path, name: str, noted: dict[str, list[int]]
) -> None:
    folder = real_data / name
    data = read(folder / "annotations" / "val.json", folder / "images", open_images=True)
    assert usual(data) == noted
    MetadataCatalog.pop(f"coco_{name}", None)
    expected = load_coco_json(data.path, data.image_root, f"coco_{name}")
    records = data.records()
    for item in (item for record in records for item in record["annotations"]):
        item.pop("id")
    assert records == expected


def change(**values) -> Callable[[dict], None]:
    """Puts values into the first annotation, 10."""
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
    "image twice": [
        lambda c: c["images"].append(
            {"id": 1, "file_name": "2.png", "width": WIDTH, "height": HEIGHT}
        )
    ],
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


@pytest.mark.parametrize(
    ("kind", "damage"), [(kind, damage) for kind, damages in STOPS.items() for damage in damages]
)
def test_what_concerns_file_image_or_class_stops_with_one_line(reader, kind: str, damage) -> None:
    content = valid()
    damage(content)
    data = reader(content, train=True)
    assert kind in usual(data) and RULES[kind].action == "stop"
    with pytest.raises(UserError) as error:
        data.records()
    message = str(error.value)
    assert (
        data.path in message
        and RULES[kind].what in message
        and RULES[kind].then in message
        and "\n" not in message
    )


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "JSONDecodeError"),
        (b"\0" * 100, "JSONDecodeError"),
        (json.dumps(valid()).encode()[:-20], "JSONDecodeError"),
        (json.dumps(valid()).encode()[: len(json.dumps(valid())) // 2], "JSONDecodeError"),
        (b"[]", "not a JSON object"),
        (b"7", "not a JSON object"),
        (json.dumps(valid()).encode().replace(b"cross", b"cr\xf6ss"), "UnicodeDecodeError"),
        (json.dumps(valid()).encode("utf-16")[:-1], "UnicodeDecodeError"),
        (gzip.compress(json.dumps(valid()).encode()), "compressed by gzip"),
        (b'{"images": []}\n{"images": []}', "Extra data: line 2"),
        (b"[" * 100_000, "RecursionError"),
        (b'{"images": {}}', '"images" is not a list'),
        (b'{"images": [[]]}', "images[0] is not an object"),
        (b'{"annotations": [null]}', "annotations[0] is not an object"),
        (b'{"images": ' + b"9" * 5000 + b"}", "ValueError"),
    ],
)
def test_what_is_not_coco_json_stops_with_one_line(reader, content: bytes, reason: str) -> None:
    with pytest.raises(UserError, match="not in COCO format") as error:
        reader(content).records()
    assert reason in str(error.value) and "\n" not in str(error.value)


# Faults of one object that leave it out.
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
        polygon(
            *[2, 2, 10, 2, 10, 10, 2, 10] * 2
        ),  # twice around, which is inside an even number of times
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
        rle("P" * 30),  # says that it goes on where it ends
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
        polygon(1, 1, 1e9, 1, 5, 5),  # pycocotools would ask for gigabytes
        polygon(1, 1, -1e300, 1, 5, 5),
        polygon(1, 1, 10**400, 1, 5, 5),
        change(segmentation=[1, 1, 5, 1, 5, 5]),
        change(segmentation=[[[1, 1], [5, 1], [5, 5]]]),
    ],
}
REASONS = {  # that name what a program did
    "a flat list of numbers, not a list of polygons": [1, 1, 5, 1, 5, 5],
    "points in lists of their own, not x, y, x, y": [[[1, 1], [5, 1], [5, 5]]],
    "no pixel": [[10.1, 10.1, 10.3, 10.1, 10.3, 10.3]],
}


@pytest.mark.parametrize("reason", REASONS)
def test_the_reason_why_a_mask_cannot_be_used_is_named(reader, reason: str) -> None:
    content = valid()
    content["annotations"][0]["segmentation"] = REASONS[reason]
    assert [
        problem.detail for problem in reader(content).problems if problem.annotation_id == 10
    ] == [reason]


def test_if_all_are_left_out_the_reason_is_named(reader) -> None:
    content = valid()
    for item in content["annotations"]:
        item["category_id"] = str(item["category_id"])
    with pytest.raises(
        UserError, match=r"no object to train on \(6 annotations are of a category that is not"
    ):
        reader(content, train=True).records()
    assert [record["annotations"] for record in reader(content).records()] == [[], [], []]


@pytest.mark.parametrize(
    ("kind", "damage"), [(kind, damage) for kind, damages in DROPS.items() for damage in damages]
)
def test_an_object_without_usable_mask_or_image_is_left_out(reader, kind: str, damage) -> None:
    content = valid()
    damage(content)
    data = reader(content)
    assert usual(data) == {kind: [10]}
    assert [item["id"] for record in data.records() for item in record["annotations"]] == [
        11,
        12,
        13,
        14,
        15,
    ]
    assert len(data.coco().anns) == 5


def test_a_polygon_that_cannot_be_used_does_not_cost_the_others(reader) -> None:
    content = valid()
    good = content["annotations"][2]["segmentation"]
    content["annotations"][2]["segmentation"] = [
        [1, 1, 5, 5],
        *good,
        [1, 1, NAN, 1, 5, 5],
        [1, 1, 4, 1, 4, 4, 9],
    ]
    data = reader(content)
    assert usual(data) == {"polygon": [12]} and used(data)[12]["segmentation"] == good


BOXES = {
    "box": [
        [NAN, 2, 8, 8], [2, 2, INF, 8], [2, 2, 8], [2, 2, 8, 8, 1], [], None, "2 2 8 8", ["2", "2", "8", "8"], 7, {},
        [2, 2, None, 8], [[2, 2, 8, 8]], [True, 2, "8", 8], [2, 2, 10**400, 8],
    ],
    "empty box": [[2, 2, 0, 8], [2, 2, 8, 0], [2, 2, -8, 8], [10, 10, -8, -8], [2, 2, 8, -1e-9]],
    "box outside": [
        [40, 2, 8, 8], [2, 24, 8, 8], [-8, 2, 8, 8], [2, -9, 8, 8], [1e308, 2, 1e308, 8], [5, 5, 1e-300, 4],
    ],
}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "box"), [(kind, box) for kind, boxes in BOXES.items() for box in boxes]
)
@pytest.mark.parametrize("masks", [True, False])
def test_a_box_that_is_none_is_made_from_the_mask_or_costs_the_object(
    reader, kind: str, box, masks: bool
) -> None:
    content = valid()
    content["annotations"][0]["bbox"] = content["annotations"][1]["bbox"] = box
    data = reader(content, masks=masks)
    assert usual(data) == {kind: [10, 11]}
    if masks:  # of a polygon and of an RLE
        assert used(data)[10]["bbox"] == [2, 2, 8, 8] and used(data)[11]["bbox"] == [12, 4, 6, 9]
    else:
        assert set(used(data)) == {12, 13, 14, 15}


@pytest.mark.parametrize(
    ("box", "clipped", "counted"),
    [
        ([-4, 3, 10, 5], [0, 3, 6, 5], True),
        ([20, 3, 30, 30], [20, 3, 12, 21], True),
        ([-1e308, -5, INF, 9], None, False),
        ([-1e300, -1e300, 2e300, 2e300], [0, 0, 32, 24], True),
        ([20, 3, 12.5, 5], [20, 3, 12, 5], False),  # rounding
        ([0, 0, 32, 24], [0, 0, 32, 24], False),
        ([0.1, 0.2, 0.3, 0.4], [0.1, 0.2, 0.3, 0.4], False),  # to the last bit
    ],
)
def test_a_box_partly_outside_is_clipped_and_counted_beyond_a_pixel(
    reader, box, clipped, counted: bool
) -> None:
    content = valid()
    change(bbox=box)(content)
    data = reader(content, masks=False)
    assert ("box clipped" in usual(data)) == counted
    assert used(data).get(10, {}).get("bbox") == clipped


# What each object alone does not show, or its box does not.

WIDE, HIGH = 96, 72


def shapes(images: int = 3) -> dict:
    """Images of 96 x 72 pixels with two objects each, a rectangle and a triangle; ids count from 1."""
    content: dict = {
        "categories": [{"id": 3, "name": "box"}, {"id": 5, "name": "tri"}],
        "images": [],
        "annotations": [],
    }
    for id in range(1, images + 1):
        content["images"].append(
            {"id": id, "file_name": f"{id}.png", "width": WIDE, "height": HIGH}
        )
        x, y = 5 + 3 * (id % 4), 4 + 2 * (id % 4)
        for category, (w, h), tip in ((3, (24, 18), [24, 18, 0, 18]), (5, (26, 24), [13, 24])):
            points = [[a + x, b + y] for a, b in zip([0, w, *tip[0::2]], [0, 0, *tip[1::2]])]
            content["annotations"].append(
                {
                    "id": len(content["annotations"]) + 1, "image_id": id, "category_id": category, "iscrowd": 0,
                    "bbox": [x, y, w, h], "area": w * h / (1 if len(tip) > 2 else 2),
                    "segmentation": [[value for point in points for value in point]],
                }
            )  # fmt: skip
            x, y = x + 38, y + 30
    return content


def shares(numbers: list[float]) -> list[float]:
    return [number / (HIGH if place % 2 else WIDE) for place, number in enumerate(numbers)]


def share_box(item: dict) -> None:
    item["bbox"] = shares(item["bbox"])


def share_mask(item: dict) -> None:
    item["segmentation"] = [shares(polygon) for polygon in item["segmentation"]]


def share_both(item: dict) -> None:
    share_box(item)
    share_mask(item)


def to_corners(item: dict) -> None:
    x, y, w, h = item["bbox"]
    item["bbox"] = [x, y, x + w, y + h]


def box_only(item: dict) -> None:
    del item["segmentation"]


def with_rle(item: dict) -> None:
    rle = mask_api.merge(mask_api.frPyObjects(item["segmentation"], HIGH, WIDE))
    item["segmentation"] = {"size": [HIGH, WIDE], "counts": rle["counts"].decode()}


def changed(*changes: Callable[[dict], None], count: int | None = None, images: int = 3) -> dict:
    """:func:`shapes` with changes to all or the first annotations."""
    content = shapes(images)
    for item in content["annotations"][:count]:
        for change in changes:
            change(item)
    return content


@pytest.mark.parametrize("masks", [True, False])
@pytest.mark.parametrize(
    "changes",
    [[share_both], [share_box, box_only], [to_corners, share_box, box_only]],
    ids=lambda c: c[-1].__name__,
)
@pytest.mark.parametrize("count", [None, 2])
def test_normalized_coordinates_stop_even_if_only_some_objects_have_them(
    reader, masks, changes, count
) -> None:
    if masks and box_only in changes:
        pytest.skip("without masks only")
    data = reader(changed(*changes, count=count), masks=masks, train=True)
    assert usual(data)["normalized"] == list(
        range(1, (count or 6) + 1)
    ) and "no objects" not in usual(data)
    with pytest.raises(
        UserError,
        match=r"normalized\?, first id 1 \(bbox \[.*\] in 96 x 72\): multiply x and width by",
    ):
        data.records()


def test_of_normalized_masks_it_is_the_masks_that_are_shown(reader) -> None:
    data = reader(changed(share_mask), train=True)
    [detail, *_] = [problem.detail for problem in data.problems if problem.kind == "normalized"]
    assert detail.startswith("segmentation [[0.") and "bbox" not in detail


@pytest.mark.parametrize("place", ["images", "categories", "annotations"])
def test_an_id_that_is_too_large_is_called_so(reader, place: str) -> None:
    content = valid()
    content[place][0]["id"] = 2**60
    assert f"{2**60}, which is not below 2**53" in "".join(
        problem.detail for problem in reader(content).problems
    )


def test_normalized_masks_stop_where_they_are_needed_and_boxes_are_fixed_by_masks(reader) -> None:
    assert usual(reader(changed(share_mask)))["normalized"] == [1, 2, 3, 4, 5, 6]
    assert usual(reader(changed(share_mask), masks=False)) == {}
    assert usual(reader(changed(share_box), masks=False))["normalized"] == [1, 2, 3, 4, 5, 6]
    data = reader(changed(share_box))
    assert usual(data) == {"box differs": [1, 2, 3, 4, 5, 6]}
    assert [used(data)[id]["bbox"] for id in range(1, 7)] == [
        item["bbox"] for item in shapes()["annotations"]
    ]


def test_one_object_or_a_few_of_many_in_the_corner_stop_nothing(reader) -> None:
    def corner(item: dict) -> None:
        item |= {
            "bbox": [0.2, 0.3, 0.7, 0.6],
            "segmentation": [[0.2, 0.3, 0.9, 0.3, 0.9, 0.9, 0.2, 0.9]],
            "area": 0.4,
        }

    for content in (changed(corner, count=1), changed(corner, count=2, images=150)):
        data = reader(content)
        assert set(usual(data)) == {"first pixel"} and len(used(data)) == len(
            content["annotations"]
        )
    assert "normalized" in usual(reader(changed(corner, count=2, images=90)))
    pixel = {"bbox": [0, 0, 1, 1], "segmentation": [[0, 0, 1, 0, 1, 1, 0, 1]], "area": 1}
    data = reader(changed(lambda item: item.update(pixel), count=4))  # pixels, in whole numbers
    assert data.records() and usual(data)["first pixel"] == [1, 2, 3, 4]
    assert "normalized" in usual(
        reader(changed(lambda item: item.update(pixel)))
    )  # or whole images, as nothing is else


def test_images_of_one_pixel_have_no_normalized_objects(reader) -> None:
    content = changed(lambda item: item.update(bbox=[0, 0, 0.9, 0.9], area=0.5), box_only)
    for image in content["images"]:
        image |= {"width": 1, "height": 1}
    data = reader(content, masks=False)
    assert usual(data) == {} and len(used(data)) == 6


def test_of_one_object_with_a_normalized_mask_alone_the_mask_is_wrong(reader) -> None:
    square = [0, 0, 0.9, 0, 0.9, 0.9, 0, 0.9]
    for mask, reason in ((shares(square), "no pixel"), (square, "box is elsewhere")):
        data = reader(changed(lambda item, mask=mask: item.update(segmentation=[mask]), count=1))
        assert usual(data) == {"first pixel": [1], "mask": [1]} and data.records()
        assert reason in grouped(data.problems)["mask"][0].detail


WRONG = {
    "corners": to_corners,
    "shares": share_box,
    "the whole image": lambda item: item.update(bbox=[0, 0, WIDE, HIGH]),
    "center": lambda item: item.update(
        bbox=[item["bbox"][0] + 12, item["bbox"][1] + 9, *item["bbox"][2:]]
    ),
    "y before x": lambda item: item.update(bbox=[item["bbox"][i] for i in (1, 0, 3, 2)]),
    "half the size": lambda item: item.update(bbox=[value / 2 for value in item["bbox"]]),
}


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("mask", [None, with_rle])
@pytest.mark.parametrize("crowd", [0, 1])
def test_a_box_that_contradicts_its_mask_is_made_from_it(
    reader, wrong: str, mask, crowd: int
) -> None:
    changes = [WRONG[wrong], lambda item: item.update(iscrowd=crowd), *([mask] if mask else [])]
    content = changed(*changes, count=5)
    data = reader(content)
    ids = usual(data).pop("box differs")
    assert set(ids) >= {1, 2, 4} and "box clipped" not in usual(data)
    extents = {item["id"]: item["bbox"] for item in shapes()["annotations"]}
    for id in [*ids, 6]:
        assert np.allclose(
            used(data)[id]["bbox"], extents[id], atol=1.01
        )  # an RLE has whole pixels
    assert used(data)[6]["bbox"] == extents[6]
    assert all(used(data)[id]["area"] <= 624 for id in ids)


@pytest.mark.parametrize("mask", [None, with_rle])
def test_a_box_that_is_loose_or_rounded_does_not_contradict_its_mask(reader, mask) -> None:
    def loosen(item: dict) -> None:
        x, y, w, h = item["bbox"]
        item["bbox"] = [x - 2.5, y - 2.5, w + 5, h + 4]

    def tiny(item: dict) -> None:
        item |= {
            "bbox": [40, 40, 1, 1],
            "segmentation": [[41.5, 41.5, 42.5, 41.5, 42.5, 42.5, 41.5, 42.5]],
            "area": 1,
        }

    for change in (loosen, tiny):
        content = changed(change, *([mask] if mask else []), images=1)
        content["annotations"].pop()
        data = reader(content)
        assert usual(data) == {} and used(data)[1]["bbox"] == content["annotations"][0]["bbox"]


def test_corners_near_the_image_s_own_are_recognised_to_the_pixel(reader) -> None:
    content = shapes(1)
    content["annotations"] = content["annotations"][:1]
    [item] = content["annotations"]
    item |= {
        "bbox": [4, 3, 74, 63],
        "segmentation": [[4, 3, 74, 3, 74, 63, 4, 63]],
        "area": 4200,
    }  # IoU 0.9
    data = reader(content)
    assert usual(data) == {"box differs": [1]} and used(data)[1]["bbox"] == [4, 3, 70, 60]


@pytest.mark.parametrize("wrong", ["corners", "the whole image"])
def test_without_masks_boxes_that_contradict_them_are_told_and_stay(reader, wrong: str) -> None:
    content = changed(WRONG[wrong], count=2)
    data = reader(content, masks=False)
    assert usual(data)["box alone differs"] == [1, 2]
    assert used(data)[1]["bbox"] == content["annotations"][0]["bbox"]


def test_boxes_without_masks_that_would_fit_as_corners_are_told(reader) -> None:
    data = reader(changed(to_corners, box_only), masks=False)
    assert usual(data)["corners"] == usual(data)["box clipped"] != []
    content = changed(to_corners, box_only)
    content["annotations"][0]["bbox"] = [40, 30, 20, 20]  # which as corners would be none
    assert "corners" not in usual(reader(content, masks=False))


@pytest.mark.parametrize("masks", [True, False])
def test_of_the_same_object_twice_the_first_is_used(reader, masks: bool) -> None:
    content = shapes()
    first, second = content["annotations"][:2]
    content["annotations"] += [
        {**first, "id": 20},
        {**first, "id": 21, "bbox": [float(value) for value in first["bbox"]]},
        {**first, "id": 22, "category_id": 5},
        {**first, "id": 23, "image_id": 2},
        {**first, "id": 24, "bbox": [*first["bbox"][:3], 18.5]},
        {**first, "id": 25, "iscrowd": 1},
        {**first, "id": 1},
        {**second, "id": 26},
        {**second, "id": 27, "segmentation": [[*second["segmentation"][0], 51, 65]]},
    ]
    data = reader(content, masks=masks)
    assert usual(data)["object twice"] == [20, 21, 1, 26] + ([] if masks else [27])
    assert [problem.detail for problem in grouped(data.problems)["object twice"][:3]] == [
        "as 1"
    ] * 3
    assert {22, 23, 24, 25} <= set(used(data)) and len(data.coco().anns) == 6 + 4 + masks


def test_many_objects_with_one_box_are_compared_in_a_moment(reader) -> None:
    content = shapes(1)
    first = content["annotations"][0]
    points = first["segmentation"][0]
    content["annotations"] = [
        {**first, "id": id, "segmentation": [[*points, points[0] + id / 2000, points[1]]]}
        for id in range(1, 3001)
    ]
    with at_most(10):
        assert len(used(reader(content))) == 3000


def test_an_image_listed_again_under_another_id_is_told(reader, images: Path) -> None:
    content = valid()
    content["images"] += [
        {"id": 20, "file_name": "./1.png", "width": WIDTH, "height": HEIGHT},
        {"id": 21, "file_name": str(images / "2.png"), "width": WIDTH, "height": HEIGHT},
    ]
    data = reader(content)
    assert usual(data) == {"file twice": [20, 21]} and len(data.records()) == 5
    assert grouped(data.problems)["file twice"][0].detail == "./1.png, as 1"
    data = read(data.path, "")
    assert usual(data) == {"file twice": [20]}


@pytest.mark.parametrize("area", [0.05, 1.0, 5000])
def test_an_area_that_does_not_fit_the_box_is_recomputed(reader, area: float) -> None:
    data = reader(changed(lambda item: item.update(area=area), count=1))
    assert usual(data) == {"area": [1]} and used(data)[1]["area"] == 24 * 18


@pytest.mark.parametrize(
    "encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-be"]
)
def test_json_may_be_in_every_encoding_that_json_has(
    tmp_path: Path, images: Path, encoding: str, capsys
) -> None:
    content = valid()
    content["categories"][0]["name"] = "Müller €"
    folder_with(valid(), tmp_path / "data", images)
    path = tmp_path / "data" / "annotations" / "val.json"
    path.write_bytes(json.dumps(content, ensure_ascii=False).encode(encoding))
    data = read(path, images)
    assert usual(data) == {} and data.categories[5] == "Müller €"
    assert evaluate(register_folder(str(tmp_path / "data"), "val"), perfect)["segm"][
        "AP"
    ] == pytest.approx(100)
    assert run_check(["--data", str(tmp_path / "data")], capsys)[0] == 0
    register_coco_instances(f"plain_{encoding}", {}, str(path), str(images))
    assert len(COCOEvaluator(f"plain_{encoding}", ("bbox",))._coco_api.anns) == 6


def test_without_masks_a_number_too_large_for_a_float_is_passed_over(reader) -> None:
    content = valid()
    content["annotations"][0]["segmentation"] = [[10**400, 2, 10**400, 2, 10**400, 10]]
    data = reader(content, masks=False)
    assert usual(data) == {} and len(used(data)) == 6


def test_without_masks_nobody_looks_at_them(reader) -> None:
    content = valid()
    for fault, item in zip(["x", None, [[1]], {"size": 1}, 5, []], content["annotations"]):
        item["segmentation"] = fault
    data = reader(content, masks=False)
    assert usual(data) == {} and len(used(data)) == 6
    assert not any(
        "segmentation" in item for record in data.records() for item in record["annotations"]
    )


@pytest.mark.parametrize(
    "values",
    [{"ignore": 1}, {"iscrowd": "yes"}, {"iscrowd": 2}, {"iscrowd": [0]}, {"iscrowd": NAN}],
)
def test_what_is_to_be_ignored_is_a_crowd(reader, values: dict) -> None:
    content = valid()
    change(**values)(content)
    data = reader(content)
    assert usual(data) == {"ignored": [10]} and used(data)[10]["iscrowd"] == 1


@pytest.mark.parametrize("value", [0, False, None, 0.0])
def test_a_missing_or_false_iscrowd_is_no_crowd(reader, value) -> None:
    content = valid()
    change(iscrowd=value)(content)
    assert usual(reader(content)) == {} and used(reader(content))[10]["iscrowd"] == 0
    remove("iscrowd")(content)
    assert usual(reader(content)) == {} and used(reader(content))[10]["iscrowd"] == 0


@pytest.mark.parametrize("area", ["missing", None, 0, -5, NAN, INF, "64", 10**6, [64]])
def test_an_area_that_is_none_is_made_from_mask_or_box(reader, area) -> None:
    content = valid()
    for item in content["annotations"][:3]:
        item["area"] = area
        if area == "missing":
            del item["area"]
    data = reader(content)
    assert usual(data) == {"area": [10, 11, 12]}
    expected = [
        64,
        54,
        mask_api.area(
            mask_api.merge(
                mask_api.frPyObjects(content["annotations"][2]["segmentation"], HEIGHT, WIDTH)
            )
        ),
    ]
    assert [used(data)[id]["area"] for id in (10, 11, 12)] == expected
    assert used(reader(content, masks=False))[12]["area"] == 64


def test_annotation_ids_twice_classes_of_one_name_and_images_without_objects_are_noted_and_used(
    reader,
) -> None:
    content = valid()
    content["annotations"][4]["id"] = 10
    content["categories"][0]["name"] = "cross"
    data = reader(content)
    assert usual(data) == {"annotation twice": [10], "same name": [None]}
    assert [p.image_id for p in grouped(data.problems)["empty image"]] == [9]
    assert [item["id"] for record in data.records() for item in record["annotations"]] == [
        10,
        11,
        12,
        13,
        10,
        15,
    ]
    assert sorted(data.coco().anns) == [1, 2, 3, 4, 5, 6]


def test_whole_numbers_may_be_written_with_a_point(reader) -> None:
    content = valid()
    for entry in [*content["annotations"], *content["images"], *content["categories"]]:
        entry |= {key: float(value) for key, value in entry.items() if isinstance(value, int)}
    assert usual(reader(content)) == {} and reader(content).records() == reader(valid()).records()


def broken_folder(folder: Path, images: Path) -> Path:
    """A data set with one fault of nearly every kind."""
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


MENDED = {
    "no such image": [26], "mask": [25], "polygon": [24], "box": [20], "empty box": [21], "box outside": [22],
    "box clipped": [23], "ignored": [27], "crowd": [13, 27], "area": [20], "annotation twice": [20], "empty image": [9],
}  # fmt: skip


def test_a_folder_trains_by_the_rules_and_the_log_has_one_line_for_each(
    tmp_path: Path, images: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = broken_folder(tmp_path / "data", images)
    name = register_folder(str(folder), "train")
    with caplog.at_level(logging.INFO, "gpvit"):
        records = DatasetCatalog.get(name)
    lines = [
        entry.getMessage() for entry in caplog.records if entry.name == "gpvit.data.datasets.coco"
    ]
    assert lines[0].endswith("train.json: 3 images, 12 of 15 annotations used, 2 classes")
    assert len(lines) == 1 + len(MENDED)
    for line, (kind, ids) in zip(lines[1:], MENDED.items()):
        assert f": {len(ids)} {RULES[kind].what}, first id {ids[0]}" in line and line.endswith(
            RULES[kind].then
        )
    mapper = InstanceMapper(is_train=True, augmentations=[], **MAPPER)
    objects = {record["image_id"]: len(mapper(record)["instances"]) for record in records}
    assert objects == {1: 8, 2: 2, 9: 0}  # no crowds
    metadata = MetadataCatalog.get(name)
    assert (metadata.evaluator_type, metadata.json_file) == (
        "coco",
        str(folder / "annotations" / "train.json"),
    )
    assert metadata.thing_dataset_id_to_contiguous_id == {
        3: 0,
        5: 1,
    } and metadata.image_root == str(folder / "images")


def run_check(arguments: list[str], capsys) -> tuple[int, str]:
    code = check_data.main(arguments)
    return code, capsys.readouterr().out


def test_the_checker_tells_all_at_once_with_ids_and_fails_only_where_training_stops(
    tmp_path: Path, images: Path, capsys
) -> None:
    folder = broken_folder(tmp_path / "data", images)
    code, text = run_check(["--data", str(folder), "--json", str(tmp_path / "all.json")], capsys)
    assert code == 0
    for kind, ids in MENDED.items():
        assert (
            f": {len(ids)} {RULES[kind].what}\n    {'image' if kind == 'empty image' else 'annotation'} {ids[0]}"
            in text
        )
    rows = [
        row
        for row in json.loads((tmp_path / "all.json").read_text())
        if row["file"].endswith("train.json")
    ]
    for kind, ids in MENDED.items():
        assert [
            row["annotation_id"] or row["image_id"] for row in rows if row["kind"] == kind
        ] == ids

    content = json.loads((folder / "annotations" / "train.json").read_text())
    content["annotations"][0]["category_id"] = 99
    content["images"] += [
        {"id": 50, "file_name": "missing.png", "width": 9, "height": 9},
        {"id": 51, "file_name": "cut.png", "width": 9, "height": 9},
        {"id": 52, "file_name": "1.png", "width": HEIGHT, "height": WIDTH},
    ]
    (folder / "annotations" / "train.json").write_text(json.dumps(content))
    (folder / "images" / "cut.png").write_bytes((images / "1.png").read_bytes()[:200])
    code, text = run_check(["--data", str(folder)], capsys)
    assert code == 1
    assert (
        "dropped: 1 annotations are of a category that is not declared\n    annotation 10 (category_id 99)"
        in text
    )
    assert "stops training: 2 images cannot be read" in text
    assert (
        "missing.png: cannot be read: it does not exist" in text
        and "cut.png: cannot be read: it is damaged" in text
    )
    assert (
        f"image 52 (1.png is {WIDTH} x {HEIGHT}, not {HEIGHT} x {WIDTH}; is it turned by EXIF?)"
        in text
    )
    assert "boxes are not four finite numbers" in text
    _, text = run_check(["--data", str(folder), "--annotations-only"], capsys)
    assert "cannot be read" not in text


def test_the_checker_takes_a_file_and_tells_of_classes_that_differ(
    tmp_path: Path, images: Path, capsys
) -> None:
    folder = broken_folder(tmp_path / "data", images)
    val = folder / "annotations" / "val.json"
    code, text = run_check(["--data", str(val), "--images", str(images)], capsys)
    assert code == 0 and "3 images, 6 of 6 annotations used, 2 classes" in text
    (tmp_path / "alone").mkdir()
    with pytest.raises(UserError, match="--images DIR"):
        check_data.main(["--data", shutil.copy(val, tmp_path / "alone")])
    val.write_text(
        json.dumps(valid() | {"categories": [{"id": 3, "name": "a"}, {"id": 5, "name": "b"}]})
    )
    code, text = run_check(["--data", str(folder)], capsys)
    assert code == 1 and "stops training: train.json and val.json declare different classes" in text
    val.write_text('{"images": [')
    code, text = run_check(["--data", str(folder)], capsys)
    assert code == 1 and "stops training: not in COCO format\n    (JSONDecodeError" in text
    assert "boxes are not four finite numbers" in text  # of the other file
    val.unlink()
    code, text = run_check(["--data", str(folder)], capsys)
    assert code == 0 and "set apart to validate" in text


def test_the_checker_prints_the_rules_and_every_kind_of_problem_has_a_test(capsys) -> None:
    code, text = run_check(["--rules"], capsys)
    assert code == 0 and all(f"| {rule.what} | " in text for rule in RULES.values())
    tested = {
        *STOPS,
        *DROPS,
        *BOXES,
        *MENDED,
        "format",
        "same name",
        "classes differ",
        "unreadable",
        "size differs",
    }
    tested |= {
        "normalized",
        "first pixel",
        "box differs",
        "box alone differs",
        "corners",
        "object twice",
        "file twice",
    }
    tested |= {"group", "image name", "both splits"}  # in test_layouts.py
    tested.add("many objects")  # in test_evaluation.py
    tested |= {
        "label file",
        "line",
        "class",
        "shape",
        "named twice",
        "named for two",
    }  # in test_yolo.py and test_labelme.py
    assert tested == set(RULES)


# The mapper, for records that do not come through the rules, as Detectron2's of COCO.


def mapped(images: Path, *objects: dict, height: int = HEIGHT) -> dict:
    record = {
        "file_name": str(images / "1.png"),
        "image_id": 5,
        "height": height,
        "width": WIDTH,
        "annotations": objects,
    }
    return InstanceMapper(is_train=True, augmentations=[], **MAPPER)(record)


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
def test_the_mapper_names_path_image_and_annotation_of_what_it_cannot_use(
    images: Path, values: dict
) -> None:
    with pytest.raises(UserError) as error:
        mapped(images, an_object(id=3), an_object(**values))
    message = str(error.value)
    assert (
        message.startswith(f"{images / '1.png'}: annotation id 7 cannot be used (")
        and "(image id 5)" in message
    )
    assert "\n" not in message
    assert (
        len(mapped(images, an_object(id=3), an_object(**values, iscrowd=1))["instances"]) == 1
    )  # nobody looks at crowds


def test_the_mapper_names_both_sizes_of_an_image_that_has_another(images: Path) -> None:
    with pytest.raises(
        UserError,
        match=f"is {WIDTH} x {HEIGHT} pixels, and {WIDTH} x 99 by its annotations.*image id 5",
    ):
        mapped(images, an_object(), height=99)


def test_the_mapper_leaves_its_record_as_it_is(images: Path) -> None:
    masks = [[np.array([2.0, 2, 10, 2, 10, 10])], compressed(2, 2, 8, 8)]
    objects = [an_object(segmentation=mask) for mask in masks]
    record = {"file_name": str(images / "1.png"), "image_id": 5, "annotations": objects}
    before = copy.deepcopy(record)
    mapper = InstanceMapper(
        is_train=True, augmentations=[T.Resize((50, 50)), T.RandomFlip(prob=1.0)], **MAPPER
    )
    assert len(mapper(record)["instances"]) == 2
    np.testing.assert_equal(record, before)


def test_whatever_else_goes_wrong_in_the_mapper_names_the_image(images: Path) -> None:
    def fail(image):
        raise ValueError("two\nlines")

    mapper = InstanceMapper(is_train=False, augmentations=[], image_format="RGB")
    mapper.augmentations = fail
    with pytest.raises(
        UserError, match=r"1.png: cannot be used \(ValueError: two lines\).*\(image id 5\)"
    ):
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


def found(record: dict, objects: list[dict]) -> Instances:
    """Predictions that are an image's objects."""
    height, width = record["height"], record["width"]
    boxes = torch.tensor([item["bbox"] for item in objects], dtype=torch.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    masks = torch.zeros(len(objects), height, width, dtype=torch.bool)
    for mask, item in zip(masks, objects):
        value = item["segmentation"]
        value = (
            mask_api.merge(mask_api.frPyObjects(value, height, width))
            if isinstance(value, list)
            else value
        )
        mask[:] = torch.from_numpy(mask_api.decode(value))
    return Instances(
        (height, width), pred_boxes=Boxes(boxes), scores=torch.full((len(objects),), 0.9), pred_masks=masks,
        pred_classes=torch.tensor([item["category_id"] for item in objects], dtype=torch.int64),
    )  # fmt: skip


def perfect(record: dict) -> Instances:
    return found(record, [item for item in record["annotations"] if not item["iscrowd"]])


def nothing(record: dict) -> Instances:
    return found(record, [])


def folder_with(content: dict, folder: Path, images: Path) -> str:
    """Registers a validation set."""
    shutil.copytree(images, folder / "images")
    (folder / "annotations").mkdir()
    (folder / "annotations" / "val.json").write_text(json.dumps(content))
    return register_folder(str(folder), "val")


@pytest.mark.parametrize("ids", ["as they are", "from 0", "all the same", "large"])
@pytest.mark.parametrize("areas", [True, False])
def test_a_perfect_detector_has_ap_100_whatever_the_ids_are(
    tmp_path: Path, images: Path, ids: str, areas: bool
) -> None:
    content, factor = valid(), 2**49 if ids == "large" else 1
    for image in content["images"]:
        image["id"] *= factor
    for number, item in enumerate(content["annotations"]):
        item["id"] = {"from 0": number, "all the same": 0, "large": 2**52 + number}.get(
            ids, item["id"]
        )
        item["image_id"] *= factor
        if not areas:
            del item["area"], item["iscrowd"]
    results = evaluate(folder_with(content, tmp_path / "data", images), perfect)
    assert results["bbox"]["AP"] == results["segm"]["AP"] == pytest.approx(100)


def test_evaluation_leaves_out_what_training_leaves_out(tmp_path: Path, images: Path) -> None:
    broken_folder(tmp_path / "data", images)
    shutil.copy(
        tmp_path / "data" / "annotations" / "train.json",
        tmp_path / "data" / "annotations" / "val.json",
    )
    results = evaluate(register_folder(str(tmp_path / "data"), "val"), perfect)
    assert results["bbox"]["AP"] == results["segm"]["AP"] == pytest.approx(100)


def test_an_undeclared_object_is_left_out_of_evaluation(tmp_path: Path, images: Path) -> None:
    content = valid()
    content["annotations"].append(
        {"id": 99, "image_id": 1, "bbox": [1, 1, 5, 5], "segmentation": [[1, 1, 6, 1, 6, 6]]}
    )
    results = evaluate(folder_with(content, tmp_path / "data", images), perfect)
    assert results["bbox"]["AP"] == results["segm"]["AP"] == pytest.approx(100)


def test_a_crowd_costs_nothing_in_evaluation_and_an_object_would(
    tmp_path: Path, images: Path
) -> None:
    def all_and_crowds(record: dict) -> Instances:
        return found(record, record["annotations"])

    crowd = evaluate(folder_with(valid(), tmp_path / "crowd", images), all_and_crowds)
    assert crowd["segm"]["AP"] == pytest.approx(100)
    content = valid()
    del content["annotations"][3]

    def one_too_many(record: dict) -> Instances:
        objects = valid()["annotations"][3:4] if record["image_id"] == 1 else []
        extra = [
            item | {"category_id": 0, "segmentation": compressed(4, 14, 20, 8)} for item in objects
        ]
        return found(record, [*extra, *record["annotations"]])

    assert (
        evaluate(folder_with(content, tmp_path / "object", images), one_too_many)["segm"]["AP"] < 95
    )


def test_no_predictions_are_ap_0_and_no_objects_are_no_ap(
    tmp_path: Path, images: Path, caplog
) -> None:
    results = evaluate(folder_with(valid(), tmp_path / "objects", images), nothing)
    assert results["bbox"]["AP"] == results["segm"]["AP"] == results["segm"]["AP50"] == 0.0

    crowds = valid() | {"annotations": [valid()["annotations"][3]]}
    for number, content in enumerate([crowds, valid() | {"annotations": []}]):
        for predict in (nothing, lambda record: found(record, valid_objects(record))):
            name = folder_with(content, tmp_path / f"{number}{predict.__name__[0]}", images)
            caplog.clear()
            results = evaluate(name, predict)
            assert results == {"bbox": {}, "segm": {}}
            assert "has no object to find, so there is no AP" in caplog.text
            json.loads(json.dumps(results), parse_constant=pytest.fail)


def valid_objects(record: dict) -> list[dict]:
    return [{"bbox": [2, 2, 8, 8], "segmentation": compressed(2, 2, 8, 8), "category_id": 0}]


def test_the_rules_leave_the_official_figures_of_real_annotations_as_they_are(
    real_data: Path,
) -> None:
    folder = real_data / "cocoeval"
    path = folder / "instances_val2014_100.json"
    for task in ("bbox", "segm"):
        figures = []
        with contextlib.redirect_stdout(io.StringIO()):
            for truth in (COCO(str(path)), read(path, "").coco()):
                results = truth.loadRes(
                    str(folder / f"instances_val2014_fake{task}100_results.json")
                )
                evaluation = COCOeval_faster(truth, results, task)
                evaluation.params.imgIds = sorted(truth.getImgIds())[:100]
                evaluation.evaluate()
                evaluation.accumulate()
                evaluation.summarize()
                figures.append(evaluation.stats[:12].tolist())
        assert figures[0] == figures[1]


# Damage at random.

FUZZED = 2000
VALUES = [
    None, True, False, 0, 1, -1, 2, 0.5, -0.0, NAN, INF, -INF, 1e308, -1e308, 2**31, 2**63, -(2**63), 10**30, 10**400,
    "", "x", "1", "\ud800", "\0", "../../x", [], {}, [[]], [None], [[[1]]], [1, 2, 3], [1, 2, 3, 4, 5, 6], [[1, 2, 3]],
    {"a": 1}, [0, FULL], [FULL, 0], "PPPPPPPP", "0" * 50, 1e5, 100, [0] * 6, [[0, 0, 1e7, 0, 0, 1e7]],
    {"size": [1, 1], "counts": [1]},
]  # fmt: skip


def damage_values(content: dict, chance: random.Random) -> dict:
    """Changes values anywhere in a tree: replaced, removed, doubled, swapped with another one."""
    places = []

    def walk(node) -> None:
        for key in list(node) if isinstance(node, dict) else range(len(node)):
            places.append((node, key))
            if isinstance(node[key], (dict, list)):
                walk(node[key])

    walk(content)
    for _ in range(chance.choice([1, 1, 1, 2, 3, 8])):
        node, key = chance.choice(places)
        other, other_key = chance.choice(places)
        action = chance.choice(
            ["replace", "replace", "replace", "letter", "letter", "remove", "double", "swap"]
        )
        with contextlib.suppress(
            KeyError, IndexError, TypeError, ValueError, OverflowError
        ):  # the place may be gone by now
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
            elif action == "double" and isinstance(node, list):
                node.append(copy.deepcopy(node[key]))
            elif action == "swap":
                node[key] = copy.deepcopy(other[other_key])
    return content


def damage_bytes(content: bytes, chance: random.Random) -> bytes:
    """Cuts, flips, inserts, removes or repeats bytes."""
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
        data[place:place] = bytes(
            chance.choice([chance.randrange(256), *b'0123456789-.eE"[]{},:\\'])
            for _ in range(length)
        )
    elif action == "remove":
        del data[place : place + length]
    else:
        data[place:place] = data[place : place + length]
    return bytes(data)


def fuzzed(number: int) -> bytes:
    """The nth damaged file; every third time bytes are damaged, else values."""
    chance = random.Random(number)
    if number % 3 == 0:
        content = json.dumps(valid()).encode()
        for _ in range(chance.choice([1, 1, 2, 5])):
            content = damage_bytes(content, chance) or b"{"
        return content
    return json.dumps(damage_values(valid(), chance)).encode()


@contextlib.contextmanager
def at_most(seconds: float):
    def stop(*_):
        raise TimeoutError(f"more than {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_2000_damaged_files_give_records_that_can_be_used_or_one_line(
    tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(images, tmp_path / "images")
    (tmp_path / "annotations").mkdir()
    path = tmp_path / "annotations" / "train.json"
    path.with_name("val.json").write_text(json.dumps(valid()))
    mapper = InstanceMapper(is_train=True, augmentations=[], **MAPPER)
    monkeypatch.setattr(logging.getLogger("gpvit"), "disabled", True)
    outcomes = {"records": 0, "error": 0, "mapper": 0}
    for number in range(FUZZED):
        path.write_bytes(fuzzed(number))
        masks = number % 4 > 0
        mapper.use_instance_mask = mapper.recompute_boxes = masks
        with at_most(10):
            try:
                name = register_folder(str(tmp_path), "train", masks=masks)
                records = DatasetCatalog.get(name)
            except UserError as error:
                assert "\n" not in str(error) and str(path) in str(error), number
                outcomes["error"] += 1
                continue
            outcomes["records"] += 1
            for record in records:
                try:
                    instances = mapper(record)["instances"]
                except (
                    UserError
                ) as error:  # of the image's name or size only: the objects are fixed
                    assert "cannot be read" in str(error) or "by its annotations" in str(error), (
                        number,
                        str(error),
                    )
                    outcomes["mapper"] += 1
                else:
                    assert torch.isfinite(instances.gt_boxes.tensor).all()
                    assert len(instances) <= sum(
                        not item["iscrowd"] for item in record["annotations"]
                    )
            if number % 10 == 1:
                evaluate_quietly(name, masks)
    assert (
        sum(outcomes.values()) >= FUZZED
        and outcomes["records"] > FUZZED / 4
        and outcomes["error"] > FUZZED / 4
    )


def evaluate_quietly(name: str, masks: bool) -> None:
    """The evaluation takes the same file."""
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


def test_the_checker_is_a_command(tmp_path: Path, images: Path) -> None:
    folder = broken_folder(tmp_path / "data", images)
    tool = [sys.executable, "-m", "gpvit", "check-data", "--data"]
    good = subprocess.run([*tool, str(folder)], capture_output=True, text=True)
    assert good.returncode == 0 and "12 of 15 annotations used" in good.stdout and not good.stderr
    bad = subprocess.run([*tool, str(tmp_path / "nowhere")], capture_output=True, text=True)
    assert bad.returncode == 1 and bad.stderr == f"error: {tmp_path / 'nowhere'} does not exist\n"


# What would end the process: pycocotools checks neither memory nor lengths.


def zigzag(points: int, side: int) -> list[float]:
    """A polygon that goes to and fro between two corners of an image."""
    return [0, 0, side, side] * (points // 2)


@pytest.mark.parametrize(
    "polygons",
    [
        [zigzag(80_000, 10_000)],
        [zigzag(1_000, 10_000)] * 300,  # each alone would do
        [[-9999, -9999, 19999, 19998] * 40_000],
    ],
)
def test_an_outline_too_long_for_memory_is_left_out_and_the_others_are_used(
    tmp_path: Path, polygons: list[list[float]]
) -> None:
    square = [[10, 10, 500, 10, 500, 500]]
    objects = [
        {
            "id": id,
            "image_id": 1,
            "category_id": 1,
            "bbox": [10, 10, 490, 490],
            "segmentation": mask,
        }
        for id, mask in ((1, polygons), (2, square), (3, square + polygons))
    ]
    images = [{"id": 1, "file_name": "1.png", "height": 10_000, "width": 10_000}]
    content = {"images": images, "categories": [{"id": 1, "name": "a"}], "annotations": objects}
    (tmp_path / "a.json").write_text(json.dumps(content))

    def work() -> tuple[list[int], list[str]]:
        data = read(tmp_path / "a.json", tmp_path)
        masks = [len(item["segmentation"]) for item in data.objects[1]]
        return masks, [problem.detail for problem in data.problems if problem.kind == "polygon"]

    masks, details = in_a_child(work)
    assert masks[-2] == 1 and len(details) == 2
    assert all("an outline of more than 5000000 pixels" in detail for detail in details)


def test_an_outline_around_every_pixel_is_not_too_long() -> None:
    rows = [
        [x, y, x + 1, y, x + 1, y + 1, x, y + 1] for y in range(0, 60, 2) for x in range(0, 60, 2)
    ]
    assert polygon_faults(rows, 60, 60) == [""] * 900
    comb = [value for x in range(0, 100, 2) for value in (x, 0, x, 99, x + 1, 99, x + 1, 0)]
    assert polygon_faults([comb], 100, 100) == [""]


@pytest.mark.parametrize(
    ("mask", "reason"),
    [
        ([zigzag(100_000, 32)], "an outline of more than 14000 pixels"),
        ([[1e9, 1e9, -1e9, 2e9, 0, 0]], "not finite or far outside"),
        ([["1", "1", "5", "5", "3", "4"]], "no list of numbers"),
        ({"size": [24, 32], "counts": [100]}, "run lengths that do not fill"),
        ({"size": [24.0, 32.0], "counts": [700, 68]}, "which are no integers"),
        ("mask", "neither polygons nor RLE"),
    ],
)
def test_masks_of_registered_data_are_looked_at_before_training_and_evaluation(
    images: Path, tmp_path: Path, mask: object, reason: str
) -> None:
    """Data that Detectron2 reads, without the rules."""
    item = {
        "id": 10,
        "image_id": 1,
        "category_id": 3,
        "bbox": [1, 1, 9, 9],
        "area": 81,
        "iscrowd": 0,
        "segmentation": mask,
    }
    content = valid() | {"annotations": [item]}
    (tmp_path / "raw.json").write_text(json.dumps(content))

    def work() -> list[str]:
        MetadataCatalog.get("raw").set(
            json_file=str(tmp_path / "raw.json"), thing_classes=["cross", "disc"]
        )
        messages = []
        for use in (
            lambda: mapped(images, an_object(id=10, segmentation=mask)),
            lambda: COCOEvaluator("raw", ("segm",)),
        ):
            try:
                use()
            except UserError as error:
                messages.append(str(error))
        COCOEvaluator("raw", ("bbox",))  # nobody looks at masks
        return messages

    messages = in_a_child(work)
    assert len(messages) == 2 and all(
        reason in message and "id 10" in message for message in messages
    )


def test_an_outline_that_augmentation_makes_too_long_is_one_line(images: Path) -> None:
    enlarge = T.ScaleTransform(HEIGHT, WIDTH, HEIGHT * 4000, WIDTH * 4000)
    enlarge.apply_image = lambda image: image
    record = {
        "file_name": str(images / "1.png"),
        "image_id": 1,
        "annotations": [an_object(segmentation=[zigzag(300, 24)])],
    }

    def work() -> str:
        with pytest.raises(UserError) as raised:
            InstanceMapper(True, augmentations=[enlarge], **MAPPER)(record)
        return str(raised.value)

    assert "an outline of more than 10000000 pixels" in in_a_child(work)


NUMBERS = st.one_of(
    st.integers(-40, 80),
    st.floats(width=32),
    st.sampled_from(
        [1e9, -1e9, 2**31, 2**63, 10**40, 1e308, 429496729.5, -429496729.5, True, None, "1"]
    ),
)
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
def test_500_made_up_masks_end_no_process(tmp_path: Path, number: int) -> None:
    """A problem that is listed, or an object whose mask every user of it can fill; no signal, and memory for it."""
    path = tmp_path / "made_up.json"

    @seed(number)
    @settings(
        max_examples=125, database=None, deadline=None, suppress_health_check=list(HealthCheck)
    )
    @given(st.lists(MASKS, min_size=1, max_size=3), SIDES)
    def run(masks: list, sides: tuple[int, int]) -> None:
        objects = [
            {"id": id, "image_id": 1, "category_id": 3, "bbox": [0, 0, 5, 5], "segmentation": mask}
            for id, mask in enumerate(masks, start=1)
        ]
        image = {"id": 1, "file_name": "1.png", "height": sides[0], "width": sides[1]}
        path.write_text(json.dumps(valid() | {"images": [image], "annotations": objects}))
        data = read(path, tmp_path)
        assert len(data.objects[1]) == len(masks) or data.problems
        truth = data.coco()
        for item in truth.anns.values():
            assert 0 <= truth.annToMask(item).sum() <= sides[0] * sides[1]

    in_a_child(run)
