"""`gpvit analyze` prints the costs of models and the tables of the documentation."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY
from detectors import write_detector
from gpvit import checkpoint
from gpvit.cli import analyze
from gpvit.config import load_config
from gpvit.utils import analysis

pytestmark = pytest.mark.long

PAGES = [REPOSITORY / "README.md", *(REPOSITORY / "docs").glob("*.md")]
COLUMNS = {"parameters": 0, "gflops": 1, "peak": 2, "milliseconds": 3, "percent": 4}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A randomly initialized detector."""
    path = tmp_path_factory.mktemp("weights") / "model_final.pth"
    write_detector(path)
    return path


def analyzed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, *arguments: str | Path
) -> str:
    """Return the output of the command; it runs in this process, with one timed run."""

    def in_this_process(function: Callable, *args: Any, environment: object = None) -> Any:
        return function(*args)

    monkeypatch.setattr(analyze, "in_a_process", in_this_process)
    monkeypatch.setattr(analysis, "RUNS", 1)
    analyze.main(list(map(str, arguments)))
    return capsys.readouterr().out


def table_in(text: str) -> dict[str, list[float]]:
    """Return the numbers in each row of a Markdown table, by the row's first cell."""
    _, *rows = [line for line in text.splitlines() if line.startswith("| ")]  # without the head
    numbers = {}
    for row in rows:
        name, *cells = row.strip("| ").split("|")
        numbers[name.strip()] = [float(cell.strip(" %")) for cell in cells]
    return numbers


def test_costs_of_parts_add_up_to_total(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    config = REPOSITORY / "configs" / "quickstart.py"
    text = analyzed(
        monkeypatch, capsys, "--config-file", config, "--image", "64x96", "--device", "cpu"
    )
    assert "one image of 64x96, random weights, 100 detections" in text
    table = table_in(text)
    assert list(table) == [
        "backbone",
        "pyramid",
        "dense head",
        "box head",
        "mask head",
        "rest",
        "total",
    ]
    total = table.pop("total")
    model = analysis.build_on_meta(load_config(str(config)).model)
    parameters = sum(weight.numel() for weight in model.parameters())
    assert total[COLUMNS["parameters"]] == pytest.approx(parameters / 1e6, abs=0.006)
    # The tolerances allow for the rounding of each row.
    tolerances = {"parameters": 0.03, "gflops": 0.03, "milliseconds": 0.5, "percent": 3}
    for name, tolerance in tolerances.items():
        column = COLUMNS[name]
        added = sum(row[column] for row in table.values())
        assert total[column] == pytest.approx(added, abs=tolerance)
    peak = COLUMNS["peak"]
    assert total[peak] == max(row[peak] for row in table.values())
    del table["rest"]
    for row in table.values():
        assert row[COLUMNS["gflops"]] > 0 and row[COLUMNS["milliseconds"]] > 0


def test_model_of_a_checkpoint_is_analyzed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, weights: Path
) -> None:
    text = analyzed(monkeypatch, capsys, "--weights", weights.parent, "--device", "cpu")
    total = table_in(text)["total"]
    assert "one image of 64x96," in text  # the size in the config
    parameters = 0
    for key, tensor in checkpoint.read(str(weights)).weights.items():
        if "running_" not in key:  # statistics of batch norm
            parameters += tensor.numel()
    assert total[0] == pytest.approx(parameters / 1e6, abs=0.006)


@pytest.mark.parametrize("table", ["models", "segmentation", "classification", "published"])
def test_table_in_documentation_matches_output(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, table: str
) -> None:
    documentation = "".join(page.read_text() for page in PAGES)
    assert analyzed(monkeypatch, capsys, "--table", table) in documentation
