"""Create the synthetic dataset, which gpvit/data/datasets/synthetic.py describes.

    python tools/make_synthetic_data.py --output datasets/synthetic --train 200 --val 50 --seed 0

It takes about 15 s on one CPU core. With --large-scenes, the images are scenes of any size instead,
which gpvit/data/datasets/large_scenes.py describes:

    python tools/make_synthetic_data.py --output datasets/large_scenes --large-scenes 4000x3000 \\
        --train 1 --val 2
    python tools/make_synthetic_data.py --output datasets/large_windows --large-scenes 320x320 \\
        --large-size 80 320 --large-objects 8 --train 600 --val 100

The first are large images to evaluate a detector on (10 s each); the second, windows to train it on
(2 minutes).
"""

from gpvit.utils.environment import prepare_command

if __name__ == "__main__":
    prepare_command()  # before PyTorch is imported

import argparse
import re

from gpvit.cli.main import run_command
from gpvit.data.datasets.large_scenes import (
    LARGE_PER_MEGAPIXEL,
    LARGE_SIZE,
    make_large_dataset,
)
from gpvit.data.datasets.synthetic import make_dataset
from gpvit.utils.errors import UserError


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", required=True, metavar="DIR", help="folder to create")
    parser.add_argument(
        "--train", type=int, default=200, help="training images (default: %(default)s)"
    )
    parser.add_argument(
        "--val", type=int, default=50, help="validation images (default: %(default)s)"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="random seed of the images (default: %(default)s)"
    )
    parser.add_argument(
        "--large-scenes",
        type=image_size,
        metavar="WIDTHxHEIGHT",
        help="create scenes of this size instead, such as 20000x20000",
    )
    parser.add_argument(
        "--large-objects",
        type=float,
        default=LARGE_PER_MEGAPIXEL,
        metavar="NUMBER",
        help="number of large objects per million pixels of a scene (default: %(default)s)",
    )
    parser.add_argument(
        "--large-size",
        type=int,
        nargs=2,
        default=LARGE_SIZE,
        metavar=("MIN", "MAX"),
        help="their smallest and largest size in pixels (default: {} {})".format(*LARGE_SIZE),
    )
    args = parser.parse_args()
    counts = args.train, args.val
    try:
        if args.large_scenes:
            width, height = args.large_scenes
            large = tuple(args.large_size), args.large_objects
            make_large_dataset(args.output, *counts, height, width, args.seed, *large)
        else:
            make_dataset(args.output, *counts, args.seed)
    except (OSError, ValueError) as error:
        raise UserError(str(error)) from None


def image_size(text: str) -> tuple[int, int]:
    """Convert WIDTHxHEIGHT to width and height."""
    if not re.fullmatch("[0-9]{1,7}x[0-9]{1,7}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not WIDTHxHEIGHT in pixels")
    width, height = map(int, text.split("x"))
    return width, height


if __name__ == "__main__":
    run_command(main)
