"""True, false and missed detections are those of COCO's evaluation."""

import contextlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
from benchmarks.coco_evaluation import made_up
from faster_coco_eval import COCOeval_faster
from gpvit.evaluation.matching import (
    MISSED,
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
from pycocotools import mask as mask_api
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

CAT, DOG, BIRD = 3, 7, 8


def truth_of(*objects: tuple) -> COCO:
    """Two images of 100 x 100 pixels with objects (image, class, box) or (image, class, box, "crowd")."""
    annotations = [
        {
            "id": id,
            "image_id": image,
            "category_id": category,
            "bbox": box,
            "area": box[2] * box[3],
            "iscrowd": len(crowd),
        }
        for id, (image, category, box, *crowd) in enumerate(objects, start=1)
    ]
    images = [{"id": id, "height": 100, "width": 100, "file_name": f"{id}.png"} for id in (1, 2)]
    categories = [
        {"id": id, "name": name} for id, name in ((CAT, "cat"), (DOG, "dog"), (BIRD, "bird"))
    ]
    return indexed({"images": images, "categories": categories, "annotations": annotations})


def indexed(content: dict) -> COCO:
    truth = COCO()
    truth.dataset = content
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
    return truth


def found_in(truth: COCO, *detections: tuple) -> COCO:
    """Detections (image, class, box, score)."""
    names = ("image_id", "category_id", "bbox", "score")
    return index([dict(zip(names, detection)) for detection in detections], truth, "bbox")


BOX, BESIDE, FAR = (
    [10, 10, 40, 40],
    [14, 10, 40, 40],
    [60, 60, 30, 30],
)  # the first two have an IoU of 0.82


def test_detections_are_true_false_or_on_a_crowd_and_objects_missed() -> None:
    truth = truth_of(
        (1, CAT, BOX), (1, DOG, FAR), (2, CAT, [0, 0, 100, 100], "crowd"), (2, DOG, BOX)
    )
    found = found_in(
        truth,
        (1, CAT, BESIDE, 0.6),  # 1: less sure than 2, which takes the cat
        (1, CAT, BOX, 0.9),  # 2: true
        (1, CAT, FAR, 0.8),  # 3: a dog
        (2, CAT, BESIDE, 0.7),  # 4: on the crowd
        (2, DOG, [10, 10, 40, 15], 0.5),  # 5: too small for the dog
        (2, BIRD, FAR, 0.4),  # 6: nothing there
    )
    cases = outcomes(match(truth, found, "bbox"), truth, 0.0)
    assert cases == {1: Outcome([2], [3, 1], [], [2]), 2: Outcome([], [5, 6], [4], [4])}


def test_a_detection_takes_the_object_that_it_overlaps_most() -> None:
    truth = truth_of((1, CAT, BESIDE), (1, CAT, BOX))
    matching = match(truth, found_in(truth, (1, CAT, [11, 10, 40, 40], 0.9)), "bbox")
    assert matching.detections["object"].tolist() == [2]
    assert dict(zip(matching.objects["id"].tolist(), matching.objects["score"].tolist())) == {
        1: MISSED,
        2: 0.9,
    }


def test_a_threshold_leaves_out_what_scores_less() -> None:
    truth = truth_of((1, CAT, BOX))
    matching = match(truth, found_in(truth, (1, CAT, BOX, 0.5), (1, DOG, FAR, 0.3)), "bbox")
    assert outcomes(matching, truth, 0.5)[1] == Outcome([1], [], [], [])
    assert outcomes(matching, truth, 0.51)[1] == Outcome([], [], [], [1])


def test_masks_are_matched_by_their_pixels() -> None:
    """Two triangles that fill one box."""
    corners = {"upper": [10, 10, 50, 10, 10, 50], "lower": [50, 50, 50, 10, 10, 50]}
    upper, lower = (mask_api.frPyObjects([polygon], 100, 100)[0] for polygon in corners.values())
    truth = truth_of((1, CAT, BOX))
    truth.anns[1]["segmentation"] = upper
    common = {"image_id": 1, "category_id": CAT, "score": 0.9, "bbox": BOX}
    for mask, true in ((upper, 1), (lower, 0)):
        results = [common | {"segmentation": mask}]
        assert (
            index(results, truth, "segm").anns[1]["area"]
            < 0.6 * index(results, truth, "bbox").anns[1]["area"]
        )
        assert (
            len(outcomes(match(truth, index(results, truth, "segm"), "segm"), truth, 0.5)[1].true)
            == true
        )
        assert (
            len(outcomes(match(truth, index(results, truth, "bbox"), "bbox"), truth, 0.5)[1].true)
            == 1
        )


def test_without_detections_everything_is_missed() -> None:
    truth = truth_of((1, CAT, BOX))
    found = index([], truth, "bbox")
    matching = match(truth, found, "bbox")
    assert outcomes(matching, truth, 0.5)[1] == Outcome([], [], [], [1])
    assert confusion(truth, found, "bbox", 0.5)[0].tolist() == [0, 0, 0, 1]
    assert curve(matching).best() is None and np.isnan(calibration(matching).error)


def official(folder: Path, task: str) -> tuple[COCO, COCO]:
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(folder / "instances_val2014_100.json"))
    return truth, index(
        read_results(folder / f"instances_val2014_fake{task}100_results.json"), truth, task
    )


