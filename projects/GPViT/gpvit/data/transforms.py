"""How images are resized and cropped: the recipes of training, and the published way to resize."""

from collections.abc import Sequence
from typing import Any

import cv2
import detectron2.data.transforms as T
import numpy as np

from ..utils.errors import UserError


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
    crop = T.AugmentationList(
        [OpenCVResize((400, 500, 600), max_size), T.RandomCrop("absolute_range", (384, 600))]
    )
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
            T.ResizeScale(
                min_scale=0.1, max_scale=2.0, target_height=lsj_size, target_width=lsj_size
            ),
            T.FixedSizeCrop(crop_size=(lsj_size, lsj_size), pad=False),
        ],
    }
    if recipe not in recipes:
        raise UserError(f"the training recipe must be one of {', '.join(recipes)}, got {recipe}")
    return recipes[recipe] + [T.RandomFlip(prob=flip, horizontal=True)]
