"""Losses and metrics over the iterations."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.figure

from ..evaluation.metrics import TASKS, parse_metric
from ..utils.events import read_metrics
from ..utils.text import one_line
from .drawing import NAME_LIMIT


def main_courses(rows: Iterable[dict[str, Any]]) -> dict[str, list[tuple[int, float]]]:
    """Iterations and values of each task's main metric, by what is evaluated and, of several, the validation set.

    Args:
        rows: from :func:`.read_metrics`.
    """
    courses: dict[str, list[tuple[int, float]]] = {}
    for row in rows:
        for name, value in row.items():
            metric = parse_metric(name)
            if metric and metric.is_main and not metric.averaged:
                label = f"{one_line(metric.of_set, NAME_LIMIT)} {TASKS[metric.task].label}".strip()
                courses.setdefault(label, []).append((row["iteration"], value))
    return dict(sorted(courses.items()))


def save_curves(metrics: Path, path: Path) -> None:
    """Losses and AP over the iterations, from the ``metrics.json`` of a training."""
    rows = list(read_metrics(metrics))
    figure = matplotlib.figure.Figure(figsize=(12, 4.5), layout="constrained")
    losses, quality = figure.subplots(1, 2)
    # With "/" they are of an evaluation, and may be named after a class such as "glossy".
    names = {key for row in rows for key in row if "loss" in key and "/" not in key} - {
        "total_loss"
    }
    for name in ["total_loss", *sorted(names)]:
        points = [(row["iteration"], row[name]) for row in rows if name in row]
        losses.plot(
            *zip(*points), label=one_line(name), linewidth=2.5 if name == "total_loss" else 1
        )
    for label, points in main_courses(rows).items():
        quality.plot(*zip(*points), marker="o", label=label, clip_on=False)
    losses.set(xlabel="iteration", ylabel="training loss", yscale="log")
    losses.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    for text in losses.get_legend().get_texts():
        text.set_parse_math(False)  # a name may have $ in it
    last = max((row["iteration"] for row in rows), default=0)
    quality.set(xlabel="iteration", ylabel="validation AP (%)", xlim=(0, last + 1), ylim=(0, 100))
    if quality.lines:
        for text in quality.legend().get_texts():
            text.set_parse_math(False)
    for axis in (losses, quality):
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
