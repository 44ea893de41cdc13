"""COCO evaluation, fast without Detectron2's compiled extension."""

import contextlib
import io
import math
from typing import Any

import detectron2.evaluation.coco_evaluation as coco_evaluation
from faster_coco_eval import COCOeval_faster
from pycocotools.coco import COCO

from .utils.text import PATH_LIMIT, one_line

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
            path = one_line(self._metadata.json_file, PATH_LIMIT)
            self._logger.warning(f"{path} has no object to find, so there is no AP")
        return results

    def _derive_coco_results(self, coco_eval: Any, iou_type: str, class_names: Any = None) -> dict[str, float]:
        # They become names of metrics, and a table in the log.
        names = class_names and [one_line(name) for name in class_names]
        results = super()._derive_coco_results(coco_eval, iou_type, names)
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
