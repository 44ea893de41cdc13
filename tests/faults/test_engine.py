"""Training survives each of these faults, and goes on as if it had not been; the faults are real, on a CPU."""

import functools
import hashlib
import json
import math
import multiprocessing
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gpvit.checkpoint
import gpvit.data
import pytest
import torch
from conftest import REPOSITORY, TINY
from detectron2.config import instantiate
from gpvit.cli import replay
from gpvit.config import load_config
from gpvit.data.datasets import custom
from gpvit.engine.resume import latest_checkpoint
from gpvit.utils.files import lock_folder

sys.path.insert(0, str(Path(__file__).parent))
import saboteur

ITERATIONS = 8
OPTIONS = [
    f"train.max_iter={ITERATIONS}",
    "train.seed=5",
    "train.checkpointer.period=3",
    "train.ema_decay=0.9",
    "model.backbone.net.drop_path_rate=0.3",
    "dataloader.train.num_workers=1",
]
QUICKSTART = REPOSITORY / "configs" / "quickstart.py"
WITHIN = 60  # seconds in which a job ends when a process of it has died


@dataclass
class Run:
    """A job that has ended: its exit code, what it printed, its folder, and how long it took in seconds."""

    code: int
    output: str
    folder: Path
    seconds: float

    @property
    def errors(self) -> list[str]:
        return [line for line in self.output.splitlines() if line.startswith("error: ")]

    @property
    def log(self) -> str:
        return (self.folder / "log.txt").read_text()

    def final(self) -> dict[str, Any]:
        return state(self.folder / "model_final.pth")


def state(path: Path) -> dict[str, Any]:
    """What a checkpoint holds, without the config, which names the folder."""
    return {
        key: value
        for key, value in gpvit.checkpoint.read_content(str(path)).items()
        if key != "config"
    }


def same(one: Any, other: Any) -> bool:
    """Whether two states are equal to the last bit."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and one.numpy().tobytes() == other.numpy().tobytes()
    return one == other


def losses(folder: Path) -> dict[int, float]:
    """Iteration -> loss. An iteration that was done twice must have given the same both times."""
    found: dict[int, float] = {}
    for line in (folder / "metrics.json").read_text().splitlines():
        row = json.loads(line, parse_constant=pytest.fail)
        if "total_loss" in row:
            assert found.setdefault(row["iteration"], row["total_loss"]) == row["total_loss"]
    return found


def order(path: Path) -> dict[int, list]:
    """Iteration -> [position, index, file name] of the images of all ranks, and the sums of their pixels."""
    found: dict[int, list] = {}
    for part in sorted(path.parent.glob(path.name + ".*")):
        for line in part.read_text().splitlines():
            iteration, images, pixels = json.loads(line)
            found.setdefault(iteration, []).extend(zip(images, pixels))
    return found


@pytest.fixture(scope="module")
def forks() -> multiprocessing.context.BaseContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["gpvit", "train_net", "saboteur"])
    return context


@pytest.fixture(scope="module")
def train(forks: multiprocessing.context.BaseContext, synthetic_data: Path) -> Callable[..., Run]:
    """Runs a job and waits for its end: train(folder, *arguments, ranks, faults, data, config, **environment)."""

    def run(
        folder: Path, *arguments: str, ranks: int = 1, faults: str = "", data: Path = synthetic_data,
        config: Path = QUICKSTART, **environment: str,
    ) -> Run:  # fmt: skip
        folder.mkdir(exist_ok=True, parents=True)
        command = [
            "--config-file",
            str(config),
            "--data",
            str(data),
            *(TINY + OPTIONS if config == QUICKSTART else ()),
        ]
        command += [
            "train.device=cpu",
            f"train.output_dir={folder}",
            *arguments,
            "--num-gpus",
            str(ranks),
        ]
        environment = {"FAULTS": faults, "EVALUATION": "off"} | environment
        output = folder / "output.txt"
        process = forks.Process(target=saboteur.run, args=(command, environment, str(output)))
        start = time.perf_counter()
        process.start()
        try:
            process.join(3 * WITHIN)
            assert process.exitcode is not None, f"the job hangs: {output.read_text()[-3000:]}"
            while left := session(process.pid):
                assert time.perf_counter() - start < 3 * WITHIN, (
                    f"processes {left} go on without their parent"
                )
                time.sleep(0.1)
        finally:
            for pid in session(process.pid):
                os.kill(pid, signal.SIGKILL)
        printed = output.read_text() if output.exists() else ""  # somebody may have removed it
        return Run(process.exitcode, printed, folder, time.perf_counter() - start)

    return run


def session(leader: int) -> list[int]:
    """The living processes of a session, which its leader may have left behind."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == leader and fields[0] not in "ZX":
            found.append(int(path.parent.name))
    return found


@pytest.fixture(scope="module")
def undisturbed(
    train: Callable[..., Run], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[int], Run]:
    """Ranks -> the job that nothing happened to."""

    @functools.cache
    def run(ranks: int) -> Run:
        folder = tmp_path_factory.mktemp(f"undisturbed{ranks}")
        job = train(folder, ranks=ranks, ORDER=str(folder / "order"))
        assert job.code == 0, job.output
        assert list(losses(folder)) == list(range(ITERATIONS))
        return job

    return run


def assert_goes_on(train: Callable[..., Run], folder: Path, undisturbed: Run, ranks: int) -> None:
    """Resumes a job, which then ends as the one that nothing happened to."""
    resumed = train(folder, "--resume", ranks=ranks)
    assert resumed.code == 0, resumed.output
    done = losses(undisturbed.folder)
    assert {iteration: done[iteration] for iteration in losses(folder)} == losses(folder)
    assert ITERATIONS - 1 in losses(folder)
    assert same(resumed.final(), undisturbed.final())


# Iterations to be killed in; every run of the tests takes others.
RANDOM = random.Random()


