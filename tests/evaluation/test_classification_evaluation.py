"""Accuracy of classifiers: by definition, by scikit-learn, and over several processes."""

import json
import logging
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from children import in_processes
from detectron2.data import MetadataCatalog
from gpvit.evaluation import ClassificationEvaluator
from gpvit.evaluation.classification_evaluation import (
    RESULTS,
    ImageScores,
    confused_pairs,
    confusion_matrix,
    metrics_of,
)
from gpvit.evaluation.matching import calibration_of
from gpvit.evaluation.metrics import parse_metric
from sklearn import metrics as sklearn_metrics
from torch import Tensor

NAMES = [f"class {i}" for i in range(8)]
DATASET = "classification_test"


@pytest.fixture(autouse=True)
def dataset() -> None:
    MetadataCatalog.get(DATASET).set(thing_classes=NAMES)


def random_scores(number: int, num_classes: int = 8) -> tuple[Tensor, list[int]]:
    """Probabilities (N, K) that are often right, and labels."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(num_classes - 1, (number,), generator=generator)  # none of the last
    logits = torch.randn(number, num_classes, generator=generator)
    logits[torch.arange(number), labels] += 1.0
    return logits.softmax(1), labels.tolist()


def evaluate(numbers: Iterable[int], batch_size: int = 3, folder: str | None = None) -> dict:
    """Evaluate some of 50 images in batches, of which the last one may be incomplete."""
    scores, labels = random_scores(50)
    evaluator = ClassificationEvaluator(DATASET, folder)
    chosen = list(numbers)
    for start in range(0, len(chosen), batch_size):
        batch = chosen[start : start + batch_size]
        inputs = [{"image_id": number, "label": labels[number]} for number in batch]
        evaluator.process(inputs, [{"scores": scores[number]} for number in batch])
    return evaluator.evaluate()


def test_accuracies_are_those_of_scikit_learn() -> None:
    scores, labels = random_scores(50)
    results = evaluate(range(50))["classification"]
    predicted = scores.argmax(1).tolist()
    top5 = sklearn_metrics.top_k_accuracy_score(labels, scores.numpy(), k=5, labels=range(8))
    balanced = sklearn_metrics.recall_score(labels, predicted, average=None, labels=range(7))
    assert results["top1"] == pytest.approx(100 * sklearn_metrics.accuracy_score(labels, predicted))
    assert results["top5"] == pytest.approx(100 * top5)
    assert results["mACC"] == pytest.approx(100 * balanced.mean())
    for name, value in zip(NAMES, balanced):
        assert results[f"top1-{name}"] == pytest.approx(100 * value)
    assert "top1-class 7" not in results  # no image
    for name in results:
        metric = parse_metric(f"ema_classification/{name}")
        assert metric is not None and metric.is_main == (name == "top1")


def test_evaluation_is_exact_over_processes_with_an_incomplete_last_batch() -> None:
    alone = evaluate(range(50), batch_size=8)
    results = in_processes(partial(evaluate, batch_size=8), [range(0, 50, 2), range(1, 50, 2)])
    assert results == [alone, {}]
    assert in_processes(evaluate, [range(49), range(49, 50)]) == [alone, {}]


def test_confused_pairs_are_logged_worst_first(caplog: pytest.LogCaptureFixture) -> None:
    counts = np.array([[9, 2, 0], [5, 1, 0], [0, 3, 7]])
    assert confused_pairs(counts) == [(1, 0, 5), (2, 1, 3), (0, 1, 2)]
    assert confused_pairs(counts, most=1) == [(1, 0, 5)]
    with caplog.at_level(logging.INFO, logger="gpvit"):
        evaluate(range(50))
    [message] = caplog.messages
    scores, labels = random_scores(50)
    matrix = sklearn_metrics.confusion_matrix(labels, scores.argmax(1), labels=range(8))
    np.fill_diagonal(matrix, 0)
    label, predicted = np.unravel_index(matrix.argmax(), matrix.shape)
    first = f"class {label} as class {predicted} ({matrix.max()})"
    assert message.startswith(f"most frequent confusions: {first}, ")
    assert message.count(" as ") == min(10, (matrix > 1).sum())


def test_few_classes_have_no_top_5() -> None:
    images = [ImageScores(1, 0, [0, 1], [0.9, 0.1]), ImageScores(2, 1, [0, 1], [0.6, 0.4])]
    assert metrics_of(images, ["a", "b"]) == {
        "top1": 50, "mACC": 50, "top1-a": 100, "top1-b": 0
    }  # fmt: skip
    assert confusion_matrix(images, 2).tolist() == [[1, 0], [1, 0]]


def test_best_predictions_are_written(tmp_path: Path) -> None:
    evaluate(range(50), folder=str(tmp_path / "out"))
    rows = json.loads((tmp_path / "out" / RESULTS).read_text())
    scores, _ = random_scores(50)
    assert [row["image_id"] for row in rows] == list(range(50))
    for row, expected in zip(rows, scores):
        best = expected.topk(5)
        assert row["classes"] == best.indices.tolist()
        assert row["scores"] == pytest.approx(best.values.tolist(), abs=1e-6)


def test_metrics_are_computed_if_nothing_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    evaluator = ClassificationEvaluator(DATASET, str(tmp_path / "file"))
    evaluator.process([{"image_id": 1, "label": 0}], [{"scores": torch.eye(8)[0]}])
    assert evaluator.evaluate()["classification"]["top1"] == 100
    assert "cannot create the folder" in evaluator.unwritten


def test_calibration_of_classifiers_counts_by_score() -> None:
    scores = np.array([0.95, 0.97, 0.35, 0.31, 1.0])
    result = calibration_of(scores, np.array([True, False, False, True, True]))
    assert result.counts.tolist() == [0, 0, 0, 2, 0, 0, 0, 0, 0, 3]
    assert result.precision[9] == pytest.approx(2 / 3) and result.score[3] == pytest.approx(0.33)
    mean = (0.95 + 0.97 + 1) / 3
    assert result.error == pytest.approx((3 * (mean - 2 / 3) + 2 * (0.5 - 0.33)) / 5)
