"""Monitoring of a run: the terminal, the files in the output folder, and Weights & Biases."""

import io
import json
import logging
import os
import re
import shlex
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, TypeVar

import cv2
import gpvit.data
import numpy as np
import pytest
import torch
import train_net
from conftest import REPOSITORY, TINY
from detectron2.config import instantiate
from detectron2.data import DatasetCatalog
from detectron2.utils.events import EventStorage, EventWriter
from gpvit.checkpoint.files import read_content
from gpvit.cli.train import argument_parser
from gpvit.config import load_config
from gpvit.config.values import may_change
from gpvit.engine.hooks import MonitorHook
from gpvit.engine.launch import launch
from gpvit.engine.monitoring.hooks import PeriodicWriters, ValidationImages
from gpvit.engine.monitoring.run_readme import FIRST_LINE, RunReadme, command
from gpvit.evaluation.metrics import known_metrics
from gpvit.utils.errors import UserError
from gpvit.utils.logger import AboveBars
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from tqdm import tqdm

pytestmark = pytest.mark.long

CONFIG = REPOSITORY / "configs" / "quickstart.py"
CLASSES = ["disc", "triangle", "cross"]
Monitor = TypeVar("Monitor", bound=MonitorHook)


def call(*arguments: object) -> None:
    train_net.main(argument_parser().parse_intermixed_args(list(map(str, arguments))))


def train(folder: Path, data: Path, *arguments: str) -> None:
    options = ["--config-file", CONFIG, "--data", data, *TINY, "train.device=cpu", "train.seed=1"]
    call(*options, f"train.output_dir={folder}", *arguments)


def read_json(path: Path) -> Any:
    return json.loads(path.read_text())


def rows(folder: Path) -> list[dict[str, float]]:
    return list(map(json.loads, (folder / "metrics.json").read_text().splitlines()))


class Terminal(io.StringIO):
    """Keeps what is sent to a terminal, with control characters."""

    def isatty(self) -> bool:
        return True

    def fileno(self) -> int:
        return 1

    def lines(self) -> list[str]:
        """The lines that are visible at the end."""
        lines, row, column = [""], 0, 0
        # Escape sequences, such as "cursor up", or single characters.
        for token in re.findall(r"\x1b\[\d*[A-Za-z]|.", self.getvalue(), re.DOTALL):
            if token == "\x1b[A":
                row -= 1
            elif token == "\n":
                row, column = row + 1, 0
                if row == len(lines):
                    lines.append("")
            elif token == "\r":
                column = 0
            elif len(token) == 1:
                before, after = lines[row][:column], lines[row][column + 1 :]
                lines[row] = before.ljust(column) + token + after
                column += 1
        return list(map(str.rstrip, lines))


@pytest.fixture(scope="module")
def terminal() -> Terminal:
    return Terminal()


@pytest.fixture(scope="module")
def trained(
    tmp_path_factory: pytest.TempPathFactory, synthetic_data: Path, terminal: Terminal
) -> Iterator[Path]:
    """The folder of a run on a terminal: four iterations, evaluated after two and four."""
    folder = tmp_path_factory.mktemp("monitoring") / "my run"
    loggers = list(map(logging.getLogger, ("detectron2", "fvcore", "gpvit")))
    handlers = [list(logger.handlers) for logger in loggers]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", terminal)
        patch.setattr(os, "get_terminal_size", lambda *args: os.terminal_size((100, 30)))
        patch.setattr(sys, "argv", ["train_net.py", "--data", "my data"])
        options = ["train.eval_period=2", "train.checkpointer.period=2"]
        options += ["train.best_metric=segm/AP", "train.pictures=2"]
        train(folder, synthetic_data, *options)
    yield folder
    for logger, before in zip(loggers, handlers):
        logger.handlers = before


