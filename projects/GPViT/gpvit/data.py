"""Data sets in COCO format, and an image's way into the model."""

import copy
import logging
import os
from collections.abc import Iterator, Sequence
from typing import Any

import cv2
import detectron2.data.transforms as T
import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data import detection_utils as utils
from detectron2.structures import Boxes, Instances
from detectron2.utils.logger import log_first_n
from omegaconf import DictConfig, ListConfig

from . import annotations, layouts
from .images import read_image
from .masks import CroppedMasks, crop_of_polygons, transformed
from .utils.errors import UserError, listed
from .utils.text import one_line

logger = logging.getLogger(__name__)
CHANNELS = {"RGB": slice(None), "BGR": slice(None, None, -1)}


def register_folder(root: str, split: str, *, masks: bool = True) -> str:
    """Registers one's own data with Detectron2, with the rules of :mod:`gpvit.annotations` applied to it.

    Args:
        root: a folder or file that :mod:`gpvit.layouts` understands.
        split: "train" or "val".
        masks: whether every annotation must have a mask.

    Returns:
        The name under which Detectron2 knows it; the metadata has the class names, in the order of their ids, as they
        are shown (:func:`.one_line`).

    Raises:
        UserError: files are missing, or the annotations have a problem that stops.
    """
    return _register(root, split, layouts.read(root, split, masks=masks), "")


def _register(root: str, split: str, data: annotations.CocoFile, summary: str) -> str:
    """The same for what was read; ``summary`` goes to the log before the data is used for the first time."""

    def records() -> list[dict[str, Any]]:
        if summary:
            log_first_n(logging.INFO, summary, name=__name__, key="message")
        return data.records()

    name = f"coco:{os.path.abspath(root)}:{split}"
    if name in DatasetCatalog:  # Detectron2 would keep the old one or raise
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    DatasetCatalog.register(name, records)
    MetadataCatalog.get(name).set(
        thing_classes=[one_line(name) for name in data.categories.values()],  # Detectron2 prints them
        thing_dataset_id_to_contiguous_id={id: i for i, id in enumerate(data.categories)},
        json_file=data.path,
        image_root=data.image_root,
        evaluator_type="coco",
        coco_file=data,  # for gpvit.evaluation and class_names
    )
    return name


def use_folder(cfg: DictConfig, root: str, *, train: bool) -> None:
    """Points a config at one's own data (see :func:`register_folder`): data sets, classes and outputs of the heads.

    What was found is in the log before the data is used.
    """
    layout, masks = layouts.recognise(root), cfg.dataloader.train.mapper.use_instance_mask
    files = {split: layout.read(split, masks=masks) for split in (("train", "val") if train else ("val",))}
    classes = {split: list(data.categories.values()) for split, data in files.items()}
    if train and classes["train"] != classes["val"]:
        raise UserError(
            f"--data {root}: {files['train'].path} and {files['val'].path} declare different classes: "
            f"{listed(classes['train'])} and {listed(classes['val'])}"
        )
    if train:
        files["train"].problems += annotations.images_in_both(files["train"], files["val"])
    summary = layout.summary(files)
    for split, data in files.items():
        loader = cfg.dataloader.train if split == "train" else cfg.dataloader.test
        loader.dataset.names = _register(root, split, data, summary)
    if cfg.dataloader.get("evaluator") and "dataset_name" in cfg.dataloader.evaluator:  # a saved config names its data
        cfg.dataloader.evaluator.dataset_name = cfg.dataloader.test.dataset.names
    set_num_classes(cfg.model, len(classes["val"]))


def folder_of(names: str | Sequence[str]) -> str | None:
    """The folder of one's own data behind a name that :func:`register_folder` gave; None for other data."""
    kind, _, rest = names.partition(":") if isinstance(names, str) else ("", "", "")
    return rest.rpartition(":")[0] if kind == "coco" else None


def require_files(loader: DictConfig) -> None:
    """Raises a UserError if a loader's data sets are unknown or their annotations are not there."""
    names = loader.dataset.names
    for name in [names] if isinstance(names, str) else names:
        if name not in DatasetCatalog:
            raise UserError(f"data set {name} is not registered; give your own data by --data DIR")
        json_file = MetadataCatalog.get(name).get("json_file", "")
        if json_file and not os.path.isfile(json_file):
            raise UserError(
                f"{json_file} of data set {name} does not exist: put it there, or set DETECTRON2_DATASETS to the "
                "folder above coco/, or give your own data by --data DIR"
            )


