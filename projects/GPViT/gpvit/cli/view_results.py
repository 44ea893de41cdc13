"""Draw predictions next to ground truth, worst images first; or write an HTML report.

    gpvit view-results --input output/quickstart
    gpvit view-results --input coco_instances_results.json --data my_data
    gpvit view-results --input results.json --data val.json --images images
    gpvit view-results --input output/quickstart --report

The input is the folder of a training run or an evaluation, or detections in COCO's results format.
Drawings are written to the folder "predictions" next to the results, as 01.png, 02.png, ... and a
sheet.png with all of them. Images are ranked by the number of false negatives plus the sum of the
scores of false positives. Masks are matched if there are any, otherwise boxes
(gpvit/evaluation/matching.py).

With --report, a self-contained report.html is written next to the results. It contains AP,
precision-recall curves, the confusion matrix, calibration, the score threshold of the best F1, and
the worst images.

For a classifier, the input is a folder with classification_results.json. Images with a wrong
prediction are drawn, those with the highest score first; the report contains the accuracy by class,
the confusion matrix and calibration.

For a segmentation model, the input is a folder with predicted label maps, which an evaluation
writes with dataloader.evaluator.output_dir=FOLDER. Images are drawn with their errors, ranked by
the fraction of wrong pixels; the report contains IoU and boundary IoU by class and the confusion
matrix.
"""

import argparse
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from ..config.values import MOST_DETECTIONS
from ..evaluation.classification_results import has_classification, read_classification_results
from ..evaluation.coco_evaluation import RESULTS
from ..evaluation.coco_results import Inputs, read_inputs
from ..evaluation.matching import IOU, match, outcomes
from ..evaluation.metrics import TASKS
from ..evaluation.semantic_results import has_label_maps, read_semantic_results
from ..utils.errors import UserError
from ..utils.files import atomic_write, check_overwrite, make_folder
from ..utils.kinds import argument, integer
from ..utils.text import LINE_LIMIT, one_line
from ..visualization.classification_drawing import confident_mistakes, describe
from ..visualization.classification_report import classification_page
from ..visualization.classification_report import collect as collect_classification
from ..visualization.comparison import COLUMNS, drawings, sheet, to_image, worst_first
from ..visualization.report import collect, page, percent, read_limit
from ..visualization.semantic_comparison import worst_cases
from ..visualization.semantic_report import collect as collect_semantic
from ..visualization.semantic_report import semantic_page
from .options import COUNT, SCORE, command_parser

SHEET = "sheet.png"  # all drawings


def main(arguments: Sequence[str]) -> int:
    args = parse(arguments)
    if has_label_maps(args.input):
        return semantic(args)
    if has_classification(args.input):
        return classification(args)
    inputs = read_inputs(args.input, args.data, args.split, args.images)
    return report(inputs, args) if args.report else draw(inputs, args)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = command_parser("view-results", __doc__)
    add_input_options(parser)
    parser.add_argument(
        "--report", action="store_true", help="write an HTML report instead of drawings"
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="PATH",
        help="folder of the drawings, or file of the report (default: next to the results)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace existing files")
    parser.add_argument(
        "--number",
        type=COUNT,
        default=16,
        metavar="N",
        help="number of drawings (default: %(default)s)",
    )
    parser.add_argument(
        "--score-threshold",
        type=SCORE,
        metavar="S",
        help="minimum score of a detection (default: 0.5; in a report, that of the best F1)",
    )
    parser.add_argument(
        "--max-detections",
        type=argument(integer(1, MOST_DETECTIONS)),
        metavar="N",
        help="maximum number of detections per image and class for the AP of a report (default: "
        "that of the evaluation, or 100)",
    )
    return parser.parse_args(arguments)


