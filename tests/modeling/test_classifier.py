"""ImageClassifier: the published classifiers, mixup and CutMix, and linear probing."""

from pathlib import Path
from typing import Any

import gpvit
import numpy as np
import official
import pytest
import torch
from conftest import REPOSITORY
from detectron2.config import get_cfg, instantiate
from detectron2.modeling import META_ARCH_REGISTRY, build_model
from gpvit import SIZES, GPViT, Predictor, checkpoint, model_zoo
from gpvit.checkpoint.published import to_published
from gpvit.config import load_config
from gpvit.model_zoo import IMAGENET_CLASSES
from gpvit.modeling import ImageClassifier, classifier
from gpvit.modeling.classifier import cutmix_box, mix
from gpvit.utils.errors import UserError
from PIL import Image
from timm.data import ImageNetInfo
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

ALL_SIZES = pytest.mark.parametrize("size", SIZES)
TINY = ["model.backbone.embed_dim=24", "model.backbone.group_tokens=[0,4]"]


def build(size: str, *overrides: str) -> ImageClassifier:
    config = REPOSITORY / f"configs/published/classifier_gpvit_{size.lower()}.py"
    return instantiate(load_config(str(config), list(overrides)).model)


def tiny(*overrides: str) -> ImageClassifier:
    torch.manual_seed(0)
    return build("L1", *TINY, "model.num_classes=5", *overrides)


