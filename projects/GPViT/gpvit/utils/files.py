"""Writing files so that nothing that was there is lost."""

import contextlib
import logging
import os
import platform
from collections.abc import Iterator
from pathlib import Path

from ..errors import UserError
from .text import one_line

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

_locks: set[int] = set()  # descriptors of the locks that this process holds


def _leave_locks_to_the_parent() -> None:
    """A lock is held until every copy of its descriptor is closed; a forked process would keep it beyond its parent."""
    for descriptor in _locks:
        os.close(descriptor)
    _locks.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_locks_to_the_parent)


@contextlib.contextmanager
def lock_folder(folder: str | os.PathLike) -> Iterator[None]:
    """Keeps other processes that ask for the same out of a folder, which is made if there is none.

    The lock is one of the operating system's on the file ``.lock``, which stays. It ends with the process, however that
    ends. Where a file system has no locks, the log says so and there is none.

    Raises:
        UserError: another process has the folder, or it cannot be written to.
    """
    path = Path(folder, ".lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror or error}") from error
    _locks.add(descriptor)
    try:
        _lock(descriptor, folder)
        yield
    finally:
        _locks.discard(descriptor)
        os.close(descriptor)


def _lock(descriptor: int, folder: str | os.PathLike) -> None:
    if fcntl is None:
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # how file systems over a network say it
        holder = one_line(os.pread(descriptor, 200, 0).decode(errors="replace"))
        raise UserError(
            f"another run writes to {folder}{f' ({holder})' if holder else ''}: wait for its end, or give another "
            "train.output_dir"
        ) from None
    except OSError as error:
        logger.warning(f"{folder} cannot be locked ({error.strerror}): see to it yourself that no other run writes to it")
        return
    with contextlib.suppress(OSError):  # on a full disk: nobody is told who has it
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()} on {platform.node()}".encode(), 0)


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike) -> Iterator[Path]:
    """A path to write to in place of ``path``, which at any moment is what it was before or the complete new file.

    The folder is made if there is none. The path to write to is next to ``path`` and has its suffix; what a killed
    process left there is replaced by the next write.

    Raises:
        UserError: it cannot be written; the old file is intact.
    """
    path = Path(path)
    partial = path.with_stem(f"{path.stem}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            partial.unlink()  # it may be a link to somewhere else
        try:
            yield partial
            _flush_to_disk(partial)
            partial.replace(path)
        finally:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(f"cannot write {path}: {reason}; what was there before is intact") from error


def _flush_to_disk(path: Path) -> None:
    """Else the new name could reach the disk before the content, and a power failure leave an empty file."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
