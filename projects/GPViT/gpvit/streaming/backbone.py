"""The backbone over images of any size: part by part, with its maps on disk.

    features = stream(net, image)  # (1, 3, 8H, 8W) -> (1, H, W, C)
    features = stream_maps(net, image)["last_feat"]  # the same; all maps that the network returns

There are no tiles and seams: the numbers are those of one pass, except for rounding.

    patch embedding, 3x3 convolutions: regions of the map, with the pixels around them
    attention in vertical stripes: strips of columns, of the whole height
    attention in horizontal stripes and MLP: strips of rows, of the whole width
    group propagation: the group tokens gather from one region after the other, and propagate to
        one after the other
"""

import itertools
import math
import os
from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..modeling.backbone.gpvit import Block, GPViT, GroupPropagationBlock, WindowBlock
from .storage import mapped_arrays, memory_returned, release_pages

Part: TypeAlias = tuple[slice, slice]  # rows and columns of the map
TOKENS = 2**14  # of a region or strip
RELEASED_PARTS = 32  # regions or strips whose pages of the maps may be in memory


def stream(
    net: GPViT,
    image: Any,
    *,
    folder: str | os.PathLike | None = None,
    tokens: int = TOKENS,
    progress: bool = False,
) -> Tensor:
    """Compute the last map of a network for one image.

    A region or strip holds at most ``tokens`` tokens, but a strip at least two rows or columns.
    Only these are in anonymous memory, whatever the size of the image: about 8,200 tokens + 100 C^2
    bytes + 35 MB more than before. The maps are in files, about 10 H W C bytes, whose pages are
    given back to the system; give a folder on a disk where the default one is in memory (tmpfs).
    The files have no names, so that their space is free again when the process ends, however it
    ends.

    Args:
        net: in evaluation mode and float32, on any device.
        image: (1, 3, 8H, 8W), normalized, sides multiples of 16: a tensor, or an object with this
            ``shape`` that returns regions, as tensors or arrays, for ``image[:, :, rows, columns]``
            with slices of rows and columns.
        folder: for the files; by default that of :mod:`tempfile`.
        tokens: of a region or strip: more need more memory.
        progress: whether to show a progress bar.

    Returns:
        The map "last_feat" of the network: (1, H, W, C), float32, in memory-mapped files.

    Raises:
        ValueError: the network is in training mode, in another dtype, has group norms (which depend
            on the whole map) or no "last_feat"; the image has another shape; tokens is not
            positive.
        OSError: there is too little space in the folder.
    """
    if "last_feat" not in net.output_shape():
        raise ValueError(f'the network must return "last_feat", got {list(net.output_shape())}')
    return stream_maps(net, image, folder=folder, tokens=tokens, progress=progress)["last_feat"]


