"""True positives, false positives and false negatives match those of COCO's evaluation."""

import contextlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
from benchmarks.coco_evaluation import synthetic_results
from gpvit.evaluation.cocoeval import COCOeval
from gpvit.evaluation.matching import (
    UNMATCHED,
    Outcome,
    calibration,
    check_results,
    confusion,
    curve,
    index,
    match,
    outcomes,
    read_results,
    tasks_of,
)
from gpvit.utils.errors import UserError
from pycocotools import cocoeval
from pycocotools import mask as mask_api
from pycocotools.coco import COCO

CAT, DOG, BIRD = 3, 7, 8


def ground_truth_of(*objects: tuple) -> COCO:
    """Two images of 100 x 100 pixels with objects (image, class, box) or (..., "crowd")."""
    annotations = []
    for id, (image, category, box, *crowd) in enumerate(objects, start=1):
        item = {"id": id, "image_id": image, "category_id": category, "bbox": box}
        annotations.append(item | {"area": box[2] * box[3], "iscrowd": len(crowd)})
    images = [{"id": id, "height": 100, "width": 100, "file_name": f"{id}.png"} for id in (1, 2)]
    categories = [
        {"id": CAT, "name": "cat"},
        {"id": DOG, "name": "dog"},
        {"id": BIRD, "name": "bird"},
    ]
    return indexed({"images": images, "categories": categories, "annotations": annotations})


def indexed(content: dict) -> COCO:
    ground_truth = COCO()
    ground_truth.dataset = content
    with contextlib.redirect_stdout(io.StringIO()):
        ground_truth.createIndex()
    return ground_truth


def found_in(ground_truth: COCO, *detections: tuple) -> COCO:
    """Detections (image, class, box, score)."""
    names = ("image_id", "category_id", "bbox", "score")
    return index([dict(zip(names, detection)) for detection in detections], ground_truth, "bbox")


# BOX and SHIFTED have an IoU of 0.82.
BOX, SHIFTED, FAR = [10, 10, 40, 40], [14, 10, 40, 40], [60, 60, 30, 30]


def ids_to(values: np.ndarray, name: str) -> dict[int, float]:
    """A field of a structured array by id."""
    return dict(zip(values["id"].tolist(), values[name].tolist()))


def test_outcomes_are_tp_fp_ignored_and_fn() -> None:
    ground_truth = ground_truth_of(
        (1, CAT, BOX), (1, DOG, FAR), (2, CAT, [0, 0, 100, 100], "crowd"), (2, DOG, BOX)
    )
    found = found_in(
        ground_truth,
        (1, CAT, SHIFTED, 0.6),  # 1: lower score than 2, which matches the cat
        (1, CAT, BOX, 0.9),  # 2: true positive
        (1, CAT, FAR, 0.8),  # 3: wrong class
        (2, CAT, SHIFTED, 0.7),  # 4: on the crowd
        (2, DOG, [10, 10, 40, 15], 0.5),  # 5: IoU with the dog is too low
        (2, BIRD, FAR, 0.4),  # 6: no object there
    )
    cases = outcomes(match(ground_truth, found, "bbox"), ground_truth, 0.0)
    assert cases == {1: Outcome([2], [3, 1], [], [2]), 2: Outcome([], [5, 6], [4], [4])}


def test_detection_matches_object_with_highest_iou() -> None:
    ground_truth = ground_truth_of((1, CAT, SHIFTED), (1, CAT, BOX))
    matching = match(ground_truth, found_in(ground_truth, (1, CAT, [11, 10, 40, 40], 0.9)), "bbox")
    assert matching.detections["object"].tolist() == [2]
    assert ids_to(matching.objects, "score") == {1: UNMATCHED, 2: 0.9}


def test_detections_below_threshold_are_excluded() -> None:
    ground_truth = ground_truth_of((1, CAT, BOX))
    matching = match(
        ground_truth, found_in(ground_truth, (1, CAT, BOX, 0.5), (1, DOG, FAR, 0.3)), "bbox"
    )
    assert outcomes(matching, ground_truth, 0.5)[1] == Outcome([1], [], [], [])
    assert outcomes(matching, ground_truth, 0.51)[1] == Outcome([], [], [], [1])


def test_masks_are_matched_by_pixels() -> None:
    """Two triangles that fill one box."""
    corners = {"upper": [10, 10, 50, 10, 10, 50], "lower": [50, 50, 50, 10, 10, 50]}
    upper, lower = (mask_api.frPyObjects([polygon], 100, 100)[0] for polygon in corners.values())
    ground_truth = ground_truth_of((1, CAT, BOX))
    ground_truth.anns[1]["segmentation"] = upper
    common = {"image_id": 1, "category_id": CAT, "score": 0.9, "bbox": BOX}
    for mask, true_positives in ((upper, [1]), (lower, [])):
        results = [common | {"segmentation": mask}]
        masks, boxes = index(results, ground_truth, "segm"), index(results, ground_truth, "bbox")
        assert masks.anns[1]["area"] < 0.6 * boxes.anns[1]["area"]
        by_mask = outcomes(match(ground_truth, masks, "segm"), ground_truth, 0.5)
        by_box = outcomes(match(ground_truth, boxes, "bbox"), ground_truth, 0.5)
        assert by_mask[1].true_positives == true_positives
        assert by_box[1].true_positives == [1]


