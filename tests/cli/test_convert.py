"""`gpvit convert` converts checkpoints from and to the official format."""

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
def test_official_checkpoint_survives_round_trip(
    capsys: pytest.CaptureFixture, tmp_path: Path, suffix: str
) -> None:
    official_file = tmp_path / "official.pth"
    converted_file = tmp_path / "new" / f"converted{suffix}"
    restored_file = tmp_path / "restored.pth"
    weights = official.weights("retinanet", "L1")
    torch.save({"meta": {"epoch": 12}, "state_dict": weights}, official_file)
    convert(official_file, converted_file)
    printed = capsys.readouterr().out
    assert f"{converted_file}: published RetinaNet L1, 623 tensors, 80 class names" in printed
    converted = checkpoint.read(str(converted_file))
    assert converted.about["source"] == str(official_file) and converted.classes == COCO_CLASSES
    assert converted.config == inference_config(config_of(checkpoint.read(str(official_file))))
    convert(converted_file, restored_file, "--to-published")
    content = checkpoint.read_content(str(restored_file))
    assert content["meta"]["CLASSES"] == tuple(COCO_CLASSES)
    assert content["state_dict"].keys() == weights.keys()
    for key, tensor in weights.items():
        assert torch.equal(content["state_dict"][key], tensor)


def test_backbone_of_converted_classifier_loads_into_detector(tmp_path: Path) -> None:
    weights = official.weights("classifier", "L1")
    torch.save({"meta": {}, "state_dict": weights}, tmp_path / "official.pth")
    convert(tmp_path / "official.pth", tmp_path / "converted.safetensors")
    config = REPOSITORY / "configs" / "published" / "retinanet_gpvit_l1_1x.py"
    model = instantiate(load_config(str(config)).model)
    checkpoint.load(model, str(tmp_path / "converted.safetensors"))
    assert torch.equal(model.backbone.bottom_up.net.pos_embed, weights["backbone.pos_embed"])


def test_invalid_conversion_raises_and_keeps_existing_files(weights: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.pth"
    with pytest.raises(
        UserError,
        match="only Mask R-CNN and RetinaNet with the adapter, the segmentation models",
    ):
        convert(weights, out, "--to-published")
    with pytest.raises(UserError, match="give an --output that ends in .pth"):
        convert(weights, tmp_path / "out.safetensors", "--to-published")
    with pytest.raises(UserError, match="cannot write .*below_a_file.pth: "):
        convert(weights, weights / "below_a_file.pth")
    out.write_text("precious")
    with pytest.raises(
        UserError, match=r"out.pth already exists; give another --output, or --overwrite"
    ):
        convert(weights, out)
    with pytest.raises(UserError, match="have a counterpart"):
        convert(weights, out, "--overwrite", "--to-published")
    assert out.read_text() == "precious"
    convert(weights, out, "--overwrite")
    assert checkpoint.read(str(out)).weights.keys() == checkpoint.read(str(weights)).weights.keys()
    assert [path.name for path in tmp_path.iterdir()] == ["out.pth"]
