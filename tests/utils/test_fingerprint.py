"""A dataset's fingerprint is the same wherever the data is and however it is read, and changes with what is in it."""

import copy
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gpvit.data
import numpy as np
import pytest
from detectron2.data import MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from gpvit.data.datasets import coco as annotations
from gpvit.evaluation.coco_evaluation import coco_fingerprint, evaluated_data
from gpvit.utils.fingerprint import dataset_fingerprint, like
from pycocotools import mask as mask_api

CLASSES = ["cat", "dog"]


def records() -> list[dict[str, Any]]:
    rle = mask_api.encode(np.asfortranarray(np.eye(8, 9, dtype=np.uint8)))
    box = {"bbox": [1.0, 2.0, 3.0, 4.0], "bbox_mode": 1, "iscrowd": 0, "category_id": 0}
    return [
        {
            "file_name": "/here/a.png",
            "image_id": 1,
            "height": 8,
            "width": 9,
            "sem_seg_file_name": "/here/labels/a.png",
            "annotations": [
                box | {"segmentation": [[0, 0, 3, 0, 3, 3], [1, 1, 2, 2, 3, 1]]},
                box | {"segmentation": rle},
            ],
        },
        {"file_name": "/here/b.png", "image_id": 2, "height": 8, "width": 9, "annotations": []},
    ]


CHANGES: dict[str, Callable[[list[dict[str, Any]]], Any]] = {
    "image": lambda data: data[0].update(file_name="/here/c.png"),
    "image id": lambda data: data[0].update(image_id=7),
    "size": lambda data: data[0].update(width=10),
    "label file": lambda data: data[0].update(sem_seg_file_name="/here/labels/b.png"),
    "class": lambda data: data[0]["annotations"][0].update(category_id=1),
    "crowd": lambda data: data[0]["annotations"][0].update(iscrowd=1),
    "box": lambda data: data[0]["annotations"][0].update(bbox=[1.0, 2.0, 3.0, 4.0001]),
    "meaning of the box": lambda data: data[0]["annotations"][0].update(bbox_mode=0),
    "polygon": lambda data: data[0]["annotations"][0]["segmentation"][1].__setitem__(0, 1.5),
    "polygons": lambda data: data[0]["annotations"][0].update(
        segmentation=[[0, 0, 3, 0, 3, 3, 1, 1, 2, 2, 3, 1]]
    ),
    "run lengths": lambda data: data[0]["annotations"][1]["segmentation"].update(counts=b"0<"),
    "no mask": lambda data: data[0]["annotations"][1].pop("segmentation"),
    "an object less": lambda data: data[0]["annotations"].pop(),
    "an object of another image": lambda data: data[1]["annotations"].append(
        data[0]["annotations"].pop()
    ),
    "an image less": lambda data: data.pop(),
    "order": lambda data: data.reverse(),
}


@pytest.mark.parametrize("what", CHANGES)
def test_every_change_of_the_content_changes_it(what: str) -> None:
    changed = copy.deepcopy(records())
    CHANGES[what](changed)
    assert dataset_fingerprint(changed, CLASSES) != dataset_fingerprint(records(), CLASSES)


def test_it_depends_on_the_classes_and_their_order() -> None:
    prints = {
        dataset_fingerprint(records(), classes)
        for classes in (CLASSES, CLASSES[::-1], ["cat"], ["cat", "dogs"])
    }
    assert len(prints) == 4


def test_it_does_not_depend_on_where_the_files_are_or_how_a_mask_is_kept() -> None:
    moved = records()
    moved[0] |= {"file_name": "elsewhere/a.png", "sem_seg_file_name": "a.png"}
    polygons, rle = moved[0]["annotations"]
    rle["segmentation"]["counts"] = rle["segmentation"]["counts"].decode()
    polygons["segmentation"] = [
        np.array(polygon, np.float64) for polygon in polygons["segmentation"]
    ]
    polygons["bbox"] = (1, 2, 3, 4)
    assert dataset_fingerprint(moved, CLASSES) == dataset_fingerprint(records(), CLASSES)


