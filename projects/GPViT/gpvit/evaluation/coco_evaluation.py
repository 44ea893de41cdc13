"""COCO evaluation, fast without Detectron2's compiled extension."""

import contextlib
import io
import json
import logging
import math
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import detectron2.evaluation.coco_evaluation as coco_evaluation
import torch
from detectron2.data import MetadataCatalog
from detectron2.structures import BoxMode
from detectron2.utils.logger import log_first_n
from faster_coco_eval import COCOeval_faster
from pycocotools.coco import COCO

from ..config.values import MOST_DETECTIONS
from ..data.datasets import coco as annotations
from ..data.datasets.coco import CocoFile, usable_size
from ..data.datasets.coco_rules import MAX_DETECTIONS
from ..data.masks import mask_fault
from ..utils.errors import UserError
from ..utils.files import atomic_write
from ..utils.fingerprint import dataset_fingerprint
from ..utils.text import PATH_LIMIT, one_line

RESULTS = "coco_instances_results.json"  # as Detectron2 calls it


class COCOFile(COCO):
    """pycocotools' COCO for JSON in any Unicode encoding; pycocotools' takes that of the locale."""

    def __init__(self, annotation_file: str | None = None) -> None:
        super().__init__()
        if annotation_file is not None:
            self.dataset = annotations.load_json(Path(annotation_file))
            if not isinstance(self.dataset, dict):
                raise UserError(f"{annotation_file} is no JSON object")
            self.createIndex()


# Detectron2 looks its fast implementation up under this name, and has none without its compiled extension.
coco_evaluation.COCOeval_opt = COCOeval_faster
# Under this one, what evaluates another number of detections than 100; its own is pycocotools.
coco_evaluation.COCOevalMaxDets = COCOeval_faster
coco_evaluation.COCO = COCOFile


@contextlib.contextmanager
def _truth(file: CocoFile | None) -> Iterator[None]:
    """Gives these annotations to Detectron2's evaluator, which would read the file without the rules."""
    if file is None:
        yield
        return
    before = coco_evaluation.COCO
    coco_evaluation.COCO = lambda json_file: file.coco()
    try:
        yield
    finally:
        coco_evaluation.COCO = before


class COCOEvaluator(coco_evaluation.COCOEvaluator):
    """Detectron2's COCO evaluator, with AP 0 where nothing is found, and none where there is nothing to find.

    Detectron2's calls both NaN. A custom dataset is what :mod:`gpvit.data.datasets.coco` makes of it for training, too.

    What is found goes to Detectron2's files, ``instances_predictions.pth`` and ``coco_instances_results.json``, each the
    old one or the complete new one. Metrics do not depend on whether it can be written.

    Args:
        dataset_name: of the dataset in Detectron2.
        tasks: "bbox", "segm" or both; those that the predictions allow by default.
        distributed: whether results are collected from all processes.
        output_dir: where the files go; None for none.
        max_dets_per_image: how many detections of an image and class AP counts, best scores first; None for 100.
        use_fast_impl, kpt_oks_sigmas, allow_cached_coco: as in Detectron2.

    Attributes:
        max_detections: ``max_dets_per_image``.
        unwritten: why the last evaluation could not write its files, in one line; "" if it could.
    """

    def __init__(
        self,
        dataset_name: str,
        tasks: Sequence[str] | None = None,
        distributed: bool = True,
        output_dir: str | None = None,
        *,
        max_dets_per_image: int | None = None,
        use_fast_impl: bool = True,
        kpt_oks_sigmas: Sequence[float] = (),
        allow_cached_coco: bool = True,
    ) -> None:
        self.max_detections = MAX_DETECTIONS if max_dets_per_image is None else max_dets_per_image
        check_max_detections(self.max_detections, "max_dets_per_image")
        file = MetadataCatalog.get(dataset_name).as_dict().get("coco_file")
        with _truth(file):
            super().__init__(
                dataset_name,
                tasks,
                distributed,
                output_dir,
                max_dets_per_image=self.max_detections,
                use_fast_impl=use_fast_impl,
                kpt_oks_sigmas=kpt_oks_sigmas,
                allow_cached_coco=allow_cached_coco,
            )
        self._max_dets_per_image = max_dets(self.max_detections)
        self._folder: str | None = self._output_dir  # type: ignore[has-type]
        self._output_dir = None  # Detectron2 would write in place
        self.unwritten = ""
        if file is None and (self._tasks is None or "segm" in self._tasks):
            check_masks(self._coco_api, self._metadata.json_file)
        self._anything_to_find = any(
            not item.get("iscrowd") for item in self._coco_api.anns.values()
        )

    def evaluate(self, img_ids: Any = None) -> dict[str, Any]:
        results = super().evaluate(img_ids)
        if self._do_evaluation and not self._anything_to_find:
            path = one_line(self._metadata.json_file, PATH_LIMIT)
            self._logger.warning(f"{path} has no object to find, so there is no AP")
        if self._do_evaluation and results:
            self._warn_of_many()
        return results

    def _warn_of_many(self) -> None:
        most = most_objects(self._coco_api)
        if most > self.max_detections:
            path = one_line(self._metadata.json_file, PATH_LIMIT)
            message = (
                f"{path}: images have up to {most} objects, and AP counts {self.max_detections} detections of an image "
                "and class: dataloader.max_detections raises what the detector gives and what AP counts"
            )
            log_first_n(logging.WARNING, message, name=__name__, key="message")

    def _eval_predictions(self, predictions: list[dict[str, Any]], img_ids: Any = None) -> None:
        self.unwritten = ""
        if self._folder:
            try:
                self._write(predictions, Path(self._folder))
            except UserError as error:
                self.unwritten = str(error)
        super()._eval_predictions(predictions, img_ids)

    def _write(self, predictions: list[dict[str, Any]], folder: Path) -> None:
        """Writes down what was found; the numbers of the classes are the model's here, and in COCO's file the data's."""
        with atomic_write(folder / "instances_predictions.pth") as path, path.open("wb") as file:
            torch.save(predictions, file)
        numbers = self._metadata.as_dict().get("thing_dataset_id_to_contiguous_id", {})
        ids = {number: id for id, number in numbers.items()}
        found = [result for prediction in predictions for result in prediction["instances"]]
        for_coco = [
            result | {"category_id": ids.get(result["category_id"], result["category_id"])}
            for result in found
        ]
        with atomic_write(folder / RESULTS) as path:
            path.write_text(json.dumps(for_coco))

    def _derive_coco_results(
        self, coco_eval: Any, iou_type: str, class_names: Any = None
    ) -> dict[str, float]:
        # They become names of metrics, and a table in the log.
        names = class_names and [one_line(name) for name in class_names]
        results = super()._derive_coco_results(coco_eval, iou_type, names)
        if coco_eval is None and self._anything_to_find:
            return {metric: 0.0 for metric in results}
        return {metric: value for metric, value in results.items() if math.isfinite(value)}


