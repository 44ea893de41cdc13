"""Draw predictions and annotations on images, and sheets of both."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from detectron2.structures import BoxMode, Instances
from detectron2.utils.visualizer import VisImage, Visualizer
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox
from pycocotools.mask import encode

from ..data.cropped_masks import Crop, CroppedMasks
from ..utils.fonts import draw_all_characters
from ..utils.text import one_line
from . import style

# Sides of drawings in pixels: smaller images are enlarged so that labels are legible, larger ones
# are reduced because drawing them would take gigabytes of memory.
SMALLEST_SIDE = 640
LARGEST_SIDE = 2560
NAME_LIMIT = 40  # characters of a name on a drawing
LABEL_STEPS = sorted(range(-20, 21), key=abs)  # tried positions of a label, in label heights


def draw_predictions(
    image: np.ndarray,
    instances: Instances,
    classes: Sequence[str],
    *,
    resize: bool = True,
    with_labels: bool = True,
) -> np.ndarray:
    """Draw masks, boxes, class names and scores on an image; each class has its color.

    Args:
        image: (H, W, 3), RGB.
        instances: predictions in Detectron2's format.
        classes: class names.
        resize: whether the drawing may be enlarged or reduced, see :func:`drawing_scale`.
        with_labels: whether to write class names and scores.

    Returns:
        (H, W, 3), RGB, uint8.
    """
    class_indices = instances.pred_classes.tolist()
    labels: list[str] | None = None
    if with_labels:
        labels = []
        for index, score in zip(class_indices, instances.scores.tolist()):
            labels.append(f"{one_line(classes[index], NAME_LIMIT)} {score:.0%}")
    masks: list | None = None
    if instances.has("pred_masks") and isinstance(instances.pred_masks, CroppedMasks):
        # As polygons, because the Visualizer would decode all RLEs at full size.
        masks = list(map(_contours, instances.pred_masks.crops()))
    elif instances.has("pred_masks"):
        # As RLE, because the Visualizer refuses arrays that are two pixels wide.
        masks = [encode(np.asfortranarray(mask)) for mask in instances.pred_masks.byte()]
    return _draw(image, class_indices, labels, instances.pred_boxes, masks, resize)


def _contours(mask: Crop) -> list[np.ndarray]:
    """Return the outlines x, y, x, y, ... that the Visualizer finds in a mask at full size."""
    image = mask.pixels.astype(np.uint8)
    contours, _ = cv2.findContours(image, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    polygons = []
    for points in contours:  # (n, 1, 2), centers of pixels
        if len(points) >= 3:
            polygons.append((points + [mask.left + 0.5, mask.top + 0.5]).ravel())
    return polygons


def cut_outs(image: np.ndarray, instances: Instances) -> Iterator[np.ndarray]:
    """Cut out each object by its mask, or by its box if the detector predicts no masks.

    Yields:
        (h, w, 4), RGBA, uint8, the tight crop, transparent and black outside of the mask; (0, 0, 4)
        for an empty mask.
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
        opaque = np.dstack([image[part], np.full((height, width), 255, np.uint8)])
        yield opaque * mask[part][..., None]  # zero in all four channels outside of the mask


def draw_annotations(
    image: np.ndarray, record: dict[str, Any], classes: Sequence[str]
) -> np.ndarray:
    """Draw the objects of a record in Detectron2's dataset format, as :func:`draw_predictions`."""
    objects = record["annotations"]
    class_indices, labels, boxes = [], [], []
    for item in objects:
        class_indices.append(item["category_id"])
        crowd = " (crowd)" if item.get("iscrowd") else ""
        labels.append(one_line(classes[item["category_id"]], NAME_LIMIT) + crowd)
        boxes.append(BoxMode.convert(item["bbox"], item["bbox_mode"], BoxMode.XYXY_ABS))
    masks = None
    if all("segmentation" in item for item in objects):
        masks = [item["segmentation"] for item in objects]
    return _draw(image, class_indices, labels, boxes, masks)


