"""Match detections to ground truth as COCO's evaluation does: TP, FP, FN, confusion, calibration.

In each image, detections are matched in descending order of their scores: each takes the unmatched
object with which it has the highest IoU (of boxes or of masks), if that is at least 0.5. A matched
detection is a true positive (TP), an unmatched one a false positive (FP), an unmatched object a
false negative (FN). A detection that only overlaps a crowd is ignored. Matching is done per class,
or over all classes at once for a confusion matrix.

All detections take part, however many an image has; AP is limited to ``dataloader.max_detections``
per image and class.

A detection never changes the match of one with a higher score, so one matching is valid for all
score thresholds.
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

from ..data.datasets.coco import load_json
from ..data.masks import compressed, run_length_fault
from ..utils.errors import UserError
from ..utils.events import is_number
from ..utils.text import one_line
from .cocoeval import SHAPES, COCOeval

IOU = 0.5
FARTHEST = 1e8  # pixels: no image is larger, and nothing further away can be drawn
UNMATCHED = -math.inf  # score of an object without a detection: below every threshold
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
    """Read detections from a file in COCO's results format.

    Each has image_id, category_id, score, and bbox (x, y, width, height in pixels), segmentation
    (RLE) or both.

    Raises:
        UserError: the file cannot be read or has another format.
    """
    try:
        results = load_json(Path(path))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"cannot read {path}: {one_line(error)}") from None
    if not isinstance(results, list):
        raise UserError(
            f"{path} is not a list of detections in COCO's results format "
            "(coco_instances_results.json)"
        )
    for number, item in enumerate(results):
        fault = _fault(item, results[0])
        if fault:
            raise UserError(
                f"{path}: detection {number} {fault}; it must be in COCO's results format"
            )
    return results


def _fault(item: Any, first: dict[str, Any]) -> str:
    """Describe what is wrong with a result; "" if nothing is."""
    if not isinstance(item, dict):
        return "is not a JSON object"
    # type() instead of isinstance(): JSON's true is a bool, which is an int
    if type(item.get("image_id")) is not int or type(item.get("category_id")) is not int:
        return "has an image_id or category_id that is not a whole number"
    if not is_number(item.get("score")):
        return "has no finite score"
    if not tasks_of([item]):
        return "has neither bbox nor segmentation"
    if tasks_of([item]) != tasks_of([first]):
        return "has other keys of bbox and segmentation than the first one"
    box = item.get("bbox", [0, 0, 0, 0])
    if not (isinstance(box, list) and len(box) == 4 and all(map(is_number, box))):
        return "has a bbox that is not four finite numbers"
    if min(box[2:]) < 0 or max(map(abs, box)) > FARTHEST:
        return f"has a bbox of negative width or height, or further out than {FARTHEST:g} pixels"
    if not isinstance(item.get("segmentation", {}), dict):
        return "has a segmentation that is not RLE"
    return ""


def tasks_of(results: list[dict[str, Any]]) -> list[str]:
    """Tasks that results can be evaluated for, "bbox" before "segm"; ["bbox"] without results."""
    return [task for task, key in SHAPES.items() if key in results[0]] if results else ["bbox"]


def check_results(
    results: list[dict[str, Any]], ground_truth: COCO, path: str | os.PathLike
) -> None:
    """Check that results belong to the images and classes of the ground truth; compress masks.

    Args:
        results: from :func:`read_results`; their masks become compressed RLE in place.
        ground_truth: images and classes.
        path: path of the results, for messages.

    Raises:
        UserError: an image, class or mask does not fit.
    """
    for name, known in (("image", ground_truth.imgs), ("category", ground_truth.cats)):
        ids = [item[f"{name}_id"] for item in results]
        unknown = [id for id in ids if id not in known]
        if unknown:
            first = one_line(unknown[0], 40)
            raise UserError(
                f"{path}: the {name}_id of {len(unknown)} detections is not in the annotations "
                f"(first: {first}); give the dataset of these detections"
            )
    for number, item in enumerate(results):
        if "segmentation" not in item:
            continue
        image, mask = ground_truth.imgs[item["image_id"]], item["segmentation"]
        fault = run_length_fault(mask, image["height"], image["width"])
        if fault:
            raise UserError(
                f"{path}: the mask of detection {number} has {fault}; "
                "give the dataset of these detections"
            )
        item["segmentation"] = compressed(mask, image["height"], image["width"])


def index(results: list[dict[str, Any]], ground_truth: COCO, task: str) -> COCO:
    """Index results for one task of COCO's evaluation; detection ids count from 1.

    For "segm", boxes are left out: pycocotools would use their areas instead of those of the masks.
    """
    keys = ("image_id", "category_id", "score", SHAPES[task])
    found = COCO()
    found.dataset = {
        "images": ground_truth.dataset["images"],
        "categories": ground_truth.dataset["categories"],
        "annotations": [],
    }
    with contextlib.redirect_stdout(io.StringIO()):
        found.createIndex()
        if not results:  # loadRes fails without any
            return found
        items = []
        for result in results:
            items.append({key: result[key] for key in keys})
        return ground_truth.loadRes(items)


@dataclass(frozen=True)
class Matching:
    """All detections and objects of a dataset with their matches.

    Attributes:
        detections: structured array (n,), highest score first: id, image, category, score, object
            (id of the matched object, or 0), ignored (whether it overlaps a crowd).
        objects: structured array (m,), without crowds: id, image, category, score (that of the
            matched detection, or UNMATCHED).
    """

    detections: np.ndarray
    objects: np.ndarray

    def of_class(self, category: int) -> "Matching":
        """The part of a per-class matching that belongs to one class."""
        return Matching(
            self.detections[self.detections["category"] == category],
            self.objects[self.objects["category"] == category],
        )


def match(ground_truth: COCO, found: COCO, task: str, *, by_class: bool = True) -> Matching:
    """Match detections and objects.

    Args:
        ground_truth: objects, with ids from 1: 0 means "no match" in a :class:`Matching`.
        found: detections, from :func:`index`.
        task: "bbox" or "segm".
        by_class: whether to match only detections and objects of the same class.
    """
    evaluation = COCOeval(ground_truth, found, task)
    params = evaluation.params
    params.iouThrs, params.useCats = np.array([IOU]), int(by_class)
    params.areaRng, params.areaRngLbl = [[0, 1e10]], ["all"]
    params.maxDets = [max(1, len(found.anns))]  # all of them
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.evaluate()
    detections, objects = [], []
    # One entry per class and image that has any. [0] is the only IoU threshold.
    for entry in evaluation.evalImgs:
        for id, object, ignored in zip(entry["dtIds"], entry["dtMatches"][0], entry["dtIgnore"][0]):
            item = found.anns[id]
            detections.append(
                (id, item["image_id"], item["category_id"], item["score"], object, ignored)
            )
        for id, detection, ignored in zip(entry["gtIds"], entry["gtMatches"][0], entry["gtIgnore"]):
            if ignored:
                continue
            item = ground_truth.anns[id]
            score = found.anns[int(detection)]["score"] if detection else UNMATCHED
            objects.append((id, item["image_id"], item["category_id"], score))
    all_detections = np.array(detections, DETECTION)
    order = np.argsort(-all_detections["score"], kind="stable")
    return Matching(all_detections[order], np.array(objects, OBJECT))


class Outcome(NamedTuple):
    """Result of an image: ids of detections, highest score first, and of unmatched objects."""

    true_positives: list[int]
    false_positives: list[int]
    ignored: list[int]
    false_negatives: list[int]


def outcomes(matching: Matching, ground_truth: COCO, threshold: float) -> dict[int, Outcome]:
    """Outcome of each image, by image id, for detections with at least a score of ``threshold``."""
    images = {id: Outcome([], [], [], []) for id in ground_truth.imgs}
    for detection in matching.detections[matching.detections["score"] >= threshold].tolist():
        id, image, _, _, object, ignored = detection
        outcome = images[image]
        if ignored:
            outcome.ignored.append(id)
        elif object:
            outcome.true_positives.append(id)
        else:
            outcome.false_positives.append(id)
    for id, image, _, score in matching.objects.tolist():
        if score < threshold:
            images[image].false_negatives.append(id)
    return images


def confusion(ground_truth: COCO, found: COCO, task: str, threshold: float) -> np.ndarray:
    """Confusion matrix (classes + 1, classes + 1), integers.

    Rows are the classes of objects, columns the classes of detections, both in the order of their
    ids. The last row counts detections without an object (false positives), the last column objects
    without a detection (false negatives).

    Args:
        ground_truth, found, task: as for :func:`match`; all classes are matched together.
        threshold: minimum score of a detection.
    """
    matching = match(ground_truth, found, task, by_class=False)
    indices = {id: index for index, id in enumerate(sorted(ground_truth.cats))}
    background = len(indices)  # index of the last row and column
    counts = np.zeros((background + 1, background + 1), np.int64)
    for _, _, category, score, object, ignored in matching.detections.tolist():
        if score >= threshold and not ignored:
            row = indices[ground_truth.anns[object]["category_id"]] if object else background
            counts[row, indices[category]] += 1
    for _, _, category, score in matching.objects.tolist():
        counts[indices[category], background] += score < threshold
    return counts


class Curve(NamedTuple):
    """Precision, recall and F1 over the score threshold; all (n,), thresholds descending."""

    thresholds: np.ndarray
    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray

    def best(self) -> int | None:
        """Index of the highest F1 (the highest threshold of equals); None without TP."""
        # f1 may be NaN; NaN > 0 is False.
        return int(self.f1.argmax()) if self.f1.max(initial=0) > 0 else None


def curve(matching: Matching) -> Curve:
    """Precision, recall and F1 at each distinct score. Without objects, recall and F1 are NaN."""
    counted = matching.detections[~matching.detections["ignored"]]
    thresholds, true_positives = counted["score"], np.cumsum(counted["object"] > 0)
    # Detections of equal score enter together: keep the last index of each run of equal scores.
    ends = np.append(thresholds[1:] != thresholds[:-1], len(thresholds) > 0)
    last = np.flatnonzero(ends)
    thresholds, true_positives = thresholds[last], true_positives[last]
    detections, objects = last + 1, len(matching.objects) or math.nan
    return Curve(
        thresholds,
        precision=true_positives / detections,
        recall=true_positives / objects,
        f1=2 * true_positives / (detections + objects),  # 2 TP / (2 TP + FP + FN)
    )


class Calibration(NamedTuple):
    """How well scores predict the precision of detections, or the accuracy of a classifier.

    Attributes:
        counts: (bins,), predictions in each bin of scores.
        score: (bins,), their mean score; NaN in an empty bin.
        precision: (bins,), the fraction of correct ones among them; NaN in an empty bin.
        error: expected calibration error, the mean of |score - precision| over all predictions.
    """

    counts: np.ndarray
    score: np.ndarray
    precision: np.ndarray
    error: float


def calibration(matching: Matching) -> Calibration:
    """Calibration of detections, without ignored ones."""
    counted = matching.detections[~matching.detections["ignored"]]
    return calibration_of(counted["score"], counted["object"] > 0)


def calibration_of(scores: np.ndarray, is_correct: np.ndarray, bins: int = 10) -> Calibration:
    """Calibration in bins of equal width over scores from 0 to 1.

    Args:
        scores: (N,), of the predictions.
        is_correct: (N,), bool.
        bins: number of bins.
    """
    # A score of 1 belongs to the last bin.
    bin_of = np.clip(scores * bins, 0, bins - 1).astype(int)
    count = np.bincount(bin_of, minlength=bins)
    with np.errstate(invalid="ignore"):  # 0 / 0 in empty bins
        score = np.bincount(bin_of, scores, bins) / count
        precision = np.bincount(bin_of, is_correct, bins) / count
    error = np.nansum(count * np.abs(score - precision)) / count.sum() if count.sum() else math.nan
    return Calibration(count, score, precision, float(error))
