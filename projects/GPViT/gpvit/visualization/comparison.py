"""Ground truth next to predictions, with true positives, false positives and false negatives."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from PIL import Image
from pycocotools.coco import COCO

from ..data.image_io import read_annotated_image
from ..evaluation.coco_results import Inputs
from ..evaluation.matching import Outcome
from ..utils.errors import UserError
from ..utils.fonts import draw_all_characters
from ..utils.text import cut_in_the_middle, one_line
from . import style
from .drawing import NAME_LIMIT

AnyCase = TypeVar("AnyCase")

DOTS_PER_INCH = 100
PANE = 640  # pixels: the longer side of an image in a drawing
GAP, HEADER = 8, 56  # pixels between the two images, and above them
LEGEND_ROW = 26  # pixels
COLUMNS = 2  # of the sheet
SHEET_WIDTH = 900  # pixels of a drawing on the sheet
SHEET_GAP = 16  # pixels between drawings on the sheet
MANY = 30  # with more objects, class names would hide the image, and only signs are drawn


class Style(NamedTuple):
    """How an object or a detection is drawn; no two differ only in color."""

    color: str
    line: Literal["-", ":", "--", "-."]
    sign: str
    meaning: str


STYLES = {
    "true positive": Style(style.TRUE_POSITIVE, "-", "✓", "true positive (TP)"),
    "false positive": Style(style.FALSE_POSITIVE, ":", "✗", "false positive (FP)"),
    "false negative": Style(style.FALSE_NEGATIVE, "--", "?", "false negative (FN)"),
    "ignored": Style(style.IGNORED, "-.", "~", "crowd (ignored)"),
}


class Case(NamedTuple):
    """An image and its outcome.

    Attributes:
        image: from the annotations.
        outcome: ids of detections and objects.
        cost: number of false negatives plus the scores of the false positives.
    """

    image: dict[str, Any]
    outcome: Outcome
    cost: float

    def counts(self) -> str:
        outcome = self.outcome
        return (
            f"{len(outcome.true_positives)} TP, {len(outcome.false_positives)} FP, "
            f"{len(outcome.false_negatives)} FN"
        )


def worst_first(ground_truth: COCO, found: COCO, cases: dict[int, Outcome]) -> list[Case]:
    """All images in descending order of :attr:`Case.cost`."""
    ranked = []
    for id, outcome in cases.items():
        scores = [found.anns[detection]["score"] for detection in outcome.false_positives]
        cost = len(outcome.false_negatives) + sum(scores)
        ranked.append(Case(ground_truth.imgs[id], outcome, cost))
    return sorted(ranked, key=lambda case: -case.cost)


def draw(
    image: np.ndarray,
    case: Case,
    ground_truth: COCO,
    found: COCO,
    *,
    masks: bool,
    rank: int = 1,
    pane: int = PANE,
) -> Figure:
    """Draw the ground truth on the left and the detections on the right.

    Args:
        image: (H, W, 3), RGB.
        case: the image's outcome.
        ground_truth, found: the objects and detections that its ids belong to.
        masks: whether to draw masks.
        rank: 1 for the worst image.
        pane: pixels of the longer side of the image in the drawing.
    """
    longer = max(image.shape[:2])
    height, width = image.shape[0] * pane / longer, image.shape[1] * pane / longer
    width = max(width, pane / 2)  # space for the text above a tall image
    total_width = 2 * width + GAP
    columns = style.legend_columns(
        _legend_labels(), 72 * (total_width - 2 * GAP) / DOTS_PER_INCH, style.TEXT
    )
    footer = GAP + LEGEND_ROW * -(-len(STYLES) // columns)
    total_height = height + HEADER + footer
    size = total_width / DOTS_PER_INCH, total_height / DOTS_PER_INCH
    sides = {
        "ground truth": (ground_truth, _objects(case, ground_truth)),
        "detections": (found, _detections(case, found)),
    }
    with style.figure_style():
        figure = Figure(figsize=size, dpi=DOTS_PER_INCH)
        for side, (title, (source, items)) in enumerate(sides.items()):
            # left, bottom, width, height in fractions of the figure
            corner = side * (width + GAP) / total_width, footer / total_height
            axes = figure.add_axes((*corner, width / total_width, height / total_height))
            axes.imshow(_tinted(image, items, source) if masks else image)
            axes.axis("off")
            axes.autoscale(False)  # boxes may extend beyond the image
            axes.set_title(title, fontsize=style.TEXT, pad=4)
            for item, how in items:
                category = ground_truth.cats[item["category_id"]]
                name = category["name"] if len(items) <= MANY else ""
                _draw_item(axes, item, how, name, image.shape[:2])
        # A bold character of this size is about 12 pixels wide.
        room = max(16, int(total_width / 12) - 24)
        name = cut_in_the_middle(one_line(case.image["file_name"]), room)
        figure.text(
            0.5,
            1 - 8 / total_height,
            f"{rank}. {name}: {case.counts()}",
            ha="center",
            va="top",
            fontsize=style.HEADING,
            weight="bold",
            parse_math=False,
        )
        _draw_legend(figure, columns)
    draw_all_characters(figure)
    return figure


Items = list[tuple[dict[str, Any], Style]]


def _objects(case: Case, ground_truth: COCO) -> Items:
    false_negatives = set(case.outcome.false_negatives)
    items = []
    for item in ground_truth.imgToAnns[case.image["id"]]:
        if item.get("iscrowd"):
            kind = "ignored"
        elif item["id"] in false_negatives:
            kind = "false negative"
        else:
            kind = "true positive"
        items.append((item, STYLES[kind]))
    return items


def _detections(case: Case, found: COCO) -> Items:
    """Detections in the order of drawing: false positives on top, of these the highest scores."""
    kinds = {
        "ignored": case.outcome.ignored,
        "true positive": case.outcome.true_positives,
        "false positive": case.outcome.false_positives,
    }
    items = []
    for kind, ids in kinds.items():
        for id in reversed(ids):
            items.append((found.anns[id], STYLES[kind]))
    return items


def _tinted(image: np.ndarray, items: Items, source: COCO) -> np.ndarray:
    """The image with the masks of items in their colors."""
    tinted = image.astype(np.float32)
    for item, how in items:
        mask = source.annToMask(item).astype(bool)
        tinted[mask] = 0.65 * tinted[mask] + 0.35 * 255 * np.array(to_rgb(how.color))
    return tinted.astype(np.uint8)


def _draw_item(
    axes: Axes, item: dict[str, Any], how: Style, name: str, size: tuple[int, int]
) -> None:
    """Draw box and label of an object or a detection.

    Args:
        axes: with the image.
        item: a COCO annotation or result.
        how: style of its outcome.
        name: class name; "" to draw only the sign.
        size: height and width of the image.
    """
    x, y, w, h = item["bbox"]
    corners_x, corners_y = [x, x + w, x + w, x, x], [y, y, y + h, y + h, y]
    halo = [withStroke(linewidth=3.8, foreground="white", alpha=0.7)]
    axes.plot(
        corners_x, corners_y, color=how.color, linestyle=how.line, linewidth=2, path_effects=halo
    )
    label = [how.sign]
    if name:
        label.append(one_line(name, NAME_LIMIT))
        if "score" in item:
            label.append(f"{item['score']:.0%}")
    axes.text(
        min(max(x, 0), size[1]),
        min(max(y, 0), size[0]),
        " ".join(label),
        color="white",
        fontsize=style.SMALL,
        va="bottom" if y > size[0] / 12 else "top",  # below the edge at the top of the image
        clip_on=True,
        parse_math=False,
        bbox={"facecolor": how.color, "edgecolor": "none", "pad": 1, "alpha": 0.85},
    )


def _legend_labels() -> list[str]:
    return [f"{how.sign} {how.meaning}" for how in STYLES.values()]


def _draw_legend(figure: Figure, columns: int) -> None:
    lines = []
    for how, label in zip(STYLES.values(), _legend_labels()):
        lines.append(Line2D([], [], color=how.color, linestyle=how.line, linewidth=2, label=label))
    figure.legend(handles=lines, loc="lower center", ncols=columns, borderaxespad=0.4)


def drawings(
    inputs: Inputs, cases: list[Case], number: int, failures: list[str], pane: int = PANE
) -> Iterator[tuple[Case, Figure]]:
    """Draw the first ``number`` cases whose images can be read.

    Args:
        inputs: ground truth, detections and the folder of the images.
        cases: from :func:`worst_first`.
        number: maximum number of drawings.
        failures: receives the error messages of images that cannot be read.
        pane: as for :func:`draw`.
    """
    found, masks = inputs.found[inputs.task], inputs.task == "segm"
    rank = 0
    for case in cases:
        if rank == number:
            return
        try:
            image = read_annotated_image(
                inputs.images / case.image["file_name"], case.image["height"], case.image["width"]
            )
        except UserError as error:
            failures.append(str(error))
            continue
        rank += 1
        yield case, draw(image, case, inputs.ground_truth, found, masks=masks, rank=rank, pane=pane)


def draw_readable(
    cases: Iterable[AnyCase],
    draw: Callable[[AnyCase, int], Figure],
    number: int,
    failures: list[str],
) -> Iterator[tuple[AnyCase, Figure]]:
    """Draw the first images that can be read.

    Args:
        cases: images in the order of their rank.
        draw: takes an image and its rank, from 1; raises a UserError if it cannot be read.
        number: maximum number of drawings.
        failures: receives these errors.
    """
    rank = 0
    for case in cases:
        if rank == number:
            return
        try:
            figure = draw(case, rank + 1)
        except UserError as error:
            failures.append(str(error))
            continue
        rank += 1
        yield case, figure


def to_image(figure: Figure) -> Image.Image:
    """Render a figure in RGB."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3])


def sheet(rendered: list[Image.Image], columns: int = COLUMNS) -> Image.Image:
    """Arrange rendered drawings in rows, row by row, all reduced by the same factor."""
    cell_width = SHEET_WIDTH * COLUMNS // columns
    scale = (cell_width - SHEET_GAP) / max(drawing.width for drawing in rendered)
    scaled = []
    for drawing in rendered:
        size = round(drawing.width * scale), round(drawing.height * scale)
        scaled.append(drawing.resize(size))
    columns = min(columns, len(scaled))
    rows = [scaled[start : start + columns] for start in range(0, len(scaled), columns)]
    heights = []
    for row in rows:
        heights.append(SHEET_GAP + max(drawing.height for drawing in row))
    page = Image.new("RGB", (cell_width * columns, sum(heights)), style.BACKGROUND)
    top = SHEET_GAP // 2
    for row, height in zip(rows, heights):
        for column, drawing in enumerate(row):
            left = column * cell_width + (cell_width - drawing.width) // 2
            page.paste(drawing, (left, top))
        top += height
    return page
