"""Evaluation of classification: top-1 and top-5 accuracy, and accuracy by class.

The best predictions of each image are collected from all processes, so that every image counts
once, also in an incomplete last batch.
"""

import json
import logging
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from torch import Tensor

from ..utils.errors import UserError
from ..utils.files import atomic_write, make_folder
from ..utils.text import one_line

logger = logging.getLogger(__name__)

RESULTS = "classification_results.json"
TOP = 5  # predictions that are kept of each image
NAME_LIMIT = 40  # characters of a class name in the log
MOST_PAIRS = 10  # pairs of confused classes that are logged


class ImageScores(NamedTuple):
    """The best predictions of an image.

    Attributes:
        image_id: of its record.
        label: index of its class.
        classes: indices of the predicted classes, at most :data:`TOP`, the best first.
        scores: their probabilities.
    """

    image_id: int
    label: int
    classes: list[int]
    scores: list[float]


def confusion_matrix(images: Sequence[ImageScores], num_classes: int) -> np.ndarray:
    """Return the number of images by class and best prediction, (K, K), int64."""
    counts = np.zeros((num_classes, num_classes), np.int64)
    for image in images:
        counts[image.label, image.classes[0]] += 1
    return counts


def metrics_of(images: Sequence[ImageScores], class_names: Sequence[str]) -> dict[str, float]:
    """Return the metrics in percent.

    Args:
        images: at least one.
        class_names: K names.

    Returns:
        "top1"; "top5", if there are more than five classes; "mACC", the mean accuracy of the
        classes that have images; and for each of these classes "top1-NAME".
    """
    counts = confusion_matrix(images, len(class_names))
    totals = counts.sum(1)
    results = {"top1": 100 * float(np.trace(counts)) / len(images)}
    if len(class_names) > TOP:
        found = sum(image.label in image.classes for image in images)
        results["top5"] = 100 * found / len(images)
    occurs = totals > 0
    accuracies = np.diag(counts)[occurs] / totals[occurs]
    results["mACC"] = 100 * float(accuracies.mean())
    for index, accuracy in zip(np.flatnonzero(occurs).tolist(), accuracies.tolist()):
        results[f"top1-{one_line(class_names[index])}"] = 100 * accuracy
    return results


def confused_pairs(counts: np.ndarray, most: int = MOST_PAIRS) -> list[tuple[int, int, int]]:
    """Return the most frequent confusions: class, predicted class, and number of images.

    Args:
        counts: (K, K), see :func:`confusion_matrix`.
        most: maximum length of the list.
    """
    between = counts - np.diag(np.diag(counts))
    order = np.argsort(-between, axis=None, kind="stable")[:most]
    pairs = []
    for row, column in zip(*np.unravel_index(order, between.shape)):
        if between[row, column]:
            pairs.append((int(row), int(column), int(between[row, column])))
    return pairs


class ClassificationEvaluator(DatasetEvaluator):
    """Compares the scores of images with their classes.

    Args:
        dataset_name: in Detectron2's catalog. Its metadata has ``thing_classes``; its records have
            "image_id" and "label".
        output_dir: folder to write the best predictions of each image to, as :data:`RESULTS`; None
            to write none.

    Attributes:
        unwritten: why they could not be written; "" if they were.
    """

    def __init__(self, dataset_name: str, output_dir: str | None = None) -> None:
        self.class_names = list(MetadataCatalog.get(dataset_name).thing_classes)
        self.dataset_name, self.output_dir, self.unwritten = dataset_name, output_dir, ""
        self.reset()

    def reset(self) -> None:
        self.images: list[ImageScores] = []

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Tensor]]) -> None:
        """Keep the best predictions of a batch.

        Args:
            inputs: records, or what a dataset mapper adds to them.
            outputs: dicts with "scores": (K,).
        """
        scores = torch.stack([output["scores"] for output in outputs])  # (B, K)
        best = scores.topk(min(TOP, scores.shape[1]))
        rows = zip(inputs, best.indices.tolist(), best.values.tolist())
        for item, classes, best_scores in rows:
            self.images.append(ImageScores(item["image_id"], item["label"], classes, best_scores))

    def evaluate(self) -> dict[str, dict[str, float]]:
        """Return the metrics of all processes: {"classification": ...}; {} in other processes.

        Raises:
            UserError: there are no images.
        """
        parts = comm.gather(self.images)
        if not comm.is_main_process():
            return {}
        images: list[ImageScores] = []
        for part in parts:
            images += part
        images.sort()
        if not images:
            raise UserError(f"dataset {self.dataset_name} has no images to evaluate")
        self._write(images)
        pairs = []
        names = [one_line(name, NAME_LIMIT) for name in self.class_names]
        for label, predicted, count in confused_pairs(confusion_matrix(images, len(names))):
            if count > 1:
                pairs.append(f"{names[label]} as {names[predicted]} ({count})")
        if pairs:
            logger.info(f"most frequent confusions: {', '.join(pairs)}")
        return {"classification": metrics_of(images, self.class_names)}

    def _write(self, images: Sequence[ImageScores]) -> None:
        if not self.output_dir:
            return
        rows = []
        for image in images:
            scores = [round(score, 6) for score in image.scores]
            row = {"image_id": image.image_id, "classes": image.classes, "scores": scores}
            rows.append(row)
        try:
            make_folder(self.output_dir)
            with atomic_write(os.path.join(self.output_dir, RESULTS)) as partial:
                partial.write_text(json.dumps(rows), encoding="utf-8")
        except UserError as error:
            self.unwritten = str(error)
