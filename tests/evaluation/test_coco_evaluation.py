"""COCO evaluation gives the official figures."""

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
from coco_files import coco_ap, evaluate, many_objects, official_figures, truth_as_results
from conftest import REPOSITORY, TINY
from detectron2.config import instantiate
from detectron2.data import MetadataCatalog
from detectron2.structures import Boxes, Instances
from faster_coco_eval import COCOeval_faster
from gpvit.config import check_config, config_from_yaml, flattened, inference_config, load_config
from gpvit.config.values import check_values
from gpvit.data import register_folder
from gpvit.data.datasets.coco import read
from gpvit.engine.resume import check_config_unchanged, settings
from gpvit.evaluation.coco_evaluation import COCOEvaluator
from gpvit.utils.errors import UserError
from omegaconf import OmegaConf
from pycocotools import mask as mask_api
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval


@pytest.mark.parametrize("implementation", [COCOeval, COCOeval_faster])
@pytest.mark.parametrize("task", ["bbox", "segm"])
def test_the_official_results_give_the_official_figures(
    real_data: Path, task: str, implementation: type
) -> None:
    folder = real_data / "cocoeval"
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(folder / "instances_val2014_100.json"))
        results = truth.loadRes(str(folder / f"instances_val2014_fake{task}100_results.json"))
        evaluation = implementation(truth, results, task)
        evaluation.params.imgIds = sorted(truth.getImgIds())[:100]
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    expected = official_figures(folder, task)
    assert len(expected) == 12
    np.testing.assert_allclose(evaluation.stats[:12], expected, atol=5e-4)


def swap_classes(results: list[dict], json_file: Path) -> list[dict]:
    """Every class called by the next one's name."""
    ids = [category["id"] for category in json.loads(json_file.read_text())["categories"]]
    following = dict(zip(ids, ids[1:] + ids[:1]))
    return [result | {"category_id": following[result["category_id"]]} for result in results]


def flip_masks(results: list[dict]) -> list[dict]:
    """Every mask mirrored left to right in its picture."""
    flipped = []
    for result in results:
        mask = mask_api.decode(result["segmentation"])[:, ::-1]
        flipped.append(result | {"segmentation": mask_api.encode(np.asfortranarray(mask))})
    return flipped


def test_swapped_classes_and_flipped_masks_fall_far_below_the_truth(synthetic_data: Path) -> None:
    json_file = synthetic_data / "annotations" / "train.json"
    results = truth_as_results(json_file)

    def ap(results: list[dict]) -> float:
        return coco_ap(
            str(json_file),
            [{k: v for k, v in copy.deepcopy(r).items() if k != "bbox"} for r in results],
            "segm",
        )

    assert ap(results) == pytest.approx(1)
    assert ap(swap_classes(results, json_file)) < 0.1
    assert ap(flip_masks(results)) < 0.2


def test_the_evaluator_uses_the_fast_implementation() -> None:
    assert (
        coco_evaluation.COCOeval_opt
        is coco_evaluation.COCOevalMaxDets
        is COCOeval_faster
        is not COCOeval
    )


def perfect(image: dict, api: COCO, name: str) -> Instances:
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


def test_the_evaluator_gives_the_truth_100(synthetic_data: Path) -> None:
    results = evaluate(synthetic_data, perfect)
    assert results["bbox"]["AP"] == results["segm"]["AP"] == pytest.approx(100)
    assert results["segm"]["AP-cross"] == pytest.approx(100)


def test_a_detector_that_finds_nothing_has_ap_0_for_boxes_and_masks(synthetic_data: Path) -> None:
    def nothing(image: dict, api: COCO, name: str) -> Instances:
        size = (image["height"], image["width"])
        return Instances(
            size, pred_boxes=Boxes(torch.zeros(0, 4)), scores=torch.zeros(0), pred_classes=torch.zeros(0),
            pred_masks=torch.zeros(0, *size),
        )  # fmt: skip

    results = evaluate(synthetic_data, nothing)
    assert results["bbox"]["AP"] == results["segm"]["AP"] == 0.0
    json.loads(json.dumps(results), parse_constant=pytest.fail)  # no NaN for the metrics file


@pytest.mark.parametrize(("crowds", "told"), [(0, "150 objects"), (49, "101 objects"), (50, "")])
def test_more_objects_than_a_detector_gives_are_noted(
    tmp_path: Path, crowds: int, told: str
) -> None:
    folder = many_objects(tmp_path / "data", crowds=crowds)
    data = read(folder / "annotations" / "val.json", folder / "images")
    found = [
        (problem.image_id, problem.detail)
        for problem in data.problems
        if problem.kind == "many objects"
    ]
    assert found == ([(7, told)] if told else [])


