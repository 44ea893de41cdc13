"""The benchmarks compare what computes the same, and count what is published."""

import json
import sys
from pathlib import Path

import cv2
import numpy as np
import official
import pytest
import torch
from benchmarks import backbone, coco_evaluation, engine, roofline
from gpvit.utils.errors import UserError


def test_costs_of_the_adapter_are_measured_part_by_part(
    monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.setattr(sys, "argv", ["engine.py", "adapter", "--image", "64x96"])
    monkeypatch.setattr(engine, "RUNS", 1)
    engine.main()
    rows = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines()[2:]]
    costs = {row[0].strip(): [float(cell.strip(" %")) for cell in row[1:]] for row in rows}
    assert costs["all"][1] == 100
    parts = {
        "patch embedding",
        "blocks",
        "spatial prior",
        "injectors",
        "extractors",
        "adapter with backbone",
    }
    assert parts < costs.keys()
    assert costs["all"][2] >= costs["adapter with backbone"][2] > 0


def benchmark_record(monkeypatch: pytest.MonkeyPatch, file: Path, *arguments: str) -> dict:
    command = ["backbone.py", "--image", "64x64", "--runs", "2", "--json", str(file), *arguments]
    monkeypatch.setattr(sys, "argv", command)
    backbone.main()
    return json.loads(file.read_text())


def test_the_backbone_is_timed_against_its_literal_form(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, tmp_path: Path
) -> None:
    monkeypatch.setattr(roofline, "MIN_SECONDS", 0.001)
    record = benchmark_record(monkeypatch, tmp_path / "record.json", "--mode", "training")
    assert record["ratio"] > 0 and record["memory_ratio"] > 0 and record["fraction_of_limit"] > 0
    assert record["machine"]["torch"] == torch.__version__ and record["task"]["mode"] == "training"
    assert [len(times) for times in record["all_seconds"].values()] == [2, 2]
    lines = capsys.readouterr().out.splitlines()[1:]
    assert [line.split()[0] for line in lines] == ["gpvit", "literal", "ratio", "limit"]


@pytest.mark.slow
def test_a_whole_detector_is_timed_part_by_part(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    record = benchmark_record(
        monkeypatch, tmp_path / "record.json", "--part", "detector", "--against", "swin"
    )
    for parts in record["parts"].values():
        assert set(parts) == {
            "data",
            "backbone",
            "pyramid or adapter",
            "proposals",
            "heads",
            "post-processing",
        }
        assert min(parts.values()) > 0
    assert record["detections"] == {"gpvit": 100, "swin": 100}
    assert sum(record["parts"]["gpvit"].values()) == pytest.approx(
        record["seconds"]["gpvit"], rel=0.5
    )


def test_models_that_differ_are_not_timed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(backbone.official, "fill", lambda key, shape: np.random.randn(*shape))
    with pytest.raises(
        UserError, match="do not compute the same: relative L2 distance .* in last_feat"
    ):
        benchmark_record(monkeypatch, tmp_path / "record.json")
    assert not (tmp_path / "record.json").exists()


@pytest.mark.slow
def test_growth_is_measured_and_drawn(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(backbone, "GROWTH_SIDES", (64, 128))
    monkeypatch.setattr(backbone, "GROWTH_IMAGES", (2,))
    plot = tmp_path / "growth.png"
    record = benchmark_record(
        monkeypatch, tmp_path / "record.json", "--against", "none", "--growth", str(plot)
    )
    assert [(point["side"], point["images"]) for point in record["growth"]] == [
        (64, 1),
        (128, 1),
        (64, 2),
    ]
    assert record["growth_ratios"]["gpvit"].keys() == {"gmacs", "seconds", "peak_mib"}
    assert cv2.imread(str(plot)).std() > 10


@pytest.mark.parametrize("size", ["L1", "L4"])
def test_the_limit_counts_what_is_published(size: str) -> None:
    task = backbone.Task(size, (800, 1280), 1, "inference", "backbone", "float32", False)
    gmacs = sum(operation.flops for operation in backbone.operations(task)) / 2e9
    expected = json.loads((official.FOLDER / "complexity.json").read_text())["backbone_gmacs"]
    assert gmacs == pytest.approx(expected[size.lower()]["800x1280"], rel=1e-3)


def test_an_operation_takes_the_longer_of_computing_and_moving() -> None:
    product = (10, 20, 30)
    rates = roofline.Rates({product}, "cpu", torch.float32)
    rates.copy, rates.products[product] = 100.0, {"linear": 50.0, "mm": 200.0}
    linear = roofline.Operation("linear", bytes=500, flops=2000, product=product)
    others = [
        roofline.Operation("conv2d", bytes=3000, flops=10),
        roofline.Operation("gelu", bytes=70),
    ]
    assert rates.seconds([linear, linear, *others]) == {"linear": 20, "conv2d": 30, "gelu": 0.7}


def test_the_evaluation_has_the_figures_of_pycocotools(capsys: pytest.CaptureFixture) -> None:
    coco_evaluation.compare(20)  # which fails where the figures differ
    assert [line.split()[1] for line in capsys.readouterr().out.splitlines()[2:]] == [
        "bbox",
        "segm",
        "both",
    ]