def set_num_classes(model: DictConfig, num_classes: int) -> None:
    """Sets the number of classes of a detector's config."""
    detector = model.roi_heads if "roi_heads" in model else model
    detector.num_classes = num_classes  # the predictors' numbers refer to this one


def class_names(loader: DictConfig) -> list[str]:
    """The class names of the data sets behind a loader's config.

    Raises:
        UserError: a data set has none, or not those of another one.
    """
    names = loader.dataset.names
    first, *others = [names] if isinstance(names, str) else names
    classes = _classes_of(first)
    for other in others:
        _require_equal(first, classes, other, _classes_of(other))
    return classes


def _classes_of(name: str) -> list[str]:
    metadata = MetadataCatalog.get(name)
    if file := metadata.get("coco_file"):
        return list(file.categories.values())  # "thing_classes" are these as they are shown
    if not metadata.get("thing_classes"):  # Detectron2's register_coco_instances knows them when it has read the file
        try:
            DatasetCatalog.get(name)
        except Exception as error:
            raise UserError(f"data set {name} cannot be read ({_reason(error)})") from error
    if classes := metadata.get("thing_classes"):
        return list(classes)
    raise UserError(
        f"data set {name} is registered without the names of its classes: add MetadataCatalog.get({name!r})"
        ".thing_classes = [...] to where it is registered"
    )


def _require_equal(first: str, classes: list[str], second: str, others: list[str]) -> None:
    """Raises a UserError if two data sets have different classes, or the same ones in another order."""
    if classes != others:
        same = [one == other for one, other in zip(classes, others)]
        number = same.index(False) if False in same else len(same)
        raise UserError(
            f"data sets {first} and {second} have different classes, from class number {number} on: "
            f"{listed(classes[number:]) or 'none'} and {listed(others[number:]) or 'none'}"
        )


def check_classes(cfg: DictConfig, *, train: bool) -> list[str]:
    """Compares the classes of a config's data with each other, and their number with that of its model.

    Args:
        train: whether the training data counts, too.

    Returns:
        The names of the classes.

    Raises:
        UserError: there is a difference, or a data set has no class names.
    """
    classes = class_names(cfg.dataloader.test)
    if train:
        names = [str(loader.dataset.names) for loader in (cfg.dataloader.train, cfg.dataloader.test)]
        _require_equal(names[0], class_names(cfg.dataloader.train), names[1], classes)
    part = "roi_heads" if "roi_heads" in cfg.model else ""
    for key, number in _class_counts(cfg.model[part] if part else cfg.model, f"model.{part}" if part else "model"):
        agnostic = number == 1 and key.endswith("mask_head.num_classes")  # one mask for whatever class
        if number != len(classes) and not agnostic:
            raise UserError(f"the model is for {number} classes, the data has {len(classes)}: {key}={len(classes)}")
    return classes


def _class_counts(node: Any, key: str) -> Iterator[tuple[str, Any]]:
    """The numbers of classes in the config of a detector's heads, the one that others refer to first."""
    children = list(node) if isinstance(node, DictConfig) else range(len(node)) if isinstance(node, ListConfig) else ()
    if "num_classes" in children:
        yield f"{key}.num_classes", node.num_classes
    for name in children:
        yield from _class_counts(node[name], f"{key}.{name}")


