"""Drawings of the objects in very large images: where they are, and selected regions.

The image is read region by region, and never as one array. It is any object with a ``shape``
(H, W, 3) whose ``pixels[rows, columns]``, by two slices, is an RGB uint8 array.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
from detectron2.structures import Boxes, Instances
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, PowerNorm, to_rgb, to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from ..large_images.reduced import edges, read_reduced
from ..utils.fonts import draw_all_characters
from ..utils.text import one_line
from . import style
from .drawing import LARGEST_SIDE, NAME_LIMIT, draw_predictions

CELL = 8  # side in pixels of the drawing of a cell in which objects are counted
SMOOTHING = 3.0  # standard deviation of the Gaussian that smooths the counts, in cells
MIN_OUTLINE = 12  # pixels of the drawing that an object must be long to be outlined
MANY_CLASSES = 12  # entries of the legend
REGION = 1024  # largest side of a region in pixels
REGIONS = 4  # number of best regions, and of worst ones
MANY_LABELS = 100  # objects of a region above which labels would hide them
MASK_BYTES = 2**28  # of all masks that are kept for drawings of regions

DPI = LARGEST_SIDE / style.WIDTH  # of the legend
LEGEND_WIDTH = 5.0  # inches, at least
MARGIN, BAR, BAR_HEIGHT = 0.2, 2.6, 0.16  # inches
# Heights in inches: of the title, the scale, and a row of classes.
TITLE, SCALE, ROW = 0.42, 0.62, 1.6 * style.TEXT / 72
MEGAPIXEL = 1_000_000
RAMP = np.linspace(0, 1, 256)
# Areas without objects are transparent, so that the image is visible there. (256, RGBA)
HEAT = ListedColormap(
    np.column_stack([colormaps["inferno"](0.2 + 0.8 * RAMP)[:, :3], 0.9 * RAMP**0.7])
)
GRAY = 0.4  # brightness of an average image below the scale


class Objects(NamedTuple):
    """What is known of all objects.

    boxes: (N, 4), x0, y0, x1, y1 in pixels of the image.
    scores: (N,).
    class_indices: (N,), integers.
    """

    boxes: np.ndarray
    scores: np.ndarray
    class_indices: np.ndarray


class Overview:
    """Collect the detections of an image and draw them.

    Boxes, scores and classes of all objects are kept, and their masks as long as these have at
    most :data:`MASK_BYTES`; otherwise regions are drawn with boxes only.

    Args:
        classes: class names.
    """

    def __init__(self, classes: Sequence[str]) -> None:
        self.classes = classes
        self.chunks: list[Instances] = []
        self.mask_bytes = 0

    def add(self, instances: Instances) -> None:
        """Add detections in image pixels; their masks, if any, are CroppedMasks."""
        if not len(instances):
            return
        chunk = Instances(instances.image_size)
        for name in ("pred_boxes", "scores", "pred_classes"):
            chunk.set(name, instances.get(name).to("cpu"))
        self.chunks.append(chunk)
        if self.mask_bytes > MASK_BYTES or not instances.has("pred_masks"):
            return
        self.mask_bytes += instances.pred_masks.pixels.numel()
        chunk.pred_masks = instances.pred_masks.to("cpu")
        if self.mask_bytes > MASK_BYTES:
            for chunk in self.chunks:
                chunk.remove("pred_masks")

    def objects(self) -> Objects:
        boxes, scores, class_indices = [np.zeros((0, 4))], [np.zeros(0)], [np.zeros(0, np.int64)]
        for chunk in self.chunks:
            boxes.append(chunk.pred_boxes.tensor.numpy())
            scores.append(chunk.scores.numpy())
            class_indices.append(chunk.pred_classes.numpy())
        return Objects(np.concatenate(boxes), np.concatenate(scores), np.concatenate(class_indices))

    def draw(self, pixels: Any) -> np.ndarray:
        """Draw the complete image, see :func:`draw_overview`."""
        objects = self.objects()
        return draw_overview(pixels, objects.boxes, objects.class_indices, self.classes)

    def regions(self, pixels: Any) -> Iterator[tuple[str, np.ndarray]]:
        """Draw the regions with the highest and lowest mean scores, see :func:`select_regions`.

        Yields:
            name, such as "best_1_x2000_y4000" with the position in pixels, and (h, w, 3), RGB.
        """
        height, width = pixels.shape[:2]
        best, worst = select_regions(self.objects(), height, width)
        for kind, windows in (("best", best), ("worst", worst)):
            for number, window in enumerate(windows, start=1):
                left, top, right, bottom = window
                found = Instances.cat([cut_instances(chunk, window) for chunk in self.chunks])
                image = np.ascontiguousarray(pixels[top:bottom, left:right])
                yield f"{kind}_{number}_x{left}_y{top}", draw_region(image, found, self.classes)


# left, top, right, bottom in pixels of the image
Window = tuple[int, int, int, int]


def cut_instances(instances: Instances, window: Window) -> Instances:
    """Cut detections to a window, which becomes their image; those outside are removed."""
    left, top, right, bottom = window
    boxes = instances.pred_boxes.tensor
    x0, y0, x1, y1 = boxes.T
    instances = instances[(x0 < right) & (x1 > left) & (y0 < bottom) & (y1 > top)]
    cut = Instances((bottom - top, right - left), **instances.get_fields())
    cut.pred_boxes = Boxes(cut.pred_boxes.tensor - boxes.new_tensor([left, top, left, top]))
    cut.pred_boxes.clip(cut.image_size)
    if cut.has("pred_masks"):
        cut.pred_masks = cut.pred_masks.cut(left, top, right, bottom)
    return cut


def select_regions(objects: Objects, height: int, width: int) -> tuple[list[Window], list[Window]]:
    """Select the regions of an image of this size whose objects have extreme mean scores.

    The image is divided into equal parts of at most REGION x REGION pixels. An object belongs to
    the part of its center. Parts with less than half as many objects as the average part with
    objects are left out, since the mean of a few scores may be extreme by chance.

    Returns:
        up to REGIONS with the highest mean scores, best first, and up to REGIONS others with the
        lowest, worst first.
    """
    y_edges, x_edges = edges(height, -(-height // REGION)), edges(width, -(-width // REGION))
    shape = len(y_edges) - 1, len(x_edges) - 1
    x, y = centers(objects.boxes, height, width)
    rows = np.searchsorted(y_edges, y, side="right") - 1
    columns = np.searchsorted(x_edges, x, side="right") - 1
    parts = rows * shape[1] + columns
    counts = np.bincount(parts, minlength=shape[0] * shape[1])
    sums = np.bincount(parts, objects.scores, minlength=shape[0] * shape[1])
    occupied = np.flatnonzero(counts)
    if not len(occupied):
        return [], []
    candidates = occupied[counts[occupied] >= counts[occupied].mean() / 2]
    means = sums[candidates] / counts[candidates]
    windows = []
    for part in candidates[np.argsort(-means, kind="stable")]:
        row, column = divmod(int(part), shape[1])
        left, right = x_edges[column : column + 2].tolist()
        top, bottom = y_edges[row : row + 2].tolist()
        windows.append((left, top, right, bottom))
    best = windows[: min(REGIONS, -(-len(windows) // 2))]
    worst = windows[len(best) :][::-1][:REGIONS]
    return best, worst


def centers(boxes: np.ndarray, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Return x and y of the pixels in the centers of boxes, inside of the image."""
    x, y = (boxes[:, 0] + boxes[:, 2]) / 2, (boxes[:, 1] + boxes[:, 3]) / 2
    return x.clip(0, width - 1).astype(np.int64), y.clip(0, height - 1).astype(np.int64)