def made_up_data(task: str) -> tuple[COCO, COCO]:
    content, results = made_up(10)
    truth = indexed(content)
    return truth, index(results, truth, task)


def marks_of_coco(truth: COCO, found: COCO, task: str) -> tuple[dict, dict, set]:
    """Matches, scores of found objects, and ignored detections at IoU 0.5 from a whole evaluation."""
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(truth, found, task)
        evaluation.evaluate()
    matches, ignored, objects = {}, set(), {}
    for image in filter(None, evaluation.evalImgs):
        if image["aRng"] == evaluation.params.areaRng[0]:
            matches |= dict(zip(image["dtIds"], image["dtMatches"][0].astype(int).tolist()))
            ignored |= {
                id for id, on_crowd in zip(image["dtIds"], image["dtIgnore"][0]) if on_crowd
            }
            for id, detection, crowd in zip(
                image["gtIds"], image["gtMatches"][0], image["gtIgnore"]
            ):
                if not crowd:
                    objects[id] = found.anns[int(detection)]["score"] if detection else MISSED
    return matches, objects, ignored


def check_against_coco(truth: COCO, found: COCO, task: str) -> None:
    matching = match(truth, found, task)
    matches, objects, ignored = marks_of_coco(truth, found, task)
    assert len(matches) > 100 and 0 < sum(map(bool, matches.values())) < len(matches)
    assert (
        dict(zip(matching.detections["id"].tolist(), matching.detections["object"].tolist()))
        == matches
    )
    assert set(matching.detections["id"][matching.detections["ignored"]].tolist()) == ignored
    assert dict(zip(matching.objects["id"].tolist(), matching.objects["score"].tolist())) == objects


@pytest.mark.parametrize("task", ["bbox", "segm"])
def test_the_matches_are_those_of_a_whole_evaluation(task: str) -> None:
    check_against_coco(*made_up_data(task), task)


@pytest.mark.parametrize("task", ["bbox", "segm"])
def test_the_matches_of_the_official_results_are_those_of_a_whole_evaluation(
    real_data: Path, task: str
) -> None:
    truth, found = official(real_data / "cocoeval", task)
    check_against_coco(truth, found, task)


@pytest.mark.parametrize("threshold", [0.3, 0.5])
def test_one_matching_serves_all_thresholds(threshold: float) -> None:
    truth, found = made_up_data("bbox")
    some = [
        {k: item[k] for k in ("image_id", "category_id", "score", "bbox")}
        for item in found.dataset["annotations"]
    ]
    kept = [item for item in some if item["score"] >= threshold]
    assert 0 < len(kept) < len(some)
    numbers = [
        number for number, item in enumerate(some, start=1) if item["score"] >= threshold
    ]  # old ids
    for by_class in (True, False):
        whole = outcomes(match(truth, found, "bbox", by_class=by_class), truth, threshold)
        part = outcomes(
            match(truth, index(kept, truth, "bbox"), "bbox", by_class=by_class), truth, 0.0
        )
        for id, outcome in part.items():
            assert whole[id].missed == outcome.missed
            assert sorted(whole[id].true) == sorted(numbers[i - 1] for i in outcome.true)
            assert sorted(whole[id].false) == sorted(numbers[i - 1] for i in outcome.false)


