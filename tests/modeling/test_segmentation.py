"""Segmentation heads: numerical equivalence to the official ones, losses, registration."""

import json

import official
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_sem_seg_head
from gpvit import SIZES, GPViT, checkpoint
from gpvit.modeling import SegFormerHead, SemanticSegmentor, UPerNetHead
from torch import Tensor

FEATURES = ("block2", "block5", "block8", "last_feat")
HEADS = {"segformer": SegFormerHead, "upernet": UPerNetHead}
LOSSES = {
    "segformer": {"loss_sem_seg": "decode_loss_ce"},
    "upernet": {"loss_sem_seg": "decode_loss_ce", "loss_auxiliary": "aux_loss_ce"},
}


def published(kind: str, size: str = "L1") -> SemanticSegmentor:
    """A complete model with the generated weights of the reference."""
    backbone = GPViT(**SIZES[size], out_features=FEATURES)
    head = HEADS[kind](in_channels=SIZES[size]["embed_dim"], num_classes=150, norm="BN")
    model = SemanticSegmentor(
        backbone=backbone, sem_seg_head=head, pixel_mean=[0.0] * 3, pixel_std=[1.0] * 3
    )
    weights = checkpoint.from_published(official.weights(kind, size), part="model")
    model.load_state_dict(weights)
    return model.eval()


@pytest.fixture(scope="module", params=HEADS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def model(kind: str) -> SemanticSegmentor:
    return published(kind)


@pytest.fixture(scope="module")
@torch.no_grad()
def arrays(kind: str, model: SemanticSegmentor) -> dict[str, Tensor]:
    """Outputs of the parts of the model, by their names in the reference file."""
    image, head = official.image(5, (1, 3, 128, 192)), model.sem_seg_head
    maps = [model.backbone(image)[name] for name in FEATURES]
    results = dict(zip(("feat2", "feat5", "feat8", "feat11"), maps))
    results["decode_logits"] = head.logits(maps)
    results["image_logits"] = model([{"image": image[0]}])[0]["sem_seg"][None]
    results["argmax"] = results["image_logits"].argmax(1)
    fixed = [official.feature(240 + i, (2, 216, 10, 14)) for i in range(4)]
    results["head_on_fixed_features"] = head.logits(fixed)
    if kind == "upernet":
        results["aux_logits"] = head.auxiliary_logits(maps)
    return results


def test_each_part_matches_official_implementation(kind: str, arrays: dict[str, Tensor]) -> None:
    reference = official.Reference(f"{kind}_l1")
    assert arrays.keys() == reference.manifest["arrays"].keys()
    for name, array in arrays.items():
        if name == "argmax":
            expected = torch.from_numpy(reference.arrays[name])
            assert (array == expected).float().mean() >= 0.995
        else:
            reference.check(name, array)


def test_losses_match_official_implementation(kind: str, model: SemanticSegmentor) -> None:
    manifest = json.loads((official.FOLDER / "manifest_segmentation.json").read_text())
    expected = manifest[f"{kind}_l1_losses.npz"]["losses"]
    labels = torch.from_numpy(official.arrays(f"{kind}_l1_losses")["labels"])[None].long()
    features = model.backbone(official.image(5, (1, 3, 128, 192)))
    maps = [features[name] for name in FEATURES]
    found = model.sem_seg_head.losses(maps, labels)
    assert found.keys() == LOSSES[kind].keys()
    for ours, theirs in LOSSES[kind].items():
        assert found[ours].item() == pytest.approx(expected[theirs], rel=1e-5)
    model.sem_seg_head.loss_average = "labeled"
    mean = model.sem_seg_head.losses(maps, labels)["loss_sem_seg"].item()
    model.sem_seg_head.loss_average = "all"
    usual = expected["plain_cross_entropy_over_labelled_pixels"]
    assert mean == pytest.approx(usual, rel=1e-5)


def test_class_weights_give_the_weighted_mean() -> None:
    torch.manual_seed(0)
    weights = [1, 2, 3]  # as a config may have them
    head = SegFormerHead(
        in_channels=8, num_classes=3, norm="BN", loss_average="labeled", class_weights=weights
    )
    logits, labels = torch.randn(2, 3, 4, 5), torch.randint(0, 3, (2, 4, 5))
    labels[0, 0] = 255
    expected = torch.nn.functional.cross_entropy(
        logits, labels, weight=torch.tensor(weights).float(), ignore_index=255
    )
    torch.testing.assert_close(head.cross_entropy(logits, labels), expected)
    assert head.cross_entropy(logits, torch.full_like(labels, 255)) == 0


@pytest.mark.parametrize("name", ["SegFormerHead", "UPerNetHead"])
def test_heads_are_built_from_yacs(name: str) -> None:
    cfg = get_cfg()
    cfg.MODEL.SEM_SEG_HEAD.NAME, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = name, 7
    cfg.MODEL.SEM_SEG_HEAD.IN_FEATURES, cfg.MODEL.SEM_SEG_HEAD.NORM = list(FEATURES), "BN"
    cfg.MODEL.SEM_SEG_HEAD.CONVS_DIM = 16
    shapes = dict.fromkeys(FEATURES, ShapeSpec(channels=8, stride=8))
    head = build_sem_seg_head(cfg, shapes).eval()
    logits, losses = head(dict.fromkeys(FEATURES, torch.randn(1, 8, 4, 6)))
    assert logits.shape == (1, 7, 32, 48) and losses == {}