def test_terminal_shows_one_bar_with_the_log_above_it(trained: Path, terminal: Terminal) -> None:
    output = terminal.getvalue()
    assert re.search(r"\r *50% .* 2/4, (ETA [\d:]+, )?loss [\d.]+, lr [\d.e-]+", output)
    assert re.search(r"\r100% .* 4/4, ETA 00:00, loss [\d.]+, lr [\d.e-]+, segm/AP \d", output)
    assert "evaluation: " in output
    text = "\n".join(terminal.lines())
    assert text.count("/4, ") == 1  # earlier states of the bar were removed
    assert "training from iteration 0 to 4\n" in text
    assert "Loading and preparing results" in text  # printed, not logged
    assert "total_loss" not in text and "Inference done" not in text
    assert (trained / "log.txt").read_text().count("total_loss") == 4


def test_output_without_a_terminal_has_no_bar(
    synthetic_data: Path, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    train(tmp_path, synthetic_data, "train.max_iter=1")
    output = "".join(capfd.readouterr())
    assert "total_loss" in output and "\r" not in output


def test_text_printed_in_parts_is_one_line_above_the_bar() -> None:
    terminal = Terminal()
    with tqdm(total=1, file=terminal):
        print("one", "line", file=AboveBars(terminal))
    assert "one line" in terminal.lines()


def test_each_evaluation_draws_the_same_images(trained: Path) -> None:
    sheets = sorted((trained / "pictures").iterdir())
    assert [path.name for path in sheets] == ["0000002.png", "0000004.png"]
    for path in sheets:
        assert cv2.imread(str(path)).std() > 10
    events = EventAccumulator(str(trained)).Reload()
    tags = events.Tags()["images"]
    assert len(tags) == 2
    for tag in tags:
        first, second = events.Images(tag)
        assert (first.step, second.step) == (1, 3)
        assert min(first.width, second.width) >= 2 * 640  # ground truth and prediction
    assert [event.step for event in events.Scalars("segm/AP")] == [1, 3]


def test_curves_are_drawn_and_no_partial_files_remain(trained: Path) -> None:
    assert cv2.imread(str(trained / "curves.png")) is not None
    assert not list(trained.rglob("*.partial*"))


def test_drawing_does_not_influence_training(
    trained: Path, synthetic_data: Path, tmp_path: Path
) -> None:
    train(tmp_path, synthetic_data, "train.eval_period=2", "train.checkpointer.period=2")
    with_drawings = read_content(str(trained / "model_final.pth"))["model"]
    without = read_content(str(tmp_path / "model_final.pth"))["model"]
    assert with_drawings.keys() == without.keys()
    for key, tensor in with_drawings.items():
        assert torch.equal(tensor, without[key]), key
    assert not (tmp_path / "pictures").exists()


class Detector(nn.Module):
    """Draws a random number, then fails."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen, self.trained = nn.BatchNorm2d(3).eval(), nn.BatchNorm2d(3)

    def forward(self, batch: list[dict]) -> None:
        assert not self.training and not self.trained.training
        torch.rand(1)
        raise RuntimeError("out of memory")


def test_failed_drawing_restores_modes_and_random_numbers(
    synthetic_data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, logger="gpvit")
    chosen = records(synthetic_data)
    hook = after_three_iterations(
        ValidationImages(chosen, lambda record: record, CLASSES, count=1, folder=tmp_path)
    )
    model = hook.trainer.model = Detector()
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].tolist()
    hook.after_evaluation()
    assert "out of memory" in caplog.text and "the run continues" in caplog.text
    assert (model.training, model.frozen.training, model.trained.training) == (True, False, True)
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.random.get_state()[1].tolist() == numpy_state


def test_unreadable_validation_image_is_not_drawn(
    synthetic_data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, logger="gpvit")
    cfg = load_config(str(CONFIG), TINY)
    broken, good = records(synthetic_data)[:2]
    chosen = [broken | {"file_name": "nowhere.png"}, good]
    mapper = instantiate(cfg.dataloader.test.mapper)
    hook = after_three_iterations(
        ValidationImages(chosen, mapper, CLASSES, count=2, folder=tmp_path)
    )
    hook.trainer.model = instantiate(cfg.model)
    hook.after_evaluation()
    assert "nowhere.png" in caplog.text
    ((name, _, _),) = hook.trainer.storage._vis_data
    assert name.endswith(Path(good["file_name"]).name)
    assert (tmp_path / "pictures" / "0000003.png").exists()


def records(data: Path) -> list[dict]:
    return DatasetCatalog.get(gpvit.data.register_folder(str(data), "val"))


def after_three_iterations(monitor: Monitor) -> Monitor:
    """Connects a monitor to a trainer that has completed three of four iterations."""
    monitor.trainer = SimpleNamespace(done=3, max_iter=4, ema=None, storage=EventStorage(2))
    return monitor


class Writer(EventWriter):
    def __init__(self, works: bool) -> None:
        self.works, self.written = works, 0

    def write(self) -> None:
        if not self.works:
            raise OSError("No space left on device")
        self.written += 1


def test_failing_writer_is_logged_once_and_does_not_stop_training(
    caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    caplog.set_level(logging.WARNING, logger="gpvit")
    (tmp_path / "metrics.json").touch()
    printer, writer = Writer(works=True), Writer(works=False)
    hook = after_three_iterations(PeriodicWriters(printer, [writer], period=1, folder=tmp_path))
    for works in (False, False, True, False):
        writer.works = works
        hook.trainer.storage.put_image("image", np.zeros((3, 1, 1), np.uint8))
        hook.after_step()
        assert not hook.trainer.storage._vis_data
    hook.after_train()
    assert (printer.written, writer.written) == (5, 1)
    assert caplog.text.count("No space left on device") == 2


def test_readme_describes_model_data_and_results(trained: Path, synthetic_data: Path) -> None:
    page = (trained / "README.md").read_text()
    assert "\n# my run\n" in page and "Finished: 4 of 4 iterations" in page
    assert "python train_net.py --data 'my data'" in page and str(CONFIG) in page
    for split in ("train", "val"):
        content = read_json(synthetic_data / "annotations" / f"{split}.json")
        images = len(content["images"])
        objects = sum(not item["iscrowd"] for item in content["annotations"])
        assert f"annotations/{split}.json` | {images} | {objects} |" in page
    assert "GeneralizedRCNN, 1.20 million parameters" in page and "seed: 1" in page
    assert "3 classes: disc, triangle, cross" in page
    assert f"torch {torch.__version__.partition('+')[0]}" in page
    assert re.search(r"\| 2 \| .*\n\| 4 \| ", page) and "in `model_best.pth`" in page
    assert "![](curves.png)" in page and "![](pictures/0000004.png)" in page


def test_readme_describes_each_file(trained: Path) -> None:
    page = (trained / "README.md").read_text().partition("## Files")[2]
    described = set()
    for pattern in re.findall(r"^\| `(.*?)` \|", page, re.MULTILINE):
        described.update(trained.glob(pattern))
    assert set(trained.iterdir()) - described == {trained / "README.md"}
    assert "best segm/AP" in page


def test_evaluation_command_in_the_readme_works(trained: Path) -> None:
    page = (trained / "README.md").read_text()
    # The command has two lines, the first of which ends with a backslash.
    (command,) = re.findall(r"^python train_net.py (--config-file.*\\\n.*)$", page, re.MULTILINE)
    config, results = trained / "config.yaml", trained / "evaluation.json"
    before = config.read_bytes(), results.read_bytes()
    call(*shlex.split(command.replace("\\\n", " ")))
    folder = trained / "evaluation"
    evaluation = read_json(folder / "evaluation.json")
    assert evaluation["weights"] == str(trained / "model_best.pth") and evaluation["images"] == 4
    assert load_config(str(folder / "config.yaml")).train.output_dir == str(folder)
    assert (config.read_bytes(), results.read_bytes()) == before


def test_evaluation_json_has_speed_and_data(trained: Path, synthetic_data: Path) -> None:
    evaluation = read_json(trained / "evaluation.json")
    assert evaluation["iteration"] == 4 and evaluation["images"] == 4
    assert evaluation["weights"] is None and "CPU" in evaluation["device"]
    assert {"AP", "AP50"} <= evaluation["results"]["segm"].keys()
    assert 0 < evaluation["seconds_per_image"] < 5
    data = evaluation["data"]
    assert data["name"] == f"{synthetic_data.name}_val"
    assert data["file"] == str(synthetic_data / "annotations" / "val.json")
    assert data["masks"] and data["fingerprint"].startswith("2:")


def contents(folder: Path) -> dict[Path, bytes]:
    found = {}
    for path in folder.rglob("*"):
        if path.is_file() and path.name != ".lock":
            found[path] = path.read_bytes()
    return found


def test_evaluation_in_the_folder_of_a_run_raises(trained: Path, synthetic_data: Path) -> None:
    before = contents(trained)
    weights = f"train.init_checkpoint={trained / 'model_0000002.pth'}"
    message = f"is the folder of a training run .*such as train.output_dir={trained}/evaluation"
    with pytest.raises(UserError, match=message):
        train(trained, synthetic_data, "--eval-only", weights)
    assert contents(trained) == before


def test_only_the_same_evaluation_replaces_results(
    trained: Path, synthetic_data: Path, tmp_path: Path
) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    shutil.copytree(synthetic_data, data)
    options = ("--eval-only", f"train.init_checkpoint={trained / 'model_0000002.pth'}")
    train(out, synthetic_data, *options)
    train(out, data, *options)  # the same data in another folder
    evaluation = read_json(out / "evaluation.json")
    assert evaluation["weights"] == str(trained / "model_0000002.pth")
    assert evaluation["iteration"] == 2
    (out / "evaluation.json").write_text(json.dumps(evaluation | {"results": None, "images": None}))
    train(out, data, *options)  # as after an evaluation that was killed
    before = contents(out)
    path = data / "annotations" / "val.json"
    content = read_json(path)
    path.write_text(json.dumps(content | {"annotations": content["annotations"][1:]}))
    final = f"train.init_checkpoint={trained / 'model_final.pth'}"
    for folder, arguments, what in (
        (data, options, "data"),
        (synthetic_data, ("--eval-only", final), "weights, iteration"),
        (synthetic_data, (*options, "dataloader.short_side=96"), "settings"),
    ):
        unused = tmp_path / "evaluation"
        message = f"results of an evaluation with other {what}: .*train.output_dir={unused}$"
        with pytest.raises(UserError, match=message):
            train(out, folder, *arguments)
    (out / "log.txt").unlink()
    message = "has the results of an evaluation: give another train.output_dir for the training run"
    for arguments in ((), ("--resume",)):
        with pytest.raises(UserError, match=message):
            train(out, synthetic_data, *arguments)
    after = contents(out)
    for path, content in before.items():
        assert path.name == "log.txt" or after[path] == content


def test_results_without_evaluation_json_are_not_replaced(
    trained: Path, synthetic_data: Path, tmp_path: Path
) -> None:
    results = tmp_path / "coco_instances_results.json"
    results.write_text("precious")
    weights = f"train.init_checkpoint={trained / 'model_final.pth'}"
    with pytest.raises(UserError, match="with unknown weights, iteration, settings, data: give"):
        train(tmp_path, synthetic_data, "--eval-only", weights)
    assert results.read_text() == "precious"


def test_readme_that_was_not_generated_is_kept(synthetic_data: Path, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("my notes")
    train(tmp_path, synthetic_data, "train.max_iter=1")
    assert (tmp_path / "README.md").read_text() == "my notes"


def test_readme_of_an_older_version_is_updated(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("<!-- Written by train_net.py, and anew. -->\n\n# run\n")
    readme_hook(tmp_path).before_train()
    assert (tmp_path / "README.md").read_text().startswith(FIRST_LINE)


def test_folder_named_readme_does_not_stop_training(synthetic_data: Path, tmp_path: Path) -> None:
    (tmp_path / "README.md").mkdir()
    (tmp_path / "run.json").write_text("[1]")
    train(tmp_path, synthetic_data, "train.max_iter=1", "--resume")
    assert (tmp_path / "README.md").is_dir() and (tmp_path / "model_final.pth").exists()


@pytest.mark.parametrize(
    ("program", "alone", "by_torchrun"),
    [
        ("train_net.py", "python train_net.py train 'my data'", "train_net.py train 'my data'"),
        ("/somewhere/bin/gpvit", "gpvit train 'my data'", "-m gpvit train 'my data'"),
        (
            "/somewhere/gpvit/__main__.py",
            "python -m gpvit train 'my data'",
            "-m gpvit train 'my data'",
        ),
    ],
)
def test_command_of_a_job_can_be_run_again(
    monkeypatch: pytest.MonkeyPatch, program: str, alone: str, by_torchrun: str
) -> None:
    monkeypatch.setattr(sys, "argv", [program, "train", "my data"])
    assert command() == alone
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    monkeypatch.setenv("WORLD_SIZE", "16")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert command() == f"torchrun --nnodes 2 --nproc-per-node 8 {by_torchrun}"
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert command() == f"torchrun --nproc-per-node 8 {by_torchrun}"


def readme_hook(folder: Path) -> RunReadme:
    cfg = load_config(str(CONFIG), [*TINY, f"train.output_dir='{folder}'"])
    checkpointer = SimpleNamespace(best_metric="", classes=CLASSES, trainer=SimpleNamespace(done=0))
    hook = RunReadme(cfg, {}, "a.py", Detector(), 1, [], checkpointer, resume=False)
    return after_three_iterations(hook)


def test_readme_of_a_stopped_run_explains_how_to_continue(tmp_path: Path) -> None:
    hook = readme_hook(tmp_path)
    hook.before_train()
    assert (tmp_path / "README.md").read_text().startswith(FIRST_LINE)
    hook.on_stop()
    text = (tmp_path / "README.md").read_text()
    assert "3 of 4 iterations completed" in text and "`--resume`" in text


class WandbRun(SimpleNamespace):
    """A stand-in for a run of Weights & Biases."""

    def define_metric(self, name: str, step_metric: str) -> None:
        self.step_metric = step_metric

    def log(self, row: dict) -> None:
        self.rows.append(row)

    def finish(self) -> None:
        self.finished = True


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return fake_wandb(monkeypatch)


def fake_wandb(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Installs a stand-in for the module of Weights & Biases, whose ``runs`` are kept."""
    module = ModuleType("wandb")
    module.Error = type("Error", (Exception,), {})
    module.Image = np.shape
    module.runs = []

    def init(**options: object) -> WandbRun:
        id = options["id"] or f"run{len(module.runs)}"
        module.runs.append(WandbRun(**options | {"id": id, "rows": []}))
        return module.runs[-1]

    module.init = init
    monkeypatch.setitem(sys.modules, "wandb", module)
    monkeypatch.delitem(sys.modules, "gpvit.engine.monitoring.wandb_writer", raising=False)
    return module


@pytest.fixture(scope="module")
def resumed(
    tmp_path_factory: pytest.TempPathFactory, synthetic_data: Path
) -> tuple[Path, list[WandbRun]]:
    """The folder of a run that was resumed at iteration 2 of 4, and its runs in the stand-in."""
    folder = tmp_path_factory.mktemp("resumed")
    options = ("train.wandb=things", "train.eval_period=2", "train.checkpointer.period=2")
    with pytest.MonkeyPatch.context() as patch:
        wandb = fake_wandb(patch)
        train(folder, synthetic_data, *options, "train.pictures=1")
        (folder / "model_final.pth").unlink()
        train(folder, synthetic_data, *options, "--resume", "train.log_period=2")
    return folder, wandb.runs


def test_readme_of_a_resumed_run_keeps_earlier_starts_and_results(
    resumed: tuple[Path, list[WandbRun]],
) -> None:
    page = (resumed[0] / "README.md").read_text()
    assert re.findall(r"^\| \d.* UTC \| (\d) \| 1 x CPU", page, re.MULTILINE) == ["0", "2"]
    assert re.search(r"\| 2 \| .*\n\| 4 \| ", page) and "Finished: 4 of 4" in page


def total_losses(rows: list[dict[str, float]]) -> dict[int, float]:
    return {row["iteration"]: row["total_loss"] for row in rows if "total_loss" in row}


def test_wandb_gets_metrics_and_images_and_resumes_its_run(
    resumed: tuple[Path, list[WandbRun]],
) -> None:
    folder, (first, second) = resumed
    assert first.project == "things" and first.name == folder.name
    assert first.config["train.seed"] == "1"
    assert first.finished and first.step_metric == "iteration" and second.id == first.id
    losses = total_losses(first.rows + second.rows)
    assert list(losses) == [0, 1, 2, 3]
    assert losses.items() >= total_losses(rows(folder)).items()
    with_images = []
    for row in first.rows:
        if any(name.startswith("pictures/") for name in row):
            with_images.append(row["iteration"])
    assert with_images == [1, 3]
    assert any("segm/AP" in row for row in first.rows)
    assert min(row["iteration"] for row in second.rows) >= 1


def test_new_run_in_a_used_folder_starts_a_new_wandb_run(
    wandb: ModuleType, synthetic_data: Path, tmp_path: Path
) -> None:
    (tmp_path / "wandb_id").write_text("old")
    train(tmp_path, synthetic_data, "train.wandb=things", "train.max_iter=1")
    assert wandb.runs[0].id != "old" and (tmp_path / "wandb_id").read_text() == wandb.runs[0].id


def test_missing_or_failing_wandb_raises_one_line(
    wandb: ModuleType, synthetic_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**options: object) -> None:
        raise wandb.Error("no API key\nconfigured")

    wandb.init = refuse
    with pytest.raises(UserError, match="train.wandb=things: no API key configured"):
        train(tmp_path, synthetic_data, "train.wandb=things")
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.delitem(sys.modules, "gpvit.engine.monitoring.wandb_writer")
    with pytest.raises(UserError, match="pip install wandb"):
        train(tmp_path, synthetic_data, "train.wandb=things")


def test_config_keys_that_do_not_influence_the_result_may_change() -> None:
    free = [
        "train.pictures",
        "train.wandb",
        "train.best_metric",
        "train.checkpointer.period",
        "train.ddp.bucket_cap_mb",
        "model.roi_heads.box_predictors.2.test_score_thresh",
        "model.backbone.net.use_act_checkpoint",
        "dataloader.train.dataset.names.1",
        "dataloader.test.mapper.augmentations.0.max_size",
    ]
    fixed = [
        "train.clip_norm",
        "train.max_iter",
        "model.roi_heads.num_classes",
        "dataloader.train.total_batch_size",
    ]
    assert list(filter(may_change, free + fixed)) == free


def test_known_metrics_are_those_of_evaluations(trained: Path) -> None:
    cfg = load_config(str(trained / "config.yaml"))
    known = set(known_metrics(cfg, CLASSES))
    for task, metrics in read_json(trained / "evaluation.json")["results"].items():
        for name in metrics:
            assert f"{task}/{name}" in known
    cfg.train.ema_decay = 0.9
    assert set(known_metrics(cfg, CLASSES)) == known | set(map("ema_{}".format, known))


@pytest.mark.parametrize("metric", ["AP", "segm/AP-cat", "ema_segm/AP", "keypoints/AP"])
def test_unknown_best_metric_raises_before_training(
    synthetic_data: Path, tmp_path: Path, metric: str
) -> None:
    message = f"best_metric={metric} is none of bbox/AP, .*segm/AP-cross"
    with pytest.raises(UserError, match=message):
        train(tmp_path, synthetic_data, f"train.best_metric={metric}")
    assert not list(tmp_path.glob("model*"))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signal_outside_of_the_training_loop_is_reported(
    number: signal.Signals, code: int, capsys: pytest.CaptureFixture
) -> None:
    args = argument_parser().parse_intermixed_args(["--config-file", "a.py"])
    with pytest.raises(SystemExit) as stop:
        launch(lambda args: os.kill(os.getpid(), number), args, "cpu")
    assert stop.value.code == code
    message = f"error: stopped by {number.name} outside of the training loop"
    assert capsys.readouterr().err.startswith(message)
