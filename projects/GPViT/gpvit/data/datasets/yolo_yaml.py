"""The YAML file of a YOLO dataset: the names of its classes, and which images are for training and which for validation.

``train``, ``val`` and ``test`` are followed as Ultralytics follows them: a folder with all below it, a text file with an
image in each line, or a list of these; relative to ``path``, or to the folder of the file. What another machine or program
wrote, with folders in front that are not here or with Windows' separators, is taken for what it must mean here. What cannot
be followed is an error: never is something else done in silence.
"""

import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PureWindowsPath
from typing import TYPE_CHECKING, Any, NamedTuple

from ...utils.errors import UserError, preview
from ...utils.text import PATH_LIMIT, decoded, one_line, shown
from ...utils.yaml_io import read_yaml

if TYPE_CHECKING:
    from .file_tree import Tree

KEYS = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}


class Stated(NamedTuple):
    """What the YAML file says about splits.

    splits: of each image that it names.
    said: the splits that it says images of.
    unread: what it names that is no image that is read, such as AVIF.
    notes: what was decided.
    faults: kinds of problems that :data:`gpvit.data.datasets.coco_rules.RULES` has, what exactly is wrong, and the image.
    """

    splits: dict[str, str]
    said: set[str]
    unread: set[str]
    notes: list[str]
    faults: list[tuple[str, str, str]]


