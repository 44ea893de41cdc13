"""Faults under the real launchers: torchrun on two machines and Detectron2's spawned processes.

Both machines are this host.
"""

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

pytestmark = pytest.mark.long

PYTHONPATH = [str(REPOSITORY), str(REPOSITORY / "projects/GPViT"), str(REPOSITORY / "tests")]
ENVIRONMENT = os.environ | {
    "PYTHONPATH": os.pathsep.join(PYTHONPATH),
    "OMP_NUM_THREADS": "1",
    "EVALUATION": "off",
    "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",  # see the README
}
TIMEOUT = 150  # seconds
ITERATIONS = 8


@pytest.fixture(scope="module")
def command(synthetic_data: Path) -> list[str]:
    """The command of each process, without its output_dir."""
    saboteur = str(REPOSITORY / "tests" / "faults" / "saboteur.py")
    command = [saboteur, "--config-file", "configs/quickstart.py", "--data", str(synthetic_data)]
    command += ["--resume", *TINY, "train.device=cpu", "train.seed=5"]
    command += [f"train.max_iter={ITERATIONS}", "train.checkpointer.period=3"]
    return [*command, "model.backbone.net.drop_path_rate=0.3"]


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen]]:
    """Start a job, ``start(*python_arguments, faults)``, and stop it after the test."""
    jobs: list[subprocess.Popen] = []

    def run(*arguments: str, faults: str = "") -> subprocess.Popen:
        job = subprocess.Popen(
            [sys.executable, *arguments], cwd=REPOSITORY, env=ENVIRONMENT | {"FAULTS": faults},
            start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        jobs.append(job)
        return job

    yield run
    for job in jobs:
        if job.poll() is not None:
            continue
        # Only torchrun can stop its workers, which run in sessions of their own.
        job.terminate()
        try:
            job.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(job.pid, signal.SIGKILL)


def torchrun(machine: int, port: int) -> list[str]:
    """The launcher on one of two machines with one process each; it restarts them once."""
    command = ["-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1"]
    command += ["--max-restarts", "1", "--rdzv-backend", "c10d"]
    command += [
        "--rdzv-endpoint",
        f"localhost:{port}",
        "--rdzv-conf",
        f"is_host={int(not machine)}",
    ]
    return [*command, "--local-addr", "localhost"]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def outputs_of(jobs: list[subprocess.Popen]) -> list[str]:
    """Wait for all jobs and return what they printed."""
    return [job.communicate(timeout=TIMEOUT)[0] for job in jobs]


def saved_iteration(folder: Path) -> int:
    return latest_checkpoint(str(folder))["trainer"]["iteration"]


def final_weights(folder: Path) -> dict[str, bytes]:
    weights = gpvit.checkpoint.read_content(str(folder / "model_final.pth"))["model"]
    return {name: tensor.numpy().tobytes() for name, tensor in weights.items()}


@pytest.mark.slow
def test_torchrun_restarts_both_machines_and_resumes_bitwise(
    start: Callable[..., subprocess.Popen], command: list[str], tmp_path: Path
) -> None:
    for faults in ("", "kill:4:1"):
        port, folder = free_port(), tmp_path / f"faults{faults}"
        arguments = [*command, f"train.output_dir={folder}"]
        jobs = [start(*torchrun(machine, port), *arguments, faults=faults) for machine in (0, 1)]
        outputs = outputs_of(jobs)
        assert jobs[0].returncode == jobs[1].returncode == 0, outputs
        assert ("resuming from" in outputs[0] + outputs[1]) == bool(faults)
    assert final_weights(folder) == final_weights(tmp_path / "faults")


def test_signal_to_torchrun_saves_checkpoint_and_ends_job(
    start: Callable[..., subprocess.Popen], command: list[str], tmp_path: Path
) -> None:
    arguments = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *command]
    job = start(*arguments, f"train.output_dir={tmp_path}", "train.max_iter=1000000")
    wait_for(tmp_path / "model_0000003.pth", job)
    job.terminate()
    output = job.communicate(timeout=TIMEOUT)[0]
    assert job.returncode != 0
    assert "SIGTERM: stopping after" in output
    assert f"stopping after {saved_iteration(tmp_path)} iterations" in output


