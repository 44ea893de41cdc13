"""A page about an evaluation: AP, curves, confusions, calibration, the best score threshold, the worst pictures."""

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
import faster_coco_eval
import jinja2
import matplotlib
import numpy as np
import torch
from cycler import cycler
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from pycocotools.coco import COCO

from ..config.values import MOST_DETECTIONS
from ..data.datasets.coco_rules import MAX_DETECTIONS
from ..evaluation.coco_evaluation import (
    RESULTS,
    check_max_detections,
    max_dets,
    most_objects,
    summarized,
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
from ..evaluation.metrics import TASKS
from ..utils.errors import UserError
from ..utils.events import is_number, read_evaluation, read_metrics
from ..utils.text import LINE_LIMIT, one_line, several_lines
from ..version import __version__
from .comparison import as_picture, drawings, worst_first
from .curves import main_courses

OF_A_CLASS = tuple(
    name if name == heading else f"AP {heading}" for name, heading in METRICS.items()
)
MANY_CLASSES = 12  # beyond this many, only the worst and the best have curves, and classes seldom confused share a row
PICTURES, PICTURE_PANE = 8, 480  # how many of the worst, and pixels of the longer side of each
POINTS = 200  # of a curve
# Colours in the charts, which become variables of the page's style for light and dark.
INK, COLOURS = "#010203", ("#010a01", "#010a02", "#010a03")
STYLE: Any = {  # matplotlib has a type for each of its settings
    "svg.fonttype": "none",
    "svg.hashsalt": "gpvit",
    "font.size": 9,
    "axes.facecolor": "none",
    "axes.prop_cycle": cycler(color=COLOURS, linestyle=["-", "--", ":"]),
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.grid": True,
    "grid.alpha": 0.15,
    "legend.frameon": False,
    **{
        key: INK
        for key in (
            "text.color",
            "axes.edgecolor",
            "axes.labelcolor",
            "xtick.color",
            "ytick.color",
            "grid.color",
        )
    },
}


def page(content: dict[str, Any]) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=shown,
    )
    environment.filters["percent"] = percent
    return environment.get_template("report.html.jinja").render(content)


def shown(value: Any) -> Any:
    """What the page shows of a value from a file."""
    return value if isinstance(value, Markup) else one_line(value, LINE_LIMIT)


def percent(value: float) -> str:
    """A share as a percentage with one decimal, a dash where there is none."""
    return f"{100 * value:.1f}" if math.isfinite(value) else "\N{EN DASH}"


def collect(inputs: Inputs, threshold: float | None, limit: int) -> dict[str, Any]:
    """Everything that the page shows.

    Args:
        inputs: results and ground truth.
        threshold: of scores; None for that of the best F1, or 0.5.
        limit: detections of an image and class that AP counts.
    """
    found = inputs.found[inputs.task]
    matching = match(inputs.truth, found, inputs.task)
    over_scores = curve(matching)
    best = advice(over_scores)
    if threshold is None:
        threshold = best["threshold"] if best else 0.5
    worst, worst_note = pictures(inputs, matching, threshold)
    return {
        "title": inputs.folder.resolve().name if inputs.folder else inputs.results.name,
        "inputs": inputs,
        "iou": IOU,
        "names": {name: task.label for name, task in TASKS.items()},
        "objects": len(matching.objects),
        "detections": len(matching.detections),
        **accuracy(inputs, matching, limit),
        "limit": limit,
        "limit_note": beyond(inputs, limit),
        "threshold": threshold,
        "best": best,
        "threshold_chart": threshold_chart(over_scores, best) if best else None,
        "confusions": confusions(
            inputs.truth, confusion(inputs.truth, found, inputs.task, threshold)
        ),
        "calibration": calibration(matching),
        "calibration_chart": calibration_chart(calibration(matching))
        if len(matching.detections)
        else None,
        "worst": worst,
        "worst_note": worst_note,
        "speed": read_speed(inputs.folder),
        "training": training_charts(inputs.folder),
        "versions": {"gpvit": __version__}
        | {module.__name__: module.__version__ for module in (detectron2, torch, faster_coco_eval)},
        "config": read_config(inputs.folder),
    }


