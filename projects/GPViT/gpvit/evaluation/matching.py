"""Which detections are true, which false and which objects missed, as COCO's evaluation matches them.

In each image, detections take objects in the order of their scores, best first: each takes the free object that it
overlaps most, if the IoU of boxes or masks is at least 0.5. Those without an object are false; objects that nobody took
are missed. What overlaps a crowd is neither true nor false. Detections and objects are matched class by class, or, to
see which classes are taken for one another, all together.

All detections count here, however many an image has; AP counts ``dataloader.max_detections`` of an image and class.

A detection with a lower score never changes the match of one with a higher score, so one matching serves all score
thresholds. pycocotools does the matching: the marks that faster-coco-eval offers count crowds as objects.
"""

import contextlib
import io
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from ..data.datasets.coco import load_json
from ..data.masks import compressed, run_length_fault
from ..utils.errors import UserError
from ..utils.events import is_number
from ..utils.text import one_line

IOU = 0.5
SHAPES = {
    "bbox": "bbox",
    "segm": "segmentation",
}  # what a detection must have for a task of COCO's evaluation
FARTHEST = 1e8  # pixels: no image is larger, and further out nothing can be drawn
MISSED = -math.inf  # score of the detection that found a missed object
DETECTION = [
    ("id", "i8"),
    ("image", "i8"),
    ("category", "i8"),
    ("score", "f8"),
    ("object", "i8"),
    ("ignored", "?"),
]
OBJECT = [("id", "i8"), ("image", "i8"), ("category", "i8"), ("score", "f8")]


def read_results(path: str | os.PathLike) -> list[dict[str, Any]]:
    """The detections of a file in COCO's results format.

    Each has image_id, category_id, score, and bbox (x, y, width, height in pixels), segmentation (RLE) or both.

    Raises:
        UserError: the file cannot be read or is in another format.
    """
    try:
        results = load_json(Path(path))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"cannot read {path}: {one_line(error)}") from None
    if not isinstance(results, list):
        raise UserError(
            f"{path} is no list of detections in COCO's results format (coco_instances_results.json)"
        )
    for number, item in enumerate(results):
        if fault := _fault(item, results[0]):
            raise UserError(
                f"{path}: detection {number} {fault}; it must be in COCO's results format"
            )
    return results


def _fault(item: Any, first: dict[str, Any]) -> str:
    if not isinstance(item, dict):
        return "is no object"
    if not all(type(item.get(key)) is int for key in ("image_id", "category_id")):
        return "has no whole numbers as image_id and category_id"
    if not is_number(item.get("score")):
        return "has no finite score"
    if not tasks_of([item]):
        return "has neither bbox nor segmentation"
    if tasks_of([item]) != tasks_of([first]):
        return "has not what the first one has of bbox and segmentation"
    box = item.get("bbox", [0, 0, 0, 0])
    if not (isinstance(box, list) and len(box) == 4 and all(map(is_number, box))):
        return "has a bbox that is not four finite numbers"
    if min(box[2:]) < 0 or max(map(abs, box)) > FARTHEST:
        return f"has a bbox of negative width or height, or further out than {FARTHEST:g} pixels"
    return (
        ""
        if isinstance(item.get("segmentation", {}), dict)
        else "has a segmentation that is no RLE"
    )


def tasks_of(results: list[dict[str, Any]]) -> list[str]:
    """The tasks that detections can be evaluated for, "bbox" before "segm"; boxes if there is no detection."""
    return [task for task, key in SHAPES.items() if key in results[0]] if results else ["bbox"]


def check_results(results: list[dict[str, Any]], truth: COCO, path: str | os.PathLike) -> None:
    """Raises a UserError if detections are not of the images and classes of the truth; compresses their masks.

    Args:
        results: from :func:`read_results`.
        truth: images and classes.
        path: of the results, for the message.
    """
    for name, known in (("image", truth.imgs), ("category", truth.cats)):
        strange = [item[f"{name}_id"] for item in results if item[f"{name}_id"] not in known]
        if strange:
            first = one_line(strange[0], 40)
            raise UserError(
                f"{path}: the {name}_id of {len(strange)} detections is not in the annotations (first: {first}); "
                "give the data that they were predicted on"
            )
    for number, item in enumerate(results):
        if "segmentation" not in item:
            continue
        image, mask = truth.imgs[item["image_id"]], item["segmentation"]
        fault = run_length_fault(mask, image["height"], image["width"])
        if fault:
            raise UserError(
                f"{path}: the mask of detection {number} has {fault}; give the data it was predicted on"
            )
        item["segmentation"] = compressed(mask, image["height"], image["width"])


def index(results: list[dict[str, Any]], truth: COCO, task: str) -> COCO:
    """Detections as COCO's evaluation takes them, with the ids 1, 2, ... in their order.

    Boxes are left out where masks are evaluated: pycocotools would take their areas for those of the masks.
    """
    kept = ("image_id", "category_id", "score", SHAPES[task])
    found = COCO()
    found.dataset = {
        "images": truth.dataset["images"],
        "categories": truth.dataset["categories"],
        "annotations": [],
    }
    with contextlib.redirect_stdout(io.StringIO()):
        found.createIndex()
        return (
            truth.loadRes([{key: item[key] for key in kept} for item in results])
            if results
            else found
        )


@dataclass(frozen=True)
class Matching:
    """All detections and objects of a data set, matched.

    Attributes:
        detections: structured array (n,), best score first: id, image, category, score, object (the id of the object
            that it found, or 0), ignored (it is on a crowd).
        objects: structured array (m,), crowds left out: id, image, category, score (that of the detection that found
            it, or MISSED).
    """

    detections: np.ndarray
    objects: np.ndarray

    def of_class(self, category: int) -> "Matching":
        """That part of a matching class by class that is of one class."""
        return Matching(
            self.detections[self.detections["category"] == category],
            self.objects[self.objects["category"] == category],
        )


