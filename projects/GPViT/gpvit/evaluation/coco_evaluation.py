"""COCO evaluation that is fast without Detectron2's compiled extension."""

import contextlib
import io
import itertools
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
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.structures import BoxMode, Instances
from detectron2.utils.logger import log_first_n
from pycocotools.coco import COCO

from ..config.values import MOST_DETECTIONS
from ..data.cropped_masks import RLE_PIXELS, CroppedMasks
from ..data.datasets import coco as annotations
from ..data.datasets.coco import CocoFile, usable_size
from ..data.datasets.coco_rules import MAX_DETECTIONS
from ..data.masks import mask_fault
from ..utils.errors import UserError
from ..utils.files import atomic_write
from ..utils.fingerprint import dataset_fingerprint
from ..utils.text import PATH_LIMIT, one_line
from .cocoeval import COCOeval

RESULTS = "coco_instances_results.json"  # Detectron2's file name


class COCOFile(COCO):
    """pycocotools' ``COCO`` for JSON in any Unicode encoding.

    pycocotools opens the file in the encoding of the locale.
    """

    def __init__(self, annotation_file: str | None = None) -> None:
        super().__init__()
        if annotation_file is not None:
            self.dataset = annotations.load_json(Path(annotation_file))
            if not isinstance(self.dataset, dict):
                raise UserError(f"{annotation_file} is not a JSON object")
            self.createIndex()


# Workaround for a Detectron2 that is installed without its compiled extension:
# COCOeval_opt exists only with the extension; Detectron2 uses it for use_fast_impl=True.
coco_evaluation.COCOeval_opt = COCOeval
# COCOevalMaxDets is used if max_dets_per_image is not 100.
coco_evaluation.COCOevalMaxDets = COCOeval
coco_evaluation.COCO = COCOFile


@contextlib.contextmanager
def _annotations_of(file: CocoFile | None) -> Iterator[None]:
    """Make Detectron2's evaluator use annotations that were read and checked by this package.

    Detectron2 reads the JSON file itself, without :mod:`gpvit.data.datasets.coco_rules`.
    """
    if file is None:
        yield
        return
    original = coco_evaluation.COCO
    coco_evaluation.COCO = lambda json_file: file.coco()
    try:
        yield
    finally:
        coco_evaluation.COCO = original


