"""Evaluation of semantic segmentation: IoU, accuracy, precision, F1 and boundary IoU.

Everything is computed from counts of pixels that are summed over the images and the processes; no
prediction is kept.
"""

import hashlib
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from torch import Tensor

from ..data.label_maps import (
    IGNORED,
    LABEL_MAPS,
    class_palette,
    label_map_name,
    labels_of,
    save_labels,
)
from ..utils.errors import UserError
from ..utils.files import make_folder
from ..utils.text import one_line

logger = logging.getLogger(__name__)

BOUNDARY_WIDTH = 0.02  # fraction of the image's diagonal, as by Cheng et al. (CVPR 2021)


class PixelCounts:
    """Counts of pixels of one or more label maps and their predictions.

    Args:
        num_classes: K.

    Attributes:
        confusion: (K, K), int64: pixels by their label and their predicted class.
        boundary: (3, K), int64, of the pixels near a boundary: those that are correct, those of
            the label maps and those of the predictions, by class.
    """

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self.confusion = np.zeros((num_classes, num_classes), np.int64)
        self.boundary = np.zeros((3, num_classes), np.int64)

    def add(self, predicted: np.ndarray, labels: np.ndarray, ignore_value: int = IGNORED) -> None:
        """Count the pixels of an image.

        Args:
            predicted: (H, W), class indices.
            labels: (H, W), class indices or ``ignore_value``.

        Raises:
            ValueError: the sizes differ, or there is a label that is no class.
        """
        if predicted.shape != labels.shape:
            raise ValueError(f"the prediction is {predicted.shape}, the label map {labels.shape}")
        counted = labels != ignore_value
        self.add_confusion(predicted, labels, counted)
        of_labels = near_boundary(labels) & counted
        of_prediction = near_boundary(predicted) & counted
        correct = of_labels & of_prediction & (labels == predicted)
        for row, (values, mask) in enumerate(
            [(labels, correct), (labels, of_labels), (predicted, of_prediction)]
        ):
            self.boundary[row] += np.bincount(values[mask], minlength=self.num_classes)

    def add_record(
        self,
        record: dict[str, Any],
        predicted: np.ndarray,
        labels: np.ndarray,
        ignore_value: int,
    ) -> None:
        """As :meth:`add`; raise a UserError with the path of the record's label map instead."""
        try:
            self.add(predicted, labels, ignore_value)
        except ValueError as error:
            path = record.get("sem_seg_file_name", record["file_name"])
            raise UserError(f"{path}: {error}; correct it") from None

    def add_confusion(self, predicted: np.ndarray, labels: np.ndarray, counted: np.ndarray) -> None:
        """Add to the confusion matrix; ``counted``, (H, W), bool, are the pixels that count."""
        K = self.num_classes
        for label in (labels.max(where=counted, initial=0), labels.min(where=counted, initial=0)):
            if not 0 <= label < K:
                raise ValueError(f"the label {label} is no class: there are {K}")
        # One number for each pair of classes, and one more for the pixels that do not count.
        pairs = np.where(counted, labels.astype(np.int32) * K + predicted.astype(np.int32), K * K)
        counts = np.bincount(pairs.ravel(), minlength=K * K + 1)[:-1]
        self.confusion += counts.reshape(K, K)

    def merge(self, other: "PixelCounts") -> None:
        """Add the counts of other images."""
        self.confusion += other.confusion
        self.boundary += other.boundary


def near_boundary(classes: np.ndarray, width: float = BOUNDARY_WIDTH) -> np.ndarray:
    """Return which pixels are near a pixel of another class or near the border of the image.

    Args:
        classes: (H, W).
        width: distance in fractions of the diagonal, at least one pixel.

    Returns:
        (H, W), bool: as of the erosion of each class's mask by a square. Ignored pixels count as a
        class of their own.
    """
    distance = max(1, round(width * float(np.hypot(*classes.shape))))
    # OpenCV has no erosion of other integers; float32 is exact for class indices.
    values = classes if classes.dtype == np.uint8 else classes.astype(np.float32)
    square = np.ones((2 * distance + 1,) * 2, np.uint8)
    # Outside of the image is another class: the border is one pixel wide, and as far as needed.
    lowest = cv2.erode(values, square, borderType=cv2.BORDER_REPLICATE)
    highest = cv2.dilate(values, square, borderType=cv2.BORDER_REPLICATE)
    near = lowest != highest
    near[:distance] = near[-distance:] = True
    near[:, :distance] = near[:, -distance:] = True
    return near


