"""Segmentation models over images of any size: their heads compute tile by tile.

    for rows, columns, classes in segment(model, pixels): ...  # (H, W, 3) -> (h, w), row by row

A tile depends on cells of the maps around it, as many as the layers of the head make necessary, so
that the classes are those of one pass, except for ties and rounding.
"""

import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from detectron2.modeling.meta_arch.semantic_seg import SemSegFPNHead
from torch import Tensor, nn
from tqdm import tqdm

from ..modeling import GPViT, SemanticSegmentor, SimpleFeaturePyramid, UPerNetHead
from ..modeling.segmentation import (
    POOLED_SIDES,
    STRIDE,
    SegmentationHead,
    border,
    pooling_matrix,
)
from ..modeling.semantic_inference import Prediction, class_map, resize_matrix
from .backbone import TOKENS, around, in_float32, split, stream_maps
from .image import ModelInput
from .pyramid import StreamedPyramid

ClassesOfTile: TypeAlias = tuple[slice, slice, Tensor]  # rows, columns, (h, w)
TILE = 512  # pixels, the side of a tile


def check_segmenter(model: nn.Module) -> None:
    """Raise a ValueError if a model cannot be streamed by :func:`segment`."""
    if not isinstance(model, SemanticSegmentor):
        raise ValueError(f"a {type(model).__name__} cannot be streamed as a segmentation model")
    if model.window or model.flip or model.scales != (1.0,):
        raise ValueError(
            "sliding windows, scales and flips cannot be streamed; set model.window=0, "
            "model.scales=[1.0] and model.flip=False"
        )
    net, head = model.backbone, model.sem_seg_head
    if isinstance(head, SemSegFPNHead) and isinstance(net, SimpleFeaturePyramid):
        net = net.net
    elif not isinstance(head, SegmentationHead):
        raise _cannot_be_streamed(f"{type(head).__name__} on {type(net).__name__}")
    if not isinstance(net, GPViT):
        raise _cannot_be_streamed(type(net).__name__)
    if any(isinstance(module, nn.GroupNorm) for module in model.modules()):
        raise _cannot_be_streamed("group norms")
    top_block = getattr(model.backbone, "top_block", None)
    if not isinstance(top_block, LastLevelMaxPool | None):
        raise _cannot_be_streamed(type(top_block).__name__)
    if head.training:
        raise ValueError("the model is in training mode; call model.eval()")


def _cannot_be_streamed(what: str) -> ValueError:
    return ValueError(
        f"a segmentation model with {what} cannot be streamed; use sliding windows "
        "(model.window=512)"
    )


@torch.no_grad()
def segment(
    model: nn.Module,
    pixels: Any,
    *,
    channels: Sequence[int] | slice = slice(None),
    folder: str | os.PathLike | None = None,
    tokens: int = TOKENS,
    tile: int = TILE,
    progress: bool = False,
) -> Iterator[ClassesOfTile]:
    """Yield the classes of an image's pixels, tile by tile, from row to row of tiles.

    The image is not resized. In memory are, besides what :func:`.stream` needs, the activations of
    the head for one tile.

    Args:
        model: a segmentation model with the heads of :mod:`gpvit.modeling.segmentation` on GPViT,
            or with Detectron2's ``SemSegFPNHead`` on a simple feature pyramid; in evaluation mode
            and float32.
        pixels, channels: see :class:`.ModelInput`.
        folder, tokens, progress: see :func:`.stream`.
        tile: side in pixels; those at the right and lower border of the image may be smaller.

    Yields:
        rows and columns of a tile in the image, and its class indices, (h, w), int64, on the CPU.

    Raises:
        ValueError, OSError: see :func:`.stream`; or the model is another one.
    """
    check_segmenter(model)
    assert isinstance(model, SemanticSegmentor)
    if tile < 1:
        raise ValueError(f"tile must be at least 1 pixel, got {tile}")
    image = ModelInput(pixels, model, channels)
    is_pyramid = isinstance(model.backbone, SimpleFeaturePyramid)
    net = model.backbone.net if is_pyramid else model.backbone
    maps = stream_maps(net, image, folder=folder, tokens=tokens, progress=progress)
    with in_float32(model.device):
        head = streamed_head(model, maps, folder, tokens)
    parts = (split(slice(0, side), tile) for side in image.size)
    tiles = list(itertools.product(*parts))
    with tqdm(total=len(tiles), desc="classes", unit="tile", disable=not progress) as bar:
        for rows, columns in tiles:
            with in_float32(model.device):
                classes = _classes(head, image, rows, columns).cpu()
            bar.update()
            yield rows, columns, classes


