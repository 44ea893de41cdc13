"""What several commands share: options of the same name and meaning, and the detector that they choose."""

import argparse
from pathlib import Path

import torch

from ..predictor import Predictor
from ..utils.kinds import argument, number, whole

# Types of numeric options.
COUNT, INDEX, SCORE = argument(whole(1)), argument(whole(0)), argument(number(0, 1))


def command_parser(name: str, doc: str | None) -> argparse.ArgumentParser:
    """The parser of ``gpvit NAME``; ``doc`` is what its module says of it."""
    return argparse.ArgumentParser(
        prog=f"gpvit {name}", description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def add_detector(parser: argparse.ArgumentParser, device: str | None = None) -> None:
    """The options that :func:`detector` takes; ``device`` is the only one that it may run on, if there is no choice."""
    parser.add_argument(
        "--weights",
        required=True,
        metavar="PATH",
        help="checkpoint, published file or folder of a run",
    )
    parser.add_argument(
        "--config-file",
        metavar="FILE",
        help="config of the detector, if its checkpoint carries none",
    )
    if device:
        parser.set_defaults(device=device)
    else:
        add_device(parser)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes to the config")


def add_device(parser: argparse.ArgumentParser) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument(
        "--device", default=device, metavar="NAME", help="cpu, cuda, ... (%(default)s)"
    )


def add_output(parser: argparse.ArgumentParser, metavar: str, what: str, default: str = "") -> None:
    """``--output``, which must be given if there is no default, and ``--overwrite``."""
    output = parser.add_argument(
        "--output", type=Path, required=not default, metavar=metavar, help=what
    )
    if default:
        output.default, output.help = Path(default), f"{what} (%(default)s)"
    parser.add_argument("--overwrite", action="store_true", help="replace what is there")


def detector(args: argparse.Namespace) -> Predictor:
    return Predictor.from_checkpoint(
        args.weights, args.device, config_file=args.config_file, overrides=args.overrides
    )
