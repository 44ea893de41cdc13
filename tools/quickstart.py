"""The whole way in a few minutes: makes the synthetic data set, trains a small GPViT Mask R-CNN on it, evaluates it,
checks that the evaluation would notice a broken detector, and draws.

    python tools/quickstart.py [train.max_iter=20 ...]

Overrides go to the training. An interrupted run is continued; a finished one is evaluated and drawn again. To begin
anew, delete output/quickstart.
"""

import os
import signal

if __name__ == "__main__":  # Ctrl-C during the imports, which take seconds
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))

import json
import subprocess
import sys
import time
from pathlib import Path

import gpvit.data
import numpy as np
import torch
from detectron2.config import instantiate
from detectron2.data import DatasetCatalog
from detectron2.evaluation import inference_on_dataset
from gpvit.config import load_config
from gpvit.data.datasets.synthetic import make_data_set
from gpvit.data.image_io import read_image
from gpvit.data.loader import share_batches
from gpvit.evaluation.coco_evaluation import coco_ap
from gpvit.utils.errors import UserError
from gpvit.utils.events import read_evaluation
from gpvit.utils.signals import interrupt, stop_signals_to
from gpvit.visualization.curves import save_curves
from gpvit.visualization.drawing import draw_annotations, draw_predictions, save_sheet
from pycocotools import mask as mask_api

REPOSITORY = Path(__file__).resolve().parent.parent
CONFIG = REPOSITORY / "configs" / "quickstart.py"
OUTPUT = REPOSITORY / "output" / "quickstart"
PICTURES = 8
INTERRUPTED = "\ninterrupted; the next call goes on from the last checkpoint"
BROKEN_BELOW = 0.2  # mask AP of the whole training; it reached 0.39


def main(overrides: list[str]) -> int:
    start = time.time()
    step("1/4 making the synthetic data set")
    folder = OUTPUT / "data"
    make_data_set(folder)
    step("2/4 training and evaluating; log, checkpoints and metrics go to output/quickstart")
    if code := train(folder, overrides):
        return code
    minutes = (time.time() - start) / 60
    step("3/4 checking that the evaluation notices a broken detector")
    aps = check_evaluation(folder, overrides)
    step("4/4 drawing")
    draw(folder, overrides)
    print(f"\nmask AP {100 * aps['as trained']:.1f} % on synthetic validation images, {minutes:.1f} minutes. In {OUTPUT}:")
    print("  README.md         what was trained, how it went, what the files are")
    print("  validation.png    ground truth beside predictions\n  curves.png        losses and AP")
    print("  model_final.pth   the detector (README: a tour of what to do with it)\n  log.txt           the whole log")
    return 0 if overrides else verdict(aps)


def train(folder: Path, overrides: list[str]) -> int:
    """Trains in a process of its own. Returns: its exit code, after a word on one that says nothing itself."""
    command = [sys.executable, "train_net.py", "--config-file", str(CONFIG), "--data", str(folder), "--resume"]
    processes: list[subprocess.Popen] = []

    def pass_on(number: int, frame: object) -> None:
        """Leaves a signal to the training run, which saves its state."""
        for process in processes:
            process.send_signal(number)

    with stop_signals_to(pass_on):
        processes.append(subprocess.Popen([*command, *overrides, f"train.output_dir={OUTPUT}"], cwd=REPOSITORY))
        code = processes[0].wait()
    if code in (128 + signal.SIGINT, 128 + signal.SIGTERM, -signal.SIGINT, -signal.SIGTERM):
        print(INTERRUPTED, file=sys.stderr)
    elif code < 0:
        why = ", perhaps for want of memory" if -code == signal.SIGKILL else ""
        print(
            f"error: the training run was killed ({signal.Signals(-code).name}){why}; "
            "call make quickstart again to go on from the last checkpoint",
            file=sys.stderr,
        )
    return code if code >= 0 else 128 - code


def verdict(aps: dict[str, float]) -> int:
    """Exit code 1, and why, if the whole training gave too little or the evaluation does not tell good from broken."""
    trained, *broken = aps.values()
    if trained < BROKEN_BELOW:
        print(f"error: mask AP {100 * trained:.1f} % is below {100 * BROKEN_BELOW:.0f}: all is not well", file=sys.stderr)
        return 1
    if max(broken) > trained / 2:
        print("error: a broken detector has more than half of the mask AP: the evaluation is broken", file=sys.stderr)
        return 1
    return 0


def step(text: str) -> None:
    print(f"\n=== {text}", flush=True)


def check_evaluation(folder: Path, overrides: list[str]) -> dict[str, float]:
    """Mask AP of the trained detector, which is the first, and of broken ones."""
    json_file = folder / "annotations" / "val.json"
    results = json.loads((OUTPUT / "coco_instances_results.json").read_text())
    variants = {
        "as trained": results,
        "with classes swapped": swap_classes(results, json_file),
        "with masks flipped": flip_masks(results),
        "with random weights": untrained_results(folder, overrides),
    }
    counted = read_evaluation(OUTPUT / "evaluation.json")["max_detections"]
    aps = {name: coco_ap(str(json_file), variant, "segm", counted) for name, variant in variants.items()}
    for name, ap in aps.items():
        print(f"mask AP {name}: {100 * ap:.1f} %")
    return aps


def swap_classes(results: list[dict], json_file: Path) -> list[dict]:
    """Every class called by the next one's name."""
    ids = [category["id"] for category in json.loads(json_file.read_text())["categories"]]
    following = dict(zip(ids, ids[1:] + ids[:1]))
    return [result | {"category_id": following[result["category_id"]]} for result in results]


def flip_masks(results: list[dict]) -> list[dict]:
    """Every mask mirrored left to right in its picture."""
    flipped = []
    for result in results:
        mask = mask_api.decode(result["segmentation"])[:, ::-1]
        flipped.append(result | {"segmentation": mask_api.encode(np.asfortranarray(mask))})
    return flipped


def untrained_results(folder: Path, overrides: list[str]) -> list[dict]:
    """The same detector's results before training."""
    cfg = load_config(str(CONFIG), overrides)
    gpvit.data.use_folder(cfg, str(folder), train=False)
    cfg.train.output_dir = str(OUTPUT / "untrained")
    torch.manual_seed(0)
    loader = share_batches(instantiate(cfg.dataloader.test))
    inference_on_dataset(instantiate(cfg.model), loader, instantiate(cfg.dataloader.evaluator))
    return json.loads((OUTPUT / "untrained" / "coco_instances_results.json").read_text())


def draw(folder: Path, overrides: list[str]) -> None:
    predictor = gpvit.Predictor(load_config(str(CONFIG), overrides), str(OUTPUT / "model_final.pth"), "cpu")
    pairs = []
    for record in DatasetCatalog.get(gpvit.data.register_folder(str(folder), "val"))[:PICTURES]:
        image = read_image(record["file_name"])
        instances = predictor(image)
        prediction = draw_predictions(image, instances[instances.scores >= 0.5], predictor.classes)
        pairs.append((draw_annotations(image, record, predictor.classes), prediction))
    save_sheet(pairs, OUTPUT / "validation.png")
    save_curves(OUTPUT / "metrics.json", OUTPUT / "curves.png")


if __name__ == "__main__":
    try:
        signal.signal(signal.SIGINT, interrupt)  # the imports are done
        if {"-h", "--help"} & set(sys.argv):
            sys.exit(print(__doc__))
        sys.exit(main(sys.argv[1:]))
    except (UserError, FileExistsError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        print(INTERRUPTED, file=sys.stderr)
        sys.exit(130)
