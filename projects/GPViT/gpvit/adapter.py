"""The way of the published detectors from GPViT to a pyramid: a ViT-Adapter (Chen et al., ICLR 2023).

A convolutional branch looks at the image beside the backbone, at strides 4 to 32. Between groups of blocks the two
exchange what they have by deformable attention. B images, the backbone's grid of H x W tokens at stride 8, C channels,
M = HW (1 + 1/4 + 1/16) tokens of the branch at strides 8, 16 and 32:

    x = net.embed(image)                                   (B, 3, 8H, 8W) -> (B, H, W, C)
    c4, c = spatial_prior(image)                           (B, C, 2H, 2W), (B, M, C)
    for each group of blocks:
        x = injector(x, c)                                 (B, H, W, C)
        x = blocks(x)                                      (B, H, W, C)
        c = extractor(c, x)                                (B, M, C)
    return {"f2": norm(c4 + up(c at 8) + x at 4),          (B, C, 2H, 2W)
            "f3", "f4", "f5": norm(c + x) at 8, 16, 32}    (B, C, H, W) and smaller
"""

import math
from collections.abc import Sequence
from contextlib import nullcontext
from itertools import pairwise

import torch
import torch.nn.functional as F
from detectron2.layers import get_norm
from detectron2.modeling import Backbone
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from .backbone import ConvNormReLU, GPViT, batch_norm, init_weights

Shapes = Sequence[tuple[int, int]]  # height and width of the grids whose tokens follow each other in one sequence


