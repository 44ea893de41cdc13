"""Datasets and results in COCO format, and their evaluation."""

import contextlib
import io
import json
import re
from pathlib import Path

from gpvit.data import register_folder
from gpvit.data.datasets.coco_rules import MAX_DETECTIONS
from gpvit.evaluation.coco_evaluation import COCOEvaluator, COCOFile, summarize
from pycocotools import mask as mask_api


def official_figures(folder: Path, task: str) -> list[float]:
    """Read the twelve metrics of a task from the example results that COCO publishes."""
    text = (folder / "val2014_fake_eval_res.txt").read_text()
    # The text before the first section, then the name and the lines of each section in turns.
    sections = re.split(r"type=(\w+)", text)
    section = dict(zip(sections[1::2], sections[2::2]))[task]
    metrics = re.findall(r"= (-?\d\.\d+)$", section, flags=re.MULTILINE)
    return list(map(float, metrics[:12]))


def ground_truth_as_results(json_file: Path) -> list[dict]:
    """Return the ground truth of a dataset, without crowds, as results in COCO format."""
    ground_truth = json.loads(json_file.read_text())
    sizes = {image["id"]: (image["height"], image["width"]) for image in ground_truth["images"]}
    results = []
    for annotation in ground_truth["annotations"]:
        if annotation["iscrowd"]:
            continue
        polygons, size = annotation["segmentation"], sizes[annotation["image_id"]]
        rle = mask_api.merge(mask_api.frPyObjects(polygons, *size))
        result = {key: annotation[key] for key in ("image_id", "category_id", "bbox")}
        results.append(result | {"segmentation": rle, "score": 0.9})
    return results


def evaluate(folder: Path, predict, **options) -> dict:
    """Run the evaluator on the validation set with ``predict``: COCO image record -> Instances."""
    name = register_folder(str(folder), "val")
    evaluator = COCOEvaluator(name, **dict(tasks=("bbox", "segm"), distributed=False) | options)
    evaluator.reset()
    for image in evaluator._coco_api.dataset["images"]:
        instances = predict(image, evaluator._coco_api, name)
        evaluator.process([{"image_id": image["id"]}], [{"instances": instances}])
    return evaluator.evaluate()


MANY = 150


def many_objects(folder: Path, *, crowds: int = 0) -> Path:
    """Write a dataset of squares: 150 of one class in image 7, 100 of another one in image 8.

    A detector returns at most 100 objects by default. In each image, the first ``crowds`` objects
    are crowds.
    """
    annotations = []
    for image, number in ((7, MANY), (8, 100)):
        for index in range(number):
            box = x, y, w, h = 12 * (index % 15), 12 * (index // 15), 8 + index % 3, 8  # in a grid
            outline = [[x, y, x + w, y, x + w, y + h, x, y + h]]
            item = {"id": len(annotations) + 1, "image_id": image, "area": w * h, "bbox": box}
            item |= {"category_id": 1 + (image == 8), "iscrowd": int(index < crowds)}
            annotations.append(item | {"segmentation": outline})
    size = {"height": 128, "width": 192}
    content = {
        "categories": [{"id": 1, "name": "cell"}, {"id": 2, "name": "nucleus"}],
        "images": [{"id": 7, "file_name": "7.png"} | size, {"id": 8, "file_name": "8.png"} | size],
        "annotations": annotations,
    }
    for name in ("annotations", "images"):
        (folder / name).mkdir(parents=True)
    for split in ("train", "val"):
        (folder / "annotations" / f"{split}.json").write_text(json.dumps(content))
    for id in (7, 8):
        (folder / "images" / f"{id}.png").touch()
    return folder


def coco_ap(
    json_file: str, results: list[dict], task: str, max_detections: int = MAX_DETECTIONS
) -> float:
    """Return the AP (0 to 1) of results in COCO format."""
    if not results:
        return 0.0
    with contextlib.redirect_stdout(io.StringIO()):
        ground_truth = COCOFile(json_file)
        detections = ground_truth.loadRes(results)
    return float(summarize(ground_truth, detections, task, max_detections).stats[0])
