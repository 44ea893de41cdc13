"""Create the synthetic dataset, which gpvit/data/datasets/synthetic.py describes.

    python tools/make_synthetic_data.py --output datasets/synthetic --train 200 --val 50 --seed 0

It takes about 15 s on one CPU core.
"""

from gpvit.utils.environment import prepare_command

if __name__ == "__main__":
    prepare_command()  # before PyTorch is imported

import argparse

from gpvit.cli.main import run_command
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
    args = parser.parse_args()
    try:
        make_dataset(args.output, args.train, args.val, args.seed)
    except (OSError, ValueError) as error:
        raise UserError(str(error)) from None


if __name__ == "__main__":
    run_command(main)
