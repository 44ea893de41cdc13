"""Where annotations and images are in one's own data, in the layouts that people have.

COCO format, one JSON file per split: anywhere in the folder, told apart by words in their names or in those of their
folders (``annotations/train.json``, ``instances_val2017.json``, ``valid/_annotations.coco.json``); a test split
validates where there is no other. Their images are looked for in the folder.

COCO format, one JSON file: given itself, or the only one in a folder. A fifth of its images is set apart to validate, by
a seed and their names.

YOLO segmentation (a YAML file with the names of the classes, ``images`` and ``labels``) and labelme (a JSON file for each
image): converted by :mod:`.yolo` and :mod:`.labelme`, and split as YOLO's file says (:mod:`.yolo_yaml`),
by the words in their folders, or else as a single file is.

What has to be written for this goes to the user's cache, never into the data. What could be meant in two ways is refused.
"""

import hashlib
import json
import os
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path, PurePath
from types import MappingProxyType
from typing import Any, NamedTuple

from tabulate import tabulate

from ...utils.errors import UserError, preview
from ...utils.files import cut
from ...utils.text import LINE_LIMIT, PATH_LIMIT, one_line
from ..image_io import SUFFIXES
from . import coco, image_names, yolo_yaml
from .coco_rules import RULES, Problem, grouped, left_out
from .file_tree import UNREAD, WORDS, YAML, Tree, look_into, split_of

SEED = 0
VALIDATION = 0.2  # of the images, where nothing says which
ACCEPTED = (
    "COCO JSON files (one for train and one for val, or a single one), YOLO segmentation (data.yaml, images/ and "
    "labels/) and labelme (a JSON file beside each image)"
)
SHOWN = 20  # classes in a table
NAME_LIMIT = 40  # characters of a name in it
VERSION = 4  # of what is written to the cache


class Split(NamedTuple):
    """A file of annotations in COCO format, and the folder that the names of its images are relative to."""

    json_file: Path
    images: Path


class Layout(NamedTuple):
    """One's own data, recognised.

    Attributes:
        data: the folder or file that was given.
        name: of the layout.
        splits: "train" and "val", of which one may be missing.
        notes: what was decided or done about it.
        origins: by split, a JSON file with what conversion left out and what its objects were made of, where there was one.
    """

    data: str
    name: str
    splits: Mapping[str, Split]
    notes: Sequence[str] = ()
    origins: Mapping[str, Path] = MappingProxyType({})

    def read(self, split: str, *, masks: bool = True) -> coco.CocoFile:
        """A split as :func:`read` gives it."""
        if split not in self.splits:
            there = ", ".join(str(found.json_file) for found in self.splits.values())
            raise UserError(
                f"--data {self.data}: there are no annotations for {split}, only {there}"
            )
        json_file, images = self.splits[split]
        file = coco.read(json_file, images, masks=masks, train=split == "train")
        self.trace(split, file)
        file.raise_if_fatal()
        return file

    def trace(self, split: str, file: coco.CocoFile) -> None:
        """Adds to the problems of a split's file what conversion left out, and to the others the file and line of each."""
        if split not in self.origins:
            return
        origins = json.loads(self.origins[split].read_bytes())
        file.given = self.data
        added = [Problem(kind, detail=detail) for kind, detail in origins["problems"]]
        # Every line and shape that is left out is an annotation that was there.
        file.annotations += sum(RULES[problem.kind].action == "drop" for problem in added)
        problems = added + [_traced(problem, file, origins["objects"]) for problem in file.problems]
        for number, problem in enumerate(problems):
            if problem.kind == "no objects":  # which lines and shapes may explain
                problems[number] = problem._replace(detail=left_out(problems))
        file.problems = [problem for group in grouped(problems).values() for problem in group]

    def summary(self, files: Mapping[str, coco.CocoFile]) -> str:
        """What was found, in a few lines; files by split."""
        lines = [f"{self.data}: {self.name}", *(f"  {note}" for note in self.notes)]
        return "\n".join([*(one_line(line, LINE_LIMIT) for line in lines), table(files)])


