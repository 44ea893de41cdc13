"""Which images the names in a file of annotations mean.

Programs write names as they are where they run: with backslashes (Windows), with ``%20`` (Label Studio),
with folders of another machine. A name under which something is there means that. Any other means the one
image of the dataset's folder that ends in the longest part of the name; where it may be several, or several
names may mean the same image, nothing is guessed. Nor is it where the folder that a name says is
here and has other images: then this one was deleted. What is guessed is always inside of the
folder.
"""

import os
import posixpath
import re
import unicodedata
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import NamedTuple
from urllib.parse import unquote

from ...utils.errors import UserError
from ..image_io import SUFFIXES

ABSENT = "is not there"
TELLING = {"images", "labels", "annotations"}  # folders whose names are looked for
UPLOADED = re.compile("[0-9a-f]{8}-(?=.)")  # what Label Studio puts before the name of an upload


class Match(NamedTuple):
    """The path of an image, or "" and why there is none."""

    path: str
    fault: str = ""


class Folders:
    """What is in folders. Each is listed once, which is faster than a look at each of its files."""

    def __init__(self) -> None:
        self._listed: dict[str, tuple[str, set[str], set[str]]] = {}

    def has(self, path: str) -> bool:
        """Whether there is something under a path."""
        folder, name = os.path.split(path)
        # Some file systems find a name in other letters than the listing has.
        return name in self._list(folder)[1] or os.path.exists(path)

    def real(self, path: str) -> str:
        """A path, absolute and without links; it need not exist."""
        folder, name = os.path.split(path)
        real, _, links = self._list(folder)
        return (
            _real(path)
            if name in links or name in ("", os.curdir, os.pardir)
            else os.path.join(real, name)
        )

    def _list(self, folder: str) -> tuple[str, set[str], set[str]]:
        """The real path of a folder, the names in it, and those that are links."""
        if folder not in self._listed:
            names, links = set(), set()
            try:
                with os.scandir(folder or os.curdir) as entries:
                    for entry in entries:
                        names.add(entry.name)
                        if entry.is_symlink():
                            links.add(entry.name)
            except (OSError, ValueError):  # none, or what is no path
                pass
            self._listed[folder] = _real(folder), names, links
        return self._listed[folder]


def _real(path: str) -> str:
    try:
        return os.path.realpath(path)
    except (OSError, ValueError):  # what is no path
        return path


def files_below(root: str | os.PathLike[str]) -> Iterator[str]:
    """Paths of files relative to a folder; nothing that is hidden.

    What can be seen through links as well has one path: that with more of :data:`TELLING`, else the one without links.

    Raises:
        UserError: a folder cannot be listed, so that nobody knows what is in it.
    """
    root = os.fspath(root)
    paths: dict[str, str] = {}  # relative to the root, of each folder, by where that really is
    names: dict[str, list[str]] = {}
    waiting = [root]  # folders to walk: the root, and what links lead to
    for start in waiting:
        real = os.path.realpath(start)
        if real in paths:
            _prefer(
                os.path.relpath(start, root), real, paths, os.path.realpath(os.path.dirname(start))
            )
            continue
        for folder, folders, files in os.walk(start, onerror=_refuse):
            real = os.path.realpath(folder)
            if real in paths:
                folders.clear()
                continue
            if files and not os.access(
                folder, os.X_OK
            ):  # whose names may be known, but nothing more
                raise UserError(f"cannot open the files in {folder}; make it searchable (chmod +x)")
            paths[real] = os.path.relpath(folder, root)
            names[real] = [name for name in files if not name.startswith(".")]
            # Of lost+found, at the root of a disk, nobody but root can see what is in it.
            shown = sorted(
                name for name in folders if not name.startswith(".") and name != "lost+found"
            )
            links = [name for name in shown if os.path.islink(os.path.join(folder, name))]
            waiting += [os.path.join(folder, name) for name in links]
            folders[:] = shown  # os.walk itself follows no links
    for real, folder in paths.items():
        for name in names[real]:
            yield os.path.normpath(os.path.join(folder, name))


def _prefer(link: str, real: str, paths: dict[str, str], parent: str) -> None:
    """Gives a folder and those below it the path through a link if that says more, and leads out of the folder.

    Args:
        link: its path.
        real: where it leads.
        paths: of all folders, by where they really are; may be changed.
        parent: where the folder of the link really is.
    """
    known = paths[real]
    is_loop = f"{parent}{os.sep}".startswith(os.path.join(real, ""))
    if is_loop or _telling(link) <= _telling(known):
        return
    for folder, path in paths.items():
        if f"{path}{os.sep}".startswith(f"{known}{os.sep}"):
            paths[folder] = link + path[len(known) :]


