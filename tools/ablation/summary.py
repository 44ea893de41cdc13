"""The results as Markdown tables and as a plot."""

from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from ablation.plan import Plan, Table
from ablation.runner import Results
from gpvit.evaluation.metrics import COCO, TASKS
from gpvit.utils import text
from gpvit.visualization import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure

TASK_NAMES = {"bbox": "box ", "segm": "mask "}
SIZES = ("APs", "APm", "APl")
NOTHING = "—"
NOTE = """\
Mean ± standard deviation over the seeds, in %. Parameters and GFLOPs are those of backbone and
pyramid, for inference on one image. The time of a training iteration is that of the whole model."""


def label_of(metric: str) -> str:
    """Return the name of a metric for people, such as "mask AP, small" for "segm/APs"."""
    task, _, name = metric.partition("/")
    of_size = "AP, " if name in SIZES else ""
    return TASK_NAMES.get(task, "") + of_size + TASKS[task].metrics[name]


def markdown(plan: Plan, results: Results) -> str:
    """Return all tables that have results."""
    parts = [NOTE]
    for table in plan.tables:
        if any(results.of_variant(table, variant, plan.seeds) for variant in table.variants):
            title = text.markdown(table.title)
            parts.append(f"**{title}**\n\n{table_of(table, plan.seeds, results)}")
    return "\n\n".join(parts) + "\n"


def table_of(table: Table, seeds: Sequence[int], results: Results) -> str:
    """Return the table in Markdown, with a row for each variant."""
    columns = _columns(table.metrics)
    head = ["variant", "parameters (M)", "GFLOPs", "s per iteration", "learning rate", *columns]
    lines = [_row(head), "|---|" + "---:|" * (len(head) - 1)]
    for variant in table.variants:
        if variant.group:
            group = text.markdown(variant.group)
            lines.append(_row([f"*{group}*", *[""] * (len(head) - 1)]))
        runs = results.of_variant(table, variant, seeds)
        is_partial = 0 < len(runs) < len(seeds)
        name = text.markdown(variant.name) + f" ({len(runs)} of {len(seeds)} seeds)" * is_partial
        cells = [name, *_cost_cells(results.costs_of(table, variant))]
        rate = runs[0]["learning_rate"] if runs else None
        cells.append(NOTHING if rate is None else f"{rate:g}")
        for metrics in columns.values():
            cells.append(_metric_cell([values_of(runs, metric) for metric in metrics]))
        lines.append(_row(cells))
    return "\n".join(lines)


def _columns(metrics: Sequence[str]) -> dict[str, list[str]]:
    """Return the metrics of each column by its heading; small, medium and large share one."""
    columns: dict[str, list[str]] = {}
    for metric in metrics:
        task, _, name = metric.partition("/")
        if name in SIZES:
            sizes = [size for size in SIZES if f"{task}/{size}" in metrics]
            names = " / ".join(COCO[size] for size in sizes)
            columns[f"{TASK_NAMES[task]}AP, {names}"] = [f"{task}/{size}" for size in sizes]
        else:
            columns[label_of(metric)] = [metric]
    return columns


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cost_cells(cost: dict[str, Any] | None) -> list[str]:
    if cost is None:
        return [NOTHING] * 3
    return [f"{cost['parameters'] / 1e6:.2f}", f"{cost['gflops']:.2f}", f"{cost['seconds']:.2f}"]


def values_of(runs: Sequence[dict[str, Any]], metric: str) -> list[float]:
    """Return a metric of each run that has it; AP is not defined without objects of the size."""
    return [run["metrics"][metric] for run in runs if metric in run["metrics"]]


def _metric_cell(values: Sequence[Sequence[float]]) -> str:
    """Return mean and standard deviation of one metric, or the means of several."""
    if len(values) > 1:
        return " / ".join(f"{mean(column):.1f}" if column else NOTHING for column in values)
    (column,) = values
    if not column:
        return NOTHING
    spread = f" ± {stdev(column):.1f}" if len(column) > 1 else ""
    return f"{mean(column):.1f}{spread}"


def save_plot(table: Table, seeds: Sequence[int], results: Results, path: Path) -> None:
    """Draw each run of a table as a dot: a panel per metric, a row per variant."""
    metrics = _plotted(table.metrics)
    rows, headings = _rows(table)
    with style.figure_style():
        height = style.LINE * 1.3 * (rows[-1] + 2) + 1
        figure = Figure(figsize=(style.WIDTH, height), layout="constrained")
        panels = figure.subplots(1, len(metrics), sharey=True, squeeze=False)[0]
        for metric, axes in zip(metrics, panels):
            for variant, row in zip(table.variants, rows):
                runs = results.of_variant(table, variant, seeds)
                _draw_row(axes, values_of(runs, metric), row, is_reference=row == rows[0])
            axes.set_xlim(left=0)
            axes.set_xlabel(f"{label_of(metric)} (%)")
            axes.grid(axis="y", visible=False)
        names = [text.one_line(variant.name, 60) for variant in table.variants]
        panels[0].set_yticks(rows, names, parse_math=False)
        panels[0].set_ylim(rows[-1] + 0.8, rows[0] - 0.8)  # the first row is at the top
        for heading, row in headings.items():
            panels[0].annotate(
                text.one_line(heading, 60),
                (0, row),
                (-8, 0),
                xycoords=("axes fraction", "data"),
                textcoords="offset points",
                ha="right",
                va="center",
                weight="bold",
                parse_math=False,
            )
        figure.suptitle(
            "dot: one seed; bar: mean over the seeds; dotted line: mean of the first variant",
            fontsize="medium",
        )
        figure.savefig(path)


def _plotted(metrics: Sequence[str]) -> list[str]:
    """Return the main metric of each task, and for the last task those by size.

    If there are none of these, return all metrics.
    """
    last_task = metrics[-1].partition("/")[0]
    chosen = []
    for metric in metrics:
        task, _, name = metric.partition("/")
        if name == TASKS[task].main or (task == last_task and name in SIZES):
            chosen.append(metric)
    return chosen or list(metrics)


def _rows(table: Table) -> tuple[list[int], dict[str, int]]:
    """Return the row of each variant, and that of each heading."""
    rows: list[int] = []
    headings = {}
    row = 0
    for variant in table.variants:
        if variant.group:
            headings[variant.group] = row
            row += 1
        rows.append(row)
        row += 1
    return rows, headings


def _draw_row(axes: Axes, values: Sequence[float], row: int, *, is_reference: bool) -> None:
    """Draw the values of the seeds as dots and their mean as a bar."""
    if not values:
        return
    color = style.SERIES[0] if is_reference else style.SERIES[1]
    axes.plot(values, [row] * len(values), "o", color=color, alpha=0.45, markersize=5)
    axes.plot([mean(values)], [row], "|", color=color, markersize=13, markeredgewidth=2.5)
    if is_reference:
        axes.axvline(mean(values), color=style.MUTED, linewidth=0.8, linestyle=":")
