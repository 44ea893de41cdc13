"""COCO evaluation, fast without Detectron2's compiled extension."""

import contextlib
import io
import json
import math
import os
from pathlib import Path
from typing import Any

import detectron2.evaluation.coco_evaluation as coco_evaluation
import torch
from detectron2.data import MetadataCatalog
from detectron2.structures import BoxMode
from faster_coco_eval import COCOeval_faster
from pycocotools.coco import COCO

from . import annotations
from .annotations import CocoFile, mask_fault, usable_size
from .errors import UserError
from .utils.files import atomic_write
from .utils.fingerprint import dataset_fingerprint
from .utils.text import PATH_LIMIT, one_line

# Detectron2 looks its fast implementation up under this name, and has none without its compiled extension.
coco_evaluation.COCOeval_opt = COCOeval_faster


class COCOEvaluator(coco_evaluation.COCOEvaluator):
    """Detectron2's COCO evaluator, with AP 0 where nothing is found, and none where there is nothing to find.

    Detectron2's calls both NaN. One's own data is what :mod:`gpvit.annotations` makes of it for training, too.

    What is found goes to Detectron2's files, ``instances_predictions.pth`` and ``coco_instances_results.json``, each the
    old one or the complete new one. Metrics do not depend on whether it can be written.

    Attributes:
        unwritten: why the last evaluation could not write its files, in one line; "" if it could.
    """

    def __init__(self, dataset_name: str, *args: Any, **kwargs: Any) -> None:
        super().__init__(dataset_name, *args, **kwargs)
        self._folder: str | None = self._output_dir  # type: ignore[has-type]
        self._output_dir = None  # Detectron2 would write in place
        self.unwritten = ""
        if "coco_file" in self._metadata.as_dict():
            self._coco_api = self._metadata.coco_file.coco()
        elif self._tasks is None or "segm" in self._tasks:
            check_masks(self._coco_api, self._metadata.json_file)
        self._anything_to_find = any(not item.get("iscrowd") for item in self._coco_api.anns.values())

    def evaluate(self, img_ids: Any = None) -> dict[str, Any]:
        results = super().evaluate(img_ids)
        if self._do_evaluation and not self._anything_to_find:
            path = one_line(self._metadata.json_file, PATH_LIMIT)
            self._logger.warning(f"{path} has no object to find, so there is no AP")
        return results

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
        for_coco = [result | {"category_id": ids.get(result["category_id"], result["category_id"])} for result in found]
        with atomic_write(folder / "coco_instances_results.json") as path:
            path.write_text(json.dumps(for_coco))

    def _derive_coco_results(self, coco_eval: Any, iou_type: str, class_names: Any = None) -> dict[str, float]:
        # They become names of metrics, and a table in the log.
        names = class_names and [one_line(name) for name in class_names]
        results = super()._derive_coco_results(coco_eval, iou_type, names)
        if coco_eval is None and self._anything_to_find:
            return {metric: 0.0 for metric in results}
        return {metric: value for metric, value in results.items() if math.isfinite(value)}


def check_masks(truth: COCO, json_file: str) -> None:
    """Raises a UserError if a mask of ground truth may not go to pycocotools: it would end the process.

    Args:
        truth: as the file has it, without the rules of :mod:`gpvit.annotations`.
        json_file: for the message.
    """
    for id, item in truth.anns.items():
        mask, image = item.get("segmentation"), truth.imgs.get(item.get("image_id"))
        if not mask or image is None:
            continue
        height, width = image.get("height"), image.get("width")
        if not usable_size(height, width):
            raise UserError(f"{json_file}: image id {image['id']} has no usable width and height; correct them")
        fault = mask_fault(mask, height, width)
        if fault:
            raise UserError(f"{json_file}: annotation id {id} cannot be used ({fault}); correct or remove it")


def coco_ap(json_file: str, results: list[dict], task: str) -> float:
    """AP (0 to 1) of results in COCO's format against a file of annotations; ``task`` is "bbox" or "segm"."""
    if not results:
        return 0.0
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(json_file)
        evaluation = COCOeval_faster(truth, truth.loadRes(results), task)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return float(evaluation.stats[0])


def evaluated_data(names: Any, *, masks: bool) -> dict[str, Any]:
    """What evaluation.json says of the data that results are of.

    Args:
        names: of the dataset in Detectron2.
        masks: whether masks are evaluated.

    Returns:
        "name"; "file" of the annotations; "masks", whether they were read with their masks; "fingerprint", see
        :func:`coco_fingerprint`. Only the name of data that is not in COCO format, or of several datasets.
    """
    if not isinstance(names, str):
        return {"name": ", ".join(names)}
    metadata = MetadataCatalog.get(names).as_dict()
    file: CocoFile | None = metadata.get("coco_file")
    if file is not None:
        masks = any("segmentation" in item for objects in file.objects.values() for item in objects)
    elif os.path.isfile(metadata.get("json_file", "")):
        file = annotations.read(metadata["json_file"], metadata.get("image_root", ""), masks=masks)
    else:
        return {"name": names}
    return {"name": names, "file": file.path, "masks": masks, "fingerprint": coco_fingerprint(file)}


def coco_fingerprint(file: CocoFile) -> str:
    """The fingerprint of annotations as this project reads them, by the ids of the file, which results refer to.

    The way to them does not matter: a folder, a dataset registered with Detectron2, or a file by its name.
    """
    mode = {"bbox_mode": BoxMode.XYWH_ABS}
    records = (
        image | {"image_id": id, "annotations": [item | mode for item in file.objects[id]]}
        for id, image in file.images.items()
    )
    return dataset_fingerprint(records, [f"{id} {name}" for id, name in file.categories.items()])