@pytest.mark.parametrize(
    ("ranks", "fault", "code"),
    [
        (1, "kill", -9),
        (1, "kill_late", -9),
        (2, "kill_all", -9),
        (2, "kill_parent", -9),
        (1, "SIGTERM", 143),
        (1, "SIGINT", 130),
        (2, "SIGTERM_parent", 143),
        (2, "SIGINT", 130),
        (1, "SIGTERM_group", 143),
        (1, "SIGINT_group", 130),
    ],
)
def test_a_training_that_was_stopped_goes_on_as_if_it_had_not(
    train: Callable[..., Run],
    undisturbed: Callable[[int], Run],
    tmp_path: Path,
    ranks: int,
    fault: str,
    code: int,
) -> None:
    iteration = RANDOM.randrange(1, ITERATIONS)
    rank = f":{RANDOM.randrange(ranks)}"
    stopped = train(tmp_path, ranks=ranks, faults=f"{fault}:{iteration}{rank}")
    assert stopped.code == code, (iteration, rank, stopped.output)
    assert "Traceback" not in stopped.output
    assert (
        fault == "kill_parent" or not (tmp_path / "model_final.pth").exists()
    )  # the signal may come late
    if code > 0:
        assert latest_checkpoint(str(tmp_path))["trainer"]["iteration"] in (
            iteration,
            iteration + 1,
            iteration + 2,
        )
    assert_goes_on(train, tmp_path, undisturbed(ranks), ranks)


@pytest.mark.parametrize("fault", ["kill", "exit"])
@pytest.mark.parametrize("rank", [0, 1])
def test_when_a_process_dies_the_job_ends_with_its_cause_and_can_be_resumed(
    train: Callable[..., Run],
    undisturbed: Callable[[int], Run],
    tmp_path: Path,
    fault: str,
    rank: int,
) -> None:
    iteration = RANDOM.randrange(1, ITERATIONS)
    job = train(tmp_path, ranks=2, faults=f"{fault}:{iteration}:{rank}")
    assert job.code not in (0, -9) and job.seconds < WITHIN
    if fault == "kill":
        assert f"process {rank} was killed (SIGKILL)" in job.errors[-1]
    else:
        assert any(f"process {rank} ended with exit code 3" in line for line in job.errors), (
            job.output
        )
    assert "Traceback" not in job.output
    assert_goes_on(train, tmp_path, undisturbed(2), 2)


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("fault", ["worker_killed", "worker_hangs"])
def test_a_data_loading_process_that_dies_or_hangs_is_a_named_error(
    train: Callable[..., Run],
    undisturbed: Callable[[int], Run],
    tmp_path: Path,
    ranks: int,
    fault: str,
) -> None:
    job = train(tmp_path, "dataloader.train.timeout=3", ranks=ranks, faults=f"{fault}:9")
    assert job.code == 1 and job.seconds < WITHIN
    assert "Traceback" not in job.output, job.output
    assert any("data-loading process" in line and "iteration" in line for line in job.errors), (
        job.output
    )
    assert_goes_on(train, tmp_path, undisturbed(ranks), ranks)


@pytest.mark.parametrize(
    ("ranks", "workers", "fault"),
    [
        (1, 1, "SIGTERM_soon:4"),
        (1, 0, "SIGINT_soon:4"),
        (2, 1, "SIGTERM_parent_soon:4:0"),
        pytest.param(2, 1, "SIGTERM_soon:4:1", marks=pytest.mark.slow),
    ],
)
def test_a_signal_while_waiting_for_data_stops_at_once_and_leaves_nobody_behind(
    train: Callable[..., Run],
    undisturbed: Callable[[int], Run],
    tmp_path: Path,
    ranks: int,
    workers: int,
    fault: str,
) -> None:
    undisturbed(ranks)
    options = [f"dataloader.train.num_workers={workers}", "dataloader.train.timeout=100"]
    job = train(tmp_path, *options, ranks=ranks, faults=f"{fault},worker_hangs:9")
    assert job.code == (130 if "SIGINT" in fault else 143) and "Traceback" not in job.output, (
        job.output
    )
    assert (
        job.seconds < 15
    )  # with 4 iterations, and not the 5 seconds that PyTorch gives each process of its
    assert latest_checkpoint(str(tmp_path))["trainer"]["iteration"] == 4
    assert_goes_on(train, tmp_path, undisturbed(ranks), ranks)


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_signal_before_the_training_loop_ends_quietly(
    train: Callable[..., Run], tmp_path: Path, ranks: int
) -> None:
    job = train(tmp_path, ranks=ranks, faults="SIGTERM_before:0")
    assert job.code == 143 and "Traceback" not in job.output, job.output
    line = "error: stopped by SIGTERM outside of the training loop, where there is nothing to save"
    assert job.errors == [line]


@pytest.fixture(scope="module")
def _mounts() -> None:
    command = ["unshare", "-m", "mount", "-t", "tmpfs", "tmpfs", "/dev/shm"]
    if shutil.which("unshare") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("no right to mount anything")


@pytest.mark.usefixtures("_mounts")
@pytest.mark.parametrize(
    ("size", "options", "environment"),
    [
        ("8k", ["dataloader.train.num_workers=1"], {}),
        ("100k", ["dataloader.train.num_workers=1"], {}),
        (
            "100k",
            ["dataloader.test.num_workers=1", "dataloader.short_side=200"],
            {"EVALUATION": "on"},
        ),
    ],
)
def test_a_full_shared_memory_is_named_at_once(
    train: Callable[..., Run],
    tmp_path: Path,
    size: str,
    options: list[str],
    environment: dict[str, str],
) -> None:
    options = [
        "dataloader.train.num_workers=0",
        "dataloader.train.timeout=100",
        "train.eval_period=2",
        *options,
    ]
    job = train(tmp_path, *options, SHARED_MEMORY=size, **environment)
    assert job.code == 1 and job.seconds < 20 and "Traceback" not in job.output, job.output
    (line,) = job.errors
    assert "no room in /dev/shm" in line and "--shm-size" in line and "num_workers=0" in line
    if environment:
        assert latest_checkpoint(str(tmp_path))["trainer"]["iteration"] == 2


