"""The augmentations of the official classifiers, which work on uint8, RGB images by Pillow.

They draw from the global generators of Python, NumPy and PyTorch, all of which the data loader
seeds for each image.
"""

from collections.abc import Sequence

import detectron2.data.transforms as T
import numpy as np
import torch
from PIL import Image
from torchvision.transforms import RandomErasing as TorchvisionErasing
from torchvision.transforms import RandomResizedCrop as TorchvisionCrop

from ..utils.errors import UserError
from .image_io import MAX_PIXELS

MOST_ELONGATED = 32
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)  # of ImageNet's pixels, RGB


class ResizeShorterSide(T.Augmentation):
    """Resize an image by Pillow's bicubic interpolation so that its shorter side has this length.

    The longer side is rounded down, as in torchvision. Of an image that is more than
    :data:`MOST_ELONGATED` times as long as wide, the part in the center is resized.

    Args:
        size: in pixels.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self._init(locals())

    def get_transform(self, image: np.ndarray) -> T.Transform:
        height, width = image.shape[:2]
        shorter, longer = min(height, width), max(height, width)
        if longer > MOST_ELONGATED * shorter:
            longer = MOST_ELONGATED * shorter
            cropped_height, cropped_width = min(height, longer), min(width, longer)
            top, left = (height - cropped_height) // 2, (width - cropped_width) // 2
            crop = T.CropTransform(left, top, cropped_width, cropped_height)
            rest = self.get_transform(crop.apply_image(image))
            return T.TransformList([crop, rest])
        if shorter == self.size:
            return T.NoOpTransform()
        new_longer = int(self.size * longer / shorter)
        if self.size * new_longer > MAX_PIXELS:
            raise ValueError(f"its sides would be {self.size} and {new_longer} pixels long")
        new_size = (self.size, new_longer) if height <= width else (new_longer, self.size)
        return T.ResizeTransform(height, width, *new_size, Image.Resampling.BICUBIC)


class CenterCrop(T.Augmentation):
    """Crop the square in the center of an image; a shorter side of the image stays.

    Args:
        size: side of the square in pixels.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self._init(locals())

    def get_transform(self, image: np.ndarray) -> T.Transform:
        height, width = image.shape[:2]
        top, left = max(0, round((height - self.size) / 2)), max(0, round((width - self.size) / 2))
        return T.CropTransform(left, top, min(self.size, width), min(self.size, height))


class RandomResizedCrop(T.Augmentation):
    """Resize a random part of an image to a square, by Pillow's bicubic interpolation.

    Args:
        size: side of the square in pixels.
        area: range of the part's area, as a fraction of the image.
        ratio: range of its width divided by its height.
    """

    def __init__(
        self,
        size: int,
        area: Sequence[float] = (0.08, 1.0),
        ratio: Sequence[float] = (3 / 4, 4 / 3),
    ) -> None:
        super().__init__()
        self._init(locals())

    def get_transform(self, image: np.ndarray) -> T.Transform:
        shape_only = torch.empty(3, *image.shape[:2], device="meta")
        top, left, height, width = TorchvisionCrop.get_params(
            shape_only, list(self.area), list(self.ratio)
        )
        crop = T.CropTransform(left, top, width, height)
        resize = T.ResizeTransform(height, width, self.size, self.size, Image.Resampling.BICUBIC)
        return T.TransformList([crop, resize])


class RandomErasing(T.Augmentation):
    """Replace a random rectangle of an image by noise with the mean and deviation of ImageNet.

    Args:
        prob: probability that there is a rectangle.
        area: range of its area, as a fraction of the image.
        ratio: range of its height divided by its width.
    """

    def __init__(
        self,
        prob: float = 0.25,
        area: Sequence[float] = (0.02, 1 / 3),
        ratio: Sequence[float] = (0.3, 3.3),
    ) -> None:
        super().__init__()
        self._init(locals())

    def get_transform(self, image: np.ndarray) -> T.Transform:
        if torch.rand(()).item() >= self.prob:
            return T.NoOpTransform()
        shape_only = torch.empty(3, *image.shape[:2], device="meta")
        top, left, height, width, noise = TorchvisionErasing.get_params(
            shape_only, tuple(self.area), tuple(self.ratio)
        )
        if (height, width) == image.shape[:2]:  # no rectangle fits into a tiny image
            return T.NoOpTransform()
        pixels = noise.permute(1, 2, 0).numpy() * STD + MEAN
        pixels = pixels.round().clip(0, 255).astype(np.uint8)

        def erase(image: np.ndarray) -> np.ndarray:
            erased = image.copy()
            erased[top : top + height, left : left + width] = pixels
            return erased

        return T.ColorTransform(erase)


class RandAugment(T.Augmentation):
    """RandAugment (Cubuk et al., NeurIPS 2020) in the variant of timm, an optional package.

    Two of timm's 15 "increasing" operations are drawn with replacement, and each is carried out
    with probability 0.5.

    Args:
        magnitude: mean of the operations' magnitude, from 0 to 10.
        deviation: standard deviation of the magnitude.

    Raises:
        UserError: timm is not installed.
    """

    def __init__(self, magnitude: int = 9, deviation: float = 0.5) -> None:
        super().__init__()
        self._init(locals())
        try:
            from timm.data.auto_augment import rand_augment_transform
        except ImportError:
            raise UserError(
                "RandAugment needs timm: `python -m pip install timm`, or remove it from "
                "dataloader.train.mapper.augmentations"
            ) from None
        options = {
            "img_mean": tuple(map(round, MEAN)),  # fills what an operation leaves empty
            "interpolation": Image.Resampling.BICUBIC,
        }
        self.augment = rand_augment_transform(f"rand-m{magnitude}-mstd{deviation}-inc1", options)

    def get_transform(self, image: np.ndarray) -> T.Transform:
        return T.PILColorTransform(self.augment)  # draws while it is applied