def draw_overview(
    pixels: Any, boxes: np.ndarray, class_indices: np.ndarray, classes: Sequence[str]
) -> np.ndarray:
    """Draw the density of objects on an image in gray, with a legend.

    Objects of at least MIN_OUTLINE pixels of the drawing are outlined in the color of their class.

    Args:
        pixels: the image, which is read region by region.
        boxes, class_indices: of all objects, see :class:`Objects`.
        classes: class names.

    Returns:
        (h, w, 3), RGB, uint8; the image in it has a longest side of at most LARGEST_SIDE.
    """
    height, width = pixels.shape[:2]
    scale = min(1, LARGEST_SIDE / max(height, width))
    # In gray, so that all colors are those of densities and classes.
    gray = cv2.cvtColor(read_reduced(pixels, scale), cv2.COLOR_RGB2GRAY)
    drawing = cv2.cvtColor(gray, cv2.COLOR_GRAY2RGB)
    values = density(boxes, (height, width), drawing.shape[:2])
    norm = PowerNorm(0.5, 0, values.max() or 1)
    drawing = with_heat(drawing, values, norm)
    is_outlined = scale * (boxes[:, 2:] - boxes[:, :2]).max(axis=1, initial=0) >= MIN_OUTLINE
    draw_outlines(drawing, boxes[is_outlined] * scale, class_indices[is_outlined])
    count = len(boxes)
    title = f"{count:,} {'object' if count == 1 else 'objects'} in {width:,} x {height:,} pixels"
    patches = class_patches(class_indices, bool(is_outlined.any()), classes)
    return with_legend(drawing, title, patches, norm)


