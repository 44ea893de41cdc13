"""Quick start: create synthetic data, train a small GPViT Mask R-CNN, evaluate it, and draw.

    python tools/quickstart.py [train.max_iter=20 ...]

It takes a few minutes. Config overrides apply to the training run. An interrupted run is resumed; a
finished one is only evaluated and drawn again. To start over, delete output/quickstart.
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
from gpvit.data.datasets.synthetic import make_dataset
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
DRAWN_IMAGES = 8
INTERRUPTED = "\ninterrupted; run the same command again to resume from the last checkpoint"
MIN_AP = 20  # of masks, in percent, after the complete training run, which reaches 34 to 39

FILES = """\
  README.md         summary of the training run and list of its files
  validation.png    ground truth next to predictions
  curves.png        losses and AP
  model_final.pth   the trained detector (the repository's README shows how to use it)
  log.txt           the complete log"""


def main(overrides: list[str]) -> int:
    start = time.time()
    print_step("1/3 creating the synthetic dataset")
    folder = OUTPUT / "data"
    make_dataset(folder)
    print_step("2/3 training and evaluating; log, checkpoints and metrics go to output/quickstart")
    code = train(folder, overrides)
    if code:
        return code
    minutes = (time.time() - start) / 60
    ap = read_evaluation(OUTPUT / "evaluation.json")["results"]["segm"]["AP"]
    print_step("3/3 drawing predictions and curves")
    draw(folder, overrides)
    print(f"\nmask AP {ap:.1f} % on the synthetic validation images, after {minutes:.1f} minutes")
    print(f"files in {OUTPUT}:\n{FILES}")
    if not overrides and ap < MIN_AP:
        raise UserError(
            f"mask AP {ap:.1f} % is below {MIN_AP} %, which every working installation exceeds; "
            "run the tests with: make test"
        )
    return 0


def train(folder: Path, overrides: list[str]) -> int:
    """Run train_net.py in a process.

    Returns:
        Its exit code, or 128 plus the number of the signal that killed it. In the latter case, and
        if it was interrupted, a message is printed.
    """
    command = [sys.executable, "train_net.py", "--config-file", str(CONFIG)]
    command += ["--data", str(folder), "--resume", *overrides, f"train.output_dir={OUTPUT}"]
    processes: list[subprocess.Popen] = []

    def forward(number: int, frame: object) -> None:
        """Forward a signal to the training run, which saves its state and exits."""
        for process in processes:
            process.send_signal(number)

    with stop_signals_to(forward):
        processes.append(subprocess.Popen(command, cwd=REPOSITORY))
        code = processes[0].wait()
    if code in (128 + signal.SIGINT, 128 + signal.SIGTERM, -signal.SIGINT, -signal.SIGTERM):
        print(INTERRUPTED, file=sys.stderr)
    elif code < 0:  # killed by the signal -code
        is_kill = -code == signal.SIGKILL
        cause = ", possibly because the system ran out of memory" if is_kill else ""
        print(
            f"error: the training run was killed ({signal.Signals(-code).name}){cause}; "
            "run make quickstart again to resume from the last checkpoint",
            file=sys.stderr,
        )
    return code if code >= 0 else 128 - code


def print_step(text: str) -> None:
    print(f"\n=== {text}", flush=True)


def draw(folder: Path, overrides: list[str]) -> None:
    cfg = load_config(str(CONFIG), overrides)
    predictor = Predictor(cfg, str(OUTPUT / "model_final.pth"), "cpu")
    pairs = []
    for record in DatasetCatalog.get(register_folder(str(folder), "val"))[:DRAWN_IMAGES]:
        image = read_image(record["file_name"])
        instances = predictor(image)
        prediction = draw_predictions(image, instances[instances.scores >= 0.5], predictor.classes)
        pairs.append((draw_annotations(image, record, predictor.classes), prediction))
    save_sheet(pairs, OUTPUT / "validation.png")
    save_curves(OUTPUT / "metrics.json", OUTPUT / "curves.png")


def run() -> int:
    if "-h" in sys.argv or "--help" in sys.argv:
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
