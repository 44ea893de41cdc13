"""A dataset's fingerprint depends on its content, not on its folders or how it is read."""

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
from gpvit.utils.fingerprint import dataset_fingerprint, fingerprint_like
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
    "box mode": lambda data: data[0]["annotations"][0].update(bbox_mode=0),
    "polygon": lambda data: data[0]["annotations"][0]["segmentation"][1].__setitem__(0, 1.5),
    "polygons": lambda data: data[0]["annotations"][0].update(
        segmentation=[[0, 0, 3, 0, 3, 3, 1, 1, 2, 2, 3, 1]]
    ),
    "run lengths": lambda data: data[0]["annotations"][1]["segmentation"].update(counts=b"0<"),
    "no mask": lambda data: data[0]["annotations"][1].pop("segmentation"),
    "object removed": lambda data: data[0]["annotations"].pop(),
    "object moved to another image": lambda data: data[1]["annotations"].append(
        data[0]["annotations"].pop()
    ),
    "image removed": lambda data: data.pop(),
    "order": lambda data: data.reverse(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_fingerprint_changes_with_the_content(change: str) -> None:
    changed = copy.deepcopy(records())
    CHANGES[change](changed)
    assert dataset_fingerprint(changed, CLASSES) != dataset_fingerprint(records(), CLASSES)


def test_fingerprint_depends_on_the_classes_and_their_order() -> None:
    fingerprints = set()
    for classes in (CLASSES, CLASSES[::-1], ["cat"], ["cat", "dogs"]):
        fingerprints.add(dataset_fingerprint(records(), classes))
    assert len(fingerprints) == 4


def test_fingerprint_ignores_folders_and_mask_storage() -> None:
    moved = records()
    moved[0] |= {"file_name": "elsewhere/a.png", "sem_seg_file_name": "a.png"}
    polygons, rle = moved[0]["annotations"]
    rle["segmentation"]["counts"] = rle["segmentation"]["counts"].decode()
    polygons["segmentation"] = list(map(np.float64, polygons["segmentation"]))
    polygons["bbox"] = (1, 2, 3, 4)
    assert dataset_fingerprint(moved, CLASSES) == dataset_fingerprint(records(), CLASSES)


@pytest.mark.parametrize(
    "invalid", [None, "text", ["1", 2], [[1, 2], [3]], [10**400], float("nan"), {"a": 1}]
)
def test_invalid_values_change_the_fingerprint_without_an_error(invalid: Any) -> None:
    data = records()
    data[0]["annotations"][0] |= {"bbox": invalid, "segmentation": invalid}
    data[0]["annotations"][1]["segmentation"] = {"size": invalid, "counts": invalid}
    assert dataset_fingerprint(data, CLASSES) != dataset_fingerprint(records(), CLASSES)


def test_like_uses_the_version_of_the_saved_fingerprint() -> None:
    saved = "9c1d3f6a0b8e2d47"  # of version 1
    version_1 = fingerprint_like(saved, records(), CLASSES)
    assert ":" not in version_1 and len(version_1) == len(saved)
    changed = records()
    changed[0]["annotations"][0]["iscrowd"] = 1  # which version 1 does not cover
    assert fingerprint_like(saved, changed, CLASSES) == version_1
    current = dataset_fingerprint(records(), CLASSES)
    assert (
        fingerprint_like(current, records(), CLASSES)
        == current
        != fingerprint_like(current, changed, CLASSES)
    )


@pytest.mark.parametrize("masks", [True, False])
def test_folder_name_and_file_of_a_dataset_give_the_same_fingerprint(
    synthetic_data: Path, tmp_path: Path, masks: bool
) -> None:
    content = json.loads((synthetic_data / "annotations" / "val.json").read_text())
    content["annotations"][0]["bbox"][0] = -0.3  # corrected when it is read
    content["annotations"][1]["segmentation"] = [[0, 0, 1, 1]]  # invalid, so the object is skipped
    (tmp_path / "annotations").mkdir()
    (tmp_path / "images").symlink_to(synthetic_data / "images")
    path = tmp_path / "annotations" / "val.json"
    path.write_text(json.dumps(content))
    name = f"fingerprint_{masks}"
    register_coco_instances(name, {}, str(path), str(tmp_path / "images"))
    MetadataCatalog.get(name)
    registered = gpvit.data.register_folder(str(tmp_path), "val", masks=masks)
    of_folder = evaluated_data(registered, masks=True)
    of_name = evaluated_data(name, masks=masks)
    assert of_folder["masks"] == of_name["masks"] == masks
    of_file = coco_fingerprint(annotations.read(path, tmp_path / "images", masks=masks))
    assert of_folder["fingerprint"] == of_name["fingerprint"] == of_file
    assert coco_fingerprint(annotations.read(path, "", masks=not masks)) != of_file


def test_fingerprint_uses_the_file_names_in_the_json_even_if_images_are_missing(
    synthetic_data: Path, tmp_path: Path
) -> None:
    content = json.loads((synthetic_data / "annotations" / "val.json").read_text())
    for image in content["images"]:
        image["file_name"] = f"D:\\images\\{image['file_name']}"
    path = tmp_path / "val.json"
    path.write_text(json.dumps(content))
    found = annotations.read(path, synthetic_data / "images")
    not_found = annotations.read(path, tmp_path)
    assert len(found.written) == len(found.images) and not not_found.written
    assert coco_fingerprint(found) == coco_fingerprint(not_found)


def test_dataset_without_a_coco_file_has_no_fingerprint() -> None:
    assert evaluated_data("of_another_kind", masks=True) == {"name": "of_another_kind"}


def test_hundred_thousand_objects_take_under_5_seconds() -> None:
    points = np.random.default_rng(0).uniform(0, 500, (1000, 40)).tolist()
    item = {"bbox": [1.5, 2.5, 3.5, 4.5], "bbox_mode": 1, "iscrowd": 0, "category_id": 0}
    objects = [item | {"segmentation": [polygon]} for polygon in points]
    image = {"height": 8, "width": 9}
    data = []
    for i in range(10_000):
        first = 7 * i % 990
        record = {
            "file_name": f"{i}.png",
            "image_id": i,
            "annotations": objects[first : first + 10],
        }
        data.append(image | record)
    start = time.process_time()
    dataset_fingerprint(data, CLASSES)
    assert time.process_time() - start < 5
