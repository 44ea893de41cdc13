"""Read predicted label maps, as the evaluation of a segmentation model writes them."""

import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog

from ..data.datasets.custom_semantic import find_semantic, ignore_value_of
from ..data.label_maps import IGNORED, LABEL_MAPS, Color, class_palette, labels_of, read_labels
from ..utils.errors import UserError
from ..utils.events import results_folders
from ..utils.text import PATH_LIMIT, one_line
from .evaluated_dataset import (
    evaluated_tasks,
    require_same_data,
    require_single_set,
    validation_dataset,
)
from .semantic_evaluation import PixelCounts, prediction_path


class Truth(NamedTuple):
    """The images of a dataset and their label maps.

    Attributes:
        records: in Detectron2's format, see :func:`.labels_of`.
        classes: class names.
        palette: color of each class.
        ignore_value: label of the pixels that do not count.
        image_root: folder of all images.
        data: description of the dataset for messages.
    """

    records: list[dict[str, Any]]
    classes: list[str]
    palette: list[Color]
    ignore_value: int
    image_root: str
    data: str


class Case(NamedTuple):
    """An image with its pixels that are predicted wrongly.

    Attributes:
        record: of the image.
        name: of the image, relative to the folder of all images.
        wrong: number of labeled pixels with another prediction.
        labeled: number of labeled pixels.
    """

    record: dict[str, Any]
    name: str
    wrong: int
    labeled: int

    @property
    def error(self) -> float:
        """The fraction of labeled pixels that are wrong."""
        return self.wrong / max(self.labeled, 1)


class SemanticResults(NamedTuple):
    """Predicted label maps with their ground truth.

    Attributes:
        folder: of the training run or evaluation.
        truth: the images and label maps.
        counts: pixels of all images.
        cases: images, the one with the largest error first.
    """

    folder: Path
    truth: Truth
    counts: PixelCounts
    cases: list[Case]

    def label_maps(self, record: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        """Return the label map of an image and the predicted one, (H, W) each."""
        return _label_maps(self.folder, self.truth, record)


def has_label_maps(path: Path) -> bool:
    """Whether a folder is that of a segmentation model."""
    if not path.is_dir():
        return False
    if (path / LABEL_MAPS).is_dir() or results_folders(path, LABEL_MAPS):
        return True
    return "sem_seg" in evaluated_tasks(path)


def read_semantic_results(folder: Path, data: Path | None, split: str | None) -> SemanticResults:
    """Read predicted label maps and their ground truth, and count the pixels.

    Args:
        folder: of a training run or an evaluation.
        data: a custom dataset; None for the validation set of the config in the folder.
        split: "train" or "val" of the custom dataset; None for "val".

    Raises:
        UserError: something is missing or does not belong together.
    """
    require_single_set(folder, LABEL_MAPS)
    if not (folder / LABEL_MAPS).is_dir():
        raise UserError(
            f"{folder} has no predicted label maps: evaluate with "
            f"dataloader.evaluator.output_dir={folder}"
        )
    truth = _from_config(folder) if data is None else _custom(str(data), split)
    require_same_data(folder, truth.records, truth.classes, truth.data)
    total = PixelCounts(len(truth.classes))
    cases = []
    for record in truth.records:
        labels, predicted = _label_maps(folder, truth, record)
        total.add_record(record, predicted, labels, truth.ignore_value)
        counted = labels != truth.ignore_value
        wrong = int((labels != predicted)[counted].sum())
        name = os.path.relpath(record["file_name"], truth.image_root or None)
        cases.append(Case(record, one_line(name), wrong, int(counted.sum())))
    cases.sort(key=lambda case: -case.error)
    return SemanticResults(folder, truth, total, cases)


def _label_maps(
    folder: Path, truth: Truth, record: dict[str, Any]
) -> tuple[np.ndarray, np.ndarray]:
    path = prediction_path(folder, record["file_name"], truth.image_root)
    if not path.is_file():
        raise UserError(
            f"{one_line(path, PATH_LIMIT)} does not exist: the predictions in {folder} are not of "
            f"{truth.data}, or are incomplete; evaluate again, or give the dataset by --data"
        )
    predicted = read_labels(path)
    labels = labels_of(record, truth.ignore_value)
    if predicted.shape != labels.shape or predicted.max(initial=0) >= len(truth.classes):
        raise UserError(
            f"{one_line(path, PATH_LIMIT)} does not belong to {record['file_name']} with "
            f"{len(truth.classes)} classes; evaluate again"
        )
    return labels, predicted


def _custom(root: str, split: str | None) -> Truth:
    data, name = find_semantic(root), split or "val"
    if name not in data.splits:
        raise UserError(f"{root} has no label maps for {name}, only for {', '.join(data.splits)}")
    data.splits[name].raise_if_fatal(root)
    return Truth(
        data.splits[name].records,
        data.classes,
        data.palette,
        ignore_value_of(len(data.classes)),
        data.image_root,
        f"{root}, {name}",
    )


def _from_config(folder: Path) -> Truth:
    name, root = validation_dataset(folder)
    if root is not None:
        return _custom(root, "val")
    metadata = MetadataCatalog.get(name)
    if not metadata.get("stuff_classes"):
        raise UserError(f"dataset {name} has no label maps: give the dataset by --data")
    classes = [name.strip() for name in metadata.stuff_classes]
    return Truth(
        DatasetCatalog.get(name),
        classes,
        metadata.get("stuff_colors") or class_palette(len(classes)),
        metadata.get("ignore_label", IGNORED),
        metadata.get("image_root", ""),
        name,
    )
