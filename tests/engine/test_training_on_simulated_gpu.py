"""A run of train_net.py on the simulated GPU (simulated_gpu.py) is the run on the CPU."""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
import torch.distributed as dist
from conftest import REPOSITORY
from detectron2.utils import comm
from gpvit import Predictor
from gpvit.cli.train import argument_parser, configure
from gpvit.engine import ddp, run, trainer
from gpvit.engine.trainer import Trainer
from gpvit.modeling.backbone.gpvit import LePE
from gpvit.utils.errors import UserError
from simulated_gpu import simulated_gpu
from torch import Tensor, nn
from torch.testing._internal.distributed.fake_pg import FakeStore

pytestmark = pytest.mark.long

OPTIONS = [
    "dataloader.train.total_batch_size=6",
    "dataloader.train.num_workers=0",
    "dataloader.test.num_workers=0",
    "train.accumulate=2",
    "train.best_metric=''",
    "train.checkpointer.max_to_keep=9",
    "train.checkpointer.period=2",
    "train.clip_norm=0.5",
    "train.ema_decay=0.9",
    "train.eval_period=0",
    "train.log_period=1",
    "train.max_iter=4",
    "train.pictures=0",
    "train.seed=1",
]


def train(data: Path, output: Path, device: str, *options: str, resume: bool = False) -> None:
    arguments = ["--config-file", str(REPOSITORY / "configs" / "quickstart_classifier.py")]
    arguments += ["--data", str(data), f"train.output_dir={output}", f"train.device={device}"]
    args = argument_parser().parse_intermixed_args([*arguments, *OPTIONS, *options])
    run.do_train(configure(args), resume=resume)


def metrics(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "metrics.json").read_text().splitlines()]


def weights(output: Path, key: str = "model") -> dict[str, Tensor]:
    return torch.load(output / "model_final.pth", weights_only=True)[key]


