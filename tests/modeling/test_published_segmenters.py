"""Published segmentation models: files, names, and the pipeline from an image to classes."""

import json
from pathlib import Path

import numpy as np
import official
import pytest
import torch
from conftest import REPOSITORY
from detectron2.config import instantiate
from gpvit import SIZES, GPViT, Predictor, checkpoint
from gpvit.checkpoint.published import to_published
from gpvit.config import load_config
from gpvit.model_zoo import ADE20K_CLASSES
from gpvit.utils.analysis import count
from gpvit.utils.errors import UserError
from PIL import Image
from torch import nn

MANIFEST = json.loads((official.FOLDER / "manifest_segmentation.json").read_text())
KINDS = ("segformer", "upernet")


def config_path(kind: str, size: str) -> str:
    return str(REPOSITORY / f"configs/published/{kind}_gpvit_{size.lower()}.py")


def build(kind: str, size: str, *overrides: str) -> nn.Module:
    return instantiate(load_config(config_path(kind, size), list(overrides)).model)


@pytest.fixture(scope="module")
def segformer(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The path of a stand-in for the published SegFormer L1."""
    return official.save(tmp_path_factory.mktemp("weights") / "l1.pth", "segformer", "L1")


@pytest.fixture(scope="module")
def upernet(tmp_path_factory: pytest.TempPathFactory) -> str:
    return official.save(tmp_path_factory.mktemp("weights") / "l1.pth", "upernet", "L1")


@pytest.fixture(scope="module")
def predictor(segformer: str) -> Predictor:
    return Predictor.from_checkpoint(segformer, device="cpu")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", SIZES)
def test_names_and_shapes_cover_the_model_in_both_directions(kind: str, size: str) -> None:
    keys = official.keys(kind, size)
    with torch.device("meta"):
        model = build(kind, size)
        theirs = {key: torch.empty(shape) for key, shape in keys.items()}
    ours = checkpoint.from_published(theirs, part="model")
    expected = model.state_dict()
    assert {key: value.shape for key, value in ours.items()} == {
        key: value.shape for key, value in expected.items()
    }
    back = to_published(expected, None)["state_dict"]
    assert {key: list(value.shape) for key, value in back.items()} == keys


def test_predictor_has_the_classes_of_ade20k(predictor: Predictor) -> None:
    assert predictor.classes == ADE20K_CLASSES and len(predictor.classes) == 150
    assert predictor.classes[0] == "wall" and all(
        name == name.strip() for name in predictor.classes
    )


def image_of(seed: int, height: int, width: int) -> np.ndarray:
    """The RGB image of a reference pipeline."""
    normalized = official.image(seed, (1, 3, height, width))[0].permute(1, 2, 0).numpy()
    return np.clip(np.rint(normalized * 50 + 128), 0, 255).astype(np.uint8)


@pytest.mark.parametrize(
    ("name", "image"),
    [
        ("segformer_l1_pipeline", (83, 211, 333)),
        ("segformer_l1_pipeline_wide", (84, 140, 700)),
    ],
)
def test_pipeline_from_file_to_classes_is_the_official_one(
    predictor: Predictor, tmp_path: Path, name: str, image: tuple[int, int, int]
) -> None:
    path = tmp_path / "x.png"
    Image.fromarray(image_of(*image)).save(path)
    arrays, manifest = official.arrays(name), MANIFEST[f"{name}.npz"]
    resized = predictor.resize(image_of(*image)).float()
    network_input = (resized - predictor.model.pixel_mean) / predictor.model.pixel_std
    check(network_input[None], arrays, manifest, "network_input")
    logits = predictor(str(path))
    check(logits[None], arrays, manifest, "logits_at_original_size")
    agreement = (logits.argmax(0).numpy() == arrays["argmax"]).mean()
    assert agreement >= 0.995, agreement


def test_large_image_is_shrunk_as_officially(predictor: Predictor) -> None:
    arrays, manifest = official.arrays("test_input_shrunk"), MANIFEST["test_input_shrunk.npz"]
    resized = predictor.resize(image_of(82, 1100, 700)).float()
    network_input = (resized - predictor.model.pixel_mean) / predictor.model.pixel_std
    check(network_input[None], arrays, manifest, "network_input")


def check(actual: torch.Tensor, arrays: dict, manifest: dict, name: str) -> None:
    """Compare the strided subset of an array and its means by channel."""
    entry = manifest[name]
    assert list(actual.shape) == entry["shape"]
    subset = actual[tuple(slice(None, None, step) for step in entry["stride"])]
    pairs = {f"{name}__sub": subset, f"{name}__cmean": actual.double().mean((2, 3))}
    for key, ours in pairs.items():
        if key in arrays:
            expected = torch.from_numpy(arrays[key]).double()
            distance = ((ours.double() - expected).norm() / expected.norm()).item()
            assert distance <= 1e-5, (key, distance)


def test_segmentation_file_gives_a_detector_its_backbone(segformer: str) -> None:
    cfg = load_config(str(REPOSITORY / "configs/mask_rcnn_gpvit_l1.py"))
    detector = instantiate(cfg.model)
    checkpoint.load(detector, segformer)
    expected = checkpoint.from_published(official.weights("segformer", "L1"))
    for key, tensor in detector.backbone.net.state_dict().items():
        assert torch.equal(tensor, expected[key]), key
    backbone = GPViT(**SIZES["L1"])
    checkpoint.load(backbone, segformer)
    assert torch.equal(backbone.pos_embed, expected["pos_embed"])


def test_file_without_auxiliary_head_is_loaded(
    upernet: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    content = torch.load(upernet, weights_only=True)
    content["state_dict"] = {
        key: tensor
        for key, tensor in content["state_dict"].items()
        if not key.startswith("auxiliary_head.")
    }
    torch.save(content, tmp_path / "without.pth")
    model = build("upernet", "L1")
    with caplog.at_level("INFO"):
        checkpoint.load(model, str(tmp_path / "without.pth"), ADE20K_CLASSES)
    assert "of the auxiliary head, which inference does not need" in caplog.text
    small = build("upernet", "L1", "model.sem_seg_head.auxiliary_weight=0")
    checkpoint.load(small, upernet, ADE20K_CLASSES)
    assert torch.equal(small.sem_seg_head.predictor.bias, model.sem_seg_head.predictor.bias)


def test_other_classes_initialize_the_last_layer_randomly(
    segformer: str, caplog: pytest.LogCaptureFixture
) -> None:
    model = build("segformer", "L1", "model.sem_seg_head.num_classes=3")
    with caplog.at_level("INFO"):
        checkpoint.load(model, segformer, ["cat", "dog", "sky"])
    assert "2 that depend on the classes" in caplog.text
    expected = official.weights("segformer", "L1")["decode_head.fusion_conv.conv.weight"]
    assert torch.equal(model.sem_seg_head.fusion.weight, expected)


def test_imagenet_file_initializes_the_backbone(tmp_path: Path) -> None:
    path = official.save(tmp_path / "classifier.pth", "classifier", "L1")
    model = build("segformer", "L1")
    checkpoint.load(model, path)
    weights = official.weights("classifier", "L1")
    norms = model.backbone.out_norms
    assert torch.equal(norms["last_feat"].weight, weights["backbone.ln1.weight"])
    for name in ("block2", "block5", "block8"):  # not in the file
        assert (norms[name].weight == 1).all() and (norms[name].bias == 0).all()


def test_segformer_file_does_not_fit_upernet(segformer: str) -> None:
    with pytest.raises(UserError, match="use the config that matches the file"):
        checkpoint.load(build("upernet", "L1"), segformer)


# Parameters in millions, of these the auxiliary head, and GMACs at 512x512 of backbone and head, as
# counted with the official implementation.
COSTS = {
    ("segformer", "L1"): (9.85, 0, 32.4, 2.1),
    ("segformer", "L2"): (24.35, 0, 82.1, 2.7),
    ("segformer", "L3"): (36.97, 0, 123.2, 3.0),
    ("segformer", "L4"): (75.81, 0, 251.9, 3.8),
    ("upernet", "L1"): (37.67, 0.54, 32.4, 112.1),
    ("upernet", "L2"): (53.43, 0.84, 82.1, 115.4),
    ("upernet", "L3"): (66.84, 1.03, 123.2, 117.5),
    ("upernet", "L4"): (107.49, 1.48, 251.9, 122.3),
}


@pytest.mark.parametrize(("kind", "size"), COSTS)
def test_costs_are_those_of_the_official_models(kind: str, size: str) -> None:
    with torch.device("meta"):
        model = build(kind, size).eval()
    head = model.sem_seg_head
    auxiliary = [p for name, p in head.named_parameters() if name.startswith("auxiliary_")]
    image = torch.empty(1, 3, 512, 512, device="meta")
    with torch.no_grad():
        backbone_gflops = count(model.backbone, image)
        maps = [model.backbone(image)[name] for name in head.in_features]
        head_gflops = count(head.logits, maps)
    found = (
        sum(p.numel() for p in model.parameters()) / 1e6,
        sum(p.numel() for p in auxiliary) / 1e6,
        backbone_gflops / 2,
        head_gflops / 2,
    )
    for value, expected, tolerance in zip(found, COSTS[kind, size], (0.006, 0.006, 0.06, 0.06)):
        assert value == pytest.approx(expected, abs=tolerance)
