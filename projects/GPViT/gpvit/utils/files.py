"""Writing files so that nothing that was there is lost."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from ..errors import UserError


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


def cut(name: str, limit: int = 100) -> str:
    """A name of at most so many bytes, for what is made of the names of others: with 256 it could not be written."""
    return name.encode(errors="replace")[:limit].decode(errors="ignore")
