"""Match the image names in annotation files with the images of a dataset.

Programs write names as they are on their own machine: with backslashes (Windows), with ``%20``
(Label Studio), with folders that do not exist here. The rules:

1. A name under which a file exists means that file.
2. Any other name means the one image of the dataset's folder whose path shares the longest end
   with the name, such as ``b/c.png`` with ``/home/me/b/c.png``.
3. If several images share that end, or several names would mean the same image, none is matched.
4. If the folder in the name exists and has other images, none is matched either: the image was
   deleted, and one of the same name in another folder is a different image.

By rule 2, names are only matched with images inside of the dataset's folder.
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

Parts = tuple[str, ...]  # the folders of a path and the file name

ABSENT = "was not found"
LAYOUT_FOLDERS = {"images", "labels", "annotations"}  # names of folders that other code looks for
UPLOADED = re.compile("[0-9a-f]{8}-(?=.)")  # prefix that Label Studio adds to the name of an upload


class Match(NamedTuple):
    """The path of the image that a name means, or "" and the reason why there is none."""

    path: str
    fault: str = ""


class FolderCache:
    """Contents of folders. Each is listed once, which is faster than a look-up of each file."""

    def __init__(self) -> None:
        self._listed: dict[str, tuple[str, set[str], set[str]]] = {}

    def has(self, path: str) -> bool:
        """Whether a path exists."""
        folder, name = os.path.split(path)
        # Case-insensitive and normalizing file systems find names that differ from the listing.
        return name in self._list(folder)[1] or os.path.exists(path)

    def real(self, path: str) -> str:
        """Return a path, which need not exist, as an absolute one without links."""
        folder, name = os.path.split(path)
        real, _, links = self._list(folder)
        if name in links or name in ("", os.curdir, os.pardir):
            return _real(path)
        return os.path.join(real, name)

    def _list(self, folder: str) -> tuple[str, set[str], set[str]]:
        """Return the real path of a folder, the names in it, and those of them that are links."""
        if folder not in self._listed:
            names, links = set(), set()
            try:
                with os.scandir(folder or os.curdir) as entries:
                    for entry in entries:
                        names.add(entry.name)
                        if entry.is_symlink():
                            links.add(entry.name)
            except (OSError, ValueError):  # it does not exist, or is not a valid path
                pass
            self._listed[folder] = _real(folder), names, links
        return self._listed[folder]


def _real(path: str) -> str:
    try:
        return os.path.realpath(path)
    except (OSError, ValueError):  # not a valid path, such as one with a null byte
        return path


def files_below(root: str | os.PathLike[str]) -> Iterator[str]:
    """Yield the paths of all files below a folder, relative to it, without hidden ones.

    Links to folders are followed. A folder that can be reached in several ways is listed once:
    under the path with the most names of :data:`LAYOUT_FOLDERS`, else under the one without links.

    Raises:
        UserError: a folder cannot be listed, so that its contents are unknown.
    """
    root = os.fspath(root)
    # Both are by the real path of the folder, which identifies it.
    paths: dict[str, str] = {}  # relative to the root
    names: dict[str, list[str]] = {}  # of its files
    starts = [root]  # the root, and the links to folders, which are appended during the loop
    for start in starts:
        real = os.path.realpath(start)
        if real in paths:  # it was already listed under another path
            parent = os.path.realpath(os.path.dirname(start))
            _prefer(os.path.relpath(start, root), real, paths, parent)
            continue
        for folder, folders, files in os.walk(start, onerror=_raise_unless_gone):
            real = os.path.realpath(folder)
            if real in paths:
                folders.clear()  # os.walk does not descend
                continue
            # Without this permission, names can be listed but files cannot be opened.
            if files and not os.access(folder, os.X_OK):
                raise UserError(f"cannot open the files in {folder}; make it searchable (chmod +x)")
            paths[real] = os.path.relpath(folder, root)
            names[real] = [name for name in files if not name.startswith(".")]
            folders[:] = sorted(filter(_is_visible, folders))
            for name in folders:  # os.walk does not follow links
                path = os.path.join(folder, name)
                if os.path.islink(path):
                    starts.append(path)
    for real, folder in paths.items():
        for name in names[real]:
            yield os.path.normpath(os.path.join(folder, name))


def _is_visible(folder: str) -> bool:
    """Whether the contents of a folder of this name belong to the dataset."""
    # lost+found, at the root of a disk, can only be listed by the superuser.
    return not folder.startswith(".") and folder != "lost+found"


def _prefer(link: str, real: str, paths: dict[str, str], parent: str) -> None:
    """Replace the path of a folder by that of a link to it, if the link's has more layout folders.

    The paths of its subfolders change with it. A link to a folder that contains the link itself is
    ignored.

    Args:
        link: path of the link, relative to the root.
        real: real path of the folder.
        paths: of all folders, relative to the root, by their real paths; changed in place.
        parent: real path of the folder that contains the link.
    """
    known = paths[real]
    is_loop = f"{parent}{os.sep}".startswith(os.path.join(real, ""))
    if is_loop or _count_layout_folders(link) <= _count_layout_folders(known):
        return
    for folder, path in paths.items():
        if f"{path}{os.sep}".startswith(f"{known}{os.sep}"):
            paths[folder] = link + path[len(known) :]


def _count_layout_folders(path: str) -> int:
    return sum(part.lower() in LAYOUT_FOLDERS for part in path.split(os.sep))


def cannot_list(error: OSError) -> UserError:
    remedy = "make it readable, or move it out of the dataset"
    return UserError(f"cannot list {error.filename}: {error.strerror}; {remedy}")


def _raise_unless_gone(error: OSError) -> None:
    """Error handler of ``os.walk``: ignore folders that were removed in the meantime."""
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        raise cannot_list(error)


def match(
    names: Iterable[str], paths: Iterable[str], taken: Collection[str] = ()
) -> dict[str, Match]:
    """Find the images that are meant by names which do not exist as written.

    Args:
        names: as written.
        paths: of the files of a folder, relative to it.
        taken: the paths of images that exist under other names as written.

    Returns:
        The image of each name, or the reason why there is none.
    """
    by_end, image_folders = _index(paths)
    longest = max(map(len, by_end), default=0)
    existing_ends = folder_ends(image_folders)
    found: dict[str, list[str]] = {}  # the images that share the longest end with each name
    deleted: dict[str, str] = {}
    for name in names:
        images, parts = _with_longest_end(name, by_end, longest)
        if images:
            # `shared` includes the file name. If as many folders of the name exist as that, then
            # the name's own folder exists, and the image that was found is in another one.
            shared = _common_end(_parts(images[0]), parts)
            if known_folders(parts[:-1], existing_ends) >= shared:
                other = f"{images[0]} may be another image"
                deleted[name] = f"is not in that folder, which exists; {other}"
                images = []
        found[name] = images
    # Names that differ only in how they are encoded count as one name.
    names_of: dict[str, set[Parts]] = {}
    for name, images in found.items():
        for path in images:
            names_of.setdefault(path, set()).add(_readings(name)[1])
    matches = {}
    for name, images in found.items():
        if name in deleted:
            matches[name] = Match("", deleted[name])
        elif not images:
            matches[name] = Match("", ABSENT)
        elif len(images) > 1:
            several = f"{', '.join(images[:3])}{' or more' if len(images) > 3 else ''}"
            matches[name] = Match("", f"may be {several}")
        elif images[0] in taken or len(names_of[images[0]]) > 1:
            matches[name] = Match("", f"{images[0]} may belong to another name")
        else:
            matches[name] = Match(images[0])
    return matches


def _index(paths: Iterable[str]) -> tuple[dict[Parts, list[str]], set[str]]:
    """Return the paths by each of their ends, and the folders that contain images.

    ``a/b/c.png`` has the ends ``(a, b, c.png)``, ``(b, c.png)`` and ``(c.png,)``.
    """
    by_end: dict[Parts, list[str]] = {}
    image_folders: set[str] = set()
    for path in paths:
        if os.path.splitext(path)[1].lower() in SUFFIXES:
            image_folders.add(os.path.dirname(path))
        parts = _parts(path)
        for start in range(len(parts)):
            by_end.setdefault(parts[start:], []).append(path)
    return by_end, image_folders


def _with_longest_end(
    name: str, by_end: dict[Parts, list[str]], longest: int
) -> tuple[list[str], Parts]:
    """Return the paths that share the longest end with a name, and the reading of it that does.

    Args:
        name: as written.
        by_end: as returned by :func:`_index`.
        longest: length of its longest end.
    """
    for parts in _readings(name):
        for length in range(min(longest, len(parts)), 0, -1):
            paths = by_end.get(parts[-length:])
            if paths:
                # A path that equals the complete name wins over longer paths that end in it.
                return [path for path in paths if _parts(path) == parts] or paths, parts
    return [], ()


def folder_ends(folders: Iterable[str]) -> set[Parts]:
    """Return the ends of the paths of folders: ``(a, b)`` and ``(b,)`` of ``a/b``."""
    ends: set[Parts] = set()
    for folder in folders:
        parts = _parts(folder)
        for start in range(len(parts)):
            ends.add(parts[start:])
    return ends


def known_folders(parts: Sequence[str], ends: set[Parts]) -> int:
    """Return how many of the last folders of a name are, together, in :func:`folder_ends`."""
    count = 0
    while count < len(parts) and tuple(parts[len(parts) - count - 1 :]) in ends:
        count += 1
    return count


def _common_end(path: Sequence[str], name: Sequence[str]) -> int:
    """Return how many parts at the end of a path and of a name are the same."""
    count = 0
    while count < min(len(path), len(name)) and path[-count - 1] == name[-count - 1]:
        count += 1
    return count


def _readings(name: str) -> list[Parts]:
    """Return the parts of a name, in each way that it may be read, the most literal one first.

    1. With backslashes as separators.
    2. Percent-decoded as well.
    3. Without Label Studio's prefix as well, if there is one.
    """
    slashes = name.replace("\\", "/")
    decoded = unquote(slashes, errors="surrogateescape").replace("\\", "/")
    readings = []
    for text in (slashes, decoded):
        # Label Studio serves local files at /data/local-files/?d=PATH.
        path = text.strip().replace("?d=", "/")
        readings.append(_parts(posixpath.normpath(path)))
    *folders, last = readings[1] or ("",)
    if UPLOADED.match(last):
        readings.append((*folders, UPLOADED.sub("", last, count=1)))
    return readings


def _parts(path: str) -> Parts:
    """Split a path into folders and file name, with accented letters as one character (NFC)."""
    parts = unicodedata.normalize("NFC", path).split("/")
    return tuple(part for part in parts if part not in ("", ".", ".."))
