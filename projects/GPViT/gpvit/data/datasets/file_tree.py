"""The files of a dataset, found by walking its folder once, and their kinds."""

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

# Words in the names of files and folders, by the split that they stand for.
SPLIT_WORDS = {
    "train": {"train", "training", "trainset"},
    "val": {"val", "valid", "validation", "valset"},
    "test": {"test", "testing", "testset"},
}
# Suffixes of images that gpvit.data.image_io does not read.
UNREAD = {
    *(".avif", ".avifs", ".dcm", ".dds", ".dib", ".exr", ".hdr", ".heic", ".heif", ".hif", ".ico"),
    *(".jls", ".jxl", ".jxr", ".pcx", ".psd", ".qoi", ".sgi", ".svg", ".tga"),
    *(".arw", ".cr2", ".cr3", ".dng", ".nef", ".orf", ".raf", ".raw", ".rw2"),
}
YAML = {".yaml", ".yml"}
BEGINNING = 1 << 16  # bytes of a JSON file in which labelme's "shapes" is looked for


def split_of(path: PurePath) -> str | None:
    """Return the split that a path names by one of :data:`SPLIT_WORDS`, or None.

    The name of the file counts first, then that of each folder above it. The first of them that
    contains a word decides; if it contains words of two splits, the result is None.
    """
    for part in reversed(path.parts):
        # Words are runs of letters: "instances_val2017" contains "val", "evaluation" does not.
        words = set(re.findall("[a-z]+", part.lower()))
        found = [split for split, names in SPLIT_WORDS.items() if words & names]
        if found:
            return found[0] if len(found) == 1 else None
    return None


