"""What may be wrong in a dataset in COCO format, and what is done about it."""

from typing import NamedTuple

from ..image_io import MAX_PIXELS

MAX_DETECTIONS = 100  # that a detector gives of an image, and AP counts, unless dataloader.max_detections is another
SLACK = 1.0  # pixels by which a box may leave its image without being counted: rounding, and boxes that count corners
RECOMPUTED = "recomputed from the mask; without one the object is left out"
LATER = "correct them; training stops when it comes to one, or skips it with train.skip_budget"


class Rule(NamedTuple):
    """What is done about one kind of problem.

    action: "stop", "drop" (the object is left out), "fix" (it is changed) or "note" (it is only told).
    what: the problem, to follow a number.
    then: what training and evaluation make of it, or what to do if they stop.
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
    "category": Rule("stop", "categories have no whole number as id or no name", "give them both"),
    "group": Rule(
        "note",
        "categories are only the name of a group of all others, as Roboflow's first",
        "left out",
    ),
    "category twice": Rule("stop", "categories have the id of another one", "give each its own"),
    "image": Rule("stop", "images have no whole number as id or no file_name", "give them both"),
    "image twice": Rule(
        "stop", "images have the id of another one", "give each its own, also in the annotations"
    ),
    "image size": Rule(
        "stop",
        "images have no usable width and height",
        f"give both, with at most {MAX_PIXELS} pixels",
    ),
    "image name": Rule(
        "note", "images are not there under their names", "found by the last parts of these"
    ),
    "file twice": Rule(
        "note",
        "images are listed again under another id",
        "used again, without the objects of the other",
    ),
    "named twice": Rule(
        "note", "images are named more than once in a text list of a YOLO dataset", "used once"
    ),
    "named for two": Rule(
        "note",
        "images are named for train and for val in a YOLO dataset",
        "used for one: for train if it has no others, else for val",
    ),
    "both splits": Rule("note", "images are in train and in val", "used in both; AP is too high"),
    "unreadable": Rule("stop", "images cannot be read", LATER),
    "size differs": Rule("stop", "images have another size than their annotations say", LATER),
    "annotation": Rule(
        "stop", "annotations have no whole number as id or image_id", "give them both"
    ),
    "no mask": Rule(
        "stop", "annotations have no segmentation", "add it, or use a detector of boxes (RetinaNet)"
    ),
    "label file": Rule("stop", "label files cannot be used", "correct or remove them"),
    "line": Rule("drop", "lines of label files are no objects", "left out"),
    "class": Rule(
        "drop", "lines of label files are of a class that has no name in the YAML file", "left out"
    ),
    "shape": Rule("drop", "shapes of labelme files are no objects", "left out"),
    "normalized": Rule(
        "stop",
        "annotations have coordinates between 0 and 1; are they normalized?",
        "multiply x and width by the image's width, y and height by its height",
    ),
    "first pixel": Rule(
        "note", "annotations are within the first pixel; are they normalized?", "used as they are"
    ),
    "undeclared": Rule(
        "drop",
        "annotations are of a category that is not declared",
        "left out; declare it to keep them",
    ),
    "no such image": Rule("drop", "annotations are of an image that is not listed", "left out"),
    "mask": Rule(
        "drop", "annotations have a segmentation that is no mask of the image's size", "left out"
    ),
    "object twice": Rule(
        "drop", "annotations repeat another one", "all but the first are left out"
    ),
    "polygon": Rule(
        "fix",
        "annotations have unusable polygons",
        "these are left out, and objects that have no others",
    ),
    "box": Rule("fix", "boxes are not four finite numbers", RECOMPUTED),
    "empty box": Rule("fix", "boxes have no positive width and height", RECOMPUTED),
    "box outside": Rule("fix", "boxes lie outside of the image", RECOMPUTED),
    "box differs": Rule("fix", "boxes contradict their masks", RECOMPUTED),
    "box clipped": Rule(
        "fix", f"boxes leave the image by more than {SLACK:g} pixel", "clipped to the image"
    ),
    "box alone differs": Rule(
        "note",
        "boxes contradict masks, which are not needed",
        "used as they are; correct boxes or masks",
    ),
    "corners": Rule(
        "note",
        "boxes leave their images and, read as x, y, x, y, none does",
        "clipped; convert all boxes to x, y, width, height if these are corners",
    ),
    "ignored": Rule(
        "fix", 'annotations have "ignore", or an iscrowd other than 0 and 1', "taken for crowds"
    ),
    "crowd": Rule(
        "note",
        "annotations are crowds",
        "not trained on; in evaluation, what is found in them is not wrong",
    ),
    "area": Rule(
        "note", "annotations have no area that fits their boxes", "recomputed from the mask or box"
    ),
    "annotation twice": Rule("note", "annotations have the id of another one", "all are used"),
    "same name": Rule(
        "note",
        "categories have the name of another one",
        "separate classes; AP by name shows only one",
    ),
    "empty image": Rule(
        "note", "images have no object to learn from", "not trained on, but evaluated"
    ),
    "many objects": Rule(
        "note",
        f"images have more than {MAX_DETECTIONS} objects",
        f"a detector gives, and AP counts, at most dataloader.max_detections of them, {MAX_DETECTIONS} unless it is raised",
    ),
}


WHOLE_FILE = ("format", "no categories", "no images", "no objects", "classes differ")


class Problem(NamedTuple):
    """One problem, of a kind that RULES has; ids where they are known, and what exactly is wrong."""

    kind: str
    image_id: int | None = None
    annotation_id: int | None = None
    detail: str = ""


def grouped(problems: list[Problem]) -> dict[str, list[Problem]]:
    """Problems by kind, in the order of RULES."""
    groups: dict[str, list[Problem]] = {kind: [] for kind in RULES}
    for problem in problems:
        groups[problem.kind].append(problem)
    return {kind: group for kind, group in groups.items() if group}


def phrase(kind: str, problems: list[Problem]) -> str:
    """How many of a kind, and the first."""
    first = problems[0]
    id = first.image_id if first.annotation_id is None else first.annotation_id
    if kind in WHOLE_FILE:
        return RULES[kind].what + (f" ({first.detail})" if first.detail else "")
    named = (
        first.detail if id is None else f"id {id}" + (f" ({first.detail})" if first.detail else "")
    )
    return f"{len(problems)} {RULES[kind].what}, first {named}"


def left_out(problems: list[Problem]) -> str:
    """What leaves objects out or changes them, by kind, with the first of each."""
    kinds = grouped(problems).items()
    return "; ".join(
        phrase(kind, group) for kind, group in kinds if RULES[kind].action in ("drop", "fix")
    )
