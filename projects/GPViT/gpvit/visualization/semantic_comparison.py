"""Label map, prediction and errors of an image next to each other."""

from collections.abc import Iterator

import cv2
import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from ..data.image_io import read_image
from ..evaluation.semantic_results import Case, SemanticResults
from ..utils.errors import UserError
from ..utils.fonts import draw_all_characters
from ..utils.text import cut_in_the_middle
from . import style
from .comparison import DOTS_PER_INCH, GAP, HEADER, LEGEND_ROW, PANE, draw_readable
from .drawing import reduced
from .label_drawing import class_patches, draw_labels

WRONG, IGNORED = style.FALSE_POSITIVE, style.IGNORED  # colors of the error map
MANY_CLASSES = 12  # in the legend


def draw_errors(
    image: np.ndarray, labels: np.ndarray, predicted: np.ndarray, ignore_value: int
) -> np.ndarray:
    """Draw which pixels are wrong over the image in gray.

    Args:
        image: (H, W, 3), RGB.
        labels, predicted: (H, W), class indices.
        ignore_value: label of the pixels that do not count.

    Returns:
        (H, W, 3), RGB, uint8.
    """
    gray = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32)
    drawing = np.repeat((128 + 0.5 * gray)[..., None], 3, axis=2)  # light: the colors stand out
    is_ignored = labels == ignore_value
    for mask, color in ((is_ignored, IGNORED), (~is_ignored & (labels != predicted), WRONG)):
        drawing[mask] = 0.2 * drawing[mask] + 0.8 * 255 * np.array(to_rgb(color))
    return drawing.astype(np.uint8)


def draw_case(results: SemanticResults, case: Case, rank: int, pane: int = PANE) -> Figure:
    """Draw label map, prediction and error map of an image.

    Args:
        results: that the case is from.
        case: the image.
        rank: 1 for the worst image.
        pane: pixels of the longer side of each drawing.

    Raises:
        UserError: the image cannot be read.
    """
    truth = results.truth
    image = read_image(case.record["file_name"])
    labels, predicted = results.label_maps(case.record)
    if image.shape[:2] != labels.shape:
        raise UserError(f"{case.record['file_name']}: differs in size from its label map")
    # Drawn at the size that is shown, since a large image takes gigabytes.
    image = reduced(image, pane / max(image.shape[:2]))
    size = image.shape[1], image.shape[0]
    labels, predicted = (
        cv2.resize(classes.astype(np.float32), size, interpolation=cv2.INTER_NEAREST).astype(int)
        for classes in (labels, predicted)
    )
    drawings = {
        "ground truth": draw_labels(image, labels, truth.classes, truth.palette),
        "prediction": draw_labels(image, predicted, truth.classes, truth.palette),
        "errors": draw_errors(image, labels, predicted, truth.ignore_value),
    }
    longer = max(image.shape[:2])
    height, width = image.shape[0] * pane / longer, image.shape[1] * pane / longer
    width = max(width, pane / 2)  # space for the text above a tall image
    total_width = len(drawings) * width + (len(drawings) - 1) * GAP
    patches = _legend(results, labels, predicted)
    names = [str(patch.get_label()) for patch in patches]
    points = 72 * (total_width - 2 * GAP) / DOTS_PER_INCH
    columns = style.legend_columns(names, points, style.TEXT)
    footer = GAP + LEGEND_ROW * -(-len(patches) // columns)
    total_height = height + HEADER + footer
    with style.figure_style():
        size = total_width / DOTS_PER_INCH, total_height / DOTS_PER_INCH
        figure = Figure(figsize=size, dpi=DOTS_PER_INCH)
        for number, (title, drawing) in enumerate(drawings.items()):
            # left, bottom, width, height in fractions of the figure
            corner = number * (width + GAP) / total_width, footer / total_height
            axes = figure.add_axes((*corner, width / total_width, height / total_height))
            axes.imshow(reduced(drawing, pane / max(drawing.shape[:2])))
            axes.axis("off")
            axes.set_title(title, fontsize=style.TEXT, pad=4)
        # A bold character of this size is about 12 pixels wide.
        room = max(16, int(total_width / 12) - 24)
        name = cut_in_the_middle(case.name, room)
        figure.text(
            0.5,
            1 - 8 / total_height,
            f"{rank}. {name}: {case.error:.1%} wrong",
            ha="center",
            va="top",
            fontsize=style.HEADING,
            weight="bold",
            parse_math=False,
        )
        legend = figure.legend(
            handles=patches, loc="lower center", ncols=columns, handlelength=1.2, borderaxespad=0.4
        )
        for text in legend.get_texts():
            text.set_parse_math(False)
    draw_all_characters(figure)
    return figure


def _legend(results: SemanticResults, labels: np.ndarray, predicted: np.ndarray) -> list[Patch]:
    """The colors of the classes in both label maps, and of the error map."""
    truth = results.truth
    found = np.concatenate([labels[labels != truth.ignore_value], predicted.ravel()])
    counts = np.bincount(found.astype(np.int64), minlength=len(truth.classes))
    patches = class_patches(counts, truth.classes, truth.palette, MANY_CLASSES)
    patches.append(Patch(facecolor=WRONG, label="wrong"))
    if (labels == truth.ignore_value).any():
        patches.append(Patch(facecolor=IGNORED, label="ignored"))
    return patches


def worst_cases(
    results: SemanticResults, number: int, failures: list[str], pane: int = PANE
) -> Iterator[tuple[Case, Figure]]:
    """Draw the images with the largest errors.

    Args:
        results: of an evaluation.
        number: maximum number of drawings.
        failures: receives the error messages of images that cannot be read.
        pane: as for :func:`draw_case`.
    """

    def draw(case: Case, rank: int) -> Figure:
        return draw_case(results, case, rank, pane)

    return draw_readable(results.cases, draw, number, failures)
