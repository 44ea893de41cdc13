"""Custom datasets: find annotations and images, whatever the layout of their folder.

**COCO format, one JSON file per split**, anywhere in the folder. Words in the names of the files or
of their folders assign them to splits (``annotations/train.json``, ``instances_val2017.json``,
``valid/_annotations.coco.json``). A test split is used for validation if there is no other. The
images are searched for in the folder (:mod:`.image_root`).

**COCO format, a single JSON file**, given itself or the only one in a folder. A fifth of its images
is held out for validation; a seed and the names of the images determine which (:mod:`.splits`).

**YOLO segmentation** (a YAML file with the class names, ``images`` and ``labels``) and **labelme**
(one JSON file per image) are converted by :mod:`.yolo` and :mod:`.labelme`. They are split as the
YAML file states (:mod:`.yolo_yaml`), else by words in the names of folders, else like a single
file.

Generated files are written to the user's cache (:mod:`.cache`), never to the dataset. A dataset
that could be read in more than one way raises an error.
"""

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path, PurePath
from types import MappingProxyType
from typing import Any, NamedTuple

from ...utils.errors import UserError, preview
from ...utils.text import LINE_LIMIT, PATH_LIMIT, one_line
from ..image_io import SUFFIXES
from . import coco, image_names, yolo_yaml
from .cache import generate_once
from .coco_rules import RULES, Problem, dropped_or_fixed, ordered
from .file_tree import UNREAD, YAML, Tree, inspect_json, split_of
from .image_root import find_image_root
from .splits import hold_out, split_images
from .summary import table

SUPPORTED = (
    "COCO JSON files (one for train and one for val, or a single one), YOLO segmentation "
    "(data.yaml, images/ and labels/) and labelme (a JSON file next to each image)"
)


class SplitFiles(NamedTuple):
    """An annotation file in COCO format, and the folder that its image names are relative to."""

    json_file: Path
    images: Path


class Layout(NamedTuple):
    """A custom dataset whose format is detected and whose files are found.

    A dataset in YOLO or labelme format has been converted: its splits are COCO files in the cache,
    which the user has never seen. ``origins`` lead from their IDs back to the user's files, so that
    problems can be reported by these, see :meth:`refer_to_user_files`.

    Attributes:
        data: path of the folder or file, as given by the user.
        name: of the format, for the summary.
        splits: "train" and "val"; one of them may be missing.
        notes: decisions to report to the user.
        origins: for converted datasets, by split: a JSON file with the problems of the conversion
            and the origin of each object, see :meth:`.ConvertedDataset.origins`.
    """

    data: str
    name: str
    splits: Mapping[str, SplitFiles]
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
        self.refer_to_user_files(split, file)
        file.raise_if_fatal()
        return file

    def read_all(self, splits: Iterable[str], *, masks: bool = True) -> dict[str, coco.CocoFile]:
        """Read splits, see :func:`read`; raise a UserError if their classes differ, too."""
        files = {split: self.read(split, masks=masks) for split in splits}
        first, *others = files.values()
        classes = list(first.categories.values())
        for other in others:
            other_classes = list(other.categories.values())
            if other_classes != classes:
                raise UserError(
                    f"--data {self.data}: {first.path} and {other.path} declare different classes: "
                    f"{preview(classes)} and {preview(other_classes)}"
                )
        return files

    def refer_to_user_files(self, split: str, file: coco.CocoFile) -> None:
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
        file.num_annotations += sum(RULES[problem.kind].action == "drop" for problem in problems)
        for problem in file.problems:
            problems.append(_refer_to_user_file(problem, file, origins["objects"]))
        for number, problem in enumerate(problems):
            if problem.kind == "no objects":  # dropped lines and shapes may be the reason
                problems[number] = problem._replace(detail=dropped_or_fixed(problems))
        file.problems = ordered(problems)

    def summary(self, files: Mapping[str, coco.CocoFile]) -> str:
        """Describe the dataset in a few lines.

        Args:
            files: the contents of each split.
        """
        lines = [one_line(f"{self.data}: {self.name}", LINE_LIMIT)]
        lines += [one_line(f"  {note}", LINE_LIMIT) for note in self.notes]
        return "\n".join([*lines, table(files)])


