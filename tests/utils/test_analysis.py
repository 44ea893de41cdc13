"""Parameters and FLOPs match the published numbers, and parts are measured without overlap."""

import json

import official
import pytest
import torch
from conftest import REPOSITORY
from gpvit.config import load_config
from gpvit.utils import analysis, profiler
from gpvit.utils.errors import UserError


@pytest.mark.long
@pytest.mark.parametrize("size", ["l1", "l2", "l3", "l4"])
def test_parameters_and_flops_match_the_published_numbers(size: str) -> None:
    expected = json.loads((official.FOLDER / "complexity.json").read_text())
    cfg = load_config(str(REPOSITORY / "configs" / "published" / f"mask_rcnn_gpvit_{size}_1x.py"))
    model = analysis.build_on_meta(cfg.model)
    counts, published = analysis.parameters(model), expected["parameters"]["maskrcnn"][size]
    assert sum(counts.values()) == published["total"] and counts["rest"] == 0
    assert counts["backbone"] + counts["adapter"] == published["backbone"]
    assert (counts["pyramid"], counts["dense head"]) == (published["neck"], published["rpn_head"])
    assert counts["box head"] + counts["mask head"] == published["roi_head"]
    macs = {part: gflops / 2 for part, gflops in analysis.flops(model, 800, 1280).items()}
    assert macs["backbone"] == pytest.approx(expected["backbone_gmacs"][size]["800x1280"], rel=1e-3)
    detector = expected["maskrcnn_gmacs_800x1280"][size]
    # A bilinear sample counts as five multiply-accumulates there and as four here, one for each
    # cell that it reads: hence 0.8.
    with_adapter = detector["backbone_adapter"] + 0.8 * detector["deformable_sampling_by_hand"]
    assert macs["backbone"] + macs["adapter"] == pytest.approx(with_adapter, rel=1e-3)
    assert macs["pyramid"] == pytest.approx(detector["fpn"], rel=1e-3)
    assert macs["dense head"] == pytest.approx(detector["rpn"], rel=1e-3)
    assert macs["box head"] == pytest.approx(detector["box_head_1000_rois"], rel=1e-3)
    assert macs["mask head"] == pytest.approx(detector["mask_head_100_rois"], rel=1e-3)


def test_nested_meters_do_not_count_anything_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    # At the start of the outer and the inner meter and at the end of the inner and the outer one:
    # seconds, and MiB held now and at the peak since the previous reading.
    clock, memory = iter([0.0, 1.0, 3.0, 7.0]), iter([(5, 0), (6, 10), (6, 30), (5, 20)])
    monkeypatch.setattr(profiler.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(profiler, "memory_since_reset", lambda device: next(memory))
    model = torch.nn.Sequential(torch.nn.Identity())
    outer, inner = profiler.Meter(model, "cpu"), profiler.Meter(model[0], "cpu")
    model(torch.zeros(1))
    assert (outer.seconds, outer.own_seconds) == ([7], [5])
    assert (inner.seconds, inner.own_seconds) == ([2], [2])
    assert (outer.peaks, outer.own_peaks) == ([25], [15])
    assert (inner.peaks, inner.own_peaks) == ([24], [25])


@pytest.mark.parametrize(
    ("name", "backbone"), [("resnet", "bottom_up"), ("swin", "bottom_up"), ("vit", "net")]
)
def test_backbone_of_detectron2_is_a_part_of_its_own(name: str, backbone: str) -> None:
    cfg = load_config(str(REPOSITORY / "configs" / "ablation" / f"{name}.py"))
    model = analysis.build_on_meta(cfg.model)
    counts, gflops = analysis.parameters(model), analysis.flops(model, 128, 192)
    expected = sum(weight.numel() for weight in getattr(model.backbone, backbone).parameters())
    assert counts["backbone"] == expected
    assert sum(counts.values()) == sum(weight.numel() for weight in model.parameters())
    assert gflops["backbone"] > gflops["pyramid"] > 0 and gflops["adapter"] == 0


def test_model_without_backbone_is_rejected() -> None:
    with pytest.raises(UserError, match="Linear has no backbone; use a model from configs/"):
        analysis.parameters(torch.nn.Linear(1, 1))
