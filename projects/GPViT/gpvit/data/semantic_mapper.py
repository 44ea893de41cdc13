"""The dataset mapper of semantic segmentation: from a record to an image and its label map."""

import logging
from collections.abc import Sequence
from typing import Any

import detectron2.data.transforms as T
import numpy as np
import torch

from ..utils.errors import UserError, reason_of
from ..utils.text import LINE_LIMIT
from .image_io import read_annotated_image, read_image
from .instance_mapper import CHANNELS
from .label_maps import IGNORED, labels_of
from .transforms import AugmentedImage

logger = logging.getLogger(__name__)


class SemanticMapper:
    """Reads an image and its label map, and augments both.

    Detectron2's mapper reads a palette's colors instead of its indices, and cuts 16-bit labels.

    Args:
        is_train: whether to return the label map.
        augmentations: Detectron2's, applied in this order; they may use the label map.
        image_format: "RGB" or "BGR".
        ignore_value: label of the pixels that do not count.
        num_classes: labels from this number on are an error; None for no limit.
    """

    def __init__(
        self,
        is_train: bool,
        *,
        augmentations: Sequence[T.Augmentation | T.Transform],
        image_format: str,
        ignore_value: int = IGNORED,
        num_classes: int | None = None,
    ) -> None:
        if image_format not in CHANNELS:
            raise UserError(
                f"image_format must be one of {', '.join(CHANNELS)}, got {image_format}"
            )
        self.is_train, self.image_format = is_train, image_format
        self.augmentations = T.AugmentationList(augmentations)
        self.ignore_value, self.num_classes = ignore_value, num_classes
        logger.info(
            "Augmentations in %s: %s", "training" if is_train else "evaluation", augmentations
        )

    def __call__(self, record: dict[str, Any]) -> dict[str, Any]:
        """Map the record of an image to the input of a model.

        Args:
            record: with "file_name", and in training a label map, see :func:`.labels_of`; not
                modified.

        Returns:
            The record with "image", (3, h, w), uint8; "height" and "width" of the original image;
            and in training "sem_seg", (h, w), int64: class indices or ``ignore_value``.

        Raises:
            UserError: the image or the label map cannot be used; the message has the path.
        """
        record = dict(record)
        try:
            return self._map(record)
        except UserError:
            raise
        except Exception as error:
            reason = reason_of(error, LINE_LIMIT)
            raise UserError(
                f"{record.get('file_name')}: cannot be used ({reason}); correct or remove it"
            ) from error

    def _map(self, record: dict[str, Any]) -> dict[str, Any]:
        if "height" in record and "width" in record:
            image = read_annotated_image(record["file_name"], record["height"], record["width"])
        else:
            image = read_image(record["file_name"])
        record["height"], record["width"] = image.shape[:2]
        labels = None
        if self.is_train:
            path = record.get("sem_seg_file_name", record["file_name"])
            labels = labels_of(record, self.ignore_value)
            self._require_classes(labels, path)
            if labels.shape != image.shape[:2]:
                height, width = labels.shape
                raise UserError(
                    f"{path}: is {width} x {height} pixels, but its image is {record['width']} x "
                    f"{record['height']}; correct one of them"
                )
            record.pop("annotations", None)
        augmented = AugmentedImage(image[:, :, CHANNELS[self.image_format]], sem_seg=labels)
        self.augmentations(augmented)
        # (h, w, 3) -> (3, h, w)
        record["image"] = torch.from_numpy(np.ascontiguousarray(augmented.image.transpose(2, 0, 1)))
        if labels is not None:
            record["sem_seg"] = torch.from_numpy(augmented.sem_seg.astype(np.int64))
        return record

    def _require_classes(self, labels: np.ndarray, path: str) -> None:
        """Raise a UserError if a label is no class: the loss would fail without naming the file."""
        if self.num_classes is None:
            return
        counted = labels[labels != self.ignore_value]
        for label in (counted.max(initial=0), counted.min(initial=0)):
            if not 0 <= label < self.num_classes:
                raise UserError(
                    f"{path}: has the label {label}, but there are {self.num_classes} classes; "
                    "correct it"
                )