def _refer_to_user_file(
    problem: Problem, file: coco.CocoFile, objects: Mapping[str, Any]
) -> Problem:
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
        other = one_line(file.images[other_id]["file_name"], PATH_LIMIT)
        return Problem(problem.kind, detail=f"{where}: same as {other}")
    if where not in detail:  # the detail may already contain the name of the image
        detail = f"{where}: {detail}" if detail else where
    return Problem(problem.kind, detail=detail)


def find_layout(data: str) -> Layout:
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
        return _converted_layout(data, Tree(yolo_yaml.describe(path).root()), "YOLO", [path])
    if is_file:
        return _single_file(data, path, find_image_root(path))
    if not is_folder:
        raise UserError(f"--data {path}: does not exist")
    return _default_layout(data) or _search(data)


def find(data: str) -> Mapping[str, SplitFiles]:
    """Return the splits of a custom dataset, "train" and "val"; one of them may be missing.

    Raises as :func:`find_layout` does.
    """
    return find_layout(data).splits


def read(data: str, split: str, *, masks: bool = True) -> coco.CocoFile:
    """Read a split of a custom dataset, and apply the rules of :mod:`.coco` to it.

    Args:
        data: a folder or file, see :func:`find_layout`.
        split: "train" or "val".
        masks: whether every annotation must have a mask.

    Raises:
        UserError: files are missing or not recognized, or the annotations have a problem that stops
            training.
    """
    return find_layout(data).read(split, masks=masks)


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
            splits[split] = SplitFiles(json_file, images)
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
    json_files: dict[str, list[Path]] = {"COCO": [], "labelme": [], "broken": [], "other": []}
    for path in tree.json_files():
        json_files[tree.kind(path)].append(path)
    broken = json_files["broken"]

    # A YAML file with class names in the root counts as a YOLO dataset. In subfolders, where YAML
    # files of other programs are common, it only does if nothing else is found.
    yaml_files = tree.yaml_files()
    in_root = [path for path in yaml_files if path.parent == tree.root]
    in_subfolders = [path for path in yaml_files if path.parent != tree.root]
    yolo_files, reasons = yolo_descriptions(in_root)
    by_format = {"COCO": json_files["COCO"], "labelme": json_files["labelme"], "YOLO": yolo_files}
    found = {name: paths for name, paths in by_format.items() if paths}
    if not found:
        yolo_files, more_reasons = yolo_descriptions(in_subfolders)
        reasons += more_reasons
        if yolo_files:
            found = {"YOLO": yolo_files}

    if not found:
        raise _no_annotations(data, tree, broken + json_files["other"], reasons)
    if len(found) > 1:
        formats = "; ".join(f"{name} in {tree.preview(paths)}" for name, paths in found.items())
        raise UserError(
            f"--data {data}: more than one format is found, {formats}; give the JSON or YAML file "
            "itself, or move the others"
        )
    [(format_name, paths)] = found.items()
    if format_name == "COCO":
        return _coco_files(data, tree, paths, broken)
    if format_name == "labelme":
        # A broken file counts as one of labelme, to be reported by its name.
        paths = sorted([*paths, *broken])
    return _converted_layout(data, tree, format_name, paths)


def yolo_descriptions(paths: Iterable[Path]) -> tuple[list[Path], list[str]]:
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
    if reasons and tree.images and has_texts:  # a YOLO dataset with a faulty YAML file
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
        return _single_file(data, json_files[0], find_image_root(json_files[0], tree))
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
            images = find_image_root(path, tree, split)
            splits[split] = SplitFiles(path, images)
            notes.append(f"{split}: {tree.relative(path)}, images in {images}")
    roboflow = all(path.name == "_annotations.coco.json" for path, _ in splits.values())
    return Layout(data, "COCO format by Roboflow" if roboflow else "COCO format", splits, notes)


