"""Arrays in files without a name, which are mapped into memory; and what else keeps memory free."""

import ctypes
import errno
import math
import mmap
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

# Of glibc's mallopt: the size in bytes above which memory is returned when it is freed. Its own
# threshold grows to the second value in any process that frees large tensors.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
RETURNED, KEPT = 2**22, 2**25


def mapped_arrays(
    folder: str | os.PathLike | None, shapes: Sequence[tuple[int, ...]], dtype: np.dtype
) -> list[np.ndarray]:
    """Return arrays of zeros in a folder, by default that of :mod:`tempfile`.

    Their space is free again when they are not referred to any more, or the process ends.

    Raises:
        OSError: there is too little space for all of them, or the folder cannot be used.
    """
    place = Path(folder or tempfile.gettempdir())
    if not place.is_dir():
        raise OSError(errno.ENOTDIR, f"{place} is no folder for intermediate results")
    sizes = [dtype.itemsize * math.prod(shape) for shape in shapes]
    free = shutil.disk_usage(place).free
    if sum(sizes) > free:
        raise OSError(
            errno.ENOSPC,
            f"this image needs {sum(sizes) / 1e9:.1f} GB in {place}, where {free / 1e9:.1f} GB are "
            "free; give another folder",
        )
    arrays: list[np.ndarray] = []
    for shape, size in zip(shapes, sizes):
        with tempfile.TemporaryFile(dir=place) as file:
            # Takes the space now: writing to a mapped page without space would end the process.
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
            else:  # macOS, Windows
                file.truncate(size)
            arrays.append(np.memmap(file, dtype, "r+", shape=shape))
    return arrays


def release_pages(arrays: Sequence[np.ndarray]) -> None:
    """Let the system take back the memory of mapped arrays; their content stays in the files."""
    if hasattr(mmap, "MADV_DONTNEED"):
        for array in arrays:
            assert isinstance(array.base, mmap.mmap)
            array.base.madvise(mmap.MADV_DONTNEED)


@contextmanager
def memory_returned() -> Iterator[None]:
    """Let glibc return the memory of large tensors to the system as soon as they are freed.

    Otherwise it keeps what was freed, in pieces that later tensors do not always fit into, so that
    a process becomes larger the longer it computes. All threads are affected, and afterwards glibc
    keeps large tensors for good. Other C libraries are left as they are, and so is a threshold that
    the environment sets.
    """
    set_option = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if not set_option or "MALLOC_MMAP_THRESHOLD_" in os.environ:
        yield
        return
    set_option(M_MMAP_THRESHOLD, RETURNED)
    try:
        yield
    finally:
        set_option(M_MMAP_THRESHOLD, KEPT)
        set_option(M_TRIM_THRESHOLD, 2 * KEPT)
