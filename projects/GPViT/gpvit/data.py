"""Data sets in COCO format, and an image's way into the model."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import detectron2.data.transforms as T
import numpy as np
import torch
from detectron2.data import DatasetCatalog, DatasetMapper, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.structures import BitMasks, Boxes, Instances
from omegaconf import DictConfig

from .errors import UserError


def register_folder(root: str, split: str, *, masks: bool = True) -> str:
    """Registers one's own data with Detectron2.

    Args:
        root: a folder with ``annotations/train.json``, ``annotations/val.json`` (COCO format) and ``images/``.
        split: "train" or "val".
        masks: whether every annotation must have a mask.

    Returns:
        The name under which Detectron2 knows it; the metadata has the class names, in the order of their ids.
    """
    json_file = Path(root) / "annotations" / f"{split}.json"
    images = Path(root) / "images"
    for path in (json_file, images):
        if not path.exists():
            raise UserError(
                f"--data {root}: {path} is missing; needed are annotations/train.json, annotations/val.json and images/"
            )
    try:
        content = json.loads(json_file.read_bytes())
        categories = {category["id"]: category["name"] for category in content["categories"]}
        without_mask = [annotation["id"] for annotation in content["annotations"] if not annotation.get("segmentation")]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{json_file} is not in COCO format ({type(error).__name__}: {error})") from None
    if not categories:
        raise UserError(f"{json_file} declares no categories")
    if masks and without_mask:
        raise UserError(f"{json_file}: {len(without_mask)} annotations have no segmentation, first id {without_mask[0]}; RetinaNet needs none")

    name = f"coco:{os.path.abspath(root)}:{split}"  # without "coco", Detectron2 warns of ids with gaps, which are normal
    if name in DatasetCatalog:  # Detectron2 would keep the old one or raise
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    ids = sorted(categories)
    metadata = {
        "thing_classes": [categories[id] for id in ids],
        "thing_dataset_id_to_contiguous_id": {id: i for i, id in enumerate(ids)},
    }
    register_coco_instances(name, metadata, str(json_file), str(images))
    return name


def use_folder(cfg: DictConfig, root: str, *, train: bool) -> None:
    """Points a config at one's own data (see :func:`register_folder`): data sets, classes and outputs of the heads."""
    masks = cfg.dataloader.train.mapper.use_instance_mask
    cfg.dataloader.test.dataset.names = register_folder(root, "val", masks=masks)
    names = class_names(cfg.dataloader.test)
    if train:
        cfg.dataloader.train.dataset.names = register_folder(root, "train", masks=masks)
        if class_names(cfg.dataloader.train) != names:
            raise UserError(
                f"--data {root}: train.json and val.json declare different classes: "
                f"{class_names(cfg.dataloader.train)} and {names}"
            )
    set_num_classes(cfg.model, len(names))


def require_files(loader: DictConfig) -> None:
    """Raises a UserError if a loader's data sets are unknown or their annotations are not there."""
    names = loader.dataset.names
    for name in [names] if isinstance(names, str) else names:
        if name not in DatasetCatalog:
            raise UserError(f"data set {name} is not registered; give your own data by --data DIR")
        json_file = MetadataCatalog.get(name).get("json_file", "")
        if json_file and not os.path.isfile(json_file):
            raise UserError(
                f"{json_file} of data set {name} does not exist: put it there, or set DETECTRON2_DATASETS to the folder "
                "above coco/, or give your own data by --data DIR"
            )


def set_num_classes(model: DictConfig, num_classes: int) -> None:
    """Sets the number of classes of a detector's config."""
    detector = model.roi_heads if "roi_heads" in model else model
    detector.num_classes = num_classes  # the predictors' numbers refer to this one


def class_names(loader: DictConfig) -> list[str]:
    """The class names of the data set behind a loader's config."""
    names = loader.dataset.names
    return list(MetadataCatalog.get(names if isinstance(names, str) else names[0]).thing_classes)


class InstanceMapper(DatasetMapper):
    """Detectron2's mapper, which cannot recompute the boxes of an image without objects and truncates boxes of integers."""

    def _transform_annotations(self, dataset_dict: dict[str, Any], transforms: T.Transform, image_shape: tuple) -> None:
        for annotation in dataset_dict["annotations"]:
            annotation["bbox"] = [float(value) for value in annotation["bbox"]]
        if any(not annotation.get("iscrowd") for annotation in dataset_dict["annotations"]):
            return super()._transform_annotations(dataset_dict, transforms, image_shape)
        del dataset_dict["annotations"]
        instances = Instances(
            image_shape, gt_boxes=Boxes(torch.zeros(0, 4)), gt_classes=torch.zeros(0, dtype=torch.int64)
        )
        if self.use_instance_mask:
            instances.gt_masks = BitMasks(torch.zeros(0, *image_shape, dtype=torch.bool))
        dataset_dict["instances"] = instances


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
        recipe: "resize", the published 1x recipe but for Pillow's resizing, or "lsj", large-scale jitter (0.1 to 2 times ``lsj_size``, cropped
            to it).
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
