"""Semantic evaluation: the official figures, and figures by the definition of each metric."""

import cv2
import numpy as np
import official
import pytest
from gpvit.evaluation.semantic_evaluation import PixelCounts, metrics_of, near_boundary

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


def test_confusion_matrix_is_that_of_a_loop() -> None:
    predicted, labels = random_maps(5)
    expected = np.zeros((5, 5), int)
    for label, found in zip(labels.flat, predicted.flat):
        if label != 255:
            expected[label, found] += 1
    assert np.array_equal(counts_of(predicted, labels, 5).confusion, expected)


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