class GPViTAdapter(Backbone):
    """GPViT with a branch of convolutions around it: four maps at strides 4 to 32.

    Args:
        net: the backbone, built with ``final_norm=False``; its blocks are used, not its outputs.
        out_features: "f2" to "f5", the maps at strides 4 to 32. One-stage detectors have no "f2".
        num_interactions: groups the blocks are divided into.
        num_heads: heads of the deformable attention.
        num_points: points that each head samples in each level.
        ffn_ratio: hidden over outer width of the extractors' feed-forward networks.
        drop_path_rate: drop path of every extractor's feed-forward network.
        stem_width: channels of the first convolutions of the branch.
        norm: batch norm of the branch and of the maps, see :class:`GPViT`.
    """

    def __init__(
        self,
        net: GPViT,
        *,
        out_features: Sequence[str] = ("f2", "f3", "f4", "f5"),
        num_interactions: int = 4,
        num_heads: int = 6,
        num_points: int = 4,
        ffn_ratio: float = 0.25,
        drop_path_rate: float = 0.0,
        stem_width: int = 64,
        norm: str = "SyncBN",
    ) -> None:
        super().__init__()
        strides = {"f2": 4, "f3": 8, "f4": 16, "f5": 32}
        if unknown := set(out_features) - set(strides):
            raise ValueError(f"out_features {sorted(unknown)} are none of {list(strides)}")
        if len(net.blocks) % num_interactions:
            raise ValueError(f"the {len(net.blocks)} blocks do not fall into {num_interactions} equal groups")
        if len(net.out_norms):
            raise ValueError("the adapter takes the tokens as the blocks leave them; build GPViT with final_norm=False")
        dim = net.pos_embed.shape[-1]
        with_stride_4 = "f2" in out_features

        self.level_embed = nn.Parameter(torch.randn(3, dim))
        self.spatial_prior = SpatialPrior(dim, stem_width, norm, with_stride_4)
        self.injectors = nn.ModuleList(Injector(dim, num_heads, num_points) for _ in range(num_interactions))
        self.extractors = nn.ModuleList(  # the last two follow the last group's own
            Extractor(dim, num_heads, num_points, int(dim * ffn_ratio), drop_path_rate) for _ in range(num_interactions + 2)
        )
        self.up = nn.ConvTranspose2d(dim, dim, kernel_size=2, stride=2) if with_stride_4 else None
        self.norms = nn.ModuleDict({name: get_norm(norm, dim) for name in out_features})
        self.apply(_init_weights)
        self.net = net
        self._out_features = list(out_features)
        self._out_feature_channels = dict.fromkeys(out_features, dim)
        self._out_feature_strides = {name: strides[name] for name in out_features}

    @property
    def size_divisibility(self) -> int:
        return 32

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Args: image: (B, 3, 8H, 8W), normalised, sides multiples of 32. Returns: name -> (B, C, height, width)."""
        height, width = image.shape[-2:]
        if height % 32 or width % 32:
            raise ValueError(f"the adapter needs image sides that are multiples of 32, got {height}x{width}")
        x = self.net.embed(image)
        c4, levels = self.spatial_prior(image)
        shapes = [tuple(level.shape[1:3]) for level in levels]
        c = torch.cat([level.flatten(1, 2) + embed for level, embed in zip(levels, self.level_embed)], dim=1)
        group = len(self.net.blocks) // len(self.injectors)
        for i, injector in enumerate(self.injectors):
            x = injector(x, c, shapes)
            for block in self.net.blocks[i * group : (i + 1) * group]:
                x = block(x)
            c = self.extractors[i](c, x, shapes)
        for extractor in self.extractors[len(self.injectors) :]:
            c = extractor(c, x, shapes)
        return self._merge(x, c, shapes, c4)

    def _merge(self, x: Tensor, c: Tensor, shapes: Shapes, c4: Tensor | None) -> dict[str, Tensor]:
        """The maps of both branches, added and normalised."""
        x = x.permute(0, 3, 1, 2)  # (B, H, W, C) -> (B, C, H, W)
        outputs = dict(zip(("f3", "f4", "f5"), (level.permute(0, 3, 1, 2) for level in _split(c, shapes))))
        if c4 is not None and self.up is not None:  # there are both or neither
            outputs["f2"] = self.up(outputs["f3"]) + c4
        for name, output in outputs.items():
            x_there = x if name == "f3" else F.interpolate(x, output.shape[-2:], mode="bilinear", align_corners=False)
            outputs[name] = output + x_there
        return {name: batch_norm(self.norms[name], outputs[name]) for name in self._out_features}


class SpatialPrior(nn.Module):
    """Convolutions from the image to strides 4, 8, 16 and 32.

    Returns the map at stride 4, (B, C, 2H, 2W), or None without it, and the tokens at the other strides, (B, H, W, C)
    and smaller.
    """

    def __init__(self, dim: int, width: int, norm: str, with_stride_4: bool) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            ConvNormReLU(3, width, 3, stride=2, norm=norm),
            ConvNormReLU(width, width, 3, norm=norm),
            ConvNormReLU(width, width, 3, norm=norm),
            nn.MaxPool2d(kernel_size=3, stride=2, padding=1),
        )
        widths = (width, 2 * width, 4 * width, 4 * width)
        self.convs = nn.ModuleList(ConvNormReLU(inner, outer, 3, stride=2, norm=norm) for inner, outer in pairwise(widths))
        self.projection4 = nn.Conv2d(width, dim, 1) if with_stride_4 else None
        self.projections = nn.ModuleList(nn.Conv2d(outer, dim, 1) for outer in widths[1:])

    def forward(self, image: Tensor) -> tuple[Tensor | None, list[Tensor]]:
        x = self.stem(image.contiguous(memory_format=torch.channels_last))
        c4 = self.projection4(x) if self.projection4 is not None else None
        levels = []
        for conv, projection in zip(self.convs, self.projections):
            x = conv(x)
            levels.append(projection(x).permute(0, 2, 3, 1))  # (B, C, h, w) -> (B, h, w, C)
        return c4, levels


class Injector(nn.Module):
    """Gives the branch's tokens at three strides to the backbone's: (B, H, W, C), (B, M, C) -> (B, H, W, C)."""

    def __init__(self, dim: int, num_heads: int, num_points: int) -> None:
        super().__init__()
        self.norm_query = nn.LayerNorm(dim, eps=1e-6)
        self.norm_feature = nn.LayerNorm(dim, eps=1e-6)
        self.attn = DeformableAttention(dim, num_heads, 3, num_points)
        self.gamma = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor, c: Tensor, shapes: Shapes) -> Tensor:
        query = self.norm_query(x).flatten(1, 2)
        attended = self.attn(query, shapes[:1], self.norm_feature(c), shapes)
        return x + self.gamma * attended.view_as(x)


class Extractor(nn.Module):
    """Takes from the backbone's tokens for the branch's: (B, M, C), (B, H, W, C) -> (B, M, C)."""

    def __init__(self, dim: int, num_heads: int, num_points: int, hidden_dim: int, drop_path: float) -> None:
        super().__init__()
        self.norm_query = nn.LayerNorm(dim, eps=1e-6)
        self.norm_feature = nn.LayerNorm(dim, eps=1e-6)
        self.attn = DeformableAttention(dim, num_heads, 1, num_points)
        self.norm_ffn = nn.LayerNorm(dim, eps=1e-6)
        self.ffn = ConvFFN(dim, hidden_dim)
        self.drop_path = StochasticDepth(drop_path, mode="row")

    def forward(self, c: Tensor, x: Tensor, shapes: Shapes) -> Tensor:
        c = c + self.attn(self.norm_query(c), shapes, self.norm_feature(x).flatten(1, 2), shapes[:1])
        return c + self.drop_path(self.ffn(self.norm_ffn(c), shapes))


class ConvFFN(nn.Module):
    """Two linear layers with a depthwise 3x3 convolution and a GELU between them, one for all strides."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.conv = nn.Conv2d(hidden_dim, hidden_dim, 3, padding=1, groups=hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, dim)

    def forward(self, c: Tensor, shapes: Shapes) -> Tensor:
        """(B, M, C) -> (B, M, C)."""
        levels = [self.conv(level.permute(0, 3, 1, 2)) for level in _split(self.fc1(c), shapes)]
        c = torch.cat([level.permute(0, 2, 3, 1).flatten(1, 2) for level in levels], dim=1)
        return self.fc2(F.gelu(c))


