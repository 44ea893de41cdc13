"""Training data in an order that depends only on a seed and the iteration.

The order is the same for any number of processes and workers. Images have positions in one endless
stream, which is the same in all processes: reshuffled for each epoch, and grouped into batches of
one orientation. Iteration i takes batch i, and each process its slice of it. The random
augmentation of an image is drawn from generators that are seeded with its position.
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
SHARED_MEMORY = "/dev/shm"  # where data-loading processes put images for the training process


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
    """Build a loader that yields this process's part of each batch, without end.

    Args:
        dataset: records in Detectron2's format.
        mapper: maps a record to the input of the model; raises a UserError if it cannot.
        total_batch_size: images per batch over all processes.
        seed: of the order and the augmentation; if negative, a different one each time, shared by
            all processes.
        start_iter: iteration whose batch comes first.
        num_workers: data-loading processes, 0 for none.
        timeout: seconds without a batch from a data-loading process that raise an error.
        skip: replace an image that cannot be used by another one, instead of raising an error.
        pin_memory, prefetch_factor: see PyTorch's DataLoader.
    """
    images_per_process(total_batch_size, comm.get_world_size())
    seed = seed if seed >= 0 else comm.shared_random_seed()
    if len(dataset) == 0:
        raise UserError("the training dataset has no image with a usable object")
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
    """Return the number of images of each batch per process.

    Raises:
        UserError: a batch cannot be divided equally.
    """
    if total_batch_size < 1 or total_batch_size % processes:
        raise UserError(
            f"dataloader.train.total_batch_size={total_batch_size} cannot be divided among "
            f"{processes} processes"
        )
    return total_batch_size // processes


def into_shared_memory(
    batch: list[Any], collate: Callable[[list[Any]], Any] = trivial_batch_collator
) -> Any:
    """Collate a batch and, in a data-loading process, move it to shared memory.

    PyTorch moves it, too, but in a thread whose errors are lost: if shared memory is full, the
    training process waits.

    Raises:
        UserError: shared memory is full.
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
    else:  # boxes and masks have a tensor
        tensor = getattr(value, "tensor", None)
        if isinstance(tensor, Tensor):
            _share(tensor)


def no_shared_memory(reason: str) -> str:
    """Return the message of an error about full shared memory."""
    return (
        f"no room in {SHARED_MEMORY}, which data-loading processes need to share images "
        f"({reason}): make it larger (in Docker: --shm-size=8g), or do without such processes "
        "(dataloader.train.num_workers=0 dataloader.test.num_workers=0)"
    )


def loading_failure(error: BaseException) -> str | None:
    """Describe an error of PyTorch about data-loading processes in one line.

    None for other errors.
    """
    text = (str(error).splitlines() or [""])[0]
    if isinstance(error, UserError):
        return text
    if isinstance(error, OSError):  # raised when a queue or a lock for a process is created
        is_full = error.errno == errno.ENOSPC and _shared_memory_is_full()
        return no_shared_memory(text) if is_full else None
    # "... killed by signal: Bus error. It is possible that ... out of shared memory"
    if "shared memory" in text:
        return no_shared_memory(text)
    return f"a data-loading process failed: {text}" if "DataLoader" in text else None


def _shared_memory_is_full() -> bool:
    with suppress(OSError):
        space = os.statvfs(SHARED_MEMORY)
        return space.f_bavail * space.f_frsize <= 2**16  # a process needs a quarter of it to start
    return False


def share_batches(loader: DataLoader) -> DataLoader:
    """Make the data-loading processes of a loader from elsewhere report full shared memory.

    They print no traceback if the job stops while they send a batch.

    Raises:
        ProcessError: shared memory is too full to start them.
    """
    if not isinstance(loader, DataLoader):  # a custom loader
        return loader
    _require_room(loader)
    loader.collate_fn = partial(into_shared_memory, collate=loader.collate_fn)
    loader.worker_init_fn = loader.worker_init_fn or _hide_lost_connections
    return loader


def start_loading(batches: Iterable[Any]) -> Iterator[Any]:
    """Start the data-loading processes of a loader, if it has any.

    Raises:
        ProcessError: shared memory is too full to start them.
    """
    _require_room(batches)
    try:
        return iter(batches)
    except OSError as error:
        if reason := loading_failure(error):
            raise ProcessError(reason) from error
        raise


