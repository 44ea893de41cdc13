"""Input images and videos given by paths, glob patterns and folders."""

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
    """An input: its path, and its name below the output folder."""

    path: str
    name: str

    @property
    def is_video(self) -> bool:
        return Path(self.name).suffix.lower() in VIDEOS


@dataclass(frozen=True)
class InputImage:
    """An image file or a frame of a video: (H, W, 3), RGB."""

    source: Source
    image: np.ndarray
    frame: int | None = None


def sources_of(patterns: list[str], output: Path) -> list[Source]:
    """Return the files given by paths, globs and folders, except those below the output folder.

    Raises:
        UserError: a folder has no images.
    """
    found: dict[Path, Source] = {}
    for pattern in patterns:
        root, matches = expand(pattern)
        for match in matches:
            for path in images_below(match, output) if match.is_dir() else [match]:
                name = path.relative_to(root)
                if ".." in name.parts:  # it would lead out of the output folder
                    name = Path(name.name)
                found.setdefault(path.absolute(), Source(str(path), name.as_posix()))
    return list(found.values())


def expand(pattern: str) -> tuple[Path, list[Path]]:
    """Return the folder that names are relative to, and the files and folders that match."""
    path = Path(pattern)
    if path.is_dir():
        return path, [path]
    if path.exists() or not glob.has_magic(pattern):
        return path.parent, [path]  # including a missing file, which is reported later
    # The parts of the path before the first one with a wildcard.
    fixed = itertools.takewhile(lambda part: not glob.has_magic(part), path.parent.parts)
    return Path(*fixed), sorted(map(Path, glob.glob(pattern, recursive=True))) or [path]


def images_below(folder: Path, output: Path) -> list[Path]:
    """Return the images in a folder and its subfolders, in order.

    Hidden files and folders are left out, and so is the output folder if it is one of the
    subfolders.

    Raises:
        UserError: there are none.
    """
    excluded = output.resolve() if folder.resolve() in output.resolve().parents else None
    images = []
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() not in SUFFIXES or not path.is_file():
            continue
        is_hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if not is_hidden and not (excluded and path.resolve().is_relative_to(excluded)):
            images.append(path)
    if not images:
        raise UserError(
            f"{folder}: there are no images below it; give another folder, or the files themselves"
        )
    return images


def expand_globs(patterns: Iterable[str]) -> list[Path]:
    """Return the files that match glob patterns, sorted for each pattern.

    A pattern without matches is returned itself, so that reading it raises an error.
    """
    paths: list[Path] = []
    for pattern in patterns:
        paths += map(Path, sorted(glob.glob(pattern)) or [pattern])
    return paths
