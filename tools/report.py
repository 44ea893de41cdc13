"""Writes one HTML file about an evaluation: AP, curves, confusions, calibration, the best score threshold, worst pictures.

    python tools/report.py output/quickstart
    python tools/report.py --results coco_instances_results.json --data my_data --output report.html
    python tools/report.py --results results.json --annotations val.json --images pictures

The file needs no network and nothing beside it. It is report.html beside the results unless --output says otherwise.
"""

import os
import signal

if __name__ == "__main__":  # Ctrl-C during the imports, which take seconds
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))

import argparse
import sys
from pathlib import Path

from common import SCORE, refuse_to_replace, run_command
from gpvit.config.values import MOST_DETECTIONS
from gpvit.evaluation.metrics import TASKS
from gpvit.utils.files import atomic_write
from gpvit.utils.kinds import argument, whole
from gpvit.utils.text import LINE_LIMIT, one_line, print_anything
from gpvit.visualization.report import collect, page, percent, read_limit
from view_predictions import add_inputs, inputs_of


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_inputs(parser)
    parser.add_argument("--output", type=Path, metavar="FILE", help="the report")
    parser.add_argument("--score-threshold", type=SCORE, help="of confusions and pictures; default: of the best F1, or 0.5")
    parser.add_argument(
        "--max-detections",
        type=argument(whole(1, MOST_DETECTIONS)),
        metavar="N",
        help="of an image and class that AP counts; default: as in the evaluation that the results are of, or 100",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace what is there")
    args = parser.parse_args()
    print_anything()
    inputs = inputs_of(args)
    output = args.output or inputs.results.parent / "report.html"
    refuse_to_replace([output], args.overwrite)
    limit = read_limit(inputs) if args.max_detections is None else args.max_detections
    content = collect(inputs, args.score_threshold, limit)
    text = page(content)
    with atomic_write(output) as partial:
        partial.write_text(text, encoding="utf-8")
    figures = ", ".join(f"{TASKS[task].label} AP {percent(table['AP'])}" for task, table in content["overall"].items())
    print(one_line(f"{output}: {figures}, {content['worst_note']}", LINE_LIMIT))
    if content["limit_note"]:
        print(f"note: {content['limit_note']}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    run_command(main)
