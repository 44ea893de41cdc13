"""A training run survives real faults on a CPU and resumes as if it had not been interrupted."""

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

pytestmark = pytest.mark.long


def slow(*values: Any) -> Any:
    """The parameters of a variant that only `make test-slow` runs."""
    return pytest.param(*values, marks=pytest.mark.slow)


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
TIMEOUT = 60  # seconds until a job ends after one of its processes has died


@dataclass
class Run:
    """A finished job: exit code, output, folder and seconds."""

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

    def only_error(self) -> str:
        """Return the error of a job that failed with one error line and without a traceback."""
        assert self.code == 1 and "Traceback" not in self.output, self.output
        (line,) = self.errors
        return line


def state(path: Path) -> dict[str, Any]:
    """Return the content of a checkpoint without the config, which contains the folder."""
    content = gpvit.checkpoint.read_content(str(path))
    content.pop("config", None)
    return content


def latest_iteration(folder: Path) -> int:
    return latest_checkpoint(str(folder))["trainer"]["iteration"]


def best_iteration(folder: Path) -> int:
    return state(folder / "model_best.pth")["trainer"]["iteration"]


def bitwise_equal(one: Any, other: Any) -> bool:
    """Whether two states are equal to the last bit."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(
            bitwise_equal(one[key], other[key]) for key in one
        )
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(bitwise_equal, one, other))
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and one.numpy().tobytes() == other.numpy().tobytes()
    return one == other


def losses(folder: Path) -> dict[int, float]:
    """Return iteration -> loss. Iterations that were repeated must have the same loss each time."""
    found: dict[int, float] = {}
    for line in (folder / "metrics.json").read_text().splitlines():
        row = json.loads(line, parse_constant=pytest.fail)
        if "total_loss" in row:
            assert found.setdefault(row["iteration"], row["total_loss"]) == row["total_loss"]
    return found


def image_order(path: Path) -> dict[int, list]:
    """Return iteration -> ([position, index, name], sum of pixels) of the images of all ranks."""
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
    """Run a job until it ends.

    ``train(folder, *arguments, ranks, faults, data, config, **environment)``
    """

    def run(
        folder: Path, *arguments: str, ranks: int = 1, faults: str = "",
        data: Path = synthetic_data, config: Path = QUICKSTART, **environment: str,
    ) -> Run:  # fmt: skip
        folder.mkdir(exist_ok=True, parents=True)
        command = ["--config-file", str(config), "--data", str(data)]
        if config == QUICKSTART:
            command += TINY + OPTIONS
        command += ["train.device=cpu", f"train.output_dir={folder}", *arguments]
        command += ["--num-gpus", str(ranks)]
        environment = {"FAULTS": faults, "EVALUATION": "off"} | environment
        output = folder.with_name(f"{folder.name}-output.txt")  # the folder may be removed
        process = forks.Process(target=saboteur.run, args=(command, environment, str(output)))
        start = time.perf_counter()
        process.start()
        try:
            process.join(3 * TIMEOUT)
            assert process.exitcode is not None, f"the job hangs: {output.read_text()[-3000:]}"
            while remaining := processes_of_session(process.pid):
                seconds = time.perf_counter() - start
                assert seconds < 3 * TIMEOUT, f"processes {remaining} outlive their parent"
                time.sleep(0.1)
        finally:
            for pid in processes_of_session(process.pid):
                os.kill(pid, signal.SIGKILL)
        return Run(process.exitcode, output.read_text(), folder, time.perf_counter() - start)

    return run


def processes_of_session(leader: int) -> list[int]:
    """Return the living processes of a session, which its leader may have left behind."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            # After the name in parentheses: state, parent, process group, session.
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == leader and fields[0] not in "ZX":  # zombie or dead
            found.append(int(path.parent.name))
    return found


@pytest.fixture(scope="module")
def uninterrupted(
    train: Callable[..., Run], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[int], Run]:
    """Return the uninterrupted job for a number of ranks."""

    @functools.cache
    def run(ranks: int) -> Run:
        folder = tmp_path_factory.mktemp(f"uninterrupted{ranks}")
        job = train(folder, ranks=ranks, ORDER=str(folder / "order"))
        assert job.code == 0, job.output
        assert list(losses(folder)) == list(range(ITERATIONS))
        return job

    return run


def assert_resumes_bitwise(
    train: Callable[..., Run], folder: Path, uninterrupted: Run, ranks: int
) -> None:
    """Resume a job, whose losses and final state must equal those of the uninterrupted one."""
    resumed = train(folder, "--resume", ranks=ranks)
    assert resumed.code == 0, resumed.output
    found = losses(folder)
    assert found.items() <= losses(uninterrupted.folder).items() and ITERATIONS - 1 in found
    assert bitwise_equal(resumed.final(), uninterrupted.final())


# Chooses the iterations of faults, differently in each run of the tests.
RANDOM = random.Random()


