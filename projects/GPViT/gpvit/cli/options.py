"""Options that several commands share, and the predictor that they configure."""

import argparse
from pathlib import Path

import torch

from ..data.datasets.label_folders import find_pairs
from ..large_images.tiles import LARGEST_OVERLAP, SMALLEST_TILE, Tiles
from ..predictor import Predictor, is_onnx
from ..utils.errors import UserError
from ..utils.kinds import argument, integer, number

# Types of numeric options.
COUNT, INDEX, SCORE = argument(integer(1)), argument(integer(0)), argument(number(0, 1))
TILE, OVERLAP = argument(integer(SMALLEST_TILE, of="pixels")), argument(number(0, LARGEST_OVERLAP))

DATA_HELP = "dataset in any format that training accepts, or a COCO JSON file"
IMAGES_HELP = "folder of the images of a COCO JSON file (default: searched for next to it)"
OVERRIDES_HELP = "config values to override"


def command_parser(name: str, doc: str | None) -> argparse.ArgumentParser:
    """Return the parser of ``gpvit NAME``; ``doc`` is the docstring of its module."""
    return argparse.ArgumentParser(
        prog=f"gpvit {name}", description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def add_semantic(parser: argparse.ArgumentParser) -> None:
    """Add the option that :func:`is_semantic` reads."""
    parser.add_argument(
        "--semantic",
        action=argparse.BooleanOptionalAction,
        help="whether to treat the dataset as label maps, which are drawn from its objects if it "
        "has none (default: if it has label maps)",
    )


def is_semantic(args: argparse.Namespace) -> bool:
    """Whether ``args.data`` is a dataset of label maps, or is to be treated so by --semantic."""
    if args.semantic is not None:
        return args.semantic
    return args.data.is_dir() and find_pairs(str(args.data)) is not None


def add_model(
    parser: argparse.ArgumentParser, device: str | None = None, *, onnx: bool = False
) -> None:
    """Add the options that :func:`load_predictor` reads.

    Args:
        parser: of the command.
        device: the device of a command that has no --device option.
        onnx: whether the command runs exported models.
    """
    parser.add_argument(
        "--weights",
        required=True,
        metavar="PATH",
        help=f"checkpoint, folder of a training run, {'.onnx file, ' * onnx}URL or hf://USER/NAME",
    )
    parser.add_argument(
        "--config-file",
        metavar="FILE",
        help="config of the detector (default: the one in the checkpoint)",
    )
    if device:
        parser.set_defaults(device=device)
    else:
        parser.add_argument(
            "--device",
            metavar="NAME",
            help="device to run on, such as cpu or cuda (default: a GPU if there is one)",
        )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help=OVERRIDES_HELP)


def add_device(parser: argparse.ArgumentParser) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument(
        "--device",
        default=device,
        metavar="NAME",
        help="device to run on, such as cpu or cuda (default: %(default)s)",
    )


def add_large_images(parser: argparse.ArgumentParser) -> None:
    """Add the options of detectors that say how to process images that are larger than usual."""
    ways = parser.add_mutually_exclusive_group()
    ways.add_argument(
        "--tile",
        type=TILE,
        metavar="N",
        help="detect objects in tiles of N x N pixels, each resized as an image of its own, and in "
        "the reduced image",
    )
    ways.add_argument(
        "--stream",
        action="store_true",
        help="process images of any size at once and without resizing them, with intermediate "
        "results on disk",
    )
    parser.add_argument(
        "--overlap",
        type=OVERLAP,
        metavar="F",
        help=f"overlap of tiles, as a fraction of N (default: {Tiles(0).overlap})",
    )


def tiles_of(args: argparse.Namespace) -> Tiles | None:
    """Return the tiles of the command line; None if there are none.

    Raises:
        UserError: there is an overlap without tiles.
    """
    if args.tile:
        return Tiles(args.tile, Tiles(0).overlap if args.overlap is None else args.overlap)
    if args.overlap is not None:
        raise UserError("--overlap needs --tile N")
    return None


def add_output(parser: argparse.ArgumentParser, metavar: str, what: str, default: str = "") -> None:
    """Add ``--output``, which is required if it has no default, and ``--overwrite``."""
    output = parser.add_argument(
        "--output", type=Path, required=not default, metavar=metavar, help=what
    )
    if default:
        output.default, output.help = Path(default), f"{what} (default: %(default)s)"
    parser.add_argument("--overwrite", action="store_true", help="replace existing files")


def load_pytorch_predictor(args: argparse.Namespace) -> Predictor:
    """Load a model that must be a PyTorch model; raise a UserError for an ONNX file."""
    if is_onnx(args.weights):
        raise UserError(
            f"{args.weights} is an exported model: give the checkpoint that it was exported from"
        )
    return load_predictor(args)


def load_predictor(args: argparse.Namespace, dtype: str = "auto") -> Predictor:
    return Predictor.from_checkpoint(
        args.weights, args.device, dtype, config_file=args.config_file, overrides=args.overrides
    )
