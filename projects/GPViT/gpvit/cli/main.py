"""``gpvit COMMAND``: import and run a command; errors are printed as one line."""

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
    "predict": "detect objects or segment classes in images, videos or a webcam stream",
    "check-data": "check the images and annotations of a dataset",
    "view-data": "draw the annotations of a dataset",
    "view-results": "draw predictions next to ground truth, or write an HTML report",
    "view-attention": "visualize group-token attention and feature maps",
    "analyze": "report parameters, FLOPs, time and memory of a model",
    "export": "export a model to ONNX or torch.export",
    "convert": "convert checkpoints from and to the official format",
    "share": "write a model to a folder, push it to the Hugging Face Hub, or pull it",
    "replay": "repeat an iteration whose loss or gradient was not finite",
}


# A process that multiprocessing spawned imports this module, but does not call main().
if is_spawned():
    prepare_command()


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    prepare_command()
    arguments = sys.argv[1:] if arguments is None else arguments
    command_list = "\n".join(f"  {name:16}{summary}" for name, summary in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="gpvit",
        usage="%(prog)s [-h] [--version] COMMAND ...",
        description="GPViT for Detectron2.",
        epilog=f"commands:\n{command_list}\n\nRun `gpvit COMMAND --help` for its options.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"gpvit {__version__}")
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND", help="one of those below")
    command = parser.parse_args(arguments[:1]).command
    module = import_module(f"gpvit.cli.{command.replace('-', '_')}")
    run_command(partial(module.main, arguments[1:]))


def run_command(main: Callable[[], int | None]) -> NoReturn:
    """Run a command whose imports are complete, and exit with its exit code.

    A UserError is printed as one line, without a traceback; Ctrl-C exits silently.
    """
    signal.signal(signal.SIGINT, interrupt)
    print_anything()
    try:
        sys.exit(main())
    except UserError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
