"""Following a training: what it shows on a terminal, and what its folder says."""

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
from gpvit.engine.launch import launch
from gpvit.engine.monitoring.hooks import PeriodicWriters, ValidationImages
from gpvit.engine.monitoring.run_readme import FIRST_LINE, RunReadme, command
from gpvit.evaluation.metrics import known_metrics
from gpvit.utils.errors import UserError
from gpvit.utils.logger import AboveBars
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from tqdm import tqdm

CONFIG = REPOSITORY / "configs" / "quickstart.py"


def train(folder: Path, data: Path, *arguments: str) -> None:
    command = [
        "--config-file",
        str(CONFIG),
        "--data",
        str(data),
        *TINY,
        "train.device=cpu",
        f"train.output_dir={folder}",
    ]
    train_net.main(argument_parser().parse_intermixed_args([*command, "train.seed=1", *arguments]))


class Terminal(io.StringIO):
    """Keeps what a terminal is sent, with control characters."""

    def isatty(self) -> bool:
        return True

    def fileno(self) -> int:
        return 1

    def lines(self) -> list[str]:
        """What stands on it in the end."""
        lines, row, column = [""], 0, 0
        for sign in re.findall(r"\x1b\[\d*[A-Za-z]|.", self.getvalue(), re.DOTALL):
            if sign == "\x1b[A":
                row -= 1
            elif sign == "\n":
                row, column = row + 1, 0
                lines += [""] * (row == len(lines))
            elif sign == "\r":
                column = 0
            elif len(sign) == 1:
                lines[row] = f"{lines[row][:column]:{column}}{sign}{lines[row][column + 1 :]}"
                column += 1
        return [line.rstrip() for line in lines]


@pytest.fixture(scope="module")
def terminal() -> Terminal:
    return Terminal()


