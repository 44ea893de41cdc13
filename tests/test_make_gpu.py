"""The report of `make gpu`, on a simulated GPU and with tiny sizes."""

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any
from unittest import mock

import gpvit
import pytest
import torch
from benchmarks import backbone, gpu
from conftest import REPOSITORY, TINY
from gpvit.engine.trainer import Trainer
from gpvit.utils.errors import UserError
from simulated_gpu import simulated_gpu
from torch import Tensor, nn

SMALL = gpu.Workload(
    sizes=("L1",),
    images=((32, 32),),
    compared_image=(64, 96),
    tokens=4,
    matrix=64,
    runs=1,
    data=(2, 1),
    iterations=2,
    overrides=(*TINY, "train.max_iter=2"),
    large=(*TINY, "train.max_iter=2"),
)


class NoProfiler:
    """The profiler needs CUDA's driver, and so does the choice of an attention kernel."""

    def __init__(self, activities: list) -> None: ...

    def __enter__(self) -> "NoProfiler":
        return self

    def __exit__(self, *_: object) -> None: ...

    def key_averages(self) -> list:
        return []


@pytest.fixture
def simulated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small sizes, checks in this process, and stand-ins for what the simulation lacks."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # restored afterwards
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    monkeypatch.setattr(backbone.Task, "device", "cuda")
    monkeypatch.setattr(gpu, "WORKLOAD", SMALL)
    monkeypatch.setitem(gpvit.SIZES, "L1", dict(embed_dim=24, group_tokens=(0, 4)))
    monkeypatch.setattr(gpu, "in_a_process", lambda function, *args: function(*args))
    monkeypatch.setattr(gpu, "profile", NoProfiler)
    monkeypatch.setattr(gpu, "sdpa_kernel", lambda backends: contextlib.nullcontext())
    monkeypatch.setattr(nn.Module, "compile", lambda module: None)


def report(output: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--output", str(output)])
    try:
        with simulated_gpu():
            gpu.main()
    finally:
        torch.use_deterministic_algorithms(False)
    return json.loads((output / "gpu.json").read_text())


def test_without_a_gpu_the_command_ends_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=r"^there is no GPU that PyTorch can use: see nv"):
        gpu.main()


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:.*does not have a deterministic implementation")
@pytest.mark.usefixtures("simulated")
def test_failed_checks_are_listed_and_do_not_stop_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise ConnectionError("no NCCL\nhere")

    is_limited: list[bool] = []
    step = Trainer._step

    def step_within(trainer: Trainer, batch: list[dict[str, Any]]) -> dict[str, Tensor]:
        if is_limited[-1:] == [True]:
            raise torch.OutOfMemoryError
        return step(trainer, batch)

    def limit(fraction: float) -> None:
        is_limited.append(fraction < 1)

    monkeypatch.setattr(torch.multiprocessing, "spawn", fail)
    monkeypatch.setattr(gpu, "PYTEST_SECONDS", 1e-3)
    monkeypatch.setattr(Trainer, "_step", step_within)

    def out_of_memory(workload: gpu.Workload) -> gpu.Result:
        with mock.patch("torch.cuda.set_per_process_memory_fraction", limit):
            return gpu.out_of_memory(workload)

    monkeypatch.setitem(gpu.CHECKS, "out of memory", out_of_memory)
    failed = r"2 of 11 checks failed: tests, NCCL; see .*gpu\.md$"
    with pytest.raises(UserError, match=failed):
        report(tmp_path, monkeypatch)

    content = json.loads((tmp_path / "gpu.json").read_text())
    checks = content["checks"]
    assert list(checks) == list(gpu.CHECKS) and content["failed"] == ["tests", "NCCL"]
    assert checks["NCCL"]["error"] == "ConnectionError: no NCCL here"
    assert checks["tests"]["error"].startswith("TimeoutExpired")
    assert all(check["seconds"] > 0 for check in checks.values())
    found = {row["what"]: row["value"] for row in checks["environment"]["rows"]}
    assert found["GPU 0"] == "simulated GPU, 16 GiB, compute capability 9.0"
    assert found["torch"] == torch.__version__
    assert [row["dtype"] for row in checks["dtypes"]["rows"]] == 2 * list(gpu.MAX_DISTANCE)
    for row in checks["dtypes"]["rows"]:
        assert (row["dtype"] != "float32") <= (row["relative L2"] > 0)
        assert row["relative L2"] < row["allowed"]
    assert len(checks["attention"]["rows"]) == 6  # kinds of blocks, in two dtypes
    assert checks["determinism"]["text"].startswith("equal losses: 2 iterations")
    assert "roi_align_backward" in checks["determinism"]["text"]
    assert checks["compilation"]["text"] == "2 iterations"
    assert "tensors and their averages" in checks["resume"]["text"]
    assert is_limited == [True, False]
    assert "out of memory in iteration 0" in checks["out of memory"]["text"]

    rows = checks["speed"]["rows"]
    forms = [f"{row['model']} {row['form']}" for row in rows[::2]]
    assert forms == ["L1 eager", "L1 compiled", "literal L1 eager", "Swin-T eager"]
    for row in rows:
        assert row["images"] == (2 if row["mode"] == "training" else 4)
        assert min(row["ms"], row["images/s"], row["TFLOP/s"], row["of the limit"]) > 0
    assert rows[0]["times literal"] == pytest.approx(rows[0]["images/s"] / rows[4]["images/s"])

    page = (tmp_path / "gpu.md").read_text()
    printed = capsys.readouterr().out.splitlines()
    for name, check in checks.items():
        shown = f"FAILED: {check['error']}" if check["error"] else check["text"]
        shown = shown or f"{len(check['rows'])} rows"
        assert shown in page and f"## {name}" in page
        assert any(line.startswith(f"{name} (") and line.endswith(shown) for line in printed)
    for row in rows:
        assert f"| {row['images/s']:.4g} | {row['TFLOP/s']:.4g} |" in page


