"""COCO evaluation reproduces the official metrics."""

import contextlib
import copy
import io
import json
import logging
from pathlib import Path

import detectron2.evaluation.coco_evaluation as coco_evaluation
import numpy as np
import pytest
import torch
from coco_files import coco_ap, evaluate, ground_truth_as_results, many_objects, official_figures
from conftest import REPOSITORY, TINY
from detectron2.config import instantiate
from detectron2.data import MetadataCatalog
from detectron2.structures import Boxes, Instances
from gpvit.config import check_config, config_from_yaml, flattened, inference_config, load_config
from gpvit.config.values import check_values
from gpvit.data import register_folder
from gpvit.data.datasets.coco import read
from gpvit.engine.resume import check_config_unchanged, settings
from gpvit.evaluation.coco_evaluation import COCOEvaluator
from gpvit.evaluation.cocoeval import COCOeval
from gpvit.utils.errors import UserError
from omegaconf import OmegaConf
from pycocotools import cocoeval
from pycocotools import mask as mask_api
from pycocotools.coco import COCO


@pytest.mark.parametrize("implementation", [cocoeval.COCOeval, COCOeval])
@pytest.mark.parametrize("task", ["bbox", "segm"])
def test_official_results_give_official_metrics(
    real_data: Path, task: str, implementation: type
) -> None:
    folder = real_data / "cocoeval"
    with contextlib.redirect_stdout(io.StringIO()):
        ground_truth = COCO(str(folder / "instances_val2014_100.json"))
        results_file = folder / f"instances_val2014_fake{task}100_results.json"
        evaluation = implementation(ground_truth, ground_truth.loadRes(str(results_file)), task)
        evaluation.params.imgIds = sorted(ground_truth.getImgIds())[:100]
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    expected = official_figures(folder, task)
    assert len(expected) == 12
    np.testing.assert_allclose(evaluation.stats[:12], expected, atol=5e-4)


def swap_classes(results: list[dict], json_file: Path) -> list[dict]:
    """Give each result the next class."""
    ids = [category["id"] for category in json.loads(json_file.read_text())["categories"]]
    next_id = dict(zip(ids, ids[1:] + ids[:1]))
    return [result | {"category_id": next_id[result["category_id"]]} for result in results]


def flip_masks(results: list[dict]) -> list[dict]:
    """Flip each mask horizontally in its image."""
    flipped = []
    for result in results:
        mask = mask_api.decode(result["segmentation"])[:, ::-1]
        flipped.append(result | {"segmentation": mask_api.encode(np.asfortranarray(mask))})
    return flipped


def test_swapped_classes_and_flipped_masks_have_low_ap(synthetic_data: Path) -> None:
    json_file = synthetic_data / "annotations" / "train.json"
    results = ground_truth_as_results(json_file)

    def ap(results: list[dict]) -> float:
        masks_only = copy.deepcopy(results)
        for result in masks_only:
            result.pop("bbox", None)
        return coco_ap(str(json_file), masks_only, "segm")

    assert ap(results) == pytest.approx(1)
    assert ap(swap_classes(results, json_file)) < 0.1
    assert ap(flip_masks(results)) < 0.2


def test_evaluator_uses_fast_implementation() -> None:
    assert coco_evaluation.COCOeval_opt is COCOeval
    assert coco_evaluation.COCOevalMaxDets is COCOeval