def _traced(problem: Problem, file: coco.CocoFile, objects: Mapping[str, Any]) -> Problem:
    """A problem of converted data without ids, which the user's files do not have."""
    if problem.image_id is None:
        return problem
    where = (
        one_line(file.images[problem.image_id]["file_name"], PATH_LIMIT)
        if problem.image_id in file.images
        else ""
    )
    if problem.annotation_id is not None:
        labels, first, numbers = objects[str(problem.image_id)]
        where = f"{one_line(labels, PATH_LIMIT)} {numbers[problem.annotation_id - first]}"
        if problem.kind == "object twice":  # of the same image
            other = int(problem.detail.removeprefix("as "))
            same = f"as {labels.rpartition(', ')[2]} {numbers[other - first]}"
            problem = problem._replace(detail=same)
    elif problem.kind == "file twice":
        first = file.images[int(problem.detail.rpartition(", as ")[2])]["file_name"]
        problem = problem._replace(detail=f"as {one_line(first, PATH_LIMIT)}")
    detail = (
        problem.detail
        if where in problem.detail
        else ": ".join(filter(None, (where, problem.detail)))
    )
    return Problem(problem.kind, detail=detail)


def find(data: str) -> Mapping[str, Split]:
    """The "train" and "val" split of a custom dataset, of which one may be missing. Raises as :func:`detect_format` does."""
    return detect_format(data).splits


def read(data: str, split: str, *, masks: bool = True) -> coco.CocoFile:
    """A split of a custom dataset, with the rules of :mod:`gpvit.data.datasets.coco` applied to it.

    Args:
        data: a folder or file, as said above.
        split: "train" or "val".
        masks: whether every annotation must have a mask.

    Raises:
        UserError: files are missing or not recognised, or the annotations have a problem that stops.
    """
    return detect_format(data).read(split, masks=masks)


def detect_format(data: str) -> Layout:
    """Finds out how one's own data is laid out; converts and splits it where necessary.

    Args:
        data: a folder, a JSON file in COCO format, or the YAML file of a YOLO data set.

    Raises:
        UserError: nothing that is understood is found, or more than one thing.
    """
    path = Path(data)
    try:
        is_file, is_folder = path.is_file(), path.is_dir()
    except OSError as error:  # such as a folder above that may not be searched
        raise UserError(f"--data {one_line(data, PATH_LIMIT)}: {error.strerror}") from None
    if is_file and path.suffix.lower() in YAML:
        return _converted(data, Tree(yolo_yaml.describe(path).root()), "YOLO", [path])
    if is_file:
        return _single(data, path, image_root(path))
    if not is_folder:
        raise UserError(f"--data {path}: does not exist")
    return _documented(data) or _searched(data)


def _documented(data: str) -> Layout | None:
    """annotations/{train,val}.json and images/, of which nothing has to be searched; val.json alone is evaluated on."""
    root, images = Path(data), Path(data) / "images"
    files = {split: root / "annotations" / f"{split}.json" for split in ("train", "val")}
    splits = {split: Split(file, images) for split, file in files.items() if os.path.exists(file)}
    if "val" not in splits or not images.is_dir():
        return None
    try:
        folders = [PurePath(entry.name) for entry in os.scandir(images) if entry.is_dir()]
    except OSError as error:
        raise image_names.cannot_list(error) from None
    return None if any(map(split_of, folders)) else Layout(data, "COCO format", splits)


