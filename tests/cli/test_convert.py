"""Checkpoints are converted to and from the layout of the published files."""

from pathlib import Path

import official
import pytest
import torch
from conftest import REPOSITORY
from detectors import write_detector
from detectron2.config import instantiate
from gpvit import checkpoint
from gpvit.checkpoint.published import COCO_CLASSES
from gpvit.cli import convert as command
from gpvit.config import inference_config, load_config
from gpvit.predictor import config_of
from gpvit.utils.errors import UserError


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained detector."""
    path = tmp_path_factory.mktemp("weights") / "model_final.pth"
    write_detector(path)
    return path


def convert(weights: Path, output: Path, *options: str) -> None:
    command.main(["--weights", str(weights), "--output", str(output), *options])


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_published_file_is_converted_and_back(
    capsys: pytest.CaptureFixture, tmp_path: Path, suffix: str
) -> None:
    theirs, ours, back = (
        tmp_path / "official.pth",
        tmp_path / "new" / f"ours{suffix}",
        tmp_path / "back.pth",
    )
    weights = official.weights("retinanet", "L1")
    torch.save({"meta": {"epoch": 12}, "state_dict": weights}, theirs)
    convert(theirs, ours)
    assert f"{ours}: published RetinaNet L1, 623 tensors, 80 class names" in capsys.readouterr().out
    file = checkpoint.read(str(ours))
    assert file.about["source"] == str(theirs) and file.classes == COCO_CLASSES
    assert file.config == inference_config(config_of(checkpoint.read(str(theirs))))
    convert(ours, back, "--to-published")
    content = checkpoint.read_content(str(back))
    assert (
        content["meta"]["CLASSES"] == tuple(COCO_CLASSES)
        and content["state_dict"].keys() == weights.keys()
    )
    assert all(torch.equal(content["state_dict"][key], weights[key]) for key in weights)


def test_the_backbone_of_a_converted_classifier_goes_into_a_detector(tmp_path: Path) -> None:
    weights = official.weights("classifier", "L1")
    torch.save({"meta": {}, "state_dict": weights}, tmp_path / "official.pth")
    convert(tmp_path / "official.pth", tmp_path / "ours.safetensors")
    model = instantiate(
        load_config(str(REPOSITORY / "configs" / "published" / "retinanet_gpvit_l1_1x.py")).model
    )
    checkpoint.load(model, str(tmp_path / "ours.safetensors"))
    assert torch.equal(model.backbone.bottom_up.net.pos_embed, weights["backbone.pos_embed"])


def test_conversion_refuses_what_it_cannot_do(weights: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.pth"
    with pytest.raises(
        UserError, match="only Mask R-CNN and RetinaNet with the adapter have a counterpart"
    ):
        convert(weights, out, "--to-published")
    with pytest.raises(UserError, match="name that ends in .pth"):
        convert(weights, tmp_path / "out.safetensors", "--to-published")
    with pytest.raises(UserError, match="cannot write .*below_a_file.pth: "):
        convert(weights, weights / "below_a_file.pth")
    out.write_text("precious")
    with pytest.raises(
        UserError, match=r"there is .*out.pth already; give another --output, or --overwrite"
    ):
        convert(weights, out)
    with pytest.raises(UserError, match="have a counterpart"):
        convert(weights, out, "--overwrite", "--to-published")
    assert out.read_text() == "precious"
    convert(weights, out, "--overwrite")
    assert checkpoint.read(str(out)).weights.keys() == checkpoint.read(str(weights)).weights.keys()
    assert [path.name for path in tmp_path.iterdir()] == ["out.pth"]
