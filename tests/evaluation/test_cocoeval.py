"""COCOeval by hotcoco has pycocotools' figures and matches, to the last bit."""

import contextlib
import io
import signal
from typing import Any

import numpy as np
import pytest
from children import in_a_child
from gpvit.evaluation.cocoeval import COCOeval
from pycocotools import cocoeval
from pycocotools import mask as mask_api
from pycocotools.coco import COCO

HEIGHT, WIDTH, IMAGES = 240, 320, 20
CATEGORIES = (1, 3, 7)
MATCHES = ("dtIds", "gtIds", "dtScores", "dtMatches", "gtMatches", "dtIgnore", "gtIgnore")


def random_data(seed: int, task: str) -> tuple[COCO, COCO]:
    """Return objects with crowds, and detections with equal scores, some of them right."""
    random = np.random.default_rng(seed)
    objects: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []

    def shape() -> dict[str, Any]:
        x, y = random.integers(0, WIDTH - 120), random.integers(0, HEIGHT - 120)
        width, height = random.integers(1, 120, 2)
        mask = np.zeros((HEIGHT, WIDTH), np.uint8, order="F")
        mask[y : y + height, x : x + width] = 1
        box = [float(x), float(y), float(width), float(height)]
        return {"bbox": box, "segmentation": mask_api.encode(mask)}

    def ids(image: int) -> dict[str, int]:
        return {"image_id": image, "category_id": int(random.choice(CATEGORIES))}

    for image in range(1, IMAGES + 1):
        for _ in range(random.integers(0, 6)):
            item = shape()
            area = item["bbox"][2] * item["bbox"][3]
            crowd = int(random.random() < 0.15)
            objects.append(item | ids(image) | {"area": area, "iscrowd": crowd})
            objects[-1]["id"] = len(objects)
        present = [item for item in objects if item["image_id"] == image]
        for _ in range(random.integers(0, 10)):
            item = shape() | ids(image)
            if present and random.random() < 0.6:
                item = present[random.integers(len(present))]  # also twice
            keys = ("image_id", "category_id", "bbox" if task == "bbox" else "segmentation")
            score = float(random.integers(1, 8) / 8)
            results.append({key: item[key] for key in keys} | {"score": score})
    ground_truth = COCO()
    ground_truth.dataset = {
        "images": [{"id": id, "height": HEIGHT, "width": WIDTH} for id in range(1, IMAGES + 1)],
        "categories": [{"id": id, "name": f"class {id}"} for id in CATEGORIES],
        "annotations": objects,
    }
    with contextlib.redirect_stdout(io.StringIO()):
        ground_truth.createIndex()
        return ground_truth, ground_truth.loadRes(results)


@pytest.mark.parametrize("task", ["bbox", "segm"])
@pytest.mark.parametrize("limit", [100, 2])
def test_figures_are_those_of_pycocotools(task: str, limit: int) -> None:
    for seed in range(10):
        runs = []
        for evaluator in (cocoeval.COCOeval, COCOeval):
            run = evaluator(*random_data(seed, task), task)
            run.params.maxDets = [1, 2, limit]
            run.params.imgIds = list(range(2, IMAGES))
            with contextlib.redirect_stdout(io.StringIO()):
                run.evaluate()
                run.accumulate()
                if limit == 100:  # pycocotools' summary needs it
                    run.summarize()
            runs.append(run)
        theirs, ours = runs
        for key in ("precision", "recall", "scores"):
            np.testing.assert_array_equal(ours.eval[key], theirs.eval[key])
        np.testing.assert_array_equal(ours.stats, theirs.stats)
        assert (theirs.eval["precision"] > 0).any()


@pytest.mark.parametrize("task", ["bbox", "segm"])
@pytest.mark.parametrize("by_class", [True, False])
def test_matches_are_those_of_pycocotools(task: str, by_class: bool) -> None:
    for seed in range(10):
        entries = []
        for evaluator in (cocoeval.COCOeval, COCOeval):
            run = evaluator(*random_data(seed, task), task)
            run.params.iouThrs, run.params.useCats = np.array([0.5]), int(by_class)
            run.params.areaRng, run.params.areaRngLbl = [[0, 1e10]], ["all"]
            run.params.maxDets = [1000]
            with contextlib.redirect_stdout(io.StringIO()):
                run.evaluate()
            entries.append([entry for entry in run.evalImgs if entry])
        for theirs, ours in zip(*entries, strict=True):
            for key in MATCHES:
                expected = np.array(theirs[key], dtype=float)
                np.testing.assert_array_equal(np.array(ours[key], dtype=float), expected)


def test_ap_counts_the_last_limit_of_detections() -> None:
    ground_truth, detections = random_data(0, "bbox")
    run = COCOeval(ground_truth, detections, "bbox")
    run.params.maxDets = [1, 1, 2]
    run.evaluate()
    run.accumulate()
    run.summarize()
    precision = run.eval["precision"][:, :, :, 0, -1]
    assert run.stats[0] == pytest.approx(precision[precision > -1].mean())


def test_names_of_classes_and_files_may_be_anything() -> None:
    ground_truth, detections = random_data(0, "bbox")
    expected, found = [], []
    for precisions in (expected, found):
        run = COCOeval(ground_truth, detections, "bbox")
        run.evaluate()
        run.accumulate()
        precisions.append(run.eval["precision"])
        for item in (*ground_truth.dataset["images"], *ground_truth.dataset["categories"]):
            item["name"] = item["file_name"] = "\ud800\x00"
    np.testing.assert_array_equal(found, expected)


def test_process_forked_after_an_evaluation_raises_an_error() -> None:
    """Its evaluation would wait forever for threads that it does not have."""

    def evaluate() -> None:
        COCOeval(*random_data(0, "bbox"), "bbox").evaluate()

    def evaluate_in_time() -> None:
        signal.alarm(20)  # ends the process
        evaluate()

    evaluate()
    with pytest.raises(AssertionError, match="forked after an evaluation cannot evaluate"):
        in_a_child(evaluate_in_time)