@pytest.mark.parametrize("task", ["bbox", "segm"])
def test_precision_and_recall_have_the_ap_of_coco(task: str) -> None:
    truth, found = made_up_data(task)
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval_faster(truth, found, task)
        evaluation.evaluate()
        evaluation.accumulate()
    matching = match(truth, found, task)
    aps = []
    for number, id in enumerate(sorted(truth.cats)):
        expected = evaluation.eval["precision"][0, :, number, 0, -1].mean()
        points = curve(matching.of_class(id))
        if expected > -1:
            best = [
                points.precision[points.recall >= recall - 1e-9].max(initial=0)
                for recall in np.linspace(0, 1, 101)
            ]
            assert np.mean(best) == pytest.approx(expected, abs=1e-6)
            aps.append(expected)
    assert 0.1 < np.mean(aps) < 0.9


def test_confusions_are_counted_by_class() -> None:
    truth = truth_of((1, CAT, BOX), (1, DOG, FAR), (2, DOG, BOX), (2, BIRD, FAR, "crowd"))
    found = found_in(
        truth,
        (1, DOG, BOX, 0.9),  # the cat taken for a dog
        (1, CAT, BOX, 0.8),  # and found too late
        (1, DOG, FAR, 0.7),
        (2, CAT, FAR, 0.6),  # on the crowd
        (2, DOG, BOX, 0.2),  # below the threshold
    )
    counts = confusion(truth, found, "bbox", 0.5)
    #                          cat dog bird missed
    assert counts.tolist() == [[0, 1, 0, 0], [0, 1, 0, 1], [0, 0, 0, 0], [1, 0, 0, 0]]


def test_confusions_count_every_object_and_every_detection_once() -> None:
    truth, found = made_up_data("bbox")
    counts = confusion(truth, found, "bbox", 0.5)
    objects = [len(truth.getAnnIds(catIds=id)) for id in sorted(truth.cats)]
    detections = [
        sum(found.anns[i]["score"] >= 0.5 for i in found.getAnnIds(catIds=id))
        for id in sorted(truth.cats)
    ]
    assert counts[:-1].sum(axis=1).tolist() == objects
    assert counts[:, :-1].sum(axis=0).tolist() == detections


def test_the_best_f1_is_found() -> None:
    truth = truth_of((1, CAT, BOX), (1, CAT, FAR), (2, CAT, BOX), (2, CAT, FAR, "crowd"))
    found = found_in(
        truth,
        (1, CAT, BOX, 0.9),  # true: precision 1, recall 1/3
        (2, CAT, FAR, 0.85),  # on the crowd: does not count
        (2, CAT, [0, 50, 20, 20], 0.8),  # false, with the next one: 2/3, 2/3
        (1, CAT, FAR, 0.8),  # true
        (1, CAT, [0, 60, 20, 20], 0.7),  # false
        (1, CAT, [0, 70, 20, 20], 0.6),  # false: 2/5, 2/3
    )
    points = curve(match(truth, found, "bbox"))
    assert points.thresholds.tolist() == [0.9, 0.8, 0.7, 0.6]
    np.testing.assert_allclose(points.precision, [1, 2 / 3, 2 / 4, 2 / 5])
    np.testing.assert_allclose(points.recall, [1 / 3, 2 / 3, 2 / 3, 2 / 3])
    np.testing.assert_allclose(points.f1, [1 / 2, 2 / 3, 4 / 7, 1 / 2])
    assert points.best() == 1


def test_without_a_true_detection_there_is_no_best_f1() -> None:
    truth = truth_of((1, CAT, BOX))
    points = curve(match(truth, found_in(truth, (1, CAT, FAR, 0.9), (2, CAT, BOX, 0.8)), "bbox"))
    assert points.f1.tolist() == [0, 0] and points.best() is None
    without_objects = truth_of()
    found = found_in(without_objects, (1, CAT, FAR, 0.9))
    assert curve(match(without_objects, found, "bbox")).best() is None


