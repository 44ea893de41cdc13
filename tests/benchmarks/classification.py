"""Images per second of classification: reading and augmenting images, and evaluation.

# Photos of 500 x 375 pixels through the recipe of the published classifiers, without a network:
python tests/benchmarks/classification.py pipeline --workers 2
# The same and the published classifier in evaluation:
python tests/benchmarks/classification.py evaluation --size L1 --workers 2
"""

from gpvit.utils.environment import prepare_command

if __name__ == "__main__":
    prepare_command()  # before PyTorch is imported

import argparse
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import torch
from detectron2.config import instantiate
from gpvit.cli.main import run_command
from gpvit.config import CONFIGS, load_config
from gpvit.data.loader import start_loading, stop_workers
from omegaconf import DictConfig

IMAGES = 64  # different files
BATCH, WARM_UP, TRAIN_BATCHES, EVALUATED = 32, 4, 20, 128


def write_photos(folder: Path) -> list[dict]:
    """Write JPEG files with the size and about the compression of ImageNet's; return records."""
    rng = np.random.default_rng(0)
    records = []
    for number in range(IMAGES):
        coarse = rng.integers(0, 256, (24, 32, 3), np.uint8)
        smooth = cv2.resize(coarse, (500, 375), interpolation=cv2.INTER_CUBIC).astype(int)
        pixels = np.clip(smooth + rng.integers(-12, 13, smooth.shape), 0, 255).astype(np.uint8)
        path = folder / f"{number}.jpg"
        cv2.imwrite(str(path), pixels, [cv2.IMWRITE_JPEG_QUALITY, 90])
        records.append({"file_name": str(path), "image_id": number, "label": number})
    return records


def measure_pipeline(cfg: DictConfig, records: list[dict], workers: int) -> None:
    cfg.dataloader.train.update(
        dataset=records, total_batch_size=BATCH, num_workers=workers, seed=0
    )
    batches = start_loading(instantiate(cfg.dataloader.train))
    for _ in range(WARM_UP):
        next(batches)
    start = time.perf_counter()
    for _ in range(TRAIN_BATCHES):
        next(batches)
    seconds = time.perf_counter() - start
    stop_workers(batches)
    print(f"training pipeline, {workers} workers: {TRAIN_BATCHES * BATCH / seconds:.0f} images/s")


@torch.no_grad()
def measure_evaluation(cfg: DictConfig, records: list[dict], workers: int) -> None:
    model = instantiate(cfg.model).eval()
    number = -(-EVALUATED // len(records))
    cfg.dataloader.test.update(
        dataset=(records * number)[:EVALUATED], batch_size=BATCH, num_workers=workers
    )
    loader = instantiate(cfg.dataloader.test)
    model(next(iter(loader)))
    start = time.perf_counter()
    images = sum(len(model(batch)) for batch in loader)
    seconds = time.perf_counter() - start
    threads = torch.get_num_threads()
    print(f"evaluation, {threads} threads, {workers} workers: {images / seconds:.1f} images/s")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("pipeline", "evaluation"))
    parser.add_argument("--size", choices=("L1", "L2", "L3", "L4"), default="L1")
    parser.add_argument("--workers", type=int, default=2, help="data-loading processes")
    args = parser.parse_args()
    path = CONFIGS / "published" / f"classifier_gpvit_{args.size.lower()}.py"
    cfg = load_config(str(path))
    with tempfile.TemporaryDirectory() as folder:
        records = write_photos(Path(folder))
        measure = measure_pipeline if args.what == "pipeline" else measure_evaluation
        measure(cfg, records, args.workers)


if __name__ == "__main__":
    run_command(main)
