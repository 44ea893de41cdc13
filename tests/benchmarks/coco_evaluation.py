"""What COCO's metrics cost on many images: pycocotools beside what this project evaluates with, the same results to both.

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
from faster_coco_eval import COCOeval_faster
from gpvit.cli.main import run_command
from gpvit.cli.options import COUNT
from pycocotools import mask as masks
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

HEIGHT, WIDTH, CLASSES = 480, 640, 80
OBJECTS, FALSE_ALARMS = 7, 23  # of an image; each object is found once, more or less


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--images", default=5000, type=COUNT, metavar="N", help="how many (%(default)s)"
    )
    compare(parser.parse_args().images)


def compare(images: int) -> None:
    """Prints CPU seconds of both for boxes and masks, and how many times faster ours is."""
    truth, results = made_up(images)
    seconds: dict[str, dict[str, float]] = {}
    print(
        f"| CPU seconds, {images} images, {len(results)} detections | pycocotools | ours | ratio |\n|---|---:|---:|---:|"
    )
    for task in ("bbox", "segm"):
        figures, seconds[task] = {}, {}
        for name, evaluator in (("pycocotools", COCOeval), ("ours", COCOeval_faster)):
            with contextlib.redirect_stdout(io.StringIO()):
                data = COCO()
                data.dataset = truth
                data.createIndex()
                found = data.loadRes(results)
                start = time.process_time()
                run = evaluator(data, found, task)
                run.evaluate()
                run.accumulate()
                run.summarize()
            seconds[task][name] = time.process_time() - start
            figures[name] = np.asarray(run.stats[:12])
        np.testing.assert_allclose(figures["ours"], figures["pycocotools"], atol=1e-6)
        theirs, ours = seconds[task].values()
        print(
            f"| {task} (AP {figures['ours'][0]:.3f}) | {theirs:.1f} | {ours:.1f} | {theirs / ours:.1f} |",
            flush=True,
        )
    total = {name: seconds["bbox"][name] + seconds["segm"][name] for name in seconds["bbox"]}
    ratio = total["pycocotools"] / total["ours"]
    print(f"| both | {total['pycocotools']:.1f} | {total['ours']:.1f} | {ratio:.1f} |")


def made_up(images: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Ellipses as ground truth, in COCO's format, and as results: objects found a little beside, and others at random."""
    random = np.random.default_rng(0)
    annotations: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for image in range(1, images + 1):
        for number in range(OBJECTS + FALSE_ALARMS):
            centre, radii = random.uniform((0, 0), (WIDTH, HEIGHT)), random.uniform(8, 100, 2)
            category = int(random.integers(1, CLASSES + 1))
            if number < OBJECTS:
                item = ellipse(centre, radii) | {
                    "image_id": image,
                    "category_id": category,
                    "iscrowd": 0,
                }
                annotations.append(item | {"id": len(annotations) + 1})
                centre, radii = centre + random.normal(0, 4, 2), radii * random.uniform(0.8, 1.2, 2)
            item = ellipse(centre, radii) | {"image_id": image, "category_id": category}
            results.append(
                item | {"score": float(random.random() * (1.0 if number < OBJECTS else 0.6))}
            )
    sizes = [{"id": image, "height": HEIGHT, "width": WIDTH} for image in range(1, images + 1)]
    categories = [{"id": id, "name": str(id)} for id in range(1, CLASSES + 1)]
    return {"images": sizes, "categories": categories, "annotations": annotations}, results


def ellipse(centre: np.ndarray, radii: np.ndarray) -> dict[str, Any]:
    angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    points = centre + radii * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    points = np.clip(points, 0, (WIDTH, HEIGHT))
    rle = masks.frPyObjects([points.ravel().tolist()], HEIGHT, WIDTH)[0]
    return {"segmentation": rle, "bbox": masks.toBbox(rle).tolist(), "area": float(masks.area(rle))}


if __name__ == "__main__":
    run_command(main)