@pytest.mark.parametrize(
    ("code", "output", "error"),
    [
        (0, "3 passed in 2.00s", ""),
        (0, "no tests ran in 0.10s", "exit code 0: no tests ran in 0.10s"),
        (5, "no tests ran in 0.10s", "exit code 5: no tests ran in 0.10s"),
        (1, "1 failed, 2 passed in 2.00s", "exit code 1: 1 failed, 2 passed in 2.00s"),
    ],
)
def test_result_of_pytest_decides(
    code: int, output: str, error: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = subprocess.CompletedProcess([], code, stdout=f"...\n{output}\n", stderr="")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: run)
    assert gpu.gpu_tests(SMALL) == gpu.Result(output, error=error)


@pytest.mark.usefixtures("simulated")
def test_distances_above_the_limit_are_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "MAX_DISTANCE", {"bfloat16": 1e-9})
    with simulated_gpu():
        error = gpu.dtypes(SMALL).error
    assert error.startswith("differs from the CPU: L1 in bfloat16 (") and "quick start in" in error


@pytest.mark.usefixtures("simulated")
def test_attention_without_a_fused_kernel_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_kernel(backends: list) -> None:
        raise RuntimeError("No available kernel")

    monkeypatch.setattr(gpu, "sdpa_kernel", no_kernel)
    with simulated_gpu():
        result = gpu.attention(SMALL)
    assert result.error.startswith("only math: window block of L1 in float32, ")
    assert {row["without math"] for row in result.rows} == {"RuntimeError: No available kernel"}


