"""Schedules and parameter groups are those of the official implementation."""

import json
from typing import Any

import official
import pytest
import torch
from gpvit import SIZES, GPViT
from gpvit.checkpoint import published
from gpvit.checkpoint.published import POOLING_OF_SIZES
from gpvit.modeling import ImageClassifier, SegFormerHead, SemanticSegmentor, UPerNetHead
from gpvit.solver import CosineSchedule, LinearSchedule, WarmupSchedule, parameter_groups
from torch import nn

RECIPES = {
    "segformer_l1": (
        SegFormerHead, published.SEGFORMER, dict(no_decay="norms_and_biases", head_lr_factor=10.0)
    ),
    "upernet_l1": (UPerNetHead, published.UPERNET, dict(no_decay="layer_norms")),
}  # fmt: skip


def reference(name: str) -> dict:
    return json.loads((official.FOLDER / name).read_text())


NORMALIZATION = dict(pixel_mean=[0.0] * 3, pixel_std=[1.0] * 3)


@pytest.mark.parametrize("name", RECIPES)
def test_rate_and_decay_of_segmentation_models_are_the_official_ones(name: str) -> None:
    head, names, options = RECIPES[name]
    with torch.device("meta"):
        model = SemanticSegmentor(
            backbone=GPViT(**SIZES["L1"], out_features=("block2", "block5", "block8", "last_feat")),
            sem_seg_head=head(in_channels=216, num_classes=150),
            **NORMALIZATION,
        )
    check_groups(model, name, names, options)


@pytest.mark.parametrize("size", ["L1", "L3"])
def test_rate_and_decay_of_classifiers_are_the_official_ones(size: str) -> None:
    with torch.device("meta"):
        model = ImageClassifier(
            backbone=GPViT(**SIZES[size]),
            num_classes=1000,
            pooling=POOLING_OF_SIZES[size],
            **NORMALIZATION,
        )
    options = dict(no_decay="norms_and_biases")
    check_groups(model, f"classifier_{size.lower()}", published.CLASSIFIER, options)


def check_groups(
    model: nn.Module, name: str, names: published.Names, options: dict[str, Any]
) -> None:
    """Compare rate and decay of each parameter with those in the reference file."""
    expected = reference("optimizer_groups.json")[name]
    found = {}
    for group in parameter_groups(model, expected["lr"], expected["weight_decay"], **options):
        factors = [group["lr"] / expected["lr"], group["weight_decay"] / expected["weight_decay"]]
        for parameter in group["params"]:
            found[parameter] = pytest.approx(factors)
    ours = {}
    for key, parameter in model.named_parameters():
        ours[key] = found.pop(parameter)
    assert not found
    # The values of the reference under our names, which `rename` gives to tensors.
    theirs = {key: torch.tensor(value) for key, value in expected["parameters"].items()}
    renamed = published.rename(theirs, names)
    assert renamed.keys() == ours.keys()
    for key, factors in renamed.items():
        assert factors.tolist() == ours[key], key


@pytest.mark.parametrize(
    ("task", "schedule"),
    [
        ("segmentation", LinearSchedule(160_000, warmup_iters=1500, warmup_factor=1e-6)),
        ("classification", CosineSchedule(187_500, warmup_iters=9375, warmup_factor=1e-3)),
    ],
)
def test_schedule_is_the_official_one(task: str, schedule: WarmupSchedule) -> None:
    expected = reference("schedules.json")[task]
    length = expected.get("max_iters", 187_500)
    for iteration, factor in expected["factor"].items():
        assert schedule(int(iteration) / length) == pytest.approx(factor, rel=1e-9)


def test_warmup_takes_at_most_a_tenth_of_a_short_run() -> None:
    schedule = LinearSchedule(100, warmup_iters=1500, warmup_factor=1e-6)
    assert schedule(0) == pytest.approx(1e-6)
    assert schedule(0.05) == pytest.approx(0.95 / 2, rel=1e-5)
    assert schedule(0.1) == 0.9 and schedule(1) == 0
