"""HTML report about an evaluation.

It contains AP, precision-recall curves, the confusion matrix, calibration, the best score threshold
and the worst images.
"""

import base64
import io
import json
import math
import re
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import detectron2
import hotcoco
import jinja2
import numpy as np
import torch
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from pycocotools.coco import COCO

from ..config.values import MOST_DETECTIONS
from ..data.datasets.coco_rules import MAX_DETECTIONS
from ..evaluation.classification_evaluation import confused_pairs
from ..evaluation.coco_evaluation import (
    RESULTS,
    check_max_detections,
    max_dets,
    most_objects,
    summarize,
)
from ..evaluation.coco_results import Inputs
from ..evaluation.matching import (
    IOU,
    Calibration,
    Curve,
    Matching,
    calibration,
    confusion,
    curve,
    match,
    outcomes,
)
from ..evaluation.metrics import COCO as METRICS
from ..utils.errors import UserError
from ..utils.events import is_number, read_evaluation, read_metrics
from ..utils.text import LINE_LIMIT, one_line, several_lines
from ..version import __version__
from . import style
from .comparison import drawings, to_image, worst_first
from .curves import Points, draw_curve, main_metrics_over_iterations

KINDS = {"bbox": "box", "segm": "mask"}  # as in "box AP"
# AP, AP50, AP75, AP small, AP medium, AP large
OF_A_CLASS = tuple(
    name if name == heading else f"AP {heading}" for name, heading in METRICS.items()
)
# With more classes, only the worst and the best get curves, and the confusion matrix has one row
# for all classes that are rarely confused.
MANY_CLASSES = 12
WORST_IMAGES, IMAGE_PANE = 8, 480  # number, and pixels of the longer side of each
POINTS = 200  # of a curve
SIZE, SMALL_SIZE = (4.4, 3.1), (2.5, 2.0)  # inches of a chart; the page scales it
LEFT, RIGHT, BOTTOM, TOP = 40, 8, 32, 8  # points around the axes, for numbers and labels
LEGEND_ROW = 15  # points
NO_VALUE = "\N{EN DASH}"


