from .config import detectron2_config, load_config
from .launch import argument_parser, choose_device, launch
from .setup import setup
from .trainer import Trainer, build_ddp

__all__ = [
    "Trainer",
    "argument_parser",
    "build_ddp",
    "choose_device",
    "detectron2_config",
    "launch",
    "load_config",
    "setup",
]
