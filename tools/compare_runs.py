"""Draws a metric of several trainings over their iterations.

    python tools/compare_runs.py output/quickstart output/other --metric segm/AP --output comparison.png

Any metric of metrics.json will do, total_loss, for one. The picture's kind follows from the name: .png, .svg or .pdf.
"""

import os
import signal

if __name__ == "__main__":  # Ctrl-C during the imports, which take seconds
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))

import argparse
from collections.abc import Sequence
from pathlib import Path

from common import refuse_to_replace, run_command
from gpvit.utils.errors import UserError, listed
from gpvit.utils.events import read_metrics
from gpvit.utils.files import atomic_write
from gpvit.utils.fonts import draw_all_characters
from gpvit.utils.text import one_line, print_anything
from matplotlib.figure import Figure


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="DIR", help="folders of trainings")
    parser.add_argument("--metric", default="segm/AP")
    parser.add_argument("--output", required=True, type=Path, metavar="FILE", help="picture to write")
    parser.add_argument("--overwrite", action="store_true", help="replace what is there")
    args = parser.parse_args(arguments)
    print_anything()
    if args.output.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise UserError(f"--output {args.output}: the name must end in .png, .svg or .pdf")
    refuse_to_replace([args.output], args.overwrite)
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axis = figure.subplots()
    for run in args.runs:
        iterations, values = zip(*course(run, args.metric))
        axis.plot(iterations, values, marker="o" if len(values) < 50 else "", label=one_line(run.name))
        print(f"{one_line(run.name)}: last {values[-1]:.4g}, best {max(values):.4g}")
    axis.set_xlabel("iteration")
    axis.set_ylabel(one_line(args.metric), parse_math=False)
    axis.grid(alpha=0.3)
    for text in axis.legend().get_texts():
        text.set_parse_math(False)  # the name of a folder or class may have two $
    draw_all_characters(figure)
    with atomic_write(args.output) as partial:
        figure.savefig(partial, dpi=150)


def course(run: Path, metric: str) -> list[tuple[int, float]]:
    """Iterations and values. Raises a UserError if the folder has no such metric."""
    file = run / "metrics.json"
    if not file.is_file():
        raise UserError(f"{file} does not exist; give the folder of a training (train.output_dir)")
    rows = list(read_metrics(file))
    points = [(row["iteration"], row[metric]) for row in rows if metric in row]
    if not points:
        known = sorted({key for row in rows for key in row})
        of_sets = [key for key in known if "/" in metric and key.endswith(f"/{metric}")]
        known = of_sets or known
        raise UserError(f"{file} has no {metric}; it has {listed(list(map(one_line, known)))}")
    return points


if __name__ == "__main__":
    run_command(main)
