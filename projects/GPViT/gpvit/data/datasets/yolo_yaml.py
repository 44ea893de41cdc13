"""The YAML file of a YOLO dataset: class names, and the images of the train, val and test splits.

``train``, ``val`` and ``test`` are interpreted like in Ultralytics: a folder including its
subfolders, a text file with an image per line, or a list of these; relative to ``path``, or to the
folder of the YAML file. Paths written on another machine, with leading folders that do not exist
here or with Windows separators, are mapped to the files of this dataset. An entry that cannot be
resolved is an error; nothing is replaced silently.
"""

import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PureWindowsPath
from typing import TYPE_CHECKING, Any, NamedTuple

from ...utils.errors import UserError, preview
from ...utils.text import PATH_LIMIT, decoded, one_line, short_repr
from ...utils.yaml_io import read_yaml

if TYPE_CHECKING:
    from .file_tree import Tree

# Splits, and the keys that define them.
KEYS = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}

# A kind of problem in gpvit.data.datasets.coco_rules.RULES, its details, and the path of the image.
SplitFault = tuple[str, str, str]


class YamlSplits(NamedTuple):
    """The splits that the YAML file defines.

    of: the split of each image that it names.
    defined: the splits that it names images of.
    unsupported: files that it names and that are not in a supported image format, such as AVIF.
    notes: the decisions made, to be shown to the user.
    faults: problems with the entries.
    """

    of: dict[str, str]
    defined: set[str]
    unsupported: set[str]
    notes: list[str]
    faults: list[SplitFault]


