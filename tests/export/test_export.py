"""Exported detectors find what the detector itself finds, at every size, without this project."""

import json
import re
import subprocess
import sys
from pathlib import Path

import gpvit
import onnx
import pytest
import torch
from conftest import REPOSITORY, TINY
from detectron2.config import instantiate
from gpvit import checkpoint
from gpvit.cli import export as cli
from gpvit.config import load_config
from gpvit.data.image_io import read_image
from gpvit.export import graph as export
from gpvit.export import verify
from gpvit.modeling.deformable_attention import sample, sample_by_grid
from gpvit.utils.errors import UserError
from torch import nn

CLASSES = ["disc", "ring", "star"]
SMALL = ["norm=BN", "embed_dim=24", "group_tokens=[0,4]"]
MODELS = {
    "quickstart.py": [override for override in TINY if override.startswith("model")]
    + ["model.roi_heads.num_classes=3"],
    "cascade_mask_rcnn_gpvit_l1.py": [f"model.backbone.net.{override}" for override in SMALL]
    + ["model.roi_heads.num_classes=3", "model.proposal_generator.post_nms_topk=[20,20]"],
    "published/retinanet_gpvit_l1_1x.py": [
        f"model.backbone.bottom_up.net.{override}" for override in SMALL
    ]
    + ["model.num_classes=3", "model.backbone.bottom_up.num_interactions=1"],
}


def tiny_model(name: str) -> nn.Module:
    """Random weights that differ enough for scores to be far apart, and thresholds that let something pass."""
    torch.manual_seed(0)
    model = instantiate(load_config(str(REPOSITORY / "configs" / name), MODELS[name]).model).eval()
    if hasattr(model, "roi_heads"):
        predictors = model.roi_heads.box_predictor
        for predictor in predictors if isinstance(predictors, nn.ModuleList) else [predictors]:
            nn.init.normal_(predictor.cls_score.weight, std=0.5)
            nn.init.normal_(predictor.bbox_pred.weight, std=0.1)
        nn.init.normal_(model.roi_heads.mask_head.predictor.weight, std=0.5)
    else:
        nn.init.normal_(model.head.cls_score.weight, std=0.5)
    return model


def image(height: int, width: int) -> torch.Tensor:
    return torch.randint(
        0,
        256,
        (3, height, width),
        dtype=torch.uint8,
        generator=torch.Generator().manual_seed(height),
    )


def export_it(weights: Path, pictures: Path, output: Path, *overrides: str) -> None:
    command = [
        "--config-file",
        str(REPOSITORY / "configs" / "quickstart.py"),
        "--weights",
        str(weights),
    ]
    command += [
        "--input",
        str(pictures),
        "--output",
        str(output),
        *MODELS["quickstart.py"],
        "dataloader.short_side=96",
    ]
    cli.main([*command, *overrides])


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "model.pth"
    checkpoint.save(
        {"model": tiny_model("quickstart.py").state_dict(), "classes": CLASSES}, str(path)
    )
    return path


@pytest.fixture(scope="module")
def pictures(synthetic_data: Path) -> Path:
    return synthetic_data / "images" / "val_*.png"