def _searched(data: str) -> Layout:
    tree = Tree(Path(data))
    kinds: dict[str, list[Path]] = {"COCO": [], "labelme": [], "YOLO": []}
    for path in tree.candidates():
        kinds.setdefault(tree.kind(path), []).append(path)
    broken, others = kinds.pop("broken", []), kinds.pop("", [])
    kinds["YOLO"], reasons = _described(
        path for path in tree.yaml_files() if path.parent == tree.root
    )
    there = {kind: paths for kind, paths in kinds.items() if paths}
    if not there:  # a YAML file in a folder below may be of anything, if there is something else
        paths, more = _described(path for path in tree.yaml_files() if path.parent != tree.root)
        there, reasons = {"YOLO": paths} if paths else {}, reasons + more
    if (
        not there
        and reasons
        and tree.pictures
        and any(path.lower().endswith(".txt") for path in tree.paths)
    ):
        raise UserError(f"--data {data}: {preview(reasons)}")
    if not there:
        faults = [f"{tree.relative(path)} {look_into(path).fault}" for path in broken + others]
        found = "; ".join([tree.contents(), *([preview(faults)] if faults else [])])
        raise UserError(
            f"--data {data}: no annotations are recognised in {found}; accepted are {ACCEPTED}"
        )
    if len(there) > 1:
        found = "; ".join(f"{kind} in {tree.preview(paths)}" for kind, paths in there.items())
        raise UserError(
            f"--data {data}: may be read as {found}; give the JSON or YAML file itself, or move the others"
        )
    [(kind, paths)] = there.items()
    if kind == "COCO" and broken:
        raise UserError(
            f"{broken[0]} {look_into(broken[0]).fault}; correct it, or move it if it does not belong to the data"
        )
    if kind == "labelme":
        paths = sorted([*paths, *broken])
    return _coco(data, tree, paths) if kind == "COCO" else _converted(data, tree, kind, paths)


def _described(paths: Iterable[Path]) -> tuple[list[Path], list[str]]:
    """Which YAML files are of YOLO datasets, and why the others are not."""
    found, reasons = [], []
    for path in paths:
        try:
            yolo_yaml.describe(path)
            found.append(path)
        except UserError as error:
            reasons.append(str(error))
    return found, reasons


def _coco(data: str, tree: "Tree", paths: list[Path]) -> Layout:
    by_split: dict[str | None, list[Path]] = {}
    for path in paths:
        by_split.setdefault(split_of(tree.relative(path).with_suffix("")), []).append(path)
    if len(paths) == 1 and not {"val", "test"} & by_split.keys():
        return _single(data, paths[0], image_root(paths[0], tree))
    chosen = {
        "train": by_split.get("train", []),
        "val": by_split.get("val") or by_split.get("test", []),
    }
    chosen = {split: found for split, found in chosen.items() if found}
    if (
        any(len(found) > 1 for found in chosen.values())
        or (len(chosen) < 2 and None in by_split)
        or not chosen
    ):
        raise UserError(
            f"--data {data}: of {tree.preview(paths)} it cannot be told which one is for train and which for val; let one "
            "name or folder of each have that word, or give a single file"
        )
    splits = {split: Split(path, image_root(path, tree, split)) for split, [path] in chosen.items()}
    notes = [
        f"{split}: {tree.relative(path)}, images in {images}"
        for split, (path, images) in splits.items()
    ]
    roboflow = all(path.name == "_annotations.coco.json" for path, _ in splits.values())
    return Layout(data, "COCO format by Roboflow" if roboflow else "COCO format", splits, notes)


# Looking for files.


def image_root(json_file: Path, tree: Tree | None = None, split: str | None = None) -> Path:
    """The folder that the names of a JSON file's images are relative to.

    Args:
        json_file: in COCO format.
        tree: where to look; by default in the file's folder, or in the one above if that is called annotations.
        split: whose images they are. If several folders have them all, the one beside the file counts, then one that is
            called as the split, then one called images.

    Raises:
        UserError: no folder has all images, or it cannot be told which.
    """
    if tree is None:
        above = json_file.absolute().parent
        tree = Tree(above.parent if above.name.startswith("annotation") else above)
    names = {os.path.normpath(name) for name in look_into(json_file).names}
    if not names:
        return json_file.parent  # what is wrong with the file is told when it is read
    roots = Counter(
        path.removesuffix(name)
        for name in names
        for path in tree.by_name.get(os.path.basename(name), ())
        if f"{os.sep}{path}".endswith(f"{os.sep}{name}")
    )
    found = [root for root in sorted(roots) if roots[root] == len(names)]
    beside = os.path.relpath(json_file.absolute().parent, tree.root.absolute())
    if not found:
        return tree.root / _root_by_ends(json_file, tree, split, beside)
    for better in (
        lambda root: os.path.normpath(root) == beside,
        lambda root: split is not None and split_of(PurePath(root)) == split,
        lambda root: "images" in PurePath(root).parts,
    ):
        found = [root for root in found if better(root)] or found
    if len(found) > 1:
        folders = preview([str(tree.root / root) for root in found])
        raise UserError(
            f"{json_file}: its images are in several folders, {folders}; keep one of these"
        )
    return tree.root / found[0]


