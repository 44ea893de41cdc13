r"""Draws a detector's predictions on pictures.

    python tools/demo.py --config-file configs/quickstart.py --weights output/quickstart/model_final.pth \
        --input 'pictures/*.jpg' --output output/demo
"""

import argparse
import glob
import sys
from pathlib import Path

import cv2
import gpvit
import torch
from gpvit.engine import load_config
from gpvit.errors import UserError
from gpvit.images import read_image
from gpvit.visualize import draw_predictions


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True, metavar="FILE", help="LazyConfig file of the detector")
    parser.add_argument("--weights", required=True, metavar="FILE", help="its checkpoint")
    parser.add_argument("--input", required=True, nargs="+", metavar="IMAGE", help="pictures or globs")
    parser.add_argument("--output", default="output/demo", type=Path, metavar="DIR", help="where the pictures go")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--score-threshold", default=0.5, type=float, help="draw what scores at least this (0.05 or more)")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes to the config")
    args = parser.parse_intermixed_args()

    paths = [Path(path) for pattern in args.input for path in sorted(glob.glob(pattern)) or [pattern]]
    if any(path.resolve().parent == args.output.resolve() for path in paths):
        raise UserError(f"--output {args.output} is the folder of an input, which would be overwritten")
    targets = [args.output / f"{path.stem}.png" for path in paths]
    if len(set(targets)) < len(targets):
        raise UserError("two inputs have the same name and would be drawn to the same file; give them in two calls")
    predictor = gpvit.Predictor(load_config(args.config_file, args.overrides), args.weights, args.device)
    args.output.mkdir(parents=True, exist_ok=True)
    failed = 0
    for number, (path, target) in enumerate(zip(paths, targets), start=1):
        try:
            image = read_image(path)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            failed += 1
            continue
        instances = predictor(image)
        instances = instances[instances.scores >= args.score_threshold]
        picture = draw_predictions(image, instances, predictor.classes)
        cv2.imwrite(str(target), cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
        print(f"[{number}/{len(paths)}] {path}: {len(instances)} objects -> {target}")
    return 1 if failed else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        sys.exit(f"error: {error}")
