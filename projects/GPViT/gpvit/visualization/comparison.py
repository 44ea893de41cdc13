"""Ground truth beside predictions, with their errors marked."""

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

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
from ..utils.text import one_line
from .drawing import NAME_LIMIT

DOTS_PER_INCH = 100
PANE = 640  # pixels: the longer side of a picture in a drawing
GAP, HEADER, FOOTER = 8, 44, 28  # pixels between the two pictures, above and below them
COLUMNS = 2  # of the sheet
SHEET_WIDTH = 900  # pixels of a drawing on the sheet
MANY = 30  # objects beyond which labels would hide the picture, and only signs are written


class Style(NamedTuple):
    """How an object or a detection is drawn; no two differ in colour alone."""

    colour: str
    line: Literal["-", ":", "--", "-."]
    sign: str
    meaning: str


STYLES = {
    "true": Style("#15803d", "-", "✓", "true, found"),
    "false": Style("#dc2626", ":", "✗", "false"),
    "missed": Style("#1d4ed8", "--", "?", "missed"),
    "ignored": Style("#6b7280", "-.", "~", "crowd, or on one: not counted"),
}


class Case(NamedTuple):
    """An image and what became of it; ``cost`` is the number of missed objects and the scores of false detections."""

    image: dict[str, Any]
    outcome: Outcome
    cost: float

    def counts(self) -> str:
        return f"{len(self.outcome.true)} true, {len(self.outcome.false)} false, {len(self.outcome.missed)} missed"


def worst_first(truth: COCO, found: COCO, cases: dict[int, Outcome]) -> list[Case]:
    """All images, those first where most went wrong."""
    ranked = [
        Case(
            truth.imgs[id],
            outcome,
            len(outcome.missed) + sum(found.anns[number]["score"] for number in outcome.false),
        )
        for id, outcome in cases.items()
    ]
    return sorted(ranked, key=lambda case: -case.cost)


def draw(
    image: np.ndarray,
    case: Case,
    truth: COCO,
    found: COCO,
    *,
    masks: bool,
    rank: int = 1,
    pane: int = PANE,
) -> Figure:
    """The truth on the left, the detections on the right.

    Args:
        image: (H, W, 3), RGB.
        case: what is drawn on it.
        truth, found: what its ids are of.
        masks: whether there are masks to draw.
        rank: 1 for the worst.
        pane: pixels of the longer side of the picture in the drawing.
    """
    height, width = (side * pane / max(image.shape[:2]) for side in image.shape[:2])
    width = max(width, pane / 2)  # room for the words of a tall picture
    total = 2 * width + GAP, height + HEADER + FOOTER
    figure = Figure(figsize=(total[0] / DOTS_PER_INCH, total[1] / DOTS_PER_INCH), dpi=DOTS_PER_INCH)
    sides = {
        "truth": (truth, _objects(case, truth)),
        "detections": (found, _detections(case, found)),
    }
    for side, (title, (source, items)) in enumerate(sides.items()):
        corner = side * (width + GAP) / total[0], FOOTER / total[1]
        axes = figure.add_axes((*corner, width / total[0], height / total[1]))
        axes.imshow(_tinted(image, items, source) if masks else image)
        axes.axis("off")
        axes.autoscale(False)  # boxes may leave the picture
        axes.set_title(title, fontsize=9, pad=4)
        for item, style in items:
            name = truth.cats[item["category_id"]]["name"] if len(items) <= MANY else ""
            _draw_item(axes, item, style, name, image.shape[:2])
    title = f"{rank}. {one_line(case.image['file_name'])}: {case.counts()}"
    figure.text(0.5, 1 - 4 / total[1], title, ha="center", va="top", fontsize=10, parse_math=False)
    _draw_legend(figure)
    draw_all_characters(figure)
    return figure


Items = list[tuple[dict[str, Any], Style]]


