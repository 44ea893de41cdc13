"""An image of any size as the input of a model."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


class ModelInput:
    """An image, normalized and padded as Detectron2's models do it, where it is read.

    ``image[:, :, rows, columns]`` is a region of it, (1, 3, h, w), float32.

    Args:
        pixels: (H, W, 3), uint8, an array or an object that returns arrays for
            ``pixels[rows, columns]``.
        model: has ``pixel_mean``, ``pixel_std`` and a ``backbone``.
        channels: the channels of ``pixels`` in the order of the model's input.

    Attributes:
        size: H and W.
        shape: (1, 3, H', W'), sides multiples of what the backbone needs.
    """

    def __init__(
        self, pixels: Any, model: nn.Module, channels: Sequence[int] | slice = slice(None)
    ) -> None:
        height, width, _ = pixels.shape
        divisor = model.get_submodule("backbone").size_divisibility
        self.pixels, self.channels = pixels, channels
        self.size: tuple[int, int] = (height, width)
        self.shape = (1, 3, -(-height // divisor) * divisor, -(-width // divisor) * divisor)
        self.mean = model.get_buffer("pixel_mean").cpu()  # (3, 1, 1)
        self.std = model.get_buffer("pixel_std").cpu()

    def __getitem__(self, index: tuple[slice, ...]) -> Tensor:
        rows, columns = index[2:]
        region = torch.zeros(1, 3, rows.stop - rows.start, columns.stop - columns.start)
        found = self.pixels[rows, columns][..., self.channels]  # without the padding
        height, width = found.shape[:2]
        pixels = torch.from_numpy(found.transpose(2, 0, 1).copy())
        region[0, :, :height, :width] = (pixels - self.mean) / self.std
        return region
