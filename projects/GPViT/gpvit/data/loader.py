"""Training images in an order that a seed and an iteration define, whatever the number of processes and workers.

Images have positions in one endless stream, the same for all processes: shuffled anew for each pass over the data set,
and put into batches of one orientation. Iteration i takes batch i, each process its part of it. What is random about an
image is drawn from generators seeded with its position.
"""

import errno
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import torch
from detectron2.data import DatasetFromList
from detectron2.data.build import trivial_batch_collator
from detectron2.structures import Instances
from detectron2.utils import comm
from omegaconf import DictConfig
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from ..utils.errors import ProcessError, UserError, preview
from ..utils.seed import seeded

TRIES = 20  # images tried in place of one that cannot be used
SHARED_MEMORY = "/dev/shm"  # what data-loading processes hand images over in


def build_train_loader(
    dataset: Sequence[dict[str, Any]],
    *,
    mapper: Callable[[dict[str, Any]], dict[str, Any]],
    total_batch_size: int,
    seed: int = -1,
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
        seed: of order and augmentation; if it is negative, another one each time, the same in all processes.
        start_iter: iteration whose batch comes first.
        num_workers: data-loading processes, 0 for none.
        timeout: seconds after which a data-loading process that gives nothing is an error.
        skip: whether another image takes the place of one that cannot be used; else that is an error.
        pin_memory, prefetch_factor: as of PyTorch's DataLoader.
    """
    images_per_process(total_batch_size, comm.get_world_size())
    seed = seed if seed >= 0 else comm.shared_random_seed()
    if len(dataset) == 0:
        raise UserError("the training data set has no image with a usable object")
    orientations = [int(record.get("width", 0) > record.get("height", 0)) for record in dataset]
    return DataLoader(
        MappedDataset(dataset, mapper, seed, skip),
        batch_sampler=BatchSampler(orientations, total_batch_size, seed, start_iter),
        num_workers=num_workers,
        timeout=timeout if num_workers else 0,
        collate_fn=into_shared_memory,
        worker_init_fn=_leave_signals_to_the_trainer,
        pin_memory=pin_memory,
        prefetch_factor=prefetch_factor if num_workers else None,
    )


def images_per_process(total_batch_size: int, processes: int) -> int:
    """A process's images of each batch. Raises a UserError if a batch cannot be divided equally."""
    if total_batch_size < 1 or total_batch_size % processes:
        raise UserError(
            f"dataloader.train.total_batch_size={total_batch_size} cannot be divided among {processes} processes"
        )
    return total_batch_size // processes


def into_shared_memory(
    batch: list[Any], collate: Callable[[list[Any]], Any] = trivial_batch_collator
) -> Any:
    """A batch of a data-loading process, put where the training process finds it.

    PyTorch does so, too, but in a thread whose errors nobody hears of: if there is no room, the training process waits.

    Raises:
        UserError: there is no room.
    """
    batch = collate(batch)
    if get_worker_info() is not None:
        try:
            _share(batch)
        except RuntimeError as error:
            raise UserError(no_shared_memory(str(error).splitlines()[0])) from None
    return batch


def _share(value: Any) -> None:
    if isinstance(value, Tensor):
        if value.numel():
            value.share_memory_()
    elif isinstance(value, dict):
        for item in value.values():
            _share(item)
    elif isinstance(value, list | tuple):
        for item in value:
            _share(item)
    elif isinstance(value, Instances):
        _share(value.get_fields())
    elif isinstance(tensor := getattr(value, "tensor", None), Tensor):  # of boxes and masks
        _share(tensor)


def no_shared_memory(reason: str) -> str:
    return (
        f"no room in {SHARED_MEMORY}, in which data-loading processes hand over images ({reason}): make it larger (in "
        "Docker: --shm-size=8g), or do without such processes (dataloader.train.num_workers=0 "
        "dataloader.test.num_workers=0)"
    )


def loading_failure(error: BaseException) -> str | None:
    """What an error of PyTorch's about its data-loading processes means, in one line; None for other errors."""
    text = (str(error).splitlines() or [""])[0]
    if isinstance(error, UserError):
        return text
    if isinstance(error, OSError):  # a queue or a lock for such a process
        return (
            no_shared_memory(text)
            if error.errno == errno.ENOSPC and _shared_memory_is_full()
            else None
        )
    if (
        "shared memory" in text
    ):  # "... killed by signal: Bus error. It is possible that ... out of shared memory"
        return no_shared_memory(text)
    return f"a data-loading process failed: {text}" if "DataLoader" in text else None


def _shared_memory_is_full() -> bool:
    with suppress(OSError):
        space = os.statvfs(SHARED_MEMORY)
        return space.f_bavail * space.f_frsize <= 2**16  # a process needs a quarter of it to begin
    return False


def share_batches(loader: DataLoader) -> DataLoader:
    """Makes the data-loading processes of a loader that was built elsewhere say if they have no room.

    Raises:
        ProcessError: there is no room to start them.
    """
    if not isinstance(loader, DataLoader):  # of one's own
        return loader
    _require_room(loader)
    loader.collate_fn = partial(into_shared_memory, collate=loader.collate_fn)
    return loader


def start_loading(batches: Iterable[Any]) -> Iterator[Any]:
    """Starts the data-loading processes of a loader, if it has any. Raises a ProcessError if there is no room."""
    _require_room(batches)
    try:
        return iter(batches)
    except OSError as error:
        if reason := loading_failure(error):
            raise ProcessError(reason) from error
        raise


def _require_room(loader: Iterable[Any]) -> None:
    # Asked before, since PyTorch leaves tracebacks of half a loader behind.
    if getattr(loader, "num_workers", 0) and _shared_memory_is_full():
        raise ProcessError(no_shared_memory("it is full"))


def stop_workers(batches: Iterator[Any]) -> None:
    """Ends the data-loading processes behind an iterator, also those that hang; PyTorch gives each of these 5 seconds."""
    for worker in getattr(batches, "_workers", ()):
        worker.terminate()


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
                yield [
                    (index, number * self.batch_size + place) for place, index in enumerate(batch)
                ][mine]

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

    def __init__(
        self, records: Sequence[dict[str, Any]], mapper: Callable, seed: int, skip: bool
    ) -> None:
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
        return {
            "index": index,
            "position": position,
            "skipped": skipped,
        }  # no image: the trainer stops


def _leave_signals_to_the_trainer(worker: int) -> None:
    """Ctrl-C and SIGTERM reach all processes of a group; the trainer still needs the ones that load its data."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.setpgid(0, 0)
    # A trainer that is stopped while it fetches a batch hangs up, which the thread that hands it over would show.
    show = sys.excepthook
    sys.excepthook = lambda kind, *rest: (
        None if issubclass(kind, EOFError | ConnectionError) else show(kind, *rest)
    )


def check_batches(cfg: DictConfig, processes: int) -> None:
    """Raises a UserError if a batch cannot be divided among processes, or into the parts of train.accumulate."""
    batch_size = cfg.dataloader.train.get("total_batch_size")
    if batch_size is None:  # a loader of one's own
        return
    images, parts = images_per_process(batch_size, processes), cfg.train.accumulate
    if images % parts:
        divisors = [str(count) for count in range(1, images + 1) if images % count == 0]
        raise UserError(
            f"train.accumulate={parts} does not divide the {images} images that each process has of a batch "
            f"(dataloader.train.total_batch_size={batch_size}); it may be {preview(divisors)}"
        )
