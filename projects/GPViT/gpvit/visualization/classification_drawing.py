"""Draw classes and scores on images, and below them."""

from collections.abc import Iterator, Sequence

import cv2
import numpy as np
from detectron2.utils.visualizer import Visualizer
from matplotlib.figure import Figure

from ..data.classification_mapper import read_classified
from ..evaluation.classification_results import Case, ClassificationResults
from ..utils.fonts import draw_all_characters
from ..utils.text import cut_in_the_middle, one_line
from . import style
from .comparison import DOTS_PER_INCH, PANE, draw_readable, to_image
from .drawing import NAME_LIMIT, drawing_scale

DPI = 100
NARROWEST = 480  # pixels, of a drawing with scores
PIXELATED = 4  # an image that is enlarged by more shows its pixels
ROW = 1.7  # height of a row of scores, in font sizes
ROW_MARGIN = 0.25  # above and below the rows, in rows
TITLE, TITLE_LINE = 64, 28  # pixels above a drawing: for two lines, and for the first of them
NAMES = 0.42  # fraction of the width for the names of classes


def enlarged(image: np.ndarray, scale: float) -> np.ndarray:
    """Resize an image (H, W, 3), RGB, by a factor; no side becomes 0 pixels."""
    height, width = image.shape[:2]
    size = max(1, round(width * scale)), max(1, round(height * scale))
    interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    if scale > PIXELATED:
        interpolation = cv2.INTER_NEAREST
    return cv2.resize(image, size, interpolation=interpolation)


def draw_label(image: np.ndarray, text: str, *, resize: bool = True) -> np.ndarray:
    """Write a class into the upper left corner of an image with Detectron2's Visualizer.

    Args:
        image: (H, W, 3), RGB.
        text: of the label.
        resize: whether the drawing may be enlarged or reduced, see :func:`.drawing_scale`.

    Returns:
        (h, w, 3), RGB, uint8.
    """
    if resize:
        image = enlarged(image, drawing_scale(*image.shape[:2]))
    visualizer = Visualizer(image)
    size = 2 * visualizer._default_font_size
    output = visualizer.draw_text(
        one_line(text, 2 * NAME_LIMIT),
        (size / 4, size / 4),
        font_size=size,
        color="w",
        horizontal_alignment="left",
    )
    for label in output.ax.texts:
        label.set_parse_math(False)  # a name may contain $
    draw_all_characters(output.fig)
    return output.get_image()