def test_without_detections_all_objects_are_false_negatives() -> None:
    ground_truth = ground_truth_of((1, CAT, BOX))
    found = index([], ground_truth, "bbox")
    matching = match(ground_truth, found, "bbox")
    assert outcomes(matching, ground_truth, 0.5)[1] == Outcome([], [], [], [1])
    assert confusion(ground_truth, found, "bbox", 0.5)[0].tolist() == [0, 0, 0, 1]
    assert curve(matching).best() is None and np.isnan(calibration(matching).error)


def official(folder: Path, task: str) -> tuple[COCO, COCO]:
    with contextlib.redirect_stdout(io.StringIO()):
        ground_truth = COCO(str(folder / "instances_val2014_100.json"))
    results = read_results(folder / f"instances_val2014_fake{task}100_results.json")
    return ground_truth, index(results, ground_truth, task)


def synthetic_data_of(task: str) -> tuple[COCO, COCO]:
    content, results = synthetic_results(10)
    ground_truth = indexed(content)
    return ground_truth, index(results, ground_truth, task)


def marks_of_coco(ground_truth: COCO, found: COCO, task: str) -> tuple[dict, dict, set]:
    """Matches, scores of matched objects, and ignored detections at IoU 0.5 according to COCO."""
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = cocoeval.COCOeval(ground_truth, found, task)
        evaluation.evaluate()
    matches, ignored, objects = {}, set(), {}
    for entry in filter(None, evaluation.evalImgs):
        if entry["aRng"] != evaluation.params.areaRng[0]:
            continue
        matches |= dict(zip(entry["dtIds"], entry["dtMatches"][0].astype(int).tolist()))
        ignored.update(np.array(entry["dtIds"], int)[entry["dtIgnore"][0].astype(bool)].tolist())
        for id, detection, crowd in zip(entry["gtIds"], entry["gtMatches"][0], entry["gtIgnore"]):
            if not crowd:
                objects[id] = found.anns[int(detection)]["score"] if detection else UNMATCHED
    return matches, objects, ignored


def check_against_coco(ground_truth: COCO, found: COCO, task: str) -> None:
    matching = match(ground_truth, found, task)
    matches, objects, ignored = marks_of_coco(ground_truth, found, task)
    assert len(matches) > 100 and 0 < sum(map(bool, matches.values())) < len(matches)
    assert ids_to(matching.detections, "object") == matches
    assert set(matching.detections["id"][matching.detections["ignored"]].tolist()) == ignored
    assert ids_to(matching.objects, "score") == objects


@pytest.mark.parametrize("task", ["bbox", "segm"])
def test_matches_equal_those_of_full_evaluation(task: str) -> None:
    check_against_coco(*synthetic_data_of(task), task)


@pytest.mark.parametrize("task", ["bbox", "segm"])
def test_matches_of_official_results_equal_those_of_full_evaluation(
    real_data: Path, task: str
) -> None:
    ground_truth, found = official(real_data / "cocoeval", task)
    check_against_coco(ground_truth, found, task)


@pytest.mark.parametrize("threshold", [0.3, 0.5])
def test_one_matching_is_valid_for_all_thresholds(threshold: float) -> None:
    ground_truth, found = synthetic_data_of("bbox")
    kept, old_ids = [], [0]  # ids are counted from 1
    for id, item in found.anns.items():
        if item["score"] >= threshold:
            kept.append({key: item[key] for key in ("image_id", "category_id", "score", "bbox")})
            old_ids.append(id)
    assert 0 < len(kept) < len(found.anns)
    found_again = index(kept, ground_truth, "bbox")
    for by_class in (True, False):
        all_detections = match(ground_truth, found, "bbox", by_class=by_class)
        kept_detections = match(ground_truth, found_again, "bbox", by_class=by_class)
        expected = outcomes(kept_detections, ground_truth, 0.0)
        for id, outcome in outcomes(all_detections, ground_truth, threshold).items():
            assert outcome.false_negatives == expected[id].false_negatives
            for ids, new_ids in (
                (outcome.true_positives, expected[id].true_positives),
                (outcome.false_positives, expected[id].false_positives),
            ):
                assert sorted(ids) == sorted(old_ids[new_id] for new_id in new_ids)


