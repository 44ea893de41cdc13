"""Read and write detections in COCO's results format, with their ground truth."""

import contextlib
import functools
import io
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, TextIO

from detectron2.data import MetadataCatalog
from detectron2.structures import Instances
from omegaconf import OmegaConf
from pycocotools.coco import COCO

from ..config import load_config
from ..data.datasets import coco as annotations
from ..data.datasets import custom as layouts
from ..data.datasets.coco import CocoFile
from ..data.datasets.image_root import find_image_root
from ..data.datasets.register import folder_of, require_files
from ..data.sources import InputImage
from ..utils.errors import UserError, preview
from ..utils.events import read_evaluation, results_folders
from ..utils.files import atomic_write
from ..utils.text import LINE_LIMIT, one_line
from .coco_evaluation import RESULTS, COCOFile, check_masks, coco_fingerprint, coco_json
from .matching import check_results, index, read_results, tasks_of


class Inputs(NamedTuple):
    """Detections with their ground truth.

    Attributes:
        results: path of the results file.
        folder: folder of the training run or evaluation; None if only a file was given.
        ground_truth: images, classes and objects.
        images: folder of the images; None if unknown.
        found: detections for each task, "bbox" or "segm", that they can be evaluated for.
        data: description of the dataset for messages.
    """

    results: Path
    folder: Path | None
    ground_truth: COCO
    images: Path | None
    found: dict[str, COCO]
    data: str

    @property
    def task(self) -> str:
        """The task whose IoU decides on true positives: masks if there are any, else boxes."""
        return list(self.found)[-1]


class GroundTruth(NamedTuple):
    """Ground truth, and a function that reads its annotations again for their fingerprint.

    ``read`` takes one argument: whether to read the masks.
    """

    objects: COCO
    images: Path | None
    data: str
    read: Callable[[bool], CocoFile]


