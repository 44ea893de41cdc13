"""Data sets and the mapper."""

import json
import shutil
from pathlib import Path

import gpvit.data
import numpy as np
import pytest
import torch
from conftest import REPOSITORY
from detectron2.config import instantiate
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from gpvit.engine import load_config
from gpvit.errors import UserError
from pycocotools import mask as mask_api

MAPPER = dict(is_train=True, image_format="RGB", use_instance_mask=True, instance_mask_format="bitmask")


def test_a_folder_brings_its_classes_in_the_order_of_their_ids(synthetic_data: Path) -> None:
    name = gpvit.data.register_folder(str(synthetic_data), "train")
    records = DatasetCatalog.get(name)
    assert len(records) == 8
    assert MetadataCatalog.get(name).thing_classes == ["disc", "triangle", "cross"]
    ids = MetadataCatalog.get(name).thing_dataset_id_to_contiguous_id
    assert sorted(ids) == sorted(ids, key=ids.get) and sorted(ids.values()) == [0, 1, 2]
    assert max(ids) > 4  # there are gaps


def test_a_folder_may_be_registered_again_and_is_read_again(synthetic_data: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(synthetic_data, tmp_path / "data")
    gpvit.data.register_folder(str(folder), "val")
    json_file = folder / "annotations" / "val.json"
    content = json.loads(json_file.read_text())
    content["images"] = content["images"][:1]
    json_file.write_text(json.dumps(content))
    assert len(DatasetCatalog.get(gpvit.data.register_folder(str(folder), "val"))) == 1


def test_a_folder_sets_data_and_number_of_classes_of_every_detector(synthetic_data: Path) -> None:
    for name in ("mask_rcnn_gpvit_l1", "cascade_mask_rcnn_gpvit_l1"):
        cfg = load_config(str(REPOSITORY / "configs" / f"{name}.py"))
        gpvit.data.use_folder(cfg, str(synthetic_data), train=True)
        heads = cfg.model.roi_heads
        predictors = heads.box_predictors if "box_predictors" in heads else [heads.box_predictor]
        assert [predictor.num_classes for predictor in predictors] == [3] * len(predictors)
        assert heads.mask_head.num_classes == 3
        assert cfg.dataloader.evaluator.dataset_name == cfg.dataloader.test.dataset.names
        assert cfg.dataloader.test.dataset.names != cfg.dataloader.train.dataset.names


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: shutil.rmtree(d / "images"), "images is missing; needed are annotations/train.json"),
        (lambda d: (d / "annotations" / "train.json").unlink(), "train.json is missing"),
        (lambda d: (d / "annotations" / "train.json").write_text('{"images": ['), "not in COCO format"),
        (lambda d: (d / "annotations" / "train.json").write_text("[]"), "not in COCO format"),
        (lambda d: (d / "annotations" / "train.json").write_text('{"categories": [], "annotations": []}'), "no categories"),
        (
            lambda d: (d / "annotations" / "train.json").write_text(
                '{"categories": [{"id": 1, "name": "cat"}], "annotations": []}'
            ),
            "declare different classes",
        ),
        (
            lambda d: (d / "annotations" / "train.json").write_text(
                '{"categories": [{"id": 1, "name": "cat"}], "annotations": [{"id": 7, "bbox": [0, 0, 1, 1]}]}'
            ),
            "1 annotations have no segmentation, first id 7",
        ),
    ],
)
def test_a_folder_that_is_no_data_set_is_one_line(synthetic_data: Path, tmp_path: Path, damage, message: str) -> None:
    folder = shutil.copytree(synthetic_data, tmp_path / "data")
    damage(folder)
    cfg = load_config(str(REPOSITORY / "configs" / "quickstart.py"))
    with pytest.raises(UserError, match=message) as error:
        gpvit.data.use_folder(cfg, str(folder), train=True)
    assert "\n" not in str(error.value)


def record(synthetic_data: Path, annotations: list[dict]) -> dict:
    image = next((synthetic_data / "images").iterdir())
    return {"file_name": str(image), "image_id": 1, "annotations": annotations}


def annotation(segmentation, iscrowd: int = 0) -> dict:
    return dict(
        bbox=[10, 10, 20, 20], bbox_mode=BoxMode.XYWH_ABS, category_id=1, segmentation=segmentation, iscrowd=iscrowd
    )


@pytest.mark.parametrize("crowd", [False, True])
def test_an_image_without_objects_has_no_instances_and_its_masks(synthetic_data: Path, crowd: bool) -> None:
    mapper = gpvit.data.InstanceMapper(augmentations=[], recompute_boxes=True, **MAPPER)
    annotations = [annotation([[10, 10, 30, 10, 30, 30]], iscrowd=1)] if crowd else []
    instances = mapper(record(synthetic_data, annotations))["instances"]
    assert len(instances) == 0 and len(instances.gt_boxes) == len(instances.gt_masks) == 0


def test_polygons_and_run_lengths_go_together(synthetic_data: Path) -> None:
    mapper = gpvit.data.InstanceMapper(augmentations=[], recompute_boxes=True, **MAPPER)
    item = record(synthetic_data, [annotation([[10, 10, 30, 10, 30, 30, 10, 30]])])
    height, width = mapper(item)["instances"].image_size
    mask = np.zeros((height, width), np.uint8, order="F")
    mask[10:30, 10:30] = 1
    item["annotations"].append(annotation(mask_api.encode(mask)))
    polygon, run_length = mapper(item)["instances"].gt_masks.tensor
    assert torch.equal(polygon, run_length) and polygon.sum() == 400


@pytest.mark.parametrize("recipe", ["resize", "lsj"])
def test_boxes_stay_tight_around_what_an_augmentation_leaves(synthetic_data: Path, recipe: str) -> None:
    torch.manual_seed(0)
    np.random.seed(0)
    augmentations = gpvit.data.train_augmentations(recipe, short_side=[100, 200], max_size=300, lsj_size=128)
    mapper = gpvit.data.InstanceMapper(augmentations=augmentations, recompute_boxes=True, **MAPPER)
    for item in DatasetCatalog.get(gpvit.data.register_folder(str(synthetic_data), "train")):
        output = mapper(item)
        assert output["image"].shape[-2:] == output["instances"].image_size
        if recipe == "lsj":
            assert max(output["instances"].image_size) <= 128
        for mask, box in zip(output["instances"].gt_masks.tensor, output["instances"].gt_boxes):
            rows, columns = torch.nonzero(mask, as_tuple=True)
            tight = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            assert box.tolist() == [float(side) for side in tight]


def test_the_loader_of_a_config_gives_batches_with_masks(synthetic_data: Path) -> None:
    cfg = load_config(
        str(REPOSITORY / "configs" / "quickstart.py"), ["dataloader.train.num_workers=0", "dataloader.short_side=64"]
    )
    gpvit.data.use_folder(cfg, str(synthetic_data), train=True)
    batch = next(iter(instantiate(cfg.dataloader.train)))
    assert len(batch) == cfg.dataloader.train.total_batch_size
    assert all(min(item["image"].shape[1:]) == 64 and item["instances"].has("gt_masks") for item in batch)