class Description(NamedTuple):
    """The YAML file of a YOLO dataset, with the names of its classes and all that it holds."""

    file: Path
    names: list[str]
    content: dict[Any, Any]

    @property
    def folder(self) -> str:
        return os.path.abspath(self.file.parent)

    def root(self) -> Path:
        """The folder that has all that the file names: its own, or the nearest one above the others.

        Raises:
            UserError: there is none.
        """
        places = self._bases()[:-1]
        for items in self._entries().values():
            for item in items:
                places += self._existing(item)[:1]
        outside = [_with_labels(place) for place in places if not _lies_in(place, self.folder)]
        if not outside:
            return self.file.parent
        inside = [self.folder] if len(outside) < len(places) else []
        root = os.path.commonpath([os.path.realpath(place) for place in outside + inside])
        if root == os.path.dirname(root):
            raise UserError(
                f"{self.file}: its images are in several places, {preview(outside)}; move them into one folder"
            )
        return Path(root)

    def stated(self, tree: "Tree") -> Stated:
        """The splits of images as the file says them.

        Args:
            tree: the files of the dataset.

        Raises:
            UserError: an entry cannot be followed. One of ``test`` is passed over where ``val`` is there.
        """
        groups: dict[str, dict[str, None]] = {}
        unread: set[str] = set()
        notes = [self._unknown_path()] if self.content.get("path") and not self._path() else []
        faults: list[tuple[str, str, str]] = []
        entries = self._entries()
        for split, items in entries.items():
            try:
                found, notes_of_split, twice = self._followed(split, items, tree)
            except UserError as error:
                if split != "test" or "val" not in entries:
                    raise
                notes.append(f"not used: {error}")
                continue
            groups[split] = {path: None for path in found if path in tree.pictures}
            unread |= found.keys() - tree.pictures.keys()
            notes += notes_of_split
            faults += twice
        splits, note, overlap = _disjoint(groups)
        notes += [f"{self.file.name} names {note}"] if note else []
        return Stated(splits, set(groups), unread, notes, faults + overlap)

    def _entries(self) -> dict[str, list[Any]]:
        """What is said of each split, of which some may not be said."""
        said = {str(key).lower(): value for key, value in self.content.items()}
        entries: dict[str, list[Any]] = {}
        for split, keys in KEYS.items():
            for key in keys:
                value = said.get(key)
                if value not in (None, ""):
                    entries.setdefault(split, []).extend(
                        value if isinstance(value, list) else [value]
                    )
        return entries

    def _followed(
        self, split: str, items: list[Any], tree: "Tree"
    ) -> tuple[dict[str, None], list[str], list[tuple[str, str, str]]]:
        """The files that the entries of a split name, images and others, notes, and faults as in :class:`Stated`."""
        if not items:
            raise self._error(split, "an empty list")
        found: dict[str, None] = {}
        notes: list[str] = []
        faults: list[tuple[str, str, str]] = []
        for item in items:
            place = self._place(split, item, notes)
            if os.path.isdir(place):
                paths = tree.below(place)
                if not any(path in tree.pictures for path in paths):
                    reason = "has no images" if _is_inside(place, tree) else _outside(tree)
                    raise self._error(split, f"{one_line(item)}, which {reason}")
            elif os.path.isfile(place) and place.lower().endswith(".txt"):
                times = self._listed(split, place, tree, notes)
                paths = list(times)
                twice = [path for path, count in times.items() if count > 1]
                faults += [
                    ("named twice", f"{one_line(item)}: {one_line(path)}", path) for path in twice
                ]
                if not any(path in tree.pictures for path in paths):
                    reason = f"lists only images of kinds that are not read: {preview(paths)}"
                    raise self._error(split, f"{one_line(item)}, which {reason}")
            else:
                raise self._error(
                    split, f"{one_line(item)}, which is no folder and no text list (.txt)"
                )
            found |= dict.fromkeys(paths)
        return found, notes, faults

    def _place(self, split: str, item: Any, notes: list[str]) -> str:
        """The folder or file that an entry names."""
        if not isinstance(item, str) or not item.strip():
            raise self._error(split, f"{shown(item)}, which is no path")
        said = one_line(item)
        if "://" in item:
            raise self._error(split, f"{said}, an address; download it, and name its folder")
        existing = self._existing(item)
        if not existing:
            pattern = "; patterns are not followed" if re.search(r"[*?\[]", item) else ""
            tried = preview([os.path.join(base, "") for base in self._bases()])
            raise self._error(
                split, f"{said}, which is not there (looked for from {tried}){pattern}"
            )
        if existing[0] not in self._exact(item):
            notes.append(
                f"{self.file.name}: {split}: {said} is taken for {os.path.relpath(existing[0], self.folder)}"
            )
        return existing[0]

    def _existing(self, item: Any) -> list[str]:
        """The places that an entry may name and that are there, best first."""
        if not isinstance(item, str):
            return []
        exact = [place for place in self._exact(item) if os.path.exists(place)]
        return exact or [place for place in self._moved(item) if os.path.exists(place)]

    def _exact(self, item: str) -> list[str]:
        """The places that an entry names, best first."""
        texts = _with_slashes(item)
        # Roboflow's paths begin one folder too high: without it they are right, and inside of the folder.
        texts += [re.sub(r"^(\.\.?/)+", "", text) for text in texts]
        places: list[str] = []
        for base in self._bases():
            named = [os.path.normpath(os.path.join(base, text)) for text in texts]
            below = [
                place for place in named if f"{place}{os.sep}".startswith(os.path.join(base, ""))
            ]
            places += [*below, *named]
        return places

    def _moved(self, item: str) -> Iterator[str]:
        """Where the entry would be if the dataset was moved here: behind its folder's name, or an absolute path's end."""
        for text in _with_slashes(item):
            absolute = text.startswith("/") or PureWindowsPath(text).drive != ""
            parts = [part for part in text.split("/") if part not in ("", ".", "..")]
            for number in range(1, len(parts)):
                same_folder = parts[number - 1] == os.path.basename(self.folder)
                # What is called images is everywhere, and says of no split.
                if same_folder or (absolute and parts[number:] != ["images"]):
                    yield os.path.join(self.folder, *parts[number:])

    def _bases(self) -> list[str]:
        """The folders that paths are relative to, best first: what ``path`` names if that is there, and the file's own."""
        path = self._path()
        return [self.folder] if path in (None, self.folder) else [path, self.folder]

    def _path(self) -> str | None:
        """The folder that ``path`` names: relative to the file's, or to the current one as in Ultralytics."""
        said = self.content.get("path")
        texts = _with_slashes(said) if isinstance(said, str) and said else []
        places = [
            os.path.join(base, text)
            for base in (self.folder, os.path.abspath(""))
            for text in texts
        ]
        return next((os.path.normpath(place) for place in places if os.path.isdir(place)), None)

    def _listed(self, split: str, file: str, tree: "Tree", notes: list[str]) -> Counter[str]:
        """The files that a text list names and that are in the tree, and how often it does."""
        shown_file = f"{self.file.name}: {split}: {os.path.basename(file)}"
        if not _is_inside(file, tree):
            raise self._error(split, f"{file}, which {_outside(tree)}")
        try:
            text = decoded(Path(file).read_bytes())
        except OSError as error:
            raise self._error(split, f"{file}, which cannot be read ({error.strerror})") from None
        lines = [
            line for line in re.split(r"\r\n|\r|\n", text) if line.strip()
        ]  # no others are between names
        roots = [
            place
            for place in map(tree.inside, (*self._bases(), os.path.abspath(tree.root)))
            if place is not None
        ]
        beside = tree.inside(os.path.dirname(file))
        folders = dict.fromkeys(roots if beside is None else [beside, *roots])
        found = {}
        for line in dict.fromkeys(lines):
            path = tree.find(line, folders, dict.fromkeys(roots))
            found[line] = path or tree.find(line.strip(), folders, dict.fromkeys(roots))
        missing = [line for line, path in found.items() if path is None]
        if len(missing) == len(found):
            what = (
                f"none of its {len(found)} images is in {tree.root}: {preview(missing)}"
                if found
                else "it is empty"
            )
            raise self._error(split, f"{os.path.basename(file)}: {what}")
        if missing:
            count = f"{len(missing)} of {len(found)} images"
            notes.append(f"{shown_file}: left out: {count} that are not there: {preview(missing)}")
        return Counter(path for path in (found[line] for line in lines) if path is not None)

    def _error(self, split: str, what: str) -> UserError:
        what = one_line(what, 3 * PATH_LIMIT)
        remedy = "correct or remove that line (without it, images are split by the names of their folders, or by chance)"
        return UserError(f"{self.file}: {split} is {what}; {remedy}")

    def _unknown_path(self) -> str:
        path = one_line(self.content["path"], PATH_LIMIT)
        return f"{self.file.name}: path: {path} is not there; its folders are looked for in {self.file.parent}"


