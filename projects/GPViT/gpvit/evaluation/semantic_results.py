"""Read predicted label maps, as the evaluation of a segmentation model writes them."""

import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from omegaconf import OmegaConf

from ..config import load_config
from ..data.datasets.custom_semantic import find_semantic, ignore_value_of
from ..data.datasets.register import folder_of, require_files
from ..data.label_maps import IGNORED, LABEL_MAPS, Color, class_palette, labels_of, read_labels
from ..utils.errors import UserError, preview
from ..utils.events import read_evaluation, results_folders
from ..utils.fingerprint import dataset_fingerprint
from ..utils.text import PATH_LIMIT, one_line
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
    results = read_evaluation(path / "evaluation.json").get("results")
    if not isinstance(results, dict):
        return False
    # With several validation sets, the results of each are one level deeper.
    parts = [results, *(part for part in results.values() if isinstance(part, dict))]
    return any("sem_seg" in part for part in parts)


def read_semantic_results(folder: Path, data: Path | None, split: str | None) -> SemanticResults:
    """Read predicted label maps and their ground truth, and count the pixels.

    Args:
        folder: of a training run or an evaluation.
        data: a custom dataset; None for the validation set of the config in the folder.
        split: "train" or "val" of the custom dataset; None for "val".

    Raises:
        UserError: something is missing or does not belong together.
    """
    if isinstance(read_evaluation(folder / "evaluation.json").get("data"), list):
        raise UserError(
            f"{folder} has results of several validation sets: give the folder of one of them, "
            f"{preview(results_folders(folder, LABEL_MAPS))}"
        )
    if not (folder / LABEL_MAPS).is_dir():
        raise UserError(
            f"{folder} has no predicted label maps: evaluate with "
            f"dataloader.evaluator.output_dir={folder}"
        )
    truth = _from_config(folder / "config.yaml") if data is None else _custom(str(data), split)
    _check_data(folder, truth)
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


def _check_data(folder: Path, truth: Truth) -> None:
    """Raise a UserError if evaluation.json shows that the predictions are for other data."""
    evaluated = read_evaluation(folder / "evaluation.json").get("data")
    if not isinstance(evaluated, dict) or not isinstance(evaluated.get("fingerprint"), str):
        return
    if dataset_fingerprint(truth.records, truth.classes) != evaluated["fingerprint"]:
        raise UserError(
            f"the predictions in {folder} belong to other data than {truth.data}: to "
            f"{one_line(evaluated.get('name'))} at the time of the evaluation; give that by "
            "--data, or evaluate again"
        )


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


def _from_config(config: Path) -> Truth:
    hint = "give the dataset by --data"
    if not config.is_file():
        raise UserError(f"{config} does not exist: {hint}")
    cfg = load_config(str(config))
    name = OmegaConf.select(cfg, "dataloader.test.dataset.names")
    if not isinstance(name, str):
        raise UserError(f"{config} names no validation dataset: {hint}")
    if root := folder_of(cfg, name):
        return _custom(root, "val")
    require_files(cfg.dataloader.test)
    metadata = MetadataCatalog.get(name)
    if not metadata.get("stuff_classes"):
        raise UserError(f"dataset {name} has no label maps: {hint}")
    classes = [name.strip() for name in metadata.stuff_classes]
    return Truth(
        DatasetCatalog.get(name),
        classes,
        metadata.get("stuff_colors") or class_palette(len(classes)),
        metadata.get("ignore_label", IGNORED),
        metadata.get("image_root", ""),
        name,
    )
