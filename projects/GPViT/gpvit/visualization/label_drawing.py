"""Draw label maps over images, with a legend."""

from collections.abc import Sequence

import cv2
import numpy as np
from detectron2.data import Metadata
from detectron2.utils.visualizer import Visualizer
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from ..utils.fonts import draw_all_characters
from ..utils.text import one_line
from . import style
from .comparison import to_image
from .drawing import NAME_LIMIT, drawing_scale

NARROWEST = 3  # pixels, of a drawing
OPACITY = 0.55  # of a class over the image
LEGEND_DPI = 100
MANY_CLASSES = 24  # in a legend; the rarest others are summed up


def draw_labels(
    image: np.ndarray,
    labels: np.ndarray,
    classes: Sequence[str],
    palette: Sequence[Sequence[int]],
    *,
    resize: bool = True,
) -> np.ndarray:
    """Draw a label map over its image with Detectron2's Visualizer.

    Args:
        image: (H, W, 3), RGB.
        labels: (H, W), class indices; others are ignored and not drawn.
        classes: class names.
        palette: color of each class.
        resize: whether the drawing may be enlarged or reduced, see :func:`.drawing_scale`.

    Returns:
        (H, W, 3), RGB, uint8.
    """
    height, width = labels.shape
    scale = drawing_scale(height, width) if resize else 1.0
    size = max(1, round(width * scale)), max(1, round(height * scale))
    # Both are resized before they are drawn: the Visualizer refuses masks two pixels wide, and
    # would take gigabytes for large images.
    drawn_size = max(size[0], NARROWEST), size[1]
    smooth = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    image = cv2.resize(image, drawn_size, interpolation=smooth)
    # OpenCV has no int64. The Visualizer skips the indices that are no class.
    drawn = cv2.resize(labels.astype(np.float32), drawn_size, interpolation=cv2.INTER_NEAREST)
    metadata = Metadata(
        stuff_classes=[one_line(name, NAME_LIMIT) for name in classes], stuff_colors=list(palette)
    )
    output = Visualizer(image, metadata).draw_sem_seg(drawn.astype(np.int64), alpha=OPACITY)
    for text in output.ax.texts:
        text.set_parse_math(False)  # a name may contain $
    draw_all_characters(output.fig)
    drawing = output.get_image()
    return drawing if drawn_size == size else cv2.resize(drawing, size)


def class_patches(
    counts: np.ndarray,
    classes: Sequence[str],
    palette: Sequence[Sequence[int]],
    most: int,
    *,
    shares: bool = False,
) -> list[Patch]:
    """Return the entries of a legend: the classes that occur, the most frequent first.

    Args:
        counts: (K,), pixels by class.
        classes, palette: as for :func:`draw_labels`.
        most: number of classes; the others are summed up.
        shares: whether to add the shares of the pixels.
    """
    order = [int(index) for index in np.argsort(-counts, kind="stable") if counts[index]]
    rest = order[most:]
    patches = []
    for index in order[:most]:
        red, green, blue = palette[index]
        color = red / 255, green / 255, blue / 255
        label = one_line(classes[index], NAME_LIMIT)
        if shares:
            label += f" {counts[index] / counts.sum():.1%}"
        patches.append(Patch(facecolor=color, edgecolor=style.INK, linewidth=0.5, label=label))
    if rest:
        label = f"{len(rest)} more"
        if shares:
            label += f" {counts[rest].sum() / counts.sum():.1%}"
        patches.append(Patch(facecolor="none", label=label))
    return patches


def with_legend(
    drawing: np.ndarray,
    labels: np.ndarray,
    classes: Sequence[str],
    palette: Sequence[Sequence[int]],
) -> np.ndarray:
    """Add a legend below a drawing: the color of each class that occurs, and its share of pixels.

    Args:
        drawing: (h, w, 3), RGB.
        labels: (H, W), class indices; others do not count.
        classes, palette: as for :func:`draw_labels`.

    Returns:
        (h + legend, w, 3), RGB, uint8.
    """
    counted = labels[labels < len(classes)]
    counts = np.bincount(counted.ravel().astype(np.int64), minlength=len(classes))
    patches = class_patches(counts, classes, palette, MANY_CLASSES, shares=True)
    if not patches:
        return drawing
    width = drawing.shape[1]
    points = 72 * width / LEGEND_DPI
    names = [str(patch.get_label()) for patch in patches]
    columns = style.legend_columns(names, points, style.TEXT)
    rows = -(-len(patches) // columns)
    height = round((rows * 1.6 + 0.8) * style.TEXT * LEGEND_DPI / 72)
    with style.figure_style():
        # A hundredth of a pixel keeps matplotlib from rounding a side down.
        size = (width + 0.01) / LEGEND_DPI, (height + 0.01) / LEGEND_DPI
        figure = Figure(figsize=size, dpi=LEGEND_DPI)
        legend = figure.legend(
            handles=patches, loc="center", ncols=columns, handlelength=1.2, borderaxespad=0
        )
        for text in legend.get_texts():
            text.set_parse_math(False)
        draw_all_characters(figure)
        strip = np.asarray(to_image(figure))
    return np.vstack([drawing, strip[:, :width]])
