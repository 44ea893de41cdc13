"""What several tools share: the options that choose a detector, names of inputs, and writing without doing harm."""

import argparse
import contextlib
import glob
from collections.abc import Iterable, Iterator
from pathlib import Path

import gpvit
from gpvit.engine import checkpoints
from gpvit.errors import UserError, listed


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


def refuse_to_replace(paths: Iterable[Path], overwrite: bool, option: str = "--output") -> None:
    """Raises a UserError if one of these is there and may not be overwritten; ``option`` is what names them.

    A link may never be: what is written would go to where it leads.
    """
    paths = list(paths)
    if links := [str(path) for path in paths if path.is_symlink()]:
        raise UserError(f"{listed(links)} is a link; remove it, or give another {option}")
    if not overwrite and (there := [str(path) for path in paths if path.exists()]):
        raise UserError(f"there is {listed(there)} already; give another {option}, or --overwrite")


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A path to write to in place of ``path``, which becomes that if all goes well and otherwise is left as it was.

    Raises:
        UserError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with checkpoints.whole(path) as partial:
            yield partial
    except OSError as error:
        raise UserError(f"cannot write {path}: {error}") from None
