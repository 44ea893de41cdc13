"""Predictions of a classifier: those of an evaluation with their ground truth, and a writer."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog

from ..data.datasets.class_folders import find_classification
from ..data.sources import InputImage
from ..utils.errors import UserError
from ..utils.events import is_number, results_folders
from ..utils.files import atomic_write
from ..utils.text import LINE_LIMIT, one_line
from .classification_evaluation import RESULTS, TOP, ImageScores, confusion_matrix
from .evaluated_dataset import (
    evaluated_tasks,
    require_same_data,
    require_single_set,
    validation_dataset,
)


class Truth(NamedTuple):
    """The images of a dataset and their classes.

    Attributes:
        records: with "file_name", "image_id" and "label".
        classes: class names.
        image_root: folder of all images.
        data: description of the dataset for messages.
    """

    records: list[dict[str, Any]]
    classes: list[str]
    image_root: str
    data: str


class Case(NamedTuple):
    """An image with its predictions.

    Attributes:
        record: of the image.
        name: of the image, relative to the folder of all images; for an object with its number.
        scores: the predictions.
    """

    record: dict[str, Any]
    name: str
    scores: ImageScores

    @property
    def is_correct(self) -> bool:
        return self.scores.classes[0] == self.scores.label


class ClassificationResults(NamedTuple):
    """Predictions with their ground truth.

    Attributes:
        folder: of the training run or evaluation.
        truth: the images and their classes.
        cases: all images: those with a wrong prediction first, the highest score first.
    """

    folder: Path
    truth: Truth
    cases: list[Case]

    @property
    def images(self) -> list[ImageScores]:
        return [case.scores for case in self.cases]

    @property
    def counts(self) -> np.ndarray:
        """Images by class and prediction, (K, K)."""
        return confusion_matrix(self.images, len(self.truth.classes))

    @property
    def mistakes(self) -> list[Case]:
        """The cases with a wrong prediction, the highest score first."""
        return [case for case in self.cases if not case.is_correct]


class ScoresWriter:
    """Writes predictions.json of ``gpvit predict --json`` for a classifier.

    Args:
        folder: to write to.
        classes: class names.
    """

    def __init__(self, folder: Path, classes: Sequence[str]) -> None:
        self.path, self.classes = folder / "predictions.json", classes
        self.rows: list[dict[str, Any]] = []

    def add(self, image: InputImage, indices: Sequence[int], scores: Sequence[float]) -> None:
        """Add the best classes of an image with their scores, the best first."""
        row: dict[str, Any] = {"file_name": image.source.name}
        if image.frame is not None:
            row["frame"] = image.frame
        row["predictions"] = []
        for index, score in zip(indices, scores):
            row["predictions"].append({"class": self.classes[index], "score": round(score, 6)})
        self.rows.append(row)

    def close(self) -> None:
        with atomic_write(self.path) as partial:
            partial.write_text(json.dumps(self.rows, indent=1) + "\n", encoding="utf-8")


def has_classification(path: Path) -> bool:
    """Whether a folder is that of a classifier."""
    if not path.is_dir():
        return False
    has_file = (path / RESULTS).is_file() or bool(results_folders(path, RESULTS))
    return has_file or "classification" in evaluated_tasks(path)


def read_classification_results(
    folder: Path, data: Path | None, split: str | None
) -> ClassificationResults:
    """Read predictions and their ground truth.

    Args:
        folder: of a training run or an evaluation.
        data: a custom dataset; None for the validation set of the config in the folder.
        split: "train" or "val" of the custom dataset; None for "val".

    Raises:
        UserError: something is missing or does not belong together.
    """
    require_single_set(folder, RESULTS)
    if not (folder / RESULTS).is_file():
        raise UserError(
            f"{folder} has no {RESULTS}: evaluate with dataloader.evaluator.output_dir={folder}"
        )
    truth = _from_config(folder) if data is None else _custom(str(data), split)
    require_same_data(folder, truth.records, truth.classes, truth.data)
    predictions = _read_predictions(folder / RESULTS, len(truth.classes))
    cases = []
    for record in truth.records:
        found = predictions.get(record["image_id"])
        if found is None:
            raise UserError(
                f"{folder / RESULTS} has no prediction for {record['file_name']} of {truth.data}; "
                "evaluate again, or give the dataset by --data"
            )
        name = os.path.relpath(record["file_name"], truth.image_root or None)
        if "box" in record:
            name += f", object {record['image_id']}"
        scores = ImageScores(record["image_id"], record["label"], *found)
        cases.append(Case(record, one_line(name), scores))
    cases.sort(key=lambda case: (case.is_correct, -case.scores.scores[0]))
    return ClassificationResults(folder, truth, cases)


def _read_predictions(path: Path, num_classes: int) -> dict[int, tuple[list[int], list[float]]]:
    """Return the predicted classes and their scores by the ID of the image."""
    predictions = {}
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        for row in rows:
            classes, scores = row["classes"], row["scores"]
            valid = 0 < len(set(classes)) == len(classes) == len(scores) <= TOP
            for score in scores:
                valid = valid and is_number(score) and 0 <= score <= 1
            for index in classes:
                valid = valid and type(index) is int and 0 <= index < num_classes
            if not valid or type(row["image_id"]) is not int:
                raise ValueError(f"not predictions of {num_classes} classes: {row}")
            predictions[row["image_id"]] = classes, scores
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        reason = one_line(f"{type(error).__name__}: {error}", LINE_LIMIT)
        raise UserError(f"{path} cannot be used ({reason}); evaluate again") from None
    return predictions


def _custom(root: str, split: str | None) -> Truth:
    name = split or "val"
    data = find_classification(root, [name])
    if name not in data.splits:
        raise UserError(f"{root} has no images for {name}, only for {', '.join(data.splits)}")
    data.splits[name].raise_if_fatal(root)
    return Truth(data.splits[name].records, data.classes, data.image_root, f"{root}, {name}")


def _from_config(folder: Path) -> Truth:
    name, root = validation_dataset(folder)
    if root is not None:
        return _custom(root, "val")
    metadata = MetadataCatalog.get(name)
    if metadata.get("evaluator_type") != "classification":
        raise UserError(f"dataset {name} has no classes of images: give the dataset by --data")
    classes = list(metadata.thing_classes)
    return Truth(DatasetCatalog.get(name), classes, metadata.get("image_root", ""), name)
