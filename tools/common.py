"""What several tools share: how they end, the options that choose a detector, and writing without doing harm."""

import argparse
import glob
import os
import signal
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NoReturn

import cv2
import gpvit
import numpy as np
from gpvit.utils.errors import UserError, listed
from gpvit.utils.files import atomic_write
from gpvit.utils.kinds import argument, number, whole
from gpvit.utils.signals import interrupt
from gpvit.utils.text import PATH_LIMIT, one_line

# Types of numeric options.
COUNT, INDEX, SCORE = argument(whole(1)), argument(whole(0)), argument(number(0, 1))


def add_detector(parser: argparse.ArgumentParser, device: str | None = None) -> None:
    """The arguments that :func:`detector` takes; ``device`` is the only one that it may run on, if there is no choice."""
    parser.add_argument("--weights", required=True, metavar="PATH", help="checkpoint, published file or training's folder")
    parser.add_argument("--config-file", metavar="FILE", help="config of the detector, if its checkpoint carries none")
    if device:
        parser.set_defaults(device=device)
    else:
        parser.add_argument("--device", metavar="NAME", help="cpu, cuda, ... (a GPU if there is one)")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes to the config")


def detector(args: argparse.Namespace) -> gpvit.Predictor:
    return gpvit.Predictor.from_checkpoint(args.weights, args.device, config_file=args.config_file, overrides=args.overrides)


def expanded(patterns: Iterable[str]) -> list[Path]:
    """The files that globs stand for, each one's in order; what matches nothing stays, to be reported when it is read."""
    return [Path(path) for pattern in patterns for path in sorted(glob.glob(pattern)) or [pattern]]


def run_command(main: Callable[[], int | None]) -> NoReturn:
    """Does what a command does, whose imports are done, and exits: a UserError is one line, Ctrl-C is quiet."""
    signal.signal(signal.SIGINT, interrupt)
    try:
        sys.exit(main())
    except UserError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


def refuse_to_replace(paths: Iterable[Path], overwrite: bool, option: str = "--output") -> None:
    """Raises a UserError if one of these is there and may not be overwritten; ``option`` is what names them.

    A link may never be, but for those of /dev: what is written would go to where it leads.
    """
    paths = list(paths)
    if links := [str(path) for path in paths if path.is_symlink() and path.parent != Path("/dev")]:
        raise UserError(f"{listed(links)} is a link; remove it, or give another {option}")
    if not overwrite and (
        there := [one_line(path, PATH_LIMIT) for path in paths if os.path.isfile(path) or os.path.isdir(path)]
    ):
        raise UserError(f"there is {listed(there)} already; give another {option}, or --overwrite")


def save_picture(path: Path, pixels: np.ndarray) -> None:
    """Writes a picture.

    Args:
        path: the kind of file follows from its name.
        pixels: (H, W, 3) or (H, W, 4), RGB or RGBA, uint8.

    Raises:
        UserError: it cannot be written; what was there is still there.
    """
    code = cv2.COLOR_RGBA2BGRA if pixels.shape[2] == 4 else cv2.COLOR_RGB2BGR
    content = cv2.imencode(path.suffix, cv2.cvtColor(pixels, code))[1].tobytes()
    with atomic_write(path) as partial:  # OpenCV itself would only print that the disk is full
        partial.write_bytes(content)
