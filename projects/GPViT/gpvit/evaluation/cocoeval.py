"""COCO's evaluation by hotcoco, with the interface of pycocotools and its figures."""

import os
import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import hotcoco
from pycocotools.coco import COCO

_process: int | None = None  # id of the process that evaluated first: hotcoco's threads are there
IMAGE_KEYS = ("id", "height", "width")
OBJECT_KEYS = ("id", "image_id", "category_id", "area", "iscrowd", "score")
SHAPES = {"bbox": "bbox", "segm": "segmentation"}  # key of what each task needs


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
        global _process
        _process = _process or os.getpid()
        if os.getpid() != _process:
            raise RuntimeError(
                "a process forked after an evaluation cannot evaluate: start it by 'spawn'"
            )
        self._evaluation: Any = hotcoco.COCOeval(
            hotcoco.COCO(_needed(ground_truth.dataset, task)),
            hotcoco.COCO(_needed(detections.dataset, task)),
            task,
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
        """Matches of each class and image that has any, sorted by class and image.

        For a single range of areas, this is pycocotools' order.
        """
        entries = filter(None, self._evaluation.eval_imgs)
        return sorted(entries, key=lambda entry: (entry["category_id"], entry["image_id"]))

    @property
    def stats(self) -> Any:
        return self._evaluation.stats


def _needed(dataset: dict[str, Any], task: str) -> dict[str, Any]:
    """Return what a task needs of a dataset.

    The rest takes time to convert, and hotcoco raises an error for names that are not Unicode.
    """
    categories = [{"id": item["id"], "name": str(item["id"])} for item in dataset["categories"]]
    return {
        "images": _with_keys(dataset["images"], IMAGE_KEYS),
        "categories": categories,
        "annotations": _with_keys(dataset["annotations"], (*OBJECT_KEYS, SHAPES[task])),
    }


def _with_keys(items: Iterable[dict[str, Any]], keys: Sequence[str]) -> list[dict[str, Any]]:
    """Return the items with those of the keys that they have."""
    kept = []
    for item in items:
        kept.append({key: item[key] for key in keys if key in item})
    return kept