def draw_region(image: np.ndarray, instances: Instances, classes: Sequence[str]) -> np.ndarray:
    """Draw the detections of a region, labeled unless there are many, with a legend."""
    count = len(instances)
    drawing = draw_predictions(image, instances, classes, with_labels=count <= MANY_LABELS)
    title = f"{count:,} {'object' if count == 1 else 'objects'}"
    title += f", mean score {float(instances.scores.mean()):.0%}"
    patches = class_patches(instances.pred_classes.numpy(), True, classes)
    return with_legend(drawing, title, patches, None)


def density(boxes: np.ndarray, image: tuple[int, int], drawing: tuple[int, int]) -> np.ndarray:
    """Count objects in cells of the drawing, and smooth the counts.

    Args:
        boxes: (N, 4), in pixels of the image.
        image: height and width of the image.
        drawing: height and width of the drawing.

    Returns:
        (rows, columns), objects per megapixel of the image around each cell. Its mean is that of
        the image.
    """
    rows, columns = (max(1, round(side / CELL)) for side in drawing)
    x, y = centers(boxes, *image)
    cells = y * rows // image[0] * columns + x * columns // image[1]
    counts = np.bincount(cells, minlength=rows * columns).reshape(rows, columns).astype(np.float64)
    # Reflected at the border, the counts keep their sum.
    smooth = cv2.GaussianBlur(counts, (0, 0), SMOOTHING, borderType=cv2.BORDER_REFLECT)
    return smooth * (rows * columns * MEGAPIXEL / (image[0] * image[1]))


