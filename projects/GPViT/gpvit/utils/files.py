"""Writing files so that nothing that was there is lost."""

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

NAME_LIMIT = 255  # bytes of a file's name, on all usual file systems
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
        raise UserError(
            f"cannot write to {one_line(folder, PATH_LIMIT)}: {error.strerror or error}"
        ) from error
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
        logger.warning(
            f"{folder} cannot be locked ({error.strerror}): see to it yourself that no other run writes to it"
        )
        return
    with contextlib.suppress(OSError):  # on a full disk: nobody is told who has it
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()} on {platform.node()}".encode(), 0)


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike) -> Iterator[Path]:
    """A path to write to in place of ``path``, which at any moment is what it was before or the complete new file.

    The folder is made if there is none. The path to write to is next to ``path``, hidden, and has its suffix; what a
    killed process left there is replaced by the next write. A link stays, and what it points to is replaced; to a device
    or a pipe, such as /dev/stdout, is written directly.

    Whatever writes should get a file that Python opened, or write in Python: of failures in C++, an ``OSError`` behind
    them is what tells a full disk from a bug.

    Raises:
        UserError: it cannot be written; the old file is intact.
    """
    try:
        target = Path(os.path.realpath(path))
        # /dev/stdout leads to what the process has open: a pipe has no name there, and a file is not ours to replace.
        is_open = str(target).startswith(("/dev/", "/proc/")) or os.fspath(path).startswith("/dev/")
        if is_open or (target.exists() and not target.is_file() and not target.is_dir()):
            yield Path(path)
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        _check_replaceable(target)
        partial = _partial(target)
        with contextlib.suppress(FileNotFoundError):
            partial.unlink()  # it may be a link to somewhere else
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
    """Makes a folder for what is to be written, and those above it, where there is none.

    Raises:
        UserError: it cannot be made.
    """
    try:
        os.makedirs(path, exist_ok=True)
    except (OSError, ValueError) as error:  # ValueError: a null character
        reason = _reason(error) if isinstance(error, OSError) else str(error)
        if isinstance(error, FileExistsError):
            reason = "there is a file of this name"
        raise UserError(f"cannot make the folder {one_line(path, PATH_LIMIT)}: {reason}") from None


def _check_replaceable(path: Path) -> None:
    """Raises an OSError where writing to the file itself would: renaming needs no right but to its folder."""
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if path.exists() and not os.access(path, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def _partial(path: Path) -> Path:
    """Where the new content of a file is written: no pattern for files of this kind matches it."""
    name = f".{path.stem}.partial{path.suffix}"
    if len(os.fsencode(name)) > NAME_LIMIT:
        name = f".{hashlib.sha256(os.fsencode(path.name)).hexdigest()[:16]}.partial{path.suffix}"
    return path.with_name(name)


def _os_error(error: BaseException | None) -> OSError | None:
    """The OSError that an error is or came from: PyTorch answers a failed write by errors of its own."""
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__ or error.__context__
    return error


def _reason(error: OSError) -> str:
    return one_line(error.strerror or error, PATH_LIMIT)


def _flush_to_disk(path: Path) -> None:
    """Else the new name could reach the disk before the content, and a power failure leave an empty file."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def cut(name: str, limit: int = 100) -> str:
    """A name of at most so many bytes, for what is made of the names of others: with 256 it could not be written."""
    return name.encode(errors="replace")[:limit].decode(errors="ignore")


def finite_or_text(value: Any) -> Any:
    """The value with numbers that JSON lacks as text."""
    if isinstance(value, dict):
        return {key: finite_or_text(item) for key, item in value.items()}
    if isinstance(value, list):
        return [finite_or_text(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def refuse_to_replace(paths: Iterable[Path], overwrite: bool) -> None:
    """Raises a UserError if one of these, which --output names, is there and may not be overwritten.

    A link may never be, but for those of /dev: what is written would go to where it leads.
    """
    paths = list(paths)
    links = [str(path) for path in paths if path.is_symlink() and path.parent != Path("/dev")]
    if links:
        raise UserError(f"{preview(links)} is a link; remove it, or give another --output")
    there = [
        one_line(path, PATH_LIMIT) for path in paths if os.path.isfile(path) or os.path.isdir(path)
    ]
    if there and not overwrite:
        raise UserError(f"there is {preview(there)} already; give another --output, or --overwrite")
