"""COCO evaluation, fast without Detectron2's compiled extension."""

import contextlib
import io
import math
import os
from typing import Any

import detectron2.evaluation.coco_evaluation as coco_evaluation
from detectron2.data import MetadataCatalog
from detectron2.structures import BoxMode
from faster_coco_eval import COCOeval_faster
from pycocotools.coco import COCO

from . import annotations
from .annotations import CocoFile
from .utils.fingerprint import dataset_fingerprint

# Detectron2 looks its fast implementation up under this name, and has none without its compiled extension.
coco_evaluation.COCOeval_opt = COCOeval_faster


class COCOEvaluator(coco_evaluation.COCOEvaluator):
    """Detectron2's COCO evaluator, with AP 0 where nothing is found, and none where there is nothing to find.

    Detectron2's calls both NaN. One's own data is what :mod:`gpvit.annotations` makes of it for training, too.
    """

    def __init__(self, dataset_name: str, *args: Any, **kwargs: Any) -> None:
        super().__init__(dataset_name, *args, **kwargs)
        if "coco_file" in self._metadata.as_dict():
            self._coco_api = self._metadata.coco_file.coco()
        self._anything_to_find = any(not item.get("iscrowd") for item in self._coco_api.anns.values())

    def evaluate(self, img_ids: Any = None) -> dict[str, Any]:
        results = super().evaluate(img_ids)
        if self._do_evaluation and not self._anything_to_find:
            self._logger.warning(f"{self._metadata.json_file} has no object to find, so there is no AP")
        return results

    def _derive_coco_results(self, coco_eval: Any, iou_type: str, class_names: Any = None) -> dict[str, float]:
        results = super()._derive_coco_results(coco_eval, iou_type, class_names)
        if coco_eval is None and self._anything_to_find:
            return {metric: 0.0 for metric in results}
        return {metric: value for metric, value in results.items() if math.isfinite(value)}


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