def _root_by_ends(json_file: Path, tree: Tree, split: str | None, beside: str) -> str:
    """The folder in which the images of a JSON file are found by :mod:`.image_names`.

    Raises:
        UserError: not all are found in one.
    """
    names = list(dict.fromkeys(look_into(json_file).names))
    folders = sorted({str(folder) for path in tree.paths for folder in PurePath(path).parents})
    of_split = [
        folder for folder in folders if split and split_of(PurePath(PurePath(folder).name)) == split
    ]
    of_images = [folder for folder in folders if PurePath(folder).name == "images"]
    faults: dict[str, dict[str, str]] = {}
    for folder in dict.fromkeys([beside, *of_split, *of_images, os.curdir]):
        prefix = "" if folder == os.curdir else f"{folder}{os.sep}"
        paths = [path.removeprefix(prefix) for path in tree.paths if path.startswith(prefix)]
        if len(paths) < len(names) and folder != os.curdir:
            continue  # there may be thousands of small folders called images
        faults[folder] = _not_found(names, tree.root / folder, paths)
        if not faults[folder]:
            return folder
    missing = [
        name if fault == image_names.ABSENT else f"{name} ({fault})"
        for name, fault in sorted(faults[os.curdir].items())
    ]
    raise UserError(
        f"{json_file}: of its {len(names)} images, {len(missing)} are not in {tree.root} and its folders: "
        f"{preview(missing)}; looked for as written and by the last parts of their names"
    )


def _not_found(names: Sequence[str], folder: Path, paths: Sequence[str]) -> dict[str, str]:
    """The names that mean no image of a folder with these paths, and why."""
    there = set(paths)
    missing = [name for name in names if os.path.normpath(name) not in there]
    matches = image_names.match(missing, paths, there & set(map(os.path.normpath, names)))
    faults = {}
    for name, (path, fault) in matches.items():
        if fault:
            faults[name] = fault
        elif os.path.exists(folder / name) and not os.path.samefile(folder / name, folder / path):
            faults[name] = (
                "is elsewhere"  # what is there as written is meant, and is no part of the data
            )
    return faults


# Splitting and converting.


def _single(data: str, json_file: Path, images: Path) -> Layout:
    """One file of annotations, split by the seed."""

    def make() -> tuple[dict[str, dict], list[str]]:
        file = coco.read(json_file, images, masks=False)
        # Masks, which are not looked at here, may fix normalized boxes: each split tells.
        file.problems = [problem for problem in file.problems if problem.kind != "normalized"]
        file.raise_if_fatal()
        content = coco.load_json(json_file)
        names = {id: image["file_name"] for id, image in file.images.items()}
        parts, notes = split_images(names.values(), lambda name: None)
        validating = {id for id, name in names.items() if name in parts["val"]}

        def part(val: bool) -> dict:
            keys = {"images": "id", "annotations": "image_id"}.items()
            return content | {
                key: [e for e in content.get(key, []) if (e[id] in validating) == val]
                for key, id in keys
            }

        return {"train": part(False), "val": part(True)}, notes

    files, notes = _in_cache(data, json_file.parent, [json_file.name], ["COCO"], make)
    notes = [f"{json_file}, images in {images}", *notes]
    return Layout(
        data, "COCO format", {split: Split(file, images) for split, file in files.items()}, notes
    )