def _objects(case: Case, truth: COCO) -> Items:
    missed = set(case.outcome.missed)
    kinds = [
        (item, "ignored" if item.get("iscrowd") else "missed" if item["id"] in missed else "true")
        for item in truth.imgToAnns[case.image["id"]]
    ]
    return [(item, STYLES[kind]) for item, kind in kinds]


def _detections(case: Case, found: COCO) -> Items:
    """In the order of drawing: false ones last, on top, and of these the best scores."""
    kinds = {
        "ignored": case.outcome.ignored,
        "true": case.outcome.true,
        "false": case.outcome.false,
    }
    return [(found.anns[id], STYLES[kind]) for kind, ids in kinds.items() for id in reversed(ids)]


def _tinted(image: np.ndarray, items: Items, source: COCO) -> np.ndarray:
    """The picture with the masks of some items in their colours."""
    picture = image.astype(np.float32)
    for item, style in items:
        mask = source.annToMask(item).astype(bool)
        picture[mask] = 0.65 * picture[mask] + 0.35 * 255 * np.array(to_rgb(style.colour))
    return picture.astype(np.uint8)


def _draw_item(
    axes: Axes, item: dict[str, Any], style: Style, name: str, size: tuple[int, int]
) -> None:
    """Box and label of an object or a detection in a picture of that height and width."""
    x, y, w, h = item["bbox"]
    halo = [withStroke(linewidth=3.5, foreground="white", alpha=0.7)]
    outline = [x, x + w, x + w, x, x], [y, y, y + h, y + h, y]
    axes.plot(*outline, color=style.colour, linestyle=style.line, linewidth=1.8, path_effects=halo)
    name, score = (
        one_line(name, NAME_LIMIT),
        f"{item['score']:.0%}" if "score" in item and name else "",
    )
    axes.text(
        min(max(x, 0), size[1]),
        min(max(y, 0), size[0]),
        " ".join(filter(None, (style.sign, name, score))),
        color="white",
        fontsize=7,
        va="bottom" if y > size[0] / 12 else "top",
        clip_on=True,
        parse_math=False,
        bbox={"facecolor": style.colour, "edgecolor": "none", "pad": 1, "alpha": 0.85},
    )


def _draw_legend(figure: Figure) -> None:
    lines = [
        Line2D(
            [],
            [],
            color=style.colour,
            linestyle=style.line,
            linewidth=2,
            label=f"{style.sign} {style.meaning}",
        )
        for style in STYLES.values()
    ]
    figure.legend(
        handles=lines,
        loc="lower center",
        ncols=len(lines),
        fontsize=8,
        handlelength=3,
        frameon=False,
        borderpad=0.2,
    )


def drawings(
    inputs: Inputs, cases: list[Case], number: int, failures: list[str], pane: int = PANE
) -> Iterator[tuple[Case, Figure]]:
    """The first ``number`` cases whose images can be read; what is wrong with those before goes to ``failures``."""
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
        found, masks = inputs.found[inputs.task], inputs.task == "segm"
        yield case, draw(image, case, inputs.truth, found, masks=masks, rank=rank, pane=pane)


def as_picture(figure: Figure) -> Image.Image:
    """A figure as it is drawn, in RGB."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3])


def sheet(pictures: list[Image.Image]) -> Image.Image:
    """Pictures in columns, each below the shortest so far, all made smaller by the same factor."""
    scale = (SHEET_WIDTH - GAP) / max(picture.width for picture in pictures)
    scaled = [
        picture.resize((round(picture.width * scale), round(picture.height * scale)))
        for picture in pictures
    ]
    heights, corners = [0] * COLUMNS, []
    for picture in scaled:
        column = heights.index(min(heights))
        corners.append((column * SHEET_WIDTH + (SHEET_WIDTH - picture.width) // 2, heights[column]))
        heights[column] += picture.height
    page = Image.new("RGB", (SHEET_WIDTH * COLUMNS, max(heights)), "white")
    for picture, corner in zip(scaled, corners):
        page.paste(picture, corner)
    return page
