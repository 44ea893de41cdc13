"""Time and memory of semantic segmentation, besides the network.

# Class maps by strips, compared with F.interpolate(...).argmax(1), alternately in one process:
python tests/benchmarks/segmentation.py class_map
# The confusion matrix and the boundary IoU of an image:
python tests/benchmarks/segmentation.py counts
# Peak memory of a prediction for a large image, with the published SegFormer head:
python tests/benchmarks/segmentation.py large --size L1 --image 4000x6000
python tests/benchmarks/segmentation.py large --size L1 --image 4000x6000 --window 512
"""

from gpvit.utils.environment import prepare_command

if __name__ == "__main__":
    prepare_command()  # before PyTorch is imported

import argparse
import resource
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from detectron2.config import instantiate
from gpvit.cli.main import run_command
from gpvit.config import CONFIGS, load_config
from gpvit.evaluation.semantic_evaluation import PixelCounts, near_boundary
from gpvit.modeling.semantic_inference import Prediction, class_map, resize_matrix
from gpvit.utils.profiler import image_size

CLASSES = 150
IMAGE = 512, 683  # an image of ADE20K after resizing
RUNS = 21


def seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def compare_class_map() -> None:
    """Print the ratio of the times, and the fraction of pixels with the same class."""
    torch.manual_seed(0)
    height, width = IMAGE[0] // 8, -(-IMAGE[1] // 8)
    logits = torch.randn(1, CLASSES, height, width)

    def by_strips() -> torch.Tensor:
        rows = resize_matrix(height, IMAGE[0], logits)
        columns = resize_matrix(width, IMAGE[1], logits)
        return class_map([Prediction(logits[0], rows, columns)])

    def by_argmax() -> torch.Tensor:
        return F.interpolate(logits, IMAGE, mode="bilinear").argmax(1)[0]

    equal = (by_strips() == by_argmax()).double().mean()
    strips, argmax, ratios = [], [], []
    for _ in range(RUNS):
        strips.append(seconds(by_strips))
        argmax.append(seconds(by_argmax))
        ratios.append(strips[-1] / argmax[-1])
    low, middle, high = statistics.quantiles(ratios, n=4)
    print(
        f"{CLASSES} classes, {IMAGE[0]}x{IMAGE[1]}: {1e3 * statistics.median(strips):.0f} ms by "
        f"strips, {1e3 * statistics.median(argmax):.0f} ms by argmax, ratio {middle:.2f} "
        f"(quartiles {low:.2f}, {high:.2f}); {equal:.4%} of the pixels equal"
    )


def time_counts() -> None:
    """Print the time of the confusion matrix of an image, and of its boundaries."""
    rng = np.random.default_rng(0)
    patches = rng.integers(0, CLASSES, (16, 22)).astype(np.uint8)
    labels = np.kron(patches, np.ones((32, 32), np.uint8))[: IMAGE[0], : IMAGE[1]]
    predicted = np.roll(labels, 3, axis=1).astype(np.int64)
    counts = PixelCounts(CLASSES)
    counted = labels != 255
    matrix = [
        seconds(lambda: counts.add_confusion(predicted, labels, counted)) for _ in range(RUNS)
    ]
    boundary = [seconds(lambda: near_boundary(labels)) for _ in range(RUNS)]
    everything = [seconds(lambda: counts.add(predicted, labels)) for _ in range(RUNS)]
    print(
        f"{CLASSES} classes, {IMAGE[0]}x{IMAGE[1]}: confusion matrix "
        f"{1e3 * statistics.median(matrix):.1f} ms, pixels near a boundary "
        f"{1e3 * statistics.median(boundary):.1f} ms, all of an image "
        f"{1e3 * statistics.median(everything):.1f} ms"
    )


@torch.no_grad()
def measure_large_image(size: str, image: tuple[int, int], window: int) -> None:
    """Print time and peak memory of a prediction with random weights, from an image to classes.

    With a window, the network's input has the size of the image.
    """
    name = f"published/segformer_gpvit_{size.lower()}.py"
    cfg = load_config(str(CONFIGS / name), [f"model.window={window}", "model.class_map=True"])
    model = instantiate(cfg.model).eval()
    height, width = image
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    resized = pixels
    if not window:
        for augmentation in instantiate(cfg.dataloader.test.mapper.augmentations):
            resized = augmentation.get_transform(resized).apply_image(resized)
    tensor = torch.from_numpy(np.ascontiguousarray(resized.transpose(2, 0, 1)))
    item = {"image": tensor, "height": height, "width": width}
    start = time.perf_counter()
    classes = model([item])[0]["sem_seg"]
    took = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"{size}, {height}x{width}, network input {tensor.shape[1]}x{tensor.shape[2]}, window "
        f"{window}: class map {tuple(classes.shape)} after {took:.1f} s, peak of the process "
        f"{peak:.2f} GiB"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("class_map", "counts", "large"))
    parser.add_argument("--size", default="L1")
    parser.add_argument("--image", type=image_size, default=(4000, 6000), metavar="HEIGHTxWIDTH")
    parser.add_argument("--window", type=int, default=0, help="pixels; 0: the complete image")
    args = parser.parse_args()
    if args.what == "class_map":
        compare_class_map()
    elif args.what == "counts":
        time_counts()
    else:
        measure_large_image(args.size, args.image, args.window)


if __name__ == "__main__":
    run_command(main)
