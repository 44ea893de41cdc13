"""The augmentations of the official segmentation models, for an image and its label map.

All of them work on uint8 and draw from NumPy's global generator, which the data loader seeds for
each image.
"""

from typing import Any

import cv2
import detectron2.data.transforms as T
import numpy as np

from .transforms import OpenCVResizeTransform


class LabelResizeTransform(OpenCVResizeTransform):
    """OpenCV's bilinear interpolation for an image, its nearest neighbor for a label map.

    The nearest neighbor of Pillow is another pixel: it rounds at the center of the new pixel,
    OpenCV at its left edge.
    """

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        """(h, w) -> (new_h, new_w)."""
        size = (self.new_w, self.new_h)
        return cv2.resize(segmentation, size, interpolation=cv2.INTER_NEAREST)


class FitResize(T.Augmentation):
    """Resize an image to fit into a frame, times a random ratio.

    The shorter side becomes ``short_side``, unless the longer one would exceed ``long_side``. Small
    images are enlarged.

    Args:
        short_side, long_side: of the frame, in pixels.
        ratio_range: the frame is scaled by a factor drawn uniformly from this range.
    """

    def __init__(
        self, short_side: int, long_side: int, ratio_range: tuple[float, float] = (1.0, 1.0)
    ) -> None:
        super().__init__()
        self._init(locals())

    def get_transform(self, image: np.ndarray) -> T.Transform:
        ratio = np.random.uniform(*self.ratio_range)
        height, width = image.shape[:2]
        scale = min(
            int(self.long_side * ratio) / max(height, width),
            int(self.short_side * ratio) / min(height, width),
        )
        new_height, new_width = int(height * scale + 0.5), int(width * scale + 0.5)
        return LabelResizeTransform(height, width, max(1, new_height), max(1, new_width))


class StretchToMultiple(T.Augmentation):
    """Enlarge each side to the next multiple of a number of pixels."""

    def __init__(self, multiple: int) -> None:
        super().__init__()
        self._init(locals())

    def get_transform(self, image: np.ndarray) -> T.Transform:
        height, width = image.shape[:2]
        # rounded up
        new_height = -(-height // self.multiple) * self.multiple
        new_width = -(-width // self.multiple) * self.multiple
        return LabelResizeTransform(height, width, new_height, new_width)


class CropWithSeveralClasses(T.Augmentation):
    """Crop to a square, in which no class covers nearly everything if possible.

    Args:
        size: side of the square in pixels; a shorter side of the image stays.
        max_fraction: a crop is accepted if the largest class covers less than this fraction of its
            labeled pixels, and there are at least two classes.
        attempts: number of crops that are drawn; the last one is taken in any case.
        ignore_value: label of the pixels that do not count.
    """

    def __init__(
        self, size: int, max_fraction: float = 0.75, attempts: int = 11, ignore_value: int = 255
    ) -> None:
        super().__init__()
        self._init(locals())

    def get_transform(self, image: np.ndarray, sem_seg: np.ndarray) -> T.Transform:
        height, width = image.shape[:2]
        crop_height, crop_width = min(height, self.size), min(width, self.size)
        for _ in range(self.attempts):
            top = np.random.randint(height - crop_height + 1)
            left = np.random.randint(width - crop_width + 1)
            crop = sem_seg[top : top + crop_height, left : left + crop_width]
            counts = np.unique(crop[crop != self.ignore_value], return_counts=True)[1]
            if len(counts) > 1 and counts.max() < self.max_fraction * counts.sum():
                break
        return T.CropTransform(left, top, crop_width, crop_height, width, height)


class PhotometricDistortion(T.Augmentation):
    """Change brightness, contrast, saturation and hue of an RGB image, each with probability 0.5.

    Args:
        brightness: largest summand.
        contrast, saturation: range of the factor.
        hue: largest summand, in OpenCV's units of 2 degrees.
    """

    def __init__(
        self,
        brightness: float = 32,
        contrast: tuple[float, float] = (0.5, 1.5),
        saturation: tuple[float, float] = (0.5, 1.5),
        hue: int = 18,
    ) -> None:
        super().__init__()
        self._init(locals())

    def get_transform(self, image: np.ndarray) -> T.Transform:
        draw = np.random
        options: dict[str, Any] = {}
        if draw.randint(2):
            options["brightness"] = draw.uniform(-self.brightness, self.brightness)
        options["contrast_first"] = bool(draw.randint(2))
        if draw.randint(2):
            options["contrast"] = draw.uniform(*self.contrast)
        if draw.randint(2):
            options["saturation"] = draw.uniform(*self.saturation)
        if draw.randint(2):
            options["hue"] = int(draw.randint(-self.hue, self.hue))  # the upper end is excluded
        return PhotometricTransform(**options)


class PhotometricTransform(T.Transform):
    """Changes of the colors of an RGB image, uint8; None leaves something as it is.

    Args:
        brightness: summand.
        contrast, saturation: factors.
        hue: summand, in OpenCV's units of 2 degrees.
        contrast_first: whether the contrast is changed before saturation and hue, or after them.
    """

    def __init__(
        self,
        brightness: float | None = None,
        contrast: float | None = None,
        saturation: float | None = None,
        hue: int | None = None,
        contrast_first: bool = True,
    ) -> None:
        super().__init__()
        self._set_attributes(locals())

    def apply_image(self, image: np.ndarray) -> np.ndarray:
        """(h, w, 3) -> (h, w, 3)."""
        if self.brightness is not None:
            image = truncate(image.astype(np.float32) + np.float32(self.brightness))
        if self.contrast is not None and self.contrast_first:
            image = truncate(image.astype(np.float32) * np.float32(self.contrast))
        if self.saturation is not None:
            hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
            scaled = hsv[..., 1].astype(np.float32) * np.float32(self.saturation)
            hsv[..., 1] = truncate(scaled)
            image = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
        if self.hue is not None:
            hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
            hsv[..., 0] = (hsv[..., 0].astype(int) + self.hue) % 180
            image = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
        if self.contrast is not None and not self.contrast_first:
            image = truncate(image.astype(np.float32) * np.float32(self.contrast))
        return image

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        return coords

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        return segmentation


def truncate(values: np.ndarray) -> np.ndarray:
    """Clip to 0 to 255 and convert to uint8, dropping the fraction."""
    return np.clip(values, 0, 255).astype(np.uint8)