class Description(NamedTuple):
    """The YAML file of a YOLO dataset, with the class names and all its content."""

    file: Path
    names: list[str]
    content: dict[Any, Any]

    @property
    def folder(self) -> str:
        return os.path.abspath(self.file.parent)

    def root(self) -> Path:
        """Return the folder that contains everything that the file names.

        This is its own folder, or the nearest folder above the others.

        Raises:
            UserError: there is none.
        """
        places = self._bases()[:-1]
        for items in self._entries().values():
            for item in items:
                places += self._existing(item)[:1]
        outside = [_dataset_folder(place) for place in places if not _lies_in(place, self.folder)]
        if not outside:
            return self.file.parent
        inside = [self.folder] if len(outside) < len(places) else []
        root = os.path.commonpath(list(map(os.path.realpath, outside + inside)))
        if root == os.path.dirname(root):  # the root of the file system
            raise UserError(
                f"{self.file}: its images are in several places, {preview(outside)}; move them "
                "into one folder"
            )
        return Path(root)

    def splits(self, tree: "Tree") -> YamlSplits:
        """Return the splits of images that the file defines.

        Args:
            tree: the files of the dataset.

        Raises:
            UserError: an entry cannot be resolved. An entry of ``test`` is ignored with a note if
                there is ``val``.
        """
        groups: dict[str, dict[str, None]] = {}
        unsupported: set[str] = set()
        notes = [self._unknown_path()] if self.content.get("path") and not self._path() else []
        faults: list[SplitFault] = []
        entries = self._entries()
        for split, items in entries.items():
            try:
                found, notes_of_split, faults_of_split = self._files_of(split, items, tree)
            except UserError as error:
                if split != "test" or "val" not in entries:
                    raise
                notes.append(f"not used: {error}")
                continue
            groups[split] = {path: None for path in found if path in tree.images}
            unsupported |= found.keys() - tree.images.keys()
            notes += notes_of_split
            faults += faults_of_split
        of, note, overlap = _disjoint(groups)
        notes += [f"{self.file.name} names {note}"] if note else []
        return YamlSplits(of, set(groups), unsupported, notes, faults + overlap)

    def _entries(self) -> dict[str, list[Any]]:
        """Return the entries of each split that the file defines, as lists."""
        content = {str(key).lower(): value for key, value in self.content.items()}
        entries: dict[str, list[Any]] = {}
        for split, keys in KEYS.items():
            for key in keys:
                value = content.get(key)
                if value not in (None, ""):
                    items = value if isinstance(value, list) else [value]
                    entries.setdefault(split, []).extend(items)
        return entries

    def _files_of(
        self, split: str, items: list[Any], tree: "Tree"
    ) -> tuple[dict[str, None], list[str], list[SplitFault]]:
        """Return the files that the entries of a split name, notes, and faults.

        The files include those of unsupported image formats.
        """
        if not items:
            raise self._error(split, "an empty list")
        found: dict[str, None] = {}
        notes: list[str] = []
        faults: list[SplitFault] = []
        for item in items:
            place = self._place(split, item, notes)
            if os.path.isdir(place):
                paths = tree.below(place)
                if tree.images.keys().isdisjoint(paths):
                    reason = "has no images" if _is_inside(place, tree) else _outside(tree)
                    raise self._error(split, f"{one_line(item)}, which {reason}")
            elif os.path.isfile(place) and place.lower().endswith(".txt"):
                times = self._listed(split, place, tree, notes)
                paths = list(times)
                for path, count in times.items():
                    if count > 1:
                        detail = f"{one_line(item)}: {one_line(path)}"
                        faults.append(("named twice", detail, path))
                if tree.images.keys().isdisjoint(paths):
                    reason = f"lists only images of unsupported formats: {preview(paths)}"
                    raise self._error(split, f"{one_line(item)}, which {reason}")
            else:
                reason = "is neither a folder nor a text list (.txt)"
                raise self._error(split, f"{one_line(item)}, which {reason}")
            found |= dict.fromkeys(paths)
        return found, notes, faults

    def _place(self, split: str, item: Any, notes: list[str]) -> str:
        """Return the folder or file that an entry names."""
        if not isinstance(item, str) or not item.strip():
            raise self._error(split, f"{short_repr(item)}, which is not a path")
        entry = one_line(item)
        if "://" in item:
            raise self._error(split, f"{entry}, a URL; download it, and give its folder")
        existing = self._existing(item)
        if not existing:
            is_glob = re.search(r"[*?\[]", item)
            hint = "; glob patterns are not supported" if is_glob else ""
            tried = preview([os.path.join(base, "") for base in self._bases()])
            raise self._error(split, f"{entry}, which does not exist (searched from {tried}){hint}")
        if existing[0] not in self._exact(item):
            path = os.path.relpath(existing[0], self.folder)
            notes.append(f"{self.file.name}: {split}: {entry} is interpreted as {path}")
        return existing[0]

    def _existing(self, item: Any) -> list[str]:
        """Return the existing files or folders that an entry may name, best first."""
        if not isinstance(item, str):
            return []
        exact = list(filter(os.path.exists, self._exact(item)))
        return exact or list(filter(os.path.exists, self._moved(item)))

    def _exact(self, item: str) -> list[str]:
        """Return the paths that an entry names literally, best first."""
        texts = _with_slashes(item)
        # In exports of Roboflow, paths begin one folder too high ("../train/images"): they are
        # right, and inside of the folder, without the leading "./" and "../".
        texts += [re.sub(r"^(\.\.?/)+", "", text) for text in texts]
        places: list[str] = []
        for base in self._bases():
            prefix = os.path.join(base, "")
            named = [os.path.normpath(os.path.join(base, text)) for text in texts]
            below = [place for place in named if f"{place}{os.sep}".startswith(prefix)]
            places += [*below, *named]
        return places

    def _moved(self, item: str) -> Iterator[str]:
        """Yield the paths of an entry if the dataset was moved here from elsewhere.

        These are the parts of the entry after the name of this folder, or the last parts of an
        absolute path.
        """
        for text in _with_slashes(item):
            absolute = text.startswith("/") or PureWindowsPath(text).drive != ""
            parts = [part for part in text.split("/") if part not in ("", ".", "..")]
            for number in range(1, len(parts)):
                same_folder = parts[number - 1] == os.path.basename(self.folder)
                # Not "images" alone: every dataset has it, and it may hold all splits.
                if same_folder or (absolute and parts[number:] != ["images"]):
                    yield os.path.join(self.folder, *parts[number:])

    def _bases(self) -> list[str]:
        """Return the folders that paths are relative to, best first.

        These are the folder that ``path`` names, if it exists, and the folder of the file.
        """
        path = self._path()
        return [self.folder] if path in (None, self.folder) else [path, self.folder]

    def _path(self) -> str | None:
        """Return the folder that ``path`` names, or None if it does not exist.

        It is relative to the folder of the file, or to the current one as in Ultralytics.
        """
        entry = self.content.get("path")
        texts = _with_slashes(entry) if isinstance(entry, str) and entry else []
        for base in (self.folder, os.path.abspath("")):
            for text in texts:
                place = os.path.join(base, text)
                if os.path.isdir(place):
                    return os.path.normpath(place)
        return None

    def _listed(self, split: str, file: str, tree: "Tree", notes: list[str]) -> Counter[str]:
        """Return the files of the tree that a text list names, and how many times each."""
        if not _is_inside(file, tree):
            raise self._error(split, f"{file}, which {_outside(tree)}")
        try:
            text = decoded(Path(file).read_bytes())
        except OSError as error:
            raise self._error(split, f"{file}, which cannot be read ({error.strerror})") from None
        # Not str.splitlines, which also splits at characters that occur in file names.
        lines = [line for line in re.split(r"\r\n|\r|\n", text) if line.strip()]
        found = self._find_lines(lines, os.path.dirname(file), tree)
        missing = [line for line, path in found.items() if path is None]
        if len(missing) == len(found):
            problem = "it is empty"
            if found:
                problem = f"none of its {len(found)} images is in {tree.root}: {preview(missing)}"
            raise self._error(split, f"{os.path.basename(file)}: {problem}")
        if missing:
            list_name = f"{self.file.name}: {split}: {os.path.basename(file)}"
            count = f"{len(missing)} of {len(found)} images"
            notes.append(f"{list_name}: left out: {count} that do not exist: {preview(missing)}")
        times: Counter[str] = Counter()
        for line in lines:
            path = found[line]
            if path is not None:
                times[path] += 1
        return times

    def _find_lines(self, lines: list[str], folder: str, tree: "Tree") -> dict[str, str | None]:
        """Return the file of the tree for each line of a text list in this folder, or None."""
        roots: dict[str, None] = {}
        for base in (*self._bases(), os.path.abspath(tree.root)):
            root = tree.inside(base)
            if root is not None:
                roots[root] = None
        list_folder = tree.inside(folder)
        # A line is relative to the folder of the list, or else to one of the roots.
        folders = roots if list_folder is None else {list_folder: None} | roots
        found = {}
        for line in dict.fromkeys(lines):
            path = tree.find(line, folders, roots)
            found[line] = path or tree.find(line.strip(), folders, roots)
        return found

    def _error(self, split: str, problem: str) -> UserError:
        return UserError(
            f"{self.file}: {split} is {one_line(problem, 3 * PATH_LIMIT)}; correct or remove that "
            "line (without it, images are split by the names of their folders, or at random)"
        )

    def _unknown_path(self) -> str:
        path = one_line(self.content["path"], PATH_LIMIT)
        return (
            f"{self.file.name}: path: {path} does not exist; its folders are searched for in "
            f"{self.file.parent}"
        )