def check_masks(truth: COCO, json_file: str) -> None:
    """Raises a UserError if a mask of ground truth may not go to pycocotools: it would end the process.

    Args:
        truth: as the file has it, without the rules of :mod:`gpvit.data.datasets.coco`.
        json_file: for the message.
    """
    for id, item in truth.anns.items():
        mask, image = item.get("segmentation"), truth.imgs.get(item.get("image_id"))
        if not mask or image is None:
            continue
        height, width = image.get("height"), image.get("width")
        if not usable_size(height, width):
            raise UserError(
                f"{json_file}: image id {image['id']} has no usable width and height; correct them"
            )
        fault = mask_fault(mask, height, width)
        if fault:
            raise UserError(
                f"{json_file}: annotation id {id} cannot be used ({fault}); correct or remove it"
            )


def summarized(
    truth: COCO, found: COCO, task: str, max_detections: int = MAX_DETECTIONS
) -> COCOeval_faster:
    """COCO's evaluation, after its summary.

    Args:
        truth, found: objects and detections.
        task: "bbox" or "segm".
        max_detections: how many of an image and class count, best scores first.
    """
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval_faster(truth, found, task)
        evaluation.params.maxDets = max_dets(max_detections)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


def max_dets(max_detections: int) -> list[int]:
    """How many detections of an image and class count for AR, in COCO's three versions of it; the last for AP, too."""
    return [1, min(10, max_detections), max_detections]


def check_max_detections(value: Any, name: str) -> None:
    """Raises a UserError if this is no number of detections that may be counted; ``name`` is what gives it."""
    if type(value) is not int or not 1 <= value <= MOST_DETECTIONS:
        raise UserError(
            f"{name} must be a whole number from 1 to {MOST_DETECTIONS}, got {one_line(value)}"
        )


def most_objects(truth: COCO) -> int:
    """How many objects the image with the most of them has; crowds are none."""
    counts = Counter(item["image_id"] for item in truth.anns.values() if not item.get("iscrowd"))
    return max(counts.values(), default=0)


def evaluated_data(name: str, *, masks: bool) -> dict[str, Any]:
    """What evaluation.json says of the data that results are of.

    Args:
        name: of the dataset in Detectron2.
        masks: whether masks are evaluated.

    Returns:
        "name"; "file" of the annotations; "masks", whether they were read with their masks; "fingerprint", see
        :func:`coco_fingerprint`. Only the name of data that is not in COCO format.
    """
    metadata = MetadataCatalog.get(name).as_dict()
    file: CocoFile | None = metadata.get("coco_file")
    if file is not None:
        masks = any("segmentation" in item for objects in file.objects.values() for item in objects)
    elif os.path.isfile(metadata.get("json_file", "")):
        file = annotations.read(metadata["json_file"], metadata.get("image_root", ""), masks=masks)
    else:
        return {"name": name}
    return {"name": name, "file": file.path, "masks": masks, "fingerprint": coco_fingerprint(file)}


def coco_fingerprint(file: CocoFile) -> str:
    """The fingerprint of annotations as this project reads them, by the ids of the file, which results refer to.

    The way to them does not matter: a folder, a dataset registered with Detectron2, or a file by its name.
    """
    mode = {"bbox_mode": BoxMode.XYWH_ABS}
    records = (
        # The names in the file, as its images may be looked for in other folders, or not at all.
        image
        | {"file_name": file.written.get(id, image["file_name"]), "image_id": id}
        | {"annotations": [item | mode for item in file.objects[id]]}
        for id, image in file.images.items()
    )
    return dataset_fingerprint(records, [f"{id} {name}" for id, name in file.categories.items()])
