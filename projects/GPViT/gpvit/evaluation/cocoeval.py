"""COCO's evaluation by hotcoco, with the interface of pycocotools and its figures."""

import os
import warnings
from typing import Any

import hotcoco
from pycocotools.coco import COCO

_processes: set[int] = set()  # ids of this process and its parents in which hotcoco has threads


class COCOeval:
    """What Detectron2 and this package use of pycocotools' class of this name.

    The figures are those of pycocotools to the last bit. There are two differences: an object with
    id 0 can be matched, and AP counts the last number of ``params.maxDets``, which pycocotools'
    summary only does if that is 100.

    Args:
        ground_truth, detections: objects and detections.
        task: "bbox" or "segm".

    Raises:
        RuntimeError: the process was forked after an evaluation, whose threads it does not have;
            hotcoco would wait for them forever.
    """

    def __init__(self, ground_truth: COCO, detections: COCO, task: str) -> None:
        _processes.add(os.getpid())
        if len(_processes) > 1:
            raise RuntimeError(
                "a process forked after an evaluation cannot evaluate: start it by 'spawn'"
            )
        self._evaluation: Any = hotcoco.COCOeval(
            hotcoco.COCO(ground_truth.dataset), hotcoco.COCO(detections.dataset), task
        )
        self.params: Any = self._evaluation.params

    def evaluate(self) -> None:
        self._evaluation.evaluate()

    def accumulate(self) -> None:
        self._evaluation.accumulate()

    def summarize(self) -> None:
        with warnings.catch_warnings():
            # Other limits than COCO's are intended where they are set.
            warnings.filterwarnings("ignore", "hotcoco: max_dets differ")
            self._evaluation.summarize()

    @property
    def eval(self) -> dict[str, Any]:
        return self._evaluation.eval

    @property
    def evalImgs(self) -> list[dict[str, Any]]:
        """Matches of each class and image that has any, in pycocotools' order."""
        entries = filter(None, self._evaluation.eval_imgs)
        return sorted(entries, key=lambda entry: (entry["category_id"], entry["image_id"]))

    @property
    def stats(self) -> Any:
        return self._evaluation.stats