@pytest.mark.parametrize(
    ("ranks", "fault", "code"),
    [
        (1, "kill", -9),
        slow(1, "kill_late", -9),
        (2, "kill_all", -9),
        (2, "kill_parent", -9),
        slow(1, "SIGTERM", 143),
        (1, "SIGINT", 130),
        (2, "SIGTERM_parent", 143),
        slow(2, "SIGINT", 130),
        (1, "SIGTERM_group", 143),
        slow(1, "SIGINT_group", 130),
    ],
)
def test_stopped_run_resumes_bitwise(
    train: Callable[..., Run],
    uninterrupted: Callable[[int], Run],
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
    # The ranks notice late that their parent was killed, and may finish.
    assert fault == "kill_parent" or not (tmp_path / "model_final.pth").exists()
    if code > 0:
        assert iteration <= latest_iteration(tmp_path) <= iteration + 2
    assert_resumes_bitwise(train, tmp_path, uninterrupted(ranks), ranks)


@pytest.mark.parametrize(
    ("fault", "rank"), [("kill", 1), ("exit", 0), slow("kill", 0), slow("exit", 1)]
)
def test_dead_process_ends_job_with_cause_and_resumes_bitwise(
    train: Callable[..., Run],
    uninterrupted: Callable[[int], Run],
    tmp_path: Path,
    fault: str,
    rank: int,
) -> None:
    iteration = RANDOM.randrange(1, ITERATIONS)
    job = train(tmp_path, ranks=2, faults=f"{fault}:{iteration}:{rank}")
    assert job.code not in (0, -9) and job.seconds < TIMEOUT
    if fault == "kill":
        assert f"process {rank} was killed (SIGKILL)" in job.errors[-1]
    else:
        assert f"process {rank} ended with exit code 3" in "\n".join(job.errors), job.output
    assert "Traceback" not in job.output
    assert_resumes_bitwise(train, tmp_path, uninterrupted(2), 2)


@pytest.mark.parametrize(
    ("ranks", "fault"),
    [
        (1, "worker_killed"),
        (2, "worker_hangs"),
        slow(2, "worker_killed"),
        slow(1, "worker_hangs"),
    ],
)
def test_dead_or_hanging_data_loading_process_is_reported(
    train: Callable[..., Run],
    uninterrupted: Callable[[int], Run],
    tmp_path: Path,
    ranks: int,
    fault: str,
) -> None:
    job = train(tmp_path, "dataloader.train.timeout=3", ranks=ranks, faults=f"{fault}:9")
    assert job.code == 1 and job.seconds < TIMEOUT
    assert "Traceback" not in job.output, job.output
    lines = [line for line in job.errors if "data-loading process" in line]
    assert "iteration" in "".join(lines), job.output
    assert_resumes_bitwise(train, tmp_path, uninterrupted(ranks), ranks)


@pytest.mark.parametrize(
    ("ranks", "workers", "fault"),
    [
        (1, 1, "SIGTERM_soon:4"),
        (1, 0, "SIGINT_soon:4"),
        (2, 1, "SIGTERM_parent_soon:4:0"),
        slow(2, 1, "SIGTERM_soon:4:1"),
    ],
)
def test_signal_while_waiting_for_data_stops_all_processes_immediately(
    train: Callable[..., Run],
    uninterrupted: Callable[[int], Run],
    tmp_path: Path,
    ranks: int,
    workers: int,
    fault: str,
) -> None:
    uninterrupted(ranks)
    options = [f"dataloader.train.num_workers={workers}", "dataloader.train.timeout=100"]
    job = train(tmp_path, *options, ranks=ranks, faults=f"{fault},worker_hangs:9")
    assert job.code == (130 if "SIGINT" in fault else 143), job.output
    assert "Traceback" not in job.output, job.output
    # Includes 4 iterations, but not the 5 seconds that PyTorch waits for each worker.
    assert job.seconds < 15
    assert latest_iteration(tmp_path) == 4
    assert_resumes_bitwise(train, tmp_path, uninterrupted(ranks), ranks)


@pytest.mark.parametrize("ranks", [1, 2])
def test_signal_before_training_loop_reports_one_error(
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
        pytest.skip("mounting requires root")


@pytest.mark.usefixtures("_mounts")
@pytest.mark.parametrize(
    ("size", "options", "environment"),
    [
        ("8k", ["dataloader.train.num_workers=1"], {}),
        slow("100k", ["dataloader.train.num_workers=1"], {}),
        (
            "100k",
            ["dataloader.test.num_workers=1", "dataloader.short_side=200"],
            {"EVALUATION": "on"},
        ),
    ],
)
def test_full_shared_memory_is_reported_immediately(
    train: Callable[..., Run],
    tmp_path: Path,
    size: str,
    options: list[str],
    environment: dict[str, str],
) -> None:
    common = ["dataloader.train.num_workers=0", "dataloader.train.timeout=100"]
    common += ["train.eval_period=2"]
    job = train(tmp_path, *common, *options, SHARED_MEMORY=size, **environment)
    line = job.only_error()
    assert job.seconds < 20
    assert "no room in /dev/shm" in line and "--shm-size" in line and "num_workers=0" in line
    if environment:
        assert latest_iteration(tmp_path) == 2


@pytest.mark.parametrize(("ranks", "rank"), [(1, 0), slow(2, 0), (2, 1)])
def test_out_of_memory_stops_all_ranks_with_image_sizes_and_resumes(
    train: Callable[..., Run],
    uninterrupted: Callable[[int], Run],
    tmp_path: Path,
    ranks: int,
    rank: int,
) -> None:
    job = train(tmp_path, ranks=ranks, faults=f"out_of_memory:4:{rank}")
    assert job.code == 1 and job.seconds < TIMEOUT
    (line,) = [line for line in job.errors if "out of memory" in line]
    assert f"iteration 4 of process {rank}" in line and "x" in line
    assert "lower dataloader.max_size" in line
    assert "Traceback" not in job.output, job.output
    assert latest_iteration(tmp_path) == 4
    assert_resumes_bitwise(train, tmp_path, uninterrupted(ranks), ranks)


def test_error_within_iteration_does_not_affect_saved_state(
    train: Callable[..., Run], uninterrupted: Callable[[int], Run], tmp_path: Path
) -> None:
    job = train(tmp_path, faults="bug:4")
    assert job.code == 1 and "a bug" in job.output
    assert latest_iteration(tmp_path) == 4
    assert_resumes_bitwise(train, tmp_path, uninterrupted(1), 1)


def test_training_continues_on_full_disk_and_saves_when_space_is_free(
    train: Callable[..., Run], tmp_path: Path
) -> None:
    options = ("train.checkpointer.period=2", "dataloader.train.num_workers=0")
    job = train(tmp_path / "emptied", *options, faults="disk_full:3,disk_emptied:5")
    assert job.code == 0, job.output
    names = ["model_0000002.pth", "model_0000006.pth", "model_final.pth"]
    assert checkpoint_names(job.folder) == names
    (line,) = [line for line in job.output.splitlines() if "cannot write" in line]
    assert "File too large" in line and "model_0000004.pth" in line and "training continues" in line

    job = train(tmp_path / "full", *options, faults="disk_full:3")
    assert "model_final.pth: " in job.only_error()
    assert latest_iteration(job.folder) == 2
    assert not list(job.folder.glob("*.partial*"))


def contents(folder: Path) -> dict[str, bytes]:
    """Return name -> content of the files of a run, without its logs."""
    logs = ("log.txt", ".lock")
    files = [path for path in folder.iterdir() if path.is_file() and path.name not in logs]
    return {path.name: path.read_bytes() for path in files}


def checkpoint_names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("model_*"))


@pytest.mark.parametrize("kind", ["--resume", "--eval-only"])
def test_initially_full_disk_reports_one_error_and_keeps_files(
    train: Callable[..., Run], uninterrupted: Callable[[int], Run], tmp_path: Path, kind: str
) -> None:
    folder, arguments = tmp_path / "run", [kind]
    if kind == "--resume":
        shutil.copytree(uninterrupted(1).folder, folder)
    else:
        arguments += [f"train.init_checkpoint={uninterrupted(1).folder}"]
        assert train(folder, *arguments, EVALUATION="on").code == 0
    (folder / "instances_predictions.pth").write_text("old")
    before = contents(folder)
    job = train(folder, *arguments, faults="disk_full_from_the_start:0", EVALUATION="on")
    message = "cannot write .*: File too large; the old one is intact"
    assert re.search(message, job.only_error())
    assert "Exception ignored" not in job.output
    after = contents(folder)
    if kind == "--eval-only":  # small files fit
        assert before.pop("evaluation.json") and after.pop("evaluation.json")
    assert after == before


def test_removed_folder_is_recreated_and_training_continues(
    train: Callable[..., Run], uninterrupted: Callable[[int], Run], tmp_path: Path
) -> None:
    job = train(tmp_path / "run", faults="folder_removed:4")
    assert job.code == 0 and "Traceback" not in job.output, job.output
    assert job.log.count("metrics.json was removed") == 1
    assert bitwise_equal(job.final(), uninterrupted(1).final())
    assert list(losses(job.folder)) == list(range(4, ITERATIONS))
    assert (job.folder / "README.md").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda weights: weights.pop("backbone.net.pos_embed"),
            "1 missing .backbone.net.pos_embed",
        ),
        (lambda weights: weights.update(surplus=torch.zeros(1)), "1 unexpected .surplus"),
        (
            lambda weights: weights.update({"backbone.net.pos_embed": torch.zeros(3)}),
            r"1 of another shape .*\(3,\) instead",
        ),
    ],
)
@pytest.mark.parametrize("part", ["model", "ema"])
def test_mismatched_checkpoint_raises_with_keys(
    train: Callable[..., Run],
    uninterrupted: Callable[[int], Run],
    tmp_path: Path,
    part: str,
    change: Callable,
    message: str,
) -> None:
    content = gpvit.checkpoint.read_content(str(uninterrupted(1).folder / "model_0000003.pth"))
    change(content[part])
    gpvit.checkpoint.save(content, str(tmp_path / "model_0000003.pth"))
    job = train(tmp_path, "--resume")
    assert re.search(message, job.only_error())