def test_signal_to_spawned_processes_saves_checkpoint_and_sets_exit_code(
    start: Callable[..., subprocess.Popen], command: list[str], tmp_path: Path
) -> None:
    job = start(
        *command, f"train.output_dir={tmp_path}", "train.max_iter=1000000", "--num-gpus", "2"
    )
    wait_for(tmp_path / "model_0000003.pth", job)
    job.terminate()
    output = job.communicate(timeout=TIMEOUT)[0]
    assert job.returncode == 128 + signal.SIGTERM, output
    assert f"stopping after {saved_iteration(tmp_path)} iterations" in output
    assert "Traceback" not in output


def test_signal_to_one_of_two_machines_saves_checkpoint_and_ends_both(
    start: Callable[..., subprocess.Popen], command: list[str], tmp_path: Path
) -> None:
    machines = ["--num-machines", "2", "--dist-url", f"tcp://localhost:{free_port()}"]
    command = [*command, f"train.output_dir={tmp_path}", "train.max_iter=1000000", *machines]
    jobs = [start(*command, "--machine-rank", str(machine)) for machine in (0, 1)]
    wait_for(tmp_path / "model_0000003.pth", jobs[0])
    jobs[0].terminate()
    outputs = outputs_of(jobs)
    assert jobs[0].returncode == jobs[1].returncode == 128 + signal.SIGTERM, outputs
    assert f"stopping after {saved_iteration(tmp_path)} iterations" in outputs[0]


@pytest.mark.slow
def test_killed_spawned_process_ends_job_with_cause_and_resumes_bitwise(
    start: Callable[..., subprocess.Popen], command: list[str], tmp_path: Path
) -> None:
    command = [*command, "--num-gpus", "2"]
    job = start(*command, f"train.output_dir={tmp_path / 'killed'}", faults="kill:4:1")
    output = job.communicate(timeout=TIMEOUT)[0]
    assert job.returncode == 1
    assert "error: process 1 was killed (SIGKILL)" in output and "Traceback" not in output
    for folder in ("killed", "undisturbed"):
        job = start(*command, f"train.output_dir={tmp_path / folder}")
        output = job.communicate(timeout=TIMEOUT)[0]
        assert job.returncode == 0, output
    assert final_weights(tmp_path / "killed") == final_weights(tmp_path / "undisturbed")


def fail(args: argparse.Namespace) -> None:
    raise AssertionError("the job was started")


def parsed(url: str, *arguments: str) -> argparse.Namespace:
    command = ["--config-file", "x.py", "--dist-url", url, "--num-gpus", "2", *arguments]
    return argument_parser().parse_intermixed_args(command)


@pytest.mark.parametrize("arguments", [(), ("--num-machines", "2")])
@pytest.mark.parametrize("address", ["127.0.0.1", ""])
def test_port_in_use_raises_before_any_process_starts(
    address: str, arguments: tuple[str, ...]
) -> None:
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do
        other.bind((address, 0))
        other.listen()
        port = other.getsockname()[1]
        message = f":{port}: port {port} cannot be used .Address already in use.; give another port"
        with pytest.raises(UserError, match=message):
            launch(fail, parsed(f"tcp://127.0.0.1:{port}", *arguments), "cpu")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("tcp://nowhere.invalid:29500", "cannot resolve nowhere.invalid .*; correct it"),
        ("tcp://192.0.2.1:29500", "192.0.2.1 is not an address of this machine; use auto"),
    ],
)
def test_unusable_address_raises(url: str, message: str) -> None:
    with pytest.raises(UserError, match=f"--dist-url {url}: {message}"):
        launch(fail, parsed(url), "cpu")


@pytest.mark.slow
def test_rendezvous_timeout_raises(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    original = detectron2.engine.launch

    def launch_with_timeout(*args: Any, **options: Any) -> None:
        original(*args, **options, timeout=timedelta(seconds=1))

    monkeypatch.setattr(detectron2.engine, "launch", launch_with_timeout)
    url = f"tcp://127.0.0.1:{free_port()}"
    args = parsed(url, "--num-machines", "2", "--machine-rank", "1", "--num-gpus", "1")
    message = f"the processes cannot connect at --dist-url {url} .*timed out"
    with pytest.raises(UserError, match=message):
        launch(fail, args, "cpu")
    printed = capsys.readouterr().err
    assert f"machine 1 of 2: waiting for the others at {url}, for up to 30 minutes" in printed


def wait_for(path: Path, job: subprocess.Popen) -> None:
    while not path.exists():
        assert job.poll() is None, job.communicate()[0]
        time.sleep(0.1)
