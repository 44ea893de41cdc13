"""`gpvit analyze` prints what models cost, and the tables of the documentation."""

from pathlib import Path

import pytest
from conftest import REPOSITORY
from detectors import write_detector
from gpvit import checkpoint
from gpvit.cli import analyze
from gpvit.config import load_config
from gpvit.utils import analysis

DOCUMENTATION = {
    page: page.read_text()
    for page in [REPOSITORY / "README.md", *(REPOSITORY / "docs").glob("*.md")]
}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained detector."""
    path = tmp_path_factory.mktemp("weights") / "model_final.pth"
    write_detector(path)
    return path


def analyzed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, *arguments: str | Path
) -> str:
    """What the command prints, with all that it runs in this process and a single time."""
    monkeypatch.setattr(
        analyze, "in_a_process", lambda function, *args, environment=None: function(*args)
    )
    monkeypatch.setattr(analysis, "RUNS", 1)
    analyze.main(list(map(str, arguments)))
    return capsys.readouterr().out


def table_in(text: str) -> dict[str, list[float]]:
    """The rows of a Markdown table by their first cells."""
    rows = [line.strip("| ").split("|") for line in text.splitlines() if line.startswith("| ")][1:]
    return {row[0].strip(): [float(cell.strip(" %")) for cell in row[1:]] for row in rows}


def test_the_parts_of_a_model_add_up_to_the_whole(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    config = REPOSITORY / "configs" / "quickstart.py"
    text = analyzed(
        monkeypatch, capsys, "--config-file", config, "--image", "64x96", "--device", "cpu"
    )
    assert "one image of 64x96, random weights, 100 objects found" in text
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
    whole = table.pop("total")
    model = analysis.built_on_meta(load_config(str(config)).model)
    assert whole[0] == pytest.approx(
        sum(weight.numel() for weight in model.parameters()) / 1e6, abs=0.006
    )
    for column, tolerance in ((0, 0.03), (1, 0.03), (3, 0.5), (4, 3)):  # roundings
        assert whole[column] == pytest.approx(
            sum(row[column] for row in table.values()), abs=tolerance
        )
    assert whole[2] == max(row[2] for row in table.values())
    assert all(row[1] > 0 and row[3] > 0 for part, row in table.items() if part != "rest")


def test_a_model_is_known_from_its_checkpoint(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, weights: Path
) -> None:
    text = analyzed(monkeypatch, capsys, "--weights", weights.parent, "--device", "cpu")
    total = table_in(text)["total"]
    assert "one image of 64x96," in text  # the config's own size
    loaded = [
        tensor.numel()
        for key, tensor in checkpoint.read(str(weights)).weights.items()
        if "running_" not in key
    ]
    assert total[0] == pytest.approx(sum(loaded) / 1e6, abs=0.006)


@pytest.mark.parametrize("table", ["models", "published"])
def test_a_table_in_the_documentation_is_what_the_command_prints(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, table: str
) -> None:
    assert analyzed(monkeypatch, capsys, "--table", table) in "".join(DOCUMENTATION.values())