def read_inputs(
    path: Path, data: Path | None = None, split: str | None = None, images: Path | None = None
) -> Inputs:
    """Read results and their ground truth.

    Args:
        path: the folder of a training run or an evaluation, or a file in COCO's results format.
        data: the dataset of the results: a custom dataset, or a COCO JSON file, of which everything
            is used; None for the validation set of the config in the folder.
        split: "train" or "val" of a custom dataset; None for "val". With a split, a JSON file is
            divided as for training.
        images: the folder of the images of a JSON file; None to search for it.

    Raises:
        UserError: something is missing or does not belong together. The message names command-line
            options.
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
        ground_truth = _from_file(data, images, masks)
    elif data:
        ground_truth = _from_folder(str(data), split or "val", masks)
    elif folder:
        ground_truth = _from_config(folder / "config.yaml", masks)
    else:
        raise UserError(
            f"give the dataset of {path} by --data: a folder, or a JSON file and --images DIR"
        )
    if path.name == RESULTS:  # evaluation.json is not about files with other names
        check_data(path, ground_truth)
    check_results(detections, ground_truth.objects, path)
    found = {task: index(detections, ground_truth.objects, task) for task in tasks}
    return Inputs(path, folder, ground_truth.objects, ground_truth.images, found, ground_truth.data)


def refuse_several_sets(folder: Path) -> None:
    """Raise a UserError if the last evaluation of a run used several validation sets."""
    folders = results_folders(folder, RESULTS)
    last = read_evaluation(folder / "evaluation.json").get("data")
    if folders and (isinstance(last, list) or not (folder / RESULTS).is_file()):
        raise UserError(
            f"{folder} has results of several validation sets: give the folder of one of them, "
            f"{preview(folders)}"
        )


def check_data(results: Path, ground_truth: GroundTruth) -> None:
    """Raise a UserError if evaluation.json shows that results belong to other data."""
    path = results.with_name("evaluation.json")
    evaluated = read_evaluation(path).get("data")
    if not isinstance(evaluated, dict) or not isinstance(evaluated.get("fingerprint"), str):
        if path.exists():
            note = (
                f"note: {path} does not name the dataset of {results.name}; "
                f"{ground_truth.data} is assumed"
            )
            print(one_line(note, LINE_LIMIT), file=sys.stderr)
        return
    file = ground_truth.read(bool(evaluated.get("masks")))
    if coco_fingerprint(file) != evaluated["fingerprint"]:
        evaluated_name = one_line(evaluated.get("name"))
        evaluated_file = one_line(evaluated.get("file"))
        raise UserError(
            f"{results} belongs to other data than {ground_truth.data}: to {evaluated_name} "
            f"({evaluated_file}) at the time of the evaluation; give that by --data, "
            "or evaluate again"
        )


def _from_file(path: Path, images: Path | None, masks: bool) -> GroundTruth:
    if images is None:
        with contextlib.suppress(UserError):  # results can be evaluated without the images
            images = find_image_root(path)

    def read(masks: bool) -> CocoFile:
        return annotations.read(path, images or "", masks=masks)

    file = read(masks)
    file.raise_if_fatal()
    return GroundTruth(file.coco(), images, str(path), read)


def _from_folder(root: str, split: str, masks: bool) -> GroundTruth:
    def read(masks: bool) -> CocoFile:
        return layouts.read(root, split, masks=masks)

    file = read(masks)
    return GroundTruth(file.coco(), Path(file.image_root), f"{root}, {split}", read)


def _from_config(config: Path, masks: bool) -> GroundTruth:
    """The validation set of a config, as the evaluation reads it except for the object ids."""
    hint = "give the dataset by --data: a folder, or a JSON file and --images DIR"
    if not config.is_file():
        raise UserError(f"{config} does not exist: {hint}")
    try:
        cfg = load_config(str(config))
    except UserError as error:
        raise UserError(f"{error}; {hint}") from None
    name = OmegaConf.select(cfg, "dataloader.test.dataset.names")
    if not isinstance(name, str):
        raise UserError(f"{config} names no validation dataset: {hint}")
    if folder := folder_of(cfg, name):
        return _from_folder(folder, "val", masks)
    require_files(cfg.dataloader.test)
    metadata = MetadataCatalog.get(name)
    if "json_file" not in metadata.as_dict():
        raise UserError(f"dataset {name} has no annotations in COCO format: {hint}")
    try:
        ground_truth = _read_with_ids_from_1(metadata.json_file)
    except Exception as error:  # pycocotools checks nothing
        raise UserError(
            f"cannot read {metadata.json_file} ({type(error).__name__}: {one_line(error)}): {hint}"
        ) from None
    if masks:
        check_masks(ground_truth, metadata.json_file)

    def read(masks: bool) -> CocoFile:
        return annotations.read(metadata.json_file, metadata.image_root, masks=masks)

    return GroundTruth(ground_truth, Path(metadata.image_root), name, read)


def _read_with_ids_from_1(json_file: str) -> COCO:
    """Read a COCO file with new object ids: to pycocotools, a match with id 0 is no match."""
    with contextlib.redirect_stdout(io.StringIO()):
        ground_truth = COCOFile(json_file)
        for number, item in enumerate(ground_truth.dataset.get("annotations", ()), start=1):
            item["id"] = number
        ground_truth.createIndex()
    return ground_truth


class ResultsWriter:
    """Write predictions.json image by image, and images.json on closing.

    Both files replace older ones only when they are complete.
    """

    def __init__(self, folder: Path, classes: list[str]) -> None:
        self.folder, self.classes = folder, classes
        self.images: list[dict[str, int | str]] = []
        with contextlib.ExitStack() as files:
            partial = files.enter_context(atomic_write(folder / "predictions.json"))
            self.file: TextIO = files.enter_context(partial.open("w", encoding="utf-8"))
            # Keep both contexts open; close() leaves them, which moves the file to its place.
            self.files = files.pop_all()
        self.separator = "[\n"  # before the first result; ",\n" before each other one

    def add(self, input_image: InputImage, instances: Instances) -> None:
        """Add an image with its detections."""
        with self.image(input_image) as write:
            write(instances)

    @contextlib.contextmanager
    def image(self, input_image: InputImage) -> Iterator[Callable[[Instances], None]]:
        """Add an image; yield what adds some of its detections.

        After an exception, the files do not contain the image.
        """
        height, width = input_image.image.shape[:2]
        image_id = len(self.images) + 1
        frame = {} if input_image.frame is None else {"frame": input_image.frame}
        self.images.append(
            {
                "id": image_id,
                "file_name": input_image.source.name,
                "height": height,
                "width": width,
            }
            | frame
        )
        start, separator = self.file.tell(), self.separator
        try:
            yield functools.partial(self._write, image_id)
        except BaseException:
            self.images.pop()
            self.file.seek(start)
            self.file.truncate()
            self.separator = separator
            raise

    def _write(self, image_id: int, instances: Instances) -> None:
        for result in coco_json(instances, image_id):
            # Category ids count from 1, the model's class indices from 0.
            result["category_id"] += 1
            self.file.write(self.separator + json.dumps(result))
            self.separator = ",\n"

    def close(self) -> None:
        categories = []
        for category_id, name in enumerate(self.classes, start=1):
            categories.append({"id": category_id, "name": name})
        content = json.dumps({"images": self.images, "categories": categories, "annotations": []})
        with self.files:
            self.file.write("\n]\n" if self.separator == ",\n" else "[]\n")
            self.file.flush()
            with atomic_write(self.folder / "images.json") as partial:
                partial.write_text(content, encoding="utf-8")
