"""Four ways to detect objects in large images: AP, time and memory.

# Scenes of 4,000 x 3,000 pixels, with a detector that was trained for them:
python tests/benchmarks/large_images.py --weights output/large_scenes --data datasets/large_scenes
# One image, streamed, with time and memory of each part:
python tests/benchmarks/large_images.py --weights output/quickstart --image scene.tif

Each way is a process of its own. Needs Linux.
"""

from gpvit.utils.environment import prepare_command

if __name__ == "__main__":
    prepare_command()  # before PyTorch is imported

import argparse
import contextlib
import io
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.structures import Instances
from gpvit.cli.main import run_command
from gpvit.data.datasets import custom
from gpvit.evaluation.coco_evaluation import coco_json, summarize
from gpvit.large_images.detections import enlarged
from gpvit.large_images.readers import open_large
from gpvit.large_images.reduced import read_reduced
from gpvit.large_images.tiles import Tiles
from gpvit.predictor import Predictor

sys.path.append(str(Path(__file__).resolve().parents[1]))
from process_memory import MIB, peak_memory

MOST = 3000  # detections per image and class that AP counts


def reduced(predictor: Predictor, pixels: Any, side: int) -> Iterator[Instances]:
    image = read_reduced(pixels, side / max(pixels.shape))
    yield enlarged(predictor(image), pixels.shape[:2])


Way = Callable[[Predictor, Any, int], Iterator[Instances]]
WAYS: dict[str, Way] = {
    "reduced image": reduced,
    "tiles": lambda predictor, pixels, side: predictor.detect_large(
        pixels, Tiles(side, reduced=False)
    ),
    "tiles and reduced image": lambda predictor, pixels, side: predictor.detect_large(
        pixels, Tiles(side)
    ),
    "streamed": lambda predictor, pixels, side: predictor.detect_large(pixels),
}


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Detect the objects of all images in this process: results, seconds, bytes."""
    predictor = Predictor.from_checkpoint(args.weights, "cpu", overrides=args.overrides)
    data = custom.read(args.data, "val", masks=True)
    way, results = WAYS[args.only], []
    predictor(np.zeros((64, 64, 3), np.uint8))
    start = time.perf_counter()
    with peak_memory() as peak:
        before = peak[0]
        for image_id, image in data.images.items():
            pixels = open_large(Path(data.image_root) / image["file_name"])
            for found in way(predictor, pixels, args.tile):
                results += coco_json(found, image_id)
    seconds = time.perf_counter() - start
    ids = list(data.categories)
    for result in results:
        result["category_id"] = ids[result["category_id"]]
    return {"results": results, "seconds": seconds, "bytes": peak[0] - before}


def compare(args: argparse.Namespace) -> None:
    """Print a Markdown table of all ways."""
    truth = custom.read(args.data, "val", masks=True).coco()
    print(
        "| way | mask AP | small | medium | large | box AP | detections | time per image | memory |"
    )
    print("|---|---:|---:|---:|---:|---:|---:|---:|---:|")
    for name in WAYS:
        found = in_new_process(name)
        with contextlib.redirect_stdout(io.StringIO()):
            results = truth.loadRes(found["results"])
        mask_ap = summarize(truth, results, "segm", MOST).stats
        box_ap = summarize(truth, results, "bbox", MOST).stats
        cells = [f"{100 * mask_ap[index]:.1f}" for index in (0, 3, 4, 5)]
        cells += [f"{100 * box_ap[0]:.1f}", f"{len(found['results']):,}"]
        cells += [f"{found['seconds'] / len(truth.imgs):.1f} s", f"{found['bytes'] / MIB:.0f} MiB"]
        print("|", " | ".join([name, *cells]), "|", flush=True)


def in_new_process(name: str) -> dict[str, Any]:
    command = [sys.executable, __file__, *sys.argv[1:], "--only", name]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def stream_one(args: argparse.Namespace) -> None:
    """Stream one image and print what it took."""
    predictor = Predictor.from_checkpoint(args.weights, "cpu", overrides=args.overrides)
    start = time.perf_counter()
    pixels = open_large(args.image, args.temp_dir)
    opened = time.perf_counter()
    count = 0
    with peak_memory() as peak:
        for found in predictor.detect_large(pixels, folder=args.temp_dir, progress=True):
            count += len(found)
    end = time.perf_counter()
    resident = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    height, width, _ = pixels.shape
    print(
        f"{width} x {height} pixels: decoded in {opened - start:.0f} s, {count:,} objects in "
        f"{end - opened:.0f} s, {peak[0] / 1e9:.2f} GB of anonymous memory, at most "
        f"{resident / 1e9:.2f} GB with pages of files, which the system takes back when it needs to"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--weights", required=True, metavar="PATH", help="checkpoint of a detector")
    inputs = parser.add_mutually_exclusive_group(required=True)
    inputs.add_argument("--data", metavar="DIR", help="dataset whose val images are used")
    inputs.add_argument("--image", metavar="FILE", help="one image to stream")
    parser.add_argument("--tile", type=int, default=512, help="side in pixels (default: 512)")
    parser.add_argument("--temp-dir", metavar="DIR", help="folder for intermediate results")
    parser.add_argument("--only", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="config overrides")
    args = parser.parse_args()
    if args.only:
        print(json.dumps(measure(args)))
    elif args.data:
        compare(args)
    else:
        stream_one(args)


if __name__ == "__main__":
    run_command(main)
