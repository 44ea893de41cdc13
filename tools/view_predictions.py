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

if __name__ == "__main__":  # Ctrl-C during the imports, which take seconds
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))

import argparse
import sys
from pathlib import Path

from common import COUNT, SCORE, refuse_to_replace, run_command
from gpvit.evaluation.coco_results import RESULTS, Inputs, read_inputs
from gpvit.evaluation.matching import IOU, match, outcomes
from gpvit.utils.errors import UserError
from gpvit.utils.files import atomic_write, make_folder
from gpvit.utils.text import LINE_LIMIT, one_line, print_anything
from gpvit.visualization.comparison import as_picture, drawings, sheet, worst_first


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