@pytest.mark.parametrize(("ranks", "rank"), [(1, 0), (2, 0), (2, 1)])
def test_out_of_memory_stops_all_with_the_image_sizes_and_resumes(
    train: Callable[..., Run],
    undisturbed: Callable[[int], Run],
    tmp_path: Path,
    ranks: int,
    rank: int,
) -> None:
    job = train(tmp_path, ranks=ranks, faults=f"out_of_memory:4:{rank}")
    assert job.code == 1 and job.seconds < WITHIN
    (line,) = [line for line in job.errors if "out of memory" in line]
    assert (
        f"iteration 4 of process {rank}" in line
        and "x" in line
        and "lower dataloader.max_size" in line
    )
    assert "Traceback" not in job.output, job.output
    assert latest_checkpoint(str(tmp_path))["trainer"]["iteration"] == 4
    assert_goes_on(train, tmp_path, undisturbed(ranks), ranks)


def test_an_error_in_the_middle_of_an_iteration_leaves_no_trace_in_the_state(
    train: Callable[..., Run], undisturbed: Callable[[int], Run], tmp_path: Path
) -> None:
    job = train(tmp_path, faults="bug:4")
    assert job.code == 1 and "a bug" in job.output
    assert latest_checkpoint(str(tmp_path))["trainer"]["iteration"] == 4
    assert_goes_on(train, tmp_path, undisturbed(1), 1)


def test_training_goes_on_with_a_full_disk_and_saves_when_there_is_room_again(
    train: Callable[..., Run], tmp_path: Path
) -> None:
    options = ("train.checkpointer.period=2", "dataloader.train.num_workers=0")
    job = train(tmp_path / "emptied", *options, faults="disk_full:3,disk_emptied:5")
    assert job.code == 0, job.output
    names = {path.name for path in job.folder.glob("model_*")}
    assert names == {"model_0000002.pth", "model_0000006.pth", "model_final.pth"}
    (line,) = [line for line in job.output.splitlines() if "cannot write" in line]
    assert "File too large" in line and "model_0000004.pth" in line and "training goes on" in line

    job = train(tmp_path / "full", *options, faults="disk_full:3")
    assert job.code == 1 and len(job.errors) == 1 and "model_final.pth: " in job.errors[0], (
        job.output
    )
    assert latest_checkpoint(str(job.folder))["trainer"]["iteration"] == 2
    assert not list(job.folder.glob("*.partial*"))


def contents(folder: Path) -> dict[str, bytes]:
    logs = {"log.txt", "output.txt", ".lock"}
    return {
        path.name: path.read_bytes()
        for path in folder.iterdir()
        if path.is_file() and path.name not in logs
    }


@pytest.mark.parametrize("kind", ["--resume", "--eval-only"])
def test_a_disk_that_is_full_from_the_start_is_one_line_and_leaves_all_that_was_there(
    train: Callable[..., Run], undisturbed: Callable[[int], Run], tmp_path: Path, kind: str
) -> None:
    folder, arguments = tmp_path / "run", [kind]
    if kind == "--resume":
        shutil.copytree(undisturbed(1).folder, folder)
    else:
        arguments += [f"train.init_checkpoint={undisturbed(1).folder}"]
        assert train(folder, *arguments, EVALUATION="on").code == 0
    (folder / "instances_predictions.pth").write_text("old")
    before = contents(folder)
    job = train(folder, *arguments, faults="disk_full_from_the_start:0", EVALUATION="on")
    assert job.code == 1 and len(job.errors) == 1, job.output
    assert re.search("cannot write .*: File too large; the old one is intact", job.errors[0])
    assert "Traceback" not in job.output and "Exception ignored" not in job.output
    after = contents(folder)
    if kind == "--eval-only":  # there was room for small files
        assert before.pop("evaluation.json") and after.pop("evaluation.json")
    assert after == before


def test_a_folder_that_is_removed_is_made_anew_and_the_training_goes_on(
    train: Callable[..., Run], undisturbed: Callable[[int], Run], tmp_path: Path
) -> None:
    job = train(tmp_path / "run", faults="folder_removed:4")
    assert job.code == 0 and "Traceback" not in job.log
    assert job.log.count("metrics.json was removed") == 1
    assert same(job.final(), undisturbed(1).final())
    assert (
        list(losses(job.folder)) == list(range(4, ITERATIONS))
        and (job.folder / "README.md").exists()
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda weights: weights.pop("backbone.net.pos_embed"),
            "1 missing .backbone.net.pos_embed",
        ),
        (lambda weights: weights.update(surplus=torch.zeros(1)), "1 surplus .surplus"),
        (
            lambda weights: weights.update({"backbone.net.pos_embed": torch.zeros(3)}),
            r"1 of another shape .*\(3,\) instead",
        ),
    ],
)
@pytest.mark.parametrize("part", ["model", "ema"])
def test_a_checkpoint_that_does_not_fit_stops_with_its_keys(
    train: Callable[..., Run],
    undisturbed: Callable[[int], Run],
    tmp_path: Path,
    part: str,
    change: Callable,
    message: str,
) -> None:
    content = gpvit.checkpoint.read_content(str(undisturbed(1).folder / "model_0000003.pth"))
    change(content[part])
    gpvit.checkpoint.save(content, str(tmp_path / "model_0000003.pth"))
    job = train(tmp_path, "--resume")
    (line,) = job.errors
    assert job.code == 1 and "Traceback" not in job.output
    assert re.search(message, line)


def test_another_number_of_processes_goes_on_with_the_same_images(
    train: Callable[..., Run], undisturbed: Callable[[int], Run], tmp_path: Path
) -> None:
    expected = order(undisturbed(2).folder / "order")
    assert order(undisturbed(1).folder / "order") == expected
    train(tmp_path, ranks=2, faults="SIGTERM:4", ORDER=str(tmp_path / "order"))
    job = train(tmp_path, "--resume", ranks=1, ORDER=str(tmp_path / "order"))
    assert job.code == 0 and order(tmp_path / "order") == expected


def test_another_config_is_refused_by_name_unless_the_weights_do_not_depend_on_it(
    train: Callable[..., Run], undisturbed: Callable[[int], Run], tmp_path: Path
) -> None:
    shutil.copy(undisturbed(1).folder / "model_0000006.pth", tmp_path)
    for change in (
        "dataloader.train.total_batch_size=4",
        "optimizer.lr=0.1",
        "train.max_iter=9",
        "train.seed=6",
    ):
        job = train(tmp_path, "--resume", change)
        key, _, value = change.partition("=")
        assert job.code == 1 and f"{key}: " in job.errors[0] and f"-> {value}" in job.errors[0]
    free = (
        "train.log_period=3",
        "train.checkpointer.period=4",
        "dataloader.train.num_workers=0",
        "train.eval_period=0",
    )
    job = train(tmp_path, "--resume", *free)
    assert job.code == 0 and same(job.final()["model"], undisturbed(1).final()["model"])


