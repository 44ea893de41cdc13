"""Check a dataset, its annotations and its images, before training on it.

    gpvit check-data --data my_data
    gpvit check-data --data annotations.json --images my_data/images
    gpvit check-data --data my_data --semantic

Prints a summary of the dataset and its problems by kind, each with the first IDs and with how
training and evaluation handle it. The exit code is 1 if a problem stops training. A dataset of
label maps is recognized, and so is one of class folders; --semantic checks the objects of another
one as label maps.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

from ..data.datasets import custom as layouts
from ..data.datasets.class_folders import NO_CLASS_FOLDERS, ClassificationSplit, find_class_folders
from ..data.datasets.class_folders import read_all_images as read_all_images_of_classes
from ..data.datasets.coco import CocoFile, images_in_both, read
from ..data.datasets.coco_rules import RULES, WHOLE_FILE, Problem, grouped
from ..data.datasets.custom_semantic import SemanticSplit, find_semantic, read_all_images
from ..data.datasets.summary import table
from ..utils.errors import UserError, preview
from ..utils.files import atomic_write
from ..utils.text import PATH_LIMIT, one_line
from .options import DATA_HELP, IMAGES_HELP, add_semantic, command_parser, is_semantic

CheckedSplit: TypeAlias = CocoFile | SemanticSplit | ClassificationSplit

# Action of a rule -> how it is printed.
MEANING = {"stop": "stops training", "drop": "dropped", "fix": "fixed", "note": "note"}


def main(arguments: Sequence[str]) -> int:
    args = parse(arguments)
    if args.rules:
        print_rules()
        return 0
    if args.json and args.data:
        refuse_to_replace_data(args.json, args.data)
    files: Sequence[CheckedSplit]
    class_folders = None
    semantic = bool(args.data) and is_semantic(args)
    if args.data and not semantic:
        class_folders = find_class_folders(str(args.data))
    if semantic:
        if args.images or args.boxes:
            raise UserError("--images and --boxes do not apply to label maps; leave them out")
        files = check_semantic(args.data, not args.annotations_only)
    elif class_folders:
        if args.images or args.boxes:
            raise UserError("--images and --boxes do not apply to class folders; leave them out")
        if not args.annotations_only:
            read_all_images_of_classes(class_folders)
        print(class_folders.summary())
        files = list(class_folders.splits.values())
    else:
        files = check(args.data, args.images, not args.boxes, not args.annotations_only)
    for data in files:
        print_problems(data)
    if args.json:
        write_json(args.json, files)
    return int(any(map(stops_training, files)))


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = command_parser("check-data", __doc__)
    parser.add_argument("--data", type=Path, metavar="PATH", help=DATA_HELP)
    parser.add_argument("--images", type=Path, metavar="DIR", help=IMAGES_HELP)
    parser.add_argument(
        "--boxes", action="store_true", help="accept objects without masks, as RetinaNet does"
    )
    parser.add_argument(
        "--annotations-only",
        action="store_true",
        help="skip reading the images, which takes most of the time",
    )
    add_semantic(parser)
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="JSON file to write all problems with all IDs to"
    )
    parser.add_argument(
        "--rules",
        action="store_true",
        help="print how each kind of problem is handled, without checking a dataset",
    )
    return parser.parse_args(arguments)


def print_rules() -> None:
    """Print the rule for each kind of problem, as a Markdown table."""
    print("| problem | | how training and evaluation handle it, or what to do |\n|---|---|---|")
    for rule in RULES.values():
        print(f"| {rule.what} | {MEANING[rule.action]} | {rule.then} |")


def refuse_to_replace_data(json_file: Path, data: Path) -> None:
    """Raise a UserError if writing the problems would replace a file of the dataset."""
    target, dataset = json_file.resolve(), data.resolve()
    if target == dataset:
        raise UserError(f"--json {json_file} is the dataset itself; give another file name")
    if target.exists() and target.is_relative_to(dataset):
        raise UserError(
            f"--json {json_file} already exists in the dataset; remove it, or give another name"
        )


def write_json(path: Path, files: Sequence[CheckedSplit]) -> None:
    """Write all problems to a JSON file: a list of objects with the fields of ``Problem``."""
    rows = []
    for data in files:
        if path.resolve() == Path(data.path).resolve():
            raise UserError(f"--json {path} is the annotation file itself; give another file name")
        rows += [{"file": data.path} | problem._asdict() for problem in data.problems]
    with atomic_write(path) as partial:
        partial.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    print(f"\n{len(rows)} problems written to {one_line(path, PATH_LIMIT)}")


def stops_training(data: CheckedSplit) -> bool:
    return any(RULES[problem.kind].action == "stop" for problem in data.problems)


def check_semantic(path: Path, open_images: bool) -> list[SemanticSplit]:
    """Return the splits of a dataset with label maps with their problems; print a summary."""
    data = find_semantic(str(path))
    if open_images:
        read_all_images(data)
    print(data.summary())
    return list(data.splits.values())


def check(path: Path | None, images: Path | None, masks: bool, open_images: bool) -> list[CocoFile]:
    """Return the annotation files of a dataset with their problems; print a summary."""
    if path is None:
        raise UserError("give a folder or a JSON file by --data; see --help")
    if not path.exists():
        raise UserError(f"{path} does not exist")
    if path.is_file() and (images or not open_images) and path.suffix.lower() not in layouts.YAML:
        file = read(path, images or "", masks=masks, open_images=open_images)
        print(f"{one_line(path, PATH_LIMIT)}\n{table({'all': file})}")
        return [file]
    layout = detected(path)
    files = {}
    for split, (json_file, folder) in layout.splits.items():
        files[split] = read(
            json_file,
            images or folder,
            masks=masks,
            train=split == "train",
            open_images=open_images,
        )
        layout.refer_to_user_files(split, files[split])
    add_problems_between_splits(files, open_images)
    print(layout.summary(files))
    return list(files.values())


def add_problems_between_splits(files: dict[str, CocoFile], open_images: bool) -> None:
    """Add to the first split's problems that the classes differ, and images that are in both."""
    classes = set()
    for data in files.values():
        if data.categories:
            classes.add(tuple(data.categories.values()))
    if len(classes) > 1:
        next(iter(files.values())).problems.insert(0, Problem("classes differ"))
    if len(files) > 1:
        files["train"].problems += images_in_both(files["train"], files["val"], copies=open_images)


