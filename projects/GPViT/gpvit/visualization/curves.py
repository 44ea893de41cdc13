"""Curves of losses and metrics over the iterations."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..evaluation.metrics import TASKS, parse_metric
from ..utils.events import read_metrics
from ..utils.text import one_line
from . import style
from .drawing import NAME_LIMIT

Points = list[tuple[int, float]]  # iterations and values
FEW = 20  # points that get markers
SIZE = (12, 5.2)  # inches


def main_metrics_over_iterations(rows: Iterable[dict[str, Any]]) -> dict[str, Points]:
    """Iterations and values of each task's main metric.

    The keys are labels: the task and, with several validation sets, the name of the set.

    Args:
        rows: from :func:`.read_metrics`.
    """
    curves: dict[str, Points] = {}
    for row in rows:
        for name, value in row.items():
            metric = parse_metric(name)
            if metric and metric.is_main and not metric.averaged:
                label = f"{one_line(metric.dataset, NAME_LIMIT)} {TASKS[metric.task].label}".strip()
                curves.setdefault(label, []).append((row["iteration"], value))
    return dict(sorted(curves.items()))


def losses_over_iterations(rows: list[dict[str, Any]]) -> dict[str, Points]:
    """Iterations and values of the total loss and then of its parts by name."""
    losses: dict[str, Points] = {}
    for row in rows:
        for name, value in row.items():
            # With "/", it is a metric, which may be named after a class such as "glossy".
            if "loss" in name and "/" not in name:
                losses.setdefault(name, []).append((row["iteration"], value))
    names = sorted(losses, key=lambda name: (name != "total_loss", name))
    return {name: losses[name] for name in names}


def draw_curve(axes: Axes, points: Points, label: str, **options: Any) -> None:
    """Draw one curve, with markers if it has few points, and not clipped at the axes."""
    iterations, values = zip(*points)
    marker = "o" if len(points) < FEW else None
    axes.plot(
        iterations, values, label=label, marker=marker, markersize=4, clip_on=False, **options
    )


def save_curves(metrics: Path, path: Path) -> None:
    """Draw losses and main metrics over the iterations of a run from its ``metrics.json``."""
    rows = list(read_metrics(metrics))
    with style.figure_style():
        figure = Figure(figsize=SIZE, layout="constrained")
        losses, quality = figure.subplots(1, 2)
        for name, points in losses_over_iterations(rows).items():
            width = 2.5 if name == "total_loss" else 1.5
            draw_curve(losses, points, one_line(name, NAME_LIMIT), linewidth=width)
        losses.set(xlabel="iteration", ylabel="training loss", yscale="log")
        for label, points in main_metrics_over_iterations(rows).items():
            draw_curve(quality, points, label, linewidth=2)
        last = max((row["iteration"] for row in rows), default=0)
        limits = (0, last + 1)
        quality.set(xlabel="iteration", ylabel="validation (%)", xlim=limits, ylim=(0, None))
        for axes in (losses, quality):
            if axes.lines:
                style.legend_below(axes, 72 * 0.45 * SIZE[0])
        figure.savefig(path, dpi=style.DPI)
