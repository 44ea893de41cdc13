"""Files in COCO's format to test with, and the evaluator run over them."""

import contextlib
import io
import json
import re
from pathlib import Path

from gpvit.data import register_folder
from gpvit.data.datasets.coco_rules import MAX_DETECTIONS
from gpvit.evaluation.coco_evaluation import COCOEvaluator, COCOFile, summarized
from pycocotools import mask as mask_api


def official_figures(folder: Path, task: str) -> list[float]:
    """The twelve figures of a task in the official text."""
    text = (folder / "val2014_fake_eval_res.txt").read_text()
    sections = re.split(r"type=(\w+)", text)
    section = dict(zip(sections[1::2], sections[2::2]))[task]
    return [float(figure) for figure in re.findall(r"= (-?\d\.\d+)$", section, flags=re.MULTILINE)][
        :12
    ]


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


def evaluate(folder: Path, predict, **options) -> dict:
    """Runs the evaluator over a split with ``predict``: COCO image record -> Instances."""
    name = register_folder(str(folder), "val")
    evaluator = COCOEvaluator(name, **dict(tasks=("bbox", "segm"), distributed=False) | options)
    evaluator.reset()
    for image in evaluator._coco_api.dataset["images"]:
        evaluator.process(
            [{"image_id": image["id"]}], [{"instances": predict(image, evaluator._coco_api, name)}]
        )
    return evaluator.evaluate()


MANY = 150


def many_objects(folder: Path, *, crowds: int = 0) -> Path:
    """A dataset whose image 7 has 150 squares of two classes, and image 8 as many as a detector gives by default."""
    annotations = []
    for image, number in ((7, MANY), (8, 100)):
        for index in range(number):
            box = [12 * (index % 15), 12 * (index // 15), 8 + index % 3, 8]
            x, y, w, h = box
            outline = [[x, y, x + w, y, x + w, y + h, x, y + h]]
            item = {
                "id": len(annotations) + 1,
                "image_id": image,
                "category_id": 1 + (image == 8),
                "bbox": box,
            }
            annotations.append(
                item | {"segmentation": outline, "area": w * h, "iscrowd": int(index < crowds)}
            )
    content = {
        "categories": [{"id": 1, "name": "cell"}, {"id": 2, "name": "nucleus"}],
        "images": [
            {"id": id, "file_name": f"{id}.png", "height": 128, "width": 192} for id in (7, 8)
        ],
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
    """AP (0 to 1) of results in COCO's format against a file of annotations."""
    if not results:
        return 0.0
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCOFile(json_file)
        found = truth.loadRes(results)
    return float(summarized(truth, found, task, max_detections).stats[0])