def match(truth: COCO, found: COCO, task: str, *, by_class: bool = True) -> Matching:
    """Matches detections and objects.

    Args:
        truth: the objects, with ids from 1 on: to pycocotools, 0 means that there is no match.
        found: the detections, from :func:`index`.
        task: "bbox" or "segm".
        by_class: whether a detection can only find an object of its own class.
    """
    evaluation = COCOeval(truth, found, task)
    params = evaluation.params
    params.iouThrs, params.useCats = np.array([IOU]), int(by_class)
    params.areaRng, params.areaRngLbl = [[0, 1e10]], ["all"]
    params.maxDets = [max(1, len(found.anns))]  # all of them
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.evaluate()
    detections, objects = [], []
    for image in filter(None, evaluation.evalImgs):
        for id, object, ignored in zip(image["dtIds"], image["dtMatches"][0], image["dtIgnore"][0]):
            item = found.anns[id]
            detections.append(
                (id, item["image_id"], item["category_id"], item["score"], object, ignored)
            )
        for id, detection, ignored in zip(image["gtIds"], image["gtMatches"][0], image["gtIgnore"]):
            item, score = (
                truth.anns[id],
                found.anns[int(detection)]["score"] if detection else MISSED,
            )
            if not ignored:
                objects.append((id, item["image_id"], item["category_id"], score))
    all_detections = np.array(detections, DETECTION)
    order = np.argsort(-all_detections["score"], kind="stable")
    return Matching(all_detections[order], np.array(objects, OBJECT))


class Outcome(NamedTuple):
    """What became of an image, best scores first: ids of detections, and of the objects that were missed."""

    true: list[int]
    false: list[int]
    ignored: list[int]
    missed: list[int]


def outcomes(matching: Matching, truth: COCO, threshold: float) -> dict[int, Outcome]:
    """What became of each image if detections that score less than the threshold are left out, by image id."""
    images = {id: Outcome([], [], [], []) for id in truth.imgs}
    for detection in matching.detections[matching.detections["score"] >= threshold].tolist():
        id, image, _, _, object, ignored = detection
        outcome = images[image]
        (outcome.ignored if ignored else outcome.true if object else outcome.false).append(id)
    for id, image, _, score in matching.objects.tolist():
        if score < threshold:
            images[image].missed.append(id)
    return images


def confusion(truth: COCO, found: COCO, task: str, threshold: float) -> np.ndarray:
    """Which classes are taken for which, (classes + 1, classes + 1), integers.

    Rows are the classes of objects, columns those of detections, both in the order of their ids. The last row has the
    detections that found no object, the last column the objects that were missed.

    Args:
        truth, found, task: as for :func:`match`, all classes together.
        threshold: detections that score less are left out.
    """
    matching = match(truth, found, task, by_class=False)
    numbers = {id: number for number, id in enumerate(sorted(truth.cats))}
    background = len(numbers)
    counts = np.zeros((background + 1, background + 1), np.int64)
    for _, _, category, score, object, ignored in matching.detections.tolist():
        if score >= threshold and not ignored:
            row = numbers[truth.anns[object]["category_id"]] if object else background
            counts[row, numbers[category]] += 1
    for _, _, category, score in matching.objects.tolist():
        counts[numbers[category], background] += score < threshold
    return counts


class Curve(NamedTuple):
    """Precision, recall and F1 if detections below a score are left out; all (n,), thresholds descending."""

    thresholds: np.ndarray
    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray

    def best(self) -> int | None:
        """Where F1 is best, at the higher threshold of equals; None where no detection is true."""
        return int(self.f1.argmax()) if self.f1.max(initial=0) > 0 else None  # NaN, too, is not


def curve(matching: Matching) -> Curve:
    """Precision, recall and F1 at each score that occurs. Without objects, recall and F1 are NaN."""
    counted = matching.detections[~matching.detections["ignored"]]
    thresholds, true = counted["score"], np.cumsum(counted["object"] > 0)
    last = np.flatnonzero(
        np.append(thresholds[1:] != thresholds[:-1], len(thresholds) > 0)
    )  # of those of equal score
    thresholds, true = thresholds[last], true[last]
    total = len(matching.objects) or math.nan
    return Curve(thresholds, true / (last + 1), true / total, 2 * true / (last + 1 + total))


class Calibration(NamedTuple):
    """Whether scores say how often detections are true.

    counts, score, precision: of each bin, all (bins,): how many detections, their mean score, the share of true ones; NaN
        where there is none.
    error: the expected calibration error: how far score and precision are apart, averaged over all detections.
    """

    counts: np.ndarray
    score: np.ndarray
    precision: np.ndarray
    error: float


def calibration(matching: Matching, bins: int = 10) -> Calibration:
    """Sorts detections into bins of equal width by their scores, 0 to 1. Those on crowds do not count."""
    counted = matching.detections[~matching.detections["ignored"]]
    number = np.clip(counted["score"] * bins, 0, bins - 1).astype(int)
    count = np.bincount(number, minlength=bins)
    with np.errstate(invalid="ignore"):
        score = np.bincount(number, counted["score"], bins) / count
        precision = np.bincount(number, counted["object"] > 0, bins) / count
    error = np.nansum(count * np.abs(score - precision)) / count.sum() if count.sum() else math.nan
    return Calibration(count, score, precision, float(error))