class InstanceMapper:
    """An image's record, as Detectron2 defines it, to what its detectors take: Detectron2's mapper for boxes and masks.

    It reads images by :func:`gpvit.images.read_image`, takes images without objects and boxes of integers, which
    Detectron2's truncates, and its errors name what they are about.

    Args:
        is_train: whether instances are given.
        augmentations: Detectron2's, in their order.
        image_format: "RGB" or "BGR".
        use_instance_mask: whether every object must have a mask; without, masks are not given.
        instance_mask_format: "bitmask", for polygons and RLE alike, as :class:`.CroppedMasks`, or "polygon".
        recompute_boxes: whether boxes are made tight around what the augmentations leave of the masks.
    """

    def __init__(
        self,
        is_train: bool,
        *,
        augmentations: Sequence[T.Augmentation | T.Transform],
        image_format: str,
        use_instance_mask: bool = False,
        instance_mask_format: str = "bitmask",
        recompute_boxes: bool = False,
    ) -> None:
        if image_format not in CHANNELS:
            raise UserError(f"image_format must be one of {', '.join(CHANNELS)}, got {image_format}")
        if recompute_boxes and not use_instance_mask:
            raise UserError("recompute_boxes needs use_instance_mask")
        self.is_train = is_train
        self.augmentations = T.AugmentationList(augmentations)
        self.image_format = image_format
        self.use_instance_mask = use_instance_mask
        self.instance_mask_format = instance_mask_format
        self.recompute_boxes = recompute_boxes
        logger.info("Augmentations in %s: %s", "training" if is_train else "evaluation", augmentations)

    def __call__(self, record: dict[str, Any]) -> dict[str, Any]:
        """Makes of an image's record what the model takes.

        Args:
            record: in Detectron2's data set format. It stays as it is.

        Returns:
            The record with "image", (3, h, w), uint8, h x w being the augmented size, and in training with "instances",
            without crowds, in place of "annotations".

        Raises:
            UserError: image or annotations cannot be used; names path, image id and annotation id.
        """
        try:
            return self._map(dict(record))
        except UserError as error:
            raise UserError(f"{error} (image id {record.get('image_id')})") from error
        except Exception as error:
            reason = f"{record.get('file_name')}: cannot be used ({_reason(error)}); correct or remove it"
            raise UserError(f"{reason} (image id {record.get('image_id')})") from error

    def _map(self, record: dict[str, Any]) -> dict[str, Any]:
        path = record["file_name"]
        image = read_image(path)
        height, width = image.shape[:2]
        stated = record.setdefault("height", height), record.setdefault("width", width)
        if stated != (height, width):
            raise UserError(
                f"{path}: is {width} x {height} pixels, and {stated[1]} x {stated[0]} by its annotations; correct them"
            )
        augmented = AugmentedImage(image[:, :, CHANNELS[self.image_format]])
        transforms = self.augmentations(augmented)
        record["image"] = torch.from_numpy(np.ascontiguousarray(augmented.image.transpose(2, 0, 1)))
        objects = record.pop("annotations", None)
        if self.is_train and objects is not None:
            mapped = []
            for annotation in objects:
                if annotation.get("iscrowd"):
                    continue
                try:
                    mapped.append(self._map_object(annotation, (height, width), transforms, augmented.image.shape[:2]))
                except Exception as error:
                    id = annotation.get("id")
                    raise UserError(
                        f"{path}: annotation id {id} cannot be used ({_reason(error)}); correct or remove it"
                    ) from error
            record["instances"] = self._instances(mapped, transforms, augmented.image.shape[:2])
        return record

    def _map_object(
        self, annotation: dict[str, Any], size: tuple[int, int], transforms: T.Transform, new_size: tuple[int, int]
    ) -> dict[str, Any]:
        """An object of the augmented image; sizes are height and width of the image before and after."""
        box = [float(value) for value in annotation["bbox"]]
        if not np.isfinite(box).all():
            raise ValueError(f"its box is {box}")
        mapped = {"bbox": box, "bbox_mode": annotation["bbox_mode"], "category_id": int(annotation["category_id"])}
        if self.use_instance_mask:
            mask = annotation.get("segmentation")
            fault = annotations.mask_fault(mask, *size)
            if fault:
                raise ValueError(fault)
            if isinstance(mask, dict) and self.instance_mask_format == "bitmask":
                mapped["mask"] = annotations.compressed(mask, *size)  # transformed together with others
            else:
                mapped["segmentation"] = copy.deepcopy(mask)  # some transforms work in place
        mapped = utils.transform_instance_annotations(mapped, transforms, new_size)
        polygons = mapped.get("segmentation")
        if isinstance(polygons, list):
            # Those of the original image were within limits; how far a transform enlarges them has none.
            fault = annotations.outlines_fault([np.ravel(polygon) for polygon in polygons])
            if fault:
                raise ValueError(fault)
            if self.instance_mask_format == "bitmask":
                mapped["mask"] = crop_of_polygons(mapped.pop("segmentation"), *new_size)
        return mapped

    def _instances(self, objects: list[dict[str, Any]], transforms: T.Transform, size: tuple[int, int]) -> Instances:
        masks = [item["mask"] for item in objects if "mask" in item]
        rest = iter(transformed([mask for mask in masks if isinstance(mask, dict)], transforms.apply_segmentation, size))
        crops = [next(rest) if isinstance(mask, dict) else mask for mask in masks]
        if objects:
            instances = utils.annotations_to_instances(objects, size, mask_format=self.instance_mask_format)
        else:
            instances = Instances(size, gt_boxes=Boxes(torch.zeros(0, 4)), gt_classes=torch.zeros(0, dtype=torch.int64))
        if self.use_instance_mask and not instances.has("gt_masks"):
            instances.gt_masks = CroppedMasks.of(crops, size)
        if self.recompute_boxes:
            instances.gt_boxes = instances.gt_masks.get_bounding_boxes()
        return utils.filter_empty_instances(instances)


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}".removesuffix(": ")


