"""Generated JSON files, in the user's cache: written once, and again if the dataset changes."""

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path, PurePath
from typing import Any

from ...utils.errors import UserError
from ...utils.files import truncate_name
from .splits import SEED, VAL_FRACTION

VERSION = 4  # to be increased when the contents of generated files change
# A function that generates JSON files: returns their contents by name without suffix, and notes.
Generate = Callable[[], tuple[dict[str, dict], list[str]]]


def generate_once(
    data: str, root: Path, used: Iterable[str], source_format: Sequence[str], generate: Generate
) -> tuple[dict[str, Path], list[str]]:
    """Return the JSON files that are generated from a dataset, by split, and notes.

    Files of other names than "train.json" and "val.json" may be next to these; they are not
    returned.

    Args:
        data, root, used, source_format: as for :func:`cached_folder`.
        generate: called if the files are not in the cache.
    """

    def contents() -> dict[str, Any]:
        files, notes = generate()
        return {f"{name}.json": content for name, content in files.items()} | {"notes": notes}

    folder = cached_folder(data, root, used, source_format, contents)
    notes = json.loads((folder / "notes").read_bytes())
    paths = {split: folder / f"{split}.json" for split in ("train", "val")}
    return {split: path for split, path in paths.items() if path.exists()}, notes


def cached_folder(
    data: str,
    root: Path,
    used: Iterable[str],
    source_format: Sequence[str],
    contents: Callable[[], dict[str, Any]],
) -> Path:
    """Return the folder of the JSON files that are generated from a dataset.

    They are generated once and written atomically, to a folder whose name depends on everything
    that they depend on. All processes of a job, and later jobs, find the same folder.

    Args:
        data: as given by the user.
        root: folder of the dataset.
        used: the files that they are generated from, relative to the root.
        source_format: the format, and whatever else they depend on.
        contents: returns the contents by file name; called if they are not in the cache.
    """
    # Size and time of a file's last change stand for its contents, which are not read.
    state = []
    try:
        for path in used:
            status = (root / path).stat()
            state.append((path, status.st_size, status.st_mtime_ns))
    except OSError as error:  # for example, a link to a file that was deleted
        raise UserError(f"--data {data}: {error}") from None
    key = (VERSION, SEED, VAL_FRACTION, source_format, os.path.realpath(root), state)
    folder = _cache_folder(data, key)
    if not folder.exists():
        files = contents()
        try:
            write_folder(folder, files)
        except OSError as error:
            raise UserError(
                f"cannot write {folder} ({error}); set XDG_CACHE_HOME to a writable folder"
            ) from None
    return folder


def _cache_folder(data: str, key: tuple) -> Path:
    """Return the folder in the cache for generated files that depend on the values of a key."""
    digest = hashlib.sha256(repr(key).encode(errors="surrogateescape")).hexdigest()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gpvit" / "data"
    # The name of the dataset is only for humans. Characters other than letters, digits, "_", "."
    # and "-" are replaced.
    name = re.sub(r"[^\w.-]+", "-", PurePath(os.path.abspath(data)).name.removesuffix(".json"))
    return cache / f"{truncate_name(name)}-{digest[:16]}"


def write_folder(folder: Path, files: dict[str, Any]) -> None:
    """Write a folder of JSON files atomically; keep it if another process was first.

    Args:
        folder: to create.
        files: contents by file name.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, ignore_cleanup_errors=True) as temporary:
        for name, content in files.items():
            (Path(temporary) / name).write_text(json.dumps(content))
        try:
            os.rename(temporary, folder)
        except OSError:
            if not folder.exists():
                raise
