from .checkpoints import Checkpoints, Evaluation, Writers, check_unchanged, newest, refuse_used
from .config import config_from_yaml, detectron2_config, inference_config, load_config, save_config, with_overrides
from .launch import argument_parser, choose_device, launch
from .loader import build_train_loader, digest
from .setup import setup, shared_seed
from .trainer import Trainer, build_ddp

__all__ = [
    "Checkpoints",
    "Evaluation",
    "Trainer",
    "Writers",
    "argument_parser",
    "build_ddp",
    "build_train_loader",
    "check_unchanged",
    "choose_device",
    "config_from_yaml",
    "detectron2_config",
    "digest",
    "inference_config",
    "launch",
    "load_config",
    "newest",
    "refuse_used",
    "save_config",
    "setup",
    "shared_seed",
    "with_overrides",
]
