"""The levels of a simple feature pyramid, region by region."""

import os
from fractions import Fraction

import numpy as np
import torch
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from torch import Tensor, nn

from ..modeling import SimpleFeaturePyramid
from .backbone import Part, around, split
from .storage import mapped_arrays


class StreamedPyramid:
    """The levels of a pyramid over a map on disk.

    They are computed where they are read, with the numbers of one pass. Only the last one of those
    that are computed from the map is kept, on disk as well: it is the smallest one, and large boxes
    need large parts of it.

    Args:
        pyramid: in evaluation mode.
        source: the map that it resamples, (1, H, W, C), sides multiples of its last factor.
        folder: for the level that is kept.
        tokens: of a region that is computed at once.

    Raises:
        ValueError: a part of the pyramid depends on more than the surroundings of a region.
        OSError: there is too little space in the folder.
    """

    def __init__(
        self,
        pyramid: SimpleFeaturePyramid,
        source: Tensor,
        folder: str | os.PathLike | None,
        tokens: int,
    ) -> None:
        check_pyramid(pyramid)
        self.source, self.top_block = source, pyramid.top_block
        self.device = next(pyramid.parameters()).device
        shapes = pyramid.output_shape()
        self.names = list(shapes)
        self.channels = shapes[self.names[0]].channels
        self.strides = [shapes[name].stride for name in self.names]
        self.stages = pyramid.stages()
        # Tokens of the map for each cell of a level: 1/2, 1, 2, 4.
        map_stride = pyramid.net.output_shape()[pyramid.in_feature].stride
        self.factors = [Fraction(stride, map_stride) for stride in self.strides]
        height, width = source.shape[1:3]
        self.sizes = []
        for factor in self.factors:
            self.sizes.append((-(-height // factor), -(-width // factor)))  # rounded up
        self.last = len(self.stages) - 1
        shape = (1, self.channels, *self.sizes[self.last])
        (array,) = mapped_arrays(folder, [shape], np.dtype(np.float32))
        self.last_level = torch.from_numpy(array)
        for rows, columns in self.regions(tokens):
            region = self.of_level(self.last, rows, columns)
            self.last_level[:, :, region[0], region[1]] = self.compute(self.last, *region).cpu()

    def regions(self, tokens: int) -> list[Part]:
        """Split the map into regions, whose sides are whole cells of all levels."""
        height, width = self.source.shape[1:3]
        cell = max(int(self.factors[-1]), 1)
        side = max(int(tokens**0.5) // cell, 1) * cell
        parts = []
        for rows in split(slice(0, height), side):
            parts += [(rows, columns) for columns in split(slice(0, width), side)]
        return parts

    def of_level(self, index: int, rows: slice, columns: slice) -> Part:
        """Return where a region of the map is in a level."""
        factor = self.factors[index]
        found = []
        for side in (rows, columns):
            found.append(slice(int(side.start / factor), int(-(-side.stop // factor))))
        return found[0], found[1]

    def read(self, index: int, rows: slice, columns: slice) -> Tensor:
        """Return h x w cells of a level: (1, channels, h, w)."""
        if index < self.last:
            return self.compute(index, rows, columns)
        if index == self.last:
            return self.last_level[:, :, rows, columns].to(self.device)
        # Of two by two cells, LastLevelMaxPool keeps the first one.
        rows, columns = (slice(2 * side.start, 2 * side.stop - 1) for side in (rows, columns))
        return self.read(index - 1, rows, columns)[:, :, ::2, ::2]

    def compute(self, index: int, rows: slice, columns: slice) -> Tensor:
        """The same, from the map: (1, channels, h, w)."""
        factor = self.factors[index]
        outer, _ = around(rows, columns, 1, self.sizes[index])  # of the 3x3 convolution
        parts, inner = [], []
        for side, needed in zip((rows, columns), outer):
            start = int(needed.start * factor)  # rounded down, as the end is rounded up
            parts.append(slice(start, int(-(-needed.stop * factor // 1))))
            first = side.start - int(start / factor)
            inner.append(slice(first, first + side.stop - side.start))
        region = self.source[:, parts[0], parts[1]].to(self.device)
        level = self.stages[index](region.permute(0, 3, 1, 2))
        return level[:, :, inner[0], inner[1]]


def check_pyramid(pyramid: nn.Module) -> None:
    """Raise a ValueError if a pyramid cannot be computed region by region."""
    if not isinstance(pyramid, SimpleFeaturePyramid):
        raise ValueError(
            "only models with a simple feature pyramid can be streamed, not with "
            f"{type(pyramid).__name__}; use tiles"
        )
    if not isinstance(pyramid.top_block, LastLevelMaxPool | None):
        raise ValueError(
            f"a pyramid with {type(pyramid.top_block).__name__} cannot be streamed; use tiles"
        )
    last = list(pyramid.output_shape())[len(pyramid.stages()) - 1]
    if pyramid.top_block is not None and pyramid.top_block.in_feature != last:
        raise ValueError(
            f"a pyramid with further levels from {pyramid.top_block.in_feature}, not from {last}, "
            "cannot be streamed; use tiles"
        )
    if pyramid.padding_constraints["square_size"]:
        raise ValueError("images that are padded to squares cannot be streamed; use tiles")
    if any(isinstance(module, nn.GroupNorm) for module in pyramid.modules()):
        raise ValueError("a pyramid with group norms cannot be streamed; use tiles")
