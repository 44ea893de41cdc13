"""Checkpoints of untrained detectors."""

from collections.abc import Sequence
from pathlib import Path

import torch
from conftest import REPOSITORY, TINY
from detectron2.config import instantiate
from gpvit import checkpoint
from gpvit.config import inference_config, load_config

CONFIG = str(REPOSITORY / "configs" / "quickstart.py")
_MODEL_KEYS = ("model", "dataloader.short_side")
TINY_MODEL = [override for override in TINY if override.startswith(_MODEL_KEYS)]


def write_detector(
    path: Path, *, classes: int = 3, with_config: bool = True, overrides: Sequence[str] = TINY_MODEL
) -> None:
    """Write the checkpoint of an untrained detector, by default of a tiny one.

    The random seed is the number of classes, so that detectors with different classes differ.
    """
    cfg = load_config(CONFIG, [*overrides, f"model.roi_heads.num_classes={classes}"])
    torch.manual_seed(classes)
    content = {
        "model": instantiate(cfg.model).state_dict(),
        "classes": [f"class {i}" for i in range(classes)],
    }
    if with_config:
        content["inference_config"] = inference_config(cfg)
    checkpoint.save(content, str(path))