def describe(yaml_file: Path) -> Description:
    """Read the YAML file of a YOLO dataset.

    Raises:
        UserError: it cannot be read, or has no class names, numbered from 0; the message has the
            reason.
    """
    try:
        text = yaml_file.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {yaml_file}: {error.strerror}") from None
    content = read_yaml(text, f"{yaml_file} is not valid YAML", numbers=False)
    if not isinstance(content, dict):
        raise UserError(
            f'{yaml_file}: it has no keys; it needs "names" of classes, numbered from 0'
        )
    names, fault = _names(content)
    if fault:
        raise UserError(f"{yaml_file}: {fault}")
    return Description(yaml_file, names, content)


def _names(content: dict[Any, Any]) -> tuple[list[str], str]:
    """Return the class names, and what is wrong with them or ""."""
    names = content.get("names")
    if names is None:
        return [], 'it has no "names" of classes, numbered from 0'
    if isinstance(names, dict):  # keys may be integers or strings
        by_number = {str(key): name for key, name in names.items()}
        numbers = list(map(str, range(len(names))))
        if names and by_number.keys() != set(numbers):
            found = preview(list(names))
            return [], f"its names are numbered {found}, not from 0 to {len(names) - 1}"
        names = list(map(by_number.get, numbers))
    if not isinstance(names, list) or not names:
        return [], f'its "names" are {short_repr(names)}, not a list of class names'
    for number, name in enumerate(names):
        # YAML reads yes, no, on, off and dates as other types than text.
        if not isinstance(name, str) or name == "":
            return (
                [],
                f"the name of class {number} is {short_repr(name)}, not text; put it in quotes",
            )
    count = content.get("nc")
    if count is not None and str(count).strip() != str(len(names)):
        return [], f'"nc" is {one_line(count, 40)}, but there are {len(names)} names'
    return names, ""


def _disjoint(
    groups: dict[str, dict[str, None]],
) -> tuple[dict[str, str], str, list[SplitFault]]:
    """Assign each image to one split.

    Returns:
        The split of each image, a note or "", and a fault for each image that is in two splits.
    """
    train, val_split = groups.get("train", {}), "val" if "val" in groups else "test"
    val = groups.get(val_split, {})
    both = [path for path in train if path in val]
    note, faults = "", []
    if both and train.keys() == val.keys():
        note = f"the same {len(both)} images for train and {val_split}: used for train only"
        val = {}
    elif both:
        # If one split contains the other, the inner one keeps its images. If not, validation keeps
        # them, so that the model is not trained on images that it is validated with.
        if len(both) == len(train):
            kept, val = "train", {path: None for path in val if path not in train}
        else:
            kept, train = val_split, {path: None for path in train if path not in val}
        faults = [("named for two", f"{one_line(path)}, used for {kept}", path) for path in both]
    unused = dict.fromkeys(groups.get("test", {}), "test") if val_split == "val" else {}
    # On the right is what takes precedence.
    return unused | dict.fromkeys(val, val_split) | dict.fromkeys(train, "train"), note, faults


def _with_slashes(path: str) -> list[str]:
    """Return a path as it is, and with Windows separators replaced."""
    return list(dict.fromkeys([path, PureWindowsPath(path).as_posix()]))


def _dataset_folder(place: str) -> str:
    """Return the folder that has both the images of a folder or list and their labels."""
    folder = place if os.path.isdir(place) else os.path.dirname(place)
    before, images, _ = f"{folder}/".rpartition("/images/")
    return before if images else folder


def _lies_in(place: str, folder: str) -> bool:
    place, folder = os.path.realpath(place), os.path.realpath(folder)
    return place == folder or place.startswith(os.path.join(folder, ""))


def _is_inside(place: str, tree: "Tree") -> bool:
    return any(_lies_in(place, folder) for folder in [str(tree.root), *tree.folders.values()])


def _outside(tree: "Tree") -> str:
    return f"lies outside of {tree.root}; give the YAML file itself as --data"