@pytest.mark.parametrize("task", ["bbox", "segm"])
def test_ap_from_precision_and_recall_equals_ap_of_coco(task: str) -> None:
    ground_truth, found = synthetic_data_of(task)
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(ground_truth, found, task)
        evaluation.evaluate()
        evaluation.accumulate()
    matching = match(ground_truth, found, task)
    aps = []
    for number, id in enumerate(sorted(ground_truth.cats)):
        expected = evaluation.eval["precision"][0, :, number, 0, -1].mean()
        points = curve(matching.of_class(id))
        if expected == -1:  # no objects
            continue
        best = []
        for recall in np.linspace(0, 1, 101):
            best.append(points.precision[points.recall >= recall - 1e-9].max(initial=0))
        assert np.mean(best) == pytest.approx(expected, abs=1e-6)
        aps.append(expected)
    assert 0.1 < np.mean(aps) < 0.9


def test_confusions_are_counted_per_class() -> None:
    ground_truth = ground_truth_of(
        (1, CAT, BOX), (1, DOG, FAR), (2, DOG, BOX), (2, BIRD, FAR, "crowd")
    )
    found = found_in(
        ground_truth,
        (1, DOG, BOX, 0.9),  # the cat confused with a dog
        (1, CAT, BOX, 0.8),  # the cat is already matched
        (1, DOG, FAR, 0.7),
        (2, CAT, FAR, 0.6),  # on the crowd
        (2, DOG, BOX, 0.2),  # below the threshold
    )
    counts = confusion(ground_truth, found, "bbox", 0.5)
    #                           cat dog bird background
    assert counts.tolist() == [[0, 1, 0, 0], [0, 1, 0, 1], [0, 0, 0, 0], [1, 0, 0, 0]]


def test_confusion_matrix_counts_every_object_and_detection_once() -> None:
    ground_truth, found = synthetic_data_of("bbox")
    counts = confusion(ground_truth, found, "bbox", 0.5)
    objects, detections = [], []
    for id in sorted(ground_truth.cats):
        objects.append(len(ground_truth.getAnnIds(catIds=id)))
        scores = [item["score"] for item in found.loadAnns(found.getAnnIds(catIds=id))]
        detections.append(int((np.array(scores) >= 0.5).sum()))
    assert counts[:-1].sum(axis=1).tolist() == objects
    assert counts[:, :-1].sum(axis=0).tolist() == detections


def test_best_f1_is_found() -> None:
    ground_truth = ground_truth_of(
        (1, CAT, BOX), (1, CAT, FAR), (2, CAT, BOX), (2, CAT, FAR, "crowd")
    )
    found = found_in(
        ground_truth,
        (1, CAT, BOX, 0.9),  # TP: precision 1, recall 1/3
        (2, CAT, FAR, 0.85),  # on the crowd: ignored
        (2, CAT, [0, 50, 20, 20], 0.8),  # FP, with the next one: 2/3, 2/3
        (1, CAT, FAR, 0.8),  # TP
        (1, CAT, [0, 60, 20, 20], 0.7),  # FP
        (1, CAT, [0, 70, 20, 20], 0.6),  # FP: 2/5, 2/3
    )
    points = curve(match(ground_truth, found, "bbox"))
    assert points.thresholds.tolist() == [0.9, 0.8, 0.7, 0.6]
    np.testing.assert_allclose(points.precision, [1, 2 / 3, 2 / 4, 2 / 5])
    np.testing.assert_allclose(points.recall, [1 / 3, 2 / 3, 2 / 3, 2 / 3])
    np.testing.assert_allclose(points.f1, [1 / 2, 2 / 3, 4 / 7, 1 / 2])
    assert points.best() == 1


def test_without_true_positives_there_is_no_best_f1() -> None:
    ground_truth = ground_truth_of((1, CAT, BOX))
    points = curve(
        match(ground_truth, found_in(ground_truth, (1, CAT, FAR, 0.9), (2, CAT, BOX, 0.8)), "bbox")
    )
    assert points.f1.tolist() == [0, 0] and points.best() is None
    without_objects = ground_truth_of()
    found = found_in(without_objects, (1, CAT, FAR, 0.9))
    assert curve(match(without_objects, found, "bbox")).best() is None


def test_calibration_compares_scores_with_precision() -> None:
    ground_truth = ground_truth_of((1, CAT, BOX), (2, CAT, BOX), (1, DOG, FAR, "crowd"))
    found = found_in(
        ground_truth,
        (1, CAT, BOX, 0.95),
        (1, CAT, FAR, 0.93),
        (2, CAT, BOX, 1.0),
        (2, CAT, FAR, 0.2),
        (1, DOG, FAR, 0.5),
    )
    result = calibration(match(ground_truth, found, "bbox"))
    assert result.counts.tolist() == [0, 0, 1, 0, 0, 0, 0, 0, 0, 3]
    assert result.score[9] == pytest.approx(0.96) and result.precision[9] == pytest.approx(2 / 3)
    assert result.error == pytest.approx((3 * (0.96 - 2 / 3) + 1 * 0.2) / 4)