class COCOEvaluator(coco_evaluation.COCOEvaluator):
    """Detectron2's COCO evaluator without NaN: AP is 0 if there are objects but no detections.

    Metrics without any ground truth are omitted; Detectron2 reports NaN in both cases. Annotations
    of a custom dataset are the ones that :mod:`gpvit.data.datasets.coco` reads for training, too.

    The detections are written to Detectron2's files ``instances_predictions.pth`` and
    ``coco_instances_results.json``, each atomically. Metrics are computed even if writing fails.

    Args:
        dataset_name: name of the dataset in Detectron2.
        tasks: "bbox", "segm" or both; by default the ones that the predictions allow.
        distributed: whether to collect results from all processes.
        output_dir: folder of the files; None to write none.
        max_dets_per_image: number of detections per image and class that AP counts, highest scores
            first; None for 100.
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
        with _annotations_of(file):
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
        self._output_dir = None  # or Detectron2 would write, and not atomically
        self.unwritten = ""
        if file is None and (self._tasks is None or "segm" in self._tasks):
            check_masks(self._coco_api, self._metadata.json_file)
        self._has_objects = most_objects(self._coco_api) > 0

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        for item, output in zip(inputs, outputs):
            instances = output.get("instances")
            if instances is None or not _has_cropped_masks(instances):
                super().process([item], [output])
                continue
            found = coco_json(instances.to("cpu"), item["image_id"])
            self._predictions.append({"image_id": item["image_id"], "instances": found})

    def evaluate(self, img_ids: Any = None) -> dict[str, Any]:
        results = super().evaluate(img_ids)
        if self._do_evaluation and not self._has_objects:
            path = one_line(self._metadata.json_file, PATH_LIMIT)
            self._logger.warning(f"{path} has no objects, so there is no AP")
        if self._do_evaluation and results:
            self._warn_if_objects_exceed_limit()
        return results

    def _warn_if_objects_exceed_limit(self) -> None:
        most = most_objects(self._coco_api)
        if most > self.max_detections:
            path = one_line(self._metadata.json_file, PATH_LIMIT)
            message = (
                f"{path}: images have up to {most} objects, but AP counts at most "
                f"{self.max_detections} detections per image and class; "
                "dataloader.max_detections raises the limits of the detector and of AP"
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
        """Write the detections to both files.

        ``category_id`` is the model's contiguous class index in ``instances_predictions.pth``, and
        the category id of the annotations in the COCO results file.
        """
        with atomic_write(folder / "instances_predictions.pth") as path, path.open("wb") as file:
            torch.save(predictions, file)
        indices = self._metadata.as_dict().get("thing_dataset_id_to_contiguous_id", {})
        category_ids = {index: category_id for category_id, index in indices.items()}
        results = []
        for prediction in predictions:
            for result in prediction["instances"]:
                index = result["category_id"]
                results.append(result | {"category_id": category_ids.get(index, index)})
        with atomic_write(folder / RESULTS) as path:
            path.write_text(json.dumps(results))

    def _derive_coco_results(
        self, coco_eval: Any, iou_type: str, class_names: Any = None
    ) -> dict[str, float]:
        # Class names become parts of metric names, and cells of a table in the log.
        names = class_names and list(map(one_line, class_names))
        results = super()._derive_coco_results(coco_eval, iou_type, names)
        if coco_eval is None and self._has_objects:
            return dict.fromkeys(results, 0.0)
        return {metric: value for metric, value in results.items() if math.isfinite(value)}


def coco_json(instances: Instances, image_id: int) -> list[dict[str, Any]]:
    """Convert detections to COCO's results format, category ids being class indices.

    :class:`CroppedMasks` are encoded without their full images. pycocotools cannot read RLEs of
    images of 2**32 pixels or more, so their results are boxes only.
    """
    if not _has_cropped_masks(instances):
        return instances_to_coco_json(instances, image_id)
    fields = instances.get_fields().copy()
    masks = fields.pop("pred_masks")
    results = instances_to_coco_json(Instances(instances.image_size, **fields), image_id)
    if math.prod(masks.image_size) <= RLE_PIXELS:
        for result, rle in zip(results, masks.rles()):
            result["segmentation"] = rle | {"counts": rle["counts"].decode()}
    return results


def _has_cropped_masks(instances: Instances) -> bool:
    return instances.has("pred_masks") and isinstance(instances.pred_masks, CroppedMasks)


def check_masks(ground_truth: COCO, json_file: str) -> None:
    """Raise a UserError if a ground truth mask would make pycocotools crash the process.

    Args:
        ground_truth: the content of the file, without :mod:`gpvit.data.datasets.coco_rules`.
        json_file: path for the message.
    """
    for id, item in ground_truth.anns.items():
        mask, image = item.get("segmentation"), ground_truth.imgs.get(item.get("image_id"))
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


def summarize(
    ground_truth: COCO, detections: COCO, task: str, max_detections: int = MAX_DETECTIONS
) -> COCOeval:
    """Run COCO's evaluation including its summary, without printing.

    Args:
        ground_truth, detections: objects and detections.
        task: "bbox" or "segm".
        max_detections: number of detections per image and class that AP counts, highest scores
            first.
    """
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(ground_truth, detections, task)
        evaluation.params.maxDets = max_dets(max_detections)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


def max_dets(max_detections: int) -> list[int]:
    """COCO's ``maxDets``: limits of detections per image and class for the three ARs.

    The last one is also the limit for AP.
    """
    return [1, min(10, max_detections), max_detections]


def check_max_detections(value: Any, name: str) -> None:
    """Raise a UserError if a limit of detections, from an option ``name``, is invalid."""
    if type(value) is not int or not 1 <= value <= MOST_DETECTIONS:
        raise UserError(
            f"{name} must be a whole number from 1 to {MOST_DETECTIONS}, got {one_line(value)}"
        )


def most_objects(ground_truth: COCO) -> int:
    """The largest number of objects in an image, not counting crowds."""
    counts: Counter[int] = Counter()
    for item in ground_truth.anns.values():
        if not item.get("iscrowd"):
            counts[item["image_id"]] += 1
    return max(counts.values(), default=0)


def evaluated_data(name: str, *, masks: bool) -> dict[str, Any]:
    """Describe an evaluated dataset for evaluation.json.

    Args:
        name: name of the dataset in Detectron2.
        masks: whether masks are evaluated.

    Returns:
        "name"; "file", the path of the annotations; "masks", whether they were read with masks;
        "fingerprint", see :func:`coco_fingerprint`. For semantic segmentation and classification,
        "name" and "fingerprint". Only "name" for other datasets without a COCO file.
    """
    metadata = MetadataCatalog.get(name).as_dict()
    if metadata.get("evaluator_type") in ("sem_seg", "classification"):
        names = metadata.get("stuff_classes") or metadata["thing_classes"]
        classes = [class_name.strip() for class_name in names]
        fingerprint = dataset_fingerprint(DatasetCatalog.get(name), classes)
        return {"name": name, "fingerprint": fingerprint}
    file: CocoFile | None = metadata.get("coco_file")
    if file is not None:
        objects = itertools.chain.from_iterable(file.objects.values())
        masks = any("segmentation" in item for item in objects)
    elif os.path.isfile(metadata.get("json_file", "")):
        file = annotations.read(metadata["json_file"], metadata.get("image_root", ""), masks=masks)
    else:
        return {"name": name}
    return {"name": name, "file": file.path, "masks": masks, "fingerprint": coco_fingerprint(file)}


def coco_fingerprint(file: CocoFile) -> str:
    """Fingerprint of annotations as this package reads them, including the ids that results use.

    It does not depend on where they come from: a folder, a dataset registered with Detectron2, or
    the path of a JSON file.
    """
    # Results refer to images and categories by id, so both are part of the fingerprint.
    categories = [f"{id} {name}" for id, name in file.categories.items()]
    return dataset_fingerprint(_records_with_file_names_of(file), categories)


def _records_with_file_names_of(file: CocoFile) -> Iterator[dict[str, Any]]:
    """Yield Detectron2 records with the file names of the JSON file.

    The paths of the images may differ (another image folder), or be unknown.
    """
    for id, image in file.images.items():
        objects = [item | {"bbox_mode": BoxMode.XYWH_ABS} for item in file.objects[id]]
        file_name = file.written.get(id, image["file_name"])
        yield image | {"file_name": file_name, "image_id": id, "annotations": objects}
