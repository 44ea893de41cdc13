from ..evaluation.metrics import metric_prefixes
from ..evaluation.validation_sets import validation_names, validation_sets
from .checkpoints import (
    DATA,
    Checkpoints,
    Evaluation,
    check_best_metric,
    check_unchanged,
    newest,
    refuse_evaluated,
    refuse_to_replace_results,
    refuse_used,
    settings,
)
from .following import build_followers, save_evaluation
from .launch import argument_parser, choose_device, launch, processes_of, spawns_processes
from .setup import device_name, setup, shared_seed
from .terminal import evaluation_bar
from .trainer import Trainer, build_ddp

__all__ = [
    "DATA",
    "Checkpoints",
    "Evaluation",
    "Trainer",
    "argument_parser",
    "build_ddp",
    "build_followers",
    "check_best_metric",
    "check_unchanged",
    "choose_device",
    "device_name",
    "evaluation_bar",
    "launch",
    "metric_prefixes",
    "newest",
    "processes_of",
    "refuse_evaluated",
    "refuse_to_replace_results",
    "refuse_used",
    "save_evaluation",
    "settings",
    "setup",
    "shared_seed",
    "spawns_processes",
    "validation_names",
    "validation_sets",
]
