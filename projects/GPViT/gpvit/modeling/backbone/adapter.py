"""The ViT-Adapter (Chen et al., ICLR 2023) of the published detectors: GPViT to four maps.

A convolutional branch processes the image next to the backbone, at strides 4 to 32. Between groups
of blocks, the two exchange features by deformable attention. B images, a grid of H x W tokens at
stride 8 in the backbone, M = HW (1 + 1/4 + 1/16) tokens at strides 8, 16 and 32 in the branch, C
channels:

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
from itertools import pairwise

import torch
import torch.nn.functional as F
from detectron2.layers import get_norm
from detectron2.modeling import Backbone
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from ..deformable_attention import DeformableAttention, Shapes
from ..layers import ConvNormReLU, batch_norm, init_weights
from .gpvit import GPViT


class GPViTAdapter(Backbone):
    """GPViT with a convolutional branch: four maps at strides 4 to 32.

    Args:
        net: the backbone, built with ``final_norm=False``. Its blocks are called one by one; its
            ``forward`` is not used.
        out_features: "f2" to "f5", the maps at strides 4 to 32. One-stage detectors have no "f2".
        num_interactions: number of groups that the blocks are divided into.
        num_heads: heads of the deformable attention.
        num_points: points that each head samples in each level.
        ffn_ratio: hidden channels of the extractors' feed-forward networks, relative to C.
        drop_path_rate: drop path of every extractor's feed-forward network.
        stem_width: channels of the first convolutions of the branch.
        norm: batch norm of the branch and of the maps, see :class:`GPViT`.

    Raises:
        ValueError: an argument does not fit the others.
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
            raise ValueError(
                f"{len(net.blocks)} blocks cannot be divided into {num_interactions} equal groups"
            )
        if len(net.out_norms):
            raise ValueError(
                "the adapter takes the blocks' plain outputs; build GPViT with final_norm=False"
            )
        dim = net.pos_embed.shape[-1]
        with_stride_4 = "f2" in out_features

        self.level_embed = nn.Parameter(torch.randn(3, dim))
        self.spatial_prior = SpatialPrior(dim, stem_width, norm, with_stride_4)
        self.injectors = nn.ModuleList()
        for _ in range(num_interactions):
            self.injectors.append(Injector(dim, num_heads, num_points))
        self.extractors = nn.ModuleList()
        hidden_dim = int(dim * ffn_ratio)
        for _ in range(num_interactions + 2):  # one per group and, at the end, two more
            self.extractors.append(
                Extractor(dim, num_heads, num_points, hidden_dim, drop_path_rate)
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
        """Compute the maps.

        Args:
            image: (B, 3, 8H, 8W), normalized, sides multiples of 32.

        Returns:
            Name of each map to the map, (B, C, height, width).
        """
        height, width = image.shape[-2:]
        if height % 32 or width % 32:
            raise ValueError(
                f"the adapter needs image sides that are multiples of 32, got {height}x{width}"
            )
        x = self.net.embed(image)
        c4, levels = self.spatial_prior(image)
        shapes = [tuple(level.shape[1:3]) for level in levels]
        tokens = [level.flatten(1, 2) + embed for level, embed in zip(levels, self.level_embed)]
        c = torch.cat(tokens, dim=1)  # (B, M, C)
        group_size = len(self.net.blocks) // len(self.injectors)
        for i, injector in enumerate(self.injectors):
            x = injector(x, c, shapes)
            for block in self.net.blocks[i * group_size : (i + 1) * group_size]:
                x = block(x)
            c = self.extractors[i](c, x, shapes)
        for extractor in self.extractors[len(self.injectors) :]:
            c = extractor(c, x, shapes)
        return self._merge(x, c, shapes, c4)

    def _merge(self, x: Tensor, c: Tensor, shapes: Shapes, c4: Tensor | None) -> dict[str, Tensor]:
        """Add the maps of both branches and normalize them."""
        x = x.permute(0, 3, 1, 2)  # (B, H, W, C) -> (B, C, H, W)
        outputs = {}
        for name, level in zip(("f3", "f4", "f5"), _split(c, shapes)):
            outputs[name] = level.permute(0, 3, 1, 2)  # (B, h, w, C) -> (B, C, h, w)
        if c4 is not None and self.up is not None:  # both exist or neither
            outputs["f2"] = self.up(outputs["f3"]) + c4
        for name, output in outputs.items():
            resized = x
            if name != "f3":
                resized = F.interpolate(x, output.shape[-2:], mode="bilinear", align_corners=False)
            outputs[name] = output + resized
        return {name: batch_norm(self.norms[name], outputs[name]) for name in self._out_features}


class SpatialPrior(nn.Module):
    """Convolutions from the image to strides 4, 8, 16 and 32.

    Returns the map at stride 4, (B, C, 2H, 2W), or None without ``with_stride_4``, and the tokens
    at the other strides, (B, H, W, C) and smaller.
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
        self.convs = nn.ModuleList()
        for in_width, out_width in pairwise(widths):
            self.convs.append(ConvNormReLU(in_width, out_width, 3, stride=2, norm=norm))
        self.projection4 = nn.Conv2d(width, dim, 1) if with_stride_4 else None
        self.projections = nn.ModuleList()
        for out_width in widths[1:]:
            self.projections.append(nn.Conv2d(out_width, dim, 1))

    def forward(self, image: Tensor) -> tuple[Tensor | None, list[Tensor]]:
        x = self.stem(image.contiguous(memory_format=torch.channels_last))
        c4 = self.projection4(x) if self.projection4 is not None else None
        levels = []
        for conv, projection in zip(self.convs, self.projections):
            x = conv(x)
            levels.append(projection(x).permute(0, 2, 3, 1))  # (B, C, h, w) -> (B, h, w, C)
        return c4, levels


class Injector(nn.Module):
    """Injects the branch's features into the backbone: (B, H, W, C), (B, M, C) -> (B, H, W, C)."""

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
    """Extracts features of the backbone for the branch: (B, M, C), (B, H, W, C) -> (B, M, C)."""

    def __init__(
        self, dim: int, num_heads: int, num_points: int, hidden_dim: int, drop_path: float
    ) -> None:
        super().__init__()
        self.norm_query = nn.LayerNorm(dim, eps=1e-6)
        self.norm_feature = nn.LayerNorm(dim, eps=1e-6)
        self.attn = DeformableAttention(dim, num_heads, 1, num_points)
        self.norm_ffn = nn.LayerNorm(dim, eps=1e-6)
        self.ffn = ConvFFN(dim, hidden_dim)
        self.drop_path = StochasticDepth(drop_path, mode="row")

    def forward(self, c: Tensor, x: Tensor, shapes: Shapes) -> Tensor:
        feature = self.norm_feature(x).flatten(1, 2)
        c = c + self.attn(self.norm_query(c), shapes, feature, shapes[:1])
        return c + self.drop_path(self.ffn(self.norm_ffn(c), shapes))


class ConvFFN(nn.Module):
    """Two linear layers with a depthwise 3x3 convolution and a GELU between them.

    All levels share the convolution.
    """

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.conv = nn.Conv2d(hidden_dim, hidden_dim, 3, padding=1, groups=hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, dim)

    def forward(self, c: Tensor, shapes: Shapes) -> Tensor:
        """(B, M, C) -> (B, M, C)."""
        levels = []
        for level in _split(self.fc1(c), shapes):
            level = self.conv(level.permute(0, 3, 1, 2))  # (B, h, w, C) -> (B, C, h, w)
            levels.append(level.permute(0, 2, 3, 1).flatten(1, 2))  # -> (B, h w, C)
        return self.fc2(F.gelu(torch.cat(levels, dim=1)))


def _split(c: Tensor, shapes: Shapes) -> list[Tensor]:
    """Split a sequence into its levels: (B, M, C) -> (B, height, width, C) each."""
    parts = c.split([height * width for height, width in shapes], dim=1)
    return [part.unflatten(1, shape) for part, shape in zip(parts, shapes)]


@torch.no_grad()
def _init_weights(module: nn.Module) -> None:
    if isinstance(module, DeformableAttention):
        num_heads, num_levels, num_points = module.sampling
        for linear in (module.offsets, module.weights):
            nn.init.zeros_(linear.weight)
            nn.init.zeros_(linear.bias)
        # Head k points in direction 2 pi k / heads, scaled to the border of a square of side 2;
        # point p of each head is p + 1 times as far out.
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
        kernel_height, kernel_width = module.kernel_size
        fan_out = kernel_height * kernel_width * module.out_channels // module.groups
        nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
        if module.bias is not None:
            nn.init.zeros_(module.bias)