class DeformableAttention(nn.Module):
    """Multi-scale deformable attention (Zhu et al., ICLR 2021).

    Each query looks at a few points around its own place in every level of the features; where, and with which
    weights, it says itself. Under autocast all of it runs in float32, as published.
    """

    def __init__(self, dim: int, num_heads: int, num_levels: int, num_points: int) -> None:
        super().__init__()
        self.sampling = (num_heads, num_levels, num_points)
        self.offsets = nn.Linear(dim, 2 * num_heads * num_levels * num_points)
        self.weights = nn.Linear(dim, num_heads * num_levels * num_points)
        self.value = nn.Linear(dim, dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, query: Tensor, query_shapes: Shapes, feature: Tensor, feature_shapes: Shapes) -> Tensor:
        """(B, L, C), (B, M, C) -> (B, L, C); both sequences are grids of the same image, one after the other."""
        device = query.device
        autocasts = torch.amp.is_autocast_available(device.type)  # not on "meta"
        with torch.autocast(device.type, enabled=False) if autocasts else nullcontext():
            dtype = self.value.weight.dtype
            query, feature = query.to(dtype), feature.to(dtype)
            offsets = self.offsets(query).unflatten(-1, (*self.sampling, 2))  # in cells of the level: x, y
            # Side by side, as torch.export would take the sides of a list for constants.
            sizes = torch.stack([offsets.new_full((), side) for shape in feature_shapes for side in reversed(shape)])
            centres = cell_centres(query_shapes, device)
            locations = centres[:, None, None, None] + offsets / sizes.view(-1, 1, 2)
            weights = self.weights(query).unflatten(-1, (self.sampling[0], -1)).softmax(-1)
            value = self.value(feature).unflatten(-1, (self.sampling[0], -1))
            return self.out(sample(value, feature_shapes, locations, weights.view(locations.shape[:-1])))