def _converted(data: str, tree: Tree, kind: str, paths: list[Path]) -> Layout:
    """A data set in another format."""
    if kind == "YOLO" and len(paths) > 1:
        raise UserError(
            f"--data {data}: {tree.preview(paths)} all have names of classes; give the one that is meant"
        )

    def make() -> tuple[dict[str, dict], list[str]]:
        try:
            from . import labelme, yolo  # which need a package that takes a while to import
        except ModuleNotFoundError:
            raise UserError(
                f"{kind} data needs the package supervision: pip install 'supervision>=0.31'"
            ) from None

        found = (
            yolo.from_yolo(paths[0], tree) if kind == "YOLO" else labelme.from_labelme(paths, tree)
        )
        try:
            parts, notes = split_images(found.splits, found.splits.get)
        except UserError as error:
            others = (
                f"; {preview([fault.detail for fault in found.faults])}" if found.faults else ""
            )
            raise UserError(f"--data {data}: {error}{others}") from None
        files = {split: found.coco(names) for split, names in parts.items()}
        files |= {f"{split}.origins": found.origins(names) for split, names in parts.items()}
        return files, [*found.notes, *notes]

    used = [
        path
        for path in tree.paths
        if os.path.splitext(path)[1].lower() in SUFFIXES | UNREAD | YAML | {".txt", ".json"}
    ]
    used += [
        os.path.relpath(path, tree.root)
        for path in paths
        if tree.inside(os.path.abspath(path)) not in tree.paths
    ]
    chosen = [os.path.relpath(path, tree.root) for path in paths] if kind == "YOLO" else []
    files, notes = _in_cache(data, tree.root, used, [kind, *chosen], make)
    splits = {split: Split(file, tree.root) for split, file in files.items()}
    origins = {split: file.with_suffix(".origins.json") for split, file in files.items()}
    folder = next(iter(files.values())).parent
    return Layout(
        data, f"{kind} format, converted to COCO format in {folder}", splits, notes, origins
    )


def split_images(
    names: Iterable[str], split_of: Callable[[str], str | None]
) -> tuple[dict[str, set[str]], list[str]]:
    """Names of images by split, and how they come there.

    Args:
        names: relative to the folder of the data.
        split_of: the split that is said of one, "train", "val" or "test", or None.
    """
    said: dict[str | None, set[str]] = {}
    for name in names:
        said.setdefault(split_of(name), set()).add(name)
    known = {split: said[split] for split in WORDS if split in said}
    if not known or set(said) == {"train"}:
        return hold_out({name for group in said.values() for name in group})
    if None in said:
        raise UserError(
            f"folders say train, val or test of some images, and nothing of {len(said[None])} others "
            f"({preview(sorted(said[None]))}); move these, too"
        )
    notes = (
        [f"not used: {len(known['test'])} images for test"]
        if {"val", "test"} <= known.keys()
        else []
    )
    parts = {"train": known.get("train"), "val": known.get("val") or known.get("test")}
    return {split: part for split, part in parts.items() if part}, notes


def hold_out(names: set[str]) -> tuple[dict[str, set[str]], list[str]]:
    """Sets images apart to validate: which ones, follows from the seed and their names alone."""
    originals: dict[str, set[str]] = {}
    for name in names:  # Roboflow calls the variants that it makes of one picture NAME.rf.HASH.jpg
        originals.setdefault(name.partition(".rf.")[0], set()).add(name)
    if len(originals) < 2:
        raise UserError(
            f"{len(originals)} image cannot be split into images to train on and to validate with"
        )
    order = sorted(
        originals,
        key=lambda name: hashlib.sha256(f"{SEED} {name}".encode(errors="surrogateescape")).digest(),
    )
    count = max(1, round(VALIDATION * len(order)))
    parts = [
        {name for original in part for name in originals[original]}
        for part in (order[count:], order[:count])
    ]
    note = f"{len(parts[1])} of {len(names)} images are set apart to validate, by seed {SEED} and their names"
    return dict(zip(("train", "val"), parts)), [note]