@torch.no_grad()
def stream_maps(
    net: GPViT,
    image: Any,
    *,
    folder: str | os.PathLike | None = None,
    tokens: int = TOKENS,
    progress: bool = False,
) -> dict[str, Tensor]:
    """Compute all maps that a network returns: name to (1, H, W, C); see :func:`stream`.

    Each map but the last one takes 4 H W C bytes more in the folder.
    """
    if net.training:
        raise ValueError("the network is in training mode; call net.eval()")
    if net.pos_embed.dtype != torch.float32:
        raise ValueError(f"the network must be in float32, got {net.pos_embed.dtype}")
    if any(isinstance(module, nn.GroupNorm) for module in net.modules()):
        raise ValueError("a network with group norms cannot be computed part by part")
    if tokens < 1:
        raise ValueError(f"tokens must be at least 1, got {tokens}")
    shape = tuple(image.shape)
    if len(shape) != 4 or shape[:2] != (1, 3) or any(side % 16 or not side for side in shape[2:]):
        raise ValueError(f"an image must be (1, 3, 8H, 8W), sides multiples of 16, got {shape}")
    streamer = _Streamer(net, (shape[2] // 8, shape[3] // 8), folder, tokens, progress)
    with memory_returned(), in_float32(streamer.device):
        return streamer.run(image)


def in_float32(device: torch.device) -> torch.autocast:
    """Return a context without autocast: maps on disk are in float32."""
    return torch.autocast(device.type, enabled=False)


class _Streamer:
    """The state of :func:`stream_maps`, with its arguments."""

    def __init__(
        self,
        net: GPViT,
        size: tuple[int, int],
        folder: str | os.PathLike | None,
        tokens: int,
        progress: bool,
    ) -> None:
        self.net, self.size = net, size
        self.blocks: dict[str, Any] = net.named_blocks()
        self.device = net.pos_embed.device
        height, width = size
        channels = net.pos_embed.shape[-1]
        # The maps that are returned, but for the last one, which x becomes.
        kept = [name for name in net.output_shape() if name != "last_feat"]
        shapes: list[tuple[int, ...]] = [(1, height, width, channels)] * (2 + len(kept))
        for block in self.blocks.values():
            if isinstance(block, WindowBlock):
                # The half of the channels that attends in vertical stripes.
                padding = 2 * block.attn.num_heads * block.attn.padding(net.pos_embed)
                shapes.append((1, height, width // 2, 2, (channels + padding) // 2))
                break
        self.arrays = mapped_arrays(folder, shapes, np.dtype(np.float32))
        # Blocks mix x to y, and convolve y to x.
        self.x, self.y, *rest = map(torch.from_numpy, self.arrays)
        self.kept = dict(zip(kept, rest))
        self.vertical = rest[-1] if len(rest) > len(kept) else self.y

        rows, columns = slice(0, height), slice(0, width)
        region_height = min(height, math.isqrt(tokens))
        region_width = min(width, max(tokens // region_height, 1))
        region_height = min(height, max(tokens // region_width, 1))
        self.regions = list(
            itertools.product(split(rows, region_height), split(columns, region_width))
        )
        self.strips_of_rows = [(part, columns) for part in split(rows, _even(tokens // width))]
        self.strips_of_columns = [(rows, part) for part in split(columns, _even(tokens // height))]
        steps = len(self.regions)
        for block in self.blocks.values():
            if isinstance(block, WindowBlock):
                steps += len(self.strips_of_columns) + len(self.strips_of_rows) + len(self.regions)
            else:
                steps += 3 * len(self.regions)
        self.bar = tqdm(total=steps, desc="backbone", unit="part", disable=not progress)

    def run(self, image: Any) -> dict[str, Tensor]:
        with self.bar:
            self.embed(image)
            for name, block in self.blocks.items():
                if isinstance(block, WindowBlock):
                    self.mix_window(block)
                else:
                    self.mix_groups(block)
                self.convolve(name, block)
        maps = self.kept | {"last_feat": self.x}
        return {name: maps[name] for name in self.net.output_shape()}

    def embed(self, image: Any) -> None:
        embed = self.net.patch_embed
        halo = -(-embed.halo // 8)  # tokens, rounded up
        for rows, columns in self.each(self.regions):
            outer, inner = around(rows, columns, halo, self.size)
            pixels = [slice(8 * side.start, 8 * side.stop) for side in outer]
            region = image[:, :, pixels[0], pixels[1]]
            if isinstance(region, np.ndarray):
                region = torch.from_numpy(np.array(region))  # it may be read-only
            region = region.to(self.device, torch.float32)
            position = self.net.pos_embed_of_region(*self.size, rows, columns)
            self.x[:, rows, columns] = (embed(region)[:, inner[0], inner[1]] + position).cpu()

    def mix_window(self, block: WindowBlock) -> None:
        for rows, columns in self.each(self.strips_of_columns):
            pairs = slice(columns.start // 2, columns.stop // 2)
            mixed = block.mix_columns(self.read(self.x, rows, columns))
            self.vertical[:, :, pairs] = mixed.cpu()
        for rows, columns in self.each(self.strips_of_rows):
            vertical = self.read(self.vertical, rows, slice(None))
            self.y[:, rows] = block.mix_rows(self.read(self.x, rows, columns), vertical).cpu()

    def mix_groups(self, block: GroupPropagationBlock) -> None:
        parts = (self.read(self.x, *region) for region in self.each(self.regions))
        groups = block.group.of_parts(block.group_token, parts)
        for rows, columns in self.each(self.regions):
            part = self.read(self.x, rows, columns)
            self.y[:, rows, columns] = block.propagate(part, groups).cpu()

    def convolve(self, name: str, block: Block) -> None:
        out_norm = self.net.out_norms[name] if name in self.net.out_norms else nn.Identity()
        for rows, columns in self.each(self.regions):
            outer, inner = around(rows, columns, 1, self.size)
            convolved = block.convolve(self.read(self.y, *outer))[:, inner[0], inner[1]]
            if name in self.kept:
                self.kept[name][:, rows, columns] = out_norm(convolved).cpu()
            elif name == "last_feat":
                convolved = out_norm(convolved)
            self.x[:, rows, columns] = convolved.cpu()

    def read(self, values: Tensor, rows: slice, columns: slice) -> Tensor:
        return values[:, rows, columns].to(self.device).contiguous()

    def each(self, parts: Sequence[Part]) -> Iterator[Part]:
        """Yield parts, and count each of them when the next one is wanted."""
        for number, part in enumerate(parts, start=1):
            yield part
            self.bar.update()
            if number % RELEASED_PARTS == 0:
                release_pages(self.arrays)


def around(rows: slice, columns: slice, halo: int, size: tuple[int, int]) -> tuple[Part, Part]:
    """Return a region with a border inside of a map of this size, and where the region is in it."""
    outer, inner = [], []
    for side, length in zip((rows, columns), size):
        start = max(side.start - halo, 0)
        outer.append(slice(start, min(side.stop + halo, length)))
        inner.append(slice(side.start - start, side.stop - start))
    return (outer[0], outer[1]), (inner[0], inner[1])


def _even(length: int) -> int:
    return max(length // 2 * 2, 2)


def split(side: slice, length: int) -> list[slice]:
    """Split a side into parts of a length; the last one may be shorter."""
    parts = []
    for start in range(side.start, side.stop, length):
        parts.append(slice(start, min(start + length, side.stop)))
    return parts