def test_different_number_of_ranks_resumes_with_same_images(
    train: Callable[..., Run], uninterrupted: Callable[[int], Run], tmp_path: Path
) -> None:
    expected = image_order(uninterrupted(2).folder / "order")
    assert image_order(uninterrupted(1).folder / "order") == expected
    train(tmp_path, ranks=2, faults="SIGTERM:4", ORDER=str(tmp_path / "order"))
    job = train(tmp_path, "--resume", ranks=1, ORDER=str(tmp_path / "order"))
    assert job.code == 0 and image_order(tmp_path / "order") == expected


def test_changed_config_key_raises_if_weights_depend_on_it(
    train: Callable[..., Run], uninterrupted: Callable[[int], Run], tmp_path: Path
) -> None:
    shutil.copy(uninterrupted(1).folder / "model_0000006.pth", tmp_path)
    changes = ["dataloader.train.total_batch_size=4", "optimizer.lr=0.1"]
    for change in (*changes, "train.max_iter=9", "train.seed=6"):
        job = train(tmp_path, "--resume", change)
        key, _, value = change.partition("=")
        assert job.code == 1 and f"{key}: " in job.errors[0] and f"-> {value}" in job.errors[0]
    independent = ["train.log_period=3", "train.checkpointer.period=4"]
    independent += ["dataloader.train.num_workers=0", "train.eval_period=0"]
    job = train(tmp_path, "--resume", *independent)
    assert job.code == 0 and bitwise_equal(job.final()["model"], uninterrupted(1).final()["model"])


