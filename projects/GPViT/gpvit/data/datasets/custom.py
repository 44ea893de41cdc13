"""Custom datasets: find annotations and images, whatever the layout of their folder.

**COCO format, one JSON file per split**, anywhere in the folder. Words in the names of the files or
of their folders assign them to splits (``annotations/train.json``, ``instances_val2017.json``,
``valid/_annotations.coco.json``). A test split is used for validation if there is no other. The
images are searched for in the folder.

**COCO format, a single JSON file**, given itself or the only one in a folder. A fifth of its images
is held out for validation; a seed and the names of the images determine which.

**YOLO segmentation** (a YAML file with the class names, ``images`` and ``labels``) and **labelme**
(one JSON file per image) are converted by :mod:`.yolo` and :mod:`.labelme`. They are split as the
YAML file states (:mod:`.yolo_yaml`), else by words in the names of folders, else like a single
file.

Generated files are written to the user's cache, never to the dataset. A dataset that could be read
in more than one way raises an error.
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
from .coco_rules import RULES, Problem, left_out, ordered
from .file_tree import UNREAD, WORDS, YAML, Tree, inspect_json, split_of

SEED = 0
VALIDATION = 0.2  # fraction of the images that is held out
SUPPORTED = (
    "COCO JSON files (one for train and one for val, or a single one), YOLO segmentation "
    "(data.yaml, images/ and labels/) and labelme (a JSON file next to each image)"
)
TABLE_CLASSES = 20  # rows of a table; the rarer classes are summed up
NAME_LIMIT = 40  # characters of a class name in a table
CACHE_VERSION = 4  # to be increased when the contents of generated files change


class Split(NamedTuple):
    """An annotation file in COCO format, and the folder that its image names are relative to."""

    json_file: Path
    images: Path


class Layout(NamedTuple):
    """A custom dataset whose layout is known.

    Attributes:
        data: path of the folder or file, as given by the user.
        name: of the format, for the summary.
        splits: "train" and "val"; one of them may be missing.
        notes: decisions to report to the user.
        origins: for converted datasets, by split: a JSON file with the problems of the conversion
            and the origin of each object, see :meth:`.DataSet.origins`.
    """

    data: str
    name: str
    splits: Mapping[str, Split]
    notes: Sequence[str] = ()
    origins: Mapping[str, Path] = MappingProxyType({})

    def read(self, split: str, *, masks: bool = True) -> coco.CocoFile:
        """Read a split, see :func:`read`."""
        if split not in self.splits:
            existing = ", ".join(str(other.json_file) for other in self.splits.values())
            raise UserError(
                f"--data {self.data}: there are no annotations for {split}, only {existing}"
            )
        json_file, images = self.splits[split]
        file = coco.read(json_file, images, masks=masks, train=split == "train")
        self.trace(split, file)
        file.raise_if_fatal()
        return file

    def trace(self, split: str, file: coco.CocoFile) -> None:
        """Make the problems of a converted split refer to the files of the user.

        Adds the problems of the conversion, and replaces the IDs in all others by the user's file
        and the line or shape in it. Does nothing if the split was not converted.

        Args:
            split: "train" or "val".
            file: the contents of the split, changed in place.
        """
        if split not in self.origins:
            return
        file.given = self.data
        origins = json.loads(self.origins[split].read_bytes())
        problems = [Problem(kind, detail=detail) for kind, detail in origins["problems"]]
        # A dropped line or shape is an annotation, too.
        file.annotations += sum(RULES[problem.kind].action == "drop" for problem in problems)
        for problem in file.problems:
            problems.append(_trace_problem(problem, file, origins["objects"]))
        for number, problem in enumerate(problems):
            if problem.kind == "no objects":  # dropped lines and shapes may be the reason
                problems[number] = problem._replace(detail=left_out(problems))
        file.problems = ordered(problems)

    def summary(self, files: Mapping[str, coco.CocoFile]) -> str:
        """Describe the dataset in a few lines.

        Args:
            files: the contents of each split.
        """
        lines = [one_line(f"{self.data}: {self.name}", LINE_LIMIT)]
        lines += [one_line(f"  {note}", LINE_LIMIT) for note in self.notes]
        return "\n".join([*lines, table(files)])


def _trace_problem(problem: Problem, file: coco.CocoFile, objects: Mapping[str, Any]) -> Problem:
    """Replace the IDs of a problem by file names and lines, since the user's files have no IDs.

    Args:
        problem: of the converted file.
        file: the converted file.
        objects: by image ID: the origin, such as "labels/a.txt, line"; the ID of the image's first
            annotation; and the numbers of the lines or shapes, in the order of the annotations.
    """
    if problem.image_id is None:
        return problem
    where, detail = "", problem.detail
    if problem.image_id in file.images:
        where = one_line(file.images[problem.image_id]["file_name"], PATH_LIMIT)
    if problem.annotation_id is not None:
        origin, first_id, numbers = objects[str(problem.image_id)]
        where = f"{one_line(origin, PATH_LIMIT)} {numbers[problem.annotation_id - first_id]}"
        if problem.kind == "object twice":  # detail: "same as ID", of an object in the same image
            other_id = int(detail.removeprefix("same as "))
            unit = origin.rpartition(", ")[2]  # "line" or "shape"
            detail = f"same as {unit} {numbers[other_id - first_id]}"
    elif problem.kind == "file twice":  # detail: "NAME, same as ID", of an image
        other_id = int(detail.rpartition(", same as ")[2])
        detail = f"same as {one_line(file.images[other_id]['file_name'], PATH_LIMIT)}"
    if where not in detail:  # the detail may already contain the name of the image
        detail = f"{where}: {detail}" if detail else where
    return Problem(problem.kind, detail=detail)


def find(data: str) -> Mapping[str, Split]:
    """Return the splits of a custom dataset, "train" and "val"; one of them may be missing.

    Raises as :func:`detect_format` does.
    """
    return detect_format(data).splits


def read(data: str, split: str, *, masks: bool = True) -> coco.CocoFile:
    """Read a split of a custom dataset, and apply the rules of :mod:`.coco` to it.

    Args:
        data: a folder or file, see :func:`detect_format`.
        split: "train" or "val".
        masks: whether every annotation must have a mask.

    Raises:
        UserError: files are missing or not recognized, or the annotations have a problem that stops
            training.
    """
    return detect_format(data).read(split, masks=masks)


def detect_format(data: str) -> Layout:
    """Detect the format and the layout of a custom dataset; convert and split it if necessary.

    Args:
        data: a folder, a JSON file in COCO format, or the YAML file of a YOLO dataset.

    Raises:
        UserError: no supported format is found, or more than one.
    """
    path = Path(data)
    try:
        is_file, is_folder = path.is_file(), path.is_dir()
    except OSError as error:  # for example, a parent folder without permission to search it
        raise UserError(f"--data {one_line(data, PATH_LIMIT)}: {error.strerror}") from None
    if is_file and path.suffix.lower() in YAML:
        return _converted(data, Tree(yolo_yaml.describe(path).root()), "YOLO", [path])
    if is_file:
        return _single_file(data, path, image_root(path))
    if not is_folder:
        raise UserError(f"--data {path}: does not exist")
    return _default_layout(data) or _search(data)


# Search for the format.


def _default_layout(data: str) -> Layout | None:
    """Return the layout ``annotations/{train,val}.json`` and ``images/``; None for other folders.

    It needs no search. Without ``train.json``, the dataset only has a validation split.
    """
    root = Path(data)
    images = root / "images"
    splits = {}
    for split in ("train", "val"):
        json_file = root / "annotations" / f"{split}.json"
        if os.path.exists(json_file):
            splits[split] = Split(json_file, images)
    if "val" not in splits or not images.is_dir():
        return None
    try:
        subfolders = [PurePath(entry.name) for entry in os.scandir(images) if entry.is_dir()]
    except OSError as error:
        raise image_names.cannot_list(error) from None
    if any(map(split_of, subfolders)):  # images/train: the names may be relative to this folder
        return None
    return Layout(data, "COCO format", splits)


def _search(data: str) -> Layout:
    """Search a folder for annotations in a supported format.

    JSON files are recognized by their contents, and the YAML files of YOLO datasets by their class
    names. Exactly one format must be found.

    Raises:
        UserError: no format is found, or several.
    """
    tree = Tree(Path(data))
    json_files: dict[str, list[Path]] = {"COCO": [], "labelme": [], "broken": [], "": []}
    for path in tree.json_files():
        json_files[tree.kind(path)].append(path)
    broken = json_files["broken"]

    # A YAML file with class names in the root counts as a YOLO dataset. In subfolders, where YAML
    # files of other programs are common, it only does if nothing else is found.
    yaml_files = tree.yaml_files()
    in_root = [path for path in yaml_files if path.parent == tree.root]
    in_subfolders = [path for path in yaml_files if path.parent != tree.root]
    yolo_files, reasons = _yolo_descriptions(in_root)
    by_format = {"COCO": json_files["COCO"], "labelme": json_files["labelme"], "YOLO": yolo_files}
    found = {format: paths for format, paths in by_format.items() if paths}
    if not found:
        yolo_files, more_reasons = _yolo_descriptions(in_subfolders)
        reasons += more_reasons
        if yolo_files:
            found = {"YOLO": yolo_files}

    if not found:
        raise _no_annotations(data, tree, broken + json_files[""], reasons)
    if len(found) > 1:
        formats = "; ".join(f"{format} in {tree.preview(paths)}" for format, paths in found.items())
        raise UserError(
            f"--data {data}: more than one format is found, {formats}; give the JSON or YAML file "
            "itself, or move the others"
        )
    [(format, paths)] = found.items()
    if format == "COCO":
        return _coco_files(data, tree, paths, broken)
    if format == "labelme":  # a broken file counts as one of labelme, to be reported by its name
        paths = sorted([*paths, *broken])
    return _converted(data, tree, format, paths)


def _yolo_descriptions(paths: Iterable[Path]) -> tuple[list[Path], list[str]]:
    """Return the YAML files that describe a YOLO dataset, and the reasons why others do not."""
    found, reasons = [], []
    for path in paths:
        try:
            yolo_yaml.describe(path)
            found.append(path)
        except UserError as error:
            reasons.append(str(error))
    return found, reasons


def _no_annotations(data: str, tree: Tree, rejected: list[Path], reasons: list[str]) -> UserError:
    """Return the error for a folder without annotations.

    Args:
        data: as given by the user.
        tree: the files of the folder.
        rejected: its JSON files.
        reasons: why its YAML files do not describe a YOLO dataset.
    """
    has_texts = any(path.lower().endswith(".txt") for path in tree.paths)
    if reasons and tree.pictures and has_texts:  # a YOLO dataset with a faulty YAML file
        return UserError(f"--data {data}: {preview(reasons)}")
    contents = tree.contents()
    if rejected:
        faults = [f"{tree.relative(path)} {inspect_json(path).fault}" for path in rejected]
        contents += f"; {preview(faults)}"
    return UserError(
        f"--data {data}: no annotations are recognized in {contents}; supported are {SUPPORTED}"
    )


def _coco_files(data: str, tree: Tree, json_files: list[Path], broken: list[Path]) -> Layout:
    """Assign COCO files to splits by the words in their names, and find the images of each.

    Args:
        data: as given by the user.
        tree: the files of the dataset.
        json_files: its COCO files.
        broken: its JSON files that cannot be parsed.
    """
    if broken:  # it may be the COCO file of another split
        fault = inspect_json(broken[0]).fault
        raise UserError(
            f"{broken[0]} {fault}; fix it, or move it if it does not belong to the dataset"
        )
    by_split: dict[str | None, list[Path]] = {}
    for path in json_files:
        split = split_of(tree.relative(path).with_suffix(""))
        by_split.setdefault(split, []).append(path)
    train = by_split.get("train", [])
    val = by_split.get("val") or by_split.get("test", [])
    # A single file is split, even if it is named train, but one named val or test is kept complete.
    if len(json_files) == 1 and not val:
        return _single_file(data, json_files[0], image_root(json_files[0], tree))
    # Files without such a word are ignored if both splits are known; if not, they may be the other.
    unclear = None in by_split and not (train and val)
    if len(train) > 1 or len(val) > 1 or unclear:
        raise UserError(
            f"--data {data}: cannot tell which of {tree.preview(json_files)} is for train and "
            "which for val; add that word to the name of each file or of its folder, or give a "
            "single file"
        )
    splits, notes = {}, []
    for split, paths in (("train", train), ("val", val)):
        for path in paths:  # at most one
            images = image_root(path, tree, split)
            splits[split] = Split(path, images)
            notes.append(f"{split}: {tree.relative(path)}, images in {images}")
    roboflow = all(path.name == "_annotations.coco.json" for path, _ in splits.values())
    return Layout(data, "COCO format by Roboflow" if roboflow else "COCO format", splits, notes)


# Search for the images of a JSON file.


def image_root(json_file: Path, tree: Tree | None = None, split: str | None = None) -> Path:
    """Return the folder that the image names in a JSON file are relative to.

    Args:
        json_file: in COCO format.
        tree: the files to search. By default, those below the folder of the JSON file, or below its
            parent if the folder is called annotations.
        split: the split of the JSON file. If several folders have all images, the folder of the
            JSON file is preferred, then one named like the split, then one named images.

    Raises:
        UserError: no folder has all images, or several do and none is preferred.
    """
    if tree is None:
        folder = json_file.absolute().parent
        tree = Tree(folder.parent if folder.name.startswith("annotation") else folder)
    names = set(map(os.path.normpath, inspect_json(json_file).names))
    if not names:  # the fault of the file is reported when it is read
        return json_file.parent
    # A path that ends in a name, train/images/a.png in a.png, votes for the rest, train/images/.
    votes: Counter[str] = Counter()
    for name in names:
        for path in tree.by_name.get(os.path.basename(name), ()):
            if f"{os.sep}{path}".endswith(f"{os.sep}{name}"):  # only complete names of folders
                votes[path.removesuffix(name)] += 1
    roots = [root for root in sorted(votes) if votes[root] == len(names)]
    json_folder = os.path.relpath(json_file.absolute().parent, tree.root.absolute())
    if not roots:
        return tree.root / _root_by_matching(json_file, tree, split, json_folder)
    preferred = _preferred(roots, split, json_folder)
    if len(preferred) > 1:
        folders = preview([str(tree.root / root) for root in preferred])
        raise UserError(
            f"{json_file}: its images are in several folders, {folders}; keep one of them"
        )
    return tree.root / preferred[0]


def _preferred(roots: list[str], split: str | None, json_folder: str) -> list[str]:
    """Reduce the folders that have all images, as long as one of them remains."""
    roots = [root for root in roots if os.path.normpath(root) == json_folder] or roots
    if split is not None:
        roots = [root for root in roots if split_of(PurePath(root)) == split] or roots
    return [root for root in roots if "images" in PurePath(root).parts] or roots


def _root_by_matching(json_file: Path, tree: Tree, split: str | None, json_folder: str) -> str:
    """Return the folder in which all images of a JSON file are found by :func:`.image_names.match`.

    Used if no folder has all images under their names as written.

    Args:
        json_file, tree, split: as in :func:`image_root`.
        json_folder: the folder of the JSON file, relative to the root of the tree.

    Raises:
        UserError: no folder has all images.
    """
    names = list(dict.fromkeys(inspect_json(json_file).names))
    # Best first. In a smaller folder, fewer images may be confused with each other, so the complete
    # tree (os.curdir) is the last resort.
    candidates = [json_folder, *_folders_by_name(tree, split), os.curdir]
    faults: dict[str, dict[str, str]] = {}  # by folder: the names without an image, and the reasons
    for folder in dict.fromkeys(candidates):
        prefix = "" if folder == os.curdir else f"{folder}{os.sep}"
        paths = [path.removeprefix(prefix) for path in tree.paths if path.startswith(prefix)]
        # Fewer files than images: skipped at once, since thousands of folders may be called images.
        if len(paths) < len(names) and folder != os.curdir:
            continue
        faults[folder] = _unmatched(names, tree.root / folder, paths)
        if not faults[folder]:
            return folder
    missing = []
    for name, fault in sorted(faults[os.curdir].items()):
        missing.append(name if fault == image_names.ABSENT else f"{name} ({fault})")
    raise UserError(
        f"{json_file}: {len(missing)} of its {len(names)} images are not in {tree.root} and its "
        f"subfolders: {preview(missing)}; searched for as written and by the last parts of their "
        "names"
    )


def _folders_by_name(tree: Tree, split: str | None) -> list[str]:
    """Return the folders of a tree that are named like a split, then those named images."""
    folders: set[str] = set()
    for path in tree.paths:
        folders.update(map(str, PurePath(path).parents))
    named_as_split, named_images = [], []
    for folder in sorted(folders):
        name = PurePath(folder).name
        if split and split_of(PurePath(name)) == split:
            named_as_split.append(folder)
        if name == "images":
            named_images.append(folder)
    return named_as_split + named_images


def _unmatched(names: Sequence[str], folder: Path, paths: Sequence[str]) -> dict[str, str]:
    """Return the names that mean no image of a folder, and the reasons.

    Args:
        names: as written in the annotations.
        folder: of the images.
        paths: of its files, relative to it.
    """
    existing = set(paths)
    taken = existing & set(map(os.path.normpath, names))
    missing = [name for name in names if os.path.normpath(name) not in taken]
    faults = {}
    for name, (path, fault) in image_names.match(missing, paths, taken).items():
        if fault:
            faults[name] = fault
        elif os.path.exists(folder / name) and not os.path.samefile(folder / name, folder / path):
            # As written, the name means another file, outside of the folder or hidden.
            faults[name] = "is a file outside of the dataset"
    return faults


# Split and convert.


# A function that generates JSON files: returns their contents by name, and notes.
Generate = Callable[[], tuple[dict[str, dict], list[str]]]


def _single_file(data: str, json_file: Path, images: Path) -> Layout:
    """Split a single COCO file into train and val, see :func:`hold_out`."""

    def generate() -> tuple[dict[str, dict], list[str]]:
        file = coco.read(json_file, images, masks=False)
        # Normalized boxes only stop if they cannot be recomputed from masks, which are not read
        # here. They are checked when a split is read.
        file.problems = [problem for problem in file.problems if problem.kind != "normalized"]
        file.raise_if_fatal()
        names = {id: image["file_name"] for id, image in file.images.items()}
        parts, notes = split_images(names.values(), lambda name: None)
        val_ids = {id for id, name in names.items() if name in parts["val"]}
        content = coco.load_json(json_file)
        train = _select(content, lambda id: id not in val_ids)
        return {"train": train, "val": _select(content, lambda id: id in val_ids)}, notes

    files, notes = _in_cache(data, json_file.parent, [json_file.name], ["COCO"], generate)
    splits = {split: Split(file, images) for split, file in files.items()}
    return Layout(data, "COCO format", splits, [f"{json_file}, images in {images}", *notes])


def _select(content: dict, is_selected: Callable[[int], bool]) -> dict:
    """Return a COCO file with only some of its images, selected by ID, and their annotations."""
    images = [image for image in content.get("images", []) if is_selected(image["id"])]
    annotations = [item for item in content.get("annotations", []) if is_selected(item["image_id"])]
    return content | {"images": images, "annotations": annotations}


def _converted(data: str, tree: Tree, format: str, paths: list[Path]) -> Layout:
    """Convert a dataset in YOLO or labelme format to COCO format.

    Args:
        data: as given by the user.
        tree: the files of the dataset.
        format: "YOLO" or "labelme".
        paths: the YAML file, or labelme's JSON files.
    """
    if format == "YOLO" and len(paths) > 1:
        raise UserError(
            f"--data {data}: {tree.preview(paths)} all have class names; give the one to use"
        )
    # All files that the conversion depends on: if one of them changes, it is done again.
    suffixes = SUFFIXES | UNREAD | YAML | {".txt", ".json"}
    used = [path for path in tree.paths if os.path.splitext(path)[1].lower() in suffixes]
    for path in paths:  # a YAML file may be outside of the folder that has its images
        if tree.inside(os.path.abspath(path)) not in tree.paths:
            used.append(os.path.relpath(path, tree.root))
    # The same files may be read by another YAML file, with other splits.
    yaml_files = [os.path.relpath(path, tree.root) for path in paths] if format == "YOLO" else []

    def generate() -> tuple[dict[str, dict], list[str]]:
        return _convert(data, tree, format, paths)

    files, notes = _in_cache(data, tree.root, used, [format, *yaml_files], generate)
    splits = {split: Split(file, tree.root) for split, file in files.items()}
    origins = {split: file.with_suffix(".origins.json") for split, file in files.items()}
    folder = next(iter(files.values())).parent
    name = f"{format} format, converted to COCO format in {folder}"
    return Layout(data, name, splits, notes, origins)


def _convert(
    data: str, tree: Tree, format: str, paths: list[Path]
) -> tuple[dict[str, dict], list[str]]:
    """Return the contents of the files ``SPLIT.json`` and ``SPLIT.origins.json``, and notes.

    Args:
        data, tree, format, paths: as in :func:`_converted`.
    """
    try:
        from . import labelme, yolo  # imported here, since supervision takes long to import
    except ModuleNotFoundError:
        raise UserError(
            f"{format} format needs the package supervision: pip install 'supervision>=0.31'"
        ) from None

    if format == "YOLO":
        dataset = yolo.from_yolo(paths[0], tree)
    else:
        dataset = labelme.from_labelme(paths, tree)
    try:
        parts, notes = split_images(dataset.splits, dataset.splits.get)
    except UserError as error:
        message = f"--data {data}: {error}"
        if dataset.faults:  # unreadable images may be the reason
            message += f"; {preview([fault.detail for fault in dataset.faults])}"
        raise UserError(message) from None
    files = {split: dataset.coco(names) for split, names in parts.items()}
    files |= {f"{split}.origins": dataset.origins(names) for split, names in parts.items()}
    return files, [*dataset.notes, *notes]


def split_images(
    names: Iterable[str], stated_split: Callable[[str], str | None]
) -> tuple[dict[str, set[str]], list[str]]:
    """Assign images to "train" and "val".

    Args:
        names: of the images, relative to the folder of the dataset.
        stated_split: returns the split that the dataset states for an image, "train", "val" or
            "test", or None.

    Returns:
        The names by split, and notes. A test split is used for validation if there is no other. If
        no split but train is stated, images are held out.

    Raises:
        UserError: a split is stated for some of the images only, or there is a single image.
    """
    by_split: dict[str | None, set[str]] = {}
    for name in names:
        by_split.setdefault(stated_split(name), set()).add(name)
    stated = {split: by_split[split] for split in WORDS if split in by_split}
    unknown = by_split.get(None, set())
    if not stated or (stated.keys() == {"train"} and not unknown):
        return hold_out(set().union(*by_split.values()))
    if unknown:
        raise UserError(
            f"only some images are in folders named train, val or test, {len(unknown)} others are "
            f"not ({preview(sorted(unknown))}); move these, too"
        )
    notes = []
    if "val" in stated and "test" in stated:
        notes.append(f"not used: {len(stated['test'])} test images")
    parts = {"train": stated.get("train"), "val": stated.get("val") or stated.get("test")}
    return {split: part for split, part in parts.items() if part}, notes


def hold_out(names: set[str]) -> tuple[dict[str, set[str]], list[str]]:
    """Hold out a fraction of the images for validation.

    Which ones only depends on the seed and on their names. Variants of an image stay together.

    Returns:
        The names by split, "train" and "val", and a note.

    Raises:
        UserError: there is only one image.
    """
    # Roboflow names the augmented variants of an image NAME.rf.HASH.jpg.
    variants: dict[str, set[str]] = {}
    for name in names:
        variants.setdefault(name.partition(".rf.")[0], set()).add(name)
    if len(variants) < 2:
        raise UserError(f"{len(variants)} image cannot be split into train and val; add images")
    # The order of the hashes is random, but depends on nothing but the seed and the names.
    order = sorted(variants, key=_hash)
    count = max(1, round(VALIDATION * len(order)))
    val = set().union(*(variants[original] for original in order[:count]))
    note = (
        f"{len(val)} of {len(names)} images are held out for validation, by seed {SEED} and their "
        "names"
    )
    return {"train": names - val, "val": val}, [note]


def _hash(name: str) -> bytes:
    return hashlib.sha256(f"{SEED} {name}".encode(errors="surrogateescape")).digest()


# The cache.


def _in_cache(
    data: str, root: Path, used: Iterable[str], kind: Sequence[str], generate: Generate
) -> tuple[dict[str, Path], list[str]]:
    """Return the JSON files that are generated from a dataset, by split, and notes.

    They are generated once and written atomically, to a folder whose name depends on everything
    that they depend on. All processes of a job, and later jobs, find the same folder.

    Args:
        data: as given by the user.
        root: folder of the dataset.
        used: the files that they are generated from, relative to the root.
        kind: the format, and the YAML file that states the splits.
        generate: called if they are not in the cache.
    """
    state = []
    try:
        for path in used:
            status = (root / path).stat()
            state.append((path, status.st_size, status.st_mtime_ns))
    except OSError as error:  # for example, a link to a file that was deleted
        raise UserError(f"--data {data}: {error}") from None
    key = (CACHE_VERSION, SEED, VALIDATION, kind, os.path.realpath(root), state)
    folder = _cache_folder(data, key)
    if not folder.exists():
        contents, notes = generate()
        files: dict[str, Any] = {f"{name}.json": content for name, content in contents.items()}
        try:
            _write_folder(folder, files | {"notes": notes})
        except OSError as error:
            raise UserError(
                f"cannot write {folder} ({error}); set XDG_CACHE_HOME to a writable folder"
            ) from None
    notes = json.loads((folder / "notes").read_bytes())
    paths = {split: folder / f"{split}.json" for split in ("train", "val")}
    return {split: path for split, path in paths.items() if path.exists()}, notes


def _cache_folder(data: str, key: tuple) -> Path:
    """Return the folder in the cache for generated files that depend on the values of a key."""
    digest = hashlib.sha256(repr(key).encode(errors="surrogateescape")).hexdigest()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gpvit" / "data"
    # The name of the dataset is only for humans. Characters other than letters, digits, "_", "."
    # and "-" are replaced.
    name = re.sub(r"[^\w.-]+", "-", PurePath(os.path.abspath(data)).name.removesuffix(".json"))
    return cache / f"{cut(name)}-{digest[:16]}"


def _write_folder(folder: Path, files: dict[str, Any]) -> None:
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


# The summary.


class ClassLabel(NamedTuple):
    """A class name, and how many classes before it in the file have the same name."""

    name: str
    repetition: int


def table(files: Mapping[str, coco.CocoFile]) -> str:
    """Return the numbers of images, objects and classes of each file as text.

    Args:
        files: by the header of their columns.
    """
    counts = list(map(_objects_by_class, files.values()))
    totals: Counter[ClassLabel] = Counter()
    for count in counts:
        totals.update(count)
    labels = [label for label, _ in totals.most_common()]
    rows: list[list[Any]] = [["images"], ["  without objects"], ["objects"]]
    for data, count in zip(files.values(), counts):
        empty = sum(not objects for objects in data.objects.values())
        for row, number in zip(rows, (len(data.images), empty, count.total())):
            row.append(number)
    for label in labels[:TABLE_CLASSES]:
        rows.append([f"  {one_line(label.name, NAME_LIMIT)}", *(count[label] for count in counts)])
    rest = labels[TABLE_CLASSES:]
    if rest:
        rows.append([f"  and {len(rest)} more classes"])
        for count in counts:
            rows[-1].append(sum(count[label] for label in rest))
    lines = [tabulate(rows, headers=["", *files], tablefmt="simple", preserve_whitespace=True)]
    absent = [label.name for label in labels if counts[0][label] == 0]
    if absent:
        lines.append(f"classes without objects in {next(iter(files))}: {preview(absent)}")
    images: list[dict[str, Any]] = []
    for data in files.values():
        images += data.images.values()
    if images:
        widths = _range([image["width"] for image in images])
        heights = _range([image["height"] for image in images])
        lines.append(f"images are {widths} pixels wide and {heights} high")
    return "\n".join(lines)


def _objects_by_class(data: coco.CocoFile) -> Counter[ClassLabel]:
    """Count the objects of each class, also of those without objects; crowds do not count.

    Classes are identified by name, since files may number the same classes differently.
    """
    repetitions: Counter[str] = Counter()
    labels = {}
    for id, name in data.categories.items():
        labels[id] = ClassLabel(name, repetitions[name])
        repetitions[name] += 1
    counts = Counter(dict.fromkeys(labels.values(), 0))
    for objects in data.objects.values():
        for item in objects:
            if not item["iscrowd"]:
                counts[labels[item["category_id"]]] += 1
    return counts


def _range(numbers: Sequence[int]) -> str:
    low, high = min(numbers), max(numbers)
    return str(low) if low == high else f"{low} to {high}"