def test_data_may_move_and_not_change(
    train: Callable[..., Run], synthetic_data: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    shutil.copytree(synthetic_data, data)
    train(tmp_path / "out", "train.max_iter=2", data=data)
    moved = data.rename(tmp_path / "moved")
    assert train(tmp_path / "out", "train.max_iter=2", "--resume", data=moved).code == 0
    path = moved.rename(data) / "annotations" / "train.json"
    content = json.loads(path.read_text())
    del content["annotations"][0]
    path.write_text(json.dumps(content))
    job = train(tmp_path / "out", "train.max_iter=2", "--resume", data=data)
    assert (
        job.code == 1 and len(job.errors) == 1 and "content of the training data: " in job.errors[0]
    ), job.output


def digest_of_version_1(data: Path) -> str:
    """What checkpoints had of their data until November 2026."""
    found = hashlib.sha256()
    for record in custom.read(str(data), "train").records():
        if any(not item["iscrowd"] for item in record["annotations"]):
            image = (
                os.path.basename(record["file_name"]),
                record["image_id"],
                record["width"],
                record["height"],
            )
            objects = [
                (item["category_id"], *map(float, item["bbox"])) for item in record["annotations"]
            ]
            found.update(repr((image, objects)).encode())
    return found.hexdigest()[:16]


def test_a_training_of_an_older_version_is_resumed_with_its_data_and_no_other(
    train: Callable[..., Run],
    undisturbed: Callable[[int], Run],
    synthetic_data: Path,
    tmp_path: Path,
) -> None:
    content = gpvit.checkpoint.read_content(str(undisturbed(1).folder / "model_0000006.pth"))
    key = "content of the training data"
    for folder, digest in (
        ("same", digest_of_version_1(synthetic_data)),
        ("other", "0123456789abcdef"),
    ):
        (tmp_path / folder).mkdir()
        old = content | {"config": content["config"] | {key: digest}}
        gpvit.checkpoint.save(old, str(tmp_path / folder / "model_0000006.pth"))
    job = train(tmp_path / "same", "--resume")
    assert job.code == 0 and same(job.final(), undisturbed(1).final())
    saved = gpvit.checkpoint.read_content(str(job.folder / "model_final.pth"))["config"][key]
    assert saved.startswith("2:") and saved == content["config"][key]
    job = train(tmp_path / "other", "--resume")
    assert (
        job.code == 1
        and f"{key}: 0123456789abcdef -> {digest_of_version_1(synthetic_data)}" in job.errors[0]
    )


def test_masks_may_not_change_either(
    train: Callable[..., Run],
    undisturbed: Callable[[int], Run],
    synthetic_data: Path,
    tmp_path: Path,
) -> None:
    data = tmp_path / "data"
    shutil.copytree(synthetic_data / "annotations", data / "annotations")
    (data / "images").symlink_to(synthetic_data / "images")
    path = data / "annotations" / "train.json"
    content = json.loads(path.read_text())
    polygon = next(
        a["segmentation"][0] for a in content["annotations"] if isinstance(a["segmentation"], list)
    )
    polygon[0] += 0.25
    path.write_text(json.dumps(content))
    (tmp_path / "out").mkdir()
    shutil.copy(undisturbed(1).folder / "model_0000006.pth", tmp_path / "out")
    job = train(tmp_path / "out", "--resume", data=data)
    assert job.code == 1 and "content of the training data: " in job.errors[0]


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_run_in_a_folder_that_another_one_writes_to_is_refused(
    train: Callable[..., Run], tmp_path: Path, ranks: int
) -> None:
    folder = tmp_path / "out"
    with lock_folder(folder):
        for arguments in ([], ["--resume"], ["--eval-only", "train.init_checkpoint=nothing.pth"]):
            job = train(folder, *arguments, ranks=ranks)
            assert job.code == 1 and len(job.errors) == 1 and "Traceback" not in job.output, (
                job.output
            )
            assert f"another run writes to {folder} (process {os.getpid()} on " in job.errors[0]
            assert sorted(path.name for path in folder.iterdir()) == [".lock", "output.txt"]
    assert train(folder, "train.max_iter=1", ranks=ranks).code == 0


def test_the_same_seed_gives_the_same_training_with_any_number_of_data_loading_processes(
    train: Callable[..., Run], undisturbed: Callable[[int], Run], tmp_path: Path
) -> None:
    for workers in (0, 2):
        job = train(tmp_path / str(workers), f"dataloader.train.num_workers={workers}")
        assert losses(job.folder) == losses(undisturbed(1).folder)
        assert same(job.final(), undisturbed(1).final())
    job = train(tmp_path / "other", "train.seed=6")
    assert losses(job.folder) != losses(undisturbed(1).folder)


@pytest.fixture(scope="module")
def one_cross(tmp_path_factory: pytest.TempPathFactory, synthetic_data: Path) -> Path:
    """A data set in which one training image alone has an object of the class "cross"."""
    folder = tmp_path_factory.mktemp("one_cross")
    shutil.copytree(synthetic_data / "annotations", folder / "annotations")
    (folder / "images").symlink_to(synthetic_data / "images")
    path = folder / "annotations" / "train.json"
    content = json.loads(path.read_text())
    cross = next(c["id"] for c in content["categories"] if c["name"] == "cross")
    (image, *_) = [a["image_id"] for a in content["annotations"] if a["category_id"] == cross]
    keep = [
        a for a in content["annotations"] if a["category_id"] != cross or a["image_id"] == image
    ]
    path.write_text(json.dumps(content | {"annotations": keep}))
    return folder


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("value", ["nan", "inf"])
def test_a_loss_that_is_not_finite_stops_all_before_the_weights_change_and_is_replayed(
    train: Callable[..., Run], one_cross: Path, tmp_path: Path, capsys: pytest.CaptureFixture,
    ranks: int, value: str,
) -> None:  # fmt: skip
    cfg = load_config(str(REPOSITORY / "configs" / "quickstart.py"), [*TINY, *OPTIONS])
    gpvit.data.use_folder(cfg, str(one_cross), train=True)
    classes = gpvit.data.class_names(cfg.dataloader.train)
    torch.manual_seed(0)
    weights = instantiate(cfg.model).state_dict()
    # A number that the loss of crosses alone depends on, and so of one process alone.
    weights["roi_heads.mask_head.predictor.bias"][classes.index("cross")] = float(value)
    gpvit.checkpoint.write(str(tmp_path / "init.pth"), weights, classes=classes)
    # With so many proposals, every object is among those that the heads learn from.
    init = [
        f"train.init_checkpoint={tmp_path / 'init.pth'}",
        "model.roi_heads.batch_size_per_image=64",
    ]

    job = train(tmp_path / "bad", *init, ranks=ranks, data=one_cross)
    assert job.code == 1 and len(job.errors) == 1 and "Traceback" not in job.output, job.output
    (path,) = job.folder.glob("not_finite_*.json")
    report = json.loads(path.read_text(), parse_constant=pytest.fail)
    iteration = report["iteration"]
    assert (
        f"iteration {iteration}: loss or gradient is not finite" in job.errors[0]
        and str(path) in job.errors[0]
    )
    assert len(report["processes"]) == ranks
    bad = [
        process
        for process in report["processes"]
        if not math.isfinite(float(process["losses"]["loss_mask"]))
    ]
    assert len(bad) == 1
    assert all(
        image["image_id"] and image["file_name"]
        for process in report["processes"]
        for image in process["images"]
    )
    assert list(losses(job.folder)) == list(range(iteration))

    if iteration:
        stopped = train(
            tmp_path / "stopped", *init, ranks=ranks, data=one_cross, faults=f"SIGTERM:{iteration}"
        )
        expected = state(stopped.folder / f"model_{iteration:07}.pth")
        assert same(state(job.folder / f"model_{iteration:07}.pth"), expected)

    assert replay.main(["--input", str(path), "--device", "cpu"]) == 0
    output = capsys.readouterr().out
    for process in report["processes"]:
        loss = float(process["losses"]["loss_mask"])
        assert f"loss_mask {loss:.4g}" in output
    assert f"image {bad[0]['images'][0]['image_id']}: " in output


@pytest.mark.parametrize(("ranks", "rank"), [(1, 0), (2, 0), (2, 1)])
def test_proposals_that_are_not_finite_stop_all_with_a_report(
    train: Callable[..., Run],
    undisturbed: Callable[[int], Run],
    tmp_path: Path,
    ranks: int,
    rank: int,
) -> None:
    job = train(tmp_path, ranks=ranks, faults=f"diverged:4:{rank}")
    assert job.code == 1 and "Traceback" not in job.output, job.output
    assert any(
        "iteration 4: Predicted boxes or scores contain Inf/NaN" in line for line in job.errors
    )
    (process,) = json.loads((tmp_path / f"not_finite_0000004_rank{rank}.json").read_text())[
        "processes"
    ]
    assert process["rank"] == rank and process["images"]
    assert latest_checkpoint(str(tmp_path))["trainer"]["iteration"] == 4
    assert_goes_on(train, tmp_path, undisturbed(ranks), ranks)


@pytest.fixture(scope="module")
def unreadable(tmp_path_factory: pytest.TempPathFactory, synthetic_data: Path) -> Path:
    """A data set with one training image cut short; returns the image."""
    folder = tmp_path_factory.mktemp("unreadable")
    shutil.copytree(synthetic_data, folder, dirs_exist_ok=True)
    name = json.loads((folder / "annotations" / "train.json").read_text())["images"][0]["file_name"]
    path = folder / "images" / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


@pytest.mark.parametrize("ranks", [1, 2])
def test_an_unreadable_image_stops_the_training_when_the_budget_is_used_up(
    train: Callable[..., Run], unreadable: Path, tmp_path: Path, ranks: int
) -> None:
    data = unreadable.parent.parent
    job = train(tmp_path / "strict", ranks=ranks, data=data)
    assert (
        job.code == 1
        and len(job.errors) == 1
        and str(unreadable) in job.errors[0]
        and "Traceback" not in job.output
    )
    job = train(
        tmp_path / "budget", "train.skip_budget=2", "train.max_iter=30", ranks=ranks, data=data
    )
    assert (
        job.code == 1
        and len(job.errors) == 1
        and str(unreadable) in job.errors[0]
        and "Traceback" not in job.output
    )
    assert [
        f"{number} images left out so far, 2 allowed" in job.log for number in (1, 2, 3, 4)
    ] == [True, True, True, False]
    assert losses(job.folder)


def test_a_training_goes_on_when_the_image_that_stopped_it_is_repaired(
    train: Callable[..., Run],
    undisturbed: Callable[[int], Run],
    unreadable: Path,
    synthetic_data: Path,
    tmp_path: Path,
) -> None:
    data = tmp_path / "data"
    shutil.copytree(unreadable.parent.parent, data)
    assert train(tmp_path / "out", data=data).code == 1
    shutil.copy(synthetic_data / "images" / unreadable.name, data / "images")
    job = train(tmp_path / "out", "--resume", data=data)
    assert job.code == 0 and same(job.final(), undisturbed(1).final())


def test_a_smaller_skip_budget_than_was_used_is_one_line(
    train: Callable[..., Run], unreadable: Path, tmp_path: Path
) -> None:
    data = unreadable.parent.parent
    assert train(tmp_path, "train.skip_budget=9", data=data).code == 0
    (tmp_path / "model_final.pth").unlink()
    job = train(tmp_path, "--resume", "train.skip_budget=0", data=data)
    assert job.code == 1 and re.search(
        r"error: \d images were left out, and train.skip_budget allows 0", job.output
    )


@pytest.mark.parametrize("ranks", [1, 2])
def test_an_unreadable_image_of_the_evaluation_is_named(
    train: Callable[..., Run], synthetic_data: Path, tmp_path: Path, ranks: int
) -> None:
    data = tmp_path / "data"
    shutil.copytree(synthetic_data, data)
    path = (
        data
        / "images"
        / json.loads((data / "annotations" / "val.json").read_text())["images"][-1]["file_name"]
    )
    path.write_bytes(path.read_bytes()[:1000])
    options = ["dataloader.test.num_workers=1", "train.eval_period=2"]
    job = train(tmp_path / "out", *options, ranks=ranks, data=data, EVALUATION="on")
    assert (
        job.code == 1
        and any(str(path) in line for line in job.errors)
        and "Traceback" not in job.output
    ), job.output


@pytest.mark.parametrize("ranks", [1, 2])
def test_batches_without_objects_give_finite_losses_and_gradients(
    train: Callable[..., Run], synthetic_data: Path, tmp_path: Path, ranks: int
) -> None:
    data = tmp_path / "data"
    shutil.copytree(synthetic_data / "annotations", data / "annotations")
    (data / "images").symlink_to(synthetic_data / "images")
    path = data / "annotations" / "train.json"
    content = json.loads(path.read_text())
    one = content["images"][0]["id"]
    path.write_text(
        json.dumps(
            content | {"annotations": [a for a in content["annotations"] if a["image_id"] == one]}
        )
    )
    job = train(
        tmp_path / "out",
        "dataloader.train.dataset.filter_empty=False",
        ranks=ranks,
        data=data,
        GRADIENTS="1",
    )
    assert job.code == 0, job.output
    assert list(losses(job.folder)) == list(range(ITERATIONS)) and all(
        map(math.isfinite, losses(job.folder).values())
    )


BETTER = {1: 10, 2: 30, 3: 20, 4: 20, 5: 30, 6: 40, 7: 40, 8: 40}


@pytest.mark.parametrize("fault", ["", "SIGTERM:3", "SIGTERM:4", "kill:3", "kill:4"])
def test_the_best_checkpoint_is_kept_and_a_training_that_gets_no_better_ends_also_across_restarts(
    train: Callable[..., Run], tmp_path: Path, fault: str
) -> None:
    options = ["train.eval_period=1", "train.best_metric=segm/AP", "train.patience=3"]
    options += [
        "train.checkpointer.period=2",
        "train.ema_decay=0",
        "dataloader.train.num_workers=0",
    ]
    metrics = json.dumps(BETTER)
    job = train(tmp_path, *options, faults=fault, METRICS=metrics)
    if fault:
        assert job.code != 0
        job = train(tmp_path, *options, "--resume", METRICS=metrics)
    assert job.code == 0, job.output
    assert state(tmp_path / "model_best.pth")["trainer"]["iteration"] == 2
    assert job.final()["trainer"]["iteration"] == 5
    again = train(tmp_path, *options, "--resume", METRICS=metrics)
    assert again.code == 0 and again.final()["trainer"]["iteration"] == 5


BEST = ["train.best_metric=segm/AP", "train.ema_decay=0", "dataloader.train.num_workers=0"]


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.fixture(scope="module")
def with_best(train: Callable[..., Run], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The job that nothing happened to, evaluated after 2, 4 and 6 iterations; the second time is the best."""
    options = [*BEST, "train.eval_period=2", "train.checkpointer.period=100"]
    job = train(
        tmp_path_factory.mktemp("with_best"),
        *options,
        METRICS=json.dumps({2: 10, 4: 30, 6: 20, 8: 20}),
    )
    assert job.code == 0 and state(job.folder / "model_best.pth")["trainer"]["iteration"] == 4
    return job


@pytest.mark.parametrize("iteration", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_a_training_that_has_only_its_best_checkpoint_goes_on_from_there(
    train: Callable[..., Run], with_best: Run, tmp_path: Path, iteration: int
) -> None:
    options = [*BEST, "train.eval_period=2", "train.checkpointer.period=100"]
    metrics = json.dumps({2: 10, 4: 30, 6: 20, 8: 20})
    assert train(tmp_path, *options, faults=f"kill_at_best:{iteration}", METRICS=metrics).code == -9
    assert [path.name for path in tmp_path.glob("model_*")] == ["model_best.pth"]
    job = train(tmp_path, *options, "--resume", METRICS=metrics)
    assert job.code == 0 and f"training from iteration {iteration} to" in job.log, job.output
    assert same(job.final(), with_best.final())
    assert losses(job.folder).items() <= losses(with_best.folder).items()
    assert same(state(tmp_path / "model_best.pth"), state(with_best.folder / "model_best.pth"))


def test_the_best_checkpoint_stands_in_for_damaged_ones(
    train: Callable[..., Run], with_best: Run, tmp_path: Path
) -> None:
    options = [*BEST, "train.eval_period=2", "train.checkpointer.period=3"]
    metrics = json.dumps({2: 10, 4: 30, 6: 20, 8: 20})
    train(tmp_path, *options, faults="kill:7", METRICS=metrics)
    damage(tmp_path / "model_0000006.pth")
    job = train(tmp_path, *options, "--resume", METRICS=metrics)
    assert job.code == 0 and "training from iteration 4 to" in job.log
    assert same(job.final()["model"], with_best.final()["model"])
    assert state(tmp_path / "model_best.pth")["trainer"]["iteration"] == 4


def test_a_damaged_best_checkpoint_is_not_the_end_of_the_others_and_alone_is_not_written_over(
    train: Callable[..., Run], with_best: Run, tmp_path: Path
) -> None:
    shutil.copy(with_best.folder / "model_best.pth", tmp_path)
    damage(tmp_path / "model_best.pth")
    before = (tmp_path / "model_best.pth").read_bytes()
    job = train(tmp_path, *BEST, "--resume", METRICS="{}")
    assert job.code == 1 and "1 checkpoints, and none of them can be read" in job.errors[0]
    assert (tmp_path / "model_best.pth").read_bytes() == before


def test_the_best_checkpoint_is_not_replaced_by_a_worse_one_after_a_restart(
    train: Callable[..., Run], tmp_path: Path
) -> None:
    options = [*BEST, "train.eval_period=2", "train.checkpointer.period=2"]
    train(tmp_path, *options, faults="kill_at_best:4", METRICS=json.dumps({2: 10, 4: 30}))
    assert (tmp_path / "model_0000004.pth").exists()  # which does not know of this evaluation
    best = (tmp_path / "model_best.pth").read_bytes()
    job = train(tmp_path, *options, "--resume", METRICS=json.dumps({4: 20, 6: 25, 8: 29}))
    assert job.code == 0 and (tmp_path / "model_best.pth").read_bytes() == best


def test_another_metric_has_its_own_best(
    train: Callable[..., Run], with_best: Run, tmp_path: Path
) -> None:
    shutil.copy(with_best.folder / "model_best.pth", tmp_path)
    options = ["train.eval_period=2", "train.best_metric=segm/AP50", *BEST[1:]]
    job = train(
        tmp_path, *options, "--resume", METRICS=json.dumps({4: 1, 6: 3, 8: 2}), METRIC="AP50"
    )
    assert job.code == 0 and "was that by segm/AP, now segm/AP50 counts" in job.log, job.output
    assert state(tmp_path / "model_best.pth")["trainer"]["iteration"] == 6


def test_new_checkpoints_are_kept_and_not_damaged_ones_in_their_place(
    train: Callable[..., Run], tmp_path: Path
) -> None:
    train(tmp_path, "dataloader.train.num_workers=0", faults="kill:7")
    damage(tmp_path / "model_0000006.pth")
    options = ["--resume", "train.checkpointer.period=1", "train.checkpointer.max_to_keep=1"]
    train(tmp_path, *options, "dataloader.train.num_workers=0", faults="kill:5")
    assert latest_checkpoint(str(tmp_path))["trainer"]["iteration"] == 5


def test_old_checkpoints_are_removed_also_across_restarts(
    train: Callable[..., Run], tmp_path: Path
) -> None:
    options = [
        "train.checkpointer.period=1",
        "train.checkpointer.max_to_keep=2",
        "dataloader.train.num_workers=0",
    ]
    train(tmp_path, *options, faults="kill:3")
    assert len(list(tmp_path.glob("model_0*.pth"))) == 2
    train(tmp_path, *options, "--resume")
    assert {path.name for path in tmp_path.glob("model_*")} == {
        "model_0000006.pth",
        "model_0000007.pth",
        "model_final.pth",
    }


def test_averaged_weights_are_evaluated_and_saved_beside_the_raw_ones(
    train: Callable[..., Run], tmp_path: Path
) -> None:
    job = train(tmp_path, "train.max_iter=2", EVALUATION="on")
    rows = [json.loads(line) for line in (tmp_path / "metrics.json").read_text().splitlines()]
    assert {"segm/AP", "ema_segm/AP", "bbox/AP", "ema_bbox/AP"} <= set().union(*rows)
    final = job.final()
    assert final["model"].keys() == final["ema"].keys() and not same(
        dict(final["model"]), dict(final["ema"])
    )
    read = gpvit.checkpoint.read(str(tmp_path / "model_final.pth")).weights
    assert same(dict(read), dict(final["ema"]))


def step_of_two_processes(
    forks: Any, folder: Path, values: list[list[float]], dtype: str = ""
) -> list[str]:
    step = saboteur.step_of_two_processes
    ranks = [forks.Process(target=step, args=(rank, str(folder), values, dtype)) for rank in (0, 1)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(WITHIN)
    codes = [process.exitcode for process in ranks]
    for process in ranks:
        process.kill()
    assert codes == [0, 0]
    return [(folder / str(rank)).read_text() for rank in (0, 1)]


def test_processes_that_compute_their_batches_in_parts_make_one_step(
    forks: Any, tmp_path: Path
) -> None:
    assert step_of_two_processes(forks, tmp_path, [[1.0, 2.0], [4.0, 8.0]]) == ["-3.75", "-3.75"]


@pytest.mark.parametrize("dtype", ["", "float16"])
def test_all_processes_stop_when_the_loss_of_one_is_not_finite(
    forks: Any, tmp_path: Path, dtype: str
) -> None:
    results = step_of_two_processes(forks, tmp_path, [[1.0, 2.0], [4.0, math.nan]], dtype)
    assert all("loss or gradient is not finite" in result for result in results)


def test_a_stop_behind_the_best_checkpoint_leaves_a_numbered_one_that_a_better_one_does_not_replace(
    train: Callable[..., Run], tmp_path: Path
) -> None:
    options = ["train.eval_period=1", "train.best_metric=segm/AP", "train.checkpointer.period=3"]
    metrics = {1: 10, 2: 10, 3: 10, 4: 20, 5: 30}
    train(
        tmp_path,
        *options,
        "dataloader.train.num_workers=0",
        faults="SIGTERM:4",
        METRICS=json.dumps(metrics),
    )
    assert state(tmp_path / "model_best.pth")["trainer"]["iteration"] == 4
    assert state(tmp_path / "model_0000004.pth")["trainer"]["iteration"] == 4


def test_a_seed_that_was_not_given_is_the_same_for_all_processes_and_when_resumed(
    train: Callable[..., Run], tmp_path: Path
) -> None:
    options = ["train.seed=-1", "dataloader.train.num_workers=0"]
    train(tmp_path, *options, ranks=2, faults="SIGTERM:3", ORDER=str(tmp_path / "order"))
    seed = latest_checkpoint(str(tmp_path))["seed"]
    job = train(tmp_path, *options, "--resume", ranks=2, ORDER=str(tmp_path / "order"))
    assert job.code == 0 and job.final()["seed"] == seed
    train(
        tmp_path / "one", *options[1:], f"train.seed={seed}", ORDER=str(tmp_path / "one" / "order")
    )
    assert order(tmp_path / "order") == order(tmp_path / "one" / "order")


def test_a_training_of_other_classes_is_not_resumed(
    train: Callable[..., Run], undisturbed: Callable[[int], Run], tmp_path: Path
) -> None:
    content = gpvit.checkpoint.read_content(str(undisturbed(1).folder / "model_0000003.pth"))
    content["classes"] = content["classes"][::-1]
    gpvit.checkpoint.save(content, str(tmp_path / "model_0000003.pth"))
    job = train(tmp_path, "--resume")
    assert job.code == 1 and "is of a training for other classes" in job.errors[0]


@pytest.mark.parametrize("iteration", [2, 5])  # there is no checkpoint yet, or one of 3 iterations
def test_a_resumed_training_has_the_metrics_of_each_iteration_once(
    train: Callable[..., Run], tmp_path: Path, iteration: int
) -> None:
    path = tmp_path / "metrics.json"
    train(tmp_path, faults=f"kill:{iteration}")
    with path.open("a") as file:
        file.write('{"iteration": 5, "total_')
    train(tmp_path, "--resume")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["iteration"] for row in rows if "total_loss" in row] == list(range(ITERATIONS))


def test_a_used_folder_is_refused_without_resume(
    train: Callable[..., Run], undisturbed: Callable[[int], Run]
) -> None:
    folder = undisturbed(1).folder
    before = {path: path.read_bytes() for path in folder.glob("model_*")}
    job = train(folder)
    assert (
        job.code == 1
        and "has checkpoints of a training" in job.errors[0]
        and "add --resume" in job.errors[0]
    )
    assert {path: path.read_bytes() for path in folder.glob("model_*")} == before


def test_processes_that_see_other_checkpoints_stop(
    train: Callable[..., Run], undisturbed: Callable[[int], Run], tmp_path: Path
) -> None:
    shutil.copy(undisturbed(2).folder / "model_0000006.pth", tmp_path)
    job = train(tmp_path, "--resume", ranks=2, faults="blind:0:1")
    assert (
        job.code == 1
        and len(job.errors) == 1
        and "do not see the same checkpoints" in job.errors[0]
    )


def test_an_error_behind_the_step_loses_the_iteration_and_nothing_else(
    train: Callable[..., Run], undisturbed: Callable[[int], Run], tmp_path: Path
) -> None:
    job = train(tmp_path, faults="late_error:4")
    assert job.code == 1 and "iteration 4 was cut short" in job.output
    assert latest_checkpoint(str(tmp_path))["trainer"]["iteration"] == 3
    assert_goes_on(train, tmp_path, undisturbed(1), 1)


def test_after_running_out_of_memory_a_training_goes_on_in_smaller_parts(
    train: Callable[..., Run], tmp_path: Path
) -> None:
    train(tmp_path, faults="out_of_memory:4")
    assert train(tmp_path, "--resume", "train.accumulate=2").code == 0


def test_a_training_goes_on_with_its_own_config_file(
    train: Callable[..., Run], undisturbed: Callable[[int], Run], tmp_path: Path
) -> None:
    train(tmp_path, faults="SIGTERM:4")
    config = (tmp_path / "config.yaml").read_bytes()
    job = train(tmp_path, "--resume", "optimizer.lr=1")
    assert job.code == 1 and (tmp_path / "config.yaml").read_bytes() == config
    job = train(tmp_path, "--resume", config=tmp_path / "config.yaml")
    assert job.code == 0 and same(job.final(), undisturbed(1).final()), job.output


def test_a_full_disk_at_the_best_checkpoint_does_not_end_the_training(
    train: Callable[..., Run], tmp_path: Path
) -> None:
    options = ["train.eval_period=1", "train.best_metric=segm/AP", "dataloader.train.num_workers=0"]
    metrics = json.dumps({iteration: iteration for iteration in range(1, 9)})
    job = train(
        tmp_path,
        *options,
        "train.ema_decay=0",
        faults="disk_full:3,disk_emptied:4",
        METRICS=metrics,
    )
    assert job.code == 0 and "model_best.pth: " in job.output
    assert state(tmp_path / "model_best.pth")["trainer"]["iteration"] == ITERATIONS


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_signal_in_an_evaluation_stops_at_once(
    train: Callable[..., Run], undisturbed: Callable[[int], Run], tmp_path: Path, ranks: int
) -> None:
    job = train(tmp_path, "train.eval_period=4", ranks=ranks, EVALUATION="SIGTERM")
    assert job.code == 143 and job.seconds < WITHIN
    assert latest_checkpoint(str(tmp_path))["trainer"]["iteration"] == 4
    assert_goes_on(train, tmp_path, undisturbed(ranks), ranks)


RETINANET = [
    *(
        option
        for option in TINY
        if not option.startswith(("model.roi_heads", "model.proposal", "model.backbone"))
    ),
    *(
        "model.backbone.bottom_up.net.embed_dim=24",
        "model.backbone.bottom_up.net.group_tokens=[0,4]",
    ),
    *("model.backbone.bottom_up.num_interactions=2", "model.backbone.bottom_up.stem_width=8"),
    *(
        "model.head.conv_dims=[16]",
        "train.init_checkpoint=''",
        "train.seed=5",
        f"train.max_iter={ITERATIONS}",
    ),
    *("train.checkpointer.period=3", "dataloader.train.num_workers=1"),
]
FLOAT16 = [
    "train.amp.enabled=True",
    "train.amp.dtype=float16",
    "train.clip_norm=1",
    "train.accumulate=2",
]
FLOAT16 += ["dataloader.train.total_batch_size=4"]


@pytest.mark.parametrize(
    ("config", "options"),
    [("published/retinanet_gpvit_l1_1x", RETINANET), ("quickstart", FLOAT16)],
    ids=["retinanet", "float16"],
)
@pytest.mark.parametrize(("ranks", "fault"), [(1, "bug:4"), (2, "SIGTERM_parent:4:0")])
def test_other_models_and_precisions_go_on_as_if_nothing_had_been(
    train: Callable[..., Run],
    tmp_path: Path,
    config: str,
    options: list[str],
    ranks: int,
    fault: str,
) -> None:
    path = REPOSITORY / "configs" / f"{config}.py"
    whole = train(tmp_path / "whole", *options, ranks=ranks, config=path)
    assert whole.code == 0, whole.output
    train(tmp_path / "stopped", *options, ranks=ranks, config=path, faults=fault)
    resumed = train(tmp_path / "stopped", *options, "--resume", ranks=ranks, config=path)
    assert "training from iteration 4" in resumed.log or "training from iteration 5" in resumed.log
    assert losses(resumed.folder) == losses(whole.folder) and same(resumed.final(), whole.final())
