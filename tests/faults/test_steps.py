"""What a step of the training and its images depend on, with models of one weight."""

import random
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


def batches(
    monkeypatch: pytest.MonkeyPatch, world_size: int, start: int, number: int
) -> list[list[tuple[int, int]]]:
    parts = []
    for rank in range(world_size):
        monkeypatch.setattr("detectron2.utils.comm.get_world_size", lambda: world_size)
        monkeypatch.setattr("detectron2.utils.comm.get_rank", lambda rank=rank: rank)
        parts.append(
            [batch for batch, _ in zip(BatchSampler([0, 1, 1] * 5, 4, 7, start), range(number))]
        )
    return [sum(together, []) for together in zip(*parts)]


def test_the_order_of_images_depends_on_the_seed_alone_and_begins_at_any_batch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected = batches(monkeypatch, 1, 0, 20)
    assert [position for batch in expected for _, position in batch] == list(range(80))
    assert all(len({index % 3 == 0 for index, _ in batch}) == 1 for batch in expected)
    for world_size in (1, 2, 4):
        for start in (0, 1, 7):
            assert batches(monkeypatch, world_size, start, 13) == expected[start : start + 13]


IMAGE = {"image": torch.zeros(3, 1, 1), "skipped": []}


class Draws(nn.Module):
    """A model of one weight, the gradient of which is 1; remembers what each iteration draws."""

    loss_normalizer = 100.0

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.register_buffer("iterations", torch.zeros(1))
        self.drawn: list[tuple] = []

    def forward(self, batch: list[dict]) -> dict[str, torch.Tensor]:
        self.drawn.append((random.random(), np.random.rand(), torch.rand(()).item()))
        self.iterations += 1
        return {"loss": self.weight.sum()}


def trainer_of(
    model: nn.Module, folder: Path, seed: int = 0, dtype: str = "", **options: Any
) -> Trainer:
    amp = OmegaConf.create(dict(enabled=bool(dtype), dtype=dtype or "bfloat16"))
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    return Trainer(model, optimizer, seed=seed, output_dir=str(folder), amp=amp, **options)


def test_each_seed_process_and_iteration_draws_other_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = []
    for seed in (5, 6):
        for rank in (0, 1):
            monkeypatch.setattr("detectron2.utils.comm.get_rank", lambda rank=rank: rank)
            model = Draws()
            trainer_of(model, tmp_path, seed).train([[IMAGE]] * 3, 3)
            drawn += model.drawn
    assert [len(set(numbers)) for numbers in zip(*drawn)] == [12, 12, 12]


def test_what_is_random_about_an_image_depends_on_seed_and_position_alone() -> None:
    def draw(record: dict) -> dict:
        return {"drawn": (random.random(), np.random.rand(), torch.rand(()).item())}

    drawn = {}
    for seed in (5, 6):
        dataset = MappedDataset([{}] * 3, draw, seed, False)
        for position in range(4):
            first, *others = [dataset[index, position]["drawn"] for index in range(3)]
            assert others == [first, first]
            drawn[seed, position] = first
    assert [len(set(numbers)) for numbers in zip(*drawn.values())] == [8, 8, 8]


def test_each_pass_over_the_data_has_each_image_once_in_an_order_of_its_own() -> None:
    passes = []
    for seed in (5, 6):
        indices = sum(
            ([i for i, _ in batch] for batch, _ in zip(BatchSampler([0] * 10, 4, seed), range(10))),
            [],
        )
        passes += [tuple(indices[i : i + 10]) for i in range(0, 40, 10)]
    assert all(sorted(each) == list(range(10)) for each in passes)
    assert len({*passes, tuple(range(10))}) == 9


def test_a_batch_has_images_of_one_orientation() -> None:
    records = [{"width": 4 + number % 3, "height": 5, "number": number} for number in range(12)]
    loader = build_train_loader(
        records, mapper=lambda record: {"wide": record["width"] > 5}, total_batch_size=2, seed=0
    )
    wide = [{image["wide"] for image in batch} for batch, _ in zip(loader, range(12))]
    assert {len(each) for each in wide} == {1} and set().union(*wide) == {False, True}


def test_the_moving_average_is_of_weights_and_statistics_behind_each_step(tmp_path: Path) -> None:
    trainer = trainer_of(Draws(), tmp_path, ema_decay=0.9)
    trainer.train([[IMAGE]] * 3, 3)
    average = 0.9 * (0.9 * 1 + 0.1 * 2) + 0.1 * 3  # of 1, 2 and 3 steps
    torch.testing.assert_close(trainer.ema.module.weight.detach(), torch.tensor([-average]))
    torch.testing.assert_close(trainer.ema.module.iterations, torch.tensor([average]))


def test_loss_scale_normalizer_and_skipped_images_are_part_of_the_state(tmp_path: Path) -> None:
    trainer = trainer_of(Draws(), tmp_path, dtype="float16", skip_budget=3)
    trainer.train([[IMAGE | {"skipped": ["a reason"]}]] * 2, 2)
    trainer.grad_scaler.update(128.0)
    trainer.model.loss_normalizer = 7.0
    other = trainer_of(Draws(), tmp_path, dtype="float16", skip_budget=3)
    other.load_state_dict(trainer.state_dict())
    assert other.grad_scaler.get_scale() == 128.0
    assert other.model.loss_normalizer == 7.0
    assert other.skipped == 2


def test_a_gradient_that_is_not_finite_stops_before_the_weights_change(tmp_path: Path) -> None:
    class Root(Draws):
        def forward(self, batch: list[dict]) -> dict[str, torch.Tensor]:
            return {"loss": self.weight.sqrt().sum()}  # of zero

    model = Root()
    with pytest.raises(UserError, match="iteration 0: loss or gradient is not finite"):
        trainer_of(model, tmp_path).train([[IMAGE]], 1)
    assert torch.equal(model.weight.detach(), torch.zeros(1))


@pytest.mark.parametrize("request_before", [143, 0])
def test_a_signal_is_not_forgotten_when_the_training_ends_early(
    tmp_path: Path, request_before: int
) -> None:
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


def test_the_image_that_takes_the_place_of_another_is_the_one_that_is_named() -> None:
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
def test_a_value_without_meaning_is_refused_by_name(
    tmp_path: Path, option: dict[str, float]
) -> None:
    with pytest.raises(UserError, match=f"train.{next(iter(option))}"):
        trainer_of(Draws(), tmp_path, **option)
