"""Writing files without losing what was there before."""

import contextlib
import errno
import hashlib
import logging
import math
import os
import platform
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from .errors import UserError, preview
from .text import PATH_LIMIT, one_line

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

NAME_LIMIT = 255  # bytes of a file name, on all usual file systems
logger = logging.getLogger(__name__)

_locks: set[int] = set()  # file descriptors of the locks that this process holds


def _close_inherited_locks() -> None:
    """Close a forked process's copies of its parent's locks.

    A lock is held until every copy of its descriptor is closed, so a child would keep the lock
    after the parent ended.
    """
    for descriptor in _locks:
        os.close(descriptor)
    _locks.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_inherited_locks)


@contextlib.contextmanager
def lock_folder(folder: str | os.PathLike, option: str = "train.output_dir") -> Iterator[None]:
    """Hold an exclusive lock on a folder, which is created if it does not exist.

    It is a lock of the operating system on the file ``.lock``, which is not removed afterwards.
    The lock ends with the process, however the process ends. If the file system does not support
    locks, a warning is logged and there is no lock.

    Args:
        folder: the folder.
        option: with which the user gave it, for the message.

    Raises:
        UserError: another process holds the lock, or the folder is not writable.
    """
    path = Path(folder, ".lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise UserError(
            f"cannot write to {one_line(folder, PATH_LIMIT)}: {error.strerror or error}"
        ) from error
    _locks.add(descriptor)
    try:
        _lock(descriptor, folder, option)
        yield
    finally:
        _locks.discard(descriptor)
        os.close(descriptor)


def _lock(descriptor: int, folder: str | os.PathLike, option: str) -> None:
    if fcntl is None:
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # network file systems may raise the latter
        holder = one_line(os.pread(descriptor, 200, 0).decode(errors="replace"))
        who = f" ({holder})" if holder else ""
        raise UserError(
            f"another run writes to {folder}{who}: wait until it ends, or set another {option}"
        ) from None
    except OSError as error:
        logger.warning(
            f"{folder} cannot be locked ({error.strerror}): make sure that no other run writes "
            "to it"
        )
        return
    with contextlib.suppress(OSError):  # on a full disk, the holder stays unnamed
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()} on {platform.node()}".encode(), 0)


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary path to write to, which replaces ``path`` at the end.

    At any moment, ``path`` is the old file or the complete new one. Its folder is created if it
    does not exist. The temporary file is hidden, in the same folder, and has the same suffix; one
    that a killed process left is replaced by the next write. For a symbolic link, the file it
    points to is replaced. Devices and pipes, such as /dev/stdout, are written directly.

    The file should be opened by Python or written in Python: if C++ code fails to write it, only an
    ``OSError`` in the exception's chain distinguishes a full disk from a bug.

    Raises:
        UserError: the file cannot be written; the old one is intact.
    """
    try:
        target = Path(os.path.realpath(path))
        # /dev/stdout resolves to what the process has open: a pipe has no path, and a file that
        # the shell opened must not be replaced.
        is_open = str(target).startswith(("/dev/", "/proc/")) or os.fspath(path).startswith("/dev/")
        if is_open or (target.exists() and not target.is_file() and not target.is_dir()):
            yield Path(path)
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        _check_replaceable(target)
        partial = _partial(target)
        with contextlib.suppress(FileNotFoundError):
            partial.unlink()  # else a link of this name would be followed
        try:
            yield partial
            if target.exists():
                partial.chmod(target.stat().st_mode & 0o7777)  # a private file stays private
            _flush_to_disk(partial)
            partial.replace(target)
        finally:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
    except UserError:
        raise
    except (OSError, RuntimeError, ValueError) as error:
        failure = _os_error(error)
        if failure is None:
            raise
        kept = "; the old one is intact" if os.path.exists(path) else ""
        raise UserError(
            f"cannot write {one_line(path, PATH_LIMIT)}: {_reason(failure)}{kept}"
        ) from error


def make_folder(path: str | os.PathLike) -> None:
    """Create a folder and its parents where they do not exist.

    Raises:
        UserError: the folder cannot be created.
    """
    try:
        os.makedirs(path, exist_ok=True)
    except (OSError, ValueError) as error:  # ValueError: a null character
        reason = _reason(error) if isinstance(error, OSError) else str(error)
        if isinstance(error, FileExistsError):
            reason = "a file of this name exists"
        raise UserError(
            f"cannot create the folder {one_line(path, PATH_LIMIT)}: {reason}"
        ) from None


def _check_replaceable(path: Path) -> None:
    """Raise the OSError that writing to the file itself would raise.

    Renaming a file over it would succeed, since that needs permission for the folder only.
    """
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if path.exists() and not os.access(path, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def _partial(path: Path) -> Path:
    """Return the temporary path for a file; its leading dot hides it from patterns like ``*``."""
    name = f".{path.stem}.partial{path.suffix}"
    if len(os.fsencode(name)) > NAME_LIMIT:
        name = f".{hashlib.sha256(os.fsencode(path.name)).hexdigest()[:16]}.partial{path.suffix}"
    return path.with_name(name)


def _os_error(error: BaseException | None) -> OSError | None:
    """Return the OSError in the chain of an exception, if any.

    PyTorch raises errors of its own when a write fails.
    """
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__ or error.__context__
    return error


def _reason(error: OSError) -> str:
    return one_line(error.strerror or error, PATH_LIMIT)


def _flush_to_disk(path: Path) -> None:
    """Write a file's content to the disk before the file is renamed.

    Otherwise the new name may reach the disk first, and a power failure leave an empty file.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def truncate_name(name: str, limit: int = 100) -> str:
    """Truncate a name to ``limit`` bytes of UTF-8, for file names that are derived from it."""
    # A character of several bytes that the limit divides is dropped ("ignore").
    return name.encode(errors="replace")[:limit].decode(errors="ignore")


def finite_or_text(value: Any) -> Any:
    """Convert the numbers that JSON lacks (infinity and NaN) to text, also in dicts and lists."""
    if isinstance(value, dict):
        return {key: finite_or_text(item) for key, item in value.items()}
    if isinstance(value, list):
        return list(map(finite_or_text, value))
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def check_overwrite(paths: Iterable[Path], overwrite: bool) -> None:
    """Raise a UserError if one of the paths given by --output exists and may not be overwritten.

    Symbolic links are always refused, except those in /dev: a write would go to their target.
    """
    links, existing = [], []
    for path in paths:
        if path.is_symlink() and path.parent != Path("/dev"):
            links.append(str(path))
        if os.path.isfile(path) or os.path.isdir(path):
            existing.append(one_line(path, PATH_LIMIT))
    if links:
        raise UserError(f"{preview(links)} is a symbolic link; remove it, or give another --output")
    if existing and not overwrite:
        raise UserError(
            f"{preview(existing)} already exists; give another --output, or --overwrite"
        )
