"""The files of a dataset, found by one walk, and what they are."""

import functools
import os
import re
import unicodedata
import urllib.parse
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePath, PureWindowsPath
from typing import NamedTuple

from ...utils.errors import preview
from ..image_io import SUFFIXES
from . import coco, image_names

WORDS = {
    "train": {"train", "training", "trainset"},
    "val": {"val", "valid", "validation", "valset"},
    "test": {"test", "testing", "testset"},
}
# Of images that gpvit.data.image_io does not read.
UNREAD = {
    *(".avif", ".avifs", ".dcm", ".dds", ".dib", ".exr", ".hdr", ".heic", ".heif", ".hif", ".ico"),
    *(".jls", ".jxl", ".jxr", ".pcx", ".psd", ".qoi", ".sgi", ".svg", ".tga"),
    *(".arw", ".cr2", ".cr3", ".dng", ".nef", ".orf", ".raf", ".raw", ".rw2"),
}
YAML = {".yaml", ".yml"}


def split_of(path: PurePath) -> str | None:
    """The one split of WORDS that a name says, or else that of the nearest folder above it that says one."""
    for part in reversed(path.parts):
        words = set(re.findall("[a-z]+", part.lower()))
        found = [split for split, names in WORDS.items() if words & names]
        if found:
            return found[0] if len(found) == 1 else None
    return None


class Tree:
    """The files of a folder and its folders, found by one walk; what is hidden, or was seen through a link, is not.

    Attributes:
        root: the folder.
        paths: of the files, relative to it, in order.
        by_name: the paths that end in a file name.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.by_name: dict[str, list[str]] = {}
        for path in image_names.files_below(root):
            self.by_name.setdefault(os.path.basename(path), []).append(path)
        self.paths = dict.fromkeys(
            sorted(path for paths in self.by_name.values() for path in paths)
        )

    @functools.cached_property
    def pictures(self) -> dict[str, None]:
        """The paths of images, in order."""
        return self._with_suffix(SUFFIXES)

    @functools.cached_property
    def picture_folders(self) -> set[str]:
        """The folders that have images in them, not only in folders below."""
        return {os.path.dirname(path) for path in self.pictures}

    @functools.cached_property
    def picture_folder_ends(self) -> set[tuple[str, ...]]:
        """The last parts of these, of every length."""
        return image_names.folder_ends(self.picture_folders)

    @functools.cached_property
    def unread(self) -> dict[str, None]:
        """The paths of images of kinds that are not read, in order."""
        return self._with_suffix(UNREAD)

    def _with_suffix(self, suffixes: set[str]) -> dict[str, None]:
        return {path: None for path in self.paths if os.path.splitext(path)[1].lower() in suffixes}

    @functools.cached_property
    def folders(self) -> dict[str, str]:
        """Where each folder with files really is, by its path."""
        return {
            folder: os.path.realpath(self.root / folder)
            for folder in {os.path.dirname(path) for path in self.paths}
        }

    @functools.cached_property
    def _by_form(self) -> dict[str, str | None]:
        """The paths by what :func:`form` gives of them; None if it gives that of several."""
        forms: dict[str, str | None] = {}
        for path in self.paths:
            forms[form(path)] = None if form(path) in forms else path
        return forms

    def below(self, place: str) -> list[str]:
        """The paths of images, also of kinds that are not read, in a folder and those below it."""
        real = os.path.realpath(place)
        inside = {
            path
            for path, found in self.folders.items()
            if found == real or found.startswith(os.path.join(real, ""))
        }
        return [
            path
            for paths in (self.pictures, self.unread)
            for path in paths
            if os.path.dirname(path) in inside
        ]

    def inside(self, place: str) -> str | None:
        """The path of a folder or file relative to the root; None if it lies outside of it."""
        path = os.path.normpath(place)
        for root in (os.path.abspath(self.root), os.path.realpath(self.root)):
            if path == root or path.startswith(os.path.join(root, "")):
                return os.path.relpath(path, root)
        return None

    def find(self, said: str, folders: Iterable[str], roots: Iterable[str]) -> str | None:
        """The path of the file that is meant by one that was written elsewhere.

        Windows' separators, folders in front that are not here, and names that are percent-encoded or in
        another Unicode form are understood. A file outside of the root is never found.

        Args:
            said: absolute or relative.
            folders: relative to the root, which a relative path may be relative to, best first.
            roots: the same, which may stand for folders in front of it.
        """
        if os.path.isabs(said) and (inside := self.inside(said)) in self.paths:
            return inside
        texts = dict.fromkeys([said, PureWindowsPath(said).as_posix()])
        for text in texts:
            for path in self._meant(text, folders, roots):
                if path in self.paths:
                    return path
        for text in texts:
            for path in self._meant(text, folders, roots):
                found = self._by_form.get(form(path))
                if found is not None:
                    return found
        return None

    def _meant(self, text: str, folders: Iterable[str], roots: Iterable[str]) -> Iterator[str]:
        """Which paths are meant by one, best first: as it stands, and without more and more of the folders in front.

        Folders that are here, with images, are not left out: in another one is another image of that name.
        """
        for folder in folders:
            yield os.path.normpath(os.path.join(folder, text))
        parts = [part for part in text.split("/") if part not in ("", ".", "..")]
        here = image_names.known_folders(parts[:-1], self.picture_folder_ends)
        for number in range(len(parts) - here):
            for root in roots:
                yield os.path.normpath(os.path.join(root, *parts[number:]))

    @functools.cached_property
    def by_stem(self) -> dict[str, list[str]]:
        """The paths of images by their names without suffix."""
        found: dict[str, list[str]] = {}
        for path in self.pictures:
            found.setdefault(PurePath(path).stem, []).append(path)
        return found

    def candidates(self) -> list[Path]:
        """The JSON files; of COCO's own annotations only those of objects, as the others are large."""
        paths = [
            self.root / path
            for path in self.paths
            if path.lower().endswith(".json") and (self.root / path).is_file()
        ]
        instances = [
            path for path in paths if tuple(self.relative(path).parts[:-1]) == ("annotations",)
        ]
        return [path for path in instances if path.name.startswith("instances_")] or paths

    def yaml_files(self) -> list[Path]:
        paths = [
            self.root / path for path in self.paths if os.path.splitext(path)[1].lower() in YAML
        ]
        return [path for path in paths if path.is_file()]

    def kind(self, path: Path) -> str:
        """What a JSON file is: "COCO", "labelme", "broken" or "" for others."""
        if (
            path.stem in self.by_stem
        ):  # labelme's may have the whole picture in them, after the shapes
            try:
                with path.open("rb") as file:
                    if b'"shapes"' in file.read(1 << 16):
                        return "labelme"
            except OSError:
                return "broken"
        return look_into(path).kind

    def relative(self, path: Path) -> PurePath:
        return path.relative_to(self.root)

    def preview(self, paths: Sequence[Path]) -> str:
        return preview([str(self.relative(path)) for path in paths])

    def contents(self) -> str:
        """What is there, in a few words."""
        kinds = Counter(
            "images" if path in self.pictures else PurePath(path).suffix for path in self.paths
        )
        return (
            ", ".join(f"{count} {kind or 'files'}" for kind, count in kinds.most_common(5))
            or "an empty folder"
        )


