from .checkpoints import Checkpoints, Evaluation, check_unchanged, newest, refuse_used
from .config import config_from_yaml, detectron2_config, inference_config, load_config, save_config, with_overrides
from .following import build_followers, save_evaluation
from .launch import argument_parser, choose_device, launch
from .loader import build_train_loader, digest
from .setup import device_name, setup, shared_seed
from .terminal import evaluation_bar
from .trainer import Trainer, build_ddp

__all__ = [
    "Checkpoints",
    "Evaluation",
    "Trainer",
    "argument_parser",
    "build_ddp",
    "build_followers",
    "build_train_loader",
    "check_unchanged",
    "choose_device",
    "config_from_yaml",
    "detectron2_config",
    "device_name",
    "digest",
    "evaluation_bar",
    "inference_config",
    "launch",
    "load_config",
    "newest",
    "refuse_used",
    "save_config",
    "save_evaluation",
    "setup",
    "shared_seed",
    "with_overrides",
]
