"""Draws a detector's results beside the truth, true, false and missed ones told apart, the worst pictures first.

    python tools/view_predictions.py output/quickstart
    python tools/view_predictions.py --results coco_instances_results.json --data my_data
    python tools/view_predictions.py --results results.json --annotations val.json --images pictures

The first form takes the folder of a training or an evaluation. The pictures go to its folder "predictions" (or beside
the results), as 01.png, 02.png, ... and all on one sheet.png. What went worst is what has the most missed objects and
false detections, each of these counted by its score. Masks are matched if there are any, otherwise boxes (gpvit.matching).
"""

import os
import signal

from gpvit.evaluation.coco_results import RESULTS, Inputs, read_inputs

if __name__ == "__main__":  # Ctrl-C during the imports, which take seconds
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from common import COUNT, SCORE, refuse_to_replace, run_command
from gpvit.data.image_io import read_image
from gpvit.evaluation.matching import IOU, Outcome, match, outcomes
from gpvit.utils.errors import UserError
from gpvit.utils.files import atomic_write, make_folder
from gpvit.utils.fonts import draw_all_characters
from gpvit.utils.text import LINE_LIMIT, one_line, print_anything
from gpvit.visualize import NAME_LIMIT
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from PIL import Image
from pycocotools.coco import COCO

DOTS_PER_INCH = 100
PANE = 640  # pixels: the longer side of a picture in a drawing
GAP, HEADER, FOOTER = 8, 44, 28  # pixels between the two pictures, above and below them
SHEET_WIDTH = 900  # pixels of a drawing on the sheet
MANY = 30  # objects beyond which labels would hide the picture, and only signs are written


class Style(NamedTuple):
    """How an object or a detection is drawn; no two differ in colour alone."""

    colour: str
    line: str
    sign: str
    meaning: str


STYLES = {
    "true": Style("#15803d", "-", "✓", "true, found"),
    "false": Style("#dc2626", ":", "✗", "false"),
    "missed": Style("#1d4ed8", "--", "?", "missed"),
    "ignored": Style("#6b7280", "-.", "~", "crowd, or on one: not counted"),
}


def add_inputs(parser: argparse.ArgumentParser) -> None:
    """The arguments that :func:`inputs_of` takes."""
    parser.add_argument("folder", nargs="?", type=Path, metavar="RUN_FOLDER", help=f"has {RESULTS} and config.yaml")
    parser.add_argument("--results", type=Path, metavar="FILE", help="detections in COCO's results format")
    parser.add_argument("--data", metavar="DIR", help="own data that they are of, as for --data of train_net.py")
    parser.add_argument("--split", choices=("train", "val"), default="val", help="of --data")
    parser.add_argument("--annotations", type=Path, metavar="FILE", help="instead of --data: annotations in COCO format")
    parser.add_argument("--images", type=Path, metavar="DIR", help="the folder of the images of --annotations")


def inputs_of(args: argparse.Namespace) -> Inputs:
    return read_inputs(
        args.folder,
        results=args.results,
        data=args.data,
        split=args.split,
        annotations_file=args.annotations,
        images=args.images,
    )


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
        Case(truth.imgs[id], outcome, len(outcome.missed) + sum(found.anns[number]["score"] for number in outcome.false))
        for id, outcome in cases.items()
    ]
    return sorted(ranked, key=lambda case: -case.cost)


def draw(image: np.ndarray, case: Case, truth: COCO, found: COCO, *, masks: bool, rank: int = 1, pane: int = PANE) -> Figure:
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
    sides = {"truth": (truth, _objects(case, truth)), "detections": (found, _detections(case, found))}
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
    kinds = {"ignored": case.outcome.ignored, "true": case.outcome.true, "false": case.outcome.false}
    return [(found.anns[id], STYLES[kind]) for kind, ids in kinds.items() for id in reversed(ids)]


def _tinted(image: np.ndarray, items: Items, source: COCO) -> np.ndarray:
    """The picture with the masks of some items in their colours."""
    picture = image.astype(np.float32)
    for item, style in items:
        mask = source.annToMask(item).astype(bool)
        picture[mask] = 0.65 * picture[mask] + 0.35 * 255 * np.array(to_rgb(style.colour))
    return picture.astype(np.uint8)


