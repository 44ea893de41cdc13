"""Draws a data set in COCO format, or in any layout that --data of train_net.py takes, with its annotations.

    gpvit view-data --data my_data --output output/view_data
    gpvit view-data --data annotations.json --images my_data/images --classes cat --number 9

Each image becomes a picture of its own, and sheet.png shows them all. An image that cannot be read is left out and told
of at the end; the exit code is 1 then.
"""

import argparse
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ..data.datasets import coco as annotations
from ..data.datasets import custom as layouts
from ..data.image_io import read_annotated_image, save_image
from ..utils.errors import UserError, preview
from ..utils.files import atomic_write, cut, make_folder, refuse_to_replace
from ..utils.fonts import draw_all_characters
from ..utils.text import LINE_LIMIT, cut_in_the_middle, one_line
from ..visualization.drawing import draw_annotations, reduced
from .options import COUNT, INDEX, add_output, command_parser

COLUMNS = 4
CELL = 900  # pixels, the longer side of a picture on the sheet
GAP = 30  # pixels between them, above with their titles


def main(arguments: Sequence[str]) -> int:
    parser = command_parser("view-data", __doc__)
    what = "a dataset, as for training, or one JSON file"
    parser.add_argument("--data", required=True, type=Path, metavar="PATH", help=what)
    parser.add_argument(
        "--images",
        type=Path,
        metavar="DIR",
        help="folder of the images of a JSON file, if not found",
    )
    parser.add_argument(
        "--split", choices=("train", "val"), help="which part of a folder; train if there is one"
    )
    add_output(parser, "DIR", "where the pictures go", default="output/view_data")
    parser.add_argument(
        "--number", default=16, type=COUNT, help="how many images, chosen at random"
    )
    parser.add_argument("--seed", default=0, type=INDEX, help="another one chooses other images")
    parser.add_argument("--ids", nargs="+", type=INDEX, metavar="ID", help="these images instead")
    parser.add_argument(
        "--classes", nargs="+", metavar="NAME", help="only objects of these, and images with them"
    )
    args = parser.parse_args(arguments)
    json_file, images = locate(args.data, args.images, args.split)
    records, classes = load(json_file, images)
    records = choose(records, classes, args)
    targets = [
        args.output / f"{record['image_id']}_{cut(Path(record['file_name']).stem)}.png"
        for record in records
    ]
    refuse_to_replace([*targets, args.output / "sheet.png"], args.overwrite)
    make_folder(args.output)
    drawn, errors = draw(records, targets, classes)
    if drawn:
        save_sheet(drawn, args.output / "sheet.png")
        print(one_line(f"{len(drawn)} of {json_file} -> {args.output / 'sheet.png'}", LINE_LIMIT))
    for error in errors:
        print(f"error: {error}", file=sys.stderr)
    return int(bool(errors))


def locate(data: Path, images: Path | None, split: str | None) -> layouts.Split:
    """The file of annotations and the folder of its images that are asked for."""
    if data.suffix.lower() == ".json" and data.is_file():
        if split:
            raise UserError(f"{data} is one file, of which all is shown; --split is for folders")
        try:
            return layouts.Split(data, images or layouts.image_root(data))
        except UserError as error:
            raise UserError(f"{error}; give their folder by --images DIR") from None
    if images:
        raise UserError(f"{data} is no JSON file; --images is for those")
    splits = layouts.find(str(data))
    there = [
        name
        for name in ([split] if split else ("train", "val"))
        if name in splits and splits[name].json_file.exists()
    ]
    if not there:
        raise UserError(f"{data} has no annotations for {split or 'train or val'}")
    return splits[there[0]]


def load(json_file: Path, images: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """The images as Detectron2's records, and the class names; "segmentation" is empty where an object has only a box."""
    boxes, masks = (annotations.read(json_file, images, masks=masks) for masks in (False, True))
    if not any(problem.kind == "no mask" for problem in masks.problems):
        return masks.records(), list(masks.categories.values())
    outlines = {
        item["id"]: item["segmentation"] for items in masks.objects.values() for item in items
    }
    records = boxes.records()
    for item in (item for record in records for item in record["annotations"]):
        item["segmentation"] = outlines.get(item["id"], [])
    return records, list(boxes.categories.values())


def choose(
    records: list[dict[str, Any]], classes: list[str], args: argparse.Namespace
) -> list[dict[str, Any]]:
    """The images that are asked for, with the objects that are."""
    if args.classes:
        if unknown := sorted({*args.classes} - {*classes}):
            raise UserError(
                f"there are no classes {preview(unknown)}; there are {preview(classes)}"
            )
        for record in records:
            record["annotations"] = [
                o for o in record["annotations"] if classes[o["category_id"]] in args.classes
            ]
        records = [record for record in records if record["annotations"]]
    if args.ids:
        known = {record["image_id"]: record for record in records}
        if unknown := [str(id) for id in args.ids if id not in known]:
            raise UserError(
                f"there are no images with id {preview(unknown)}{' and these classes' if args.classes else ''}"
            )
        return [known[id] for id in dict.fromkeys(args.ids)]
    if not records:
        raise UserError("there is no image to draw")
    chosen = random.Random(args.seed).sample(range(len(records)), min(args.number, len(records)))
    return [records[index] for index in sorted(chosen)]


def draw(
    records: list[dict[str, Any]], targets: list[Path], classes: list[str]
) -> tuple[list[tuple[str, np.ndarray]], list[str]]:
    """Writes a picture for each image; gives them with their titles, made smaller for the sheet, and what went wrong."""
    drawn, errors = [], []
    for number, (record, target) in enumerate(zip(records, targets), start=1):
        path = record["file_name"]
        try:
            image = read_annotated_image(path, record["height"], record["width"])
        except UserError as error:
            errors.append(f"{error} (image id {record['image_id']})")
            continue
        picture = draw_annotations(image, record, classes)
        save_image(target, picture)
        smaller = reduced(picture, CELL / max(picture.shape[:2]))
        objects = len(record["annotations"])
        name = one_line(Path(path).name)
        drawn.append(
            (f"{record['image_id']}: {name}, {objects} object{'s' * (objects != 1)}", smaller)
        )
        print(
            one_line(f"[{number}/{len(records)}] {path}: {objects} objects -> {target}", LINE_LIMIT)
        )
    return drawn, errors


def save_sheet(pictures: list[tuple[str, np.ndarray]], path: Path) -> None:
    """A sheet of pictures with their titles, pixel by pixel."""
    columns = min(COLUMNS, len(pictures))
    rows = [pictures[start : start + columns] for start in range(0, len(pictures), columns)]
    width = GAP + max(picture.shape[1] for _, picture in pictures)
    heights = [GAP + max(picture.shape[0] for _, picture in row) for row in rows]
    figure = Figure(figsize=(width * columns / 100, sum(heights) / 100), dpi=100)
    for number, row in enumerate(rows):
        top = sum(heights[number:]) - GAP  # from the bottom
        for x, (title, picture) in zip(range(GAP // 2, width * columns, width), row):
            figure.figimage(picture, x, top - picture.shape[0])
            place = x / width / columns, (top + 6) / sum(heights)
            figure.text(
                *place, cut_in_the_middle(title, width // 9), fontsize=12, parse_math=False
            )  # a name may have two $
    draw_all_characters(figure)
    with atomic_write(path) as partial:
        figure.savefig(partial)
