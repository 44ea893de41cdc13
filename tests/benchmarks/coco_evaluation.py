"""Run time of COCO's metrics on many images: pycocotools and this project's evaluator.

python tests/benchmarks/coco_evaluation.py --images 5000
"""

from gpvit.utils.environment import prepare_command

if __name__ in ("__main__", "__mp_main__"):
    prepare_command()  # before PyTorch is imported

import argparse
import contextlib
import io
import time
from typing import Any

import numpy as np
from gpvit.cli.main import run_command
from gpvit.cli.options import COUNT
from gpvit.evaluation.cocoeval import COCOeval
from pycocotools import cocoeval
from pycocotools import mask as masks
from pycocotools.coco import COCO

HEIGHT, WIDTH, CLASSES = 480, 640, 80
# In each image. Each object has one detection, whose box and mask deviate from it.
OBJECTS, FALSE_POSITIVES = 7, 23


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--images",
        default=5000,
        type=COUNT,
        metavar="N",
        help="number of images (default: %(default)s)",
    )
    compare(parser.parse_args().images)


def compare(images: int) -> None:
    """Print the CPU seconds of both for boxes and masks, and their ratio.

    Raises:
        AssertionError: the metrics differ.
    """
    ground_truth, results = synthetic_results(images)
    seconds: dict[str, dict[str, float]] = {}
    title = f"CPU seconds, {images} images, {len(results)} detections"
    print(f"| {title} | pycocotools | ours | ratio |\n|---|---:|---:|---:|")
    for task in ("bbox", "segm"):
        metrics, seconds[task] = {}, {}
        for name, evaluator in (("pycocotools", cocoeval.COCOeval), ("ours", COCOeval)):
            with contextlib.redirect_stdout(io.StringIO()):
                seconds[task][name], metrics[name] = evaluate(
                    evaluator, ground_truth, results, task
                )
        np.testing.assert_array_equal(metrics["ours"], metrics["pycocotools"])
        theirs, ours = seconds[task].values()
        row = f"{task} (AP {metrics['ours'][0]:.3f})"
        print(f"| {row} | {theirs:.1f} | {ours:.1f} | {theirs / ours:.1f} |", flush=True)
    total = {name: seconds["bbox"][name] + seconds["segm"][name] for name in seconds["bbox"]}
    ratio = total["pycocotools"] / total["ours"]
    print(f"| both | {total['pycocotools']:.1f} | {total['ours']:.1f} | {ratio:.1f} |")


def evaluate(
    evaluator: Any, ground_truth: dict[str, Any], results: list[dict[str, Any]], task: str
) -> tuple[float, np.ndarray]:
    """Return CPU seconds and metrics of an evaluator."""
    dataset = COCO()
    dataset.dataset = ground_truth
    dataset.createIndex()
    detections = dataset.loadRes(results)
    start = time.process_time()
    run = evaluator(dataset, detections, task)
    run.evaluate()
    run.accumulate()
    run.summarize()
    # What the run holds is freed after this, which takes pycocotools a second.
    return time.process_time() - start, np.asarray(run.stats[:12])


def synthetic_results(images: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return random ellipses in COCO format.

    Returns:
        The ground truth, and detections: the objects with small deviations, and false positives.
    """
    random = np.random.default_rng(0)
    annotations: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for image in range(1, images + 1):
        for number in range(OBJECTS + FALSE_POSITIVES):
            center, radii = random.uniform((0, 0), (WIDTH, HEIGHT)), random.uniform(8, 100, 2)
            ids = {"image_id": image, "category_id": int(random.integers(1, CLASSES + 1))}
            if number < OBJECTS:
                item = ellipse(center, radii) | ids
                annotations.append(item | {"iscrowd": 0, "id": len(annotations) + 1})
                center, radii = center + random.normal(0, 4, 2), radii * random.uniform(0.8, 1.2, 2)
            max_score = 1.0 if number < OBJECTS else 0.6
            item = ellipse(center, radii) | ids
            results.append(item | {"score": float(random.random() * max_score)})
    sizes = [{"id": image, "height": HEIGHT, "width": WIDTH} for image in range(1, images + 1)]
    categories = [{"id": id, "name": str(id)} for id in range(1, CLASSES + 1)]
    return {"images": sizes, "categories": categories, "annotations": annotations}, results


def ellipse(center: np.ndarray, radii: np.ndarray) -> dict[str, Any]:
    """Return mask (RLE), box and area of an ellipse, drawn as a polygon of 24 corners."""
    angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    points = center + radii * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    points = np.clip(points, 0, (WIDTH, HEIGHT))
    rle = masks.frPyObjects([points.ravel().tolist()], HEIGHT, WIDTH)[0]
    return {"segmentation": rle, "bbox": masks.toBbox(rle).tolist(), "area": float(masks.area(rle))}


if __name__ == "__main__":
    run_command(main)