def _draw_item(axes: Axes, item: dict[str, Any], style: Style, name: str, size: tuple[int, int]) -> None:
    """Box and label of an object or a detection in a picture of that height and width."""
    x, y, w, h = item["bbox"]
    halo = [withStroke(linewidth=3.5, foreground="white", alpha=0.7)]
    outline = [x, x + w, x + w, x, x], [y, y, y + h, y + h, y]
    axes.plot(*outline, color=style.colour, linestyle=style.line, linewidth=1.8, path_effects=halo)
    name, score = one_line(name, NAME_LIMIT), f"{item['score']:.0%}" if "score" in item and name else ""
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
        Line2D([], [], color=style.colour, linestyle=style.line, linewidth=2, label=f"{style.sign} {style.meaning}")
        for style in STYLES.values()
    ]
    figure.legend(
        handles=lines, loc="lower center", ncols=len(lines), fontsize=8, handlelength=3, frameon=False, borderpad=0.2
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
            image = _read(inputs, case)
        except UserError as error:
            failures.append(str(error))
            continue
        rank += 1
        found, masks = inputs.found[inputs.task], inputs.task == "segm"
        yield case, draw(image, case, inputs.truth, found, masks=masks, rank=rank, pane=pane)


def _read(inputs: Inputs, case: Case) -> np.ndarray:
    path = inputs.images / case.image["file_name"]
    image = read_image(path)
    height, width = image.shape[:2]
    if (height, width) != (case.image["height"], case.image["width"]):
        expected = f"{case.image['width']} x {case.image['height']}"
        raise UserError(f"{path}: is {width} x {height} pixels, and {expected} by its annotations; correct them")
    return image


def as_picture(figure: Figure) -> Image.Image:
    """A figure as it is drawn, in RGB."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3])


def sheet(pictures: list[Image.Image], columns: int = 2) -> Image.Image:
    """Pictures in columns, each below the shortest so far, all made smaller by the same factor."""
    scale = (SHEET_WIDTH - GAP) / max(picture.width for picture in pictures)
    scaled = [picture.resize((round(picture.width * scale), round(picture.height * scale))) for picture in pictures]
    heights, corners = [0] * columns, []
    for picture in scaled:
        column = heights.index(min(heights))
        corners.append((column * SHEET_WIDTH + (SHEET_WIDTH - picture.width) // 2, heights[column]))
        heights[column] += picture.height
    page = Image.new("RGB", (SHEET_WIDTH * columns, max(heights)), "white")
    for picture, corner in zip(scaled, corners):
        page.paste(picture, corner)
    return page


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_inputs(parser)
    parser.add_argument("--output", type=Path, metavar="DIR", help="where the pictures go")
    parser.add_argument("--number", type=COUNT, default=16, help="how many pictures")
    parser.add_argument("--score-threshold", type=SCORE, default=0.5, help="leave out what scores less")
    parser.add_argument("--overwrite", action="store_true", help="replace what is there")
    args = parser.parse_args()
    print_anything()
    if args.annotations and not args.images:
        raise UserError("give the folder of the images of --annotations by --images DIR")
    inputs = inputs_of(args)
    output = args.output or inputs.results.parent / "predictions"
    targets = [output / f"{rank:02}.png" for rank in range(1, args.number + 1)]
    refuse_to_replace([*targets, output / "sheet.png"], args.overwrite)
    found = inputs.found[inputs.task]
    cases = outcomes(match(inputs.truth, found, inputs.task), inputs.truth, args.score_threshold)
    how = f"{inputs.task}, IoU {IOU}, scores from {args.score_threshold:g} on"
    print(one_line(f"{inputs.results}, on {inputs.data}: {how}", LINE_LIMIT))
    make_folder(output)
    failures: list[str] = []
    pictures = []
    for case, figure in drawings(inputs, worst_first(inputs.truth, found, cases), args.number, failures):
        pictures.append(as_picture(figure))
        target = targets[len(pictures) - 1]
        with atomic_write(target) as partial:
            pictures[-1].save(partial)
        print(one_line(f"{target}: {case.image['file_name']}: {case.counts()}", LINE_LIMIT))
    for failure in failures:
        print(f"error: {failure}", file=sys.stderr)
    if pictures:
        page = sheet(pictures)
        with atomic_write(output / "sheet.png") as partial:
            page.save(partial)
        print(one_line(f"{output / 'sheet.png'}: all of them", LINE_LIMIT))
    return 1 if failures else 0


if __name__ == "__main__":
    run_command(main)
