"""Data sets in COCO format, and an image's way into the model."""

import copy
import logging
from collections.abc import Sequence
from typing import Any

import detectron2.data.transforms as T
import numpy as np
import torch
from detectron2.data import detection_utils as utils
from detectron2.structures import Boxes, Instances

from ..utils.errors import UserError, reason_of
from ..utils.text import LINE_LIMIT
from .cropped_masks import CroppedMasks, crop_of_polygons, transformed
from .image_io import read_image
from .masks import compressed, mask_fault, outlines_fault
from .transforms import AugmentedImage

logger = logging.getLogger(__name__)
CHANNELS = {"RGB": slice(None), "BGR": slice(None, None, -1)}


class InstanceMapper:
    """An image's record, as Detectron2 defines it, to what its detectors take: Detectron2's mapper for boxes and masks.

    It reads images by :func:`gpvit.data.image_io.read_image`, takes images without objects and boxes of integers, which
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
            raise UserError(
                f"image_format must be one of {', '.join(CHANNELS)}, got {image_format}"
            )
        if recompute_boxes and not use_instance_mask:
            raise UserError("recompute_boxes needs use_instance_mask")
        self.is_train = is_train
        self.augmentations = T.AugmentationList(augmentations)
        self.image_format = image_format
        self.use_instance_mask = use_instance_mask
        self.instance_mask_format = instance_mask_format
        self.recompute_boxes = recompute_boxes
        logger.info(
            "Augmentations in %s: %s", "training" if is_train else "evaluation", augmentations
        )

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
            reason = f"{record.get('file_name')}: cannot be used ({reason_of(error, LINE_LIMIT)}); correct or remove it"
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
                    mapped.append(
                        self._map_object(
                            annotation, (height, width), transforms, augmented.image.shape[:2]
                        )
                    )
                except Exception as error:
                    id = annotation.get("id")
                    raise UserError(
                        f"{path}: annotation id {id} cannot be used ({reason_of(error, LINE_LIMIT)}); correct or remove it"
                    ) from error
            record["instances"] = self._instances(mapped, transforms, augmented.image.shape[:2])
        return record

    def _map_object(
        self,
        annotation: dict[str, Any],
        size: tuple[int, int],
        transforms: T.Transform,
        new_size: tuple[int, int],
    ) -> dict[str, Any]:
        """An object of the augmented image; sizes are height and width of the image before and after."""
        box = [float(value) for value in annotation["bbox"]]
        if not np.isfinite(box).all():
            raise ValueError(f"its box is {box}")
        mapped = {
            "bbox": box,
            "bbox_mode": annotation["bbox_mode"],
            "category_id": int(annotation["category_id"]),
        }
        if self.use_instance_mask:
            mask = annotation.get("segmentation")
            fault = mask_fault(mask, *size)
            if fault:
                raise ValueError(fault)
            if isinstance(mask, dict) and self.instance_mask_format == "bitmask":
                mapped["mask"] = compressed(mask, *size)  # transformed together with others
            else:
                mapped["segmentation"] = copy.deepcopy(mask)  # some transforms work in place
        mapped = utils.transform_instance_annotations(mapped, transforms, new_size)
        polygons = mapped.get("segmentation")
        if isinstance(polygons, list):
            # Those of the original image were within limits; how far a transform enlarges them has none.
            fault = outlines_fault([np.ravel(polygon) for polygon in polygons])
            if fault:
                raise ValueError(fault)
            if self.instance_mask_format == "bitmask":
                mapped["mask"] = crop_of_polygons(mapped.pop("segmentation"), *new_size)
        return mapped

    def _instances(
        self, objects: list[dict[str, Any]], transforms: T.Transform, size: tuple[int, int]
    ) -> Instances:
        masks = [item["mask"] for item in objects if "mask" in item]
        rest = iter(
            transformed(
                [mask for mask in masks if isinstance(mask, dict)],
                transforms.apply_segmentation,
                size,
            )
        )
        crops = [next(rest) if isinstance(mask, dict) else mask for mask in masks]
        if objects:
            instances = utils.annotations_to_instances(
                objects, size, mask_format=self.instance_mask_format
            )
        else:
            instances = Instances(
                size,
                gt_boxes=Boxes(torch.zeros(0, 4)),
                gt_classes=torch.zeros(0, dtype=torch.int64),
            )
        if self.use_instance_mask and not instances.has("gt_masks"):
            instances.gt_masks = CroppedMasks.of(crops, size)
        if self.recompute_boxes:
            instances.gt_boxes = instances.gt_masks.get_bounding_boxes()
        return utils.filter_empty_instances(instances)
