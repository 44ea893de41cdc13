"""Detectron2's own training script, as it is in its tools/lazyconfig_train_net.py, takes the configs here."""

from pathlib import Path

import pytest
import torch
from conftest import REPOSITORY, TINY
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import LazyConfig, instantiate
from detectron2.engine import SimpleTrainer, create_ddp_model, default_writers, hooks
from detectron2.evaluation import inference_on_dataset
from gpvit.config import with_overrides
from gpvit.data import use_folder
from omegaconf import DictConfig
from torch import nn

CONFIGS = sorted(
    str(path.relative_to(REPOSITORY / "configs"))
    for path in (REPOSITORY / "configs").rglob("*.py")
    if "common" not in path.parts and "yacs" not in path.parts
)
FAST = ("mask_rcnn_gpvit_l1.py", "cascade_mask_rcnn_gpvit_l1.py", "published/retinanet_gpvit_l1_1x.py")
# What makes a training run short; nothing of what the script calls.
SHORT = [override for override in TINY if override.startswith("dataloader.")]
SHORT += ["dataloader.max_size=96", "train.max_iter=2", "train.log_period=1", "train.checkpointer.period=1"]


def do_test(cfg: DictConfig, model: nn.Module) -> dict:
    return inference_on_dataset(model, instantiate(cfg.dataloader.test), instantiate(cfg.dataloader.evaluator))


def do_train(cfg: DictConfig) -> SimpleTrainer:
    model = instantiate(cfg.model)
    model.to(cfg.train.device)
    cfg.optimizer.params.model = model
    model = create_ddp_model(model, **cfg.train.ddp)
    trainer = SimpleTrainer(model, instantiate(cfg.dataloader.train), instantiate(cfg.optimizer))
    checkpointer = DetectionCheckpointer(model, cfg.train.output_dir, trainer=trainer)
    trainer.register_hooks(
        [
            hooks.IterationTimer(),
            hooks.LRScheduler(scheduler=instantiate(cfg.lr_multiplier)),
            hooks.PeriodicCheckpointer(checkpointer, **cfg.train.checkpointer),
            hooks.EvalHook(cfg.train.eval_period, lambda: do_test(cfg, model)),
            hooks.PeriodicWriter(default_writers(cfg.train.output_dir, cfg.train.max_iter), period=cfg.train.log_period),
        ]
    )
    trainer.train(0, cfg.train.max_iter)
    return trainer


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in FAST else pytest.mark.slow) for n in CONFIGS])
def test_detectron2s_script_trains_and_evaluates_a_config(name: str, synthetic_data: Path, tmp_path: Path) -> None:
    cfg = LazyConfig.load(str(REPOSITORY / "configs" / name))
    use_folder(cfg, str(synthetic_data), train=True)
    cfg = with_overrides(cfg, [*SHORT, "train.device=cpu", "train.amp.enabled=False", f"train.output_dir={tmp_path}"])
    trainer = do_train(cfg)
    latest = trainer.storage.latest()
    losses = [value for key, (value, _) in latest.items() if "loss" in key]
    assert losses and torch.tensor(losses).isfinite().all()
    assert "bbox/AP" in latest and (tmp_path / "model_final.pth").is_file()
