"""Readers of a run's files skip invalid lines, or raise a one-line error."""

import json
from pathlib import Path

import pytest
from gpvit import checkpoint
from gpvit.cli import replay
from gpvit.evaluation.metrics import parse_metric
from gpvit.hub import model_card as card
from gpvit.utils.errors import UserError
from gpvit.utils.events import read_metrics
from gpvit.visualization.curves import save_curves
from gpvit.visualization.report import read_speed, training_charts

GOOD = [
    {"iteration": 19, "total_loss": 2.5, "bbox/AP": 10.0},
    {"iteration": 39, "total_loss": 1.5, "bbox/AP": 20.0},
]
VALUES = ['"a"', "[1]", "{}", "null", "true", "NaN", "-Infinity", "1e400", "1" + "0" * 400, "1e200"]
INVALID_LINES = [
    "[" * 1_000_000,
    '{"a":' * 100_000,
    "7",
    "null",
    '{"iteration": ' + "1" * 5000 + "}",
    *map('{{"iteration": {}, "total_loss": 1.0, "bbox/AP": 1.0}}'.format, [*VALUES, "1.5", "-1"]),
    *map('{{"iteration": 29, "total_loss": {0}, "bbox/AP": {0}}}'.format, VALUES),
    '{"iteration": 30, "loss_$x$_{\\\\frac": 1.0, "loss_\\\\ud800": 2.0}',
]


def test_all_readers_skip_invalid_lines_of_metrics(tmp_path: Path) -> None:
    first, last = map(json.dumps, GOOD)
    path = tmp_path / "metrics.json"
    path.write_text("\n".join([first, *INVALID_LINES, last, first[:20]]))
    rows = list(read_metrics(path))
    assert [row for row in rows if "bbox/AP" in row] == GOOD
    assert {row["iteration"] for row in rows} == {19, 29, 30, 39}
    save_curves(path, tmp_path / "curves.png")
    assert len(training_charts(tmp_path)) == 2
    file = checkpoint.File(str(tmp_path / "model.pth"), {}, [], about={"iterations": 40})
    assert card.read_training_run(file).metrics == {"bbox/AP": 20.0}


def test_metrics_without_a_valid_line_give_an_empty_plot(tmp_path: Path) -> None:
    (tmp_path / "metrics.json").write_text("\n".join(INVALID_LINES[:5]))
    save_curves(tmp_path / "metrics.json", tmp_path / "curves.png")
    assert training_charts(tmp_path) == []


@pytest.mark.parametrize(
    "content",
    [
        "[" * 100_000,
        "[]",
        "{",
        '{"seconds_per_image": 0.5, "device": [1], "images": 3}',
        '{"seconds_per_image": NaN, "device": "cpu", "images": 3}',
        '{"seconds_per_image": true, "device": "cpu", "images": 3}',
        '{"seconds_per_image": 0.5, "device": "cpu", "images": 1e999}',
        '{"seconds_per_image": "1", "device": "cpu", "images": 3}',
    ],
)
def test_invalid_evaluation_json_raises_in_one_line(tmp_path: Path, content: str) -> None:
    (tmp_path / "evaluation.json").write_text(content)
    with pytest.raises(UserError, match="is not a valid evaluation file .*; remove it") as raised:
        read_speed(tmp_path)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "content",
    [
        "[" * 100_000,
        "[]",
        '{"processes": "abc", "iteration": 1, "seed": 1}',
        '{"processes": 3, "iteration": 1, "seed": 1}',
        '{"processes": [], "iteration": "../../x", "seed": 1}',
        '{"iteration": 1, "seed": 1, "processes":'
        ' [{"rank": 0, "images": [{"index": -1, "position": 0}]}]}',
        '{"iteration": 1, "seed": 1, "processes":'
        ' [{"rank": 0, "images": [{"index": true, "position": 0}]}]}',
    ],
)
def test_invalid_report_raises_in_one_line(tmp_path: Path, content: str) -> None:
    file = tmp_path / "not_finite_0000001.json"
    file.write_text(content)
    with pytest.raises(UserError, match="is not a report of a training run that stopped") as raised:
        replay.main(["--input", str(file)])
    assert "\n" not in str(raised.value)


def test_final_evaluation_is_reported_at_the_last_iteration(tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    rows = [
        {"iteration": 0, "total_loss": 2.0, "bbox/AP": 1.0},
        {"iteration": 1, "bbox/AP": 2.0},  # before it was interrupted and resumed
        {"iteration": 3, "total_loss": 1.0},
    ]
    for last in (3, 4):  # as written now, and by version 0.1
        lines = map(json.dumps, [*rows, {"iteration": last, "bbox/AP": 3.0}])
        path.write_text("\n".join(lines))
        measured = [(row["iteration"], row["bbox/AP"]) for row in read_metrics(path)]
        assert measured == [(0, 1.0), (1, 2.0), (3, 3.0)]


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("segm/AP50", ("", False, "segm", "AP50")),
        ("night/city/ema_bbox/AP", ("night/city", True, "bbox", "AP")),
        ("/data/bbox/photos:val/segm/APs", ("/data/bbox/photos:val", False, "segm", "APs")),
        ("bbox/AP-x/segm/AP", ("", False, "bbox", "AP-x/segm/AP")),
        ("segm/AP-a\nb", ("", False, "segm", "AP-a\nb")),
        ("total_loss", None),
        ("segm/AR", None),
        ("segm/APx", None),
        ("keypoints/AP", None),
        ("segm", None),
        ("segm/AP-", None),
    ],
)
def test_metric_names_are_parsed(name: str, parts: tuple | None) -> None:
    assert parse_metric(name) == parts
