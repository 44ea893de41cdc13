"""``gpvit COMMAND``: imports the command that was chosen, and ends it with at most one line."""

import argparse
import signal
import sys
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from typing import NoReturn

from ..utils.environment import is_spawned, prepare_command
from ..utils.errors import UserError
from ..utils.signals import interrupt
from ..utils.text import print_anything
from ..version import __version__

COMMANDS = {
    "train": "train or evaluate a model, as train_net.py does",
    "predict": "detect objects in images and videos, or from a webcam",
    "check-data": "check a dataset for what training and evaluation would trip over",
    "view-data": "draw the annotations of a dataset",
    "view-results": "draw predictions beside ground truth, the worst images first; or write an HTML report",
    "view-attention": "draw where group tokens look, and the feature maps",
    "analyze": "parameters, FLOPs, time and memory of a detector",
    "export": "write a detector as ONNX or for torch.export",
    "convert": "convert checkpoints to and from the layout of the published files",
    "share": "write a model as a folder, or push and pull it through the Hugging Face Hub",
    "replay": "repeat an iteration whose loss was not finite",
}


if is_spawned():
    prepare_command()


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    prepare_command()
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(
        prog="gpvit",
        description="GPViT for Detectron2.",
        epilog="`gpvit COMMAND --help` says more about a command:\n\n"
        + "\n".join(f"  {name:16}{what}" for name, what in COMMANDS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"gpvit {__version__}")
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND")
    command = parser.parse_args(arguments[:1]).command
    module = import_module(f"gpvit.cli.{command.replace('-', '_')}")
    run_command(partial(module.main, arguments[1:]))


def run_command(main: Callable[[], int | None]) -> NoReturn:
    """Does what a command does, whose imports are done, and exits: a UserError is one line, Ctrl-C is quiet."""
    signal.signal(signal.SIGINT, interrupt)
    print_anything()
    try:
        sys.exit(main())
    except UserError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
