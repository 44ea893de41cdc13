"""Resizing and cropping: the training recipes, and the resizing of the published detectors."""

from collections.abc import Sequence
from typing import Any

import cv2
import detectron2.data.transforms as T
import numpy as np

from ..utils.errors import UserError


class AugmentedImage(T.AugInput):
    """An augmentation input whose sides stay at least one pixel long.

    Detectron2's augmentations round a side to 0 if an image is hundreds of times as long as wide.
    """

    def transform(self, tfm: T.Transform) -> None:
        """Apply a transform to the image.

        The output size of a ResizeTransform is corrected in place, so that the same size is used
        for whatever it is applied to next.
        """
        if isinstance(tfm, T.ResizeTransform):
            tfm.new_h, tfm.new_w = max(1, tfm.new_h), max(1, tfm.new_w)
        super().transform(tfm)


class OpenCVResize(T.ResizeShortestEdge):
    """ResizeShortestEdge of the published detectors: OpenCV's bilinear without antialiasing.

    Detectron2's ResizeShortestEdge uses Pillow, whose results differ, and rounds the size twice.

    Args:
        short_edge_length: the shorter side in pixels, or several to choose from.
        max_size: maximum of the longer side.
    """

    def __init__(self, short_edge_length: int | Sequence[int], max_size: int) -> None:
        super().__init__(short_edge_length, max_size, sample_style="choice")

    def get_transform(self, image: np.ndarray) -> T.Transform:
        height, width = image.shape[:2]
        short_side = int(np.random.choice(self.short_edge_length))
        scale = min(self.max_size / max(height, width), short_side / min(height, width))
        new_height = max(1, int(height * scale + 0.5))
        new_width = max(1, int(width * scale + 0.5))
        return OpenCVResizeTransform(height, width, new_height, new_width)


class OpenCVResizeTransform(T.ResizeTransform):
    """Detectron2's ResizeTransform, with images resized by OpenCV's bilinear interpolation."""

    def apply_image(self, image: np.ndarray, interp: int | None = None) -> np.ndarray:
        """Resize an image.

        Args:
            image: (h, w) or (h, w, 3).
            interp: an interpolation method of Pillow, which Detectron2 passes for masks; None for
                OpenCV's bilinear.
        """
        if interp is not None:
            return super().apply_image(image, interp)
        return cv2.resize(image, (self.new_w, self.new_h), interpolation=cv2.INTER_LINEAR)


def multi_scale_crop(short_sides: Sequence[int], max_size: int) -> list[T.Augmentation]:
    """The augmentations of the published 3x schedule, from DETR.

    Half of the images are cropped before they are resized.

    Args:
        short_sides: shorter sides in pixels to choose from.
        max_size: maximum of the longer side.
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
        recipe: "resize", those of the published 1x schedule, except that Pillow resizes; or "lsj",
            large-scale jitter: 0.1 to 2 times ``lsj_size``, cropped to it.
        short_side: "resize": the shorter side in pixels, or several to choose from.
        max_size: "resize": maximum of the longer side.
        lsj_size: "lsj": side of the square crop.
        flip: probability of a horizontal flip.
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