def _classes(
    head: "MapHead | PyramidHead", image: ModelInput, rows: slice, columns: slice
) -> Tensor:
    """Return the classes of h x w pixels, (h, w)."""
    sources = []
    for side, length in zip((rows, columns), image.shape[2:]):
        sources.append(_sources(side, head.stride, length // head.stride))
    logits = head(sources[0], sources[1])[0].float()
    resizes = []
    for side, cells, length in zip((rows, columns), sources, logits.shape[1:]):
        # Whole cells: the positions in the cells are the same floating-point numbers.
        start = cells.start * head.stride
        resize = resize_matrix(length, length * head.stride, logits)
        resizes.append(resize[side.start - start : side.stop - start])
    return class_map([Prediction(logits, resizes[0], resizes[1])])


def _sources(side: slice, scale: int, length: int) -> slice:
    """Return the cells of a side that a part of it depends on, after they are enlarged bilinearly.

    Args:
        side: the part, in enlarged cells.
        scale: how much they are enlarged.
        length: of the side, in cells.
    """
    # Enlarged cell i is between two cells, of which one is its own, i // scale.
    first, last = side.start // scale - 1, (side.stop - 1) // scale + 1
    return slice(max(first, 0), min(last + 1, length))


def streamed_head(
    model: SemanticSegmentor,
    maps: Mapping[str, Tensor],
    folder: str | os.PathLike | None,
    tokens: int,
) -> "MapHead | PyramidHead":
    """Return the head of a model, of which regions can be computed.

    Args:
        model: as for :func:`segment`.
        maps: of the backbone, by name, (1, H, W, C).
        folder: for the level of a pyramid that is kept.
        tokens: of a region or strip.
    """
    backbone, head = model.backbone, model.sem_seg_head
    if not isinstance(backbone, SimpleFeaturePyramid):
        return MapHead(head, [maps[name] for name in head.in_features], tokens)
    # The levels of a region have more cells than the map, with more channels.
    tokens = max(tokens // 4, 1)
    return PyramidHead(head, StreamedPyramid(backbone, maps[backbone.in_feature], folder, tokens))


class MapHead:
    """A head that reads maps of the backbone.

    Args:
        head: the head.
        maps: its maps, each (1, H, W, C).
        tokens: that are averaged at once.
    """

    stride = STRIDE

    def __init__(self, head: SegmentationHead, maps: Sequence[Tensor], tokens: int) -> None:
        self.head, self.maps = head, maps
        self.device = next(head.parameters()).device
        self.size = maps[0].shape[1], maps[0].shape[2]
        self.contexts: list[Tensor] = []
        if isinstance(head, UPerNetHead):
            averages = average_pool_parts(maps[-1], POOLED_SIDES, tokens)
            self.contexts = head.contexts([average.to(self.device) for average in averages])

    def __call__(self, rows: slice, columns: slice) -> Tensor:
        """Return h x w cells of the logits: (1, K, h, w)."""
        outer, inner = around(rows, columns, self.head.halo, self.size)
        regions = []
        for values in self.maps:
            region = values[:, outer[0], outer[1]].to(self.device).contiguous()
            regions.append(region.permute(0, 3, 1, 2))  # channels-last, as the backbone's
        if isinstance(self.head, UPerNetHead):
            contexts = [self.resized(context, *outer) for context in self.contexts]
            logits = self.head.fuse(regions, self.head.pool(regions[-1], contexts))
        else:
            logits = self.head.logits(regions)
        return logits[:, :, inner[0], inner[1]]

    def resized(self, context: Tensor, rows: slice, columns: slice) -> Tensor:
        """Return h x w cells of a context, resized to the maps: (1, channels, h, w)."""
        height, width = context.shape[2:]
        over_rows = resize_matrix(height, self.size[0], context)[rows]
        over_columns = resize_matrix(width, self.size[1], context)[columns]
        return over_rows @ context @ over_columns.T


def average_pool_parts(values: Tensor, sides: Sequence[int], tokens: int) -> list[Tensor]:
    """Adaptive average pooling of a map that is not in memory, as sums over strips of its rows.

    Args:
        values: (1, H, W, C).
        sides: of the results, in cells.
        tokens: of a strip, but at least a row.

    Returns:
        for each of the sides (1, C, side, side).
    """
    height, width, channels = values.shape[1:]
    # Sums are in float64, on the CPU: not all other devices have it.
    like = torch.zeros((), dtype=torch.float64)
    averages = [like.new_zeros(1, channels, side, side) for side in sides]
    over_rows = [pooling_matrix(height, side, like) for side in sides]
    over_columns = [pooling_matrix(width, side, like) for side in sides]
    for rows in split(slice(0, height), max(tokens // width, 1)):
        strip = values[:, rows].permute(0, 3, 1, 2).double()  # (1, C, h, W)
        for average, of_rows, of_columns in zip(averages, over_rows, over_columns):
            average += of_rows[:, rows] @ (strip @ of_columns.T)
    return [average.to(values.dtype) for average in averages]


class PyramidHead:
    """Detectron2's ``SemSegFPNHead``, which reads levels of a pyramid."""

    def __init__(self, head: SemSegFPNHead, pyramid: StreamedPyramid) -> None:
        self.head, self.pyramid = head, pyramid
        self.stride = head.common_stride

    def __call__(self, rows: slice, columns: slice) -> Tensor:
        """Return h x w cells of the logits: (1, K, h, w)."""
        levels = []
        for name, layers in zip(self.head.in_features, self.head.scale_heads):
            index = self.pyramid.names.index(name)
            levels.append(self.of_level(index, layers, rows, columns))
        return self.head.predictor(sum(levels))

    def of_level(self, index: int, layers: nn.Sequential, rows: slice, columns: slice) -> Tensor:
        """Return h x w cells of a level, at the stride of the logits: (1, channels, h, w)."""
        scale = self.pyramid.strides[index] // self.stride
        cells, inner = [], []
        for side, length in zip((rows, columns), self.pyramid.sizes[index]):
            needed = _needed(layers, side, length * scale)
            cells.append(needed)
            start = side.start - needed.start * scale
            inner.append(slice(start, start + side.stop - side.start))
        enlarged = layers(self.pyramid.read(index, cells[0], cells[1]))
        return enlarged[:, :, inner[0], inner[1]]


def _needed(layers: nn.Sequential, side: slice, length: int) -> slice:
    """Return the cells of the input that a part of the output's side, of a length, depends on."""
    for layer in reversed(layers):
        if isinstance(layer, nn.Upsample):
            assert isinstance(layer.scale_factor, float)
            scale = int(layer.scale_factor)
            length //= scale
            side = _sources(side, scale, length)
        else:
            halo = border(layer)
            side = slice(max(side.start - halo, 0), min(side.stop + halo, length))
    return side
