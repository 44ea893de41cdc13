"""Draws predictions beside ground truth, the worst images first; or writes an HTML report about an evaluation.

    gpvit view-results --input output/quickstart
    gpvit view-results --input coco_instances_results.json --data my_data
    gpvit view-results --input results.json --data val.json --images images
    gpvit view-results --input output/quickstart --report

The input is the folder of a training run or an evaluation, or detections in COCO's results format. The drawings go to
the folder "predictions" beside the results, as 01.png, 02.png, ... and all on one sheet.png. Worst is the image with the
most missed objects and false detections, each of these counted by its score. Masks are matched if there are any,
otherwise boxes (gpvit/evaluation/matching.py).

With --report, report.html beside the results has AP, curves, confusions, calibration, the best score threshold and the
worst images. It needs no network and no other file.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ..config.values import MOST_DETECTIONS
from ..evaluation.coco_evaluation import RESULTS
from ..evaluation.coco_results import Inputs, read_inputs
from ..evaluation.matching import IOU, match, outcomes
from ..evaluation.metrics import TASKS
from ..utils.errors import UserError
from ..utils.files import atomic_write, make_folder, refuse_to_replace
from ..utils.kinds import argument, whole
from ..utils.text import LINE_LIMIT, one_line
from ..visualization.comparison import as_picture, drawings, sheet, worst_first
from ..visualization.report import collect, page, percent, read_limit
from .options import COUNT, SCORE, command_parser


def main(arguments: Sequence[str]) -> int:
    args = parse(arguments)
    inputs = read_inputs(args.input, args.data, args.split, args.images)
    return report(inputs, args) if args.report else draw(inputs, args)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = command_parser("view-results", __doc__)
    parser.add_argument(
        "--input",
        required=True,
        type=Path,
        metavar="PATH",
        help=f"folder with {RESULTS}, or such a file",
    )
    what = "what the results are of: a dataset, or one JSON file; default: what the config in the folder says"
    parser.add_argument("--data", type=Path, metavar="PATH", help=what)
    parser.add_argument(
        "--split",
        choices=("train", "val"),
        help="of the dataset (val); of a JSON file, as training divides it",
    )
    parser.add_argument(
        "--images", type=Path, metavar="DIR", help="folder of the images of a JSON file"
    )
    parser.add_argument(
        "--report", action="store_true", help="write an HTML report instead of drawings"
    )
    parser.add_argument(
        "--output", type=Path, metavar="PATH", help="folder of the drawings, or file of the report"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace what is there")
    parser.add_argument(
        "--number", type=COUNT, default=16, metavar="N", help="how many drawings (%(default)s)"
    )
    what = "leave out what scores less; default: 0.5, in a report that of the best F1"
    parser.add_argument("--score-threshold", type=SCORE, metavar="S", help=what)
    parser.add_argument(
        "--max-detections",
        type=argument(whole(1, MOST_DETECTIONS)),
        metavar="N",
        help="of an image and class that AP in a report counts; default: as in the evaluation, or 100",
    )
    return parser.parse_args(arguments)


def draw(inputs: Inputs, args: argparse.Namespace) -> int:
    if inputs.images is None:
        raise UserError(f"give the folder of the images of {inputs.data} by --images DIR")
    output = args.output or inputs.results.parent / "predictions"
    targets = [output / f"{rank:02}.png" for rank in range(1, args.number + 1)]
    refuse_to_replace([*targets, output / "sheet.png"], args.overwrite)
    threshold = 0.5 if args.score_threshold is None else args.score_threshold
    found = inputs.found[inputs.task]
    cases = outcomes(match(inputs.truth, found, inputs.task), inputs.truth, threshold)
    how = f"{inputs.task}, IoU {IOU}, scores from {threshold:g} on"
    print(one_line(f"{inputs.results}, on {inputs.data}: {how}", LINE_LIMIT))
    make_folder(output)
    failures: list[str] = []
    pictures = []
    for case, figure in drawings(
        inputs, worst_first(inputs.truth, found, cases), args.number, failures
    ):
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


def report(inputs: Inputs, args: argparse.Namespace) -> int:
    output = args.output or inputs.results.parent / "report.html"
    refuse_to_replace([output], args.overwrite)
    limit = read_limit(inputs) if args.max_detections is None else args.max_detections
    content = collect(inputs, args.score_threshold, limit)
    text = page(content)
    with atomic_write(output) as partial:
        partial.write_text(text, encoding="utf-8")
    figures = ", ".join(
        f"{TASKS[task].label} AP {percent(table['AP'])}"
        for task, table in content["overall"].items()
    )
    print(one_line(f"{output}: {figures}, {content['worst_note']}", LINE_LIMIT))
    if content["limit_note"]:
        print(f"note: {content['limit_note']}", file=sys.stderr)
    return 0
