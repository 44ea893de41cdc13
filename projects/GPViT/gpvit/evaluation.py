"""COCO evaluation, fast without Detectron2's compiled extension."""

import math
from typing import Any

import detectron2.evaluation.coco_evaluation as coco_evaluation
from faster_coco_eval import COCOeval_faster

# Detectron2 looks its fast implementation up under this name, and has none without its compiled extension.
coco_evaluation.COCOeval_opt = COCOeval_faster


class COCOEvaluator(coco_evaluation.COCOEvaluator):
    """Detectron2's COCO evaluator, which calls the AP of a detector that finds nothing NaN; it is 0."""

    def _derive_coco_results(self, coco_eval: Any, iou_type: str, class_names: Any = None) -> dict[str, float]:
        results = super()._derive_coco_results(coco_eval, iou_type, class_names)
        if coco_eval is None and self._coco_api.anns:
            return {metric: 0.0 for metric in results}
        return {metric: value for metric, value in results.items() if math.isfinite(value)}