def _telling(path: str) -> int:
    """How many folders of a path say what is in them."""
    return sum(part.lower() in TELLING for part in path.split(os.sep))


def cannot_list(error: OSError) -> UserError:
    remedy = "make it readable, or move it out of the data"
    return UserError(f"cannot list {error.filename}: {error.strerror}; {remedy}")


def _refuse(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        raise cannot_list(error)


def match(
    names: Iterable[str], paths: Iterable[str], taken: Collection[str] = ()
) -> dict[str, Match]:
    """The images that names mean which are not there as written.

    Args:
        names: as written.
        paths: of the files of a folder, relative to it.
        taken: paths that other names mean as written.
    """
    ends: dict[tuple[str, ...], list[str]] = {}
    holding: set[str] = set()
    for path in paths:
        if os.path.splitext(path)[1].lower() in SUFFIXES:
            holding.add(os.path.dirname(path))
        parts = _parts(path)
        for start in range(len(parts)):
            ends.setdefault(parts[start:], []).append(path)
    longest = max(map(len, ends), default=0)
    folders = folder_ends(holding)
    found: dict[str, list[str]] = {}
    elsewhere: dict[str, str] = {}
    for name in names:
        found[name], parts = _ending_alike(name, ends, longest)
        known = known_folders(parts[:-1], folders)
        if found[name] and known >= _common_end(_parts(found[name][0]), parts):
            other = f"{found[name][0]} may be another image"
            elsewhere[name] = f"is not in that folder, which is here; {other}"
            found[name] = []
    # Spellings of one path are one name.
    meant: dict[str, set[tuple[str, ...]]] = {}
    for name, images in found.items():
        for path in images:
            meant.setdefault(path, set()).add(_readings(name)[1])
    matches = {}
    for name, images in found.items():
        if name in elsewhere:
            matches[name] = Match("", elsewhere[name])
        elif len(images) > 1:
            several = f"{', '.join(images[:3])}{' or more' if len(images) > 3 else ''}"
            matches[name] = Match("", f"may be {several}")
        elif images and (images[0] in taken or len(meant[images[0]]) > 1):
            matches[name] = Match("", f"{images[0]} may be that of another name")
        else:
            matches[name] = Match(images[0]) if images else Match("", ABSENT)
    return matches


def _ending_alike(
    name: str, ends: dict[tuple[str, ...], list[str]], longest: int
) -> tuple[list[str], tuple[str, ...]]:
    """The paths that share the longest end with the first reading of a name, and that reading."""
    for parts in _readings(name):
        for length in range(min(longest, len(parts)), 0, -1):
            paths = ends.get(parts[-length:])
            if paths:
                # A path from the folder itself is not one of several that end so.
                return [path for path in paths if _parts(path) == parts] or paths, parts
    return [], ()


def folder_ends(folders: Iterable[str]) -> set[tuple[str, ...]]:
    """The last parts of folders, of every length."""
    ends: set[tuple[str, ...]] = set()
    for folder in folders:
        parts = _parts(folder)
        for start in range(len(parts)):
            ends.add(parts[start:])
    return ends


def known_folders(parts: Sequence[str], ends: set[tuple[str, ...]]) -> int:
    """How many of the last folders of a name are, together, in :func:`folder_ends`."""
    count = 0
    while count < len(parts) and tuple(parts[len(parts) - count - 1 :]) in ends:
        count += 1
    return count


def _common_end(path: Sequence[str], name: Sequence[str]) -> int:
    """How many parts at the end of two are the same."""
    count = 0
    while count < min(len(path), len(name)) and path[-count - 1] == name[-count - 1]:
        count += 1
    return count


def _readings(name: str) -> list[tuple[str, ...]]:
    """The parts of a name with ``\\`` as ``/``, with ``%20`` decoded, and without Label Studio's prefix."""
    slashes = name.replace("\\", "/")
    decoded = unquote(slashes, errors="surrogateescape").replace("\\", "/")
    # Label Studio has its local files under /data/local-files/?d=PATH.
    readings = [
        _parts(posixpath.normpath(text.strip().replace("?d=", "/"))) for text in (slashes, decoded)
    ]
    *folders, last = readings[1] or ("",)
    return (
        [*readings, (*folders, UPLOADED.sub("", last, count=1))]
        if UPLOADED.match(last)
        else readings
    )


def _parts(path: str) -> tuple[str, ...]:
    """Folders and name, in the form in which letters with accents are one character."""
    parts = unicodedata.normalize("NFC", path).split("/")
    return tuple(part for part in parts if part not in ("", ".", ".."))