class AugmentedImage(T.AugInput):
    """An image that augmentations transform, and whose sides stay at least one pixel long.

    Detectron2's augmentations round a side to nothing where an image is hundreds of times as long as wide.
    """

    def transform(self, tfm: T.Transform) -> None:
        """Args: tfm: of an augmentation; the size that it resizes to is corrected, also for what it is applied to next."""
        if isinstance(tfm, T.ResizeTransform):
            tfm.new_h, tfm.new_w = max(1, tfm.new_h), max(1, tfm.new_w)
        super().transform(tfm)


class OpenCVResize(T.ResizeShortestEdge):
    """ResizeShortestEdge as the published detectors know it: with OpenCV's bilinear, which does not antialias.

    Detectron2's uses Pillow, whose results differ, and rounds the size in two steps.

    Args:
        short_edge_length: the shorter side in pixels, or several to choose one from.
        max_size: no longer side is longer than this.
    """

    def __init__(self, short_edge_length: int | Sequence[int], max_size: int) -> None:
        super().__init__(short_edge_length, max_size, sample_style="choice")

    def get_transform(self, image: np.ndarray) -> T.Transform:
        height, width = image.shape[:2]
        short_side = int(np.random.choice(self.short_edge_length))
        scale = min(self.max_size / max(height, width), short_side / min(height, width))
        new_height, new_width = (max(1, int(side * scale + 0.5)) for side in (height, width))
        return OpenCVResizeTransform(height, width, new_height, new_width)


class OpenCVResizeTransform(T.ResizeTransform):
    """Detectron2's ResizeTransform with images by OpenCV's bilinear."""

    def apply_image(self, image: np.ndarray, interp: int | None = None) -> np.ndarray:
        """Args: image: (h, w) or (h, w, 3); interp: a method of Pillow's, which masks are resized by."""
        if interp is not None:
            return super().apply_image(image, interp)
        return cv2.resize(image, (self.new_w, self.new_h), interpolation=cv2.INTER_LINEAR)


def multi_scale_crop(short_sides: Sequence[int], max_size: int) -> list[T.Augmentation]:
    """The published 3x recipe, from DETR: half of the images are cropped before they are resized.

    Args:
        short_sides: shorter sides in pixels to choose from.
        max_size: no longer side is longer than this.
    """
    crop = T.AugmentationList([OpenCVResize((400, 500, 600), max_size), T.RandomCrop("absolute_range", (384, 600))])
    return [
        T.RandomFlip(prob=0.5, horizontal=True),
        T.RandomApply(crop, prob=0.5),
        OpenCVResize(short_sides, max_size),
        T.RandomCrop("absolute_range", (1024, 1024)),
    ]


def train_augmentations(
    recipe: str, short_side: Any, max_size: int, lsj_size: int, flip: float = 0.5
) -> list[T.Augmentation]:
    """The augmentations of a training recipe.

    Args:
        recipe: "resize", the published 1x recipe but for Pillow's resizing, or "lsj", large-scale jitter (0.1 to 2
            times ``lsj_size``, cropped to it).
        short_side: "resize": the shorter side in pixels, or several to choose from.
        max_size: "resize": no longer side is longer than this.
        lsj_size: "lsj": side of the square crop.
        flip: share of the images that are mirrored.
    """
    recipes = {
        "resize": [T.ResizeShortestEdge(short_side, max_size, sample_style="choice")],
        "lsj": [
            T.ResizeScale(min_scale=0.1, max_scale=2.0, target_height=lsj_size, target_width=lsj_size),
            T.FixedSizeCrop(crop_size=(lsj_size, lsj_size), pad=False),
        ],
    }
    if recipe not in recipes:
        raise UserError(f"the training recipe must be one of {', '.join(recipes)}, got {recipe}")
    return recipes[recipe] + [T.RandomFlip(prob=flip, horizontal=True)]
