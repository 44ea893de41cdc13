"""Files of detections in COCO's results format: with the ground truth that they are of, and written."""

import contextlib
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TextIO

from detectron2.data import MetadataCatalog
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.structures import Instances
from omegaconf import OmegaConf
from pycocotools.coco import COCO

from ..config import load_config
from ..data.datasets import coco as annotations
from ..data.datasets import custom as layouts
from ..data.datasets.coco import CocoFile
from ..data.datasets.register import folder_of, require_files
from ..data.sources import InputImage
from ..utils.errors import UserError, preview
from ..utils.events import read_evaluation, results_folders
from ..utils.files import atomic_write
from ..utils.text import LINE_LIMIT, one_line
from .coco_evaluation import RESULTS, COCOFile, check_masks, coco_fingerprint
from .matching import check_results, index, read_results, tasks_of


class Inputs(NamedTuple):
    """What there is to look at.

    results: path of the file.
    folder: of a training or evaluation, if there is one.
    truth: images, classes and objects.
    images: the folder of the images, None if it is not known.
    found: the detections for each task, "bbox" or "segm", that they can be evaluated for.
    data: what the ground truth is called.
    """

    results: Path
    folder: Path | None
    truth: COCO
    images: Path | None
    found: dict[str, COCO]
    data: str

    @property
    def task(self) -> str:
        """The task by which detections are called true or false: masks if there are any."""
        return list(self.found)[-1]


class Truth(NamedTuple):
    """Ground truth, and how its annotations are read again, with or without masks, for their fingerprint."""

    objects: COCO
    images: Path | None
    data: str
    read: Callable[[bool], CocoFile]


def read_inputs(
    path: Path, data: Path | None = None, split: str | None = None, images: Path | None = None
) -> Inputs:
    """Results and ground truth.

    Args:
        path: the folder of a training run or an evaluation, or a file in COCO's results format.
        data: what the results are of: a custom dataset, or all of a JSON file in COCO's format; None for what the
            config in the folder says.
        split: "train" or "val", of a custom dataset; None for "val". With one, a JSON file is divided as for training.
        images: the folder of the images of a JSON file; None for where they are found.

    Raises:
        UserError: something is missing or does not fit together; options are named as the command has them.
    """
    folder = path if path.is_dir() else None
    if folder:
        if data is None:
            refuse_several_sets(folder)
        path = folder / RESULTS
    if not path.is_file():
        raise UserError(f"{path} does not exist: evaluate first (--eval-only)")
    detections = read_results(path)
    tasks = tasks_of(detections)
    masks = "segm" in tasks
    if data and data.suffix.lower() == ".json" and split is None:
        truth = _from_file(data, images, masks)
    elif data:
        truth = _from_folder(str(data), split or "val", masks)
    elif folder:
        truth = _from_config(folder / "config.yaml", masks)
    else:
        raise UserError(
            f"give the data that {path} is of by --data: a folder, or a JSON file and --images DIR"
        )
    if path.name == RESULTS:  # what others wrote is not what evaluation.json is about
        check_data(path, truth)
    check_results(detections, truth.objects, path)
    found = {task: index(detections, truth.objects, task) for task in tasks}
    return Inputs(path, folder, truth.objects, truth.images, found, truth.data)


def refuse_several_sets(folder: Path) -> None:
    """Raises a UserError if the last evaluation in the folder of a run was of several validation sets."""
    folders = results_folders(folder, RESULTS)
    last = read_evaluation(folder / "evaluation.json").get("data")
    if folders and (isinstance(last, list) or not (folder / RESULTS).is_file()):
        raise UserError(
            f"{folder} has results of several validation sets: give the folder of one, {preview(folders)}"
        )


def check_data(results: Path, truth: Truth) -> None:
    """Raises a UserError if results are of other data than that by what the evaluation wrote next to them."""
    path = results.with_name("evaluation.json")
    evaluated = read_evaluation(path).get("data")
    if not isinstance(evaluated, dict) or not isinstance(evaluated.get("fingerprint"), str):
        if path.exists():
            note = f"note: {path} does not say which data {results.name} is of; taken for that of {truth.data}"
            print(one_line(note, LINE_LIMIT), file=sys.stderr)
        return
    if coco_fingerprint(truth.read(bool(evaluated.get("masks")))) != evaluated["fingerprint"]:
        name, file = (one_line(evaluated.get(key)) for key in ("name", "file"))
        raise UserError(
            f"{results} is of other data than {truth.data}: of {name} ({file}) as it was when it was evaluated; give "
            "that by --data, or evaluate again"
        )


