"""Pictures: predictions, ground truth beside predictions, and the course of a training."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.figure
import numpy as np
from detectron2.structures import BoxMode, Instances
from detectron2.utils.visualizer import Visualizer

SMALLEST_SIDE = 640  # pixels; smaller pictures are enlarged so that the labels on them can be read


def draw_predictions(image: np.ndarray, instances: Instances, classes: Sequence[str]) -> np.ndarray:
    """The picture (H, W, 3), RGB, with masks, boxes, class names and scores on it; each class has its colour."""
    numbers = instances.pred_classes.tolist()
    labels = [f"{classes[number]} {score:.0%}" for number, score in zip(numbers, instances.scores.tolist())]
    masks = list(instances.pred_masks.numpy()) if instances.has("pred_masks") else None
    return _draw(image, numbers, labels, instances.pred_boxes, masks)


def draw_annotations(image: np.ndarray, record: dict[str, Any], classes: Sequence[str]) -> np.ndarray:
    """The same with the objects of its record in Detectron2's data set format."""
    objects = record["annotations"]
    numbers = [item["category_id"] for item in objects]
    labels = [classes[item["category_id"]] + (" (crowd)" if item.get("iscrowd") else "") for item in objects]
    boxes = [BoxMode.convert(item["bbox"], item["bbox_mode"], BoxMode.XYXY_ABS) for item in objects]
    masks = [item["segmentation"] for item in objects] if all("segmentation" in item for item in objects) else None
    return _draw(image, numbers, labels, boxes, masks)


def _draw(image: np.ndarray, numbers: list[int], labels: list[str], boxes: Any, masks: list | None) -> np.ndarray:
    palette = matplotlib.colormaps["tab10"]
    visualizer = Visualizer(image, scale=max(1, SMALLEST_SIDE / min(image.shape[:2])))
    visualizer.overlay_instances(
        boxes=boxes,
        masks=masks,
        labels=labels,
        assigned_colors=[np.array(palette(number % palette.N)[:3]) for number in numbers],
    )
    return visualizer.get_output().get_image()


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
    if quality.lines:
        quality.legend()
    for axis in (losses, quality):
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