class Tree:
    """The files below a folder, without hidden ones; see :func:`.image_names.files_below`.

    All sets of paths are dicts without values, which keep the order.

    Attributes:
        root: the folder.
        paths: sorted paths of the files, relative to the root.
        by_name: the paths by file name.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.by_name: dict[str, list[str]] = {}
        paths = list(image_names.files_below(root))
        for path in paths:
            self.by_name.setdefault(os.path.basename(path), []).append(path)
        self.paths = dict.fromkeys(sorted(paths))

    @functools.cached_property
    def images(self) -> dict[str, None]:
        """The sorted paths of images."""
        return self._with_suffix(SUFFIXES)

    @functools.cached_property
    def image_folders(self) -> set[str]:
        """The folders that directly contain images."""
        return set(map(os.path.dirname, self.images))

    @functools.cached_property
    def image_folder_ends(self) -> set[tuple[str, ...]]:
        """The ends of these folders, see :func:`.image_names.folder_ends`."""
        return image_names.folder_ends(self.image_folders)

    @functools.cached_property
    def unread(self) -> dict[str, None]:
        """The sorted paths of images in unsupported formats."""
        return self._with_suffix(UNREAD)

    def _with_suffix(self, suffixes: set[str]) -> dict[str, None]:
        return {path: None for path in self.paths if os.path.splitext(path)[1].lower() in suffixes}

    @functools.cached_property
    def folders(self) -> dict[str, str]:
        """The real path of each folder that directly contains files."""
        folders = set(map(os.path.dirname, self.paths))
        return {folder: os.path.realpath(self.root / folder) for folder in folders}

    @functools.cached_property
    def _by_normalized(self) -> dict[str, str | None]:
        """The paths by their :func:`normalized`; None if several paths have the same form."""
        forms: dict[str, str | None] = {}
        for path in self.paths:
            key = normalized(path)
            forms[key] = None if key in forms else path
        return forms

    @functools.cached_property
    def by_stem(self) -> dict[str, list[str]]:
        """The paths of images by file name without suffix."""
        found: dict[str, list[str]] = {}
        for path in self.images:
            found.setdefault(PurePath(path).stem, []).append(path)
        return found

    def below(self, place: str) -> list[str]:
        """Return the paths of images in a folder and its subfolders.

        Supported formats come first, then the unsupported ones.
        """
        real = os.path.realpath(place)
        inside = set()
        for folder, real_folder in self.folders.items():
            if real_folder == real or real_folder.startswith(os.path.join(real, "")):
                inside.add(folder)
        return [path for path in [*self.images, *self.unread] if os.path.dirname(path) in inside]

    def inside(self, place: str) -> str | None:
        """Return the path of a file or folder relative to the root, or None if it is outside."""
        path = os.path.normpath(place)
        for root in (os.path.abspath(self.root), os.path.realpath(self.root)):
            if path == root or path.startswith(os.path.join(root, "")):
                return os.path.relpath(path, root)
        return None

    def find(self, written: str, folders: Iterable[str], roots: Iterable[str]) -> str | None:
        """Return the path of the file that is meant by a path in an annotation file, or None.

        The written path may be from another machine: with the separators of Windows, with leading
        folders that do not exist here, percent-encoded, or in another Unicode form. The result is
        always inside of the root.

        Args:
            written: absolute or relative.
            folders: base folders of a relative path, relative to the root, best first.
            roots: folders that replace the leading folders of the written path, in the same form.
        """
        if os.path.isabs(written):
            inside = self.inside(written)
            if inside in self.paths:
                return inside
        texts = dict.fromkeys([written, PureWindowsPath(written).as_posix()])
        # An exact match of any candidate wins over a match of the first candidate by its form.
        for text in texts:
            for path in self._candidates(text, folders, roots):
                if path in self.paths:
                    return path
        for text in texts:
            for path in self._candidates(text, folders, roots):
                found = self._by_normalized.get(normalized(path))
                if found is not None:
                    return found
        return None

    def _candidates(self, text: str, folders: Iterable[str], roots: Iterable[str]) -> Iterator[str]:
        """Yield the paths that a written path may mean, best first.

        The path as written comes first, then without the first folder, without the first two, and
        so on. Folders at its end that exist here and contain images are never removed, since an
        image of the same name in another folder is a different one.
        """
        for folder in folders:
            yield os.path.normpath(os.path.join(folder, text))
        parts = [part for part in text.split("/") if part not in ("", ".", "..")]
        kept = image_names.known_folders(parts[:-1], self.image_folder_ends)
        for start in range(len(parts) - kept):
            for root in roots:
                yield os.path.normpath(os.path.join(root, *parts[start:]))

    def json_files(self) -> list[Path]:
        """Return the JSON files that may contain annotations.

        In COCO's own layout, ``annotations/instances_*.json``, these only: the other files there
        (captions, keypoints) are large.
        """
        paths = []
        instances = []
        for path in self.paths:
            file = self.root / path
            if path.lower().endswith(".json") and file.is_file():
                paths.append(file)
                folders = self.relative(file).parts[:-1]
                if folders == ("annotations",) and file.name.startswith("instances_"):
                    instances.append(file)
        return instances or paths

    def yaml_files(self) -> list[Path]:
        files = [self.root / path for path in self._with_suffix(YAML)]
        return [file for file in files if file.is_file()]

    def kind(self, path: Path) -> str:
        """Return the kind of a JSON file: "COCO", "labelme", "broken" or "other"."""
        # labelme writes NAME.json for the image NAME.jpg. "imageData", which may hold the complete
        # image, comes after "shapes", so that it need not be parsed.
        if path.stem in self.by_stem:
            try:
                with path.open("rb") as file:
                    if b'"shapes"' in file.read(BEGINNING):
                        return "labelme"
            except OSError:
                return "broken"
        return inspect_json(path).kind

    def relative(self, path: Path) -> PurePath:
        return path.relative_to(self.root)

    def preview(self, paths: Sequence[Path]) -> str:
        return preview(list(map(self.relative, paths)))

    def contents(self) -> str:
        """Return the numbers of files by suffix, for a message."""
        counts: Counter[str] = Counter()
        for path in self.paths:
            suffix = PurePath(path).suffix or "files"
            counts["images" if path in self.images else suffix] += 1
        listed = [f"{count} {kind}" for kind, count in counts.most_common(5)]
        return ", ".join(listed) or "an empty folder"


def normalized(path: str) -> str:
    """Return a path percent-decoded and in Unicode's NFC, for comparisons."""
    return unicodedata.normalize("NFC", urllib.parse.unquote(path, errors="surrogateescape"))


class Content(NamedTuple):
    """The contents of a JSON file.

    kind: "COCO", "labelme", "broken" (cannot be read or parsed) or "other".
    names: the image names of a COCO file.
    fault: why it is not a COCO file.
    """

    kind: str
    names: Sequence[str] = ()
    fault: str = ""


def inspect_json(path: Path) -> Content:
    """Return the kind of a JSON file. The result is cached until the file changes."""
    status = path.stat()
    return _inspect_json(path, status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=16)
def _inspect_json(path: Path, size: int, changed: int) -> Content:
    """Parse a JSON file. Size and time of the last change are only keys of the cache."""
    try:
        content = coco.load_json(path)
    except OSError as error:
        return Content("broken", fault=f"cannot be read ({error.strerror})")
    except (ValueError, RecursionError) as error:
        return Content("broken", fault=f"is not valid JSON ({' '.join(str(error).split())})")
    if not isinstance(content, dict):
        return Content("other", fault="is not a JSON object")
    if isinstance(content.get("images"), list) and {"annotations", "categories"} <= content.keys():
        names = []
        for image in content["images"]:
            name = image.get("file_name") if isinstance(image, dict) else None
            if isinstance(name, str) and name:
                names.append(name)
        return Content("COCO", names)
    kind = "labelme" if isinstance(content.get("shapes"), list) else "other"
    return Content(kind, fault='has no "images", "annotations" and "categories"')