def _in_cache(
    data: str,
    root: Path,
    paths: Iterable[str],
    kind: Sequence[str],
    make: Callable[[], tuple[dict[str, dict], list[str]]],
) -> tuple[dict[str, Path], list[str]]:
    """The JSON files that are made of a data set, and notes on it.

    They are made once, whole, and under a name that depends on what they are made of, so that all processes of a job and
    later ones find the same.

    Args:
        data: as it was given, for a name that says something.
        root: folder of the data set.
        paths: of what they are made of, relative to it.
        kind: the layout, and the YAML file that says its splits, as there may be others.
        make: gives their contents by split, and notes.
    """
    try:
        state = [
            (path, status.st_size, status.st_mtime_ns)
            for path in paths
            for status in [(root / path).stat()]
        ]
    except OSError as error:  # such as links to what is gone
        raise UserError(f"--data {data}: {error}") from None
    key = repr((VERSION, SEED, VALIDATION, kind, os.path.realpath(root), state))
    digest = hashlib.sha256(key.encode(errors="surrogateescape")).hexdigest()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gpvit" / "data"
    name = re.sub(r"[^\w.-]+", "-", PurePath(os.path.abspath(data)).name.removesuffix(".json"))
    folder = cache / f"{cut(name)}-{digest[:16]}"
    if not folder.exists():
        contents, notes = make()
        try:
            _write(
                folder,
                {f"{split}.json": content for split, content in contents.items()}
                | {"notes": notes},
            )
        except OSError as error:
            raise UserError(
                f"cannot write {folder} ({error}); set XDG_CACHE_HOME to a folder that can be written"
            ) from None
    notes = json.loads((folder / "notes").read_bytes())
    return {
        split: path for split in ("train", "val") if (path := folder / f"{split}.json").exists()
    }, notes


def _write(folder: Path, files: dict[str, Any]) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, ignore_cleanup_errors=True) as temporary:
        for name, content in files.items():
            (Path(temporary) / name).write_text(json.dumps(content))
        try:
            os.rename(temporary, folder)
        except OSError:
            if not folder.exists():  # else another process was faster
                raise


# What is there.


def table(files: Mapping[str, coco.CocoFile]) -> str:
    """Images, objects and classes of each file, as text; files by what they are called."""
    labels = {name: _labels(data) for name, data in files.items()}
    counts = {
        name: Counter(labels[name][item["category_id"]] for item in _objects(data))
        for name, data in files.items()
    }
    rows: list[list[Any]] = [
        ["images", *(len(data.images) for data in files.values())],
        [
            "  without objects",
            *(sum(not found for found in data.objects.values()) for data in files.values()),
        ],
        ["objects", *(sum(count.values()) for count in counts.values())],
    ]
    # Numbers of classes may differ from file to file, names do not.
    classes = dict.fromkeys(label for found in labels.values() for label in found.values())
    totals = {label: [count[label] for count in counts.values()] for label in classes}
    order = sorted(classes, key=lambda label: -sum(totals[label]))
    rows += [[f"  {one_line(label[0], NAME_LIMIT)}", *totals[label]] for label in order[:SHOWN]]
    if len(order) > SHOWN:
        rest = [sum(column) for column in zip(*(totals[label] for label in order[SHOWN:]))]
        rows.append([f"  and {len(order) - SHOWN} classes more", *rest])
    text = tabulate(rows, headers=["", *files], tablefmt="simple", preserve_whitespace=True)
    absent = [label[0] for label in order if totals[label][0] == 0]
    lines = [f"classes without objects in {next(iter(files))}: {preview(absent)}"] if absent else []
    sides = [
        (image["width"], image["height"])
        for data in files.values()
        for image in data.images.values()
    ]
    if sides:
        widths, heights = (
            " to ".join(map(str, dict.fromkeys([min(side), max(side)]))) for side in zip(*sides)
        )
        lines.append(f"images are {widths} pixels wide and {heights} high")
    return "\n".join([text, *lines])


def _labels(data: coco.CocoFile) -> dict[int, tuple[str, int]]:
    """The name of each class by its id, and how many before it have the same."""
    before: Counter[str] = Counter()
    labels = {}
    for id, name in data.categories.items():
        labels[id] = (name, before[name])
        before[name] += 1
    return labels


def _objects(data: coco.CocoFile) -> list[dict[str, Any]]:
    return [item for items in data.objects.values() for item in items if not item["iscrowd"]]