@pytest.mark.parametrize(
    ("first", "error"),
    [
        ([1.0, 2.0], ""),
        ([1.0, 2.01], ""),
        ([1.0, 2.5], "these differ: loss of iteration 1"),
        ([1.0001, 2.0], "these differ: loss of iteration 0"),
    ],
)
def test_losses_of_equal_runs_are_compared(
    first: list[float], error: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = []
    for values in (first, [1.0, 2.0]):
        losses.append([{"loss": value} for value in values])
    monkeypatch.setattr(gpu, "train", lambda *_: None)
    monkeypatch.setattr(gpu, "losses_of", lambda output: losses.pop(0))
    with simulated_gpu():
        assert gpu.determinism(SMALL).error == error


def test_crashed_check_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(gpu, "CHECKS", {"environment": gpu.environment})
    monkeypatch.setattr(gpu, "in_a_process", mock.Mock(side_effect=BrokenProcessPool))
    with pytest.raises(UserError, match="^1 of 1 checks failed: environment; see .*gpu.md$"):
        report(tmp_path, monkeypatch)
    assert "FAILED: the process crashed, or took more than 300 s" in capsys.readouterr().out


@pytest.mark.slow
def test_exported_model_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    assert gpu.onnx_runtime(SMALL) == gpu.Result("not installed")  # on GPUs
    monkeypatch.setattr(gpu, "ONNX_DEVICE", "cpu")
    result = gpu.onnx_runtime(SMALL)
    assert result.text.startswith("largest difference ") and not result.error
    monkeypatch.setattr(gpu, "ONNX_DISTANCE", -1)
    assert "at most -1e+00 is allowed" in gpu.onnx_runtime(SMALL).error


def test_check_that_takes_too_long_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    code = "import sys, time; sys.path[:0] = sys.argv[1:]; from benchmarks import gpu\n"
    code += "gpu.CHECK_SECONDS = 0.5; gpu.CHECKS['late'] = lambda _: time.sleep(60)\n"
    code += "gpu.attempt('late', None)"
    paths = [str(REPOSITORY / "tests"), str(REPOSITORY / "projects" / "GPViT")]
    start = time.monotonic()
    run = subprocess.run([sys.executable, "-c", code, *paths], capture_output=True, text=True)
    assert run.returncode == 1 and "Timeout" in run.stderr
    assert time.monotonic() - start < 55


def measured_rows(values: dict[tuple[str, str], float]) -> list[dict[str, Any]]:
    rows = []
    for (model, form), rate in values.items():
        row = dict(model=model, form=form, mode="training", image="64x64", ms=1.0)
        rows.append(row | {"images/s": rate, "of the limit": rate / 100})
    return rows


def test_goals_are_met_or_missed_by_rows_of_gpvit() -> None:
    rates = {("L1", "eager"): 29.0, ("L1", "compiled"): 60.0, ("literal L1", "eager"): 10.0}
    rows = measured_rows(rates | {("Swin-T", "eager"): 1.0})
    text = gpu.goals(rows)
    assert "Goal of 3 times literal: missed by 1 of 2 rows: L1 eager training 64x64 2.90." in text
    assert "Goal of 0.5 of the limit: missed by 1 of 2 rows: L1 eager training 64x64 0.29." in text
    assert [row.get("times literal") for row in rows] == [2.9, 6.0, None, None]
    assert "0.5 of the limit: met by all 1 rows" in gpu.goals(measured_rows({("L2", "eager"): 50}))
    assert "Goal of 3 times literal: not measured." in gpu.goals([])


def fitting(images: int) -> Callable[..., dict[str, float]]:
    def timed(name: str, task: backbone.Task, runs: int) -> dict[str, float]:
        if task.images > images:
            raise torch.OutOfMemoryError
        return {"images": task.images}

    return timed


def test_batches_are_halved_until_they_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    task = backbone.Task("L1", (64, 64), 4, "training", "backbone", "bfloat16", False)
    monkeypatch.setattr(gpu, "timed", fitting(1))
    assert gpu.measure("gpvit", task, 1) == {"images": 1}
    monkeypatch.setattr(gpu, "timed", fitting(0))
    with pytest.raises(torch.OutOfMemoryError):
        gpu.measure("gpvit", task, 1)


def test_rows_that_fail_or_come_too_late_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "alternate", lambda steps, runs: {"product": [1.0]})
    monkeypatch.setattr(gpu, "measure", fitting(0))
    monkeypatch.setattr(backbone.Task, "device", "cuda")
    with simulated_gpu():
        too_large = gpu.speed(SMALL)
        monkeypatch.setattr(gpu, "measure", lambda *_: 1 / 0)
        failed = gpu.speed(SMALL)
        late = gpu.speed(gpu.replace(SMALL, seconds=-1))
    assert {row["note"] for row in too_large.rows} == {"out of memory with one image"}
    assert not too_large.error
    assert failed.error.startswith("failed: L1 eager training 32x32, L1 eager inference 32x32")
    assert {row["note"] for row in failed.rows} == {"ZeroDivisionError: division by zero"}
    assert {row["note"] for row in late.rows} == {"left out: no time"} and not late.error