def with_heat(drawing: np.ndarray, values: np.ndarray, norm: PowerNorm) -> np.ndarray:
    """Draw a map over an image of any other resolution (h, w, 3), uint8."""
    height, width = drawing.shape[:2]
    smooth = cv2.resize(norm(values).data, (width, height), interpolation=cv2.INTER_LINEAR)
    heat = HEAT(smooth, bytes=True)  # (h, w, RGBA)
    color, alpha = heat[..., :3], heat[..., 3:].astype(np.uint16)
    return ((drawing * (255 - alpha) + color * alpha) // 255).astype(np.uint8)


def draw_outlines(drawing: np.ndarray, boxes: np.ndarray, class_indices: np.ndarray) -> None:
    """Draw boxes in the colors of their classes into an image (h, w, 3), RGB, uint8."""
    colors = np.round(style.CLASS_COLORS * 255)
    for box, index in zip(boxes.round().astype(int).tolist(), class_indices.tolist()):
        color = colors[index % len(colors)].tolist()
        cv2.rectangle(drawing, box[:2], box[2:], (0, 0, 0), thickness=4)
        cv2.rectangle(drawing, box[:2], box[2:], color, thickness=2)


def with_legend(
    drawing: np.ndarray, title: str, patches: Sequence[Patch], norm: PowerNorm | None
) -> np.ndarray:
    """Add a legend below a drawing, or beside it if it is high.

    Args:
        drawing: (h, w, 3), RGB, uint8.
        title: of the legend.
        patches: entries of the legend.
        norm: from objects per megapixel to colors of HEAT; None to leave out their scale.
    """
    height, width = drawing.shape[:2]
    is_high = height > width
    inches = LEGEND_WIDTH if is_high else max(LEGEND_WIDTH, width / DPI)
    with style.figure_style():
        legend = draw_legend(inches, title, patches, norm)
    if is_high:
        sides = max(height, legend.shape[0]), width + legend.shape[1]
        place = np.s_[: legend.shape[0], width:]
    else:
        sides = height + legend.shape[0], max(width, legend.shape[1])
        place = np.s_[height:, : legend.shape[1]]
    canvas = np.full((*sides, 3), np.round(np.multiply(255, to_rgb(style.BACKGROUND))), np.uint8)
    canvas[:height, :width] = drawing
    canvas[place] = legend
    return canvas


def draw_legend(
    width: float, title: str, patches: Sequence[Patch], norm: PowerNorm | None
) -> np.ndarray:
    """Draw a legend that is ``width`` inches wide; other arguments as for :func:`with_legend`."""
    is_colored = any(to_rgba(patch.get_facecolor())[3] for patch in patches)
    names = [str(patch.get_label()) for patch in patches]
    columns = style.legend_columns(names, 72 * (width - 2 * MARGIN), style.TEXT)
    rows = -(-len(patches) // columns) if patches else 0
    # Distances from the upper edge in inches.
    scale_top = MARGIN + TITLE
    classes_top = scale_top + (SCALE if patches and norm else 0)
    height = classes_top + rows * ROW + (MARGIN / 2 if patches else 0)
    # A hundredth of a pixel keeps matplotlib from rounding a side down.
    figure = Figure(figsize=(width + 0.01 / DPI, height + 0.01 / DPI), dpi=DPI)
    left = MARGIN / width
    text = figure.text(left, 1 - MARGIN / height, title, va="top")
    text.set(fontsize=style.HEADING, weight="bold")
    if patches and norm:
        bottom = height - scale_top - BAR_HEIGHT
        panel = figure.add_axes((left, bottom / height, BAR / width, BAR_HEIGHT / height))
        draw_scale(panel, norm)
        x, y = (MARGIN + BAR + 0.15) / width, (bottom + BAR_HEIGHT / 2) / height
        figure.text(x, y, "objects per megapixel", va="center")
    if patches:
        legend = figure.legend(
            handles=list(patches),
            loc="upper left",
            bbox_to_anchor=(left, 1 - classes_top / height),
            ncols=columns,
            handlelength=1.2 if is_colored else 0,
            handletextpad=0.6 if is_colored else 0,
            borderaxespad=0,
        )
        for text in legend.get_texts():
            text.set_parse_math(False)
    draw_all_characters(figure)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]


def draw_scale(panel: Axes, norm: PowerNorm) -> None:
    """Draw the colors of densities with ticks below."""
    panel.set_facecolor(str(GRAY))  # behind the transparent end of the color map
    figure = panel.get_figure(root=True)
    assert figure is not None
    scale = figure.colorbar(ScalarMappable(norm, HEAT), cax=panel, orientation="horizontal")
    scale.outline.set_visible(False)
    assert norm.vmax is not None
    # Rounded densities at about equal distances on the scale, whose colors follow square roots.
    ticks = []
    for fraction in (0.11, 0.44):
        ticks.append(float(f"{norm.vmax * fraction:.1g}"))
    ticks = [0.0, *ticks, norm.vmax]
    scale.set_ticks(ticks, labels=[f"{float(f'{tick:.2g}'):,g}" for tick in ticks])
    panel.minorticks_off()
    panel.grid(False)


def class_patches(class_indices: np.ndarray, colored: bool, classes: Sequence[str]) -> list[Patch]:
    """Return the entries of the legend: classes by their number of objects, most first.

    Args:
        class_indices: of all objects.
        colored: whether entries show the colors of outlines.
        classes: class names.
    """
    counts = np.bincount(class_indices, minlength=len(classes))
    order = np.argsort(-counts, kind="stable")
    order = order[counts[order] > 0]
    shown = order if len(order) <= MANY_CLASSES else order[: MANY_CLASSES - 1]
    patches = []
    for index in shown.tolist():
        color = style.CLASS_COLORS[index % len(style.CLASS_COLORS)] if colored else "none"
        label = f"{one_line(classes[index], NAME_LIMIT)}: {counts[index]:,}"
        patches.append(Patch(facecolor=color, label=label))
    if len(shown) < len(order):
        rest = order[len(shown) :]
        label = f"{len(rest)} other classes: {counts[rest].sum():,}"
        patches.append(Patch(facecolor="none", label=label))
    return patches