def metrics_of(counts: PixelCounts, class_names: Sequence[str]) -> dict[str, float]:
    """Return the metrics in percent, under Detectron2's names where it has them.

    As in the official implementation, the mean IoU leaves out classes that occur neither in labels
    nor in predictions, and a class that is predicted but never labeled counts as 0. Metrics of a
    class that are not defined are omitted.

    Args:
        counts: of all images.
        class_names: K names.
    """
    correct = np.diag(counts.confusion).astype(float)
    labeled, predicted = counts.confusion.sum(1), counts.confusion.sum(0)
    boundary_correct, boundary_labeled, boundary_predicted = counts.boundary
    with np.errstate(divide="ignore", invalid="ignore"):  # NaN where a class does not occur
        of_classes = {
            "IoU": correct / (labeled + predicted - correct),
            "ACC": correct / labeled,
            "Precision": correct / predicted,
            "F1": 2 * correct / (labeled + predicted),
            "BoundaryIoU": boundary_correct
            / (boundary_labeled + boundary_predicted - boundary_correct),
        }
        fractions = labeled / labeled.sum()
        overall = {
            "mIoU": mean(of_classes["IoU"]),
            "fwIoU": np.nansum(fractions * of_classes["IoU"]) if labeled.sum() else np.nan,
            "mACC": mean(of_classes["ACC"]),
            "pACC": correct.sum() / labeled.sum(),
            "mF1": mean(of_classes["F1"]),
            "mBoundaryIoU": mean(of_classes["BoundaryIoU"]),
        }
    results = {name: 100 * float(value) for name, value in overall.items() if np.isfinite(value)}
    for metric, values in of_classes.items():
        for class_name, value in zip(class_names, values):
            if np.isfinite(value):
                results[f"{metric}-{one_line(class_name)}"] = 100 * float(value)
    return results


def prediction_path(output_dir: str | Path, file_name: str, image_root: str) -> Path:
    """Return the path of the predicted label map of an image.

    Args:
        output_dir: of the evaluation.
        file_name: path of the image.
        image_root: folder of the images; the name of one outside of it begins with a hash of its
            path, so that it is unique and inside of the output folder.
    """
    path = os.path.relpath(os.path.abspath(file_name), os.path.abspath(image_root or os.sep))
    if not image_root or path.split(os.sep)[0] == os.pardir:
        digest = hashlib.sha256(os.fsencode(os.path.abspath(file_name))).hexdigest()[:8]
        path = f"{digest}_{os.path.basename(file_name)}"
    return Path(output_dir, LABEL_MAPS, label_map_name(path))


def mean(values: np.ndarray) -> float:
    """Return the mean of the values that are not NaN; NaN if there are none."""
    defined = values[np.isfinite(values)]
    return float(defined.mean()) if len(defined) else float("nan")


class SemanticEvaluator(DatasetEvaluator):
    """Compares predicted with labeled classes, pixel by pixel.

    Detectron2's evaluator fails with NumPy 2, keeps all predictions, and takes differences of class
    indices for boundaries.

    Args:
        dataset_name: in Detectron2's catalog. Its metadata has ``stuff_classes``, and may have
            ``ignore_label`` (default: 255), ``stuff_colors`` and ``image_root``; its records have a
            label map, see :func:`.labels_of`.
        output_dir: folder to write the predictions to, as PNG files of class indices in
            :data:`.LABEL_MAPS`; None to write none.
    """

    def __init__(self, dataset_name: str, output_dir: str | None = None) -> None:
        metadata = MetadataCatalog.get(dataset_name)
        self.dataset_name, self.output_dir = dataset_name, output_dir
        self.class_names = [name.strip() for name in metadata.stuff_classes]
        self.ignore_value = metadata.get("ignore_label", IGNORED)
        self.palette = metadata.get("stuff_colors") or class_palette(len(self.class_names))
        self.image_root = metadata.get("image_root", "")
        self.reset()

    def reset(self) -> None:
        self.counts = PixelCounts(len(self.class_names))

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Tensor]]) -> None:
        """Count the pixels of a batch.

        Args:
            inputs: the records, or what a dataset mapper adds to them.
            outputs: dicts with "sem_seg": (K, H, W), logits, or (H, W), class indices.
        """
        for item, output in zip(inputs, outputs):
            prediction = output["sem_seg"]
            if prediction.ndim == 3:
                prediction = prediction.argmax(0)
            predicted = prediction.cpu().numpy()
            labels = labels_of(item, self.ignore_value)
            self.counts.add_record(item, predicted, labels, self.ignore_value)
            if self.output_dir:
                path = prediction_path(self.output_dir, item["file_name"], self.image_root)
                make_folder(path.parent)
                save_labels(path, predicted, self.palette)

    def evaluate(self) -> dict[str, dict[str, float]]:
        """Return the metrics of all processes: {"sem_seg": ...}; {} in processes other than 0."""
        parts = comm.gather(self.counts)
        if not comm.is_main_process():
            return {}
        total = PixelCounts(len(self.class_names))
        for part in parts:
            total.merge(part)
        labeled = total.confusion.sum(1)
        absent = [name for name, count in zip(self.class_names, labeled) if not count]
        if absent:
            logger.info(f"{self.dataset_name}: {len(absent)} classes have no labeled pixel")
        logger.info(f"boundary IoU: of pixels within {BOUNDARY_WIDTH:.0%} of the diagonal")
        return {"sem_seg": metrics_of(total, self.class_names)}
