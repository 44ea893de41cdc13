"""Writes the synthetic dataset, of which gpvit/data/datasets/synthetic.py says what it is.

    python tools/make_synthetic_data.py --out datasets/synthetic --train 200 --val 50 --seed 0

It takes some 15 s on one CPU core.
"""

import os
import signal

if __name__ == "__main__":  # Ctrl-C during the imports
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))

import argparse
import sys

from gpvit.data.datasets.synthetic import make_data_set


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", required=True, help="folder to make")
    parser.add_argument("--train", type=int, default=200, help="training images (default: %(default)s)")
    parser.add_argument("--val", type=int, default=50, help="validation images (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="another seed gives other images (default: %(default)s)")
    arguments = parser.parse_args()
    try:
        make_data_set(arguments.out, arguments.train, arguments.val, arguments.seed)
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        main()
    except KeyboardInterrupt:
        sys.exit(130)