def page(content: dict[str, Any], template: str = "report.html.jinja") -> str:
    """Render a report; ``content`` is from :func:`collect`."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=printable,
    )
    environment.filters["percent"] = percent
    environment.globals["style"] = style
    return environment.get_template(template).render(content)


def printable(value: Any) -> Any:
    """Make a value, which may come from a file, one line of text; markup is kept."""
    return value if isinstance(value, Markup) else one_line(value, LINE_LIMIT)


def percent(value: float) -> str:
    """Format a fraction as a percentage with one decimal, or as a dash if it is not finite."""
    return f"{100 * value:.1f}" if math.isfinite(value) else NO_VALUE


def collect(inputs: Inputs, threshold: float | None, limit: int) -> dict[str, Any]:
    """Compute everything that the report shows.

    Args:
        inputs: results and ground truth.
        threshold: score threshold; None for that of the best F1, or 0.5 without true positives.
        limit: number of detections per image and class that AP counts.
    """
    found = inputs.found[inputs.task]
    matching = match(inputs.ground_truth, found, inputs.task)
    over_scores = curve(matching)
    best = best_threshold(over_scores)
    if threshold is None:
        threshold = best["threshold"] if best else 0.5
    counts = confusion(inputs.ground_truth, found, inputs.task, threshold)
    calibrated = calibration(matching)
    worst, worst_note = worst_images(inputs, matching, threshold)
    return {
        "title": inputs.folder.resolve().name if inputs.folder else inputs.results.name,
        "inputs": inputs,
        "iou": IOU,
        "kinds": KINDS,
        "objects": len(matching.objects),
        "detections": len(matching.detections),
        **accuracy(inputs, matching, limit),
        "limit": limit,
        "limit_note": beyond(inputs, limit),
        "threshold": threshold,
        "best": best,
        "threshold_chart": threshold_chart(over_scores, best) if best else None,
        "confusions": confusions(inputs.ground_truth, counts),
        "calibration": calibrated,
        "calibration_chart": calibration_chart(calibrated) if len(matching.detections) else None,
        "worst": worst,
        "worst_note": worst_note,
        **about_run(inputs.folder),
        "versions": versions(detectron2, torch, hotcoco),
    }


def about_run(folder: Path | None) -> dict[str, Any]:
    """Return what a report shows of the folder of a run: speed, training charts and config."""
    return {
        "speed": read_speed(folder),
        "training": training_charts(folder),
        "config": read_config(folder),
    }


def versions(*modules: Any) -> dict[str, str]:
    """Return the versions of this package and of modules by name."""
    return {"gpvit": __version__} | {module.__name__: module.__version__ for module in modules}


def accuracy(inputs: Inputs, matching: Matching, limit: int) -> dict[str, Any]:
    """AP and precision-recall curves, overall and by class; arguments as for :func:`collect`."""
    recalls = [f"AR, {number} detection{'s' * (number > 1)}" for number in max_dets(limit)]
    metrics = [*OF_A_CLASS, *recalls, "AR small", "AR medium", "AR large"]
    precisions, overall, curves = {}, {}, {}
    for task, found in inputs.found.items():
        evaluation = summarize(inputs.ground_truth, found, task, limit)
        # (IoUs, recalls, classes, areas, maxDets): the last limit is the one of AP.
        precisions[task] = evaluation.eval["precision"][..., -1]
        overall[task] = dict(zip(metrics, figures(evaluation.stats)))
        curves[task] = precision_recall(precisions[task][..., 0], KINDS[task])
    classes = by_class(inputs.ground_truth, precisions, matching)
    return {
        "metrics": list(dict.fromkeys(metrics)),  # with a limit of 1, two ARs have the same name
        "of_a_class": OF_A_CLASS,
        "overall": overall,
        "classes": classes,
        "figures": json_for_page({"overall": overall, "classes": classes}),
        "precision_recall": curves,
        "class_curves": class_curves(precisions[inputs.task][..., 0], classes, inputs.task),
    }


def beyond(inputs: Inputs, limit: int) -> str:
    """Describe what the limit of detections excludes from AP; "" if nothing."""
    objects = most_objects(inputs.ground_truth)
    counts: Counter[tuple[int, int]] = Counter()
    for item in inputs.found[inputs.task].anns.values():
        counts[item["image_id"], item["category_id"]] += 1
    detections = max(counts.values(), default=0)
    most = max(objects, detections)
    if most <= limit:
        return ""
    return (
        f"images have up to {objects} objects and up to {detections} detections of a class, but AP "
        f"counts at most {limit} detections per image and class; "
        f"--max-detections {min(most, MOST_DETECTIONS)} raises this limit, "
        "dataloader.max_detections that of the detector"
    )


def read_limit(inputs: Inputs) -> int:
    """Read from evaluation.json how many detections per image and class AP counted; default 100."""
    path = inputs.results.with_name("evaluation.json")
    limit = read_evaluation(path).get("max_detections") if inputs.results.name == RESULTS else None
    if limit is None:
        return MAX_DETECTIONS
    check_max_detections(limit, f"{path}: max_detections")
    return limit


def figures(values: Any) -> list[float]:
    """COCO's metrics with NaN instead of -1, which means that there is no ground truth."""
    return [float(value) if value > -1 else math.nan for value in values]


def mean(values: np.ndarray) -> float:
    """The mean of all values but -1, as COCO computes it; NaN if there are no others."""
    values = values[values > -1]
    return float(values.mean()) if values.size else math.nan


def json_for_page(content: Any) -> Markup:
    """JSON for a script element: NaN becomes null, and no text can end the element."""
    text = json.dumps(_without_nan(content)).replace("<", "\\u003c")
    return Markup(text)


def _without_nan(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: _without_nan(value) for key, value in node.items()}
    if isinstance(node, list):
        return list(map(_without_nan, node))
    return None if isinstance(node, float) and not math.isfinite(node) else node


def by_class(
    ground_truth: COCO, precisions: dict[str, np.ndarray], matching: Matching
) -> list[dict[str, Any]]:
    """Counts, AP and best score threshold of each class.

    Args:
        ground_truth: the classes.
        precisions: for each task (IoUs, recalls, classes, areas), as in COCO's evaluation.
        matching: per class.
    """
    rows = []
    for number, id in enumerate(sorted(ground_truth.cats)):
        of_class = matching.of_class(id)
        row = {
            "name": one_line(ground_truth.cats[id]["name"]),
            "objects": len(of_class.objects),
            "detections": len(of_class.detections),
        }
        for task, all_precisions in precisions.items():
            precision = all_precisions[:, :, number]  # (IoUs, recalls, areas)
            # The IoUs are 0.5, 0.55, ..., 0.95; the areas all, small, medium and large.
            parts = [precision[..., 0], precision[0, :, 0], precision[5, :, 0]]
            parts += [precision[..., 1], precision[..., 2], precision[..., 3]]
            row[task] = dict(zip(OF_A_CLASS, map(mean, parts)))
        rows.append(row | {"best": best_threshold(curve(of_class))})
    return rows


