"""COCO evaluation gives the official figures."""

import contextlib
import copy
import io
import json
import re
from pathlib import Path

import detectron2.evaluation.coco_evaluation as coco_evaluation
import numpy as np
import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.structures import Boxes, Instances
from faster_coco_eval import COCOeval_faster
from gpvit.data import register_folder
from gpvit.evaluation import COCOEvaluator, coco_ap
from pycocotools import mask as mask_api
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from quickstart import flip_masks, swap_classes


def official_figures(folder: Path, task: str) -> list[float]:
    """The twelve figures of a task in the official text."""
    text = (folder / "val2014_fake_eval_res.txt").read_text()
    sections = re.split(r"type=(\w+)", text)
    section = dict(zip(sections[1::2], sections[2::2]))[task]
    return [float(figure) for figure in re.findall(r"= (-?\d\.\d+)$", section, flags=re.MULTILINE)][:12]


@pytest.mark.parametrize("implementation", [COCOeval, COCOeval_faster])
@pytest.mark.parametrize("task", ["bbox", "segm"])
def test_the_official_results_give_the_official_figures(real_data: Path, task: str, implementation: type) -> None:
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


def truth_as_results(json_file: Path) -> list[dict]:
    truth = json.loads(json_file.read_text())
    images = {image["id"]: image for image in truth["images"]}
    results = []
    for annotation in truth["annotations"]:
        if not annotation["iscrowd"]:
            size = images[annotation["image_id"]]["height"], images[annotation["image_id"]]["width"]
            rle = mask_api.merge(mask_api.frPyObjects(annotation["segmentation"], *size))
            results.append(
                dict(
                    image_id=annotation["image_id"],
                    category_id=annotation["category_id"],
                    bbox=annotation["bbox"],
                    segmentation=rle,
                    score=0.9,
                )
            )
    return results


def test_swapped_classes_and_flipped_masks_fall_far_below_the_truth(synthetic_data: Path) -> None:
    json_file = synthetic_data / "annotations" / "train.json"
    results = truth_as_results(json_file)

    def ap(results: list[dict]) -> float:
        return coco_ap(str(json_file), [{k: v for k, v in copy.deepcopy(r).items() if k != "bbox"} for r in results], "segm")

    assert ap(results) == pytest.approx(1)
    assert ap(swap_classes(results, json_file)) < 0.1
    assert ap(flip_masks(results)) < 0.2


def test_the_evaluator_uses_the_fast_implementation() -> None:
    assert coco_evaluation.COCOeval_opt is COCOeval_faster is not COCOeval


def evaluate(folder: Path, predict) -> dict:
    """Runs the evaluator over a split with ``predict``: COCO image record -> Instances."""
    name = register_folder(str(folder), "val")
    evaluator = COCOEvaluator(name, tasks=("bbox", "segm"), distributed=False)
    evaluator.reset()
    for image in evaluator._coco_api.dataset["images"]:
        evaluator.process([{"image_id": image["id"]}], [{"instances": predict(image, evaluator._coco_api, name)}])
    return evaluator.evaluate()


def test_the_evaluator_gives_the_truth_100(synthetic_data: Path) -> None:
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
