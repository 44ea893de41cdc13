"""Trains and evaluates the models of configs/; the same as train_net.py."""

import argparse
import functools
from collections.abc import Callable, Sequence
from importlib import import_module
from urllib.parse import urlsplit

from omegaconf import DictConfig
from torch import nn

from .. import checkpoint
from ..config import check_config, load_config
from ..data.datasets.register import check_classes, require_files, use_folder
from ..data.loader import check_batches
from ..engine.launch import choose_device, launch, processes_of, spawns_processes
from ..engine.run import do_test, do_train
from ..evaluation.metrics import check_best_metric
from ..evaluation.validation_sets import validation_names
from ..utils.kinds import argument, whole
from ..utils.text import one_line


def main(arguments: Sequence[str]) -> None:
    start(run, arguments, "gpvit train")


def run(args: argparse.Namespace, cfg: DictConfig | None = None) -> nn.Module:
    """What each process runs, see :func:`start`; the trained or evaluated model."""
    cfg = configure(args) if cfg is None else cfg
    if args.eval_only:
        return do_test(cfg)
    return do_train(cfg, resume=args.resume, config_file=args.config_file)


def start(run: Callable, arguments: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Reads the command line and runs a job; what is wrong is said before its processes start.

    Args:
        run: called in each process as ``run(args)``, or as ``run(args, cfg=cfg)`` where that is this process, which has
            read the config: it may register datasets, which Detectron2 lets a process do once.
        arguments: of the command line; those of this process by default.
        prog: name of the command.
    """
    args = argument_parser(prog).parse_intermixed_args(arguments)
    cfg = configure(args)
    validation_names(cfg)
    if cfg.train.init_checkpoint and not args.resume:
        checkpoint.fetch(cfg.train.init_checkpoint)
    launch(
        run if spawns_processes(args) else functools.partial(run, cfg=cfg), args, cfg.train.device
    )


def argument_parser(prog: str | None = None) -> argparse.ArgumentParser:
    """Detectron2's flags, and ``--data``. Parse with ``parse_intermixed_args``: overrides may stand anywhere."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Trains or evaluates a model.",
        epilog="Several machines: start the same command on each with its --machine-rank and a common --dist-url, "
        "or use torchrun, which needs none of --num-gpus, --num-machines, --machine-rank and --dist-url.",
    )
    parser.add_argument(
        "--config-file", required=True, metavar="FILE", help="LazyConfig file; it is run as code"
    )
    parser.add_argument(
        "--resume", action="store_true", help="go on from the last checkpoint in train.output_dir"
    )
    parser.add_argument(
        "--eval-only", action="store_true", help="evaluate train.init_checkpoint, without training"
    )
    parser.add_argument(
        "--num-gpus",
        type=argument(whole(1)),
        default=1,
        help="GPUs per machine; processes with train.device=cpu",
    )
    parser.add_argument("--num-machines", type=argument(whole(1)), default=1)
    parser.add_argument(
        "--machine-rank", type=argument(whole(0)), default=0, help="rank of this machine, from 0"
    )
    parser.add_argument(
        "--dist-url",
        type=_meeting_point,
        default="auto",
        help="tcp://HOST:PORT of the first machine; one machine: auto",
    )
    parser.add_argument(
        "--data",
        metavar="PATH",
        help="custom dataset: a folder or file in COCO format, of Roboflow, YOLO segmentation or labelme",
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes to the config")
    return parser


def _meeting_point(url: str) -> str:
    """The type of --dist-url."""
    try:
        parts = urlsplit(url)
        fits = bool(parts.scheme == "tcp" and parts.hostname and parts.port and not parts.path)
    except ValueError:  # a port that is none
        fits = False
    if (
        not fits and url != "auto" and not url.startswith(("file://", "env://"))
    ):  # which PyTorch knows, too
        raise argparse.ArgumentTypeError(
            f"must be auto or tcp://HOST:PORT with a port up to 65535, got {one_line(url)}"
        )
    return url


def configure(args: argparse.Namespace) -> DictConfig:
    """The config that the command line asks for, with the device and the dataset that there are.

    Raises:
        UserError: it cannot be read, or has a value that would only be found wrong later.
    """
    cfg, train = load_config(args.config_file, args.overrides), not args.eval_only
    check_config(cfg, train=train)
    cfg.train.device = choose_device(cfg.train.device, args.num_gpus)
    processes = processes_of(args)
    if train:
        check_batches(cfg, processes)
    if cfg.train.amp.enabled == "auto":
        cfg.train.amp.enabled = cfg.train.device == "cuda"
    if args.data:
        use_folder(cfg, args.data, train=train)
    require_files(cfg.dataloader.test)
    if train:
        require_files(cfg.dataloader.train)
    classes = check_classes(cfg, train=train)
    if train:
        check_best_metric(cfg.train.get("best_metric"), cfg, classes)
        if cfg.train.get("wandb"):
            import_module(
                "gpvit.engine.monitoring.wandb_writer"
            )  # if it is missing, that is said before anything begins
    return cfg