def _require_room(loader: Iterable[Any]) -> None:
    # Checked in advance, because PyTorch prints tracebacks of a partially constructed iterator.
    if getattr(loader, "num_workers", 0) and _shared_memory_is_full():
        raise ProcessError(no_shared_memory("it is full"))


def stop_workers(batches: Iterator[Any]) -> None:
    """Terminate the data-loading processes of an iterator, including those that hang.

    PyTorch would wait 5 seconds for each of these.
    """
    for worker in getattr(batches, "_workers", ()):
        worker.terminate()


class BatchSampler(Sampler):
    """This process's part of each batch, without end: lists of (image index, stream position).

    Args:
        groups: one number per image; all images of a batch are of the same group.
        batch_size: over all processes.
        seed: of the shuffling.
        start: first batch to yield.
    """

    def __init__(self, groups: Sequence[int], batch_size: int, seed: int, start: int = 0) -> None:
        self.groups, self.batch_size, self.seed, self.start = groups, batch_size, seed, start
        self.rank, self.world_size = comm.get_rank(), comm.get_world_size()

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        # Every process generates all batches and takes the same slice of each.
        size = self.batch_size // self.world_size
        first, end = self.rank * size, (self.rank + 1) * size
        for number, batch in enumerate(self._batches()):
            if number >= self.start:
                # An image in batch `number` at place p has the position number * batch_size + p.
                positions = range(number * self.batch_size + first, number * self.batch_size + end)
                yield list(zip(batch[first:end], positions))

    def _batches(self) -> Iterator[list[int]]:
        """Yield the image indices of each batch over all processes.

        Images of a group wait until they fill a batch, also beyond the end of an epoch. Skipped
        batches are generated as well, because the order depends on all preceding permutations.
        """
        generator = torch.Generator().manual_seed(self.seed)
        waiting: dict[int, list[int]] = {}
        while True:
            for index in torch.randperm(len(self.groups), generator=generator).tolist():
                batch = waiting.setdefault(self.groups[index], [])
                batch.append(index)
                if len(batch) == self.batch_size:
                    yield waiting.pop(self.groups[index])


class MappedDataset(Dataset):
    """Maps records with randomness that depends only on the seed and the position.

    Each image has its "index" and "position", and in "skipped" why the images before it could not
    be used. These errors are returned, because an exception in a data-loading process would not be
    raised as one line.
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
        for offset in range(TRIES if self.skip else 1):
            nearby = (index + offset) % len(self.records)
            try:
                with seeded(self.seed, position):
                    image = self.mapper(self.records[nearby])
            except UserError as error:
                skipped.append(str(error))
            else:
                return image | {"index": nearby, "position": position, "skipped": skipped}
        # Without "image", the trainer stops.
        return {"index": index, "position": position, "skipped": skipped}


def _leave_signals_to_the_trainer(worker: int) -> None:
    """Protect a data-loading process from signals to the process group.

    Ctrl-C and SIGTERM reach all processes of a group, but the trainer still needs the ones that
    load its data.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.setpgid(0, 0)
    _hide_lost_connections(worker)


def _hide_lost_connections(worker: int) -> None:
    """Print no traceback in a data-loading process that sends a batch when the job stops."""
    original_hook = sys.excepthook

    def hook(kind: type[BaseException], *rest: Any) -> None:
        if not issubclass(kind, EOFError | ConnectionError):
            original_hook(kind, *rest)

    sys.excepthook = hook


def check_batches(cfg: DictConfig, processes: int) -> None:
    """Check that a batch can be divided among processes and into train.accumulate parts.

    Raises:
        UserError: it cannot.
    """
    batch_size = cfg.dataloader.train.get("total_batch_size")
    if batch_size is None:  # a custom loader
        return
    images, parts = images_per_process(batch_size, processes), cfg.train.accumulate
    if images % parts:
        divisors = [str(count) for count in range(1, images + 1) if images % count == 0]
        raise UserError(
            f"train.accumulate={parts} does not divide the {images} images that each process has "
            f"of a batch (dataloader.train.total_batch_size={batch_size}); it may be "
            f"{preview(divisors)}"
        )