def best_threshold(over_scores: Curve) -> dict[str, float] | None:
    """The score threshold of the best F1 with its metrics; None without true positives."""
    best = over_scores.best()
    if best is None:
        return None
    return {
        "threshold": float(over_scores.thresholds[best]),
        "precision": float(over_scores.precision[best]),
        "recall": float(over_scores.recall[best]),
        "f1": float(over_scores.f1[best]),
    }


def chart(
    draw: Callable[[Axes], None],
    title: str,
    *,
    size: tuple[float, float] = SIZE,
    legend: bool = False,
) -> Markup:
    """Draw a chart as inline SVG, in the colors of the page.

    Args:
        draw: draws on the axes.
        title: alternative text.
        size: inches without the legend.
        legend: whether to draw a legend below the chart.
    """
    settings = {"font.size": style.SMALL, "svg.fonttype": "none", "svg.hashsalt": "gpvit"}
    with style.figure_style(**settings):
        figure = Figure()
        figure.patch.set_visible(False)
        axes = figure.add_axes((0, 0, 1, 1))
        draw(axes)
        width, height = 72 * size[0], 72 * size[1]  # points
        axes_width, axes_height = width - LEFT - RIGHT, height - BOTTOM - TOP
        bottom = BOTTOM
        if legend:
            # It is centered below the axes and may extend to the right edge.
            rows = style.legend_below(axes, axes_width + 2 * RIGHT, style.SMALL)
            bottom += LEGEND_ROW * rows
            height += LEGEND_ROW * rows
        figure.set_size_inches(width / 72, height / 72)
        # left, bottom, width, height in fractions of the figure
        axes.set_position((LEFT / width, bottom / height, axes_width / width, axes_height / height))
        text = io.StringIO()
        figure.savefig(text, format="svg")
    return _for_page(text.getvalue(), title)


def _for_page(svg: str, title: str) -> Markup:
    """Turn an SVG file of matplotlib's into an element of the page with variables as colors."""
    svg = svg[svg.index("<svg") :]  # without XML declaration and doctype
    svg = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r' id="[\w.]+_\d+"', "", svg)  # "axes_1" etc. would occur in each chart
    svg = re.sub(r"'DejaVu Sans'[^;\"]*", "system-ui, sans-serif", svg)
    # Keep only the viewBox of the opening tag: a fixed width and height would stop scaling.
    view_box = re.search(r"<svg [^>]*?viewBox=(\"[^\"]*\")[^>]*>", svg)
    assert view_box is not None
    content = svg[view_box.end() :]
    for number, color in enumerate(style.SERIES, start=1):
        content = content.replace(color, f"var(--line{number})")
    content = content.replace(style.INK, "var(--ink)")
    return Markup(f'<svg role="img" aria-label="{escape(title)}" viewBox={view_box[1]}>{content}')


def unit_axes(axes: Axes, xlabel: str, ylabel: str, *, small: bool = False) -> None:
    """Label axes whose values are from 0 to 1."""
    ticks = np.linspace(0, 1, 3 if small else 6)
    axes.set(xlabel=xlabel, ylabel=ylabel, xlim=(0, 1.01), ylim=(0, 1.02))
    axes.set(xticks=ticks, yticks=ticks)


def precision_recall(precision: np.ndarray, title: str, *, small: bool = False) -> Markup | None:
    """Precision-recall curves, averaged over classes; None if no class has objects.

    Args:
        precision: (IoUs, recalls, classes) as in COCO's evaluation, -1 for classes without objects.
        title: what the curves are of.
        small: whether it is one of many charts; then without a legend.
    """
    precision = precision[:, :, (precision > -1).all(axis=(0, 1))]
    if not precision.size:
        return None
    lines = {
        "IoU 0.5": precision[0],
        "IoU 0.75": precision[5],
        "IoU 0.5:0.95": precision.mean(axis=0),
    }

    def draw(axes: Axes) -> None:
        for label, values in lines.items():
            recall = np.linspace(0, 1, values.shape[0])
            axes.plot(recall, values.mean(axis=1), label=label, clip_on=False)
        unit_axes(axes, "recall", "precision", small=small)

    title = f"precision-recall curves, {title}"
    return chart(draw, title, size=SMALL_SIZE if small else SIZE, legend=not small)