def form(path: str) -> str:
    """A path in the form in which those that differ only by percent-encoding or in Unicode are the same."""
    return unicodedata.normalize("NFC", urllib.parse.unquote(path, errors="surrogateescape"))


class Content(NamedTuple):
    """What a JSON file is: "COCO" with the names of its images, "labelme", or "" or "broken" and why it is neither."""

    kind: str
    names: Sequence[str] = ()
    fault: str = ""


def look_into(path: Path) -> Content:
    """Tells what a JSON file is. As long as it does not change, it is only read once."""
    status = path.stat()
    return _look_into(path, status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=16)
def _look_into(path: Path, size: int, changed: int) -> Content:
    try:
        content = coco.load_json(path)
    except OSError as error:
        return Content("broken", fault=f"cannot be read ({error.strerror})")
    except (ValueError, RecursionError) as error:
        return Content("broken", fault=f"is no JSON ({' '.join(str(error).split())})")
    if not isinstance(content, dict):
        return Content("", fault="is no JSON object")
    if isinstance(content.get("images"), list) and {"annotations", "categories"} <= content.keys():
        names = [image.get("file_name") for image in content["images"] if isinstance(image, dict)]
        return Content("COCO", [name for name in names if isinstance(name, str) and name])
    kind = "labelme" if isinstance(content.get("shapes"), list) else ""
    return Content(kind, fault='has no "images", "annotations" and "categories"')
