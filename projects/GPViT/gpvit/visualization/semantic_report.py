"""HTML report about the evaluation of a segmentation model.

It contains IoU and boundary IoU by class, the confusion matrix and the worst images.
"""

from typing import Any

import detectron2
import torch

from ..evaluation.metrics import SEMANTIC
from ..evaluation.semantic_evaluation import BOUNDARY_WIDTH, metrics_of
from ..evaluation.semantic_results import SemanticResults
from ..utils.text import one_line
from .report import (
    IMAGE_PANE,
    WORST_IMAGES,
    about_run,
    confusion_table,
    embedded,
    json_for_page,
    page,
    versions,
)
from .semantic_comparison import worst_cases

# Metric of a class -> its heading.
OF_A_CLASS = {
    "IoU": "IoU",
    "BoundaryIoU": "boundary IoU",
    "ACC": "accuracy",
    "Precision": "precision",
    "F1": "F1",
}


def collect(results: SemanticResults) -> dict[str, Any]:
    """Compute everything that the report shows."""
    names = list(map(one_line, results.truth.classes))
    counts = results.counts
    metrics = metrics_of(counts, results.truth.classes)
    labeled = counts.confusion.sum(1)
    classes = []
    for index, name in enumerate(names):
        row: dict[str, Any] = {"name": name, "share": labeled[index] / max(labeled.sum(), 1)}
        for metric in OF_A_CLASS:
            value = metrics.get(f"{metric}-{name}")
            row[metric] = float("nan") if value is None else value / 100
        classes.append(row)
    overall = {}
    for metric, heading in SEMANTIC.items():
        if metric in metrics:
            overall[heading] = metrics[metric] / 100
    failures: list[str] = []
    worst = []
    for case, figure in worst_cases(results, WORST_IMAGES, failures, IMAGE_PANE):
        caption = f"{case.name}: {case.error:.1%} wrong"
        worst.append({"caption": caption, "data": embedded(figure)})
    note = f"the {len(worst)} worst of {len(results.cases)} images"
    if failures:
        note += f", {len(failures)} cannot be read (first: {failures[0]})"
    absent = [row["name"] for row, count in zip(classes, labeled) if not count]
    return {
        "title": results.folder.resolve().name,
        "results": results,
        "overall": overall,
        "of_a_class": OF_A_CLASS,
        "classes": classes,
        "absent": absent,
        "boundary": BOUNDARY_WIDTH,
        "confusions": confusion_table(names, counts.confusion, []),
        "worst": worst,
        "worst_note": note,
        "figures": json_for_page({"overall": overall, "classes": classes}),
        **about_run(results.folder),
        "versions": versions(detectron2, torch),
    }


def semantic_page(content: dict[str, Any]) -> str:
    """Render the report; ``content`` is from :func:`collect`."""
    return page(content, "semantic_report.html.jinja")