def accuracy(inputs: Inputs, matching: Matching, limit: int) -> dict[str, Any]:
    """AP and its curves, overall and by class; ``limit`` as for :func:`collect`."""
    evaluations = {
        task: summarized(inputs.truth, found, task, limit) for task, found in inputs.found.items()
    }
    recalls = [f"AR, {number} detection{'s' * (number > 1)}" for number in max_dets(limit)]
    metrics = [*OF_A_CLASS, *recalls, "AR small", "AR medium", "AR large"]
    precisions = {
        task: evaluation.eval["precision"][..., -1] for task, evaluation in evaluations.items()
    }
    overall = {
        task: dict(zip(metrics, figures(evaluation.stats)))
        for task, evaluation in evaluations.items()
    }
    classes = by_class(inputs.truth, precisions, matching)
    curves = {
        task: precision_recall(precision[..., 0], TASKS[task].label)
        for task, precision in precisions.items()
    }
    return {
        "metrics": list(dict.fromkeys(metrics)),  # below 10 detections, two of the recalls are one
        "of_a_class": OF_A_CLASS,
        "overall": overall,
        "classes": classes,
        "figures": json_for_page({"overall": overall, "classes": classes}),
        "precision_recall": curves,
        "class_curves": class_curves(precisions[inputs.task][..., 0], classes, inputs.task),
    }


def beyond(inputs: Inputs, limit: int) -> str:
    """What AP leaves out because of its limit, in a sentence; "" if nothing."""
    objects = most_objects(inputs.truth)
    found = inputs.found[inputs.task].anns.values()
    detections = max(
        Counter((item["image_id"], item["category_id"]) for item in found).values(), default=0
    )
    most = max(objects, detections)
    if most <= limit:
        return ""
    return (
        f"images have up to {objects} objects, and up to {detections} detections of a class, of which AP counts "
        f"{limit}: --max-detections {min(most, MOST_DETECTIONS)} counts more, and dataloader.max_detections lets a "
        "detector give more"
    )


def read_limit(inputs: Inputs) -> int:
    """How many detections of an image and class AP counted in the evaluation that wrote the results, if it says so."""
    path = inputs.results.with_name("evaluation.json")
    limit = read_evaluation(path).get("max_detections") if inputs.results.name == RESULTS else None
    if limit is None:
        return MAX_DETECTIONS
    check_max_detections(limit, f"{path}: max_detections")
    return limit


def figures(values: Any) -> list[float]:
    """COCO's figures, which are -1 where there is nothing to find, with NaN for these."""
    return [float(value) if value > -1 else math.nan for value in values]


def mean(values: np.ndarray) -> float:
    """The mean of what is not -1, as COCO takes it; NaN where nothing else is left."""
    values = values[values > -1]
    return float(values.mean()) if values.size else math.nan


def json_for_page(content: Any) -> Markup:
    """JSON in a script element, where NaN is null and no text can end the element."""
    text = json.dumps(_without_nan(content)).replace("<", "\\u003c")
    return Markup(text)


