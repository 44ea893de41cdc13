"""Semantic evaluation: the official figures, and figures by the definition of each metric."""

from collections.abc import Iterable
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import official
import pytest
import torch
from children import in_processes
from detectron2.data import MetadataCatalog
from gpvit.data.label_maps import save_labels
from gpvit.evaluation.semantic_evaluation import (
    PixelCounts,
    SemanticEvaluator,
    metrics_of,
    near_boundary,
    prediction_path,
)
from sklearn.metrics import confusion_matrix

REFERENCE = official.arrays("segmentation_data")
NAMES = [f"class {i}" for i in range(20)]


def counts_of(predicted: np.ndarray, labels: np.ndarray, num_classes: int) -> PixelCounts:
    counts = PixelCounts(num_classes)
    counts.add(predicted, labels)
    return counts


def random_maps(num_classes: int, size: tuple[int, int] = (60, 80)) -> tuple[np.ndarray, ...]:
    """Labels and predictions of large patches, with some ignored pixels."""
    rng = np.random.default_rng(num_classes)
    coarse = rng.integers(0, num_classes, (2, 6, 8)).astype(np.uint8)
    labels, predicted = (cv2.resize(c, size[::-1], interpolation=cv2.INTER_NEAREST) for c in coarse)
    predicted = np.where(rng.random(size) < 0.7, labels, predicted)
    labels[rng.random(size) < 0.1] = 255
    return predicted.astype(np.uint8), labels


def test_metrics_match_official_implementation() -> None:
    counts = PixelCounts(20)
    for predicted, labels in zip(REFERENCE["eval_pred"], REFERENCE["eval_gt"]):
        counts.add(predicted, labels)
    results = metrics_of(counts, NAMES)
    assert results["pACC"] == pytest.approx(100 * REFERENCE["eval_aAcc"])
    iou, accuracy = REFERENCE["eval_IoU"], REFERENCE["eval_Acc"]
    assert results["mIoU"] == pytest.approx(100 * np.nanmean(iou))
    assert results["mACC"] == pytest.approx(100 * np.nanmean(accuracy))
    for name, expected in zip(NAMES, iou):
        assert results.get(f"IoU-{name}", np.nan) == pytest.approx(100 * expected, nan_ok=True)


def test_absent_class_is_left_out_and_predicted_one_counts_as_zero() -> None:
    labels = np.array([[0, 0, 1, 255]], np.uint8)
    predicted = np.array([[0, 2, 1, 3]], np.uint8)
    results = metrics_of(counts_of(predicted, labels, 4), ["a", "b", "c", "d"])
    assert results["IoU-a"] == 50 and results["IoU-b"] == 100 and results["IoU-c"] == 0
    assert "IoU-d" not in results and "ACC-c" not in results
    assert results["mIoU"] == 50 and results["mACC"] == 75
    assert results["Precision-a"] == 100 and results["F1-a"] == pytest.approx(200 / 3)


@pytest.mark.parametrize("num_classes", [2, 5, 150])
def test_confusion_matrix_is_that_of_scikit_learn(num_classes: int) -> None:
    predicted, labels = random_maps(num_classes)
    counted = labels != 255
    expected = confusion_matrix(labels[counted], predicted[counted], labels=range(num_classes))
    assert np.array_equal(counts_of(predicted, labels, num_classes).confusion, expected)


def test_shifted_and_shuffled_label_maps_fall_far_below() -> None:
    """Label maps of small objects, predicted exactly but for their place or image."""
    rng = np.random.default_rng(0)
    maps = []
    for _ in range(8):
        labels = np.zeros((120, 160), np.uint8)
        for index in (1, 2, 3):
            center = int(rng.integers(20, 140)), int(rng.integers(20, 100))
            cv2.circle(labels, center, 14, index, -1)
        maps.append(labels)
    exact, shifted, shuffled = (PixelCounts(4) for _ in range(3))
    for number, labels in enumerate(maps):
        exact.add(labels, labels)
        shifted.add(np.roll(labels, 8, axis=1), labels)
        shuffled.add(maps[(number + 1) % len(maps)], labels)
    names = NAMES[:4]
    assert metrics_of(exact, names)["mIoU"] == metrics_of(exact, names)["mBoundaryIoU"] == 100
    assert metrics_of(shifted, names)["mIoU"] < 80
    assert metrics_of(shifted, names)["mBoundaryIoU"] < metrics_of(shifted, names)["mIoU"]
    assert metrics_of(shuffled, names)["mIoU"] < 40