@pytest.fixture(scope="module")
def trained(
    tmp_path_factory: pytest.TempPathFactory, synthetic_data: Path, terminal: Terminal
) -> Iterator[Path]:
    """The folder of a training of four iterations with an evaluation at two and four, on a terminal."""
    folder = tmp_path_factory.mktemp("following") / "my run"
    before = {
        name: list(logging.getLogger(name).handlers) for name in ("detectron2", "fvcore", "gpvit")
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", terminal)
        patch.setattr(os, "get_terminal_size", lambda *args: os.terminal_size((100, 30)))
        patch.setattr(sys, "argv", ["train_net.py", "--data", "my data"])
        options = (
            "train.eval_period=2",
            "train.checkpointer.period=2",
            "train.best_metric=segm/AP",
        )
        train(folder, synthetic_data, "train.pictures=2", *options)
    yield folder
    for name, handlers in before.items():
        logging.getLogger(name).handlers = handlers


def test_a_terminal_shows_one_bar_with_the_log_above_it(trained: Path, terminal: Terminal) -> None:
    shown = terminal.getvalue()
    assert re.search(r"\r *50% .* 2/4, (ETA [\d:]+, )?loss [\d.]+, lr [\d.e-]+", shown)
    assert re.search(r"\r100% .* 4/4, ETA 00:00, loss [\d.]+, lr [\d.e-]+, segm/AP \d", shown)
    assert "evaluation: " in shown
    lines = terminal.lines()
    assert sum("/4, " in line for line in lines) == 1  # all others were taken away again
    assert any(line.endswith("training from iteration 0 to 4") for line in lines)
    assert any("Loading and preparing results" in line for line in lines)  # printed, not logged
    assert not any("total_loss" in line or "Inference done" in line for line in lines)
    assert (trained / "log.txt").read_text().count("total_loss") == 4


def test_without_a_terminal_there_are_lines_alone(
    synthetic_data: Path, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    train(tmp_path, synthetic_data, "train.max_iter=1")
    shown = "".join(capfd.readouterr())
    assert "total_loss" in shown and "\r" not in shown


def test_what_is_printed_in_parts_comes_above_the_bar_as_one_line() -> None:
    terminal = Terminal()
    with tqdm(total=1, file=terminal):
        print("one", "line", file=AboveBars(terminal))
    assert "one line" in terminal.lines()


def test_each_evaluation_draws_the_same_pictures_for_tensorboard_and_on_a_sheet(
    trained: Path,
) -> None:
    assert [path.name for path in sorted((trained / "pictures").iterdir())] == [
        "0000002.png",
        "0000004.png",
    ]
    for path in (trained / "pictures").iterdir():
        assert cv2.imread(str(path)).std() > 10
    events = EventAccumulator(str(trained)).Reload()
    tags = events.Tags()["images"]
    assert len(tags) == 2
    for tag in tags:
        assert [image.step for image in events.Images(tag)] == [1, 3]
        assert all(image.width >= 2 * 640 for image in events.Images(tag))  # truth and prediction
    assert [event.step for event in events.Scalars("segm/AP")] == [1, 3]


def test_the_curves_are_drawn_and_nothing_is_left_half_written(trained: Path) -> None:
    assert cv2.imread(str(trained / "curves.png")) is not None
    assert not list(trained.rglob("*.partial*"))


def test_pictures_leave_the_training_as_it_is(
    trained: Path, synthetic_data: Path, tmp_path: Path
) -> None:
    train(tmp_path, synthetic_data, "train.eval_period=2", "train.checkpointer.period=2")
    one, other = (
        read_content(str(folder / "model_final.pth"))["model"] for folder in (trained, tmp_path)
    )
    assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
    assert not (tmp_path / "pictures").exists()


class Detector(nn.Module):
    """Fails, after it has drawn a random number."""

    def __init__(self) -> None:
        super().__init__()
        self.still, self.moving = nn.BatchNorm2d(3).eval(), nn.BatchNorm2d(3)

    def forward(self, batch: list[dict]) -> None:
        assert not self.training and not self.moving.training
        torch.rand(1)
        raise RuntimeError("out of memory, say")


def test_pictures_that_fail_leave_modes_and_random_numbers_as_they_were(
    synthetic_data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, logger="gpvit")
    pictures = following(
        ValidationImages(
            records(synthetic_data), lambda record: record, CLASSES, count=1, folder=tmp_path
        )
    )
    model = pictures.trainer.model = Detector()
    state = torch.get_rng_state(), np.random.get_state()[1].tolist()
    pictures.after_evaluation()
    assert "out of memory, say" in caplog.text and "goes on" in caplog.text
    assert (model.training, model.still.training, model.moving.training) == (True, False, True)
    assert (
        torch.equal(torch.get_rng_state(), state[0])
        and np.random.get_state()[1].tolist() == state[1]
    )


def test_a_picture_that_cannot_be_read_is_left_out(
    synthetic_data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, logger="gpvit")
    cfg = load_config(str(CONFIG), TINY)
    broken, good = records(synthetic_data)[:2]
    chosen = [broken | {"file_name": "nowhere.png"}, good]
    pictures = following(
        ValidationImages(
            chosen, instantiate(cfg.dataloader.test.mapper), CLASSES, count=2, folder=tmp_path
        )
    )
    pictures.trainer.model = instantiate(cfg.model)
    pictures.after_evaluation()
    assert "nowhere.png" in caplog.text
    ((name, _, _),) = pictures.trainer.storage._vis_data
    assert (
        name.endswith(Path(good["file_name"]).name)
        and (tmp_path / "pictures" / "0000003.png").exists()
    )


CLASSES = ["disc", "triangle", "cross"]


def records(data: Path) -> list[dict]:
    return DatasetCatalog.get(gpvit.data.register_folder(str(data), "val"))


def following(
    follower: ValidationImages | PeriodicWriters | RunReadme,
) -> ValidationImages | PeriodicWriters | RunReadme:
    """A follower of a training that has done three of four iterations."""
    follower.trainer = SimpleNamespace(done=3, max_iter=4, ema=None, storage=EventStorage(2))
    return follower


class Failing(EventWriter):
    def __init__(self) -> None:
        self.works, self.written = False, 0

    def write(self) -> None:
        if not self.works:
            raise OSError("No space left on device")
        self.written += 1


def test_a_log_that_cannot_be_written_is_told_once_and_the_training_goes_on(
    caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    caplog.set_level(logging.WARNING, logger="gpvit")
    (tmp_path / "metrics.json").touch()
    printer, failing = Failing(), Failing()
    printer.works = True
    writers = following(PeriodicWriters(printer, [failing], period=1, folder=tmp_path))
    for failing.works in (False, False, True, False):
        writers.trainer.storage.put_image("picture", np.zeros((3, 1, 1), np.uint8))
        writers.after_step()
        assert not writers.trainer.storage._vis_data
    writers.after_train()
    assert (printer.written, failing.written) == (5, 1)
    assert caplog.text.count("No space left on device") == 2


def test_the_folder_says_what_was_trained_on_what_and_how_it_went(
    trained: Path, synthetic_data: Path
) -> None:
    page = (trained / "README.md").read_text()
    assert "\n# my run\n" in page and "Trained: 4 of 4 iterations" in page
    assert "python train_net.py --data 'my data'" in page and str(CONFIG) in page
    for split in ("train", "val"):
        content = json.loads((synthetic_data / "annotations" / f"{split}.json").read_text())
        images, objects = (
            len(content["images"]),
            sum(not item["iscrowd"] for item in content["annotations"]),
        )
        assert f"annotations/{split}.json` | {images} | {objects} |" in page
    assert (
        "GeneralizedRCNN, 1.20 million parameters" in page
        and "3 classes: disc, triangle, cross" in page
        and "seed: 1" in page
    )
    assert f"torch {torch.__version__.partition('+')[0]}" in page
    assert re.search(r"\| 2 \| .*\n\| 4 \| ", page) and "in `model_best.pth`" in page
    assert "![](curves.png)" in page and "![](pictures/0000004.png)" in page


def test_the_folder_says_what_each_file_is(trained: Path) -> None:
    page = (trained / "README.md").read_text().partition("## Files")[2]
    patterns = re.findall(r"^\| `(.*?)` \|", page, re.MULTILINE)
    told = {path for pattern in patterns for path in trained.glob(pattern)}
    assert {path.name for path in trained.iterdir()} - {path.name for path in told} == {"README.md"}
    assert "best segm/AP" in page


def test_the_command_for_evaluation_that_the_folder_gives_works(trained: Path) -> None:
    page = (trained / "README.md").read_text()
    (command,) = re.findall(r"^python train_net.py (--config-file.*\\\n.*)$", page, re.MULTILINE)
    config, results = (
        (trained / "config.yaml").read_bytes(),
        (trained / "evaluation.json").read_bytes(),
    )
    train_net.main(
        argument_parser().parse_intermixed_args(shlex.split(command.replace("\\\n", " ")))
    )
    again = json.loads((trained / "evaluation" / "evaluation.json").read_text())
    assert again["weights"] == str(trained / "model_best.pth") and again["images"] == 4
    assert load_config(str(trained / "evaluation" / "config.yaml")).train.output_dir == str(
        trained / "evaluation"
    )
    assert (trained / "config.yaml").read_bytes() == config and (
        trained / "evaluation.json"
    ).read_bytes() == results


def test_an_evaluation_is_written_down_with_its_speed_and_its_data(
    trained: Path, synthetic_data: Path
) -> None:
    before = json.loads((trained / "evaluation.json").read_text())
    assert before["iteration"] == 4 and before["images"] == 4 and before["weights"] is None
    assert {"AP", "AP50"} <= before["results"]["segm"].keys() and "CPU" in before["device"]
    assert 0 < before["seconds_per_image"] < 5
    data = before["data"]
    assert data["name"] == f"{synthetic_data.name}_val" and data["file"] == str(
        synthetic_data / "annotations" / "val.json"
    )
    assert data["masks"] and data["fingerprint"].startswith("2:")


def contents(folder: Path) -> dict[Path, bytes]:
    return {
        path: path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


def test_evaluation_alone_never_replaces_what_a_run_wrote(
    trained: Path, synthetic_data: Path
) -> None:
    before = contents(trained)
    with pytest.raises(
        UserError,
        match=f"is the folder of a training .*for example train.output_dir={trained}/evaluation",
    ):
        train(
            trained,
            synthetic_data,
            "--eval-only",
            f"train.init_checkpoint={trained / 'model_0000002.pth'}",
        )
    assert contents(trained) == before


def test_an_evaluation_is_replaced_by_the_same_one_alone(
    trained: Path, synthetic_data: Path, tmp_path: Path
) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    shutil.copytree(synthetic_data, data)
    options = ("--eval-only", f"train.init_checkpoint={trained / 'model_0000002.pth'}")
    train(out, synthetic_data, *options)
    train(out, data, *options)  # the same at another place
    evaluation = json.loads((out / "evaluation.json").read_text())
    assert (
        evaluation["weights"] == str(trained / "model_0000002.pth") and evaluation["iteration"] == 2
    )
    (out / "evaluation.json").write_text(json.dumps(evaluation | {"results": None, "images": None}))
    train(out, data, *options)  # as after one that was killed
    before = contents(out)
    path = data / "annotations" / "val.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"annotations": content["annotations"][1:]}))
    final = f"train.init_checkpoint={trained / 'model_final.pth'}"
    for folder, arguments, what in (
        (data, options, "data"),
        (synthetic_data, ("--eval-only", final), "weights, iteration"),
        (synthetic_data, (*options, "dataloader.short_side=96"), "settings"),
    ):
        message = f"results of an evaluation with other {what}: .*train.output_dir={tmp_path / 'evaluation'}$"
        with pytest.raises(UserError, match=message):
            train(out, folder, *arguments)
    (out / "log.txt").unlink()
    for arguments in ((), ("--resume",)):
        with pytest.raises(
            UserError,
            match="has the results of an evaluation: give the training another train.output_dir",
        ):
            train(out, synthetic_data, *arguments)
    after = contents(out)
    assert all(after[path] == before[path] for path in before if path.name != "log.txt")


def test_an_evaluation_that_does_not_say_what_it_is_of_is_not_replaced(
    trained: Path, synthetic_data: Path, tmp_path: Path
) -> None:
    (tmp_path / "coco_instances_results.json").write_text("precious")
    with pytest.raises(
        UserError,
        match="has the results of an evaluation with other weights, iteration, settings and|data",
    ):
        train(
            tmp_path,
            synthetic_data,
            "--eval-only",
            f"train.init_checkpoint={trained / 'model_final.pth'}",
        )
    assert (tmp_path / "coco_instances_results.json").read_text() == "precious"


def test_a_readme_of_somebody_else_is_left_as_it_is(synthetic_data: Path, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("my notes")
    train(tmp_path, synthetic_data, "train.max_iter=1")
    assert (tmp_path / "README.md").read_text() == "my notes"


def test_what_stands_where_the_page_should_does_not_end_a_training(
    synthetic_data: Path, tmp_path: Path
) -> None:
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
def test_the_command_of_a_job_may_be_typed_again(
    monkeypatch: pytest.MonkeyPatch, program: str, alone: str, by_torchrun: str
) -> None:
    monkeypatch.setattr(sys, "argv", [program, "train", "my data"])
    assert command() == alone
    for name, value in {
        "TORCHELASTIC_RUN_ID": "1",
        "WORLD_SIZE": "16",
        "LOCAL_WORLD_SIZE": "8",
    }.items():
        monkeypatch.setenv(name, value)
    assert command() == f"torchrun --nnodes 2 --nproc-per-node 8 {by_torchrun}"
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert command() == f"torchrun --nproc-per-node 8 {by_torchrun}"


def test_a_training_that_is_stopped_says_how_to_go_on(synthetic_data: Path, tmp_path: Path) -> None:
    cfg = load_config(str(CONFIG), [*TINY, f"train.output_dir='{tmp_path}'"])
    checkpoints = SimpleNamespace(best_metric="", classes=CLASSES, trainer=SimpleNamespace(done=0))
    page = following(RunReadme(cfg, {}, "a.py", Detector(), 1, [], checkpoints, resume=False))
    page.before_train()
    assert (tmp_path / "README.md").read_text().startswith(FIRST_LINE)
    page.on_stop()
    text = (tmp_path / "README.md").read_text()
    assert "3 of 4 iterations done" in text and "`--resume`" in text


class Run(SimpleNamespace):
    """A stand-in for a run of Weights & Biases."""

    def define_metric(self, name: str, step_metric: str) -> None:
        self.step_metric = step_metric

    def log(self, row: dict) -> None:
        self.rows.append(row)

    def finish(self) -> None:
        self.finished = True


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A stand-in for Weights & Biases, which keeps its runs."""
    return stand_in(monkeypatch)


def stand_in(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = ModuleType("wandb")
    module.Error, module.Image, module.runs = (
        type("Error", (Exception,), {}),
        lambda pixels: pixels.shape,
        [],
    )

    def init(**options: object) -> Run:
        module.runs.append(
            Run(**options | {"id": options["id"] or f"run{len(module.runs)}", "rows": []})
        )
        return module.runs[-1]

    module.init = init
    monkeypatch.setitem(sys.modules, "wandb", module)
    monkeypatch.delitem(sys.modules, "gpvit.engine.monitoring.wandb_writer", raising=False)
    return module


@pytest.fixture(scope="module")
def resumed(
    tmp_path_factory: pytest.TempPathFactory, synthetic_data: Path
) -> tuple[Path, list[Run]]:
    """The folder of a training that went on from iteration 2 to 4, and its runs of Weights & Biases."""
    folder = tmp_path_factory.mktemp("resumed")
    options = ("train.wandb=things", "train.eval_period=2", "train.checkpointer.period=2")
    with pytest.MonkeyPatch.context() as patch:
        wandb = stand_in(patch)
        train(folder, synthetic_data, *options, "train.pictures=1")
        (folder / "model_final.pth").unlink()
        train(folder, synthetic_data, *options, "--resume", "train.log_period=2")
    return folder, wandb.runs


def test_a_resumed_training_keeps_its_earlier_starts_and_results(
    resumed: tuple[Path, list[Run]],
) -> None:
    page = (resumed[0] / "README.md").read_text()
    assert re.findall(r"^\| \d.* UTC \| (\d) \| 1 x CPU", page, re.MULTILINE) == ["0", "2"]
    assert re.search(r"\| 2 \| .*\n\| 4 \| ", page) and "Trained: 4 of 4" in page


def test_weights_and_biases_gets_metrics_and_pictures_and_goes_on_with_its_run(
    resumed: tuple[Path, list[Run]],
) -> None:
    folder, (first, second) = resumed
    assert (
        first.project == "things"
        and first.name == folder.name
        and first.config["train.seed"] == "1"
    )
    assert first.finished and first.step_metric == "iteration" and second.id == first.id
    losses = {
        row["iteration"]: row["total_loss"]
        for run in (first, second)
        for row in run.rows
        if "total_loss" in row
    }
    rows = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    assert list(losses) == [0, 1, 2, 3]
    assert (
        losses.items()
        >= {row["iteration"]: row["total_loss"] for row in rows if "total_loss" in row}.items()
    )
    pictures = [
        row["iteration"] for row in first.rows if any(name.startswith("pictures/") for name in row)
    ]
    assert pictures == [1, 3]
    assert any("segm/AP" in row for row in first.rows)
    assert min(row["iteration"] for row in second.rows) >= 1


def test_a_new_training_in_a_folder_begins_a_new_run_of_weights_and_biases(
    wandb: ModuleType, synthetic_data: Path, tmp_path: Path
) -> None:
    (tmp_path / "wandb_id").write_text("old")
    train(tmp_path, synthetic_data, "train.wandb=things", "train.max_iter=1")
    assert wandb.runs[0].id != "old" and (tmp_path / "wandb_id").read_text() == wandb.runs[0].id


def test_weights_and_biases_that_is_missing_or_refuses_is_one_line(
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


def test_pictures_and_weights_and_biases_may_change_when_a_training_is_resumed() -> None:
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
    assert [key for key in free + fixed if may_change(key)] == free


def test_a_best_metric_that_evaluations_give_is_taken(trained: Path) -> None:
    cfg = load_config(str(trained / "config.yaml"))
    results = json.loads((trained / "evaluation.json").read_text())["results"]
    known = known_metrics(cfg, CLASSES)
    assert {f"{task}/{name}" for task, metrics in results.items() for name in metrics} <= set(known)
    cfg.train.ema_decay = 0.9
    assert set(known_metrics(cfg, CLASSES)) == {*known, *(f"ema_{name}" for name in known)}


@pytest.mark.parametrize("metric", ["AP", "segm/AP-cat", "ema_segm/AP", "keypoints/AP"])
def test_a_best_metric_that_no_evaluation_gives_is_refused_at_the_start(
    synthetic_data: Path, tmp_path: Path, metric: str
) -> None:
    with pytest.raises(
        UserError, match=f"best_metric={metric} is none of bbox/AP, .*segm/AP-cross"
    ):
        train(tmp_path, synthetic_data, f"train.best_metric={metric}")
    assert not list(tmp_path.glob("model*"))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_outside_of_the_training_loop_is_told(
    number: signal.Signals, code: int, capsys: pytest.CaptureFixture
) -> None:
    args = argument_parser().parse_intermixed_args(["--config-file", "a.py"])
    with pytest.raises(SystemExit) as stop:
        launch(lambda args: os.kill(os.getpid(), number), args, "cpu")
    assert stop.value.code == code
    assert capsys.readouterr().err.startswith(
        f"error: stopped by {number.name} outside of the training loop"
    )
