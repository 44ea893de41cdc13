"""Predictions are drawn beside the truth, and a report says what COCO's evaluation says."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from coco_files import coco_ap, many_objects, official_figures, truth_as_results
from detectron2.data.datasets import register_coco_instances
from gpvit.cli import view_results
from gpvit.data import register_folder
from gpvit.data.datasets.coco import read
from gpvit.evaluation.coco_evaluation import evaluated_data
from gpvit.evaluation.coco_results import read_inputs
from gpvit.evaluation.matching import Outcome, index, match, outcomes
from gpvit.utils.errors import UserError
from gpvit.visualization import comparison
from gpvit.visualization import report as report_page
from PIL import Image
from pycocotools import mask as mask_api

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)


def imperfect_results(json_file: Path) -> list[dict[str, Any]]:
    """The truth with some objects left out, others made narrower, moved, called by another class or found twice."""
    results = []
    ids = sorted(category["id"] for category in json.loads(json_file.read_text())["categories"])
    for number, item in enumerate(truth_as_results(json_file)):
        item["segmentation"]["counts"] = item["segmentation"]["counts"].decode()
        item["score"] = round(0.95 - 0.013 * (number * 7 % 50), 3)
        if number % 5 == 0:
            item["bbox"][2] *= 0.72
        if number % 5 == 1:
            item["category_id"] = ids[(ids.index(item["category_id"]) + 1) % len(ids)]
        if number % 5 == 2:
            item["bbox"][0] += 0.8 * item["bbox"][2]
        results += [item] * (number % 5 != 3)
        if number % 5 == 4:
            results.append(item | {"score": 0.2})
    return results


def make_run(folder: Path, synthetic_data: Path) -> Path:
    """The folder of a training on the synthetic data, as far as an evaluation leaves it."""
    folder.mkdir()
    results = imperfect_results(synthetic_data / "annotations" / "val.json")
    (folder / "coco_instances_results.json").write_text(json.dumps(results))
    place = f"folders: {{shapes_val: '{synthetic_data.resolve()}'}}"
    (folder / "config.yaml").write_text(
        f"dataloader:\n  {place}\n  test:\n    dataset: {{names: shapes_val}}\n"
    )
    return folder


@pytest.fixture
def run(synthetic_data: Path, tmp_path: Path) -> Path:
    return make_run(tmp_path / "run", synthetic_data)


@pytest.fixture(scope="module")
def page(synthetic_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of such a folder; nothing may write to it."""
    run = make_run(tmp_path_factory.mktemp("page") / "run", synthetic_data)
    assert write_report(run) == 0
    return run / "report.html"


def view(*arguments: object) -> int:
    return view_results.main(["--input", *map(str, arguments)])


def write_report(*arguments: object) -> int:
    return view(*arguments, "--report")


def figures_of(page: Path) -> dict[str, Any]:
    """The figures that a report carries, unrounded."""
    return json.loads(
        re.search(r'<script type="application/json" id="figures">(.*?)</script>', page.read_text())[
            1
        ]
    )


def table(page: Path, heading: str) -> list[list[str]]:
    """The cells of the first table below a heading."""
    text = page.read_text().split(f'<h2 id="{heading}">')[1].split("</table>")[0]
    rows = (
        re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.DOTALL) for row in text.split("<tr>")[1:]
    )
    return [[html.unescape(cell) for cell in row] for row in rows]