@pytest.mark.parametrize(
    "strange", [None, "text", ["1", 2], [[1, 2], [3]], [10**400], float("nan"), {"a": 1}]
)
def test_nothing_in_the_data_is_an_error(strange: Any) -> None:
    data = records()
    data[0]["annotations"][0] |= {"bbox": strange, "segmentation": strange}
    data[0]["annotations"][1]["segmentation"] = {"size": strange, "counts": strange}
    assert dataset_fingerprint(data, CLASSES) != dataset_fingerprint(records(), CLASSES)


def test_an_older_one_is_compared_by_its_rule() -> None:
    older = "9c1d3f6a0b8e2d47"
    assert ":" not in like(older, records(), CLASSES) and len(
        like(older, records(), CLASSES)
    ) == len(older)
    changed = records()
    changed[0]["annotations"][0]["iscrowd"] = 1  # which the older rule did not look at
    assert like(older, changed, CLASSES) == like(older, records(), CLASSES)
    present = dataset_fingerprint(records(), CLASSES)
    assert like(present, records(), CLASSES) == present != like(present, changed, CLASSES)


@pytest.mark.parametrize("masks", [True, False])
def test_data_has_the_same_one_by_its_folder_by_its_name_and_by_its_file(
    synthetic_data: Path, tmp_path: Path, masks: bool
) -> None:
    content = json.loads((synthetic_data / "annotations" / "val.json").read_text())
    content["annotations"][0]["bbox"][0] = -0.3  # which is put right when it is read
    content["annotations"][1]["segmentation"] = [[0, 0, 1, 1]]  # which leaves it out
    (tmp_path / "annotations").mkdir()
    (tmp_path / "images").symlink_to(synthetic_data / "images")
    path = tmp_path / "annotations" / "val.json"
    path.write_text(json.dumps(content))
    name = f"fingerprint_{masks}"
    register_coco_instances(name, {}, str(path), str(tmp_path / "images"))
    MetadataCatalog.get(name)
    of_folder = evaluated_data(
        gpvit.data.register_folder(str(tmp_path), "val", masks=masks), masks=True
    )
    of_name = evaluated_data(name, masks=masks)
    assert of_folder["masks"] == of_name["masks"] == masks
    of_file = coco_fingerprint(annotations.read(path, tmp_path / "images", masks=masks))
    assert of_folder["fingerprint"] == of_name["fingerprint"] == of_file
    assert coco_fingerprint(annotations.read(path, "", masks=not masks)) != of_file


def test_the_names_in_the_file_count_whether_images_are_found_under_others_or_not_at_all(
    synthetic_data: Path, tmp_path: Path
) -> None:
    content = json.loads((synthetic_data / "annotations" / "val.json").read_text())
    for image in content["images"]:
        image["file_name"] = f"D:\\images\\{image['file_name']}"
    path = tmp_path / "val.json"
    path.write_text(json.dumps(content))
    found, not_found = (
        annotations.read(path, folder) for folder in (synthetic_data / "images", tmp_path)
    )
    assert len(found.written) == len(found.images) and not not_found.written
    assert coco_fingerprint(found) == coco_fingerprint(not_found)


def test_data_that_is_not_in_coco_format_has_none() -> None:
    assert evaluated_data("of_another_kind", masks=True) == {"name": "of_another_kind"}


def test_it_takes_seconds_for_a_hundred_thousand_objects() -> None:
    points = np.random.default_rng(0).uniform(0, 500, (1000, 40)).tolist()
    item = {"bbox": [1.5, 2.5, 3.5, 4.5], "bbox_mode": 1, "iscrowd": 0, "category_id": 0}
    objects = [
        [item | {"segmentation": [points[(7 * i + j) % 1000]]} for j in range(10)]
        for i in range(100)
    ]
    image = {"height": 8, "width": 9}
    data = [
        image | {"file_name": f"{i}.png", "image_id": i, "annotations": objects[i % 100]}
        for i in range(10_000)
    ]
    start = time.process_time()
    dataset_fingerprint(data, CLASSES)
    assert time.process_time() - start < 5
