"""The dataset mapper of classification: from a record to an image and the index of its class."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import detectron2.data.transforms as T
import numpy as np
import torch

from ..utils.errors import UserError, reason_of
from ..utils.text import LINE_LIMIT
from .image_io import read_annotated_image, read_image
from .instance_mapper import CHANNELS
from .transforms import AugmentedImage

logger = logging.getLogger(__name__)

MARGIN = 0.1  # around an object that is classified, as a fraction of its box


class ClassificationMapper:
    """Reads an image, or the part of it that is classified, and augments it.

    Args:
        is_train: for the log.
        augmentations: Detectron2's, applied in this order.
        image_format: "RGB" or "BGR".
    """

    def __init__(
        self,
        is_train: bool,
        *,
        augmentations: Sequence[T.Augmentation | T.Transform],
        image_format: str,
    ) -> None:
        if image_format not in CHANNELS:
            raise UserError(
                f"image_format must be one of {', '.join(CHANNELS)}, got {image_format}"
            )
        self.image_format = image_format
        self.augmentations = T.AugmentationList(augmentations)
        logger.info(
            "Augmentations in %s: %s", "training" if is_train else "evaluation", augmentations
        )

    def __call__(self, record: dict[str, Any]) -> dict[str, Any]:
        """Map the record of an image to the input of a model.

        Args:
            record: see :func:`read_classified`, with "label", the index of the class; not modified.

        Returns:
            The record with "image", (3, h, w), uint8.

        Raises:
            UserError: the image cannot be used; the message has the path.
        """
        try:
            return self._map(dict(record))
        except UserError:
            raise
        except Exception as error:
            reason = reason_of(error, LINE_LIMIT)
            raise UserError(
                f"{record.get('file_name')}: cannot be used ({reason}); correct or remove it"
            ) from error

    def _map(self, record: dict[str, Any]) -> dict[str, Any]:
        image = read_classified(record)
        augmented = AugmentedImage(image[:, :, CHANNELS[self.image_format]])
        self.augmentations(augmented)
        # (h, w, 3) -> (3, h, w)
        record["image"] = torch.from_numpy(np.ascontiguousarray(augmented.image.transpose(2, 0, 1)))
        return record


def read_classified(record: Mapping[str, Any]) -> np.ndarray:
    """Return what is classified of an image.

    Args:
        record: with "file_name"; for an object with "box", [x0, y0, x1, y1] in pixels, and "height"
            and "width" of the image.

    Returns:
        (H, W, 3), RGB, uint8: the image, or the box with a :data:`MARGIN` on each side.

    Raises:
        UserError: the image cannot be read, or differs in size from its record.
    """
    path = record["file_name"]
    if "box" not in record:
        return read_image(path)
    image = read_annotated_image(path, record["height"], record["width"])
    x0, y0, x1, y1 = record["box"]
    margin_x, margin_y = MARGIN * (x1 - x0), MARGIN * (y1 - y0)
    left, top = max(0, int(x0 - margin_x)), max(0, int(y0 - margin_y))
    right, bottom = int(np.ceil(x1 + margin_x)), int(np.ceil(y1 + margin_y))
    return image[top:bottom, left:right]