def test_a_report_has_the_figures_of_the_evaluation(page: Path, synthetic_data: Path) -> None:
    figures = figures_of(page)
    json_file = str(synthetic_data / "annotations" / "val.json")
    results = json.loads((page.parent / "coco_instances_results.json").read_text())
    for task, kept in (("bbox", "bbox"), ("segm", "segmentation")):
        items = [
            {key: item[key] for key in ("image_id", "category_id", "score", kept)}
            for item in results
        ]
        ap = coco_ap(json_file, items, task)
        assert 0.1 < ap < 0.9 and figures["overall"][task]["AP"] == ap
        for metric in report_page.OF_A_CLASS:
            of_classes = [
                row[task][metric] for row in figures["classes"] if row[task][metric] is not None
            ]
            assert np.mean(of_classes) == pytest.approx(figures["overall"][task][metric], abs=1e-12)
    assert (
        figures["overall"]["bbox"]["AP"] < figures["overall"]["segm"]["AP"]
    )  # some boxes were moved
    shown = {row[0]: row[1:] for row in table(page, "ap")[1:]}
    assert shown["AP75"] == [
        f"{100 * figures['overall'][task]['AP75']:.1f}" for task in ("bbox", "segm")
    ]


@pytest.mark.parametrize("task", ["bbox", "segm"])
def test_a_report_has_the_official_figures(real_data: Path, tmp_path: Path, task: str) -> None:
    folder, page = real_data / "cocoeval", tmp_path / "report.html"
    results = folder / f"instances_val2014_fake{task}100_results.json"
    truth = folder / "instances_val2014_100.json"
    assert write_report(results, "--data", truth, "--output", page) == 0
    figures = figures_of(page)["overall"][task]
    np.testing.assert_allclose(list(figures.values()), official_figures(folder, task), atol=5e-4)
    assert figures["AP"] == coco_ap(str(truth), json.loads(results.read_text()), task)
    assert "No pictures, as the folder of the images is not given" in page.read_text()
    matrix = table(page, "confusion")  # of 80 classes
    assert len(matrix) == 1 + report_page.MANY_CLASSES + 2 and matrix[-2][0] == "68 others"
    counts = [[int(cell or 0) for cell in row[1:]] for row in matrix[1:]]
    assert np.sum(counts[:-1]) == 839 - 9  # every object but the crowds once


@pytest.mark.parametrize(
    ("noted", "options", "ap"),
    [
        (None, (), 67),
        (None, ("--max-detections", "150"), 100),
        (150, (), 100),
        (150, ("--max-detections", "5"), 3),
    ],
)
def test_a_report_counts_as_many_detections_as_the_evaluation_and_says_what_it_leaves_out(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    noted: int | None,
    options: tuple,
    ap: int,
) -> None:
    data = many_objects(tmp_path / "data")
    results = truth_as_results(data / "annotations" / "val.json")
    for item in results:
        item["segmentation"]["counts"] = item["segmentation"]["counts"].decode()
    path, page = tmp_path / "coco_instances_results.json", tmp_path / "report.html"
    path.write_text(json.dumps(results))
    if noted:
        path.with_name("evaluation.json").write_text(json.dumps({"max_detections": noted}))
    monkeypatch.setattr(report_page, "read_speed", lambda folder: None)
    annotations = data / "annotations" / "val.json"
    assert write_report(path, "--data", annotations, "--output", page, *options) == 0
    figures, limit = figures_of(page), {67: 100, 100: 150, 3: 5}[ap]
    for task in ("bbox", "segm"):
        cell, nucleus = (row[task]["AP"] for row in figures["classes"])
        assert cell == pytest.approx(ap / 100, abs=0.01) and nucleus == pytest.approx(
            min(limit, 100) / 100, abs=0.01
        )
        assert figures["overall"][task][f"AR, {limit} detections"] == pytest.approx(
            (cell + nucleus) / 2, abs=0.01
        )
    text, errors = page.read_text(), capsys.readouterr().err
    assert f"AP counts the {limit} best detections" in text
    for told in (text, errors):
        assert (
            f"up to 150 objects, and up to 150 detections of a class, of which AP counts {limit}: "
            in told
        ) == (ap < 100)


