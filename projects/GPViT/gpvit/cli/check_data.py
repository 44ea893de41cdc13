"""Checks annotations in COCO format, and the images they are of, before a training does.

    gpvit check-data --data my_data                                # in any layout that --data of train_net.py takes
    gpvit check-data --data annotations.json --images my_data/images

Prints what was found and all problems by kind with the first ids, and what training and evaluation make of each. The exit
code is 1 if one of them stops training.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from ..data.datasets import custom as layouts
from ..data.datasets.coco import CocoFile, images_in_both, read
from ..data.datasets.coco_rules import RULES, WHOLE_FILE, Problem, grouped
from ..utils.errors import UserError, preview
from ..utils.files import atomic_write
from ..utils.text import PATH_LIMIT, one_line
from .options import command_parser

MEANING = {"stop": "stops training", "drop": "dropped", "fix": "fixed", "note": "to know"}


def main(arguments: Sequence[str]) -> int:
    parser = command_parser("check-data", __doc__)
    what = "a dataset, as for training, or one JSON file"
    parser.add_argument("--data", type=Path, metavar="PATH", help=what)
    parser.add_argument(
        "--images", type=Path, metavar="DIR", help="folder of the images of a JSON file"
    )
    parser.add_argument("--boxes", action="store_true", help="masks are not needed (RetinaNet)")
    parser.add_argument(
        "--annotations-only",
        action="store_true",
        help="do not open the images, which takes longest",
    )
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write all problems with all ids to this file"
    )
    parser.add_argument(
        "--rules",
        action="store_true",
        help="print what is done about each kind of problem, and end",
    )
    args = parser.parse_args(arguments)
    if args.rules:
        print(
            "| problem | | what training and evaluation make of it, or what to do |\n|---|---|---|"
        )
        for rule in RULES.values():
            print(f"| {rule.what} | {MEANING[rule.action]} | {rule.then} |")
        return 0
    if args.json and args.data:
        refuse_to_replace_data(args.json, args.data)
    files = check(args.data, args.images, not args.boxes, not args.annotations_only)
    for data in files:
        show(data)
    if args.json:
        if args.json.resolve() in {Path(data.path).resolve() for data in files}:
            raise UserError(
                f"--json {args.json} is the file of annotations itself; give another name"
            )
        rows = [
            {"file": data.path} | problem._asdict() for data in files for problem in data.problems
        ]
        with atomic_write(args.json) as partial:
            partial.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
        print(f"\n{len(rows)} problems are in {one_line(args.json, PATH_LIMIT)}")
    return int(
        any(RULES[problem.kind].action == "stop" for data in files for problem in data.problems)
    )


def refuse_to_replace_data(json_file: Path, data: Path) -> None:
    """Raises a UserError if the file that is to be written is one of the data."""
    target, given = json_file.resolve(), data.resolve()
    if target == given:
        raise UserError(f"--json {json_file} is the data itself; give another name")
    if target.exists() and target.is_relative_to(given):
        raise UserError(
            f"--json {json_file} is there already, in the data; remove it, or give another name"
        )


def check(path: Path | None, images: Path | None, masks: bool, open_images: bool) -> list[CocoFile]:
    """The files that are to be checked, with their problems; prints what they hold."""
    if path is None or not path.exists():
        raise UserError(
            f"{path} does not exist"
            if path
            else "give a folder or a JSON file by --data; see --help"
        )
    if path.is_file() and (images or not open_images) and path.suffix.lower() not in layouts.YAML:
        file = read(path, images or "", masks=masks, open_images=open_images)
        print(f"{one_line(path, PATH_LIMIT)}\n{layouts.table({'all': file})}")
        return [file]
    layout = detected(path)
    files = {
        split: read(
            json_file,
            images or folder,
            masks=masks,
            train=split == "train",
            open_images=open_images,
        )
        for split, (json_file, folder) in layout.splits.items()
    }
    for split, data in files.items():
        layout.trace(split, data)
    classes = {tuple(data.categories.values()) for data in files.values() if data.categories}
    if len(classes) > 1:
        next(iter(files.values())).problems.insert(0, Problem("classes differ"))
    if len(files) > 1:
        files["train"].problems += images_in_both(files["train"], files["val"], copies=open_images)
    print(layout.summary(files))
    return list(files.values())


def detected(path: Path) -> layouts.Layout:
    try:
        return layouts.detect_format(str(path))
    except UserError as error:
        if path.suffix.lower() != ".json":
            raise
        raise UserError(
            f"{error}; give the folder of its images by --images DIR, or --annotations-only"
        ) from None


def show(data: CocoFile) -> None:
    """Prints a file's problems by kind."""
    print(f"\n{data.summary()}")
    groups = grouped(data.problems)
    if not groups:
        print("  no problems")
    for kind, problems in groups.items():
        rule = RULES[kind]
        count = "" if kind in WHOLE_FILE else f"{len(problems)} "
        print(f"\n  {MEANING[rule.action]}: {count}{rule.what}")
        names = [name(problem) for problem in problems]
        if any(names):
            print(f"    {preview(names)}")
        print(f"    -> {rule.then}")


def name(problem: Problem) -> str:
    """Where a problem is, in a few words."""
    image = "" if problem.image_id is None else f"image {problem.image_id}"
    annotation = "" if problem.annotation_id is None else f"annotation {problem.annotation_id}"
    detail = f"({problem.detail})" if problem.detail else ""
    return " ".join(filter(None, (annotation or image, detail)))