@pytest.fixture(scope="module")
def l1(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The path of a stand-in for the published classifier L1."""
    return official.save(tmp_path_factory.mktemp("weights") / "l1.pth", "classifier", "L1")


# Published classifiers


@ALL_SIZES
def test_outputs_are_the_official_ones(size: str) -> None:
    model = build(size).eval()
    weights = checkpoint.from_published(official.weights("classifier", size), part="model")
    checkpoint.load_strictly(model, weights, size)
    reference = official.Reference("classifier")
    with torch.no_grad():
        features = model.backbone(official.image(0, (1, 3, 224, 224)))["last_feat"]
        reference.check(f"{size.lower()}_neck", model.neck(features))
        reference.check(f"{size.lower()}_logits", model.head(model.neck(features)))


@pytest.mark.parametrize(
    ("name", "seed", "height", "width"),
    [("classifier_l1_pipeline", 85, 211, 333), ("classifier_l1_pipeline_tall", 86, 500, 375)],
)
def test_pipeline_from_file_to_scores_is_the_official_one(
    l1: str, tmp_path: Path, name: str, seed: int, height: int, width: int
) -> None:
    normalized = official.image(seed, (1, 3, height, width))[0].permute(1, 2, 0).numpy()
    image = np.clip(np.rint(normalized * 50 + 128), 0, 255).astype(np.uint8)
    Image.fromarray(image).save(tmp_path / "x.png")
    predictor = Predictor.from_checkpoint(l1, device="cpu")
    model: Any = predictor.model
    arrays = official.arrays(name)
    network_input = (predictor.resize(image) - model.pixel_mean) / model.pixel_std
    pairs = {
        "network_input__sub": network_input[None, :, ::5, ::5],
        "network_input__cmean": network_input.double().mean((1, 2))[None],
    }
    logits = torch.from_numpy(arrays["logits"])
    scores = predictor(str(tmp_path / "x.png"))
    assert isinstance(scores, Tensor)
    pairs["scores"] = scores[None]
    arrays["scores"] = logits.softmax(-1).numpy()
    for key, ours in pairs.items():
        expected = torch.from_numpy(arrays[key]).double()
        distance = ((ours.double() - expected).norm() / expected.norm()).item()
        official.deviations[f"{name} {key}"] = distance
        assert distance <= 1e-5, (key, distance)
    assert predictor.classes == IMAGENET_CLASSES


@ALL_SIZES
def test_names_and_shapes_cover_the_model_in_both_directions(size: str) -> None:
    keys = official.keys("classifier", size)
    with torch.device("meta"):
        expected = build(size).state_dict()
        theirs = {key: torch.empty(shape) for key, shape in keys.items()}
    ours = checkpoint.from_published(theirs, part="model")
    assert {key: value.shape for key, value in ours.items()} == {
        key: value.shape for key, value in expected.items()
    }
    back = to_published(expected, None)["state_dict"]
    assert {key: list(value.shape) for key, value in back.items()} == keys


def test_other_pooling_than_published_is_not_written_as_official() -> None:
    with torch.device("meta"):
        weights = build("L1", "model.pooling=mean").state_dict()
    with pytest.raises(ValueError, match="a published classifier of its size has no mean pooling"):
        to_published(weights, None)


# Millions of parameters as counted with the official implementation: complete, and the backbone.
PARAMETERS = {"L1": (9.59, 9.33), "L2": (24.16, 23.69), "L3": (36.65, 36.22), "L4": (75.48, 74.86)}


@ALL_SIZES
def test_parameters_are_those_of_the_official_models(size: str) -> None:
    with torch.device("meta"):
        model = build(size)
    counts = []
    for part in (model, model.backbone):
        counts.append(sum(parameter.numel() for parameter in part.parameters()) / 1e6)
    assert counts == pytest.approx(PARAMETERS[size], abs=0.006)


def test_class_names_are_unique_and_in_the_order_of_wordnet_ids() -> None:
    info = ImageNetInfo()
    ids, descriptions = info.label_names(), info.label_descriptions()
    assert len(set(IMAGENET_CLASSES)) == 1000 and ids == sorted(ids)
    for name, description in zip(IMAGENET_CLASSES, descriptions):
        assert name.lower().split()[0] in description.lower()
    assert {index: ids[index] for index in model_zoo.WORDNET_IDS} == model_zoo.WORDNET_IDS


def test_repeated_class_names_get_their_wordnet_id() -> None:
    names = list(IMAGENET_CLASSES)
    names[134] = names[517] = "crane"  # as in older versions of torchvision
    unique = model_zoo.unique_names(names)
    assert (unique[134], unique[517]) == ("crane (n02012849)", "crane (n03126707)")
    assert unique[0] == "tench" and len(set(unique)) == 1000


def test_other_classes_initialize_the_head_randomly(
    l1: str, caplog: pytest.LogCaptureFixture
) -> None:
    model = build("L1", "model.num_classes=3")
    head = model.head.weight.clone()
    with caplog.at_level("INFO"):
        checkpoint.load(model, l1, ["cat", "dog", "sky"])
    assert "randomly initialized: 2 that depend on the classes" in caplog.text
    assert torch.equal(model.head.weight, head)
    assert torch.equal(model.neck.query, official.weights("classifier", "L1")["neck.group_token"])


def test_file_with_other_pooling_does_not_fit(l1: str) -> None:
    message = "is an image classifier with attention pooling .* is an image classifier with mean"
    with pytest.raises(UserError, match=message):
        checkpoint.load(build("L1", "model.pooling=mean"), l1)


def test_classifier_gives_other_models_its_backbone(
    l1: str, caplog: pytest.LogCaptureFixture
) -> None:
    expected = checkpoint.from_published(official.weights("classifier", "L1"))
    detector = instantiate(load_config(str(REPOSITORY / "configs/mask_rcnn_gpvit_l1.py")).model)
    with caplog.at_level("INFO"):
        checkpoint.load(detector, l1)
    assert "dropped: 6 outside the backbone" in caplog.text
    backbone = GPViT(**SIZES["L1"])
    checkpoint.load(backbone, l1)
    for net in (detector.backbone.net, backbone):
        for key, tensor in net.state_dict().items():
            assert torch.equal(tensor, expected[key]), key


def test_initial_values_are_the_official_ones() -> None:
    model = build("L1")
    assert (model.neck.query == 0).all()
    assert model.neck.key.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert model.head.weight.std().item() == pytest.approx(0.01, rel=0.02)
    assert (model.head.bias == 0).all()


# Training


def batch_of(sides: list[tuple[int, int]]) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(0)
    batch = []
    for label, (height, width) in enumerate(sides):
        image = torch.randint(0, 256, (3, height, width), generator=generator, dtype=torch.uint8)
        batch.append({"image": image, "label": label})
    return batch


def test_registered_model_is_built_from_yacs_trains_and_infers() -> None:
    assert META_ARCH_REGISTRY.get("ImageClassifier") is ImageClassifier
    cfg = get_cfg()
    gpvit.add_gpvit_config(cfg)
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.META_ARCHITECTURE = "ImageClassifier"
    cfg.MODEL.BACKBONE.NAME = "build_gpvit_backbone"
    cfg.MODEL.GPVIT.NORM = "BN"
    cfg.MODEL.CLASSIFIER.LABEL_SMOOTHING = 0.1
    model = build_model(cfg)
    expected = build("L1").state_dict()
    assert {key: value.shape for key, value in model.state_dict().items()} == {
        key: value.shape for key, value in expected.items()
    }
    assert (model.label_smoothing, model.mixup, model.cutmix) == (0.1, 0, 0)
    batch = batch_of([(64, 64), (64, 64)])
    losses = model.train()(batch)
    assert losses.keys() == {"loss_cls"}
    losses["loss_cls"].backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
    with torch.no_grad():
        outputs = model.eval()(batch)
    for output in outputs:
        assert output["scores"].shape == (1000,)
        assert output["scores"].sum().item() == pytest.approx(1, abs=1e-5)


def test_loss_is_the_mean_cross_entropy_of_smoothed_labels() -> None:
    model = tiny("model.mixup=0", "model.cutmix=0", "model.backbone.drop_path_rate=0")
    model.eval()
    batch = batch_of([(64, 64)] * 3)
    logits = model.logits(model.preprocess_image(batch).tensor)
    model.training = True  # the losses, with the statistics of evaluation
    loss = model(batch)["loss_cls"]
    targets = torch.full((3, 5), 0.1 / 5)
    targets[torch.arange(3), torch.arange(3)] += 0.9
    expected = -(targets * logits.log_softmax(-1)).sum(1).mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)


def test_mean_pooling_is_the_mean_over_the_map() -> None:
    model = tiny("model.pooling=mean").eval()
    maps = torch.randn(2, 24, 6, 4)
    assert torch.allclose(model.neck(maps), maps.flatten(2).mean(2), atol=1e-6)
    assert not list(model.neck.parameters())


def test_unknown_pooling_raises() -> None:
    with pytest.raises(ValueError, match="pooling must be one of attention, mean, got max"):
        ImageClassifier(
            backbone=GPViT(embed_dim=24, group_tokens=[0]),
            num_classes=2,
            pooling="max",
            pixel_mean=[0.0] * 3,
            pixel_std=[1.0] * 3,
        )


# Mixup and CutMix


def mixed_constants(seed: int, mixup: float, cutmix: float) -> tuple[Tensor, Tensor, Tensor]:
    """Mix a batch of which image i has the color i and the class i.

    Returns:
        The images; for each image, its own pixels' fraction by the targets; and the partners.
    """
    torch.manual_seed(seed)
    images = torch.arange(4.0)[:, None, None, None].expand(4, 3, 16, 24).clone()
    mixed, targets = mix(images, torch.eye(4), mixup, cutmix)
    assert torch.equal(images[:, 0, 0, 0], torch.arange(4.0))  # not modified
    assert torch.allclose(targets.sum(1), torch.ones(4))
    assert torch.allclose(targets.sum(0), torch.ones(4))  # each image is a partner once
    return mixed, targets.diagonal(), targets


def test_each_batch_gets_one_of_mixup_and_cutmix_with_equal_probability() -> None:
    counts = {"mixup": 0, "CutMix": 0}
    for seed in range(1000):
        mixed, _, targets = mixed_constants(seed, 0.8, 1.0)
        # The mean color follows from the targets: mixup averages, CutMix replaces that area.
        means = mixed.mean((1, 2, 3))
        assert torch.allclose(means, targets @ torch.arange(4.0), atol=1e-4)
        is_cut = (mixed == mixed.round()).all().item()
        is_flat = (mixed.amax((1, 2, 3)) - mixed.amin((1, 2, 3)) < 1e-6).all().item()
        if is_flat and not is_cut:
            counts["mixup"] += 1
        elif is_cut and not is_flat:
            counts["CutMix"] += 1
    # The others are partners of themselves, or have an empty box.
    assert 0.45 < counts["mixup"] / sum(counts.values()) < 0.55
    assert sum(counts.values()) > 900


@pytest.mark.parametrize("alpha", [0.2, 0.8, 1.0])
@pytest.mark.parametrize("kind", ["mixup", "CutMix"])
def test_fraction_has_a_beta_distribution(
    kind: str, alpha: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    fractions = []

    def record(height: int, width: int, fraction: float) -> tuple[int, int, int, int]:
        fractions.append(fraction)
        return cutmix_box(height, width, fraction)

    monkeypatch.setattr(classifier, "cutmix_box", record)
    for seed in range(1000):
        mixup, cutmix = (alpha, 0.0) if kind == "mixup" else (0.0, alpha)
        _, own, _ = mixed_constants(seed, mixup, cutmix)
        others = own[own < 1 - 1e-6]  # of images with another partner
        if kind == "mixup" and len(others):
            fractions.append(others[0].item())
    values = np.array(fractions)
    assert len(values) > 900
    # The mean is 1/2, and the variance 1 / (4 (2 alpha + 1)).
    assert values.mean() == pytest.approx(0.5, abs=0.04)
    assert values.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.12)


def test_partners_are_random_permutations() -> None:
    partners = set()
    for seed in range(300):
        _, _, targets = mixed_constants(seed, 0.8, 0.0)
        off_diagonal = targets - targets.diagonal().diag()
        fractions, found = off_diagonal.max(1)
        is_alone = fractions < 1e-6
        partners.add(tuple(torch.where(is_alone, torch.arange(4), found).tolist()))
    assert len(partners) == 24  # all permutations


def test_box_of_cutmix_is_clipped_and_covers_the_rest() -> None:
    torch.manual_seed(0)
    areas, centers = [], []
    for _ in range(2000):
        top, bottom, left, right = cutmix_box(40, 60, 0.75)
        assert 0 <= top <= bottom <= 40 and 0 <= left <= right <= 60
        if top > 0 and bottom < 40 and left > 0 and right < 60:
            areas.append((bottom - top) * (right - left) / (40 * 60))
        centers.append(((top + bottom) / 80, (left + right) / 120))
    assert np.allclose(areas, 0.25, atol=0.01)  # half of each side
    assert np.abs(np.mean(centers, axis=0) - 0.5).max() < 0.02


def test_mixing_repeats_with_the_seed() -> None:
    model = tiny("model.backbone.drop_path_rate=0")
    batch = batch_of([(64, 64)] * 4)
    losses = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        losses.append(model.train()(batch)["loss_cls"].item())
    assert losses[0] == losses[1] != losses[2]


# Linear probing


def test_linear_probing_changes_nothing_but_the_head() -> None:
    model = tiny("model.linear_probing=True", "model.mixup=0", "model.cutmix=0").train()
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert trained == ["head.weight", "head.bias"]
    for module in model.backbone.modules():
        if isinstance(module, StochasticDepth | nn.BatchNorm2d):
            assert not module.training
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    model(batch_of([(64, 64)] * 4))["loss_cls"].backward()
    optimizer.step()
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[key]) == (not key.startswith("head.")), key