def class_curves(
    precision: np.ndarray, classes: list[dict[str, Any]], task: str
) -> list[dict[str, Any]]:
    """Curves of the classes with objects, worst first; of many, only of the worst and the best.

    Args:
        precision: (IoUs, recalls, classes).
        classes: from :func:`by_class`.
        task: task whose AP defines the order.
    """
    numbers = [i for i, row in enumerate(classes) if row["objects"]]
    numbers.sort(key=lambda i: classes[i][task]["AP"])
    if len(numbers) > MANY_CLASSES:
        numbers = numbers[: MANY_CLASSES // 2] + numbers[-MANY_CLASSES // 2 :]
    curves = []
    for i in numbers:
        name, ap = classes[i]["name"], classes[i][task]["AP"]
        drawn = precision_recall(precision[:, :, [i]], name, small=True)
        curves.append({"name": name, "ap": ap, "chart": drawn})
    return curves


def threshold_chart(over_scores: Curve, best: dict[str, float]) -> Markup:
    """Precision, recall and F1 over the score threshold."""
    kept = _thinned(len(over_scores.thresholds))
    lines = {"precision": over_scores.precision, "recall": over_scores.recall, "F1": over_scores.f1}

    def draw(axes: Axes) -> None:
        for label, values in lines.items():
            axes.plot(over_scores.thresholds[kept], values[kept], label=label)
        at = best["threshold"]
        axes.axvline(at, label="best F1", color=style.INK, linewidth=1, linestyle="-", alpha=0.5)
        unit_axes(axes, "score threshold", "")

    title = (
        f"precision, recall and F1 over the score threshold; F1 is best at {best['threshold']:.2f}"
    )
    return chart(draw, title, legend=True)


def _thinned(count: int) -> np.ndarray:
    """Indices of at most POINTS evenly spaced points of a curve, including both ends."""
    return np.unique(np.linspace(0, count - 1, POINTS).astype(int))


def calibration_chart(calibrated: Calibration, predictions: str = "detections") -> Markup:
    """Precision over the score (reliability diagram); ``predictions`` names them."""
    edges = np.linspace(0, 1, len(calibrated.counts) + 1)
    left, width = edges[:-1], edges[1] - edges[0]
    filled = calibrated.counts > 0

    def draw(axes: Axes) -> None:
        axes.bar(
            left[filled],
            calibrated.precision[filled],
            0.92 * width,
            align="edge",
            label=predictions,
            color=style.SERIES[0],
            alpha=0.6,
        )
        axes.plot([0, 1], [0, 1], "--", label="perfect calibration", color=style.INK, linewidth=1)
        unit_axes(axes, "score", "precision")

    return chart(draw, f"precision of {predictions} over their score", legend=True)


def confusions(ground_truth: COCO, counts: np.ndarray) -> dict[str, Any]:
    """The confusion matrix of :func:`.confusion` for the page, see :func:`confusion_table`."""
    names = [one_line(ground_truth.cats[id]["name"]) for id in sorted(ground_truth.cats)]
    return confusion_table(names, counts, ["background"])


def confusion_table(names: list[str], counts: np.ndarray, others: list[str]) -> dict[str, Any]:
    """A confusion matrix for the page; of many classes, only the most confused ones have rows.

    Args:
        names: of the K classes.
        counts: (K + O, K + O), the O others last.
        others: names of the last rows and columns, which are no classes.

    Returns:
        "columns", names; "rows", names with lists of (count, fraction of the row); "single", number
        of rows of a single class; "pairs", the ten most frequent confusions (class, predicted
        class, count).
    """
    single, num_others = len(names), len(others)
    between = counts[:single, :single] * (1 - np.eye(single, dtype=np.int64))  # no diagonal
    pairs = []
    for row, column, count in confused_pairs(counts[:single, :single]):
        pairs.append((names[row], names[column], count))
    if single > MANY_CLASSES:
        most = np.argsort(-(between.sum(0) + between.sum(1)), kind="stable")[:MANY_CLASSES]
        # New index of each old row and column: the most confused classes, the rest of the classes
        # together, the others.
        group = np.full(len(counts), MANY_CLASSES)
        group[most] = np.arange(MANY_CLASSES)
        group[single:] = MANY_CLASSES + 1 + np.arange(num_others)
        merged = np.zeros((MANY_CLASSES + 1 + num_others,) * 2, np.int64)
        np.add.at(merged, (group[:, None], group[None, :]), counts)
        rest = f"{single - MANY_CLASSES} other classes"
        names, counts = [*(names[i] for i in most), rest], merged
        single = MANY_CLASSES
    fractions = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    labels = [*names, *others]
    rows = []
    for label, row_counts, row_fractions in zip(labels, counts.tolist(), fractions.tolist()):
        rows.append((label, list(zip(row_counts, row_fractions))))
    return {"pairs": pairs, "single": single, "columns": labels, "rows": rows}


def worst_images(
    inputs: Inputs, matching: Matching, threshold: float
) -> tuple[list[dict[str, str]], str]:
    """Drawings of the worst images as JPEG in base64 with captions, and a note about them."""
    if inputs.images is None:
        return [], "no images, because their folder is not given"
    found = inputs.found[inputs.task]
    by_image = outcomes(matching, inputs.ground_truth, threshold)
    cases = [case for case in worst_first(inputs.ground_truth, found, by_image) if case.cost > 0]
    failures: list[str] = []
    worst = []
    for case, figure in drawings(inputs, cases, WORST_IMAGES, failures, IMAGE_PANE):
        caption = f"{one_line(case.image['file_name'])}: {case.counts()}"
        worst.append({"caption": caption, "data": embedded(figure)})
    note = f"the {len(worst)} worst of {len(cases)} images with false positives or false negatives"
    if failures:
        note += f", {len(failures)} cannot be read (first: {failures[0]})"
    return worst, note


def embedded(figure: Figure) -> Markup:
    """Render a figure as JPEG in base64."""
    content = io.BytesIO()
    to_image(figure).save(content, "JPEG", quality=82)
    return Markup(base64.b64encode(content.getvalue()).decode())


def training_charts(folder: Path | None) -> list[Markup]:
    """Loss and main metrics over the iterations from metrics.json of a run; [] without it."""
    rows = list(read_metrics(folder / "metrics.json")) if folder else []
    losses = [(row["iteration"], row["total_loss"]) for row in rows if "total_loss" in row]
    curves_by_title = {
        "training loss": {"total": losses} if losses else {},
        "validation (%)": main_metrics_over_iterations(rows),
    }
    charts = []
    for title, curves in curves_by_title.items():
        if curves:
            draw = partial(_draw_curves, curves=curves, title=title)
            charts.append(chart(draw, title, legend=len(curves) > 1))
    return charts


def _draw_curves(axes: Axes, curves: dict[str, Points], title: str) -> None:
    for name, points in curves.items():
        draw_curve(axes, [points[i] for i in _thinned(len(points))], name)
    axes.set(xlabel="iteration", ylabel=title, xlim=(0, None), ylim=(0, None))


def read_speed(folder: Path | None) -> dict[str, Any] | None:
    """Read seconds_per_image, device and images from evaluation.json; None without it."""
    path = folder and folder / "evaluation.json"
    if not path or not path.is_file():
        return None
    speed = read_evaluation(path)
    if speed.get("seconds_per_image", 0) is None:  # the evaluation was not completed
        return None
    try:
        seconds, device, images = speed["seconds_per_image"], speed["device"], speed["images"]
        if not (
            is_number(seconds) and seconds > 0 and isinstance(device, str) and is_number(images)
        ):
            raise ValueError("seconds_per_image, device or images has a wrong type or value")
        return {"seconds": float(seconds), "device": one_line(device), "images": int(images)}
    except (ValueError, KeyError) as error:
        raise UserError(
            f"{path} is not a valid evaluation file "
            f"({type(error).__name__}: {one_line(error)}); remove it"
        ) from None


def read_config(folder: Path | None) -> Markup:
    """Read the config of a run; empty without it."""
    path = folder and folder / "config.yaml"
    text = path.read_text(encoding="utf-8", errors="replace") if path and path.is_file() else ""
    return escape(several_lines(text))