def add_input_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that select results and ground truth."""
    parser.add_argument(
        "--input",
        required=True,
        type=Path,
        metavar="PATH",
        help=f"folder of a training run or an evaluation, or a file in the format of {RESULTS}",
    )
    parser.add_argument(
        "--data",
        type=Path,
        metavar="PATH",
        help="dataset or COCO JSON file that the results are for (default: the validation data of "
        "the config in the folder)",
    )
    parser.add_argument(
        "--split",
        choices=("train", "val"),
        help="split of the dataset; a JSON file is split as for training (default: val; all of a "
        "JSON file)",
    )
    parser.add_argument(
        "--images",
        type=Path,
        metavar="DIR",
        help="folder of the images of a COCO JSON file (default: searched for next to it)",
    )


def draw(inputs: Inputs, args: argparse.Namespace) -> int:
    """Draw the worst images and the sheet; return the exit code."""
    if inputs.images is None:
        raise UserError(f"give the folder of the images of {inputs.data} by --images DIR")
    output = args.output or inputs.results.parent / "predictions"
    targets = [output / f"{rank:02}.png" for rank in range(1, args.number + 1)]
    check_overwrite([*targets, output / SHEET], args.overwrite)
    threshold = 0.5 if args.score_threshold is None else args.score_threshold
    detections = inputs.found[inputs.task]
    matching = match(inputs.ground_truth, detections, inputs.task)
    cases = worst_first(
        inputs.ground_truth, detections, outcomes(matching, inputs.ground_truth, threshold)
    )
    settings = f"{inputs.task}, IoU threshold {IOU}, score threshold {threshold:g}"
    print(one_line(f"{inputs.results}, on {inputs.data}: {settings}", LINE_LIMIT))
    failures: list[str] = []

    def drawn() -> Iterator[tuple[Figure, str]]:
        for case, figure in drawings(inputs, cases, args.number, failures):
            yield figure, f"{case.image['file_name']}: {case.counts()}"

    return save_drawings(output, targets, drawn(), failures)


def semantic(args: argparse.Namespace) -> int:
    """Draw or report the results of a segmentation model; return the exit code."""
    output, targets = outputs(args, "a segmentation model")
    results = read_semantic_results(args.input, args.data, args.split)
    if args.report:
        content = collect_semantic(results)
        return save_report(output, semantic_page(content), content)
    print(
        one_line(f"{args.input}, on {results.truth.data}: {len(results.cases)} images", LINE_LIMIT)
    )
    failures: list[str] = []

    def drawn() -> Iterator[tuple[Figure, str]]:
        for case, figure in worst_cases(results, args.number, failures):
            yield figure, f"{case.name}: {case.error:.1%} of the pixels wrong"

    return save_drawings(output, targets, drawn(), failures)


def classification(args: argparse.Namespace) -> int:
    """Draw or report the results of a classifier; return the exit code."""
    output, targets = outputs(args, "a classifier")
    results = read_classification_results(args.input, args.data, args.split)
    if args.report:
        content = collect_classification(results)
        return save_report(output, classification_page(content), content)
    counts = f"{len(results.mistakes)} of {len(results.cases)} images are predicted wrongly"
    print(one_line(f"{args.input}, on {results.truth.data}: {counts}", LINE_LIMIT))
    failures: list[str] = []

    def drawn() -> Iterator[tuple[Figure, str]]:
        for case, figure in confident_mistakes(results, args.number, failures):
            yield figure, f"{case.name}: {describe(results, case)}"

    return save_drawings(output, targets, drawn(), failures, columns=4)


def outputs(args: argparse.Namespace, model: str) -> tuple[Path, list[Path]]:
    """Return the output folder, or the file of the report, and the paths of the drawings.

    Raises:
        UserError: an option is for detectors only, or a file exists.
    """
    detectors_only = {
        "--score-threshold": args.score_threshold,
        "--max-detections": args.max_detections,
        "--images": args.images,
    }
    for option, value in detectors_only.items():
        if value is not None:
            raise UserError(f"{option} applies to detectors, {args.input} is of {model}")
    output = args.output or args.input / ("report.html" if args.report else "predictions")
    targets = [output / f"{rank:02}.png" for rank in range(1, args.number + 1)]
    check_overwrite([output] if args.report else [*targets, output / SHEET], args.overwrite)
    return output, targets


def save_report(output: Path, text: str, content: dict[str, Any]) -> int:
    """Write the report of a segmentation model or a classifier; return the exit code."""
    with atomic_write(output) as partial:
        partial.write_text(text, encoding="utf-8")
    figures = [f"{heading} {percent(value)}" for heading, value in content["overall"].items()]
    print(one_line(f"{output}: {', '.join(figures)}, {content['worst_note']}", LINE_LIMIT))
    return 0


def save_drawings(
    output: Path,
    targets: list[Path],
    drawn: Iterable[tuple[Figure, str]],
    failures: list[str],
    columns: int = COLUMNS,
) -> int:
    """Write drawings and the sheet of all of them; return the exit code.

    Args:
        output: folder of the drawings.
        targets: at least as many paths as drawings.
        drawn: the drawings, and what each shows.
        failures: messages of images that cannot be read, complete once all are drawn.
        columns: of the sheet.
    """
    make_folder(output)
    pictures = []
    for target, (figure, content) in zip(targets, drawn):
        picture = to_image(figure)
        pictures.append(picture)
        with atomic_write(target) as partial:
            picture.save(partial)
        print(one_line(f"{target}: {content}", LINE_LIMIT))
    for failure in failures:
        print(f"error: {failure}", file=sys.stderr)
    if pictures:
        all_pictures = sheet(pictures, columns)
        with atomic_write(output / SHEET) as partial:
            all_pictures.save(partial)
        print(one_line(f"{output / SHEET}: all drawings", LINE_LIMIT))
    return 1 if failures else 0


def report(inputs: Inputs, args: argparse.Namespace) -> int:
    """Write the report and print a summary; return the exit code."""
    output = args.output or inputs.results.parent / "report.html"
    check_overwrite([output], args.overwrite)
    limit = read_limit(inputs) if args.max_detections is None else args.max_detections
    content = collect(inputs, args.score_threshold, limit)
    text = page(content)
    with atomic_write(output) as partial:
        partial.write_text(text, encoding="utf-8")
    figures = []
    for task, metrics in content["overall"].items():
        figures.append(f"{TASKS[task].label} AP {percent(metrics['AP'])}")
    print(one_line(f"{output}: {', '.join(figures)}, {content['worst_note']}", LINE_LIMIT))
    if content["limit_note"]:
        print(f"note: {content['limit_note']}", file=sys.stderr)
    return 0
