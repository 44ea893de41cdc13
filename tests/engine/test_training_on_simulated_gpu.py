"""A run of train_net.py on the simulated GPU (simulated_gpu.py) is the run on the CPU."""

import contextlib
import json
from pathlib import Path
from typing import Any

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
from gpvit.utils.errors import UserError
from omegaconf import OmegaConf
from simulated_gpu import simulated_gpu
from torch import Tensor, nn
from torch.testing._internal.distributed.fake_pg import FakeStore

pytestmark = pytest.mark.long

OPTIONS = [
    "dataloader.train.total_batch_size=6",
    "dataloader.train.num_workers=0",
    "dataloader.test.num_workers=0",
    "train.accumulate=2",
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
    waits = {key: number for key, number in gpu.waits.items() if "engine/trainer.py" in key}
    (output / "waits.json").write_text(json.dumps(waits))
    return output


def test_trainer_waits_for_the_gpu_once_per_iteration_and_check(on_gpu: Path) -> None:
    """In four iterations, to read metrics and to check the norm of the gradients.

    PyTorch's average of the weights copies its counter to the GPU twice, but for the first time.
    """
    waits = json.loads((on_gpu / "waits.json").read_text())
    allowed = {"to CPU": 4, "item": 4, "to GPU": 2 * 3}
    assert sum(waits.values()) == sum(allowed.values())
    for reason, number in allowed.items():
        assert waits[f"gpvit/engine/trainer.py: {reason}"] == number


def test_losses_gradients_average_and_evaluation_are_those_of_the_cpu(
    synthetic_data: Path, tmp_path: Path, on_gpu: Path
) -> None:
    train(synthetic_data, tmp_path / "run", "cpu")
    expected, found = metrics(tmp_path / "run"), metrics(on_gpu)
    assert len(found) == len(expected) >= 4
    for theirs, ours in zip(expected, found):
        assert ours.keys() == theirs.keys()
        for name in theirs:
            if "loss" in name or "norm" in name or "classification" in name:
                assert ours[name] == pytest.approx(theirs[name], rel=1e-4), name
    for key in ("model", "ema"):
        theirs, ours = weights(tmp_path / "run", key), weights(on_gpu, key)
        assert ours.keys() == theirs.keys()
        for name, value in theirs.items():
            assert (ours[name] - value).abs().max() < 1e-3, name


def test_run_is_resumed_bitwise(synthetic_data: Path, tmp_path: Path, on_gpu: Path) -> None:
    output = tmp_path / "run"
    with simulated_gpu():
        train(synthetic_data, output, "cuda", "train.amp.enabled=False")
        (output / "model_final.pth").unlink()
        train(synthetic_data, output, "cuda", "train.amp.enabled=False", resume=True)
    for key in ("model", "ema"):
        expected, resumed = weights(on_gpu, key), weights(output, key)
        assert all(torch.equal(resumed[name], value) for name, value in expected.items())


def test_default_is_bfloat16(synthetic_data: Path, tmp_path: Path, on_gpu: Path) -> None:
    seen: set[torch.dtype] = set()

    def look(module: nn.Module, args: tuple, output: Tensor) -> None:
        if isinstance(module, nn.Linear) and module.training:
            seen.add(output.dtype)

    hook = nn.modules.module.register_module_forward_hook(look)
    try:
        with simulated_gpu():
            train(synthetic_data, tmp_path / "run", "cuda")
    finally:
        hook.remove()
    assert torch.bfloat16 in seen
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
    with simulated_gpu():
        predictor = Predictor.from_checkpoint(on_gpu, "cuda", dtype)
        scores = predictor(image)
    assert predictor.dtype == (torch.float32 if dtype == "float32" else torch.bfloat16)
    assert scores.device.type == "cpu" and scores.dtype == torch.float32
    torch.testing.assert_close(scores, expected, rtol=tolerance, atol=tolerance)


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
    synthetic_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rank: int
) -> None:
    batches, shared = [], []

    def share(tensor: Tensor, *_: object, group: object = None) -> None:
        if group is None:
            shared.append(tensor.device.type)

    step = Trainer._step

    def look(self: Trainer, batch: list[dict[str, Any]]) -> dict[str, Tensor]:
        batches.append([item["file_name"] for item in batch])
        assert self.model.device_ids == [0]
        assert self.optimizer.param_groups[0]["lr"] > 0
        return step(self, batch)

    monkeypatch.setattr(Trainer, "_step", look)
    monkeypatch.setattr(run, "evaluate", lambda *_: {})
    for module in (ddp, trainer):
        monkeypatch.setattr(module, "DistributedDataParallel", StandInForDDP)
    for name in ("all_reduce", "broadcast"):
        monkeypatch.setattr(dist, name, share)
    monkeypatch.setattr(dist, "new_group", lambda **options: options["backend"])
    for name in ("all_gather", "gather"):
        monkeypatch.setattr(comm, name, lambda data, *_, **__: [data] * 16)
    monkeypatch.setattr(comm, "synchronize", lambda: None)
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=16)
    try:
        with simulated_gpu():
            options = ["dataloader.train.total_batch_size=32", "train.accumulate=1"]
            options.append("train.best_metric=''")
            train(synthetic_data, tmp_path / "run", "cuda", *options)
    finally:
        dist.destroy_process_group()
    assert [len(batch) for batch in batches] == [2] * 4
    assert shared and set(shared) == {"cuda"}
    assert (tmp_path / "run" / "metrics.json").exists() == (rank == 0)
    if rank == 0:
        config = OmegaConf.load(tmp_path / "run" / "config.yaml")
        assert metrics(tmp_path / "run")[-1]["lr"] <= config.optimizer.lr