@pytest.fixture(scope="module")
def on_gpu(synthetic_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("gpu") / "run"
    with simulated_gpu() as gpu:
        train(synthetic_data, output, "cuda", "train.amp.enabled=False")
    (output / "waits.json").write_text(json.dumps(gpu.waits))
    return output


def test_trainer_waits_for_the_gpu_once_per_iteration_and_check(on_gpu: Path) -> None:
    """In four iterations, to read metrics and to check the norm of the gradients.

    PyTorch's average of the weights copies its counter to the GPU twice, but for the first time.
    The others are copies of weights at the start, and of images, labels and predictions.
    """
    waits = json.loads((on_gpu / "waits.json").read_text())
    assert waits == {
        "gpvit/engine/trainer.py: to CPU": 4,
        "gpvit/engine/trainer.py: item": 4,
        "gpvit/engine/trainer.py: to GPU": 2 * 3,
        "gpvit/engine/run.py: to GPU": 143,
        "gpvit/modeling/classifier.py: to GPU": 70,
        "gpvit/evaluation/classification_evaluation.py: to CPU": 4,
    }


def test_losses_weights_average_and_evaluation_are_those_of_the_cpu(
    synthetic_data: Path, tmp_path: Path, on_gpu: Path
) -> None:
    train(synthetic_data, tmp_path / "run", "cpu")
    expected, found = metrics(tmp_path / "run"), metrics(on_gpu)
    assert len(found) == len(expected) >= 4
    for theirs, ours in zip(expected, found):
        assert ours.keys() == theirs.keys()
        for name in theirs:
            if "loss" in name or "classification" in name:
                assert ours[name] == pytest.approx(theirs[name], rel=1e-4), name
    for key in ("model", "ema"):
        middle = torch.load(tmp_path / "run" / "model_0000002.pth", weights_only=True)[key]
        theirs, ours = weights(tmp_path / "run", key), weights(on_gpu, key)
        assert ours.keys() == theirs.keys()
        # Relative to what the last two iterations changed.
        assert distance(ours, theirs) < 0.05 * distance(theirs, middle), key


def distance(first: dict[str, Tensor], second: dict[str, Tensor]) -> float:
    """Return the L2 distance of all weights and statistics together."""
    squares = [(first[name].double() - second[name]).square().sum() for name in first]
    return float(sum(squares)) ** 0.5


def test_run_is_resumed_bitwise(
    synthetic_data: Path, tmp_path: Path, on_gpu: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, iterations = tmp_path / "run", []
    step = Trainer._step

    def note(self: Trainer, batch: list) -> dict[str, Tensor]:
        iterations.append(self.iter)
        return step(self, batch)

    monkeypatch.setattr(Trainer, "_step", note)
    with simulated_gpu():
        train(synthetic_data, output, "cuda", "train.amp.enabled=False")
        (output / "model_final.pth").unlink()
        train(synthetic_data, output, "cuda", "train.amp.enabled=False", resume=True)
    assert iterations == [0, 1, 2, 3, 2, 3]
    for key in ("model", "ema"):
        expected, resumed = weights(on_gpu, key), weights(output, key)
        assert all(torch.equal(resumed[name], value) for name, value in expected.items())


@contextlib.contextmanager
def dtypes_of_body(training: bool) -> Iterator[set[torch.dtype]]:
    """Yield a set of the dtypes that attention computes in, in training or inference."""
    seen: set[torch.dtype] = set()

    def look(module: nn.Module, args: tuple, output: Tensor) -> None:
        if isinstance(module, LePE) and module.training == training:
            seen.add(output.dtype)

    hook = nn.modules.module.register_module_forward_hook(look)
    try:
        yield seen
    finally:
        hook.remove()


def test_default_is_bfloat16(synthetic_data: Path, tmp_path: Path, on_gpu: Path) -> None:
    with (
        dtypes_of_body(True) as of_training,
        dtypes_of_body(False) as of_evaluation,
        simulated_gpu(),
    ):
        train(synthetic_data, tmp_path / "run", "cuda")
    assert of_training == of_evaluation == {torch.bfloat16}
    assert json.loads((tmp_path / "run" / "evaluation.json").read_text())["dtype"] == "bfloat16"
    for theirs, ours in zip(metrics(on_gpu), metrics(tmp_path / "run"), strict=True):
        assert ours["total_loss"] == pytest.approx(theirs["total_loss"], rel=1e-2)


def test_failed_iteration_is_undone(
    synthetic_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Out of memory after the forward pass: batch norms are those of the iteration before."""
    seen = []
    step = Trainer._step

    def fail_later(trainer: Trainer, batch: list) -> dict[str, Tensor]:
        before = [buffer.cpu().clone() for buffer in trainer.model.buffers()]
        trainer.forward_and_backward(batch)
        if trainer.iter == 1:
            after = [buffer.cpu() for buffer in trainer.model.buffers()]
            assert not all(map(torch.equal, before, after))
            seen.append((trainer, before))
            raise torch.OutOfMemoryError
        return step(trainer, batch)

    monkeypatch.setattr(Trainer, "_step", fail_later)
    with simulated_gpu():
        with pytest.raises(UserError, match="out of memory in iteration 1 of process 0, with im"):
            train(synthetic_data, tmp_path / "run", "cuda")
        ((trainer, before),) = seen
        after = [buffer.cpu() for buffer in trainer.model.buffers()]
        assert all(map(torch.equal, before, after))
        assert all(parameter.grad is None for parameter in trainer.model.parameters())


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("auto", 1e-2)])
def test_predictor_on_the_gpu_predicts_what_it_does_on_the_cpu(
    on_gpu: Path, dtype: str, tolerance: float
) -> None:
    image = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    expected = Predictor.from_checkpoint(on_gpu, "cpu")(image)
    with simulated_gpu(), dtypes_of_body(False) as seen:
        predictor = Predictor.from_checkpoint(on_gpu, "cuda", dtype)
        scores = predictor(image)
    assert seen == {torch.float32 if dtype == "float32" else torch.bfloat16}
    assert scores.device.type == "cpu" and scores.dtype == torch.float32
    torch.testing.assert_close(scores, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    ("device", "deterministic", "before", "after"),
    [
        ("cuda", True, None, ":4096:8"),
        ("cuda", True, ":16:8", ":16:8"),
        ("cuda", False, None, None),
        ("cpu", True, None, None),
    ],
)
def test_cublas_sums_in_the_same_order_if_the_run_is_deterministic(
    synthetic_data: Path,
    tmp_path: Path,
    device: str,
    deterministic: bool,
    before: str | None,
    after: str | None,
) -> None:
    with mock.patch.dict(os.environ), simulated_gpu():
        os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)
        if before:
            os.environ["CUBLAS_WORKSPACE_CONFIG"] = before
        options = ["train.max_iter=1", f"train.deterministic={deterministic}"]
        try:
            train(synthetic_data, tmp_path / "run", device, *options)
        finally:
            torch.use_deterministic_algorithms(False)
        assert os.environ.get("CUBLAS_WORKSPACE_CONFIG") == after


class StandInForDDP(nn.Module):
    """DistributedDataParallel without its reducer, which needs kernels of a GPU."""

    def __init__(self, module: nn.Module, device_ids: list[int], **options: Any) -> None:
        super().__init__()
        self.module = module
        self.device_ids = device_ids
        self.no_sync = contextlib.nullcontext

    def forward(self, batch: list[dict[str, Any]]) -> dict[str, Tensor]:
        return self.module(batch)


@pytest.mark.parametrize("rank", [0, 15])
def test_sixteen_processes_split_batches_and_share_tensors_on_the_gpu(
    synthetic_data: Path,
    tmp_path: Path,
    on_gpu: Path,
    monkeypatch: pytest.MonkeyPatch,
    rank: int,
) -> None:
    batches, rates, shared = [], [], []

    def share(tensor: Tensor, *_: object, group: object = None) -> None:
        if group is None:
            shared.append(tensor.device.type)

    step = Trainer._step

    def look(self: Trainer, batch: list[dict[str, Any]]) -> dict[str, Tensor]:
        batches.append([item["position"] for item in batch])
        rates.append(self.optimizer.param_groups[0]["lr"])
        assert self.model.device_ids == [0]
        return step(self, batch)

    monkeypatch.setattr(Trainer, "_step", look)
    monkeypatch.setattr(run, "evaluate", lambda *_: {})
    for module in (ddp, trainer):
        monkeypatch.setattr(module, "DistributedDataParallel", StandInForDDP)
    for name in ("all_gather_into_tensor", "all_reduce", "broadcast", "reduce", "scatter"):
        monkeypatch.setattr(dist, name, share)
    monkeypatch.setattr(dist, "new_group", lambda **options: options["backend"])
    for name in ("all_gather", "gather"):
        monkeypatch.setattr(comm, name, lambda data, *_, **__: [data] * 16)
    monkeypatch.setattr(comm, "synchronize", lambda: None)
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=16)
    try:
        with simulated_gpu():
            options = ["dataloader.train.total_batch_size=32", "train.accumulate=1"]
            train(synthetic_data, tmp_path / "run", "cuda", *options)
    finally:
        dist.destroy_process_group()
    assert batches == [[32 * number + 2 * rank, 32 * number + 2 * rank + 1] for number in range(4)]
    assert rates == [line["lr"] for line in metrics(on_gpu) if "lr" in line]  # as in one process
    assert shared and set(shared) == {"cuda"}
    assert (tmp_path / "run" / "metrics.json").exists() == (rank == 0)
    log = (tmp_path / "run" / "log.txt") if rank == 0 else None
    assert log is None or "16 x cuda" in log.read_text()


@pytest.fixture
def nothing_compiled() -> Iterator[None]:
    torch.compiler.reset()
    with torch._dynamo.config.patch(suppress_errors=False):
        yield
    torch.compiler.reset()


@pytest.mark.usefixtures("nothing_compiled")
def test_run_goes_on_if_the_compiler_fails(
    synthetic_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = []

    def fail(graph: object, inputs: list) -> None:
        failed.append(graph)
        raise TypeError("cannot determine truth value of Relational")

    compile_module = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda module: compile_module(module, backend=fail))
    train(synthetic_data, tmp_path / "run", "cpu", "train.compile=True", "train.max_iter=1")
    assert failed and (tmp_path / "run" / "model_final.pth").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("nothing_compiled")
def test_compiled_run_is_the_run_without_compilation(
    synthetic_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = []
    compile_module = nn.Module.compile

    def compile_without_code(module: nn.Module) -> None:
        compiled.append(module)
        compile_module(module, backend="aot_eager")

    monkeypatch.setattr(nn.Module, "compile", compile_without_code)
    train(synthetic_data, tmp_path / "compiled", "cpu", "train.compile=True")
    assert [type(module).__name__ for module in compiled] == ["GPViT"]
    train(synthetic_data, tmp_path / "run", "cpu")
    for theirs, ours in zip(metrics(tmp_path / "run"), metrics(tmp_path / "compiled"), strict=True):
        assert ours["total_loss"] == pytest.approx(theirs["total_loss"], rel=1e-4)
    for key in ("model", "ema"):
        expected, found = weights(tmp_path / "run", key), weights(tmp_path / "compiled", key)
        assert list(found) == list(expected)
    (tmp_path / "compiled" / "model_final.pth").unlink()
    train(synthetic_data, tmp_path / "compiled", "cpu", "train.compile=True", resume=True)
    assert len(compiled) == 2