def _draw(
    image: np.ndarray,
    class_indices: list[int],
    labels: list[str] | None,
    boxes: Any,
    masks: list | None,
    resize: bool = True,
) -> np.ndarray:
    height, width = image.shape[:2]
    scale = drawing_scale(height, width) if resize else 1.0
    visualizer = Visualizer(image, scale=scale)
    output = visualizer.output
    if scale < 1:
        output.ax.images[0].set_data(reduced(image, scale))
    if scale * min(height, width) < 1:  # the Visualizer would round this side to zero pixels
        output.ax.set_aspect("auto")
        # As in Detectron2, 0.01 pixels keep the canvas from losing one to rounding.
        sides = np.maximum(1, np.array([width, height]) * scale) + 0.01
        output.fig.set_size_inches(sides / output.dpi)
    colors = [style.CLASS_COLORS[index % len(style.CLASS_COLORS)] for index in class_indices]
    visualizer.overlay_instances(boxes=boxes, masks=masks, labels=labels, assigned_colors=colors)
    drawing = visualizer.get_output()
    for text in drawing.ax.texts:
        text.set_parse_math(False)  # a name may contain $
    draw_all_characters(drawing.fig)
    _spread_labels(drawing)
    return drawing.get_image()


def drawing_scale(height: int, width: int) -> float:
    """Return the factor from an image to its drawing, see :data:`SMALLEST_SIDE`."""
    enlarged = max(1, SMALLEST_SIDE / min(height, width))
    return min(enlarged, LARGEST_SIDE / max(height, width))


def reduced(image: np.ndarray, scale: float) -> np.ndarray:
    """Reduce an image (H, W, 3) by a factor below 1, else return it; no side becomes 0 pixels."""
    if scale >= 1:
        return image
    height, width = image.shape[:2]
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)


def _spread_labels(drawing: VisImage) -> None:
    """Move labels into the image, and up or down to where they do not overlap another one."""
    width, height = drawing.canvas.get_width_height()
    to_pixels = drawing.ax.transData
    placed = np.zeros((len(drawing.ax.texts), 4))  # x0, y0, x1, y1 in pixels

    def is_free(label: Bbox, others: np.ndarray) -> bool:
        if label.y0 < 0 or label.y1 > height:
            return False
        x0, y0, x1, y1 = others.T
        overlaps = (x0 < label.x1) & (label.x0 < x1) & (y0 < label.y1) & (label.y0 < y1)
        return not overlaps.any()

    for number, text in enumerate(drawing.ax.texts):
        start = text.get_window_extent(drawing.canvas.get_renderer()).padded(2)
        inside = start.translated(
            max(0, -start.x0) + min(0, width - start.x1),
            max(0, -start.y0) + min(0, height - start.y1),
        )
        box = inside  # if there is no free position
        for step in LABEL_STEPS:
            candidate = inside.translated(0, step * inside.height)
            if is_free(candidate, placed[:number]):
                box = candidate
                break
        placed[number] = box.extents
        position = to_pixels.transform(text.get_position()) + box.min - start.min
        text.set_position(to_pixels.inverted().transform(position))


def save_sheet(pairs: Sequence[tuple[np.ndarray, np.ndarray]], path: Path) -> None:
    """Save a sheet of drawings, each with ground truth on the left and prediction on the right."""
    columns, rows = 2, -(-len(pairs) // 2)
    with style.figure_style():
        figure = Figure(figsize=(6 * columns, 3.3 * rows), layout="constrained")
        axes = figure.subplots(rows, 2 * columns, squeeze=False)
        for panel in axes.flat:
            panel.axis("off")
        for i, pair in enumerate(pairs):
            row, column = divmod(i, columns)
            for side, (drawing, title) in enumerate(zip(pair, ("ground truth", "prediction"))):
                panel = axes[row, 2 * column + side]
                panel.imshow(drawing)
                panel.set_title(title, fontsize=style.TEXT, pad=4)
        # A panel is 3 inches wide: enough not to reduce drawings of SMALLEST_SIDE.
        figure.savefig(path, dpi=SMALLEST_SIDE / 2.95)