def _from_file(path: Path, images: Path | None, masks: bool) -> Truth:
    if images is None:
        with contextlib.suppress(UserError):  # results can be evaluated without the images
            images = layouts.image_root(path)

    def read(masks: bool) -> CocoFile:
        return annotations.read(path, images or "", masks=masks)

    file = read(masks)
    file.raise_if_fatal()
    return Truth(file.coco(), images, str(path), read)


def _from_folder(root: str, split: str, masks: bool) -> Truth:
    def read(masks: bool) -> CocoFile:
        return layouts.read(root, split, masks=masks)

    file = read(masks)
    return Truth(file.coco(), Path(file.image_root), f"{root}, {split}", read)


def _from_config(config: Path, masks: bool) -> Truth:
    """The data that a config evaluates on, but for the ids of its objects as the evaluation takes it."""
    hint = "give the data by --data: a folder, or a JSON file and --images DIR"
    if not config.is_file():
        raise UserError(f"{config} does not exist: {hint}")
    try:
        cfg = load_config(str(config))
    except UserError as error:
        raise UserError(f"{error}; {hint}") from None
    name = OmegaConf.select(cfg, "dataloader.test.dataset.names")
    if not isinstance(name, str):
        raise UserError(f"{config} names no data set to evaluate on: {hint}")
    if folder := folder_of(cfg, name):
        return _from_folder(folder, "val", masks)
    require_files(cfg.dataloader.test)
    metadata = MetadataCatalog.get(name)
    if "json_file" not in metadata.as_dict():
        raise UserError(f"data set {name} has no file of annotations in COCO format: {hint}")
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            truth = COCOFile(metadata.json_file)
            for number, item in enumerate(truth.dataset.get("annotations", ()), start=1):
                item["id"] = number  # some begin at 0, which means no match to pycocotools
            truth.createIndex()
    except Exception as error:  # pycocotools checks nothing
        raise UserError(
            f"cannot read {metadata.json_file} ({type(error).__name__}: {one_line(error)}): {hint}"
        ) from None
    if masks:
        check_masks(truth, metadata.json_file)

    def read(masks: bool) -> CocoFile:
        return annotations.read(metadata.json_file, metadata.image_root, masks=masks)

    return Truth(truth, Path(metadata.image_root), name, read)


class ResultsWriter:
    """Writes predictions.json as it comes, and images.json at the end, when they take the place of older ones."""

    def __init__(self, folder: Path, classes: list[str]) -> None:
        self.folder, self.classes = folder, classes
        self.images: list[dict[str, int | str]] = []
        with contextlib.ExitStack() as files:
            partial = files.enter_context(atomic_write(folder / "predictions.json"))
            self.file: TextIO = files.enter_context(partial.open("w", encoding="utf-8"))
            self.files = files.pop_all()
        self.separator = "[\n"

    def add(self, picture: InputImage, instances: Instances) -> None:
        height, width = picture.image.shape[:2]
        number = len(self.images) + 1
        frame = {} if picture.frame is None else {"frame": picture.frame}
        self.images.append(
            {"id": number, "file_name": picture.source.name, "height": height, "width": width}
            | frame
        )
        for result in instances_to_coco_json(instances, number):
            self.file.write(
                self.separator + json.dumps(result | {"category_id": result["category_id"] + 1})
            )
            self.separator = ",\n"

    def close(self) -> None:
        categories = [
            {"id": number, "name": name} for number, name in enumerate(self.classes, start=1)
        ]
        content = json.dumps({"images": self.images, "categories": categories, "annotations": []})
        with self.files:
            self.file.write("\n]\n" if self.separator == ",\n" else "[]\n")
            self.file.flush()
            with atomic_write(self.folder / "images.json") as partial:
                partial.write_text(content, encoding="utf-8")
