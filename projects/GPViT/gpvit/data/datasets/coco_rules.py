"""The kinds of problems in a custom dataset, and how each of them is handled."""

import logging
from typing import NamedTuple

from detectron2.utils.logger import log_first_n

from ...utils.errors import UserError
from ...utils.text import LINE_LIMIT, one_line
from ..image_io import MAX_PIXELS

# Detections of an image that a detector returns and AP counts, unless dataloader.max_detections
# is set.
MAX_DETECTIONS = 100
# Pixels by which a box may leave its image without being reported: rounding, and boxes whose width
# and height count both border pixels.
SLACK = 1.0
RECOMPUTED = "recomputed from the mask; dropped without a mask"
CHECKED_LATER = "fix them; training stops at the first one, or skips them with train.skip_budget"
MORE_DETECTIONS = (
    f"at most {MAX_DETECTIONS} of them are detected and counted by AP, unless "
    "dataloader.max_detections is raised"
)


class Rule(NamedTuple):
    """How one kind of problem is handled.

    action: "stop", "drop" (the object is dropped), "fix" (the object is changed) or "note" (the
        problem is only reported).
    what: the problem, to follow a count.
    then: how training and evaluation handle it, or what to do if they stop.
    """

    action: str
    what: str
    then: str


RULES = {
    "format": Rule("stop", "not in COCO format", "export the file again, as JSON in UTF-8"),
    "no categories": Rule(
        "stop", "no categories declared", 'declare the classes under "categories"'
    ),
    "no images": Rule("stop", "no images", 'list the images under "images"'),
    "no objects": Rule("stop", "no object to train on", "annotate some; crowds do not count"),
    "classes differ": Rule(
        "stop", "train.json and val.json declare different classes", "declare the same in both"
    ),
    "category": Rule("stop", "categories have no integer id or no name", "add the missing field"),
    "group": Rule(
        "note",
        "categories only name the group of all others, as the first one of Roboflow does",
        "ignored",
    ),
    "category twice": Rule("stop", "categories have the id of another one", "make the ids unique"),
    "image": Rule("stop", "images have no integer id or no file_name", "add the missing field"),
    "image twice": Rule(
        "stop", "images have the id of another one", "make the ids unique, also in the annotations"
    ),
    "image size": Rule(
        "stop",
        "images have no usable width and height",
        f"add both, with at most {MAX_PIXELS} pixels",
    ),
    "image name": Rule(
        "note", "images do not exist under their names", "found by the last parts of the names"
    ),
    "file twice": Rule(
        "note",
        "images are listed again under another id",
        "used again, with the objects of that id only",
    ),
    "named twice": Rule(
        "note", "images are listed more than once in a text file of a YOLO dataset", "used once"
    ),
    "named for two": Rule(
        "note",
        "images are listed for both train and val in a YOLO dataset",
        "used for one of them: for train if it has no other images, else for val",
    ),
    "both splits": Rule(
        "note",
        "images are in both train and val",
        "used in both, so that the metrics are too high; remove one of each",
    ),
    "no label map": Rule(
        "drop", "images have no label map", "not used; add the label maps, or remove the images"
    ),
    "no image": Rule("drop", "label maps have no image", "not used"),
    "label map": Rule("stop", "label maps cannot be used", "correct or remove them"),
    "colors": Rule(
        "stop",
        "label maps have colors, of which no file states the classes",
        "add class_dict.csv, with the header name,r,g,b and a line for each class",
    ),
    "value": Rule(
        "stop",
        "label maps have values that are no class",
        "correct them, or list the missing classes; 255 is ignored",
    ),
    "0 and 255": Rule("fix", "label maps only have the values 0 and 255", "255 is read as class 1"),
    "one class": Rule(
        "stop", "all labeled pixels are of one class", "label another one; background counts as one"
    ),
    "unlabeled": Rule("note", "images have no labeled pixel", "used without effect"),
    "unused class": Rule(
        "note", "classes have no pixel", "not learned; the mean IoU leaves them out"
    ),
    "outside classes": Rule(
        "drop", "images are in no class folder", "not used; move them into that of their class"
    ),
    "untrained class": Rule(
        "stop", "classes have no training image", "add some, or remove their other images"
    ),
    "unlearned class": Rule(
        "note", "classes have objects in val only", "evaluated, but hardly ever predicted"
    ),
    "empty split": Rule(
        "stop",
        "there is no image",
        "add some; of a class with two or more images, at least one is held out",
    ),
    "single image": Rule(
        "note", "classes have a single image", "trained on or evaluated, not both; add images"
    ),
    "unvalidated class": Rule(
        "note", "classes have no validation image", "trained on, but not evaluated"
    ),
    "unreadable": Rule("stop", "images cannot be read", CHECKED_LATER),
    "size differs": Rule("stop", "images differ in size from their annotations", CHECKED_LATER),
    "annotation": Rule(
        "stop", "annotations have no integer id or image_id", "add the missing field"
    ),
    "no mask": Rule(
        "stop",
        "annotations have no segmentation",
        "add it, or use a detector without masks (RetinaNet)",
    ),
    "label file": Rule("stop", "label files cannot be used", "fix or remove them"),
    "line": Rule("drop", "lines of label files are not valid objects", "dropped"),
    "class": Rule(
        "drop", "lines of label files have a class without a name in the YAML file", "dropped"
    ),
    "shape": Rule("drop", "shapes of labelme files are not valid objects", "dropped"),
    "normalized": Rule(
        "stop",
        "annotations have coordinates between 0 and 1; are they normalized?",
        "multiply x and width by the image's width, y and height by its height",
    ),
    "first pixel": Rule(
        "note", "annotations are within the first pixel; are they normalized?", "used unchanged"
    ),
    "undeclared": Rule(
        "drop",
        "annotations have a category that is not declared",
        "dropped; declare the category to keep them",
    ),
    "no such image": Rule("drop", "annotations have an image that is not listed", "dropped"),
    "mask": Rule(
        "drop", "annotations have a segmentation that is not a mask of the image's size", "dropped"
    ),
    "object twice": Rule("drop", "annotations repeat another one", "all but the first are dropped"),
    "polygon": Rule(
        "fix",
        "annotations have unusable polygons",
        "these polygons are dropped, and objects without any other",
    ),
    "box": Rule("fix", "boxes are not four finite numbers", RECOMPUTED),
    "empty box": Rule("fix", "boxes have no positive width and height", RECOMPUTED),
    "box outside": Rule("fix", "boxes are outside of the image", RECOMPUTED),
    "box differs": Rule("fix", "boxes contradict their masks", RECOMPUTED),
    "box clipped": Rule(
        "fix", f"boxes leave the image by more than {SLACK:g} pixel", "clipped to the image"
    ),
    "box alone differs": Rule(
        "note",
        "boxes contradict masks, which are not needed",
        "used unchanged; fix the boxes or the masks",
    ),
    "corners": Rule(
        "note",
        "boxes leave their images, but none would as x, y, x, y",
        "clipped; convert all boxes to x, y, width, height if these are corners",
    ),
    "ignored": Rule(
        "fix", 'annotations have "ignore", or an iscrowd other than 0 and 1', "treated as crowds"
    ),
    "crowd": Rule(
        "note",
        "annotations are crowds",
        "not trained on; in evaluation, detections in them are not false positives",
    ),
    "area": Rule(
        "note", "annotations have no area that fits their boxes", "recomputed from the mask or box"
    ),
    "annotation twice": Rule("note", "annotations have the id of another one", "all are used"),
    "same name": Rule(
        "note",
        "categories have the name of another one",
        "kept as separate classes; AP by name shows only one",
    ),
    "empty image": Rule(
        "note", "images have no object to train on", "not trained on, but evaluated"
    ),
    "many objects": Rule(
        "note", f"images have more than {MAX_DETECTIONS} objects", MORE_DETECTIONS
    ),
}