def with_scores(
    drawing: np.ndarray, names: Sequence[str], scores: Sequence[float], colors: Sequence[str]
) -> np.ndarray:
    """Add bars of scores below a drawing.

    Args:
        drawing: (h, w, 3), RGB; a narrow one is centered in a wider one.
        names: of the classes.
        scores: from 0 to 1.
        colors: of the bars.

    Returns:
        (h + bars, w, 3), RGB, uint8.
    """
    margin = max(0, NARROWEST - drawing.shape[1])
    sides = (margin // 2, margin - margin // 2)
    drawing = np.pad(drawing, ((0, 0), sides, (0, 0)), constant_values=255)
    width = drawing.shape[1]
    height = round((len(names) + 2 * ROW_MARGIN) * ROW * style.TEXT * DPI / 72)
    with style.figure_style():
        # A hundredth of a pixel keeps matplotlib from rounding a side down.
        figure = Figure(figsize=((width + 0.01) / DPI, (height + 0.01) / DPI), dpi=DPI)
        axes = figure.add_axes((0, 0, 1, 1))
        axes.axis("off")
        axes.set(xlim=(0, 1), ylim=(len(names) + ROW_MARGIN, -ROW_MARGIN))
        room = max(8, int(NAMES * width / (0.62 * style.TEXT * DPI / 72)))
        longest = 1 - NAMES - 0.12  # of a bar; the rest is for the number
        for row, (name, score, color) in enumerate(zip(names, scores, colors)):
            axes.text(
                NAMES - 0.01,
                row + 0.5,
                cut_in_the_middle(one_line(name, NAME_LIMIT), room),
                ha="right",
                va="center",
                parse_math=False,
            )
            axes.barh(row + 0.5, longest * score, 0.7, left=NAMES, color=color)
            axes.text(NAMES + longest * score + 0.01, row + 0.5, f"{score:.1%}", va="center")
        draw_all_characters(figure)
        bars = np.asarray(to_image(figure))
    return np.vstack([drawing, bars[:, :width]])


def draw_scores(
    image: np.ndarray, classes: Sequence[str], indices: Sequence[int], scores: Sequence[float]
) -> np.ndarray:
    """Draw the best predictions below an image.

    Args:
        image: (H, W, 3), RGB.
        classes: class names.
        indices, scores: of the predicted classes, the best first.

    Returns:
        (h, w, 3), RGB, uint8.
    """
    drawing = enlarged(image, drawing_scale(*image.shape[:2]))
    names = [classes[index] for index in indices]
    return with_scores(drawing, names, scores, [style.SERIES[0]] * len(names))


def draw_case(results: ClassificationResults, case: Case, rank: int, pane: int = PANE) -> Figure:
    """Draw an image with its best predictions; its own class is green, a wrong one red.

    Args:
        results: that the case is from.
        case: the image.
        rank: number in the title.
        pane: pixels of the longer side of the image.

    Raises:
        UserError: the image cannot be read.
    """
    image = read_classified(case.record)
    classes, scores = results.truth.classes, case.scores
    colors = [style.MUTED] * len(scores.classes)
    colors[0] = style.FALSE_POSITIVE
    if scores.label in scores.classes:
        colors[scores.classes.index(scores.label)] = style.TRUE_POSITIVE
    names = [classes[index] for index in scores.classes]
    drawing = enlarged(image, pane / max(image.shape[:2]))
    drawing = with_scores(drawing, names, scores.scores, colors)
    height, width = drawing.shape[:2]
    with style.figure_style():
        size = (width + 0.01) / DOTS_PER_INCH, (height + TITLE + 0.01) / DOTS_PER_INCH
        figure = Figure(figsize=size, dpi=DOTS_PER_INCH)
        figure.figimage(drawing)
        room = max(16, int(width / 12))  # a bold character of this size is about 12 pixels wide
        name = cut_in_the_middle(f"{rank}. {case.name}", room)
        lines = [(name, "bold"), (cut_in_the_middle(describe(results, case), room + 8), "normal")]
        for number, (line, weight) in enumerate(lines):
            figure.text(
                0.5,
                1 - (8 + number * TITLE_LINE) / (height + TITLE),
                line,
                ha="center",
                va="top",
                fontsize=style.HEADING if weight == "bold" else style.TEXT,
                weight=weight,
                parse_math=False,
            )
    draw_all_characters(figure)
    return figure


def describe(results: ClassificationResults, case: Case) -> str:
    """Describe the prediction of an image in one line, such as "cat, predicted as dog, 98.0%"."""
    classes, scores = results.truth.classes, case.scores
    label, predicted = one_line(classes[scores.label]), one_line(classes[scores.classes[0]])
    return f"{label}, predicted as {predicted}, {scores.scores[0]:.1%}"


def confident_mistakes(
    results: ClassificationResults, number: int, failures: list[str], pane: int = PANE
) -> Iterator[tuple[Case, Figure]]:
    """Draw the images with wrong predictions, those with the highest scores first.

    Args:
        results: of an evaluation.
        number: maximum number of drawings.
        failures: receives the error messages of images that cannot be read.
        pane: as for :func:`draw_case`.
    """

    def draw(case: Case, rank: int) -> Figure:
        return draw_case(results, case, rank, pane)

    return draw_readable(results.mistakes, draw, number, failures)
