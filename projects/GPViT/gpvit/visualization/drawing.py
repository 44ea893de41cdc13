"""Predictions and annotations on images, and sheets of both."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import matplotlib
import matplotlib.figure
import numpy as np
from detectron2.structures import BoxMode, Instances
from detectron2.utils.visualizer import VisImage, Visualizer
from matplotlib.transforms import Bbox
from pycocotools.mask import encode

from ..utils.fonts import draw_all_characters
from ..utils.text import one_line

# The sides of drawings in pixels: smaller pictures are enlarged so that labels on them can be read, and larger ones made
# smaller, as drawing them would take gigabytes.
SMALLEST_SIDE = 640
LARGEST_SIDE = 2560
NAME_LIMIT = 40  # characters of a name on a drawing


def draw_predictions(
    image: np.ndarray, instances: Instances, classes: Sequence[str], *, resize: bool = True
) -> np.ndarray:
    """The picture (H, W, 3), RGB, with masks, boxes, class names and scores on it; each class has its colour.

    Args:
        resize: whether the drawing may be larger or smaller than the picture, as labels and memory want it.
    """
    numbers = instances.pred_classes.tolist()
    names = [one_line(classes[number], NAME_LIMIT) for number in numbers]
    labels = [f"{name} {score:.0%}" for name, score in zip(names, instances.scores.tolist())]
    # Encoded: of arrays, the Visualizer refuses those that are two pixels wide.
    masks = (
        [encode(np.asfortranarray(mask)) for mask in instances.pred_masks.byte()]
        if instances.has("pred_masks")
        else None
    )
    return _draw(image, numbers, labels, instances.pred_boxes, masks, resize)


def cut_outs(image: np.ndarray, instances: Instances) -> Iterator[np.ndarray]:
    """Each object alone, cut out by its mask, or by its box if the detector gives no masks.

    Yields:
        (h, w, 4), RGBA, uint8, just large enough, transparent and black outside of the mask; (0, 0, 4) if that is empty.
    """
    for i in range(len(instances)):
        if instances.has("pred_masks"):
            mask = instances.pred_masks[i].numpy()
        else:
            x0, y0, x1, y1 = instances.pred_boxes.tensor[i].round().int().clamp(min=0).tolist()
            mask = np.zeros(image.shape[:2], bool)
            mask[y0:y1, x0:x1] = True
        x, y, width, height = cv2.boundingRect(mask.astype(np.uint8))
        part = np.s_[y : y + height, x : x + width]
        yield (
            np.dstack([image[part], np.full((height, width), 255, np.uint8)])
            * mask[part][..., None]
        )


def draw_annotations(
    image: np.ndarray, record: dict[str, Any], classes: Sequence[str]
) -> np.ndarray:
    """The same with the objects of its record in Detectron2's data set format."""
    objects = record["annotations"]
    numbers = [item["category_id"] for item in objects]
    names = [one_line(classes[number], NAME_LIMIT) for number in numbers]
    labels = [
        name + (" (crowd)" if item.get("iscrowd") else "") for name, item in zip(names, objects)
    ]
    boxes = [BoxMode.convert(item["bbox"], item["bbox_mode"], BoxMode.XYXY_ABS) for item in objects]
    masks = (
        [item["segmentation"] for item in objects]
        if all("segmentation" in item for item in objects)
        else None
    )
    return _draw(image, numbers, labels, boxes, masks)


def _draw(
    image: np.ndarray,
    numbers: list[int],
    labels: list[str],
    boxes: Any,
    masks: list | None,
    resize: bool = True,
) -> np.ndarray:
    palette = matplotlib.colormaps["tab10"]
    height, width = image.shape[:2]
    scale = (
        min(max(1, SMALLEST_SIDE / min(height, width)), LARGEST_SIDE / max(height, width))
        if resize
        else 1
    )
    visualizer = Visualizer(image, scale=scale)
    output = visualizer.output
    if scale < 1:
        output.ax.images[0].set_data(reduced(image, scale))
    if scale * min(height, width) < 1:  # which the Visualizer would round to nothing
        output.ax.set_aspect("auto")
        output.fig.set_size_inches(
            [(max(1, side * scale) + 0.01) / output.dpi for side in (width, height)]
        )
    visualizer.overlay_instances(
        boxes=boxes,
        masks=masks,
        labels=labels,
        assigned_colors=[np.array(palette(number % palette.N)[:3]) for number in numbers],
    )
    picture = visualizer.get_output()
    for text in picture.ax.texts:
        text.set_parse_math(False)  # a name may have $ in it
    draw_all_characters(picture.fig)
    _spread_labels(picture)
    return picture.get_image()


def reduced(picture: np.ndarray, scale: float) -> np.ndarray:
    """A picture (H, W, 3) made smaller by a factor, where that is below 1; its sides stay at least one pixel long."""
    if scale >= 1:
        return picture
    width, height = (max(1, round(side * scale)) for side in picture.shape[1::-1])
    return cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)


def _spread_labels(picture: VisImage) -> None:
    """Moves labels into the picture, and up or down to where no other one is."""
    width, height = picture.canvas.get_width_height()
    to_pixels = picture.ax.transData
    placed = np.zeros((len(picture.ax.texts), 4))

    def is_free(line: Bbox, others: np.ndarray) -> bool:
        x0, y0, x1, y1 = others.T
        return (
            line.y0 >= 0
            and line.y1 <= height
            and not ((x0 < line.x1) & (line.x0 < x1) & (y0 < line.y1) & (line.y0 < y1)).any()
        )

    for number, text in enumerate(picture.ax.texts):
        start = text.get_window_extent(picture.canvas.get_renderer()).padded(2)
        inside = start.translated(
            max(0, -start.x0) + min(0, width - start.x1),
            max(0, -start.y0) + min(0, height - start.y1),
        )
        lines = (
            inside.translated(0, step * inside.height) for step in sorted(range(-20, 21), key=abs)
        )
        box = next((line for line in lines if is_free(line, placed[:number])), inside)
        placed[number] = box.extents
        position = to_pixels.transform(text.get_position()) + box.min - start.min
        text.set_position(to_pixels.inverted().transform(position))


def save_sheet(pairs: Sequence[tuple[np.ndarray, np.ndarray]], path: Path) -> None:
    """A sheet of pictures, each with ground truth on the left and prediction on the right."""
    columns, rows = 2, -(-len(pairs) // 2)
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
