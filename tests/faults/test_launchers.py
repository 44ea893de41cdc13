"""Faults under the real launchers: torchrun on two machines, here one host, and Detectron2's spawned processes."""

import argparse
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import detectron2.engine
import gpvit.checkpoint
import pytest
from conftest import REPOSITORY, TINY
from gpvit.cli.train import argument_parser
from gpvit.engine.launch import launch
from gpvit.engine.resume import latest_checkpoint
from gpvit.utils.errors import UserError

ENVIRONMENT = os.environ | {
    "PYTHONPATH": os.pathsep.join(
        str(REPOSITORY / folder) for folder in (".", "projects/GPViT", "tests")
    ),
    "OMP_NUM_THREADS": "1",
    "EVALUATION": "off",
    "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",  # see the README
}
WITHIN = 150  # seconds
ITERATIONS = 8


@pytest.fixture(scope="module")
def command(synthetic_data: Path) -> list[str]:
    """What each process runs, but for its output_dir."""
    command = [
        str(REPOSITORY / "tests" / "faults" / "saboteur.py"),
        "--config-file",
        "configs/quickstart.py",
    ]
    command += [
        "--data",
        str(synthetic_data),
        "--resume",
        *TINY,
        "train.device=cpu",
        "train.seed=5",
    ]
    return [
        *command,
        f"train.max_iter={ITERATIONS}",
        "train.checkpointer.period=3",
        "model.backbone.net.drop_path_rate=0.3",
    ]


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen]]:
    """Starts a job: start(arguments of Python, faults); nothing of it outlives the test."""
    jobs: list[subprocess.Popen] = []

    def run(*arguments: str, faults: str = "") -> subprocess.Popen:
        job = subprocess.Popen(
            [sys.executable, *arguments], cwd=REPOSITORY, env=ENVIRONMENT | {"FAULTS": faults}, start_new_session=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        jobs.append(job)
        return job

    yield run
    for job in jobs:
        if (
            job.poll() is None
        ):  # torchrun's processes are in sessions of their own, and only torchrun stops them
            job.terminate()
            try:
                job.wait(60)
            except subprocess.TimeoutExpired:
                os.killpg(job.pid, signal.SIGKILL)


def torchrun(machine: int, port: int) -> list[str]:
    """One of two machines with one process each, which are started anew once."""
    command = [
        "-m",
        "torch.distributed.run",
        "--nnodes",
        "2",
        "--nproc-per-node",
        "1",
        "--max-restarts",
        "1",
    ]
    command += [
        "--rdzv-backend",
        "c10d",
        "--rdzv-endpoint",
        f"localhost:{port}",
        "--rdzv-conf",
        f"is_host={int(not machine)}",
    ]
    return [*command, "--local-addr", "localhost"]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return found.getsockname()[1]


def final_weights(folder: Path) -> dict[str, bytes]:
    weights = gpvit.checkpoint.read_content(str(folder / "model_final.pth"))["model"]
    return {name: tensor.numpy().tobytes() for name, tensor in weights.items()}


@pytest.mark.slow
def test_torchrun_starts_both_machines_anew_and_they_go_on_exactly(
    start: Callable[..., subprocess.Popen], command: list[str], tmp_path: Path
) -> None:
    for faults in ("", "kill:4:1"):
        port, folder = free_port(), tmp_path / f"faults{faults}"
        jobs = [
            start(*torchrun(i, port), *command, f"train.output_dir={folder}", faults=faults)
            for i in (0, 1)
        ]
        outputs = [job.communicate(timeout=WITHIN)[0] for job in jobs]
        assert [job.returncode for job in jobs] == [0, 0], outputs
        assert ("resuming from" in outputs[0] + outputs[1]) == bool(faults)
    assert final_weights(folder) == final_weights(tmp_path / "faults")


def test_a_signal_to_torchrun_saves_and_ends_the_job(
    start: Callable[..., subprocess.Popen], command: list[str], tmp_path: Path
) -> None:
    arguments = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *command]
    job = start(*arguments, f"train.output_dir={tmp_path}", "train.max_iter=1000000")
    wait_for(tmp_path / "model_0000003.pth", job)
    job.terminate()
    output = job.communicate(timeout=WITHIN)[0]
    assert job.returncode != 0
    assert "SIGTERM: stopping after" in output
    stopped_at = latest_checkpoint(str(tmp_path))["trainer"]["iteration"]
    assert f"stopping after {stopped_at} iterations" in output


