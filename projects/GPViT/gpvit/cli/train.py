"""Train and evaluate the models of configs/, as train_net.py does."""

import argparse
import functools
from collections.abc import Callable, Sequence
from importlib import import_module
from urllib.parse import urlsplit

from omegaconf import DictConfig, OmegaConf
from torch import nn

from .. import checkpoint
from ..config import check_config, load_config
from ..data.datasets.register import check_classes, require_files, use_folder
from ..data.loader import check_batches
from ..engine.launch import choose_device, launch, processes_of, spawns_processes
from ..engine.run import do_test, do_train
from ..evaluation.metrics import check_best_metric
from ..evaluation.validation_sets import validation_names
from ..utils.errors import UserError
from ..utils.kinds import argument, integer
from ..utils.precision import choose_dtype
from ..utils.text import one_line
from .options import OVERRIDES_HELP, add_large_images, tiles_of


def main(arguments: Sequence[str]) -> None:
    start(run, arguments, "gpvit train")


def run(args: argparse.Namespace, cfg: DictConfig | None = None) -> nn.Module:
    """Train or evaluate a model in each process, see :func:`start`; return the model."""
    cfg = configure(args) if cfg is None else cfg
    if args.eval_only:
        return do_test(cfg)
    return do_train(cfg, resume=args.resume, config_file=args.config_file)


def start(run: Callable, arguments: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Parse the command line and launch a job; errors are raised before its processes start.

    Args:
        run: called in each process as ``run(args)``; in this process as ``run(args, cfg=cfg)``,
            because loading the config may register datasets, which Detectron2 allows only once in
            each process.
        arguments: the command line; by default that of this process.
        prog: name of the command.
    """
    args = argument_parser(prog).parse_intermixed_args(arguments)
    cfg = configure(args)
    validation_names(cfg)
    if cfg.train.init_checkpoint and not args.resume:
        checkpoint.fetch(cfg.train.init_checkpoint)
    main_function = run if spawns_processes(args) else functools.partial(run, cfg=cfg)
    launch(main_function, args, cfg.train.device)


def argument_parser(prog: str | None = None) -> argparse.ArgumentParser:
    """Return the parser of Detectron2's options and ``--data``.

    Parse with ``parse_intermixed_args``: overrides may precede options.
    """
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Train or evaluate a model.",
        epilog="To train on several machines, run the same command on each with its own "
        "--machine-rank and a common --dist-url; or use torchrun without --num-gpus, "
        "--num-machines, --machine-rank and --dist-url.",
    )
    parser.add_argument(
        "--config-file",
        required=True,
        metavar="FILE",
        help="LazyConfig file; note that it is executed as Python code",
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="resume from the last checkpoint in train.output_dir",
    )
    parser.add_argument(
        "--eval-only",
        action="store_true",
        help="evaluate train.init_checkpoint without training",
    )
    add_large_images(parser)
    add_launcher_options(parser)
    parser.add_argument(
        "--data",
        metavar="PATH",
        help="custom dataset: a folder or file in COCO, YOLO or labelme format, or for semantic "
        "segmentation a folder of label maps (default: the dataset of the config)",
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help=OVERRIDES_HELP)
    return parser


def add_launcher_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that Detectron2's launcher reads."""
    parser.add_argument(
        "--num-gpus",
        type=argument(integer(1)),
        default=1,
        metavar="N",
        help="number of GPUs per machine, or of processes with train.device=cpu "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--num-machines",
        type=argument(integer(1)),
        default=1,
        metavar="N",
        help="total number of machines (default: %(default)s)",
    )
    parser.add_argument(
        "--machine-rank",
        type=argument(integer(0)),
        default=0,
        metavar="RANK",
        help="rank of this machine, from 0 (default: %(default)s)",
    )
    parser.add_argument(
        "--dist-url",
        type=_dist_url,
        default="auto",
        metavar="URL",
        help="tcp://HOST:PORT of the first machine (default: %(default)s, for a single machine)",
    )


def _dist_url(url: str) -> str:
    """Parse --dist-url."""
    try:
        parts = urlsplit(url)
        is_tcp = bool(parts.scheme == "tcp" and parts.hostname and parts.port and not parts.path)
    except ValueError:  # an invalid port
        is_tcp = False
    # PyTorch also accepts file:// and env://.
    if not is_tcp and url != "auto" and not url.startswith(("file://", "env://")):
        raise argparse.ArgumentTypeError(
            f"must be auto or tcp://HOST:PORT with a port up to 65535, got {one_line(url)}"
        )
    return url


def configure(args: argparse.Namespace) -> DictConfig:
    """Return the config for a command line, with device, precision and dataset filled in.

    Raises:
        UserError: the config cannot be read, or has an invalid value, including those that would
            otherwise only fail later.
    """
    cfg, train = load_config(args.config_file, args.overrides), not args.eval_only
    tiles = tiles_of(args)
    if tiles or args.stream:
        way = {"tile": tiles.side, "overlap": tiles.overlap} if tiles else {"tile": 0}
        OmegaConf.update(cfg, "train.large_images", way, force_add=True)
    if args.stream:
        cfg.train.eval_dtype = "float32"  # whatever the config says: see Predictor.detect_large
    if train and "large_images" in cfg.train:
        raise UserError("--tile and --stream (train.large_images) are for --eval-only")
    check_config(cfg, train=train)
    cfg.train.device = choose_device(cfg.train.device, args.num_gpus)
    processes = processes_of(args)
    if train:
        check_batches(cfg, processes)
    if cfg.train.amp.enabled == "auto":
        cfg.train.amp.enabled = cfg.train.device == "cuda"
    choose_dtype(cfg.train.eval_dtype, cfg.train.device)  # raises an error if it cannot be used
    if args.data:
        use_folder(cfg, args.data, train=train)
    require_files(cfg.dataloader.test)
    if train:
        require_files(cfg.dataloader.train)
    classes = check_classes(cfg, train=train)
    if train:
        check_best_metric(cfg.train.get("best_metric"), cfg, classes)
        if cfg.train.get("wandb"):
            # If the package is not installed, this raises an error before training starts.
            import_module("gpvit.engine.monitoring.wandb_writer")
    return cfg
