"""Pictures: predictions, ground truth beside predictions, and the course of a training."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.figure
import numpy as np
from detectron2.data.catalog import Metadata
from detectron2.structures import Instances
from detectron2.utils.visualizer import ColorMode, Visualizer

SMALLEST_SIDE = 640  # pixels; smaller pictures are enlarged so that the labels on them can be read


def draw_predictions(image: np.ndarray, instances: Instances, classes: Sequence[str]) -> np.ndarray:
    """The picture (H, W, 3), RGB, with masks, boxes, class names and scores on it; each class has its colour."""
    visualizer = _visualizer(image, classes)
    numbers = instances.pred_classes.tolist()
    visualizer.overlay_instances(
        boxes=instances.pred_boxes,
        masks=list(instances.pred_masks.numpy()) if instances.has("pred_masks") else None,
        labels=[f"{classes[number]} {score:.0%}" for number, score in zip(numbers, instances.scores.tolist())],
        assigned_colors=[np.array(visualizer.metadata.thing_colors[number]) / 255 for number in numbers],
    )
    return visualizer.get_output().get_image()


def draw_annotations(image: np.ndarray, record: dict[str, Any], classes: Sequence[str]) -> np.ndarray:
    """The picture (H, W, 3), RGB, with the objects of its record in Detectron2's data set format on it."""
    return _visualizer(image, classes).draw_dataset_dict(record).get_image()


def _visualizer(image: np.ndarray, classes: Sequence[str]) -> Visualizer:
    palette = matplotlib.colormaps["tab10"]
    colours = [tuple(round(255 * part) for part in palette(i % palette.N)[:3]) for i in range(len(classes))]
    metadata = Metadata(name="", thing_classes=list(classes), thing_colors=colours)
    scale = max(1, SMALLEST_SIDE / min(image.shape[:2]))
    return Visualizer(image, metadata, scale=scale, instance_mode=ColorMode.SEGMENTATION)


def save_sheet(pairs: Sequence[tuple[np.ndarray, np.ndarray]], path: Path, columns: int = 2) -> None:
    """A sheet of pictures, each with ground truth on the left and prediction on the right."""
    rows = -(-len(pairs) // columns)
    figure = matplotlib.figure.Figure(figsize=(8 * columns, 4.2 * rows), layout="constrained")
    axes = figure.subplots(rows, 2 * columns, squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for i, pair in enumerate(pairs):
        row, column = divmod(i, columns)
        for side, (picture, title) in enumerate(zip(pair, ("ground truth", "prediction"))):
            axes[row, 2 * column + side].imshow(picture)
            axes[row, 2 * column + side].set_title(title, fontsize=8)
    figure.savefig(path, dpi=160)  # pictures of SMALLEST_SIDE are not made smaller


def save_curves(metrics: Path, path: Path) -> None:
    """Losses and AP over the iterations, from the ``metrics.json`` of a training."""
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    figure = matplotlib.figure.Figure(figsize=(12, 4.5), layout="constrained")
    losses, quality = figure.subplots(1, 2)
    names = {key for row in rows for key in row if "loss" in key} - {"total_loss"}
    for name in ["total_loss", *sorted(names)]:
        points = [(row["iteration"], row[name]) for row in rows if name in row]
        losses.plot(*zip(*points), label=name, linewidth=2.5 if name == "total_loss" else 1)
    for task, label in (("bbox", "boxes"), ("segm", "masks")):
        points = [(row["iteration"], row[f"{task}/AP"]) for row in rows if f"{task}/AP" in row]
        if points:
            quality.plot(*zip(*points), marker="o", label=label, clip_on=False)
    losses.set(xlabel="iteration", ylabel="training loss", yscale="log")
    losses.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    quality.set(xlabel="iteration", ylabel="validation AP (%)", xlim=(0, rows[-1]["iteration"] + 1), ylim=(0, 100))
    quality.legend()
    for axis in (losses, quality):
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
