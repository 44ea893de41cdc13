"""Files that a run writes, with anything in them: what is of no use is skipped, or refused in one line."""

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
STRANGE = [
    "[" * 1_000_000,
    '{"a":' * 100_000,
    "7",
    "null",
    '{"iteration": ' + "1" * 5000 + "}",
    *(
        f'{{"iteration": {value}, "total_loss": 1.0, "bbox/AP": 1.0}}'
        for value in [*VALUES, "1.5", "-1"]
    ),
    *(f'{{"iteration": 29, "total_loss": {value}, "bbox/AP": {value}}}' for value in VALUES),
    '{"iteration": 30, "loss_$x$_{\\\\frac": 1.0, "loss_\\\\ud800": 2.0}',
]


def test_strange_lines_of_metrics_are_skipped_by_whoever_reads_them(tmp_path: Path) -> None:
    first, last = map(json.dumps, GOOD)
    path = tmp_path / "metrics.json"
    path.write_text("\n".join([first, *STRANGE, last, first[:20]]))
    rows = list(read_metrics(path))
    assert [row for row in rows if "bbox/AP" in row] == GOOD
    assert {row["iteration"] for row in rows} == {19, 29, 30, 39}
    save_curves(path, tmp_path / "curves.png")
    assert len(training_charts(tmp_path)) == 2
    file = checkpoint.File(str(tmp_path / "model.pth"), {}, [], about={"iterations": 40})
    assert card.training_of(file).metrics == {"bbox/AP": 20.0}


def test_metrics_without_a_usable_line_are_drawn_empty(tmp_path: Path) -> None:
    (tmp_path / "metrics.json").write_text("\n".join(STRANGE[:5]))
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
def test_an_evaluation_json_of_another_kind_is_one_line(tmp_path: Path, content: str) -> None:
    (tmp_path / "evaluation.json").write_text(content)
    with pytest.raises(UserError, match="is not what an evaluation writes .*; remove it") as raised:
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
        '{"processes": [{"rank": 0, "images": [{"index": -1, "position": 0}]}], "iteration": 1, "seed": 1}',
        '{"processes": [{"rank": 0, "images": [{"index": true, "position": 0}]}], "iteration": 1, "seed": 1}',
    ],
)
def test_a_report_of_another_kind_is_one_line(tmp_path: Path, content: str) -> None:
    file = tmp_path / "not_finite_0000001.json"
    file.write_text(content)
    with pytest.raises(UserError, match="is no report of a training that stopped") as raised:
        replay.main(["--input", str(file)])
    assert "\n" not in str(raised.value)


def test_the_evaluation_at_the_end_is_under_the_iteration_behind_which_it_was(
    tmp_path: Path,
) -> None:
    path = tmp_path / "metrics.json"
    rows = [
        {"iteration": 0, "total_loss": 2.0, "bbox/AP": 1.0},
        {"iteration": 1, "bbox/AP": 2.0},  # on the way, made up for when the run was resumed
        {"iteration": 3, "total_loss": 1.0},
    ]
    for last in (3, 4):  # as written now, and by version 0.1
        path.write_text(
            "".join(json.dumps(row) + "\n" for row in [*rows, {"iteration": last, "bbox/AP": 3.0}])
        )
        measured = {
            row["iteration"]: row["bbox/AP"] for row in read_metrics(path) if "bbox/AP" in row
        }
        assert measured == {0: 1.0, 1: 2.0, 3: 3.0}


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("segm/AP50", ("", False, "segm", "AP50")),
        ("night/city/ema_bbox/AP", ("night/city", True, "bbox", "AP")),
        ("/data/bbox/photos:val/segm/APs", ("/data/bbox/photos:val", False, "segm", "APs")),
        ("bbox/AP-x/segm/AP", ("", False, "bbox", "AP-x/segm/AP")),
        ("segm/AP-a\nb", ("", False, "segm", "AP-a\nb")),
        *(
            (name, None)
            for name in ("total_loss", "segm/AR", "segm/APx", "keypoints/AP", "segm", "segm/AP-")
        ),
    ],
)
def test_the_name_of_a_metric_is_taken_apart(name: str, parts: tuple | None) -> None:
    assert parse_metric(name) == parts