@pytest.mark.parametrize(("limit", "ap"), [(None, 67), (100, 67), (150, 100), (1000, 100), (5, 3)])
def test_ap_counts_as_many_detections_as_it_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, limit: int | None, ap: float
) -> None:
    folder = many_objects(tmp_path / str(limit))
    with caplog.at_level(logging.WARNING, "gpvit"):
        results = evaluate(folder, perfect, max_dets_per_image=limit)
    json_file = str(folder / "annotations" / "val.json")
    for task in ("bbox", "segm"):
        assert results[task]["AP-cell"] == pytest.approx(ap, abs=1)
        assert results[task]["AP50"] == pytest.approx(results[task]["AP"])
        perfect_results = [
            {k: v for k, v in r.items() if k != "bbox" or task == k}
            for r in truth_as_results(Path(json_file))
        ]
        assert coco_ap(json_file, perfect_results, task, limit or 100) == pytest.approx(
            results[task]["AP"] / 100
        )
    lines = [
        entry.getMessage()
        for entry in caplog.records
        if "dataloader.max_detections" in entry.getMessage()
    ]
    assert len(lines) == (ap < 100) and all(
        "up to 150 objects, and AP counts" in line for line in lines
    )


@pytest.mark.parametrize("value", [0, -5, 10_001, 1.5, True, "abc", [1, 10, 100]])
def test_a_number_of_detections_that_cannot_be_is_one_line(
    synthetic_data: Path, value: object
) -> None:
    name = register_folder(str(synthetic_data), "val")
    with pytest.raises(
        UserError, match="max_dets_per_image must be a whole number from 1 to 10000, got "
    ):
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
def test_one_setting_is_for_the_detector_and_for_ap_and_goes_with_a_checkpoint(name: str) -> None:
    cfg = load_config(str(REPOSITORY / "configs" / f"{name}.py"))
    keys = {CONFIGS[name].format(stage) for stage in range(3)}
    for number in (100, 299):
        cfg.dataloader.max_detections = number
        check_values(cfg)
        assert cfg.dataloader.evaluator.max_dets_per_image == number
        for config in (cfg, config_from_yaml(inference_config(cfg), "a checkpoint")):
            assert [OmegaConf.select(config.model, key) for key in keys] == [number] * len(keys)
    settings = flattened(cfg)
    of_older_version = {key: value for key, value in settings.items() if value != "299"}
    check_config_unchanged(of_older_version, settings, "a training run, which may be resumed")
    cfg.dataloader.max_detections = 10_001
    with pytest.raises(
        UserError, match=r"topk_per_image is 10001|max_detections_per_image is 10001"
    ):
        config_from_yaml(inference_config(cfg), "a checkpoint")


def test_ap_alone_may_count_fewer_but_not_more_than_the_detector_gives() -> None:
    override = "dataloader.evaluator.max_dets_per_image"
    config = str(REPOSITORY / "configs" / "quickstart.py")
    fewer, more = (load_config(config, [f"{override}={number}"]) for number in (50, 300))
    check_config(fewer, train=False)
    with pytest.raises(UserError, match="write dataloader.max_detections=300"):
        check_config(more, train=False)
    assert settings(fewer) != settings(load_config(config))
    with pytest.raises(UserError, match=f"{override} must be a whole number of detections"):
        load_config(str(REPOSITORY / "configs" / "quickstart.py"), [f"{override}=abc"])


@pytest.mark.parametrize("name", ["quickstart", "published/retinanet_gpvit_l1_1x"])
@pytest.mark.parametrize("limit", [7, 130])
@torch.no_grad()
def test_a_detector_gives_as_many_detections_as_it_is_asked_for(name: str, limit: int) -> None:
    if name == "quickstart":
        of_model = ["proposal_generator.post_nms_topk=[20,200]", "proposal_generator.nms_thresh=1"]
        of_model += [
            "roi_heads.box_predictor.test_score_thresh=0",
            "roi_heads.box_predictor.test_nms_thresh=1",
        ]
    else:
        of_model = [
            "backbone.bottom_up.net.embed_dim=24",
            "backbone.bottom_up.net.group_tokens=[0,4,0,4]",
        ]
        of_model += ["test_score_thresh=0", "test_nms_thresh=1"]
    overrides = [
        *(TINY[:2] if name == "quickstart" else ()),
        *(f"model.{override}" for override in of_model),
    ]
    cfg = load_config(
        str(REPOSITORY / "configs" / f"{name}.py"),
        [*overrides, f"dataloader.max_detections={limit}"],
    )
    torch.manual_seed(0)
    image = torch.randint(0, 256, (3, 96, 128), dtype=torch.uint8)
    assert len(instantiate(cfg.model).eval()([{"image": image}])[0]["instances"]) == limit
