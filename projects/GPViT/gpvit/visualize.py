"""Pictures: predictions, ground truth beside predictions, and the course of a training."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.figure
import numpy as np
from detectron2.data.catalog import Metadata
from detectron2.structures import Instances
from detectron2.utils.visualizer import Visualizer

SMALLEST_SIDE = 640  # pixels; smaller pictures are enlarged so that the labels on them can be read


def draw_predictions(image: np.ndarray, instances: Instances, classes: Sequence[str]) -> np.ndarray:
    """The picture (H, W, 3), RGB, with masks, boxes, class names and scores on it."""
    return _visualizer(image, classes).draw_instance_predictions(instances).get_image()


def draw_annotations(image: np.ndarray, record: dict[str, Any], classes: Sequence[str]) -> np.ndarray:
    """The picture (H, W, 3), RGB, with the objects of its record in Detectron2's data set format on it."""
    return _visualizer(image, classes).draw_dataset_dict(record).get_image()


def _visualizer(image: np.ndarray, classes: Sequence[str]) -> Visualizer:
    return Visualizer(
        image, Metadata(name="", thing_classes=list(classes)), scale=max(1, SMALLEST_SIDE / min(image.shape[:2]))
    )


def save_sheet(pairs: Sequence[tuple[np.ndarray, np.ndarray]], path: Path, columns: int = 2) -> None:
    """A sheet of pictures, each with ground truth on the left and prediction on the right."""
    rows = -(-len(pairs) // columns)
    figure = matplotlib.figure.Figure(figsize=(8 * columns, 4 * rows), layout="constrained")
    axes = figure.subplots(rows, 2 * columns, squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for i, pair in enumerate(pairs):
        row, column = divmod(i, columns)
        for side, (picture, title) in enumerate(zip(pair, ("ground truth", "prediction"))):
            axes[row, 2 * column + side].imshow(picture)
            axes[row, 2 * column + side].set_title(title, fontsize=10)
    figure.savefig(path, dpi=100)


def save_curves(metrics: Path, path: Path) -> None:
    """Losses and AP over the iterations, from the ``metrics.json`` of a training."""
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    figure = matplotlib.figure.Figure(figsize=(12, 4.5), layout="constrained")
    losses, quality = figure.subplots(1, 2)
    for name in sorted({key for row in rows for key in row if "loss" in key}, key=lambda name: name != "total_loss"):
        points = [(row["iteration"], row[name]) for row in rows if name in row]
        losses.plot(*zip(*points), label=name, linewidth=2.5 if name == "total_loss" else 1)
    for task, label in (("bbox", "boxes"), ("segm", "masks")):
        points = [(row["iteration"], row[f"{task}/AP"]) for row in rows if f"{task}/AP" in row]
        if points:
            quality.plot(*zip(*points), marker="o", label=label)
    losses.set(xlabel="iteration", ylabel="training loss", yscale="log")
    quality.set(xlabel="iteration", ylabel="validation AP (%)", ylim=(0, 100))
    for axis in (losses, quality):
        axis.grid(alpha=0.3)
        axis.legend()
    figure.savefig(path, dpi=120)
