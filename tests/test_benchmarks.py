"""The benchmarks compare equivalent models, and count the published numbers of FLOPs."""

import json
import sys
from pathlib import Path

import cv2
import numpy as np
import official
import pytest
import torch
from benchmarks import backbone, coco_evaluation, engine, large_images, roofline, streaming
from detectors import write_detector
from gpvit.utils.errors import UserError

pytestmark = pytest.mark.long


def test_adapter_is_measured_part_by_part(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["engine.py", "adapter", "--image", "64x96"])
    monkeypatch.setattr(engine, "RUNS", 1)
    engine.main()
    percent, peak_mib = {}, {}
    for line in capsys.readouterr().out.splitlines()[2:]:  # a Markdown table
        part, _, percent_cell, peak_cell = map(str.strip, line.strip("|").split("|"))
        percent[part], peak_mib[part] = percent_cell, float(peak_cell)
    assert percent["all"] == "100%"
    assert {"patch embedding", "blocks", "spatial prior"} < percent.keys()
    assert {"injectors", "extractors", "adapter with backbone"} < percent.keys()
    assert peak_mib["all"] >= peak_mib["adapter with backbone"] > 0


def benchmark_record(monkeypatch: pytest.MonkeyPatch, file: Path, *arguments: str) -> dict:
    command = ["backbone.py", "--image", "64x64", "--runs", "2", "--json", str(file), *arguments]
    monkeypatch.setattr(sys, "argv", command)
    backbone.main()
    return json.loads(file.read_text())


def test_backbone_is_timed_against_the_literal_implementation(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, tmp_path: Path
) -> None:
    monkeypatch.setattr(roofline, "MIN_SECONDS", 0.001)
    record = benchmark_record(monkeypatch, tmp_path / "record.json", "--mode", "training")
    assert record["ratio"] > 0 and record["memory_ratio"] > 0 and record["fraction_of_limit"] > 0
    assert record["machine"]["torch"] == torch.__version__ and record["task"]["mode"] == "training"
    assert list(map(len, record["all_seconds"].values())) == [2, 2]
    lines = capsys.readouterr().out.splitlines()[1:]
    assert [line.split()[0] for line in lines] == ["gpvit", "literal", "ratio", "limit"]


@pytest.mark.slow
def test_detector_is_timed_part_by_part(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    options = ["--part", "detector", "--against", "swin"]
    record = benchmark_record(monkeypatch, tmp_path / "record.json", *options)
    expected = {"data", "backbone", "pyramid or adapter", "proposals", "heads", "post-processing"}
    for parts in record["parts"].values():
        assert set(parts) == expected
        assert min(parts.values()) > 0
    assert record["detections"] == {"gpvit": 100, "swin": 100}
    total = sum(record["parts"]["gpvit"].values())
    assert total == pytest.approx(record["seconds"]["gpvit"], rel=0.5)


def test_different_models_raise(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(backbone.official, "fill", lambda key, shape: np.random.randn(*shape))
    with pytest.raises(UserError, match="are not equivalent: relative L2 .* in last_feat"):
        benchmark_record(monkeypatch, tmp_path / "record.json")
    assert not (tmp_path / "record.json").exists()


@pytest.mark.slow
def test_scaling_is_measured_and_plotted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(backbone, "GROWTH_SIDES", (64, 128))
    monkeypatch.setattr(backbone, "GROWTH_IMAGES", (2,))
    plot = tmp_path / "growth.png"
    options = ["--against", "none", "--growth", str(plot)]
    record = benchmark_record(monkeypatch, tmp_path / "record.json", *options)
    points = [(point["side"], point["images"]) for point in record["growth"]]
    assert points == [(64, 1), (128, 1), (64, 2)]
    assert record["growth_ratios"]["gpvit"].keys() == {"gmacs", "seconds", "peak_mib"}
    assert cv2.imread(str(plot)).std() > 10


@pytest.mark.parametrize("size", ["L1", "L4"])
def test_limit_counts_the_published_number_of_flops(size: str) -> None:
    task = backbone.Task(size, (800, 1280), 1, "inference", "backbone", "float32", False)
    gmacs = backbone.gmacs(backbone.operations(task))
    expected = json.loads((official.FOLDER / "complexity.json").read_text())["backbone_gmacs"]
    assert gmacs == pytest.approx(expected[size.lower()]["800x1280"], rel=1e-3)


def test_operation_takes_the_longer_of_compute_and_memory_time() -> None:
    product = (10, 20, 30)
    rates = roofline.Rates({product}, "cpu", torch.float32)
    rates.copy, rates.products[product] = 100.0, {"linear": 50.0, "mm": 200.0}
    linear = roofline.Operation("linear", bytes=500, flops=2000, product=product)
    others = [
        roofline.Operation("conv2d", bytes=3000, flops=10),
        roofline.Operation("gelu", bytes=70),
    ]
    assert rates.seconds([linear, linear, *others]) == {"linear": 20, "conv2d": 30, "gelu": 0.7}


def test_evaluation_benchmark_agrees_with_pycocotools(capsys: pytest.CaptureFixture) -> None:
    coco_evaluation.compare(20)  # raises if the metrics differ
    lines = capsys.readouterr().out.splitlines()[2:]
    assert [line.split()[1] for line in lines] == ["bbox", "segm", "both"]


@pytest.mark.slow
def test_streaming_is_measured_in_processes_of_its_own(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, tmp_path: Path
) -> None:
    options = ["--sides", "64", "128", "--one-pass", "0.01", "--plot", tmp_path / "area.svg"]
    monkeypatch.setattr(sys, "argv", ["streaming.py", *map(str, options)])
    streaming.main()
    rows = capsys.readouterr().out.splitlines()[2:]  # a Markdown table
    cells = [list(map(str.strip, row.strip("|").split("|"))) for row in rows]
    assert [row[0] for row in cells] == ["0.0", "0.0"]
    assert float(cells[0][-1]) < 1e-5 and cells[1][-1] == ""
    assert all(int(row[4].split()[0]) > 0 for row in cells)
    assert "<svg" in (tmp_path / "area.svg").read_text()


@pytest.mark.slow
def test_ways_to_detect_objects_are_compared(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    synthetic_data: Path,
    tmp_path: Path,
) -> None:
    weights = tmp_path / "model.pth"
    write_detector(weights)
    options = ["--weights", str(weights), "--tile", "128"]
    monkeypatch.setattr(sys, "argv", ["large_images.py", *options, "--data", str(synthetic_data)])
    large_images.main()
    rows = capsys.readouterr().out.splitlines()[2:]
    assert [row.split("|")[1].strip() for row in rows] == list(large_images.WAYS)
    image = next((synthetic_data / "images").glob("val_*.png"))
    monkeypatch.setattr(sys, "argv", ["large_images.py", *options, "--image", str(image)])
    large_images.main()
    assert "objects in" in capsys.readouterr().out
