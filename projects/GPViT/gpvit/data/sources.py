"""Pictures and videos that paths, globs and folders name."""

import glob
import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..utils.errors import UserError
from .image_io import SUFFIXES

VIDEOS = {
    ".avi",
    ".m4v",
    ".mkv",
    ".mov",
    ".mp4",
    ".mpeg",
    ".mpg",
    ".mts",
    ".ogv",
    ".ts",
    ".webm",
    ".wmv",
}


@dataclass(frozen=True)
class Source:
    """An input: where it is, and its name below the output folder."""

    path: str
    name: str

    @property
    def is_video(self) -> bool:
        return Path(self.name).suffix.lower() in VIDEOS


@dataclass(frozen=True)
class InputImage:
    """A picture (H, W, 3), RGB, of a file, or a frame of a video."""

    source: Source
    image: np.ndarray
    frame: int | None = None


def sources_of(patterns: list[str], output: Path) -> list[Source]:
    """The files that are given by paths, globs and folders, but for what is below the output folder.

    Raises:
        UserError: a folder has no pictures.
    """
    found: dict[Path, Source] = {}
    for pattern in patterns:
        root, matches = expand(pattern)
        for match in matches:
            for path in pictures_below(match, output) if match.is_dir() else [match]:
                name = path.relative_to(root)
                name = (
                    Path(name.name) if ".." in name.parts else name
                )  # else it could leave the output folder
                found.setdefault(path.absolute(), Source(str(path), name.as_posix()))
    return list(found.values())


def expand(pattern: str) -> tuple[Path, list[Path]]:
    """The files and folders that match, and the folder that all names count from."""
    path = Path(pattern)
    if path.is_dir():
        return path, [path]
    if path.exists() or not glob.has_magic(pattern):
        return path.parent, [path]  # also a missing one, to be reported
    fixed = itertools.takewhile(lambda part: not glob.has_magic(part), path.parent.parts)
    return Path(*fixed), sorted(map(Path, glob.glob(pattern, recursive=True))) or [path]


def pictures_below(folder: Path, output: Path) -> list[Path]:
    """Without hidden ones, and without those of an output folder in between."""
    below = output.resolve() if folder.resolve() in output.resolve().parents else None
    paths = [
        path
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in SUFFIXES
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and not (below and path.resolve().is_relative_to(below))
    ]
    if not paths:
        raise UserError(
            f"{folder}: there are no pictures below it; give another folder, or the files themselves"
        )
    return paths


def expanded(patterns: Iterable[str]) -> list[Path]:
    """The files that globs stand for, each one's in order; what matches nothing stays, to be reported when it is read."""
    return [Path(path) for pattern in patterns for path in sorted(glob.glob(pattern)) or [pattern]]