def describe(yaml_file: Path) -> Description:
    """Reads the YAML file of a YOLO dataset.

    Raises:
        UserError: it cannot be read, or has no names of classes, numbered from 0; the message says why.
    """
    try:
        text = yaml_file.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {yaml_file}: {error.strerror}") from None
    content = read_yaml(text, f"{yaml_file} is no YAML that can be read", numbers=False)
    if not isinstance(content, dict):
        raise UserError(
            f'{yaml_file}: it holds no keys; it needs "names" of classes, numbered from 0'
        )
    names, fault = _names(content)
    if fault:
        raise UserError(f"{yaml_file}: {fault}")
    return Description(yaml_file, names, content)


def _names(content: dict[Any, Any]) -> tuple[list[str], str]:
    """The names of the classes, or what is wrong with them."""
    names = content.get("names")
    if names is None:
        return [], 'it has no "names" of classes, numbered from 0'
    if isinstance(names, dict):
        numbers = {str(key): key for key in names}
        if names and numbers.keys() != set(map(str, range(len(names)))):
            return (
                [],
                f"its names are numbered {preview(list(names))}, not from 0 to {len(names) - 1}",
            )
        names = [names[numbers[str(number)]] for number in range(len(names))]
    if not isinstance(names, list) or not names:
        return [], f'its "names" are {shown(names)}, no list of names of classes'
    for number, name in enumerate(names):
        # YAML has yes, no, on, off and dates, which are not what stands there.
        if not isinstance(name, str) or name == "":
            return [], f"the name of class {number} is {shown(name)}, no text; put it in quotes"
    count = content.get("nc")
    if count is not None and str(count).strip() != str(len(names)):
        return [], f'"nc" is {one_line(count, 40)}, but there are {len(names)} names'
    return names, ""


def _disjoint(
    groups: dict[str, dict[str, None]],
) -> tuple[dict[str, str], str, list[tuple[str, str, str]]]:
    """One split for each image, a note or "", and a fault as in :class:`Stated` for each image that is of two."""
    train, validating = groups.get("train", {}), "val" if "val" in groups else "test"
    val = groups.get(validating, {})
    both = [path for path in train if path in val]
    note, kept = "", ""
    if both and train.keys() == val.keys():
        note = f"the same {len(both)} images for train and {validating}: taken for train only"
        val = {}
    elif both:
        # The inner one of two nested groups keeps its images. Else, nothing that validates is trained on.
        kept = "train" if len(both) == len(train) else validating
        train = train if kept == "train" else {path: None for path in train if path not in val}
        val = val if kept == validating else {path: None for path in val if path not in train}
    faults = [
        ("named for two", f"{one_line(path)}, used for {kept}", path) for path in both if kept
    ]
    unused = dict.fromkeys(groups.get("test", {}), "test") if validating == "val" else {}
    return unused | dict.fromkeys(val, validating) | dict.fromkeys(train, "train"), note, faults


def _with_slashes(path: str) -> list[str]:
    """A path as it stands, and with Windows' separators as it is meant."""
    return list(dict.fromkeys([path, PureWindowsPath(path).as_posix()]))


def _with_labels(place: str) -> str:
    """The folder that has the labels as well as the images of a folder or list."""
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