@pytest.mark.parametrize(
    "file_name, root, expected",
    [
        ("/photos/a/x.jpg", "/photos", "a/x.jpg.png"),
        ("/photos/x.png", "/photos", "x.png"),
        ("/photos/../other/x.png", "/photos", None),
        ("/more/x.png", "/photos", None),
        ("x.png", "", None),
    ],
)
def test_predictions_stay_in_the_output_folder(
    file_name: str, root: str, expected: str | None, tmp_path: Path
) -> None:
    path = prediction_path(tmp_path, file_name, root)
    if expected is None:  # a hash makes the name unique
        assert path.parent == tmp_path / "label_maps" and path.name.endswith("_x.png")
        assert path != prediction_path(tmp_path, "/third/x.png", root)
    else:
        assert path == tmp_path / "label_maps" / expected


def test_evaluation_is_exact_over_two_processes(tmp_path: Path) -> None:
    """Of five images, process 0 evaluates three and process 1 two."""
    rng = np.random.default_rng(1)
    for number in range(5):
        labels, predicted = rng.integers(0, 4, (2, 30, 40)).astype(np.uint8)
        labels[:3] = 255
        save_labels(tmp_path / f"{number}.png", labels)
        np.save(tmp_path / f"{number}.npy", predicted)
    alone = evaluate_files(tmp_path, range(5))
    results = in_processes(partial(evaluate_files, tmp_path), [(0, 2, 4), (1, 3)])
    assert results == [alone, {}]


def evaluate_files(folder: Path, numbers: Iterable[int]) -> dict:
    MetadataCatalog.get("semantic_test").set(stuff_classes=NAMES[:4])
    evaluator = SemanticEvaluator("semantic_test")
    for number in numbers:
        record = {"file_name": "x", "sem_seg_file_name": str(folder / f"{number}.png")}
        predicted = torch.from_numpy(np.load(folder / f"{number}.npy"))
        evaluator.process([record], [{"sem_seg": predicted}])
    return evaluator.evaluate()


def test_counts_of_several_images_add_up() -> None:
    maps = [random_maps(4), random_maps(4, (33, 21))]
    together = PixelCounts(4)
    for predicted, labels in maps:
        together.add(predicted, labels)
    merged = counts_of(*maps[0], 4)
    merged.merge(counts_of(*maps[1], 4))
    assert np.array_equal(together.confusion, merged.confusion)
    assert np.array_equal(together.boundary, merged.boundary)


@pytest.mark.parametrize("num_classes", [2, 7, 300])
def test_boundary_iou_is_that_of_eroded_masks(num_classes: int) -> None:
    """The definition: the mask of a class minus its erosion, with 0 outside of the image."""
    predicted, labels = random_maps(min(num_classes, 250))
    if num_classes > 256:
        predicted, labels = predicted.astype(np.int32) + 40, labels.astype(np.int32) + 40
        labels[labels == 295] = 255
    labels[labels == 255] = 1  # ignored pixels are tested below
    results = metrics_of(counts_of(predicted, labels, num_classes), list(map(str, range(300))))
    distance = round(0.02 * np.hypot(60, 80))
    for number in range(num_classes):
        edges = []
        for classes in (predicted, labels):
            mask = np.pad((classes == number).astype(np.uint8), 1)
            eroded = cv2.erode(mask, np.ones((3, 3), np.uint8), iterations=distance)
            edges.append((mask - eroded)[1:-1, 1:-1] > 0)
        union = (edges[0] | edges[1]).sum()
        expected = 100 * (edges[0] & edges[1]).sum() / union if union else np.nan
        found = results.get(f"BoundaryIoU-{number}", np.nan)
        assert found == pytest.approx(expected, nan_ok=True)


def test_ignored_pixels_do_not_count() -> None:
    predicted, labels = random_maps(3)
    other = np.where(labels == 255, (predicted + 1) % 3, predicted).astype(np.uint8)
    assert np.array_equal(
        counts_of(predicted, labels, 3).confusion, counts_of(other, labels, 3).confusion
    )


def test_shifted_bands_have_boundaries_of_their_own_classes_only() -> None:
    labels = np.full((64, 64), 3, np.uint8)
    labels[:, 32:] = 5
    predicted = np.roll(labels, 2, axis=1)
    results = metrics_of(counts_of(predicted, labels, 8), list("abcdefgh"))
    assert {name for name in results if name.startswith("BoundaryIoU-")} == {
        "BoundaryIoU-d",
        "BoundaryIoU-f",
    }


def test_whole_image_of_a_class_has_its_border_as_boundary() -> None:
    near = near_boundary(np.zeros((50, 50), np.uint8))
    assert near.sum() == 50 * 50 - 48 * 48


def test_label_without_class_raises() -> None:
    with pytest.raises(ValueError, match="the label 7 is no class: there are 3"):
        counts_of(np.zeros((2, 2), np.uint8), np.full((2, 2), 7, np.uint8), 3)
