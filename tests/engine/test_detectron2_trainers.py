"""The configs work with Detectron2's trainers.

LazyConfigs are trained as by its ``lazyconfig_train_net.py``, the yacs example by DefaultTrainer.
"""

import math
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import REPOSITORY, TINY
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import LazyConfig, instantiate
from detectron2.engine import SimpleTrainer, create_ddp_model, default_writers, hooks
from detectron2.evaluation import inference_on_dataset
from gpvit.config import with_overrides
from gpvit.data import use_folder
from gpvit.data.datasets.register import task_of
from omegaconf import DictConfig
from torch import nn

pytestmark = pytest.mark.long

FAST = ("quickstart.py", "published/retinanet_gpvit_l1_1x.py")
METRICS = {
    "detection": "bbox/AP",
    "segmentation": "sem_seg/mIoU",
    "classification": "classification/top1",
}
# Overrides that shorten a run.
SHORT = [override for override in TINY if override.startswith("dataloader.")]
SHORT += [
    "dataloader.max_size=96",
    "train.max_iter=2",
    "train.log_period=1",
    "train.checkpointer.period=2",
]


def configs() -> list[Any]:
    """The LazyConfigs but those of other official models; most of them are slow."""
    parameters = []
    for path in sorted((REPOSITORY / "configs").rglob("*.py")):
        is_other = path.name.startswith(("segformer", "upernet", "classifier"))
        if not is_other and not {"common", "yacs"} & set(path.parts):
            name = str(path.relative_to(REPOSITORY / "configs"))
            marks = () if name in FAST else pytest.mark.slow
            parameters.append(pytest.param(name, marks=marks))
    return parameters


def do_test(cfg: DictConfig, model: nn.Module) -> dict:
    return inference_on_dataset(
        model, instantiate(cfg.dataloader.test), instantiate(cfg.dataloader.evaluator)
    )


def do_train(cfg: DictConfig) -> SimpleTrainer:
    model = instantiate(cfg.model)
    model.to(cfg.train.device)
    cfg.optimizer.params.model = model
    model = create_ddp_model(model, **cfg.train.ddp)
    trainer = SimpleTrainer(model, instantiate(cfg.dataloader.train), instantiate(cfg.optimizer))
    checkpointer = DetectionCheckpointer(model, cfg.train.output_dir, trainer=trainer)
    writers = default_writers(cfg.train.output_dir, cfg.train.max_iter)
    trainer.register_hooks(
        [
            hooks.IterationTimer(),
            hooks.LRScheduler(scheduler=instantiate(cfg.lr_multiplier)),
            hooks.PeriodicCheckpointer(checkpointer, **cfg.train.checkpointer),
            hooks.EvalHook(cfg.train.eval_period, lambda: do_test(cfg, model)),
            hooks.PeriodicWriter(writers, period=cfg.train.log_period),
        ]
    )
    trainer.train(0, cfg.train.max_iter)
    return trainer


@pytest.mark.parametrize("name", configs())
def test_detectron2_script_trains_and_evaluates_each_config(
    name: str, synthetic_data: Path, tmp_path: Path
) -> None:
    cfg = LazyConfig.load(str(REPOSITORY / "configs" / name))
    use_folder(cfg, str(synthetic_data), train=True)
    overrides = [*SHORT, "train.device=cpu", "train.amp.enabled=False"]
    if "crop_size" in cfg.dataloader:
        overrides.remove("dataloader.max_size=96")
    if "proposal_generator" in cfg.model:
        overrides.append("model.proposal_generator.post_nms_topk=[50,20]")
        overrides.append("model.roi_heads.batch_size_per_image=16")
    if not re.search("quickstart|_l1|ablation", name):  # L2 to L4 differ from L1 by numbers only
        backbone = "backbone.bottom_up" if "bottom_up" in cfg.model.backbone else "backbone"
        overrides.append(f"model.{backbone}.net.embed_dim=24")
    cfg = with_overrides(cfg, [*overrides, f"train.output_dir={tmp_path}"])
    trainer = do_train(cfg)
    latest = trainer.storage.latest()
    losses = [value for key, (value, _) in latest.items() if "loss" in key]
    assert losses and torch.tensor(losses).isfinite().all()
    metric = METRICS[task_of(cfg.model)]
    assert metric in latest and (tmp_path / "model_final.pth").is_file()


YACS = """
import sys
import numpy as np
import torch
from detectron2.config import get_cfg
from detectron2.engine import DefaultPredictor, DefaultTrainer
import gpvit
from gpvit.data import register_folder

config, data, output = sys.argv[1:]
cfg = get_cfg()
gpvit.add_gpvit_config(cfg)
cfg.merge_from_file(config)
cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (register_folder(data, "train"),), ()
cfg.INPUT.MASK_FORMAT = "bitmask"
cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TEST = (64,), 64
cfg.DATALOADER.NUM_WORKERS = 0
cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.MAX_ITER = 1, 1
cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE, cfg.MODEL.RPN.POST_NMS_TOPK_TRAIN = 16, 50
cfg.MODEL.RPN.POST_NMS_TOPK_TEST = 50
cfg.MODEL.DEVICE, cfg.OUTPUT_DIR = "cpu", output
trainer = DefaultTrainer(cfg)
trainer.resume_or_load(resume=False)
trainer.train()
cfg.MODEL.WEIGHTS = f"{output}/model_final.pth"
instances = DefaultPredictor(cfg)(np.zeros((48, 64, 3), np.uint8))["instances"]
assert instances.image_size == (48, 64)
print("loss", trainer.storage.latest()["total_loss"][0])
"""


def test_yacs_example_works_with_default_trainer_and_predictor(
    synthetic_data: Path, tmp_path: Path
) -> None:
    """Runs in another process, where only the script can have registered the backbones."""
    config = REPOSITORY / "configs" / "yacs" / "mask_rcnn_gpvit_l1.yaml"
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY / "projects" / "GPViT")}
    result = subprocess.run(
        [sys.executable, "-c", YACS, config, synthetic_data, tmp_path],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert math.isfinite(float(result.stdout.splitlines()[-1].removeprefix("loss ")))