def test_a_signal_to_spawned_processes_saves_and_ends_with_its_code(
    start: Callable[..., subprocess.Popen], command: list[str], tmp_path: Path
) -> None:
    job = start(
        *command, f"train.output_dir={tmp_path}", "train.max_iter=1000000", "--num-gpus", "2"
    )
    wait_for(tmp_path / "model_0000003.pth", job)
    job.terminate()
    output = job.communicate(timeout=WITHIN)[0]
    assert job.returncode == 128 + signal.SIGTERM, output
    assert (
        f"stopping after {latest_checkpoint(str(tmp_path))['trainer']['iteration']} iterations"
        in output
    )
    assert "Traceback" not in output


def test_a_signal_to_one_of_two_machines_saves_and_ends_both(
    start: Callable[..., subprocess.Popen], command: list[str], tmp_path: Path
) -> None:
    where = ["--num-machines", "2", "--dist-url", f"tcp://localhost:{free_port()}"]
    command = [*command, f"train.output_dir={tmp_path}", "train.max_iter=1000000", *where]
    jobs = [start(*command, "--machine-rank", str(machine)) for machine in (0, 1)]
    wait_for(tmp_path / "model_0000003.pth", jobs[0])
    jobs[0].terminate()
    outputs = [job.communicate(timeout=WITHIN)[0] for job in jobs]
    assert [job.returncode for job in jobs] == [128 + signal.SIGTERM] * 2, outputs
    assert (
        f"stopping after {latest_checkpoint(str(tmp_path))['trainer']['iteration']} iterations"
        in outputs[0]
    )


@pytest.mark.slow
def test_a_spawned_process_that_dies_ends_the_job_with_its_cause(
    start: Callable[..., subprocess.Popen], command: list[str], tmp_path: Path
) -> None:
    command = [*command, "--num-gpus", "2"]
    job = start(*command, f"train.output_dir={tmp_path / 'killed'}", faults="kill:4:1")
    output = job.communicate(timeout=WITHIN)[0]
    assert job.returncode == 1
    assert "error: process 1 was killed (SIGKILL)" in output and "Traceback" not in output
    for folder in ("killed", "undisturbed"):
        job = start(*command, f"train.output_dir={tmp_path / folder}")
        output = job.communicate(timeout=WITHIN)[0]
        assert job.returncode == 0, output
    assert final_weights(tmp_path / "killed") == final_weights(tmp_path / "undisturbed")


def never(args: argparse.Namespace) -> None:
    raise AssertionError("it was started")


def parsed(url: str, *arguments: str) -> argparse.Namespace:
    command = ["--config-file", "x.py", "--dist-url", url, "--num-gpus", "2", *arguments]
    return argument_parser().parse_intermixed_args(command)


@pytest.mark.parametrize("arguments", [(), ("--num-machines", "2")])
@pytest.mark.parametrize("address", ["127.0.0.1", ""])
def test_a_port_in_use_is_one_line_before_anything_is_started(
    address: str, arguments: tuple[str, ...]
) -> None:
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do
        other.bind((address, 0))
        other.listen()
        port = other.getsockname()[1]
        message = f":{port}: port {port} cannot be used .Address already in use.; give another port"
        with pytest.raises(UserError, match=message):
            launch(never, parsed(f"tcp://127.0.0.1:{port}", *arguments), "cpu")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("tcp://nowhere.invalid:29500", "nowhere.invalid is not known here .*; correct it"),
        ("tcp://192.0.2.1:29500", "192.0.2.1 is no address of this machine; give auto"),
    ],
)
def test_an_address_that_cannot_be_used_is_one_line(url: str, message: str) -> None:
    with pytest.raises(UserError, match=f"--dist-url {url}: {message}"):
        launch(never, parsed(url), "cpu")


@pytest.mark.slow
def test_processes_that_do_not_meet_in_time_are_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    started = detectron2.engine.launch

    def in_a_second(*args: Any, **options: Any) -> None:
        started(*args, **options, timeout=timedelta(seconds=1))

    monkeypatch.setattr(detectron2.engine, "launch", in_a_second)
    url = f"tcp://127.0.0.1:{free_port()}"
    args = parsed(url, "--num-machines", "2", "--machine-rank", "1", "--num-gpus", "1")
    with pytest.raises(
        UserError, match=f"the processes do not meet at --dist-url {url} .*timed out"
    ):
        launch(never, args, "cpu")
    assert (
        f"machine 1 of 2: waiting for the others at {url}, for up to 30 minutes"
        in capsys.readouterr().err
    )


def wait_for(path: Path, job: subprocess.Popen) -> None:
    while not path.exists():
        assert job.poll() is None, job.communicate()[0]
        time.sleep(0.1)
