"""Draw the images of a dataset with their annotations.

    gpvit view-data --data my_data --output output/view_data
    gpvit view-data --data annotations.json --images my_data/images --classes cat --number 9

    gpvit view-data --data my_data --semantic

Writes a drawing of each image, and sheet.png with all of them. Images that cannot be read are
skipped and listed at the end; the exit code is then 1. Label maps are drawn with a legend, also
those of a dataset's objects with --semantic, and the images of class folders with their class.
"""

import argparse
import random
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from matplotlib.figure import Figure

from ..data.classification_mapper import read_classified
from ..data.datasets import coco as annotations
from ..data.datasets import custom as layouts
from ..data.datasets.class_folders import ClassificationData, find_class_folders
from ..data.datasets.custom_semantic import find_semantic, ignore_value_of
from ..data.datasets.image_root import find_image_root
from ..data.image_io import read_annotated_image, save_image
from ..data.label_maps import Color, labels_of
from ..utils.errors import UserError, preview
from ..utils.files import atomic_write, check_overwrite, make_folder, truncate_name
from ..utils.fonts import draw_all_characters
from ..utils.text import LINE_LIMIT, cut_in_the_middle, one_line
from ..visualization import style
from ..visualization.classification_drawing import draw_label
from ..visualization.drawing import draw_annotations, reduced
from ..visualization.label_drawing import draw_labels, with_legend
from .options import (
    COUNT,
    DATA_HELP,
    IMAGES_HELP,
    INDEX,
    add_output,
    add_semantic,
    command_parser,
    is_semantic,
)

COLUMNS = 4  # of the sheet
CELL = 900  # pixels, the longer side of a drawing on the sheet
GAP = 30  # pixels between drawings


def main(arguments: Sequence[str]) -> int:
    args = parse(arguments)
    painter: Painter
    semantic = is_semantic(args)
    class_folders = None if semantic else find_class_folders(str(args.data))
    if semantic:
        source, records, painter = load_semantic(args)
    elif class_folders:
        source, records, painter = load_classification(class_folders, args)
    else:
        json_file, images = locate(args.data, args.images, args.split)
        source = str(json_file)
        records, classes = load(json_file, images)
        painter = ObjectPainter(classes)
        if args.classes:
            records = with_classes(records, classes, args.classes)
    records = choose(records, args)
    sheet = args.output / "sheet.png"
    targets = []
    for record in records:
        stem = truncate_name(Path(record["file_name"]).stem)
        targets.append(args.output / f"{record['image_id']}_{stem}.png")
    check_overwrite([*targets, sheet], args.overwrite)
    make_folder(args.output)
    drawn, errors = draw(records, targets, painter)
    if drawn:
        save_sheet(drawn, sheet)
        print(one_line(f"{len(drawn)} images of {source} -> {sheet}", LINE_LIMIT))
    for error in errors:
        print(f"error: {error}", file=sys.stderr)
    return int(bool(errors))


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = command_parser("view-data", __doc__)
    parser.add_argument("--data", required=True, type=Path, metavar="PATH", help=DATA_HELP)
    parser.add_argument("--images", type=Path, metavar="DIR", help=IMAGES_HELP)
    parser.add_argument(
        "--split",
        choices=("train", "val"),
        help="split of a dataset folder (default: train, or val if there is no train)",
    )
    add_output(parser, "DIR", "folder to write to", default="output/view_data")
    parser.add_argument(
        "--number",
        default=16,
        type=COUNT,
        metavar="N",
        help="number of randomly chosen images (default: %(default)s)",
    )
    parser.add_argument(
        "--seed",
        default=0,
        type=INDEX,
        metavar="N",
        help="seed of the random choice (default: %(default)s)",
    )
    parser.add_argument(
        "--ids",
        nargs="+",
        type=INDEX,
        metavar="ID",
        help="IDs of the images to draw (default: random images)",
    )
    parser.add_argument(
        "--classes",
        nargs="+",
        metavar="NAME",
        help="classes to draw; images without them are left out (default: all)",
    )
    add_semantic(parser)
    return parser.parse_args(arguments)