@pytest.fixture(scope="module")
def pt2_file(weights: Path, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("exported") / "model.pt2"
    export_it(weights, pictures, path)
    return path


def test_onnx_runtime_finds_what_the_detector_finds_at_every_size(
    capsys: pytest.CaptureFixture, weights: Path, pictures: Path, tmp_path: Path
) -> None:
    output = tmp_path / "new" / "model.onnx"
    export_it(weights, pictures, output)
    report = capsys.readouterr().out
    expected = r".*model.onnx: on 4 pictures 100.0% of .* difference \d\.\de-0\d .* takes \d+\.\d\d of .*\n"
    assert re.fullmatch(expected, report)
    assert [path.name for path in output.parent.iterdir()] == ["model.onnx"]
    onnx.checker.check_model(output)
    properties = {prop.key: json.loads(prop.value) for prop in onnx.load(output).metadata_props}
    assert properties == {
        "classes": CLASSES,
        "smallest_side": 65,
        "short_side": 96,
        "max_size": 320,
    }
    run, model = verify.load(output), tiny_model("quickstart.py")
    # The smallest, those of the stored position embedding, others; none but one a multiple of the stride.
    for size in ((65, 65), (192, 192), (97, 300), (331, 190)):
        found = verify.differences(
            with_masks := verify.eager(model, image(*size)), run(image(*size))
        )
        assert len(with_masks["scores"]) > 3 and with_masks["masks"].shape[1:] == (28, 28)
        assert found.max() < 1e-3, size


@pytest.mark.parametrize("name", MODELS)
def test_the_graph_finds_what_the_detector_finds_at_every_size(name: str, pt2_file: Path) -> None:
    model = tiny_model(name)
    run = verify.load(pt2_file) if name == "quickstart.py" else export.export(model).module()
    smallest = export.smallest_side(model)
    for size in ((smallest, smallest), (192, 192), (224, 224), (161, 250)):
        expected = verify.eager(model, image(*size))
        found = verify.differences(expected, run(image(*size)))
        assert len(expected["scores"]) > 3 and ("masks" in expected) == ("retinanet" not in name)
        assert found.max() < 1e-3, size


def test_where_nothing_is_detected_the_graph_gives_nothing() -> None:
    model = tiny_model("quickstart.py")
    model.roi_heads.box_predictor.test_score_thresh = 1.0
    outputs = export.export(model).module()(image(96, 128))
    assert {name: tuple(x.shape) for name, x in outputs.items()} == {
        "boxes": (0, 4), "scores": (0,), "classes": (0,), "masks": (0, 28, 28)
    }  # fmt: skip


def test_a_pt2_file_runs_without_this_project(pt2_file: Path, tmp_path: Path) -> None:
    torch.save(image(120, 150), tmp_path / "image.pth")
    code = """
import json, sys, torch, torchvision
extra = {"metadata.json": ""}
run = torch.export.load(sys.argv[1], extra_files=extra).module()
torch.save((run(torch.load("image.pth")), json.loads(extra["metadata.json"])), "found.pth")
assert not {"gpvit", "detectron2"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code, pt2_file], check=True, cwd=tmp_path)
    found, metadata = torch.load(tmp_path / "found.pth")
    assert metadata["classes"] == CLASSES
    assert (
        verify.differences(verify.eager(tiny_model("quickstart.py"), image(120, 150)), found).max()
        < 1e-3
    )


def test_real_pictures_are_found_the_same(real_data: Path, weights: Path, pt2_file: Path) -> None:
    overrides = [*MODELS["quickstart.py"], "dataloader.short_side=160"]
    cfg = load_config(str(REPOSITORY / "configs" / "quickstart.py"), overrides)
    predictor = gpvit.Predictor(cfg, str(weights), "cpu")
    paths = sorted((real_data / "fruits_nuts" / "images").iterdir())
    report = verify.check(
        predictor.model,
        verify.load(pt2_file),
        [predictor.resize(read_image(path)) for path in paths],
    )
    assert report.startswith("on 18 pictures 100.0% of the detections")


def test_a_file_that_finds_something_else_is_not_left(
    monkeypatch: pytest.MonkeyPatch, weights: Path, pictures: Path, tmp_path: Path
) -> None:
    model = tiny_model("quickstart.py")

    def half_a_pixel_off(image: torch.Tensor) -> dict[str, torch.Tensor]:
        found = verify.eager(model, image)
        return found | {"boxes": found["boxes"] + 0.5}

    monkeypatch.setattr(cli, "write", lambda predictor, path, metadata: path.write_text("wrong"))
    monkeypatch.setattr(cli, "load", lambda path: half_a_pixel_off)
    for before in ([], ["--overwrite"]):
        with pytest.raises(
            UserError, match="^not exported: 100.0% of the detections are not PyTorch's"
        ):
            export_it(weights, pictures, tmp_path / "model.onnx", *before)
        assert not before or (tmp_path / "model.onnx").read_text() == "precious"
        assert len(list(tmp_path.iterdir())) == len(before)
        (tmp_path / "model.onnx").write_text("precious")
    (tmp_path / "model.onnx").unlink()
    never = "model.roi_heads.box_predictor.test_score_thresh=1.0"
    model.roi_heads.box_predictor.test_score_thresh = 1.0
    with pytest.raises(UserError, match="nothing is detected on any picture"):
        export_it(weights, pictures, tmp_path / "model.onnx", never)


def test_what_cannot_be_exported_is_said_before_anything_is_done(
    weights: Path, pictures: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="name must end in .onnx or .pt2"):
        export_it(weights, pictures, tmp_path / "model.pth")
    with pytest.raises(UserError, match="is resized to 48 x 48, and 65 x 65 is the smallest"):
        export_it(weights, pictures, tmp_path / "model.onnx", "dataloader.short_side=48")
    (tmp_path / "model.onnx").write_text("precious")
    with pytest.raises(
        UserError, match="there is .*model.onnx already; give another --output, or --overwrite"
    ):
        export_it(weights, pictures, tmp_path / "model.onnx")
    assert (tmp_path / "model.onnx").read_text() == "precious"
    model = tiny_model("quickstart.py")
    model.backbone._square_pad = 128
    with pytest.raises(UserError, match="square_pad cannot be exported"):
        export.export(model)
    with pytest.raises(UserError, match="Module cannot be exported; Mask R-CNN, "):
        other = nn.Module()
        other.backbone = tiny_model("quickstart.py").backbone
        export.graph_of(other)


def test_detections_are_compared_whatever_their_order() -> None:
    model = tiny_model("quickstart.py")
    with torch.no_grad():
        ours = verify.eager(model, image(96, 128))
    reverse = {name: x.flip(0) for name, x in ours.items()}
    assert verify.differences(ours, reverse).max() == 0
    for name, change in (("boxes", 1.0), ("scores", 0.1), ("masks", 0.1)):
        changed = reverse | {name: reverse[name] + change}
        assert verify.differences(ours, changed).min() >= 0.05, name
    assert verify.differences(ours, reverse | {"classes": reverse["classes"] + 3}).isinf().all()
    fewer = {name: x[:-1] for name, x in ours.items()}
    assert (
        verify.differences(ours, fewer).max() > 0.01
        and verify.differences(fewer, ours).max() > 0.01
    )
    none = {name: x[:0] for name, x in ours.items()}
    assert verify.differences(ours, none).isinf().all() and len(
        verify.differences(ours, none)
    ) == len(ours["scores"])
    assert len(verify.differences(none, none)) == 0


def test_deformable_attention_is_the_same_by_grid_sampling() -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = [(6, 8), (3, 4)]
    value = torch.randn(2, 60, 3, 5, generator=generator)  # (B, M, heads, C / heads)
    # (B, L, heads, levels, points, 2), some outside of the image
    locations = torch.rand(2, 7, 3, 2, 4, 2, generator=generator) * 1.4 - 0.2
    weights = torch.rand(2, 7, 3, 2, 4, generator=generator)
    expected = sample(value, shapes, locations, weights)
    assert torch.allclose(sample_by_grid(value, shapes, locations, weights), expected, atol=1e-5)