def detected(path: Path) -> layouts.Layout:
    """Return the layout of a dataset; errors about a JSON file mention --images."""
    try:
        return layouts.find_layout(str(path))
    except UserError as error:
        if path.is_dir():
            raise UserError(f"{error}; {NO_CLASS_FOLDERS}") from None
        if path.suffix.lower() != ".json":
            raise
        raise UserError(
            f"{error}; give the folder of its images by --images DIR, or add --annotations-only"
        ) from None


def print_problems(data: CheckedSplit) -> None:
    """Print a file's problems by kind."""
    print(f"\n{data.summary()}")
    groups = grouped(data.problems)
    if not groups:
        print("  no problems")
    for kind, problems in groups.items():
        rule = RULES[kind]
        count = "" if kind in WHOLE_FILE else f"{len(problems)} "
        print(f"\n  {MEANING[rule.action]}: {count}{rule.what}")
        locations = list(map(location, problems))
        if any(locations):
            print(f"    {preview(locations)}")
        print(f"    -> {rule.then}")


def location(problem: Problem) -> str:
    """Return the image or annotation of a problem, and its detail in parentheses."""
    parts = []
    if problem.annotation_id is not None:
        parts.append(f"annotation {problem.annotation_id}")
    elif problem.image_id is not None:
        parts.append(f"image {problem.image_id}")
    if problem.detail:
        parts.append(f"({problem.detail})")
    return " ".join(parts)