def cell_centres(shapes: Shapes, device: torch.device) -> Tensor:
    """Centres (x, y) of the cells of grids, as shares of the image's width and height: (number of cells, 2)."""
    grids = []
    for height, width in shapes:
        y = (torch.arange(height, device=device) + 0.5) / height
        x = (torch.arange(width, device=device) + 0.5) / width
        grids.append(torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1).flatten(0, 1))
    return torch.cat(grids)


def sample(value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
    """Weighted sums of bilinear samples, which are zero outside of the image.

    A bilinear sample is a weighted sum of four cells, so all samples of a query and head are one weighted sum of rows
    of ``value``: exactly what an embedding bag computes, without ever holding the samples themselves.

    Args:
        value: (B, M, heads, C / heads), the grids of all levels one after the other.
        shapes: of these grids.
        locations: (B, L, heads, levels, points, 2), x and y as shares of the image's width and height.
        weights: (B, L, heads, levels, points).

    Returns:
        (B, L, C), summed over levels and points.
    """
    B, M, heads, _ = value.shape
    device = value.device
    first_row = torch.arange(0, B * M, M, device=device, dtype=torch.int32)[:, None, None, None, None]
    head = torch.arange(heads, device=device, dtype=torch.int32)[:, None, None, None]
    rows, factors = [], []
    for level, (height, width) in enumerate(shapes):
        x, x_factor = _neighbours(locations[..., level, :, 0] * width - 0.5, width)  # each (B, L, heads, points, 2)
        y, y_factor = _neighbours(locations[..., level, :, 1] * height - 0.5, height)
        y_factor = y_factor * weights[..., level, :, None]
        cell = (y * width + first_row)[..., :, None] + x[..., None, :]  # (B, L, heads, points, 2, 2)
        rows.append((cell * heads + head).flatten(3))
        factors.append((y_factor[..., :, None] * x_factor[..., None, :]).flatten(3))
        first_row = first_row + height * width
    samples = F.embedding_bag(
        torch.cat(rows, dim=-1).flatten(0, 2),  # (B * L * heads, 4 * levels * points)
        value.flatten(0, 2),  # (B * M * heads, C / heads)
        mode="sum",
        per_sample_weights=torch.cat(factors, dim=-1).flatten(0, 2),
    )
    return samples.view(B, locations.shape[1], -1)


def _neighbours(position: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The two cells beside a position on an axis of ``size`` cells, and their shares in linear interpolation.

    Each gets a further last dimension of two. Cells that do not exist have the share zero.
    """
    below = position.floor()
    share = position - below
    cells = torch.stack([below, below + 1], dim=-1)
    shares = torch.stack([1 - share, share], dim=-1)
    shares = shares * ((cells >= 0) & (cells < size))
    return cells.clamp(0, size - 1).to(torch.int32), shares


def _split(c: Tensor, shapes: Shapes) -> list[Tensor]:
    """The grids in a sequence: (B, M, C) -> (B, height, width, C) each."""
    parts = c.split([height * width for height, width in shapes], dim=1)
    return [part.unflatten(1, shape) for part, shape in zip(parts, shapes)]


@torch.no_grad()
def _init_weights(module: nn.Module) -> None:
    if isinstance(module, DeformableAttention):
        num_heads, num_levels, num_points = module.sampling
        for linear in (module.offsets, module.weights):
            nn.init.zeros_(linear.weight)
            nn.init.zeros_(linear.bias)
        # Head by head all around, point by point outwards, to the border of a square.
        angles = torch.arange(num_heads) * (2 * math.pi / num_heads)
        directions = torch.stack([angles.cos(), angles.sin()], dim=-1)
        directions = directions / directions.abs().amax(-1, keepdim=True)
        distances = torch.arange(1.0, num_points + 1)
        offsets = directions[:, None, None] * distances[:, None]  # (heads, 1, points, 2)
        module.offsets.bias.copy_(offsets.expand(-1, num_levels, -1, -1).flatten())
        for linear in (module.value, module.out):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)
    elif isinstance(module, nn.Linear):
        init_weights(module)
    elif isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels // module.groups
        nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
        if module.bias is not None:
            nn.init.zeros_(module.bias)