# Of a file or split as a whole; not counted.
WHOLE_FILE = (
    *("format", "no categories", "no images", "no objects", "classes differ"),
    *("0 and 255", "one class", "empty split"),
)


class Problem(NamedTuple):
    """One problem: its kind, a key of :data:`RULES`, the IDs if they are known, and details."""

    kind: str
    image_id: int | None = None
    annotation_id: int | None = None
    detail: str = ""


def grouped(problems: list[Problem]) -> dict[str, list[Problem]]:
    """Group problems by kind, in the order of :data:`RULES`."""
    groups: dict[str, list[Problem]] = {kind: [] for kind in RULES}
    for problem in problems:
        groups[problem.kind].append(problem)
    return {kind: group for kind, group in groups.items() if group}


def ordered(problems: list[Problem]) -> list[Problem]:
    """Sort problems by kind, in the order of :data:`RULES`."""
    result = []
    for group in grouped(problems).values():
        result += group
    return result


def phrase(kind: str, problems: list[Problem]) -> str:
    """Return the number of problems of a kind and the first one, for a message."""
    what, first = RULES[kind].what, problems[0]
    detail = f" ({first.detail})" if first.detail else ""
    if kind in WHOLE_FILE:
        return f"{what}{detail}"
    known_id = first.image_id if first.annotation_id is None else first.annotation_id
    location = first.detail if known_id is None else f"id {known_id}{detail}"
    return f"{len(problems)} {what}, first {location}"


def dropped_or_fixed(problems: list[Problem]) -> str:
    """Return the kinds of problems that drop or change objects, with the first of each."""
    phrases = []
    for kind, group in grouped(problems).items():
        if RULES[kind].action in ("drop", "fix"):
            phrases.append(phrase(kind, group))
    return "; ".join(phrases)


def log_problems(path: str, problems: list[Problem]) -> None:
    """Log each kind of problem of a file or dataset once."""
    for kind, group in grouped(problems).items():
        message = f"{path}: {phrase(kind, group)}: {RULES[kind].then}"
        level = logging.INFO if RULES[kind].action == "note" else logging.WARNING
        log_first_n(level, one_line(message, LINE_LIMIT), name=__name__, key="message")


def raise_if_fatal(path: str, problems: list[Problem], options: str) -> None:
    """Raise a UserError if there is a problem that stops training and evaluation.

    Args:
        path: of the file or dataset.
        problems: of it.
        options: of ``gpvit check-data``, to list all of them.
    """
    reasons = []
    for kind, group in grouped(problems).items():
        if RULES[kind].action == "stop":
            reasons.append(f"{phrase(kind, group)}: {RULES[kind].then}")
    if reasons:
        command = f"gpvit check-data {options}"
        raise UserError(f"{path}: {'; '.join(reasons)}. All problems: {command}")