@pytest.mark.parametrize("number", ["0", "-1", "10001"])
def test_a_report_refuses_a_limit_that_cannot_be(
    run: Path, number: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        write_report(run, "--max-detections", number)
    assert (
        "--max-detections: must be a whole number from 1 to 10000, got" in capsys.readouterr().err
    )
    (run / "evaluation.json").write_text(json.dumps({"max_detections": number}))
    with pytest.raises(UserError, match="evaluation.json: max_detections must be a whole number"):
        write_report(run)


def test_classes_that_are_seldom_confused_share_a_row() -> None:
    """Of 20 classes, the last is often taken for the first."""
    truth = type("Truth", (), {"cats": {id: {"name": f"class {id}"} for id in range(20)}})
    counts = np.ones((21, 21), np.int64)
    counts[19, 0] = 50
    shown = report_page.confusions(truth, counts)
    assert shown["pairs"][0] == ("class 19", "class 0", 50)
    assert shown["columns"][:2] == ["class 0", "class 19"] and shown["columns"][-2:] == [
        "8 others",
        "missed",
    ]
    names, cells = zip(*shown["rows"])
    assert names[-2:] == ("8 others", "no object") and cells[1][0] == (50, 50 / 70)
    assert sum(count for row in cells for count, _ in row) == counts.sum()
    assert cells[-2][-2][0] == 8 * 8


def test_a_report_shows_what_a_run_folder_has(run: Path, page: Path) -> None:
    assert (
        "there is no evaluation.json" in page.read_text()
        and '<h2 id="training">' not in page.read_text()
    )
    (run / "evaluation.json").write_text(
        '{"seconds_per_image": 0.1234, "device": "a fast one", "images": 4}'
    )
    rows = [{"iteration": i, "total_loss": 2.0 / (i + 1)} for i in range(9)] + [
        {"iteration": 8, "segm/AP": 30.0}
    ]
    (run / "metrics.json").write_text(
        "\n".join(map(json.dumps, rows)) + '\n{"iteration": 9, "total_'
    )
    write_report(run)
    text = (run / "report.html").read_text()
    assert "0.123 seconds an image on a fast one, over 4 images" in text
    assert 'aria-label="training loss"' in text and 'aria-label="validation AP (%)"' in text


def test_a_strange_evaluation_json_is_refused(run: Path) -> None:
    (run / "evaluation.json").write_text("{}")
    with pytest.raises(UserError, match="evaluation.json is not what an evaluation writes"):
        report_page.read_speed(run)


def test_a_report_needs_nothing_beside_it(page: Path) -> None:
    text = page.read_text()
    sources = re.findall(r'(?:src|href)="([^"]*)"', text) + re.findall(r"url\(([^)]*)\)", text)
    assert sources and all(
        source.startswith(("data:image/jpeg;base64,", "#")) for source in sources
    )
    assert "@import" not in text and "<link" not in text


def test_names_in_the_data_cannot_become_html(run: Path, synthetic_data: Path) -> None:
    content = json.loads((synthetic_data / "annotations" / "val.json").read_text())
    content["categories"][0]["name"] = name = "</script><script>alert($x$)</script>"
    (run / "val.json").write_text(json.dumps(content))
    images = synthetic_data / "images"
    write_report(run, "--data", run / "val.json", "--images", images)
    page = run / "report.html"
    assert name not in page.read_text() and html.escape(name, quote=False) in page.read_text()
    assert any(row["name"] == name for row in figures_of(page)["classes"])


@pytest.mark.parametrize("empty", ["detections", "objects"])
def test_a_report_can_be_made_without_detections_or_objects(
    run: Path, synthetic_data: Path, empty: str
) -> None:
    content = json.loads((synthetic_data / "annotations" / "val.json").read_text())
    if empty == "detections":
        (run / "coco_instances_results.json").write_text("[]")
    else:
        content["annotations"] = []
    (run / "val.json").write_text(json.dumps(content))
    assert write_report(run, "--data", run / "val.json", "--images", synthetic_data / "images") == 0
    ap = figures_of(run / "report.html")["overall"]["bbox"]["AP"]
    assert ap == (0 if empty == "detections" else None)
    assert "nan" not in re.sub(r"base64,[^\"]*", "", (run / "report.html").read_text()).lower()


def test_a_report_says_that_no_detection_is_true_and_takes_the_usual_threshold(run: Path) -> None:
    path = run / "coco_instances_results.json"
    results = json.loads(path.read_text())
    for item in results:
        height, width = item["segmentation"]["size"]
        corner = np.zeros((height, width, 1), np.uint8, order="F")
        corner[0, 0] = 1
        [mask] = mask_api.encode(corner)
        item["bbox"], item["segmentation"] = (
            [0, 0, 1, 1],
            mask | {"counts": mask["counts"].decode()},
        )
    path.write_text(json.dumps(results))
    assert write_report(run) == 0
    text = (run / "report.html").read_text()
    assert (
        "No detection found an object, so there is no best threshold; 0.500 is used below." in text
    )
    assert "The score threshold is 0.500." in text and "best F1, %" not in text
    assert all(row["best"] is None for row in figures_of(run / "report.html")["classes"])


def test_an_object_whose_id_is_0_in_registered_data_can_be_found(
    run: Path, synthetic_data: Path
) -> None:
    content = json.loads((synthetic_data / "annotations" / "val.json").read_text())
    for number, item in enumerate(content["annotations"]):
        item["id"] = number
    json_file = run / "val.json"
    json_file.write_text(json.dumps(content))
    register_coco_instances("with_an_id_of_0", {}, str(json_file), str(synthetic_data / "images"))
    (run / "config.yaml").write_text(
        "dataloader:\n  test:\n    dataset: {names: with_an_id_of_0}\n"
    )
    results = truth_as_results(json_file)
    for item in results:
        item["segmentation"]["counts"] = item["segmentation"]["counts"].decode()
    (run / "coco_instances_results.json").write_text(json.dumps(results))
    inputs = read_inputs(run)
    for task, found in inputs.found.items():
        cases = outcomes(match(inputs.truth, found, task), inputs.truth, 0.0).values()
        assert sum(len(case.true) for case in cases) > 0
        assert not any(case.missed or case.false for case in cases)


def browse(page: Path, profile: Path) -> str:
    """The page as a browser has it, scripts run."""
    options = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-sync",
    ]
    options += [
        "--disable-background-networking",
        "--disable-component-update",
        f"--user-data-dir={profile}",
    ]
    command = [CHROMIUM, *options, "--virtual-time-budget=2000", "--dump-dom", page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout


PROBE = """<script>onload = () => {
  const heads = [...document.querySelectorAll("h2")].map(head => head.textContent);
  const loaded = [...document.images].map(image => image.complete && image.naturalWidth);
  const charts = [...document.querySelectorAll("svg")].map(svg => svg.getBoundingClientRect().height > 50);
  document.querySelectorAll(".sortable th")[1].click();
  const sorted = [...document.querySelectorAll(".sortable tbody tr")].map(row => +row.cells[1].textContent);
  const fits = document.documentElement.scrollWidth <= innerWidth;
  document.body.textContent = JSON.stringify({heads, loaded, charts, sorted, fits});
}</script>"""


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium")
def test_a_browser_shows_the_report(page: Path, tmp_path: Path) -> None:
    probe = tmp_path / "probe.html"
    probe.write_text(page.read_text().replace("</body>", PROBE + "</body>"))
    body = re.search(r"<body>(.*)</body>", browse(probe, tmp_path / "profile"), re.DOTALL)[1]
    seen = json.loads(html.unescape(body))
    assert seen["heads"] == [
        *(
            "Average precision",
            "By class",
            "Precision and recall",
            "Score threshold",
            "Confusion between classes",
        ),
        *("Calibration of scores", "Worst pictures", "Speed", "Versions and config"),
    ]
    assert len(seen["loaded"]) >= 2 and min(seen["loaded"]) > 400  # pixels wide
    assert len(seen["charts"]) > 5 and all(seen["charts"])
    assert seen["sorted"] == sorted(seen["sorted"], reverse=True) and len(set(seen["sorted"])) > 1
    assert seen["fits"]


def test_predictions_are_drawn_the_worst_first(run: Path, capsys: pytest.CaptureFixture) -> None:
    assert view(run, "--number", "3") == 0
    folder = run / "predictions"
    assert sorted(path.name for path in folder.iterdir()) == [
        "01.png",
        "02.png",
        "03.png",
        "sheet.png",
    ]
    lines = re.findall(
        r"0\d.png: (\S+): (\d+) true, (\d+) false, (\d+) missed", capsys.readouterr().out
    )
    wrong = [int(false) + int(missed) for _, _, false, missed in lines]
    assert len(lines) == 3 and wrong[0] == max(wrong) > 0
    assert (
        Image.open(folder / "01.png").width
        > Image.open(folder / "01.png").height
        > comparison.PANE / 2
    )
    assert Image.open(folder / "sheet.png").width == 2 * comparison.SHEET_WIDTH


def test_missed_objects_and_sure_mistakes_make_a_picture_worse(synthetic_data: Path) -> None:
    file = read(synthetic_data / "annotations" / "val.json", synthetic_data / "images")
    truth = file.coco()
    first, second, third, fourth = sorted(truth.imgs)
    common = {"category_id": next(iter(truth.cats)), "bbox": [0, 0, 9, 9], "image_id": second}
    found = index([common | {"score": score} for score in (0.9, 0.8, 0.3)], truth, "bbox")
    cases = {
        first: Outcome([2, 3], [], [], []),
        second: Outcome([], [1, 3], [], []),  # 1.2
        third: Outcome([], [1, 2], [], []),  # 1.7
        fourth: Outcome([1], [], [2], [5, 6]),  # 2
    }
    ranked = comparison.worst_first(truth, found, cases)
    assert [case.image["id"] for case in ranked] == [fourth, third, second, first]
    assert [case.cost for case in ranked] == pytest.approx([2, 1.7, 1.2, 0])


def test_true_false_and_missed_are_drawn_where_they_are_each_in_its_way(
    synthetic_data: Path,
) -> None:
    truth = read(synthetic_data / "annotations" / "val.json", synthetic_data / "images").coco()
    id = next(
        id for id in truth.imgs if len([a for a in truth.imgToAnns[id] if not a["iscrowd"]]) >= 2
    )
    image = truth.imgs[id]
    found_object, missed_object = [item for item in truth.imgToAnns[id] if not item["iscrowd"]][:2]
    wrong = [1, 1, 20, 20]
    detections = [{"bbox": found_object["bbox"], "score": 0.9}, {"bbox": wrong, "score": 0.8}]
    common = {"image_id": id, "category_id": found_object["category_id"]}
    found = index([common | item for item in detections], truth, "bbox")
    case = comparison.Case(image, Outcome([1], [2], [], [missed_object["id"]]), 1.8)
    picture = np.full((image["height"], image["width"], 3), 128, np.uint8)
    left, right = comparison.draw(picture, case, truth, found, masks=False).axes
    drawn = {}
    for side, axes in (("truth", left), ("detections", right)):
        for line, text in zip(axes.lines, axes.texts):
            corner = float(min(line.get_xdata())), float(min(line.get_ydata()))
            drawn[side, corner] = line.get_color(), line.get_linestyle(), text.get_text()[0]
    found_at, missed_at = (
        tuple(map(float, item["bbox"][:2])) for item in (found_object, missed_object)
    )
    styles = {name: tuple(style)[:3] for name, style in comparison.STYLES.items()}
    assert drawn["truth", found_at] == styles["true"]
    assert drawn["truth", missed_at] == styles["missed"]
    assert drawn["detections", found_at] == styles["true"]
    assert drawn["detections", (1.0, 1.0)] == styles["false"] and len(right.lines) == 2
    for part in zip(*comparison.STYLES.values()):
        assert len(set(part)) == len(comparison.STYLES)  # no two differ in colour alone


def test_drawing_goes_on_past_pictures_that_are_missing_or_of_another_size(
    run: Path, synthetic_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    images = tmp_path / "images"
    shutil.copytree(synthetic_data / "images", images)
    first, second, *_ = sorted(images.glob("val_*"))
    first.unlink()
    Image.new("RGB", (30, 20)).save(second)
    truth = synthetic_data / "annotations" / "val.json"
    assert view(run, "--data", truth, "--images", images) == 1
    assert len(list((run / "predictions").glob("0*.png"))) == 2
    errors = capsys.readouterr().err
    assert f"{first}: cannot be read" in errors and f"{second}: is 30 x 20 pixels, and " in errors
    write_report(run, "--data", truth, "--images", images)
    assert "2 cannot be read" in (run / "report.html").read_text()


def say_what_it_is_of(run: Path, name: str, **changes: Any) -> None:
    """Writes what an evaluation says of its data next to its results."""
    data = evaluated_data(name, masks=True) | changes
    (run / "evaluation.json").write_text(
        json.dumps({"weights": None, "seconds_per_image": None, "data": data})
    )


@pytest.mark.parametrize("kind", ["folder", "registered", "boxes"])
def test_results_are_shown_with_the_data_that_they_are_of_alone(
    run: Path, synthetic_data: Path, tmp_path: Path, kind: str
) -> None:
    data, path = tmp_path / "data", run / "coco_instances_results.json"
    shutil.copytree(synthetic_data, data)
    annotations = data / "annotations" / "val.json"
    name = register_folder(str(data), "val", masks=kind != "boxes")
    if kind == "registered":
        name = f"registered_{data}"
        register_coco_instances(name, {}, str(annotations), str(data / "images"))
    place = f"folders: {{'{name}': '{data.resolve()}'}}" if kind == "folder" else "folders: {}"
    (run / "config.yaml").write_text(
        f"dataloader:\n  {place}\n  test:\n    dataset: {{names: '{name}'}}\n"
    )
    if kind == "boxes":
        path.write_text(
            json.dumps(
                [
                    {k: v for k, v in item.items() if k != "segmentation"}
                    for item in json.loads(path.read_text())
                ]
            )
        )
    say_what_it_is_of(run, name)
    ways = (
        [run],
        [run, "--data", data],
        [path, "--data", annotations, "--images", data / "images"],
    )
    read_inputs(run, data)
    read_inputs(path, annotations, images=data / "images")
    empty = path.read_text()
    path.write_text("[]")  # which does not say whether masks were evaluated
    read_inputs(run)
    path.write_text(empty)
    content = json.loads(annotations.read_text())
    content["annotations"][0]["iscrowd"] = 1
    annotations.write_text(json.dumps(content))
    for arguments in ways:
        for command in (write_report, view):
            with pytest.raises(
                UserError,
                match=f"results.json is of other data than .*: of {name} .*or evaluate again",
            ):
                command(*arguments)
    assert not (run / "report.html").exists() and not (run / "predictions").exists()
    path.rename(run / "mine.json")  # nobody has said what this is of
    read_inputs(run / "mine.json", data)


def test_results_of_an_older_evaluation_are_shown_with_a_note(
    run: Path, synthetic_data: Path, capsys: pytest.CaptureFixture
) -> None:
    (run / "evaluation.json").write_text(
        '{"weights": null, "seconds_per_image": 1, "device": "CPU", "images": 4}'
    )
    read_inputs(run)
    (line,) = capsys.readouterr().err.splitlines()
    assert "does not say which data coco_instances_results.json is of" in line
    (run / "evaluation.json").write_text("[1")
    with pytest.raises(UserError, match="evaluation.json is not what an evaluation writes"):
        read_inputs(run)


def test_nothing_is_written_over_without_being_told(run: Path) -> None:
    (run / "report.html").write_text("precious")
    (run / "predictions").mkdir()
    (run / "predictions" / "01.png").write_text("precious")
    with pytest.raises(
        UserError, match="there is .*report.html already; give another --output, or --overwrite"
    ):
        write_report(run)
    with pytest.raises(
        UserError, match="there is .*01.png already; give another --output, or --overwrite"
    ):
        view(run)
    assert (
        (run / "report.html").read_text()
        == (run / "predictions" / "01.png").read_text()
        == "precious"
    )
    assert view(run, "--overwrite", "--number", "1") == 0
    assert Image.open(run / "predictions" / "01.png").width > 0


def test_the_data_may_be_named_in_three_ways(run: Path, synthetic_data: Path) -> None:
    annotations, images = synthetic_data / "annotations" / "val.json", synthetic_data / "images"
    register_coco_instances("for_the_report", {}, str(annotations), str(images))
    named = read_inputs(run)
    results = run / "coco_instances_results.json"
    config = run / "config.yaml"
    config.write_text("dataloader:\n  test:\n    dataset: {names: for_the_report}\n")
    of_version_1 = shutil.copytree(run, run.parent / "of_version_1")
    name = f"coco:{synthetic_data.resolve()}:val"
    (of_version_1 / "config.yaml").write_text(
        f"dataloader:\n  test:\n    dataset: {{names: '{name}'}}\n"
    )
    for inputs in (
        read_inputs(run),
        read_inputs(of_version_1),
        read_inputs(results, synthetic_data),
        read_inputs(results, annotations, images=images),
    ):
        assert (
            inputs.truth.imgs.keys() == named.truth.imgs.keys()
            and inputs.truth.anns.keys() == named.truth.anns.keys()
        )
        assert inputs.images.resolve() == named.images.resolve() and inputs.found.keys() == {
            "bbox",
            "segm",
        }
        assert inputs.found["segm"].anns.keys() == named.found["segm"].anns.keys()
    with pytest.raises(
        UserError, match="has size .*, the image has .*; give the data it was predicted on"
    ):
        read_inputs(run, synthetic_data, "train")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["EMPTY"], "coco_instances_results.json does not exist: evaluate first"),
        (
            ["RESULTS"],
            "give the data that .*results.json is of by --data: a folder, or a JSON file and --images DIR",
        ),
        (["ALONE"], "config.yaml does not exist: give the data by --data"),
        (
            ["RESULTS", "--data", "ALONE.json"],
            "give the folder of the images of .*alone.json by --images DIR",
        ),
        (["RUN", "--data", "EMPTY"], "--data .*empty"),
    ],
)
def test_what_is_missing_is_asked_for(
    run: Path, synthetic_data: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    places = {
        "RUN": run,
        "RESULTS": run / "coco_instances_results.json",
        "EMPTY": tmp_path / "empty",
        "ALONE": tmp_path / "alone",
        "ALONE.json": tmp_path / "alone.json",
    }
    (tmp_path / "empty").mkdir()
    shutil.copytree(run, tmp_path / "alone").joinpath("config.yaml").unlink()
    shutil.copy(synthetic_data / "annotations" / "val.json", tmp_path / "alone.json")
    with pytest.raises(UserError, match=message):
        view(*(places.get(argument, argument) for argument in arguments))


def test_a_config_of_data_that_is_not_here_is_told(run: Path) -> None:
    config = run / "config.yaml"
    config.write_text("dataloader:\n  test:\n    dataset: {names: my_data_set}\n")
    with pytest.raises(
        UserError, match="data set my_data_set is not registered; give your own data by --data DIR"
    ):
        view(run)
    config.write_text("dataloader: {}\n")
    with pytest.raises(
        UserError, match="config.yaml names no data set to evaluate on: give the data by --data: "
    ):
        view(run)
    config.write_text("dataloader: !!python/object:os.system {}\n")
    with pytest.raises(
        UserError, match="config.yaml: line 1: has the tag .*give the data by --data: "
    ):
        view(run)
