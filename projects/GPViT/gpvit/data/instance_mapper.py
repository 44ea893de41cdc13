"""The dataset mapper: from a record in Detectron2's format to the input of a model."""

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
from .cropped_masks import Crop, CroppedMasks, crop_of_polygons, transform_rles
from .image_io import read_image
from .masks import compressed, mask_fault, outlines_fault
from .transforms import AugmentedImage

logger = logging.getLogger(__name__)
CHANNELS = {"RGB": slice(None), "BGR": slice(None, None, -1)}


class InstanceMapper:
    """Detectron2's dataset mapper for boxes and masks, with some differences.

    It reads images with :func:`gpvit.data.image_io.read_image`, supports images without objects,
    does not truncate boxes with integer coordinates, and raises errors that name the image and the
    annotation.

    Args:
        is_train: whether to return instances.
        augmentations: Detectron2's, applied in this order.
        image_format: "RGB" or "BGR".
        use_instance_mask: whether every object must have a mask; if not, no masks are returned.
        instance_mask_format: "bitmask", for both polygons and RLE, as :class:`.CroppedMasks`, or
            "polygon".
        recompute_boxes: whether to recompute tight boxes from the augmented masks.
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
        """Map the record of an image to the input of a model.

        Args:
            record: in Detectron2's standard dataset format; not modified.

        Returns:
            The record with "image", (3, h, w), uint8, where h x w is the augmented size, and in
            training with "instances", without crowds, in place of "annotations".

        Raises:
            UserError: the image or an annotation cannot be used; the message has the path, the
                image id and the annotation id.
        """
        try:
            return self._map(dict(record))
        except UserError as error:
            raise UserError(f"{error} (image id {record.get('image_id')})") from error
        except Exception as error:
            reason = reason_of(error, LINE_LIMIT)
            raise UserError(
                f"{record.get('file_name')}: cannot be used ({reason}); correct or remove it "
                f"(image id {record.get('image_id')})"
            ) from error

    def _map(self, record: dict[str, Any]) -> dict[str, Any]:
        path = record["file_name"]
        image = read_image(path)
        height, width = image.shape[:2]
        stated = record.setdefault("height", height), record.setdefault("width", width)
        if stated != (height, width):
            raise UserError(
                f"{path}: is {width} x {height} pixels, but {stated[1]} x {stated[0]} in its "
                "annotations; correct them"
            )
        augmented = AugmentedImage(image[:, :, CHANNELS[self.image_format]])
        transforms = self.augmentations(augmented)
        # (h, w, 3) -> (3, h, w)
        record["image"] = torch.from_numpy(np.ascontiguousarray(augmented.image.transpose(2, 0, 1)))
        annotations = record.pop("annotations", None)
        if self.is_train and annotations is not None:
            new_size = augmented.image.shape[:2]
            objects = []
            for annotation in annotations:
                if annotation.get("iscrowd"):
                    continue
                try:
                    mapped = self._map_object(annotation, (height, width), transforms, new_size)
                except Exception as error:
                    reason = reason_of(error, LINE_LIMIT)
                    raise UserError(
                        f"{path}: annotation id {annotation.get('id')} cannot be used ({reason}); "
                        "correct or remove it"
                    ) from error
                objects.append(mapped)
            record["instances"] = self._instances(objects, transforms, new_size)
        return record

    def _map_object(
        self,
        annotation: dict[str, Any],
        size: tuple[int, int],
        transforms: T.Transform,
        new_size: tuple[int, int],
    ) -> dict[str, Any]:
        """Transform an object; sizes are height and width of the image before and after."""
        # Detectron2 keeps the type of a box: integer coordinates would be truncated.
        box = list(map(float, annotation["bbox"]))
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
                mapped["mask"] = compressed(mask, *size)  # transformed later, with the others
            else:
                mapped["segmentation"] = copy.deepcopy(mask)  # some transforms work in place
        mapped = utils.transform_instance_annotations(mapped, transforms, new_size)
        polygons = mapped.get("segmentation")
        if isinstance(polygons, list):
            # The original polygons were within limits, but a transform may enlarge them.
            fault = outlines_fault(list(map(np.ravel, polygons)))
            if fault:
                raise ValueError(fault)
            if self.instance_mask_format == "bitmask":
                mapped["mask"] = crop_of_polygons(mapped.pop("segmentation"), *new_size)
        return mapped

    def _instances(
        self, objects: list[dict[str, Any]], transforms: T.Transform, size: tuple[int, int]
    ) -> Instances:
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
            masks = [item["mask"] for item in objects if "mask" in item]
            instances.gt_masks = CroppedMasks.of(_crops(masks, transforms, size), size)
        if self.recompute_boxes:
            instances.gt_boxes = instances.gt_masks.get_bounding_boxes()
        return utils.filter_empty_instances(instances)


def _crops(
    masks: list[dict[str, Any] | Crop], transforms: T.Transform, size: tuple[int, int]
) -> list[Crop]:
    """Transform the RLEs among the masks of an image; crops are already transformed."""
    rles = [mask for mask in masks if isinstance(mask, dict)]
    crops_of_rles = transform_rles(rles, transforms.apply_segmentation, size)
    crops = []
    for mask in masks:
        crops.append(next(crops_of_rles) if isinstance(mask, dict) else mask)
    return crops