def perfect(image: dict, api: COCO, name: str) -> Instances:
    """Predict the ground truth."""
    annotations = [a for a in api.loadAnns(api.getAnnIds(image["id"])) if not a["iscrowd"]]
    ids = MetadataCatalog.get(name).thing_dataset_id_to_contiguous_id
    boxes = torch.tensor([a["bbox"] for a in annotations], dtype=torch.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    masks = [torch.from_numpy(api.annToMask(a)).bool() for a in annotations]
    return Instances(
        (image["height"], image["width"]),
        pred_boxes=Boxes(boxes),
        scores=torch.full((len(annotations),), 0.9),
        pred_classes=torch.tensor([ids[a["category_id"]] for a in annotations], dtype=torch.int64),
        pred_masks=torch.stack(masks) if masks else torch.zeros(0, image["height"], image["width"]),
    )


def test_perfect_predictions_have_ap_100(synthetic_data: Path) -> None:
    results = evaluate(synthetic_data, perfect)
    assert results["bbox"]["AP"] == results["segm"]["AP"] == pytest.approx(100)
    assert results["segm"]["AP-cross"] == pytest.approx(100)


def test_detector_without_detections_has_ap_0(synthetic_data: Path) -> None:
    def no_detections(image: dict, api: COCO, name: str) -> Instances:
        size = (image["height"], image["width"])
        return Instances(
            size,
            pred_boxes=Boxes(torch.zeros(0, 4)),
            scores=torch.zeros(0),
            pred_classes=torch.zeros(0),
            pred_masks=torch.zeros(0, *size),
        )

    results = evaluate(synthetic_data, no_detections)
    assert results["bbox"]["AP"] == results["segm"]["AP"] == 0.0
    json.loads(json.dumps(results), parse_constant=pytest.fail)  # no NaN for the metrics file


@pytest.mark.parametrize(("crowds", "detail"), [(0, "150 objects"), (49, "101 objects"), (50, "")])
def test_more_objects_than_max_detections_are_reported(
    tmp_path: Path, crowds: int, detail: str
) -> None:
    folder = many_objects(tmp_path / "data", crowds=crowds)
    data = read(folder / "annotations" / "val.json", folder / "images")
    found = []
    for problem in data.problems:
        if problem.kind == "many objects":
            found.append((problem.image_id, problem.detail))
    assert found == ([(7, detail)] if detail else [])


@pytest.mark.parametrize(("limit", "ap"), [(None, 67), (100, 67), (150, 100), (1000, 100), (5, 3)])
def test_ap_counts_max_dets_per_image(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, limit: int | None, ap: float
) -> None:
    folder = many_objects(tmp_path / str(limit))
    with caplog.at_level(logging.WARNING, "gpvit"):
        results = evaluate(folder, perfect, max_dets_per_image=limit)
    json_file = folder / "annotations" / "val.json"
    for task in ("bbox", "segm"):
        assert results[task]["AP-cell"] == pytest.approx(ap, abs=1)
        assert results[task]["AP50"] == pytest.approx(results[task]["AP"])
        perfect_results = ground_truth_as_results(json_file)
        if task == "segm":
            for result in perfect_results:
                result.pop("bbox", None)
        expected = coco_ap(str(json_file), perfect_results, task, limit or 100)
        assert expected == pytest.approx(results[task]["AP"] / 100)
    messages = [message for message in caplog.messages if "dataloader.max_detections" in message]
    assert len(messages) == (ap < 100)
    for message in messages:
        assert "up to 150 objects, but AP counts at most" in message


@pytest.mark.parametrize("value", [0, -5, 10_001, 1.5, True, "abc", [1, 10, 100]])
def test_invalid_number_of_detections_raises(synthetic_data: Path, value: object) -> None:
    name = register_folder(str(synthetic_data), "val")
    message = "max_dets_per_image must be a whole number from 1 to 10000, got "
    with pytest.raises(UserError, match=message):
        COCOEvaluator(name, max_dets_per_image=value)
    for key in ("dataloader.max_detections", "dataloader.evaluator.max_dets_per_image"):
        cfg = OmegaConf.create({"dataloader": {"max_detections": 100, "evaluator": {}}})
        OmegaConf.update(cfg, key, value)
        with pytest.raises(UserError, match=f"{key} must be a whole number of detections"):
            check_values(cfg)


CONFIGS = {
    "quickstart": "roi_heads.box_predictor.test_topk_per_image",
    "mask_rcnn_gpvit_l1": "roi_heads.box_predictor.test_topk_per_image",
    "cascade_mask_rcnn_gpvit_l2": "roi_heads.box_predictors.{}.test_topk_per_image",
    "published/mask_rcnn_gpvit_l3_1x": "roi_heads.box_predictor.test_topk_per_image",
    "published/retinanet_gpvit_l4_3x": "max_detections_per_image",
}


@pytest.mark.parametrize("name", CONFIGS)
def test_one_setting_limits_detector_and_ap_and_is_saved_in_checkpoints(name: str) -> None:
    cfg = load_config(str(REPOSITORY / "configs" / f"{name}.py"))
    keys = {CONFIGS[name].format(stage) for stage in range(3)}
    for number in (100, 299):
        cfg.dataloader.max_detections = number
        check_values(cfg)
        assert cfg.dataloader.evaluator.max_dets_per_image == number
        saved = config_from_yaml(inference_config(cfg), "a checkpoint")
        for key in keys:
            assert OmegaConf.select(cfg.model, key) == number
            assert OmegaConf.select(saved.model, key) == number
    settings = flattened(cfg)
    of_older_version = {key: value for key, value in settings.items() if value != "299"}
    check_config_unchanged(of_older_version, settings, "a training run, which may be resumed")
    cfg.dataloader.max_detections = 10_001
    message = r"topk_per_image is 10001|max_detections_per_image is 10001"
    with pytest.raises(UserError, match=message):
        config_from_yaml(inference_config(cfg), "a checkpoint")


def test_ap_may_count_fewer_but_not_more_detections_than_the_detector() -> None:
    override = "dataloader.evaluator.max_dets_per_image"
    config = str(REPOSITORY / "configs" / "quickstart.py")
    device = "train.device=cpu"
    fewer = load_config(config, [device, f"{override}=50"])
    more = load_config(config, [device, f"{override}=300"])
    check_config(fewer, train=False)
    with pytest.raises(UserError, match="write dataloader.max_detections=300"):
        check_config(more, train=False)
    assert settings(fewer) != settings(load_config(config, [device]))
    with pytest.raises(UserError, match=f"{override} must be a whole number of detections"):
        load_config(config, [f"{override}=abc"])


# Overrides that make a small detector keep all of its detections.
KEEP_ALL = {
    "quickstart": [
        *TINY[:2],
        "model.proposal_generator.post_nms_topk=[20,200]",
        "model.proposal_generator.nms_thresh=1",
        "model.roi_heads.box_predictor.test_score_thresh=0",
        "model.roi_heads.box_predictor.test_nms_thresh=1",
    ],
    "published/retinanet_gpvit_l1_1x": [
        "model.backbone.bottom_up.net.embed_dim=24",
        "model.backbone.bottom_up.net.group_tokens=[0,4,0,4]",
        "model.test_score_thresh=0",
        "model.test_nms_thresh=1",
    ],
}


@pytest.mark.parametrize("name", KEEP_ALL)
@pytest.mark.parametrize("limit", [7, 130])
@torch.no_grad()
def test_detector_returns_at_most_max_detections(name: str, limit: int) -> None:
    overrides = [*KEEP_ALL[name], f"dataloader.max_detections={limit}"]
    cfg = load_config(str(REPOSITORY / "configs" / f"{name}.py"), overrides)
    torch.manual_seed(0)
    image = torch.randint(0, 256, (3, 96, 128), dtype=torch.uint8)
    model = instantiate(cfg.model).eval()
    assert len(model([{"image": image}])[0]["instances"]) == limit