def test_moved_data_is_accepted_and_changed_data_rejected(
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
    assert "content of the training data: " in job.only_error()


def digest_of_version_1(data: Path) -> str:
    """Return the digest of the training data in checkpoints from before November 2026."""
    digest = hashlib.sha256()
    for record in custom.read(str(data), "train").records():
        annotations = record["annotations"]
        if all(item["iscrowd"] for item in annotations):
            continue
        name = os.path.basename(record["file_name"])
        image = (name, record["image_id"], record["width"], record["height"])
        objects = [(item["category_id"], *map(float, item["bbox"])) for item in annotations]
        digest.update(repr((image, objects)).encode())
    return digest.hexdigest()[:16]


def test_run_of_older_version_resumes_only_with_same_data(
    train: Callable[..., Run],
    uninterrupted: Callable[[int], Run],
    synthetic_data: Path,
    tmp_path: Path,
) -> None:
    content = gpvit.checkpoint.read_content(str(uninterrupted(1).folder / "model_0000006.pth"))
    key = "content of the training data"
    for folder, digest in (
        ("same", digest_of_version_1(synthetic_data)),
        ("other", "0123456789abcdef"),
    ):
        (tmp_path / folder).mkdir()
        old = content | {"config": content["config"] | {key: digest}}
        gpvit.checkpoint.save(old, str(tmp_path / folder / "model_0000006.pth"))
    job = train(tmp_path / "same", "--resume")
    assert job.code == 0 and bitwise_equal(job.final(), uninterrupted(1).final())
    saved = gpvit.checkpoint.read_content(str(job.folder / "model_final.pth"))["config"][key]
    assert saved.startswith("2:") and saved == content["config"][key]
    job = train(tmp_path / "other", "--resume")
    change = f"{key}: 0123456789abcdef -> {digest_of_version_1(synthetic_data)}"
    assert job.code == 1 and change in job.errors[0]


def copy_annotations(source: Path, folder: Path) -> tuple[Path, dict[str, Any]]:
    """Copy a dataset with a link to its images; return path and content of train.json."""
    shutil.copytree(source / "annotations", folder / "annotations")
    (folder / "images").symlink_to(source / "images")
    path = folder / "annotations" / "train.json"
    return path, json.loads(path.read_text())


def test_changed_masks_are_rejected(
    train: Callable[..., Run],
    uninterrupted: Callable[[int], Run],
    synthetic_data: Path,
    tmp_path: Path,
) -> None:
    data = tmp_path / "data"
    path, content = copy_annotations(synthetic_data, data)
    masks = [item["segmentation"] for item in content["annotations"]]
    first_polygons = next(mask for mask in masks if isinstance(mask, list))
    first_polygons[0][0] += 0.25
    path.write_text(json.dumps(content))
    (tmp_path / "out").mkdir()
    shutil.copy(uninterrupted(1).folder / "model_0000006.pth", tmp_path / "out")
    job = train(tmp_path / "out", "--resume", data=data)
    assert job.code == 1 and "content of the training data: " in job.errors[0]


@pytest.mark.parametrize("ranks", [1, 2])
def test_folder_in_use_by_another_run_is_rejected(
    train: Callable[..., Run], tmp_path: Path, ranks: int
) -> None:
    folder = tmp_path / "out"
    with lock_folder(folder):
        for arguments in ([], ["--resume"], ["--eval-only", "train.init_checkpoint=nothing.pth"]):
            job = train(folder, *arguments, ranks=ranks)
            message = f"another run writes to {folder} (process {os.getpid()} on "
            assert message in job.only_error()
            assert os.listdir(folder) == [".lock"]
    assert train(folder, "train.max_iter=1", ranks=ranks).code == 0


def test_number_of_data_loading_processes_does_not_affect_run(
    train: Callable[..., Run], uninterrupted: Callable[[int], Run], tmp_path: Path
) -> None:
    for workers in (0, 2):
        job = train(tmp_path / str(workers), f"dataloader.train.num_workers={workers}")
        assert losses(job.folder) == losses(uninterrupted(1).folder)
        assert bitwise_equal(job.final(), uninterrupted(1).final())
    job = train(tmp_path / "other", "train.seed=6")
    assert losses(job.folder) != losses(uninterrupted(1).folder)


@pytest.fixture(scope="module")
def one_cross(tmp_path_factory: pytest.TempPathFactory, synthetic_data: Path) -> Path:
    """A dataset in which only one training image has objects of the class "cross"."""
    folder = tmp_path_factory.mktemp("one_cross")
    path, content = copy_annotations(synthetic_data, folder)
    (cross,) = [item["id"] for item in content["categories"] if item["name"] == "cross"]
    kept, image_with_cross = [], None
    for item in content["annotations"]:
        if item["category_id"] == cross:
            image_with_cross = image_with_cross or item["image_id"]
            if item["image_id"] != image_with_cross:
                continue
        kept.append(item)
    path.write_text(json.dumps(content | {"annotations": kept}))
    return folder


@pytest.mark.parametrize(
    ("ranks", "value"), [(1, "inf"), (2, "nan"), slow(1, "nan"), slow(2, "inf")]
)
def test_non_finite_loss_stops_all_ranks_before_weights_change_and_is_replayed(
    train: Callable[..., Run], one_cross: Path, tmp_path: Path, capsys: pytest.CaptureFixture,
    ranks: int, value: str,
) -> None:  # fmt: skip
    cfg = load_config(str(REPOSITORY / "configs" / "quickstart.py"), [*TINY, *OPTIONS])
    gpvit.data.use_folder(cfg, str(one_cross), train=True)
    classes = gpvit.data.class_names(cfg.dataloader.train)
    torch.manual_seed(0)
    weights = instantiate(cfg.model).state_dict()
    # Only the loss of crosses, and so of one process, depends on this value.
    weights["roi_heads.mask_head.predictor.bias"][classes.index("cross")] = float(value)
    gpvit.checkpoint.write(str(tmp_path / "init.pth"), weights, classes=classes)
    init = [f"train.init_checkpoint={tmp_path / 'init.pth'}"]
    init += ["model.roi_heads.batch_size_per_image=64"]  # enough proposals to sample every object

    job = train(tmp_path / "bad", *init, ranks=ranks, data=one_cross)
    error = job.only_error()
    (path,) = job.folder.glob("not_finite_*.json")
    report = json.loads(path.read_text(), parse_constant=pytest.fail)
    iteration = report["iteration"]
    assert f"iteration {iteration}: loss or gradient is not finite" in error
    assert str(path) in error
    assert len(report["processes"]) == ranks
    bad = []
    for process in report["processes"]:
        if not math.isfinite(float(process["losses"]["loss_mask"])):
            bad.append(process)
        for image in process["images"]:
            assert image["image_id"] and image["file_name"]
    assert len(bad) == 1
    assert list(losses(job.folder)) == list(range(iteration))

    if iteration:
        fault = f"SIGTERM:{iteration}"
        stopped = train(tmp_path / "stopped", *init, ranks=ranks, data=one_cross, faults=fault)
        expected = state(stopped.folder / f"model_{iteration:07}.pth")
        assert bitwise_equal(state(job.folder / f"model_{iteration:07}.pth"), expected)

    assert replay.main(["--input", str(path), "--device", "cpu"]) == 0
    output = capsys.readouterr().out
    for process in report["processes"]:
        loss = float(process["losses"]["loss_mask"])
        assert f"loss_mask {loss:.4g}" in output
    assert f"image {bad[0]['images'][0]['image_id']}: " in output


@pytest.mark.parametrize(("ranks", "rank"), [(1, 0), slow(2, 0), (2, 1)])
def test_non_finite_proposals_stop_all_ranks_with_report(
    train: Callable[..., Run],
    uninterrupted: Callable[[int], Run],
    tmp_path: Path,
    ranks: int,
    rank: int,
) -> None:
    job = train(tmp_path, ranks=ranks, faults=f"diverged:4:{rank}")
    assert job.code == 1 and "Traceback" not in job.output, job.output
    message = "iteration 4: Predicted boxes or scores contain Inf/NaN"
    assert message in "\n".join(job.errors)
    report = json.loads((tmp_path / f"not_finite_0000004_rank{rank}.json").read_text())
    (process,) = report["processes"]
    assert process["rank"] == rank and process["images"]
    assert latest_iteration(tmp_path) == 4
    assert_resumes_bitwise(train, tmp_path, uninterrupted(ranks), ranks)


@pytest.fixture(scope="module")
def unreadable(tmp_path_factory: pytest.TempPathFactory, synthetic_data: Path) -> Path:
    """The path of a truncated training image in a dataset."""
    folder = tmp_path_factory.mktemp("unreadable")
    shutil.copytree(synthetic_data, folder, dirs_exist_ok=True)
    name = json.loads((folder / "annotations" / "train.json").read_text())["images"][0]["file_name"]
    path = folder / "images" / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


@pytest.mark.parametrize("ranks", [1, 2])
def test_unreadable_image_stops_training_when_skip_budget_is_exceeded(
    train: Callable[..., Run], unreadable: Path, tmp_path: Path, ranks: int
) -> None:
    data = unreadable.parent.parent
    job = train(tmp_path / "strict", ranks=ranks, data=data)
    assert str(unreadable) in job.only_error()
    options = ["train.skip_budget=2", "train.max_iter=30"]
    job = train(tmp_path / "budget", *options, ranks=ranks, data=data)
    assert str(unreadable) in job.only_error()
    for number in (1, 2, 3):
        assert f"{number} images skipped so far, 2 allowed" in job.log
    assert "4 images skipped so far" not in job.log
    assert losses(job.folder)


def test_run_resumes_bitwise_when_unreadable_image_is_repaired(
    train: Callable[..., Run],
    uninterrupted: Callable[[int], Run],
    unreadable: Path,
    synthetic_data: Path,
    tmp_path: Path,
) -> None:
    data = tmp_path / "data"
    shutil.copytree(unreadable.parent.parent, data)
    assert train(tmp_path / "out", data=data).code == 1
    shutil.copy(synthetic_data / "images" / unreadable.name, data / "images")
    job = train(tmp_path / "out", "--resume", data=data)
    assert job.code == 0 and bitwise_equal(job.final(), uninterrupted(1).final())


def test_skip_budget_below_skipped_images_raises_on_resume(
    train: Callable[..., Run], unreadable: Path, tmp_path: Path
) -> None:
    data = unreadable.parent.parent
    assert train(tmp_path, "train.skip_budget=9", data=data).code == 0
    (tmp_path / "model_final.pth").unlink()
    job = train(tmp_path, "--resume", "train.skip_budget=0", data=data)
    message = r"error: \d images were skipped, train.skip_budget allows 0"
    assert job.code == 1 and re.search(message, job.output)


@pytest.mark.parametrize("ranks", [1, slow(2)])
def test_unreadable_validation_image_is_reported(
    train: Callable[..., Run], synthetic_data: Path, tmp_path: Path, ranks: int
) -> None:
    data = tmp_path / "data"
    shutil.copytree(synthetic_data, data)
    content = json.loads((data / "annotations" / "val.json").read_text())
    path = data / "images" / content["images"][-1]["file_name"]
    path.write_bytes(path.read_bytes()[:1000])
    options = ["dataloader.test.num_workers=1", "train.eval_period=2"]
    job = train(tmp_path / "out", *options, ranks=ranks, data=data, EVALUATION="on")
    assert job.code == 1 and "Traceback" not in job.output, job.output
    assert str(path) in "\n".join(job.errors)


@pytest.mark.parametrize("ranks", [slow(1), 2])
def test_batches_without_objects_have_finite_losses_and_gradients(
    train: Callable[..., Run], synthetic_data: Path, tmp_path: Path, ranks: int
) -> None:
    data = tmp_path / "data"
    path, content = copy_annotations(synthetic_data, data)
    first_image = content["images"][0]["id"]
    kept = [item for item in content["annotations"] if item["image_id"] == first_image]
    path.write_text(json.dumps(content | {"annotations": kept}))
    option = "dataloader.train.dataset.filter_empty=False"
    job = train(tmp_path / "out", option, ranks=ranks, data=data, GRADIENTS="1")
    assert job.code == 0, job.output
    found = losses(job.folder)
    assert list(found) == list(range(ITERATIONS)) and all(map(math.isfinite, found.values()))


BEST = ["train.best_metric=segm/AP", "train.ema_decay=0", "dataloader.train.num_workers=0"]


@pytest.mark.parametrize("fault", ["", "SIGTERM:3", "kill:4", slow("SIGTERM:4"), slow("kill:3")])
def test_best_checkpoint_and_early_stopping_survive_restarts(
    train: Callable[..., Run], tmp_path: Path, fault: str
) -> None:
    options = [*BEST, "train.eval_period=1", "train.patience=3", "train.checkpointer.period=2"]
    metrics = json.dumps({1: 10, 2: 30, 3: 20, 4: 20, 5: 30, 6: 40, 7: 40, 8: 40})
    job = train(tmp_path, *options, faults=fault, METRICS=metrics)
    if fault:
        assert job.code != 0
        job = train(tmp_path, *options, "--resume", METRICS=metrics)
    assert job.code == 0, job.output
    assert best_iteration(tmp_path) == 2
    assert job.final()["trainer"]["iteration"] == 5
    again = train(tmp_path, *options, "--resume", METRICS=metrics)
    assert again.code == 0 and again.final()["trainer"]["iteration"] == 5


def damage(path: Path) -> None:
    """Flip a bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


METRICS = json.dumps({2: 10, 4: 30, 6: 20, 8: 20})  # iteration -> AP


@pytest.fixture(scope="module")
def with_best(train: Callable[..., Run], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """An uninterrupted job whose best checkpoint is that of iteration 4."""
    options = [*BEST, "train.eval_period=2", "train.checkpointer.period=100"]
    job = train(tmp_path_factory.mktemp("with_best"), *options, METRICS=METRICS)
    assert job.code == 0 and best_iteration(job.folder) == 4
    return job


@pytest.mark.parametrize("iteration", [2, slow(4)])
def test_run_with_only_best_checkpoint_resumes_bitwise(
    train: Callable[..., Run], with_best: Run, tmp_path: Path, iteration: int
) -> None:
    options = [*BEST, "train.eval_period=2", "train.checkpointer.period=100"]
    assert train(tmp_path, *options, faults=f"kill_at_best:{iteration}", METRICS=METRICS).code == -9
    assert checkpoint_names(tmp_path) == ["model_best.pth"]
    job = train(tmp_path, *options, "--resume", METRICS=METRICS)
    assert job.code == 0 and f"training from iteration {iteration} to" in job.log, job.output
    assert bitwise_equal(job.final(), with_best.final())
    assert losses(job.folder).items() <= losses(with_best.folder).items()
    assert bitwise_equal(
        state(tmp_path / "model_best.pth"), state(with_best.folder / "model_best.pth")
    )


def test_best_checkpoint_replaces_damaged_ones_on_resume(
    train: Callable[..., Run], with_best: Run, tmp_path: Path
) -> None:
    options = [*BEST, "train.eval_period=2", "train.checkpointer.period=3"]
    train(tmp_path, *options, faults="kill:7", METRICS=METRICS)
    damage(tmp_path / "model_0000006.pth")
    job = train(tmp_path, *options, "--resume", METRICS=METRICS)
    assert job.code == 0 and "training from iteration 4 to" in job.log
    assert bitwise_equal(job.final()["model"], with_best.final()["model"])
    assert best_iteration(tmp_path) == 4


def test_damaged_best_checkpoint_raises_and_is_not_overwritten(
    train: Callable[..., Run], with_best: Run, tmp_path: Path
) -> None:
    shutil.copy(with_best.folder / "model_best.pth", tmp_path)
    damage(tmp_path / "model_best.pth")
    before = (tmp_path / "model_best.pth").read_bytes()
    job = train(tmp_path, *BEST, "--resume", METRICS="{}")
    assert job.code == 1 and "1 checkpoints, and none of them can be read" in job.errors[0]
    assert (tmp_path / "model_best.pth").read_bytes() == before


def test_best_checkpoint_is_not_replaced_by_worse_one_after_restart(
    train: Callable[..., Run], tmp_path: Path
) -> None:
    options = [*BEST, "train.eval_period=2", "train.checkpointer.period=2"]
    train(tmp_path, *options, faults="kill_at_best:4", METRICS=json.dumps({2: 10, 4: 30}))
    assert (tmp_path / "model_0000004.pth").exists()  # saved before this evaluation
    best = (tmp_path / "model_best.pth").read_bytes()
    job = train(tmp_path, *options, "--resume", METRICS=json.dumps({4: 20, 6: 25, 8: 29}))
    assert job.code == 0 and (tmp_path / "model_best.pth").read_bytes() == best


def test_different_metric_selects_its_own_best_checkpoint(
    train: Callable[..., Run], with_best: Run, tmp_path: Path
) -> None:
    shutil.copy(with_best.folder / "model_best.pth", tmp_path)
    options = ["train.eval_period=2", "train.best_metric=segm/AP50", *BEST[1:]]
    metrics = json.dumps({4: 1, 6: 3, 8: 2})
    job = train(tmp_path, *options, "--resume", METRICS=metrics, METRIC="AP50")
    assert job.code == 0, job.output
    assert "was selected by segm/AP; segm/AP50 is used from now on" in job.log
    assert best_iteration(tmp_path) == 6


def test_new_checkpoints_are_kept_instead_of_damaged_ones(
    train: Callable[..., Run], tmp_path: Path
) -> None:
    train(tmp_path, "dataloader.train.num_workers=0", faults="kill:7")
    damage(tmp_path / "model_0000006.pth")
    options = ["--resume", "train.checkpointer.period=1", "train.checkpointer.max_to_keep=1"]
    train(tmp_path, *options, "dataloader.train.num_workers=0", faults="kill:5")
    assert latest_iteration(tmp_path) == 5


def test_old_checkpoints_are_removed_across_restarts(
    train: Callable[..., Run], tmp_path: Path
) -> None:
    options = ["train.checkpointer.period=1", "train.checkpointer.max_to_keep=2"]
    options += ["dataloader.train.num_workers=0"]
    train(tmp_path, *options, faults="kill:3")
    assert len(list(tmp_path.glob("model_0*.pth"))) == 2
    train(tmp_path, *options, "--resume")
    names = ["model_0000006.pth", "model_0000007.pth", "model_final.pth"]
    assert checkpoint_names(tmp_path) == names


def test_ema_weights_are_evaluated_and_saved_with_raw_ones(
    train: Callable[..., Run], tmp_path: Path
) -> None:
    job = train(tmp_path, "train.max_iter=2", EVALUATION="on")
    rows = read_rows(tmp_path / "metrics.json")
    assert {"segm/AP", "ema_segm/AP", "bbox/AP", "ema_bbox/AP"} <= set().union(*rows)
    final = job.final()
    raw, averaged = dict(final["model"]), dict(final["ema"])
    assert raw.keys() == averaged.keys() and not bitwise_equal(raw, averaged)
    read = gpvit.checkpoint.read(str(tmp_path / "model_final.pth")).weights
    assert bitwise_equal(dict(read), averaged)


def read_rows(path: Path) -> list[dict[str, Any]]:
    return list(map(json.loads, path.read_text().splitlines()))


def step_of_two_processes(
    forks: Any, folder: Path, values: list[list[float]], dtype: str = ""
) -> list[str]:
    """Run the function of the saboteur in both processes; return what they have written."""
    step = saboteur.step_of_two_processes
    ranks = [forks.Process(target=step, args=(rank, str(folder), values, dtype)) for rank in (0, 1)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(TIMEOUT)
    codes = [process.exitcode for process in ranks]
    for process in ranks:
        process.kill()
    assert codes == [0, 0]
    return [(folder / str(rank)).read_text() for rank in (0, 1)]


def test_gradient_accumulation_on_two_ranks_makes_one_step(forks: Any, tmp_path: Path) -> None:
    assert step_of_two_processes(forks, tmp_path, [[1.0, 2.0], [4.0, 8.0]]) == ["-3.75", "-3.75"]


@pytest.mark.parametrize("dtype", ["", "float16"])
def test_all_ranks_stop_when_loss_of_one_is_not_finite(
    forks: Any, tmp_path: Path, dtype: str
) -> None:
    results = step_of_two_processes(forks, tmp_path, [[1.0, 2.0], [4.0, math.nan]], dtype)
    for result in results:
        assert "loss or gradient is not finite" in result


def test_stop_after_best_checkpoint_also_saves_numbered_one(
    train: Callable[..., Run], tmp_path: Path
) -> None:
    options = ["train.eval_period=1", "train.best_metric=segm/AP", "train.checkpointer.period=3"]
    options += ["dataloader.train.num_workers=0"]
    metrics = json.dumps({1: 10, 2: 10, 3: 10, 4: 20, 5: 30})
    train(tmp_path, *options, faults="SIGTERM:4", METRICS=metrics)
    assert best_iteration(tmp_path) == 4
    assert state(tmp_path / "model_0000004.pth")["trainer"]["iteration"] == 4


def test_random_seed_is_shared_by_ranks_and_restored(
    train: Callable[..., Run], tmp_path: Path
) -> None:
    options = ["train.seed=-1", "dataloader.train.num_workers=0"]
    train(tmp_path, *options, ranks=2, faults="SIGTERM:3", ORDER=str(tmp_path / "order"))
    seed = latest_checkpoint(str(tmp_path))["seed"]
    job = train(tmp_path, *options, "--resume", ranks=2, ORDER=str(tmp_path / "order"))
    assert job.code == 0 and job.final()["seed"] == seed
    one = tmp_path / "one"
    train(one, *options[1:], f"train.seed={seed}", ORDER=str(one / "order"))
    assert image_order(tmp_path / "order") == image_order(one / "order")


def test_run_with_different_classes_is_not_resumed(
    train: Callable[..., Run], uninterrupted: Callable[[int], Run], tmp_path: Path
) -> None:
    content = gpvit.checkpoint.read_content(str(uninterrupted(1).folder / "model_0000003.pth"))
    content["classes"] = content["classes"][::-1]
    gpvit.checkpoint.save(content, str(tmp_path / "model_0000003.pth"))
    job = train(tmp_path, "--resume")
    assert job.code == 1 and "is from a training run with other classes" in job.errors[0]


@pytest.mark.parametrize("iteration", [2, 5])  # without a checkpoint, or with that of iteration 3
def test_resumed_run_has_metrics_of_each_iteration_once(
    train: Callable[..., Run], tmp_path: Path, iteration: int
) -> None:
    path = tmp_path / "metrics.json"
    train(tmp_path, faults=f"kill:{iteration}")
    with path.open("a") as file:
        file.write('{"iteration": 5, "total_')
    train(tmp_path, "--resume")
    iterations = [row["iteration"] for row in read_rows(path) if "total_loss" in row]
    assert iterations == list(range(ITERATIONS))


def test_used_folder_without_resume_is_rejected(
    train: Callable[..., Run], uninterrupted: Callable[[int], Run]
) -> None:
    folder = uninterrupted(1).folder
    before = contents(folder)
    job = train(folder)
    assert job.code == 1 and "has checkpoints of a training run" in job.errors[0]
    assert "add --resume" in job.errors[0]
    assert contents(folder) == before


def test_ranks_that_see_different_checkpoints_stop(
    train: Callable[..., Run], uninterrupted: Callable[[int], Run], tmp_path: Path
) -> None:
    shutil.copy(uninterrupted(2).folder / "model_0000006.pth", tmp_path)
    job = train(tmp_path, "--resume", ranks=2, faults="blind:0:1")
    assert "do not see the same checkpoints" in job.only_error()


def test_error_after_step_loses_only_that_iteration(
    train: Callable[..., Run], uninterrupted: Callable[[int], Run], tmp_path: Path
) -> None:
    job = train(tmp_path, faults="late_error:4")
    assert job.code == 1 and "iteration 4 was interrupted" in job.output
    assert latest_iteration(tmp_path) == 3
    assert_resumes_bitwise(train, tmp_path, uninterrupted(1), 1)


def test_run_resumes_with_gradient_accumulation_after_out_of_memory(
    train: Callable[..., Run], tmp_path: Path
) -> None:
    train(tmp_path, faults="out_of_memory:4")
    assert train(tmp_path, "--resume", "train.accumulate=2").code == 0


def test_run_resumes_from_its_config_file(
    train: Callable[..., Run], uninterrupted: Callable[[int], Run], tmp_path: Path
) -> None:
    train(tmp_path, faults="SIGTERM:4")
    config = (tmp_path / "config.yaml").read_bytes()
    job = train(tmp_path, "--resume", "optimizer.lr=1")
    assert job.code == 1 and (tmp_path / "config.yaml").read_bytes() == config
    job = train(tmp_path, "--resume", config=tmp_path / "config.yaml")
    assert job.code == 0 and bitwise_equal(job.final(), uninterrupted(1).final()), job.output


def test_full_disk_at_best_checkpoint_does_not_end_run(
    train: Callable[..., Run], tmp_path: Path
) -> None:
    iterations = range(1, ITERATIONS + 1)
    metrics = json.dumps(dict(zip(iterations, iterations)))
    faults = "disk_full:3,disk_emptied:4"
    job = train(tmp_path, *BEST, "train.eval_period=1", faults=faults, METRICS=metrics)
    assert job.code == 0 and "model_best.pth: " in job.output
    assert best_iteration(tmp_path) == ITERATIONS


@pytest.mark.parametrize("ranks", [slow(1), 2])
def test_signal_during_evaluation_stops_immediately(
    train: Callable[..., Run], uninterrupted: Callable[[int], Run], tmp_path: Path, ranks: int
) -> None:
    job = train(tmp_path, "train.eval_period=4", ranks=ranks, EVALUATION="SIGTERM")
    assert job.code == 143 and job.seconds < TIMEOUT
    assert latest_iteration(tmp_path) == 4
    assert_resumes_bitwise(train, tmp_path, uninterrupted(ranks), ranks)


QUICKSTART_ONLY = ("model.roi_heads", "model.proposal", "model.backbone")
RETINANET = [option for option in TINY if not option.startswith(QUICKSTART_ONLY)]
RETINANET += [
    "model.backbone.bottom_up.net.embed_dim=24",
    "model.backbone.bottom_up.net.group_tokens=[0,4]",
    "model.backbone.bottom_up.num_interactions=2",
    "model.backbone.bottom_up.stem_width=8",
    "model.head.conv_dims=[16]",
    "train.init_checkpoint=''",
    "train.seed=5",
    f"train.max_iter={ITERATIONS}",
    "train.checkpointer.period=3",
    "dataloader.train.num_workers=1",
]
FLOAT16 = [
    "train.amp.enabled=True",
    "train.amp.dtype=float16",
    "train.clip_norm=1",
    "train.accumulate=2",
    "dataloader.train.total_batch_size=4",
]


@pytest.mark.parametrize(
    ("config", "options", "ranks", "fault"),
    [
        ("published/retinanet_gpvit_l1_1x", RETINANET, 2, "SIGTERM_parent:4:0"),
        ("quickstart", FLOAT16, 1, "bug:4"),
        slow("published/retinanet_gpvit_l1_1x", RETINANET, 1, "bug:4"),
        slow("quickstart", FLOAT16, 2, "SIGTERM_parent:4:0"),
    ],
    ids=["retinanet", "float16", "retinanet_1", "float16_2"],
)
def test_retinanet_and_float16_resume_bitwise(
    train: Callable[..., Run],
    tmp_path: Path,
    config: str,
    options: list[str],
    ranks: int,
    fault: str,
) -> None:
    path = REPOSITORY / "configs" / f"{config}.py"
    complete = train(tmp_path / "complete", *options, ranks=ranks, config=path)
    assert complete.code == 0, complete.output
    train(tmp_path / "stopped", *options, ranks=ranks, config=path, faults=fault)
    resumed = train(tmp_path / "stopped", *options, "--resume", ranks=ranks, config=path)
    assert re.search("training from iteration [45]", resumed.log)
    assert losses(resumed.folder) == losses(complete.folder)
    assert bitwise_equal(resumed.final(), complete.final())