def test_calibration_compares_scores_with_the_share_of_true_ones() -> None:
    truth = truth_of((1, CAT, BOX), (2, CAT, BOX), (1, DOG, FAR, "crowd"))
    found = found_in(
        truth,
        (1, CAT, BOX, 0.95),
        (1, CAT, FAR, 0.93),
        (2, CAT, BOX, 1.0),
        (2, CAT, FAR, 0.2),
        (1, DOG, FAR, 0.5),
    )
    result = calibration(match(truth, found, "bbox"))
    assert result.counts.tolist() == [0, 0, 1, 0, 0, 0, 0, 0, 0, 3]
    assert result.score[9] == pytest.approx(0.96) and result.precision[9] == pytest.approx(2 / 3)
    assert result.error == pytest.approx((3 * (0.96 - 2 / 3) + 1 * 0.2) / 4)


GOOD = {"image_id": 1, "category_id": CAT, "score": 0.5, "bbox": BOX}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot read"),
        ("{}", "is no list of detections"),
        ([7], "detection 0 is no object"),
        (
            [GOOD | {"image_id": "1"}],
            "detection 0 has no whole numbers as image_id and category_id",
        ),
        ([GOOD, GOOD | {"score": None}], "detection 1 has no finite score"),
        ([{k: v for k, v in GOOD.items() if k != "bbox"}], "has neither bbox nor segmentation"),
        ([GOOD, GOOD | {"segmentation": {}}], "detection 1 has not what the first one has"),
        ([GOOD | {"bbox": [1, 2, 3]}], "bbox that is not four finite numbers"),
        ([GOOD | {"bbox": [1, 2, True, 4]}], "bbox that is not four finite numbers"),
        ([GOOD | {"bbox": [1, 2, -3, 4]}], "bbox of negative width or height"),
        ([GOOD | {"bbox": [1, 2, 1e30, 4]}], "bbox of negative width or height, or further out"),
        (
            [GOOD | {"image_id": 1.0}],
            "detection 0 has no whole numbers as image_id and category_id",
        ),
        (
            [GOOD | {"category_id": True}],
            "detection 0 has no whole numbers as image_id and category_id",
        ),
        ([GOOD | {"score": 10**400}], "detection 0 has no finite score"),
        ([GOOD | {"score": True}], "detection 0 has no finite score"),
        (json.dumps([GOOD]).replace("0.5", "1e400"), "detection 0 has no finite score"),
        (json.dumps([GOOD]).replace("0.5", "1" * 5000), "cannot read .* 5000 digits"),
        ("[" * 1_000_000, "cannot read"),
        ([GOOD | {"segmentation": [[1, 2, 3, 4, 5, 6]]}], "segmentation that is no RLE"),
    ],
)
def test_a_file_that_has_no_results_is_refused(
    tmp_path: Path, content: object, message: str
) -> None:
    path = tmp_path / "results.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(UserError, match=message):
        read_results(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"image_id": 5},
            "the image_id of 1 detections is not in the annotations .first: 5.*data that they",
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
            for counts in (
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
            )
        ),
    ],
)
def test_results_of_other_data_are_refused(change: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_results([GOOD, GOOD | change], truth_of((1, CAT, BOX)), "r.json")


@pytest.mark.parametrize("size", [[100, 100], [100.0, 100.0]])
@pytest.mark.parametrize(
    "counts", [[1010, 40] + [60, 40] * 39 + [5050], [1010.0, 40.0] + [60, 40] * 39 + [5050]]
)
def test_uncompressed_masks_of_results_are_those_of_compressed_ones(
    size: list, counts: list
) -> None:
    mask = np.zeros((100, 100), np.uint8, order="F")
    mask[10:50, 10:50] = 1
    truth = indexed(truth_of((1, CAT, BOX)).dataset)
    truth.anns[1]["segmentation"] = mask_api.encode(mask)
    results = [GOOD | {"segmentation": {"size": size, "counts": counts}}]
    check_results(results, truth, "r.json")
    found = index(results, truth, "segm")
    assert found.anns[1]["area"] == mask.sum()
    assert match(truth, found, "segm").detections["object"].tolist() == [1]
    evaluation = COCOeval_faster(truth, found, "segm")
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    assert evaluation.stats[0] == pytest.approx(1)


def test_results_are_evaluated_for_what_they_have() -> None:
    assert tasks_of([GOOD]) == tasks_of([]) == ["bbox"]
    assert tasks_of([GOOD | {"segmentation": {}}]) == ["bbox", "segm"]
