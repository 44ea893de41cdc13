"""Who follows a training."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from detectron2.config import instantiate
from detectron2.engine import default_writers
from omegaconf import DictConfig
from torch import nn

from .checkpoints import Checkpoints
from .following import Curves, Follower, Pictures, Writers
from .run_page import RunPage
from .terminal import ProgressBar, has_terminal


def build_followers(
    args: argparse.Namespace,
    cfg: DictConfig,
    model: nn.Module,
    checkpoints: Checkpoints,
    seed: int,
    records: Sequence[dict[str, Any]],
) -> list[Follower]:
    """What process 0 shows and writes down of a training, in the order in which it does.

    Args:
        args: the command line; ``config_file`` and ``resume`` are used.
        cfg: the training's config.
        model: the detector.
        checkpoints: of the training, already at the iteration that it begins with.
        seed: of the training.
        records: the training data.

    Raises:
        UserError: Weights & Biases is asked for and cannot be used.
    """
    folder, test = Path(cfg.train.output_dir), cfg.dataloader.test
    validation = instantiate(test.dataset)
    followers: list[Follower] = []
    if cfg.train.pictures:
        mapper, classes = instantiate(test.mapper), checkpoints.classes
        followers.append(Pictures(validation, mapper, classes, count=cfg.train.pictures, folder=folder))
    printer, *files = default_writers(cfg.train.output_dir, cfg.train.max_iter)
    if cfg.train.wandb:
        from .weights_and_biases import WandbWriter  # needs a package that others do not

        files.insert(0, WandbWriter(cfg.train.wandb, folder, checkpoints.config, resume=args.resume))
    followers += [Writers(printer, files, cfg.train.log_period), Curves(folder)]
    splits = {"train": (cfg.dataloader.train.dataset.names, records), "val": (test.dataset.names, validation)}
    followers.append(RunPage(cfg, args.config_file, model, seed, splits, checkpoints, resume=args.resume))
    if has_terminal():
        followers.append(ProgressBar(checkpoints.trainer.done, cfg.train.max_iter))
    return followers