# Split and convert.


def _single_file(data: str, json_file: Path, images: Path) -> Layout:
    """Split a single COCO file into train and val, see :func:`hold_out`."""

    def generate() -> tuple[dict[str, dict], list[str]]:
        file = coco.read(json_file, images, masks=False)
        # Normalized boxes only stop if they cannot be recomputed from masks, which are not read
        # here. They are checked when a split is read.
        file.problems = [problem for problem in file.problems if problem.kind != "normalized"]
        file.raise_if_fatal()
        names = {image_id: image["file_name"] for image_id, image in file.images.items()}
        parts, notes = hold_out(set(names.values()))
        val_ids = {image_id for image_id, name in names.items() if name in parts["val"]}
        content = coco.load_json(json_file)
        train = _select(content, lambda image_id: image_id not in val_ids)
        return {
            "train": train,
            "val": _select(content, lambda image_id: image_id in val_ids),
        }, notes

    files, notes = generate_once(data, json_file.parent, [json_file.name], ["COCO"], generate)
    splits = {split: SplitFiles(file, images) for split, file in files.items()}
    return Layout(data, "COCO format", splits, [f"{json_file}, images in {images}", *notes])


def _select(content: dict, is_selected: Callable[[int], bool]) -> dict:
    """Return a COCO file with only some of its images, selected by ID, and their annotations."""
    images = [image for image in content.get("images", []) if is_selected(image["id"])]
    annotations = [item for item in content.get("annotations", []) if is_selected(item["image_id"])]
    return content | {"images": images, "annotations": annotations}


def _converted_layout(data: str, tree: Tree, format_name: str, paths: list[Path]) -> Layout:
    """Convert a dataset in YOLO or labelme format to COCO format.

    Args:
        data: as given by the user.
        tree: the files of the dataset.
        format_name: "YOLO" or "labelme".
        paths: the YAML file, or labelme's JSON files.
    """
    if format_name == "YOLO" and len(paths) > 1:
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
    yaml_files = (
        [os.path.relpath(path, tree.root) for path in paths] if format_name == "YOLO" else []
    )

    def generate() -> tuple[dict[str, dict], list[str]]:
        return _generated_files(data, tree, format_name, paths)

    files, notes = generate_once(data, tree.root, used, [format_name, *yaml_files], generate)
    splits = {split: SplitFiles(file, tree.root) for split, file in files.items()}
    origins = {split: file.with_suffix(".origins.json") for split, file in files.items()}
    folder = next(iter(files.values())).parent
    name = f"{format_name} format, converted to COCO format in {folder}"
    return Layout(data, name, splits, notes, origins)


def _generated_files(
    data: str, tree: Tree, format_name: str, paths: list[Path]
) -> tuple[dict[str, dict], list[str]]:
    """Return the contents of the files ``SPLIT.json`` and ``SPLIT.origins.json``, and notes.

    Args:
        data, tree, format_name, paths: as in :func:`_converted_layout`.
    """
    try:
        from . import labelme, yolo  # imported here, since supervision takes long to import
    except ModuleNotFoundError:
        raise UserError(
            f"{format_name} format needs the package supervision: pip install 'supervision>=0.31'"
        ) from None

    if format_name == "YOLO":
        dataset = yolo.from_yolo(paths[0], tree)
    else:
        dataset = labelme.from_labelme(paths, tree)
    try:
        parts, notes = split_images(dataset.splits)
    except UserError as error:
        message = f"--data {data}: {error}"
        if dataset.faults:  # unreadable images may be the reason
            message += f"; {preview([fault.detail for fault in dataset.faults])}"
        raise UserError(message) from None
    files = {split: dataset.coco(names) for split, names in parts.items()}
    files |= {f"{split}.origins": dataset.origins(names) for split, names in parts.items()}
    return files, [*dataset.notes, *notes]
