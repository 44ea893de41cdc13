"""HTML report about the evaluation of a classifier.

It contains accuracy by class, the confusion matrix, calibration and the most confident mistakes.
"""

from typing import Any

import detectron2
import numpy as np
import torch

from ..evaluation.classification_evaluation import metrics_of
from ..evaluation.classification_results import ClassificationResults
from ..evaluation.matching import calibration_of
from ..evaluation.metrics import CLASSIFICATION
from ..utils.text import one_line
from .classification_drawing import confident_mistakes, describe
from .report import (
    IMAGE_PANE,
    WORST_IMAGES,
    about_run,
    calibration_chart,
    confusion_table,
    embedded,
    json_for_page,
    page,
    versions,
)


def collect(results: ClassificationResults) -> dict[str, Any]:
    """Compute everything that the report shows."""
    names = list(map(one_line, results.truth.classes))
    counts = results.counts
    metrics = metrics_of(results.images, results.truth.classes)
    labeled, predicted, correct = counts.sum(1), counts.sum(0), np.diag(counts)
    with np.errstate(invalid="ignore"):  # NaN where a class does not occur
        recall, precision = correct / labeled, correct / predicted
    classes = []
    for index, name in enumerate(names):
        classes.append(
            {
                "name": name,
                "images": int(labeled[index]),
                "accuracy": float(recall[index]),
                "precision": float(precision[index]),
            }
        )
    overall = {}
    for metric, heading in CLASSIFICATION.items():
        if metric in metrics:
            overall[heading] = metrics[metric] / 100
    failures: list[str] = []
    worst = []
    for case, figure in confident_mistakes(results, WORST_IMAGES, failures, IMAGE_PANE):
        caption = f"{case.name}: {describe(results, case)}"
        worst.append({"caption": caption, "data": embedded(figure)})
    note = f"the {len(worst)} most confident of {len(results.mistakes)} mistakes"
    if failures:
        note += f", {len(failures)} images cannot be read (first: {failures[0]})"
    scores = np.array([image.scores[0] for image in results.images])
    is_correct = np.array([case.is_correct for case in results.cases])
    calibrated = calibration_of(scores, is_correct)
    return {
        "title": results.folder.resolve().name,
        "results": results,
        "overall": overall,
        "classes": classes,
        "confusions": confusion_table(names, counts, []),
        "calibration": calibrated,
        "calibration_chart": calibration_chart(calibrated, "images"),
        "worst": worst,
        "worst_note": note,
        "figures": json_for_page({"overall": overall, "classes": classes}),
        **about_run(results.folder),
        "versions": versions(detectron2, torch),
    }


def classification_page(content: dict[str, Any]) -> str:
    """Render the report; ``content`` is from :func:`collect`."""
    return page(content, "classification_report.html.jinja")
