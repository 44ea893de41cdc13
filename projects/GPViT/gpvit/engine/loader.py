"""Training images in an order that a seed and an iteration define, whatever the number of processes and workers.

Images have positions in one endless stream, the same for all processes: shuffled anew for each pass over the data set,
and put into batches of one orientation. Iteration i takes batch i, each process its part of it. What is random about an
image is drawn from generators seeded with its position.
"""

import hashlib
import os
import random
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from detectron2.data import DatasetFromList
from detectron2.data.build import trivial_batch_collator
from detectron2.utils import comm
from torch.utils.data import DataLoader, Dataset, Sampler

from ..errors import UserError

TRIES = 20  # images tried in place of one that cannot be used


def build_train_loader(
    dataset: Sequence[dict[str, Any]],
    *,
    mapper: Callable[[dict[str, Any]], dict[str, Any]],
    total_batch_size: int,
    seed: int,
    start_iter: int = 0,
    num_workers: int = 0,
    timeout: float = 300.0,
    skip: bool = False,
    pin_memory: bool = False,
    prefetch_factor: int = 2,
) -> DataLoader:
    """Batches of mapped images without end, each process's part of them.

    Args:
        dataset: Detectron2's records.
        mapper: makes of a record what the model takes; raises a UserError where it cannot.
        total_batch_size: images in the batch of all processes together.
        seed: of order and augmentation.
        start_iter: iteration whose batch comes first.
        num_workers: data-loading processes, 0 for none.
        timeout: seconds after which a data-loading process that gives nothing is an error.
        skip: whether another image takes the place of one that cannot be used; else that is an error.
        pin_memory, prefetch_factor: as of PyTorch's DataLoader.
    """
    if total_batch_size < 1 or total_batch_size % comm.get_world_size():
        raise UserError(
            f"dataloader.train.total_batch_size={total_batch_size} cannot be divided among {comm.get_world_size()} processes"
        )
    if len(dataset) == 0:
        raise UserError("the training data set has no image with a usable object")
    orientations = [int(record.get("width", 0) > record.get("height", 0)) for record in dataset]
    return DataLoader(
        MappedDataset(dataset, mapper, seed, skip),
        batch_sampler=BatchSampler(orientations, total_batch_size, seed, start_iter),
        num_workers=num_workers,
        timeout=timeout if num_workers else 0,
        collate_fn=trivial_batch_collator,
        worker_init_fn=_leave_signals_to_the_trainer,
        pin_memory=pin_memory,
        prefetch_factor=prefetch_factor if num_workers else None,
    )


def digest(records: Iterable[dict[str, Any]]) -> str:
    """A hash of a data set: the names and sizes of its images, the classes and boxes of their objects."""
    found = hashlib.sha256()
    for record in records:
        image = os.path.basename(record["file_name"]), record["image_id"], record.get("width"), record.get("height")
        objects = [(item["category_id"], *map(float, item["bbox"])) for item in record.get("annotations", ())]
        found.update(repr((image, objects)).encode())
    return found.hexdigest()[:16]


class BatchSampler(Sampler):
    """This process's part of each batch, without end: lists of (index of the image, position in the stream).

    Args:
        groups: one number per image; a batch has images of one group only.
        batch_size: of all processes together.
        seed: of the shuffling.
        start: batch to begin with.
    """

    def __init__(self, groups: Sequence[int], batch_size: int, seed: int, start: int = 0) -> None:
        self.groups, self.batch_size, self.seed, self.start = groups, batch_size, seed, start
        self.rank, self.world_size = comm.get_rank(), comm.get_world_size()

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        part = self.batch_size // self.world_size
        mine = slice(self.rank * part, (self.rank + 1) * part)
        for number, batch in enumerate(self._batches()):
            if number >= self.start:
                yield [(index, number * self.batch_size + place) for place, index in enumerate(batch)][mine]

    def _batches(self) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed(self.seed)
        waiting: dict[int, list[int]] = {}
        while True:
            for index in torch.randperm(len(self.groups), generator=generator).tolist():
                batch = waiting.setdefault(self.groups[index], [])
                batch.append(index)
                if len(batch) == self.batch_size:
                    yield waiting.pop(self.groups[index])


class MappedDataset(Dataset):
    """Records through the mapper, with randomness that depends on seed and position only.

    Each image carries "index" and "position", and in "skipped" why others before it could not be used: an exception
    would not come out of a data-loading process as one line.
    """

    def __init__(self, records: Sequence[dict[str, Any]], mapper: Callable, seed: int, skip: bool) -> None:
        self.records = DatasetFromList(list(records), copy=False)
        self.mapper, self.seed, self.skip = mapper, seed, skip

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, item: tuple[int, int]) -> dict[str, Any]:
        index, position = item
        skipped: list[str] = []
        for place in range(TRIES if self.skip else 1):
            nearby = (index + place) % len(self.records)
            try:
                with seeded(self.seed, position):
                    image = self.mapper(self.records[nearby])
            except UserError as error:
                skipped.append(str(error))
            else:
                return image | {"index": nearby, "position": position, "skipped": skipped}
        return {"index": index, "position": position, "skipped": skipped}  # no image: the trainer stops


@contextmanager
def seeded(*seed: int) -> Iterator[None]:
    """Seeds the global generators of Python, NumPy and PyTorch (CPU), and afterwards leaves them as they were."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    words = _words(seed)
    random.seed(words[0])
    np.random.seed(words[1])
    torch.default_generator.manual_seed(words[2])
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


def seed_everything(*seed: int) -> None:
    """Seeds the global generators of Python, NumPy and PyTorch, on all devices."""
    words = _words(seed)
    random.seed(words[0])
    np.random.seed(words[1])
    torch.manual_seed(words[2])


def _words(seed: Sequence[int]) -> list[int]:
    return [int(word) for word in np.random.SeedSequence(seed).generate_state(3)]


def _leave_signals_to_the_trainer(worker: int) -> None:
    """Ctrl-C and SIGTERM reach all processes of a group; the trainer still needs the ones that load its data."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.setpgid(0, 0)