def locate(data: Path, images: Path | None, split: str | None) -> layouts.SplitFiles:
    """Return the annotation file and the image folder that the options select."""
    if data.suffix.lower() == ".json" and data.is_file():
        if split:
            raise UserError(f"{data} is a single file; --split applies to dataset folders only")
        try:
            return layouts.SplitFiles(data, images or find_image_root(data))
        except UserError as error:
            raise UserError(f"{error}; give their folder by --images DIR") from None
    if images:
        raise UserError(f"{data} is not a JSON file; --images applies to JSON files only")
    splits = layouts.find(str(data))
    for name in (split,) if split else ("train", "val"):
        if name in splits and splits[name].json_file.exists():
            return splits[name]
    raise UserError(f"{data} has no annotations for {split or 'train or val'}")


def load(json_file: Path, images: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the images as Detectron2's records, and the class names.

    The "segmentation" of an object that has only a box is empty.
    """
    boxes = annotations.read(json_file, images, masks=False)
    masks = annotations.read(json_file, images, masks=True)
    if not any(problem.kind == "no mask" for problem in masks.problems):
        return masks.records(), list(masks.categories.values())
    # Read without masks, records have all objects and no segmentation: add it where there is one.
    segmentations = {}
    for items in masks.objects.values():
        for item in items:
            segmentations[item["id"]] = item["segmentation"]
    records = boxes.records()
    for record in records:
        for item in record["annotations"]:
            item["segmentation"] = segmentations.get(item["id"], [])
    return records, list(boxes.categories.values())


def choose(records: list[dict[str, Any]], args: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the images that the options select."""
    if args.ids:
        by_id = {record["image_id"]: record for record in records}
        unknown = [str(id) for id in args.ids if id not in by_id]
        if unknown:
            condition = " and these classes" if args.classes else ""
            raise UserError(f"there are no images with the IDs {preview(unknown)}{condition}")
        return [by_id[id] for id in dict.fromkeys(args.ids)]
    if not records:
        raise UserError("there are no images to draw")
    indices = random.Random(args.seed).sample(range(len(records)), min(args.number, len(records)))
    return [records[index] for index in sorted(indices)]


def with_classes(
    records: list[dict[str, Any]], classes: list[str], chosen: list[str]
) -> list[dict[str, Any]]:
    """Remove all objects of other classes, and return the images that have any left."""
    require_classes(chosen, classes)
    kept = []
    for record in records:
        objects = record["annotations"]
        record["annotations"] = [o for o in objects if classes[o["category_id"]] in chosen]
        if record["annotations"]:
            kept.append(record)
    return kept


def require_classes(chosen: Sequence[str], classes: Sequence[str]) -> None:
    """Raise a UserError if a chosen class does not exist."""
    unknown = set(chosen) - set(classes)
    if unknown:
        raise UserError(
            f"there are no classes {preview(sorted(unknown))}; the dataset has {preview(classes)}"
        )


def draw(
    records: list[dict[str, Any]], targets: list[Path], painter: "Painter"
) -> tuple[list[tuple[str, np.ndarray]], list[str]]:
    """Write a drawing of each image.

    Returns:
        The titles and drawings for the sheet, (H, W, 3), RGB; and the errors of unreadable images.
    """
    drawn, errors = [], []
    for number, (record, target) in enumerate(zip(records, targets), start=1):
        path = record["file_name"]
        try:
            drawing, content = painter.draw(record)
        except UserError as error:
            errors.append(f"{error} (image id {record['image_id']})")
            continue
        save_image(target, drawing)
        title = f"{record['image_id']}: {one_line(Path(path).name)}, {content}"
        drawn.append((title, reduced(drawing, CELL / max(drawing.shape[:2]))))
        line = f"[{number}/{len(records)}] {path}: {content} -> {target}"
        print(one_line(line, LINE_LIMIT))
    return drawn, errors


class ObjectPainter(NamedTuple):
    """Draws the objects of records."""

    classes: list[str]

    def draw(self, record: dict[str, Any]) -> tuple[np.ndarray, str]:
        """Return the drawing, (h, w, 3), and what it shows."""
        image = read_annotated_image(record["file_name"], record["height"], record["width"])
        count = len(record["annotations"])
        drawing = draw_annotations(image, record, self.classes)
        return drawing, f"{count} object{'' if count == 1 else 's'}"


class LabelPainter(NamedTuple):
    """Draws the label maps of records with a legend, or only some of the classes."""

    classes: list[str]
    palette: list[Color]
    ignore_value: int
    drawn: frozenset[int]

    def draw(self, record: dict[str, Any]) -> tuple[np.ndarray, str]:
        """Return the drawing, (h, w, 3), and what it shows."""
        image = read_annotated_image(record["file_name"], record["height"], record["width"])
        labels = labels_of(record, self.ignore_value).astype(np.int64)
        if labels.shape != image.shape[:2]:
            raise UserError(f"{record['sem_seg_file_name']}: differs in size from its image")
        found = np.unique(labels[labels != self.ignore_value])
        labels[~np.isin(labels, list(self.drawn))] = len(self.classes)
        drawing = draw_labels(image, labels, self.classes, self.palette)
        drawing = with_legend(drawing, labels, self.classes, self.palette)
        return drawing, f"{len(found)} class{'' if len(found) == 1 else 'es'}"


class ClassPainter(NamedTuple):
    """Draws images with their classes."""

    classes: list[str]

    def draw(self, record: dict[str, Any]) -> tuple[np.ndarray, str]:
        """Return the drawing, (h, w, 3), and what it shows."""
        name = one_line(self.classes[record["label"]])
        return draw_label(read_classified(record), name), name


Painter: TypeAlias = ObjectPainter | LabelPainter | ClassPainter


def chosen_split(splits: Mapping[str, Any], args: argparse.Namespace, what: str) -> Any:
    """Return the split that --split selects, by default train if there is one.

    Args:
        splits: "train" and "val", or one of them.
        args: of the command line.
        what: of the dataset is drawn, for errors.
    """
    if args.images:
        raise UserError(f"--images does not apply to {what}; give the folder by --data")
    split = args.split or next(name for name in ("train", "val") if name in splits)
    if split not in splits:
        raise UserError(f"{args.data} has no {what} for {split}")
    return splits[split]


def load_classification(
    data: ClassificationData, args: argparse.Namespace
) -> tuple[str, list[dict[str, Any]], ClassPainter]:
    """Return the name of a split of class folders, its records, and how to draw them."""
    part = chosen_split(data.splits, args, "class folders")
    records = part.records
    if args.classes:
        require_classes(args.classes, data.classes)
        records = [record for record in records if data.classes[record["label"]] in args.classes]
    return part.path, records, ClassPainter(data.classes)


def load_semantic(args: argparse.Namespace) -> tuple[str, list[dict[str, Any]], LabelPainter]:
    """Return the name of a split with label maps, its records, and how to draw them."""
    data = find_semantic(str(args.data))
    part = chosen_split(data.splits, args, "label maps")
    chosen = set(range(len(data.classes)))
    records = part.records
    if args.classes:
        require_classes(args.classes, data.classes)
        chosen = {data.classes.index(name) for name in args.classes}
        kept = []
        for record, counts in zip(records, part.pixels):
            if counts[sorted(chosen)].any():
                kept.append(record)
        records = kept
    ignore_value = ignore_value_of(len(data.classes))
    painter = LabelPainter(data.classes, data.palette, ignore_value, frozenset(chosen))
    return part.path, records, painter


def save_sheet(pictures: list[tuple[str, np.ndarray]], path: Path) -> None:
    """Write a sheet of drawings with their titles, without resampling the drawings."""
    columns = min(COLUMNS, len(pictures))
    rows = [pictures[start : start + columns] for start in range(0, len(pictures), columns)]
    # The cells of all columns are equally wide; those of a row are as high as its highest drawing.
    width = GAP + max(picture.shape[1] for _, picture in pictures)
    # Drawings are placed pixel by pixel, so the resolution only affects the size of the titles.
    dpi = max(100, width * columns // style.WIDTH)
    character, title_height = 0.6 * style.SMALL * dpi / 72, GAP + round(style.SMALL * dpi / 72)
    heights = []
    for row in rows:
        heights.append(title_height + max(picture.shape[0] for _, picture in row))
    total_width, total_height = width * columns, sum(heights)
    # A hundredth of a pixel keeps matplotlib from rounding a side down.
    size = (total_width + 0.01) / dpi, (total_height + 0.01) / dpi
    with style.figure_style():
        figure = Figure(figsize=size, dpi=dpi)
        for number, row in enumerate(rows):
            # The upper edge of the row's drawings. Matplotlib's y axis points up from the bottom.
            top = sum(heights[number:]) - title_height
            for column, (title, picture) in enumerate(row):
                x = GAP // 2 + column * width
                figure.figimage(picture, x, top - picture.shape[0])
                figure.text(
                    x / total_width,
                    (top + GAP // 3) / total_height,
                    cut_in_the_middle(title, int((width - GAP) / character)),
                    fontsize=style.SMALL,
                    parse_math=False,  # a file name may contain dollar signs
                )
        draw_all_characters(figure)
        with atomic_write(path) as partial:
            figure.savefig(partial)
