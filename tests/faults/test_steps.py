"""What a training step and its images depend on, with models of one weight."""

import itertools
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gpvit.data import build_train_loader
from gpvit.data.loader import BatchSampler, MappedDataset
from gpvit.engine import Checkpointer, Trainer
from gpvit.engine.trainer import STOP_EARLY
from gpvit.utils.errors import UserError
from omegaconf import OmegaConf
from torch import nn


def first_batches(sampler: BatchSampler, number: int) -> list[list[tuple[int, int]]]:
    """Batches of (index, position)."""
    return list(itertools.islice(sampler, number))


def batches_of_all_ranks(
    monkeypatch: pytest.MonkeyPatch, world_size: int, start: int, number: int
) -> list[list[tuple[int, int]]]:
    """Each batch is the concatenation of the batches of all ranks."""
    ranks = []
    monkeypatch.setattr("detectron2.utils.comm.get_world_size", lambda: world_size)
    for rank in range(world_size):
        monkeypatch.setattr("detectron2.utils.comm.get_rank", lambda rank=rank: rank)
        ranks.append(first_batches(BatchSampler([0, 1, 1] * 5, 4, 7, start), number))
    return [sum(batches, []) for batches in zip(*ranks)]


def test_image_order_depends_only_on_seed_and_starts_at_any_batch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected = batches_of_all_ranks(monkeypatch, 1, 0, 20)
    samples = sum(expected, [])
    assert [position for _, position in samples] == list(range(80))
    for batch in expected:  # every third index belongs to the first group
        assert len({index % 3 == 0 for index, _ in batch}) == 1
    for world_size, start in itertools.product((1, 2, 4), (0, 1, 7)):
        found = batches_of_all_ranks(monkeypatch, world_size, start, 13)
        assert found == expected[start : start + 13]


IMAGE = {"image": torch.zeros(3, 1, 1), "skipped": []}


def draw_numbers() -> tuple[float, float, float]:
    """One random number of each generator: Python's, NumPy's and PyTorch's."""
    return random.random(), np.random.rand(), torch.rand(()).item()


def numbers_of_distinct_draws(draws: Iterable[tuple[float, float, float]]) -> list[int]:
    """How many different numbers each generator has drawn."""
    return [len(set(numbers)) for numbers in zip(*draws)]