def _without_nan(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: _without_nan(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_without_nan(value) for value in node]
    return None if isinstance(node, float) and not math.isfinite(node) else node


def by_class(
    truth: COCO, precisions: dict[str, np.ndarray], matching: Matching
) -> list[dict[str, Any]]:
    """What there is of each class, its AP, and the threshold of its best F1.

    Args:
        truth: the classes.
        precisions: for each task (IoUs, recalls, classes, areas), as COCO's evaluation has them.
        matching: class by class.
    """
    rows = []
    for number, id in enumerate(sorted(truth.cats)):
        of_class = matching.of_class(id)
        row = {
            "name": one_line(truth.cats[id]["name"]),
            "objects": len(of_class.objects),
            "detections": len(of_class.detections),
        }
        for task, precision in precisions.items():
            precision = precision[:, :, number]
            parts = [
                precision[..., 0],
                precision[0, :, 0],
                precision[5, :, 0],
                *(precision[..., i] for i in (1, 2, 3)),
            ]
            row[task] = dict(zip(OF_A_CLASS, map(mean, parts)))
        rows.append(row | {"best": advice(curve(of_class))})
    return rows


def advice(over_scores: Curve) -> dict[str, float] | None:
    """The score threshold of the best F1, and what it gives; None where no detection is true."""
    best = over_scores.best()
    if best is None:
        return None
    names = ("threshold", "precision", "recall", "f1")
    return {name: float(values[best]) for name, values in zip(names, over_scores)}


def chart(
    draw: Callable[[Axes], None], title: str, size: tuple[float, float] = (4.4, 3.1)
) -> Markup:
    """A chart as SVG for the inside of the page, in the colours of its style.

    Args:
        draw: draws it.
        title: what it shows, for those who cannot see it.
        size: in inches, which the page scales.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=size)
        figure.patch.set_visible(False)
        left, right, bottom, top = (
            points / 72 for points in (40, 8, 32, 8)
        )  # inches, enough for numbers and labels
        width, height = size
        draw(
            figure.add_axes(
                (
                    left / width,
                    bottom / height,
                    1 - (left + right) / width,
                    1 - (bottom + top) / height,
                )
            )
        )
        text = io.StringIO()
        figure.savefig(text, format="svg")
    return _for_page(text.getvalue(), title)


def _for_page(svg: str, title: str) -> Markup:
    """A drawing of matplotlib's without what only a file needs, and with variables as colours."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r' id="[\w.]+_\d+"', "", svg)  # would be there once for each chart
    svg = re.sub(r"'DejaVu Sans'[^;\"]*", "system-ui, sans-serif", svg)
    opening = f'<svg role="img" aria-label="{escape(title)}" viewBox='
    svg = re.sub(
        r"<svg [^>]*?viewBox=(\"[^\"]*\")[^>]*>",
        lambda match: f"{opening}{match[1]}>",
        svg,
        count=1,
    )
    for number, colour in enumerate(COLOURS, start=1):
        svg = svg.replace(colour, f"var(--line{number})")
    return Markup(svg.replace(INK, "var(--ink)"))


def unit_axes(axes: Axes, xlabel: str, ylabel: str) -> None:
    axes.set(xlabel=xlabel, ylabel=ylabel, xlim=(0, 1.01), ylim=(0, 1.02))


def precision_recall(precision: np.ndarray, title: str, *, small: bool = False) -> Markup | None:
    """Precision over recall, averaged over classes.

    Args:
        precision: (IoUs, recalls, classes) as COCO's evaluation has it, -1 for classes without objects.
        title: of the chart.
        small: whether it is one of many.
    """
    precision = precision[:, :, (precision > -1).all(axis=(0, 1))]
    if not precision.size:
        return None
    lines = {
        "IoU 0.5": precision[0],
        "IoU 0.75": precision[5],
        "mean of 0.5 to 0.95": precision.mean(axis=0),
    }

    def draw(axes: Axes) -> None:
        for label, values in lines.items():
            axes.plot(
                np.linspace(0, 1, values.shape[0]), values.mean(axis=1), label=label, clip_on=False
            )
        unit_axes(axes, "recall", "precision")
        if not small:
            axes.legend(loc="upper right", bbox_to_anchor=(1.0, 1.02))

    return chart(draw, f"precision over recall, {title}", (2.5, 2.0) if small else (4.4, 3.1))


def class_curves(
    precision: np.ndarray, classes: list[dict[str, Any]], task: str
) -> list[dict[str, Any]]:
    """Curves of the classes that have objects, worst first; of many classes, only of the worst and the best.

    Args:
        precision: (IoUs, recalls, classes).
        classes: from :func:`by_class`.
        task: whose AP counts.
    """
    numbers = sorted(
        (i for i, row in enumerate(classes) if row["objects"]), key=lambda i: classes[i][task]["AP"]
    )
    if len(numbers) > MANY_CLASSES:
        numbers = numbers[: MANY_CLASSES // 2] + numbers[-MANY_CLASSES // 2 :]
    return [
        {
            "name": classes[i]["name"],
            "ap": classes[i][task]["AP"],
            "chart": precision_recall(precision[:, :, [i]], classes[i]["name"], small=True),
        }
        for i in numbers
    ]


def threshold_chart(over_scores: Curve, best: dict[str, float]) -> Markup:
    """Precision, recall and F1 over the threshold."""
    shown = np.unique(np.linspace(0, len(over_scores.thresholds) - 1, POINTS).astype(int))

    def draw(axes: Axes) -> None:
        for name in ("precision", "recall", "f1"):
            axes.plot(
                over_scores.thresholds[shown],
                getattr(over_scores, name)[shown],
                label=name.replace("f1", "F1"),
            )
        axes.axvline(best["threshold"], color=INK, linewidth=1, linestyle="-", alpha=0.5)
        unit_axes(axes, "score threshold", "")
        axes.legend(loc="lower center")

    return chart(
        draw,
        f"precision, recall and F1 over the score threshold; F1 is best at {best['threshold']:.2f}",
    )


def calibration_chart(calibrated: Calibration) -> Markup:
    """The share of true detections over the score, beside what it should be."""
    edges = np.linspace(0, 1, len(calibrated.counts) + 1)
    there = calibrated.counts > 0

    def draw(axes: Axes) -> None:
        width = edges[1] - edges[0]
        axes.bar(
            edges[:-1][there],
            calibrated.precision[there],
            width * 0.92,
            align="edge",
            color=COLOURS[0],
            alpha=0.6,
        )
        axes.plot(
            [0, 1],
            [0, 1],
            color=INK,
            linestyle="--",
            linewidth=1,
            label="scores that say how often",
        )
        unit_axes(axes, "score", "share of true detections")
        axes.legend(loc="upper left")

    return chart(draw, "share of true detections over their score")


def confusions(truth: COCO, counts: np.ndarray) -> dict[str, Any]:
    """A matrix of confusions for the page: of many classes, those that are confused most, and the others in one."""
    names = [one_line(truth.cats[id]["name"]) for id in sorted(truth.cats)]
    between = counts[:-1, :-1] * (1 - np.eye(len(names), dtype=np.int64))
    rows, columns = np.unravel_index(
        np.argsort(-between, axis=None, kind="stable")[:10], between.shape
    )
    pairs = [
        (names[r], names[c], int(between[r, c])) for r, c in zip(rows, columns) if between[r, c]
    ]
    single = len(names)  # rows and columns of one class
    if single > MANY_CLASSES:
        most = np.argsort(-(between.sum(0) + between.sum(1)), kind="stable")[:MANY_CLASSES]
        group = np.full(len(names) + 1, MANY_CLASSES)
        group[most], group[-1] = np.arange(MANY_CLASSES), MANY_CLASSES + 1
        merged = np.zeros((MANY_CLASSES + 2,) * 2, np.int64)
        np.add.at(merged, (group[:, None], group[None, :]), counts)
        names, counts = [*(names[i] for i in most), f"{single - MANY_CLASSES} others"], merged
        single = MANY_CLASSES
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    cells = [list(zip(*pair)) for pair in zip(counts.tolist(), shares.tolist())]
    return {
        "pairs": pairs,
        "single": single,
        "columns": [*names, "missed"],
        "rows": list(zip([*names, "no object"], cells)),
    }


def pictures(
    inputs: Inputs, matching: Matching, threshold: float
) -> tuple[list[dict[str, str]], str]:
    """The worst pictures as JPEG in text, with their captions; and a word on them."""
    if inputs.images is None:
        return [], "no pictures, as the folder of the images is not given"
    found = inputs.found[inputs.task]
    cases = worst_first(inputs.truth, found, outcomes(matching, inputs.truth, threshold))
    cases = [case for case in cases if case.cost > 0]
    failures: list[str] = []
    worst = []
    for case, figure in drawings(inputs, cases, PICTURES, failures, PICTURE_PANE):
        content = io.BytesIO()
        as_picture(figure).save(content, "JPEG", quality=82)
        data = Markup(base64.b64encode(content.getvalue()).decode())
        worst.append(
            {"caption": f"{one_line(case.image['file_name'])}: {case.counts()}", "data": data}
        )
    unread = f", {len(failures)} cannot be read (first: {failures[0]})" if failures else ""
    return (
        worst,
        f"the {len(worst)} worst of {len(cases)} pictures with false detections or missed objects{unread}",
    )


def training_charts(folder: Path | None) -> list[Markup]:
    """Loss and AP over the iterations, from a training's metrics.json; none without it."""
    rows = list(read_metrics(folder / "metrics.json")) if folder else []
    losses = [(row["iteration"], row["total_loss"]) for row in rows if "total_loss" in row]
    charts = []
    for title, courses in (
        ("training loss", {"total": losses} if losses else {}),
        ("validation AP (%)", main_courses(rows)),
    ):
        if courses:
            charts.append(chart(partial(_draw_courses, courses=courses, title=title), title))
    return charts


def _draw_courses(axes: Axes, courses: dict[str, list[tuple[int, float]]], title: str) -> None:
    for name, course in courses.items():
        shown = [course[i] for i in np.unique(np.linspace(0, len(course) - 1, POINTS).astype(int))]
        axes.plot(*zip(*shown), label=name, marker="o" if len(shown) < 20 else None, markersize=4)
    axes.set(xlabel="iteration", ylabel=title, xlim=(0, None), ylim=(0, None))
    if len(courses) > 1:
        axes.legend()


def read_speed(folder: Path | None) -> dict[str, Any] | None:
    """What evaluation.json says of the speed: seconds_per_image, device and images; None without it."""
    path = folder and folder / "evaluation.json"
    if not path or not path.is_file():
        return None
    speed = read_evaluation(path)
    if speed.get("seconds_per_image", 0) is None:  # the evaluation did not come to its end
        return None
    try:
        seconds, device, images = speed["seconds_per_image"], speed["device"], speed["images"]
        if not (
            is_number(seconds) and seconds > 0 and isinstance(device, str) and is_number(images)
        ):
            raise ValueError("seconds_per_image, device or images are of another kind")
        return {"seconds": float(seconds), "device": one_line(device), "images": int(images)}
    except (ValueError, KeyError) as error:
        raise UserError(
            f"{path} is not what an evaluation writes ({type(error).__name__}: {one_line(error)}); remove it"
        ) from None


def read_config(folder: Path | None) -> Markup:
    """The config of a training; empty without it."""
    path = folder and folder / "config.yaml"
    text = path.read_text(encoding="utf-8", errors="replace") if path and path.is_file() else ""
    return escape(several_lines(text))
