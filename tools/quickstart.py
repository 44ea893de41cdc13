"""The whole path in minutes: makes the synthetic dataset, trains a small GPViT Mask R-CNN on it, evaluates it, and draws.

    python tools/quickstart.py [train.max_iter=20 ...]

Overrides go to the training run. An interrupted run is continued; a finished one is evaluated and drawn again. To start
over, delete output/quickstart.
"""

from gpvit.utils.environment import prepare_command

if __name__ == "__main__":
    prepare_command()  # before PyTorch is imported

import signal
import subprocess
import sys
import time
from pathlib import Path

from detectron2.data import DatasetCatalog
from gpvit.cli.main import run_command
from gpvit.config import load_config
from gpvit.data import register_folder
from gpvit.data.datasets.synthetic import make_data_set
from gpvit.data.image_io import read_image
from gpvit.predictor import Predictor
from gpvit.utils.errors import UserError
from gpvit.utils.events import read_evaluation
from gpvit.utils.signals import stop_signals_to
from gpvit.visualization.curves import save_curves
from gpvit.visualization.drawing import draw_annotations, draw_predictions, save_sheet

REPOSITORY = Path(__file__).resolve().parent.parent
CONFIG = REPOSITORY / "configs" / "quickstart.py"
OUTPUT = REPOSITORY / "output" / "quickstart"
PICTURES = 8
INTERRUPTED = "\ninterrupted; the next call goes on from the last checkpoint"
BROKEN_BELOW = 20  # mask AP in percent after the whole training run; it reached 39


def main(overrides: list[str]) -> int:
    start = time.time()
    step("1/3 making the synthetic dataset")
    folder = OUTPUT / "data"
    make_data_set(folder)
    step("2/3 training and evaluating; log, checkpoints and metrics go to output/quickstart")
    if code := train(folder, overrides):
        return code
    minutes = (time.time() - start) / 60
    ap = read_evaluation(OUTPUT / "evaluation.json")["results"]["segm"]["AP"]
    step("3/3 drawing")
    draw(folder, overrides)
    print(
        f"\nmask AP {ap:.1f} % on synthetic validation images, {minutes:.1f} minutes. In {OUTPUT}:"
    )
    print("  README.md         what was trained, how it went, what the files are")
    print("  validation.png    ground truth beside predictions\n  curves.png        losses and AP")
    print(
        "  model_final.pth   the detector (README: a tour of what to do with it)\n  log.txt           the whole log"
    )
    if not overrides and ap < BROKEN_BELOW:
        raise UserError(f"mask AP {ap:.1f} % is below {BROKEN_BELOW}: all is not well")
    return 0


def train(folder: Path, overrides: list[str]) -> int:
    """Trains in a process of its own. Returns: its exit code, after a word on one that says nothing itself."""
    command = [
        sys.executable,
        "train_net.py",
        "--config-file",
        str(CONFIG),
        "--data",
        str(folder),
        "--resume",
    ]
    processes: list[subprocess.Popen] = []

    def pass_on(number: int, frame: object) -> None:
        """Leaves a signal to the training run, which saves its state."""
        for process in processes:
            process.send_signal(number)

    with stop_signals_to(pass_on):
        processes.append(
            subprocess.Popen([*command, *overrides, f"train.output_dir={OUTPUT}"], cwd=REPOSITORY)
        )
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


def step(text: str) -> None:
    print(f"\n=== {text}", flush=True)


def draw(folder: Path, overrides: list[str]) -> None:
    predictor = Predictor(
        load_config(str(CONFIG), overrides), str(OUTPUT / "model_final.pth"), "cpu"
    )
    pairs = []
    for record in DatasetCatalog.get(register_folder(str(folder), "val"))[:PICTURES]:
        image = read_image(record["file_name"])
        instances = predictor(image)
        prediction = draw_predictions(image, instances[instances.scores >= 0.5], predictor.classes)
        pairs.append((draw_annotations(image, record, predictor.classes), prediction))
    save_sheet(pairs, OUTPUT / "validation.png")
    save_curves(OUTPUT / "metrics.json", OUTPUT / "curves.png")


def run() -> int:
    if {"-h", "--help"} & set(sys.argv):
        print(__doc__)
        return 0
    try:
        return main(sys.argv[1:])
    except FileExistsError as error:
        raise UserError(str(error)) from None
    except KeyboardInterrupt:
        print(INTERRUPTED, file=sys.stderr)
        raise


if __name__ == "__main__":
    run_command(run)