class Draws(nn.Module):
    """A model of one weight, whose gradient is 1; records the random numbers of each iteration."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.register_buffer("iterations", torch.zeros(1))
        self.register_buffer("loss_normalizer", torch.tensor(100.0), persistent=False)
        self.drawn: list[tuple] = []

    def forward(self, batch: list[dict]) -> dict[str, torch.Tensor]:
        self.drawn.append(draw_numbers())
        self.iterations += 1
        return {"loss": self.weight.sum()}


def trainer_of(
    model: nn.Module, folder: Path, seed: int = 0, dtype: str = "", **options: Any
) -> Trainer:
    amp = OmegaConf.create(dict(enabled=bool(dtype), dtype=dtype or "bfloat16"))
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    return Trainer(model, optimizer, seed=seed, output_dir=str(folder), amp=amp, **options)


def test_each_seed_rank_and_iteration_draws_different_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = []
    for seed, rank in itertools.product((5, 6), (0, 1)):
        monkeypatch.setattr("detectron2.utils.comm.get_rank", lambda rank=rank: rank)
        model = Draws()
        trainer_of(model, tmp_path, seed).train([[IMAGE]] * 3, 3)
        drawn += model.drawn
    assert numbers_of_distinct_draws(drawn) == [12, 12, 12]  # 2 seeds, 2 ranks, 3 iterations


def test_randomness_of_image_depends_only_on_seed_and_position() -> None:
    drawn = {}
    for seed in (5, 6):
        dataset = MappedDataset([{}] * 3, lambda record: {"drawn": draw_numbers()}, seed, False)
        for position in range(4):
            first, *others = [dataset[index, position]["drawn"] for index in range(3)]
            assert others == [first, first]
            drawn[seed, position] = first
    assert numbers_of_distinct_draws(drawn.values()) == [8, 8, 8]  # 2 seeds, 4 positions


def test_each_epoch_has_each_image_once_in_different_order() -> None:
    epochs = []
    for seed in (5, 6):
        samples = sum(first_batches(BatchSampler([0] * 10, 4, seed), 10), [])
        indices = [index for index, _ in samples]
        epochs += [tuple(indices[start : start + 10]) for start in range(0, 40, 10)]
    in_order = tuple(range(10))
    for epoch in epochs:
        assert tuple(sorted(epoch)) == in_order
    assert len({*epochs, in_order}) == 9


def test_images_of_batch_have_same_orientation() -> None:
    records = [{"width": 4 + number % 3, "height": 5, "number": number} for number in range(12)]
    loader = build_train_loader(
        records, mapper=lambda record: {"wide": record["width"] > 5}, total_batch_size=2, seed=0
    )
    orientations = set()
    for first, second in itertools.islice(loader, 12):
        assert first["wide"] == second["wide"]
        orientations.add(first["wide"])
    assert orientations == {False, True}


def test_ema_averages_weights_and_buffers_after_each_step(tmp_path: Path) -> None:
    trainer = trainer_of(Draws(), tmp_path, ema_decay=0.9)
    trainer.train([[IMAGE]] * 3, 3)
    average = 0.9 * (0.9 * 1 + 0.1 * 2) + 0.1 * 3  # after 1, 2 and 3 steps
    torch.testing.assert_close(trainer.ema.module.weight.detach(), torch.tensor([-average]))
    torch.testing.assert_close(trainer.ema.module.iterations, torch.tensor([average]))


def test_state_has_loss_scale_normalizer_and_skipped_images(tmp_path: Path) -> None:
    trainer = trainer_of(Draws(), tmp_path, dtype="float16", skip_budget=3)
    trainer.train([[IMAGE | {"skipped": ["a reason"]}]] * 2, 2)
    trainer.grad_scaler.update(128.0)
    trainer.model.loss_normalizer.fill_(7.0)
    other = trainer_of(Draws(), tmp_path, dtype="float16", skip_budget=3)
    other.load_state_dict(trainer.state_dict())
    assert other.grad_scaler.get_scale() == 128.0
    assert other.model.loss_normalizer == 7.0
    assert other.skipped == 2


def test_loss_normalizer_of_older_states_is_restored(tmp_path: Path) -> None:
    trainer = trainer_of(Draws(), tmp_path)
    state = trainer.state_dict()
    del state["buffers"]
    trainer.load_state_dict(state | {"loss_normalizer": 7.0})
    assert trainer.model.loss_normalizer == 7.0
    trainer.load_state_dict(state | {"loss_normalizer": None})  # another model, or iteration 0
    assert trainer.model.loss_normalizer == 7.0


def test_buffer_of_another_shape_raises(tmp_path: Path) -> None:
    trainer = trainer_of(Draws(), tmp_path)
    state = trainer.state_dict() | {"buffers": {"loss_normalizer": torch.zeros(3)}}
    with pytest.raises(UserError, match=r"loss_normalizer has shape \(3,\) in the checkpoint"):
        trainer.load_state_dict(state)


def test_non_finite_gradient_raises_before_weights_change(tmp_path: Path) -> None:
    class Root(Draws):
        def forward(self, batch: list[dict]) -> dict[str, torch.Tensor]:
            return {"loss": self.weight.sqrt().sum()}  # the gradient is infinite at zero

    model = Root()
    with pytest.raises(UserError, match="iteration 0: loss or gradient is not finite"):
        trainer_of(model, tmp_path).train([[IMAGE]], 1)
    assert torch.equal(model.weight.detach(), torch.zeros(1))


@pytest.mark.parametrize("request_before", [143, 0])
def test_early_stop_keeps_requested_signal(tmp_path: Path, request_before: int) -> None:
    dataloader = {"test": {"mapper": {}, "dataset": {"names": "val"}}}
    cfg = OmegaConf.create(
        {"model": {}, "dataloader": dataloader, "train": {"output_dir": str(tmp_path)}}
    )
    checkpoints = Checkpointer(cfg, [], "", period=1, max_to_keep=1, best_metric="AP", patience=1)
    trainer = trainer_of(Draws(), tmp_path)
    trainer.register_hooks([checkpoints])
    for done in (1, 2):
        trainer.done, trainer.request = done, request_before
        checkpoints.after_evaluation({"AP": 1.0})
    assert trainer.request == (request_before or STOP_EARLY)


def test_sample_names_image_that_replaces_unreadable_one() -> None:
    def read(record: dict) -> dict:
        if record["number"] in (1, 2):
            raise UserError(f"{record['number']} cannot be read")
        return record

    dataset = MappedDataset([{"number": number} for number in range(4)], read, 0, True)
    assert dataset[1, 7] == {
        "number": 3,
        "index": 3,
        "position": 7,
        "skipped": ["1 cannot be read", "2 cannot be read"],
    }


@pytest.mark.parametrize("option", [{"accumulate": 0}, {"clip_norm": -1.0}, {"ema_decay": 2.0}])
def test_invalid_option_raises_with_name(tmp_path: Path, option: dict[str, float]) -> None:
    with pytest.raises(UserError, match=f"train.{next(iter(option))}"):
        trainer_of(Draws(), tmp_path, **option)
