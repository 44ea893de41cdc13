"""Detectors to test with."""

from collections.abc import Sequence
from pathlib import Path

import torch
from conftest import REPOSITORY, TINY
from detectron2.config import instantiate
from gpvit import checkpoint
from gpvit.config import inference_config, load_config

CONFIG = str(REPOSITORY / "configs" / "quickstart.py")
TINY_MODEL = [
    override for override in TINY if override.startswith(("model", "dataloader.short_side"))
]


def write_detector(
    path: Path, *, classes: int = 3, with_config: bool = True, overrides: Sequence[str] = TINY_MODEL
) -> None:
    """An untrained detector, a tiny one by default; the seed is the number of its classes, so that two differ."""
    cfg = load_config(CONFIG, [*overrides, f"model.roi_heads.num_classes={classes}"])
    torch.manual_seed(classes)
    content = {
        "model": instantiate(cfg.model).state_dict(),
        "classes": [f"class {i}" for i in range(classes)],
    }
    checkpoint.save(
        content | ({"inference_config": inference_config(cfg)} if with_config else {}), str(path)
    )
