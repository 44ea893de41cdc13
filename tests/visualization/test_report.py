"""Predictions are drawn next to ground truth, and a report has the metrics of COCO's evaluation."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from coco_files import coco_ap, ground_truth_as_results, many_objects, official_figures
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
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image
from pycocotools import mask as mask_api

pytestmark = pytest.mark.long

BROWSERS = list(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))


def imperfect_results(json_file: Path) -> list[dict[str, Any]]:
    """Ground truth with errors: missing, narrower, shifted, misclassified and doubled objects."""
    results = []
    categories = json.loads(json_file.read_text())["categories"]
    ids = sorted(category["id"] for category in categories)
    for number, item in enumerate(ground_truth_as_results(json_file)):
        item["segmentation"]["counts"] = item["segmentation"]["counts"].decode()
        item["score"] = round(0.95 - 0.013 * (number * 7 % 50), 3)
        if number % 5 == 0:
            item["bbox"][2] *= 0.72
        if number % 5 == 1:
            item["category_id"] = ids[(ids.index(item["category_id"]) + 1) % len(ids)]
        if number % 5 == 2:
            item["bbox"][0] += 0.8 * item["bbox"][2]
        if number % 5 != 3:
            results.append(item)
        if number % 5 == 4:
            results.append(item | {"score": 0.2})
    return results


def perfect_results(json_file: Path) -> list[dict[str, Any]]:
    results = ground_truth_as_results(json_file)
    for item in results:
        item["segmentation"]["counts"] = item["segmentation"]["counts"].decode()
    return results


def make_run(folder: Path, synthetic_data: Path) -> Path:
    """Make the folder of a run on the synthetic data, with the files of an evaluation."""
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
    """The report of such a folder; it must not be changed."""
    run = make_run(tmp_path_factory.mktemp("page") / "run", synthetic_data)
    assert write_report(run) == 0
    return run / "report.html"


def view(*arguments: object) -> int:
    return view_results.main(["--input", *map(str, arguments)])


def write_report(*arguments: object) -> int:
    return view(*arguments, "--report")


def figures_of(page: Path) -> dict[str, Any]:
    """The unrounded metrics in a report."""
    pattern = r'<script type="application/json" id="figures">(.*?)</script>'
    return json.loads(re.search(pattern, page.read_text())[1])


def table(page: Path, heading: str) -> list[list[str]]:
    """The cells of the first table below a heading."""
    text = page.read_text().split(f'<h2 id="{heading}">')[1].split("</table>")[0]
    rows = []
    for row in text.split("<tr>")[1:]:
        cells = re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.DOTALL)
        rows.append(list(map(html.unescape, cells)))
    return rows


def test_report_has_metrics_of_evaluation(page: Path, synthetic_data: Path) -> None:
    figures = figures_of(page)
    overall = figures["overall"]
    json_file = str(synthetic_data / "annotations" / "val.json")
    results = json.loads((page.parent / "coco_instances_results.json").read_text())
    for task, shape in (("bbox", "bbox"), ("segm", "segmentation")):
        items = []
        for item in results:
            items.append({key: item[key] for key in ("image_id", "category_id", "score", shape)})
        ap = coco_ap(json_file, items, task)
        assert 0.1 < ap < 0.9 and overall[task]["AP"] == ap
        for metric in report_page.OF_A_CLASS:
            values = [row[task][metric] for row in figures["classes"]]
            mean = np.mean([value for value in values if value is not None])
            assert mean == pytest.approx(overall[task][metric], abs=1e-12)
    assert overall["bbox"]["AP"] < overall["segm"]["AP"]  # some boxes were shifted
    displayed = {row[0]: row[1:] for row in table(page, "ap")[1:]}
    assert displayed["AP75"] == [f"{100 * overall[task]['AP75']:.1f}" for task in ("bbox", "segm")]


@pytest.mark.parametrize("task", ["bbox", "segm"])
def test_report_has_official_metrics(real_data: Path, tmp_path: Path, task: str) -> None:
    folder, page = real_data / "cocoeval", tmp_path / "report.html"
    results = folder / f"instances_val2014_fake{task}100_results.json"
    ground_truth = folder / "instances_val2014_100.json"
    assert write_report(results, "--data", ground_truth, "--output", page) == 0
    figures = figures_of(page)["overall"][task]
    np.testing.assert_allclose(list(figures.values()), official_figures(folder, task), atol=5e-4)
    assert figures["AP"] == coco_ap(str(ground_truth), json.loads(results.read_text()), task)
    assert "No images, because their folder is not given" in page.read_text()
    matrix = table(page, "confusion")  # of 80 classes
    assert len(matrix) == 1 + report_page.MANY_CLASSES + 2
    assert matrix[-2][0] == "68 other classes"
    total = 0
    for row in matrix[1:-1]:
        total += sum(int(cell or 0) for cell in row[1:])
    assert total == 839 - 9  # every object but the crowds once


@pytest.mark.parametrize(
    ("recorded", "options", "ap"),
    [
        (None, (), 67),
        (None, ("--max-detections", "150"), 100),
        (150, (), 100),
        (150, ("--max-detections", "5"), 3),
    ],
)
def test_report_uses_limit_of_evaluation_and_notes_what_it_excludes(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    recorded: int | None,
    options: tuple,
    ap: int,
) -> None:
    annotations = many_objects(tmp_path / "data") / "annotations" / "val.json"
    path, page = tmp_path / "coco_instances_results.json", tmp_path / "report.html"
    path.write_text(json.dumps(perfect_results(annotations)))
    if recorded:
        path.with_name("evaluation.json").write_text(json.dumps({"max_detections": recorded}))
    monkeypatch.setattr(report_page, "read_speed", lambda folder: None)
    assert write_report(path, "--data", annotations, "--output", page, *options) == 0
    figures, limit = figures_of(page), {67: 100, 100: 150, 3: 5}[ap]
    for task in ("bbox", "segm"):
        cell, nucleus = (row[task]["AP"] for row in figures["classes"])
        assert cell == pytest.approx(ap / 100, abs=0.01)
        assert nucleus == pytest.approx(min(limit, 100) / 100, abs=0.01)
        recall = figures["overall"][task][f"AR, {limit} detections"]
        assert recall == pytest.approx((cell + nucleus) / 2, abs=0.01)
    text, errors = page.read_text(), capsys.readouterr().err
    assert f"AP counts the {limit} highest-scoring detections" in text
    note = (
        "up to 150 objects and up to 150 detections of a class, but AP counts at most "
        f"{limit} detections"
    )
    assert (note in text) == (note in errors) == (ap < 100)


@pytest.mark.parametrize("number", ["0", "-1", "10001"])
def test_invalid_limit_of_detections_raises(
    run: Path, number: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        write_report(run, "--max-detections", number)
    message = "--max-detections: must be a whole number from 1 to 10000, got"
    assert message in capsys.readouterr().err
    (run / "evaluation.json").write_text(json.dumps({"max_detections": number}))
    with pytest.raises(UserError, match="evaluation.json: max_detections must be a whole number"):
        write_report(run)


def test_rarely_confused_classes_share_a_row() -> None:
    """Of 20 classes, the last is often confused with the first."""
    categories = {id: {"name": f"class {id}"} for id in range(20)}
    ground_truth = type("GroundTruth", (), {"cats": categories})
    counts = np.ones((21, 21), np.int64)
    counts[19, 0] = 50
    confusions = report_page.confusions(ground_truth, counts)
    assert confusions["pairs"][0] == ("class 19", "class 0", 50)
    assert confusions["columns"][:2] == ["class 0", "class 19"]
    assert confusions["columns"][-2:] == ["8 other classes", "background"]
    names, cells = zip(*confusions["rows"])
    assert names[-2:] == ("8 other classes", "background")
    assert cells[1][0] == (50, 50 / 70)
    assert np.array(cells)[..., 0].sum() == counts.sum()
    assert cells[-2][-2][0] == 8 * 8


def test_report_shows_speed_and_training_run_if_available(run: Path, page: Path) -> None:
    text = page.read_text()
    assert "there is no complete evaluation.json" in text and '<h2 id="training">' not in text
    evaluation = {"seconds_per_image": 0.1234, "device": "a fast one", "images": 4}
    (run / "evaluation.json").write_text(json.dumps(evaluation))
    rows = [{"iteration": i, "total_loss": 2.0 / (i + 1)} for i in range(9)]
    rows.append({"iteration": 8, "segm/AP": 30.0})
    cut_off = '\n{"iteration": 9, "total_'
    (run / "metrics.json").write_text("\n".join(map(json.dumps, rows)) + cut_off)
    write_report(run)
    text = (run / "report.html").read_text()
    assert "0.123 seconds per image on a fast one, measured over 4 images" in text
    assert 'aria-label="training loss"' in text and 'aria-label="validation (%)"' in text


def test_invalid_evaluation_json_raises(run: Path) -> None:
    (run / "evaluation.json").write_text("{}")
    with pytest.raises(UserError, match="evaluation.json is not a valid evaluation file"):
        report_page.read_speed(run)


def test_report_is_self_contained(page: Path) -> None:
    text = page.read_text()
    sources = re.findall(r'(?:src|href)="([^"]*)"', text) + re.findall(r"url\(([^)]*)\)", text)
    assert sources
    for source in sources:
        assert source.startswith(("data:image/jpeg;base64,", "#"))
    assert "@import" not in text and "<link" not in text


def test_legend_is_below_the_axes_and_inside_of_the_chart() -> None:
    drawn = []

    def draw(axes: Axes) -> None:
        for label in ("day boxes", "day masks", "night_in_the_city boxes", "$x$ masks"):
            axes.plot([0, 1], [0, 1], label=label)
        report_page.unit_axes(axes, "recall", "precision")
        drawn.append(axes)

    report_page.chart(draw, "a chart", legend=True)
    [axes] = drawn
    figure = axes.get_figure()
    FigureCanvasAgg(figure).draw()
    legend, label = axes.get_legend().get_window_extent(), axes.xaxis.label.get_window_extent()
    assert 0 < legend.y0 < legend.y1 < label.y0 < axes.bbox.y0
    assert 0 < legend.x0 < legend.x1 < figure.bbox.x1


def test_names_are_escaped_in_html(run: Path, synthetic_data: Path) -> None:
    content = json.loads((synthetic_data / "annotations" / "val.json").read_text())
    content["categories"][0]["name"] = name = "</script><script>alert($x$)</script>"
    (run / "val.json").write_text(json.dumps(content))
    images = synthetic_data / "images"
    write_report(run, "--data", run / "val.json", "--images", images)
    page = run / "report.html"
    assert name not in page.read_text() and html.escape(name, quote=False) in page.read_text()
    assert any(row["name"] == name for row in figures_of(page)["classes"])


@pytest.mark.parametrize("empty", ["detections", "objects"])
def test_report_without_detections_or_objects(run: Path, synthetic_data: Path, empty: str) -> None:
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


def test_report_without_true_positives_uses_default_threshold(run: Path) -> None:
    path = run / "coco_instances_results.json"
    results = json.loads(path.read_text())
    for item in results:
        corner = np.zeros((*item["segmentation"]["size"], 1), np.uint8, order="F")
        corner[0, 0] = 1
        [mask] = mask_api.encode(corner)
        item["segmentation"] = mask | {"counts": mask["counts"].decode()}
        item["bbox"] = [0, 0, 1, 1]
    path.write_text(json.dumps(results))
    assert write_report(run) == 0
    text = (run / "report.html").read_text()
    assert "no true positives, and so no best threshold; 0.500 is used below." in text
    assert "The score threshold is 0.500." in text and "best F1, %" not in text
    for row in figures_of(run / "report.html")["classes"]:
        assert row["best"] is None


def test_object_with_id_0_in_registered_dataset_can_be_matched(
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
    results = perfect_results(json_file)
    (run / "coco_instances_results.json").write_text(json.dumps(results))
    inputs = read_inputs(run)
    for task, found in inputs.found.items():
        true_positives = []
        matching = match(inputs.ground_truth, found, task)
        for outcome in outcomes(matching, inputs.ground_truth, 0.0).values():
            true_positives += outcome.true_positives
            assert not outcome.false_positives and not outcome.false_negatives
        assert true_positives


def browse(page: Path, profile: Path) -> str:
    """The DOM of a page in a browser after its scripts have run."""
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
    command = [BROWSERS[0], *options, "--virtual-time-budget=2000", "--dump-dom", page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout


PROBE = """<script>onload = () => {
  const all = selector => [...document.querySelectorAll(selector)];
  const heads = all("h2").map(head => head.textContent);
  const loaded = [...document.images].map(image => image.complete && image.naturalWidth);
  const charts = all("svg").map(svg => svg.getBoundingClientRect().height > 50);
  document.querySelectorAll(".sortable th")[1].click();
  const sorted = all(".sortable tbody tr").map(row => +row.cells[1].textContent);
  const fits = document.documentElement.scrollWidth <= innerWidth;
  document.body.textContent = JSON.stringify({heads, loaded, charts, sorted, fits});
}</script>"""


@pytest.mark.skipif(not BROWSERS, reason="no chromium")
def test_report_renders_in_a_browser(page: Path, tmp_path: Path) -> None:
    probe = tmp_path / "probe.html"
    probe.write_text(page.read_text().replace("</body>", PROBE + "</body>"))
    body = re.search(r"<body>(.*)</body>", browse(probe, tmp_path / "profile"), re.DOTALL)[1]
    seen = json.loads(html.unescape(body))
    assert seen["heads"] == [
        "Average precision",
        "Classes",
        "Precision-recall curves",
        "Score threshold",
        "Confusion matrix",
        "Calibration",
        "Worst images",
        "Speed",
        "Versions and config",
    ]
    assert len(seen["loaded"]) >= 2 and min(seen["loaded"]) > 400  # pixels wide
    assert len(seen["charts"]) > 5 and all(seen["charts"])
    assert seen["sorted"] == sorted(seen["sorted"], reverse=True) and len(set(seen["sorted"])) > 1
    assert seen["fits"]


def test_worst_images_are_drawn_first(run: Path, capsys: pytest.CaptureFixture) -> None:
    assert view(run, "--number", "3") == 0
    folder = run / "predictions"
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["01.png", "02.png", "03.png", "sheet.png"]
    lines = re.findall(r"0\d.png: \S+: \d+ TP, (\d+) FP, (\d+) FN", capsys.readouterr().out)
    errors = [
        int(false_positives) + int(false_negatives) for false_positives, false_negatives in lines
    ]
    assert len(lines) == 3 and errors[0] == max(errors) > 0
    drawing = Image.open(folder / "01.png")
    assert drawing.width > drawing.height > comparison.PANE / 2
    assert Image.open(folder / "sheet.png").width == 2 * comparison.SHEET_WIDTH


def test_cost_counts_false_negatives_and_scores_of_false_positives(synthetic_data: Path) -> None:
    file = read(synthetic_data / "annotations" / "val.json", synthetic_data / "images")
    ground_truth = file.coco()
    first, second, third, fourth = sorted(ground_truth.imgs)
    category = next(iter(ground_truth.cats))
    common = {"category_id": category, "bbox": [0, 0, 9, 9], "image_id": second}
    found = index([common | {"score": score} for score in (0.9, 0.8, 0.3)], ground_truth, "bbox")
    cases = {
        first: Outcome([2, 3], [], [], []),
        second: Outcome([], [1, 3], [], []),  # 1.2
        third: Outcome([], [1, 2], [], []),  # 1.7
        fourth: Outcome([1], [], [2], [5, 6]),  # 2
    }
    ranked = comparison.worst_first(ground_truth, found, cases)
    assert [case.image["id"] for case in ranked] == [fourth, third, second, first]
    assert [case.cost for case in ranked] == pytest.approx([2, 1.7, 1.2, 0])


def test_outcomes_are_drawn_in_their_styles(synthetic_data: Path) -> None:
    file = read(synthetic_data / "annotations" / "val.json", synthetic_data / "images")
    ground_truth = file.coco()
    for id in ground_truth.imgs:
        objects = [item for item in ground_truth.imgToAnns[id] if not item["iscrowd"]]
        if len(objects) >= 2:
            break
    matched, unmatched = objects[:2]
    image = ground_truth.imgs[id]
    common = {"image_id": id, "category_id": matched["category_id"]}
    right, wrong = {"bbox": matched["bbox"], "score": 0.9}, {"bbox": [1, 1, 20, 20], "score": 0.8}
    found = index([common | right, common | wrong], ground_truth, "bbox")
    case = comparison.Case(image, Outcome([1], [2], [], [unmatched["id"]]), 1.8)
    pixels = np.full((image["height"], image["width"], 3), 128, np.uint8)
    panels = comparison.draw(pixels, case, ground_truth, found, masks=False).axes
    drawn = {}
    for side, axes in zip(("ground truth", "detections"), panels):
        for line, text in zip(axes.lines, axes.texts):
            corner = float(min(line.get_xdata())), float(min(line.get_ydata()))
            drawn[side, corner] = line.get_color(), line.get_linestyle(), text.get_text()[0]
    matched_at = tuple(map(float, matched["bbox"][:2]))
    unmatched_at = tuple(map(float, unmatched["bbox"][:2]))
    styles = {name: tuple(style)[:3] for name, style in comparison.STYLES.items()}
    assert drawn["ground truth", matched_at] == styles["true positive"]
    assert drawn["ground truth", unmatched_at] == styles["false negative"]
    assert drawn["detections", matched_at] == styles["true positive"]
    assert drawn["detections", (1.0, 1.0)] == styles["false positive"]
    assert len(panels[1].lines) == 2
    for part in zip(*comparison.STYLES.values()):
        assert len(set(part)) == len(comparison.STYLES)  # no two differ only in color


def test_unreadable_images_are_skipped_and_reported(
    run: Path, synthetic_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    images = tmp_path / "images"
    shutil.copytree(synthetic_data / "images", images)
    first, second, *_ = sorted(images.glob("val_*"))
    first.unlink()
    Image.new("RGB", (30, 20)).save(second)
    ground_truth = synthetic_data / "annotations" / "val.json"
    assert view(run, "--data", ground_truth, "--images", images) == 1
    assert len(list((run / "predictions").glob("0*.png"))) == 2
    errors = capsys.readouterr().err
    assert f"{first}: cannot be read" in errors and f"{second}: is 30 x 20 pixels, but " in errors
    write_report(run, "--data", ground_truth, "--images", images)
    assert "2 cannot be read" in (run / "report.html").read_text()


def write_evaluation_json(run: Path, name: str, **changes: Any) -> None:
    """Write evaluation.json with the dataset of the results, as an evaluation does."""
    data = evaluated_data(name, masks=True) | changes
    (run / "evaluation.json").write_text(
        json.dumps({"weights": None, "seconds_per_image": None, "data": data})
    )


@pytest.mark.parametrize("kind", ["folder", "registered", "boxes"])
def test_results_of_other_data_raise(
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
        results = json.loads(path.read_text())
        for item in results:
            del item["segmentation"]
        path.write_text(json.dumps(results))
    write_evaluation_json(run, name)
    inputs = (
        [run],
        [run, "--data", data],
        [path, "--data", annotations, "--images", data / "images"],
    )
    read_inputs(run, data)
    read_inputs(path, annotations, images=data / "images")
    empty = path.read_text()
    path.write_text("[]")  # without the information whether masks were evaluated
    read_inputs(run)
    path.write_text(empty)
    content = json.loads(annotations.read_text())
    content["annotations"][0]["iscrowd"] = 1
    annotations.write_text(json.dumps(content))
    message = f"results.json belongs to other data than .*: to {name} .*or evaluate again"
    for arguments in inputs:
        for command in (write_report, view):
            with pytest.raises(UserError, match=message):
                command(*arguments)
    assert not (run / "report.html").exists() and not (run / "predictions").exists()
    path.rename(run / "mine.json")  # evaluation.json is not about this file
    read_inputs(run / "mine.json", data)


def test_results_of_older_version_are_shown_with_a_note(
    run: Path, synthetic_data: Path, capsys: pytest.CaptureFixture
) -> None:
    (run / "evaluation.json").write_text(
        '{"weights": null, "seconds_per_image": 1, "device": "CPU", "images": 4}'
    )
    read_inputs(run)
    (line,) = capsys.readouterr().err.splitlines()
    assert "does not name the dataset of coco_instances_results.json" in line
    (run / "evaluation.json").write_text("[1")
    with pytest.raises(UserError, match="evaluation.json is not a valid evaluation file"):
        read_inputs(run)


def test_existing_files_are_not_overwritten_without_option(run: Path) -> None:
    (run / "report.html").write_text("precious")
    (run / "predictions").mkdir()
    (run / "predictions" / "01.png").write_text("precious")
    with pytest.raises(
        UserError, match="report.html already exists; give another --output, or --overwrite"
    ):
        write_report(run)
    with pytest.raises(
        UserError, match="01.png already exists; give another --output, or --overwrite"
    ):
        view(run)
    for path in (run / "report.html", run / "predictions" / "01.png"):
        assert path.read_text() == "precious"
    assert view(run, "--overwrite", "--number", "1") == 0
    assert Image.open(run / "predictions" / "01.png").width > 0


def test_dataset_can_be_given_in_different_forms(run: Path, synthetic_data: Path) -> None:
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
        assert inputs.ground_truth.imgs.keys() == named.ground_truth.imgs.keys()
        assert inputs.ground_truth.anns.keys() == named.ground_truth.anns.keys()
        assert inputs.images.resolve() == named.images.resolve()
        assert inputs.found.keys() == {"bbox", "segm"}
        assert inputs.found["segm"].anns.keys() == named.found["segm"].anns.keys()
    message = "has size .*, the image has .*; give the dataset of these detections"
    with pytest.raises(UserError, match=message):
        read_inputs(run, synthetic_data, "train")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["EMPTY"], "coco_instances_results.json does not exist: evaluate first"),
        (
            ["RESULTS"],
            "give the dataset of .*results.json by --data: a folder, or a JSON file and --images",
        ),
        (["ALONE"], "config.yaml does not exist: give the dataset by --data"),
        (
            ["RESULTS", "--data", "ALONE.json"],
            "give the folder of the images of .*alone.json by --images DIR",
        ),
        (["RUN", "--data", "EMPTY"], "--data .*empty"),
    ],
)
def test_missing_inputs_raise(
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
        view(*map(places.get, arguments, arguments))


def test_config_without_available_dataset_raises(run: Path) -> None:
    config = run / "config.yaml"
    config.write_text("dataloader:\n  test:\n    dataset: {names: my_data_set}\n")
    with pytest.raises(
        UserError,
        match="dataset my_data_set is not registered; to use a custom dataset, add --data DIR",
    ):
        view(run)
    config.write_text("dataloader: {}\n")
    with pytest.raises(
        UserError, match="config.yaml names no validation dataset: give the dataset by --data: "
    ):
        view(run)
    config.write_text("dataloader: !!python/object:os.system {}\n")
    with pytest.raises(
        UserError, match="config.yaml: line 1: has the tag .*give the dataset by --data: "
    ):
        view(run)