WITHOUT_BOX = {"image_id": 1, "category_id": CAT, "score": 0.5}
GOOD = WITHOUT_BOX | {"bbox": BOX}
BAD_COUNTS = [
    [5],
    [-5, 10_005],
    [0.5, 9999.5],
    [2**70],
    [[10_000]],
    [],
    None,
    3,
    "",
    "a" * 200_000,
]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot read"),
        ("{}", "is not a list of detections"),
        ([7], "detection 0 is not a JSON object"),
        (
            [GOOD | {"image_id": "1"}],
            "detection 0 has an image_id or category_id that is not a whole number",
        ),
        ([GOOD, GOOD | {"score": None}], "detection 1 has no finite score"),
        ([WITHOUT_BOX], "has neither bbox nor segmentation"),
        ([GOOD, GOOD | {"segmentation": {}}], "detection 1 has other keys of bbox and"),
        ([GOOD | {"bbox": [1, 2, 3]}], "bbox that is not four finite numbers"),
        ([GOOD | {"bbox": [1, 2, True, 4]}], "bbox that is not four finite numbers"),
        ([GOOD | {"bbox": [1, 2, -3, 4]}], "bbox of negative width or height"),
        ([GOOD | {"bbox": [1, 2, 1e30, 4]}], "bbox of negative width or height, or further out"),
        (
            [GOOD | {"image_id": 1.0}],
            "detection 0 has an image_id or category_id that is not a whole number",
        ),
        (
            [GOOD | {"category_id": True}],
            "detection 0 has an image_id or category_id that is not a whole number",
        ),
        ([GOOD | {"score": 10**400}], "detection 0 has no finite score"),
        ([GOOD | {"score": True}], "detection 0 has no finite score"),
        (json.dumps([GOOD]).replace("0.5", "1e400"), "detection 0 has no finite score"),
        (json.dumps([GOOD]).replace("0.5", "1" * 5000), "cannot read .* 5000 digits"),
        ("[" * 1_000_000, "cannot read"),
        ([GOOD | {"segmentation": [[1, 2, 3, 4, 5, 6]]}], "segmentation that is not RLE"),
    ],
)
def test_file_without_valid_results_raises(tmp_path: Path, content: object, message: str) -> None:
    path = tmp_path / "results.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(UserError, match=message):
        read_results(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"image_id": 5},
            "the image_id of 1 detections is not in the annotations .first: 5.*give the dataset",
        ),
        ({"category_id": 1}, "the category_id of 1 detections is not in the annotations .first: 1"),
        ({"image_id": int("9" * 4000)}, "first: 9{39}…"),
        (
            {"segmentation": {"size": [50, 100], "counts": "a"}},
            "mask of detection 1 has size .50, 100., the image has",
        ),
        (
            {"segmentation": {"size": "ab", "counts": "a"}},
            "mask of detection 1 has size 'ab', the image has",
        ),
        *(
            (
                {"segmentation": {"size": [100, 100], "counts": counts}},
                "mask of detection 1 has run lengths that do not",
            )
            for counts in BAD_COUNTS
        ),
    ],
)
def test_results_of_other_data_raise(change: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_results([GOOD, GOOD | change], ground_truth_of((1, CAT, BOX)), "r.json")


@pytest.mark.parametrize("size", [[100, 100], [100.0, 100.0]])
@pytest.mark.parametrize(
    "counts", [[1010, 40] + [60, 40] * 39 + [5050], [1010.0, 40.0] + [60, 40] * 39 + [5050]]
)
def test_uncompressed_masks_are_compressed(size: list, counts: list) -> None:
    mask = np.zeros((100, 100), np.uint8, order="F")
    mask[10:50, 10:50] = 1
    ground_truth = indexed(ground_truth_of((1, CAT, BOX)).dataset)
    ground_truth.anns[1]["segmentation"] = mask_api.encode(mask)
    results = [GOOD | {"segmentation": {"size": size, "counts": counts}}]
    check_results(results, ground_truth, "r.json")
    found = index(results, ground_truth, "segm")
    assert found.anns[1]["area"] == mask.sum()
    assert match(ground_truth, found, "segm").detections["object"].tolist() == [1]
    evaluation = COCOeval(ground_truth, found, "segm")
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    assert evaluation.stats[0] == pytest.approx(1)


def test_tasks_depend_on_the_keys_of_results() -> None:
    assert tasks_of([GOOD]) == tasks_of([]) == ["bbox"]
    assert tasks_of([GOOD | {"segmentation": {}}]) == ["bbox", "segm"]
