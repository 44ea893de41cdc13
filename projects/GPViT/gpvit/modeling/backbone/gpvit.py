"""GPViT, the Group Propagation Vision Transformer (Yang et al., ICLR 2023), as a Detectron2 backbone.

One map at stride 8 goes through the whole network. B images, a grid of H x W tokens, C channels:

    x = patch_embed(image) + pos_embed                     (B, 3, 8H, 8W) -> (B, H, W, C)
    for block in blocks:
        x = block(x)                                       (B, H, W, C)
    return {"last_feat": out_norm(x)}                      (B, C, H, W)

Most blocks attend inside stripes two tokens wide (``WindowBlock``); every third one gathers the whole map into a few
learned group tokens, lets these talk to each other and gives the result back (``GroupPropagationBlock``).
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling import Backbone
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torchvision.ops import StochasticDepth

from ..layers import (
    ConvNormReLU,
    Linear,
    Mlp,
    add_mlp,
    attention,
    attention_weights,
    bicubic_weights,
    init_weights,
    is_eager_on_cpu,
    linear,
    recomputed,
)

# What differs between the published sizes.
SIZES: dict[str, dict[str, Any]] = {
    "L1": dict(embed_dim=216, stem_convs=0),
    "L2": dict(embed_dim=348, stem_convs=1),
    "L3": dict(embed_dim=432, stem_convs=1),
    "L4": dict(embed_dim=624, stem_convs=2),
}


class GPViT(Backbone):
    """The backbone: one stride-8 map in, through and out.

    Args:
        embed_dim: channels C of the map, a multiple of ``2 * num_heads``.
        stem_convs: 3x3 convolutions between the first one of the stem and its projection.
        group_tokens: one number per block: how many group tokens it has, 0 for a local window block.
        num_heads: attention heads of the group blocks, and of each of the two directions of the window blocks.
        drop_path_rate: drop path of the last block; it rises linearly from 0 in the first.
        norm: batch norm of the stem and the group blocks: "BN", "SyncBN", "FrozenBN" or another name that
            :func:`detectron2.layers.get_norm` knows, other than "" for none.
        final_norm: whether a LayerNorm closes each map that is returned. The published detectors have none.
        out_features: the maps to return: "block0", "block1", ... behind these blocks, "last_feat" behind the last.
        pretrain_img_size: side in pixels of the images for whose grid the position embedding is stored.
        use_act_checkpoint: recompute the blocks in the backward pass, which saves memory and costs time.
        frozen_blocks: if positive, patch embedding, position embedding and this many blocks keep their weights and
            their batch-norm statistics.
    """

    def __init__(
        self,
        *,
        embed_dim: int,
        stem_convs: int = 0,
        group_tokens: Sequence[int] = (0, 64, 0, 0, 32, 0, 0, 32, 0, 0, 16, 0),
        num_heads: int = 6,
        drop_path_rate: float = 0.0,
        norm: str = "BN",
        final_norm: bool = True,
        out_features: Sequence[str] = ("last_feat",),
        pretrain_img_size: int = 224,
        use_act_checkpoint: bool = False,
        frozen_blocks: int = 0,
    ) -> None:
        super().__init__()
        if embed_dim % (2 * num_heads):
            raise ValueError(
                f"embed_dim must be a multiple of 2 * num_heads = {2 * num_heads}, got {embed_dim}"
            )
        depth = len(group_tokens)
        self._block_names = [f"block{i}" for i in range(depth - 1)] + ["last_feat"]
        if unknown := set(out_features) - set(self._block_names):
            raise ValueError(f"out_features {sorted(unknown)} are none of {self._block_names}")
        if not 0 <= frozen_blocks <= depth:
            raise ValueError(
                f"frozen_blocks must be between 0 and the {depth} blocks there are, got {frozen_blocks}"
            )

        self.patch_embed = PatchEmbed(embed_dim, stem_convs, norm)
        self.pos_embed = nn.Parameter(torch.empty(1, (pretrain_img_size // 8) ** 2, embed_dim))
        self.blocks = nn.ModuleList()
        for i, groups in enumerate(group_tokens):
            drop_path = drop_path_rate * i / max(depth - 1, 1)
            block = (
                GroupPropagationBlock(embed_dim, num_heads, groups, drop_path, norm)
                if groups
                else WindowBlock(embed_dim, num_heads, drop_path)
            )
            block.use_checkpoint = use_act_checkpoint
            self.blocks.append(block)
        self.out_norms = nn.ModuleDict(
            {name: nn.LayerNorm(embed_dim, eps=1e-6) for name in out_features if final_norm}
        )
        self._out_features = list(out_features)
        self._out_feature_channels = dict.fromkeys(out_features, embed_dim)
        self._out_feature_strides = dict.fromkeys(out_features, 8)
        self.apply(init_weights)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        if frozen_blocks:
            self._freeze(frozen_blocks)

    @property
    def size_divisibility(self) -> int:
        return 16  # stripes are two tokens wide

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Args: image: (B, 3, 8H, 8W), normalised, sides multiples of 16. Returns: name -> (B, C, H, W)."""
        x = self.embed(image)
        outputs = {}
        for name, block in zip(self._block_names, self.blocks):
            x = block(x)
            if name in self._out_features:
                out = self.out_norms[name](x) if name in self.out_norms else x
                outputs[name] = out.permute(0, 3, 1, 2)  # (B, H, W, C) -> (B, C, H, W)
        return outputs

    def embed(self, image: Tensor) -> Tensor:
        """The tokens that enter the first block: (B, 3, 8H, 8W) -> (B, H, W, C)."""
        height, width = image.shape[-2:]
        if height % 16 or width % 16:
            raise ValueError(
                f"GPViT needs image sides that are multiples of 16, got {height}x{width} (height x width); pad to "
                f"{-(-height // 16) * 16}x{-(-width // 16) * 16}, as detectron2's ImageList does by size_divisibility"
            )
        x = self.patch_embed(image)
        return x + self._pos_embed_for(*x.shape[1:3])

    def _pos_embed_for(self, height: int, width: int) -> Tensor:
        """The position embedding on another grid: (1, H, W, C)."""
        side = int(self.pos_embed.shape[1] ** 0.5)
        pos = self.pos_embed.unflatten(1, (side, side))  # (1, H0, W0, C)
        if not torch.compiler.is_compiling() and (height, width) == (side, side):
            return pos
        if is_eager_on_cpu(pos):
            # Two products of matrices, (H, H0) and (W, W0), are many times faster on a CPU.
            with torch.autocast("cpu", enabled=False):
                rows, columns = (bicubic_weights(side, size, pos) for size in (height, width))
                return torch.matmul(columns, (rows @ pos[0].flatten(1)).view(1, height, side, -1))
        pos = F.interpolate(
            pos.permute(0, 3, 1, 2), (height, width), mode="bicubic", align_corners=False
        )
        return pos.permute(0, 2, 3, 1)

    def _freeze(self, num_blocks: int) -> None:
        self.pos_embed.requires_grad_(False)
        for module in (self.patch_embed, *self.blocks[:num_blocks]):
            FrozenBatchNorm2d.convert_frozen_batchnorm(module).requires_grad_(False)
            for drop in module.modules():
                if isinstance(drop, StochasticDepth):
                    drop.p = 0.0


class PatchEmbed(nn.Module):
    """The convolutional stem and the projection to tokens: (B, 3, 8H, 8W) -> (B, H, W, C)."""

    def __init__(self, dim: int, stem_convs: int, norm: str, width: int = 64) -> None:
        super().__init__()
        self.stem = ConvNormReLU(3, width, 7, stride=2, norm=norm)
        self.convs = nn.Sequential(
            *(ConvNormReLU(width, width, 3, norm=norm) for _ in range(stem_convs))
        )
        self.projection = nn.Conv2d(width, dim, 4, stride=4)

    def forward(self, image: Tensor) -> Tensor:
        image = image.contiguous(memory_format=torch.channels_last)
        x = self.projection(self.convs(self.stem(image)))
        return x.permute(0, 2, 3, 1)  # (B, C, H, W) -> (B, H, W, C), a view


class Block(nn.Module):
    """Residual mixing of the tokens, then a 3x3 depthwise convolution ``conv`` without a residual.

    With ``use_checkpoint`` the mixing is recomputed in the backward pass. The convolution is not, so that its batch
    norm sees every batch once.
    """

    conv: nn.Conv2d
    use_checkpoint = False

    def mix(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        if self.use_checkpoint and torch.is_grad_enabled():
            x = checkpoint(self.mix, x, use_reentrant=False)
        else:
            x = self.mix(x)
        return self.conv(x.permute(0, 3, 1, 2)).permute(
            0, 2, 3, 1
        )  # channels-last: both permutes are views


class WindowBlock(Block):
    """Attention inside stripes, as in CSWin but two tokens wide. Every LayerNorm has eps 1e-6."""

    def __init__(self, dim: int, num_heads: int, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = StripeAttention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, 4 * dim)
        self.drop_path = StochasticDepth(drop_path, mode="row")
        self.conv = nn.Conv2d(dim, dim, 3, padding=1, groups=dim, bias=False)

    def mix(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.attn(x, self.norm1))
        return add_mlp(x, self.norm2, self.mlp, self.drop_path)


class StripeAttention(nn.Module):
    """Half of the channels attends in vertical stripes (H x 2 tokens), half in horizontal ones (2 x W tokens).

    Each half adds a locally enhanced position term (LePE): a depthwise 3x3 convolution of the values that stays inside
    its stripe. The module ``qkv`` is not called, each half takes its part of the weights.
    """

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = Linear(dim, 3 * dim)
        self.lepe_vertical = nn.Conv2d(dim // 2, dim // 2, 3, padding=1, groups=dim // 2)
        self.lepe_horizontal = nn.Conv2d(dim // 2, dim // 2, 3, padding=1, groups=dim // 2)
        self.proj = Linear(dim, dim)

    def forward(self, x: Tensor, norm: nn.Module) -> Tensor:
        """The attention of norm(x): (B, H, W, C) -> (B, H, W, C)."""
        B, H, W, C = x.shape

        def columns(x: Tensor) -> Tensor:
            return (
                norm(x)
                .view(B, H, W // 2, 2, C)
                .transpose(1, 2)
                .contiguous()
                .view(B * W // 2, H, 2, C)
            )

        def rows(x: Tensor) -> Tensor:
            return norm(x).view(B * H // 2, 2, W, C)

        vertical = (
            self.attend(x, columns, 0, self.lepe_vertical)
            .view(B, W // 2, H, 2, C // 2)
            .transpose(1, 2)
        )
        horizontal = self.attend(x, rows, 1, self.lepe_horizontal).view_as(vertical)
        return self.proj(torch.cat([vertical, horizontal], dim=-1).view(B, H, W, C))

    def attend(
        self, x: Tensor, stripes: Callable[[Tensor], Tensor], half: int, lepe: nn.Conv2d
    ) -> Tensor:
        """Attention and position term of a half of the channels inside each of N stripes of h x w tokens.

        (B, H, W, C) -> (N, h, w, C/2); ``stripes`` makes (N, h, w, C) of the map.
        """
        weight, bias = (
            p.unflatten(0, (3, 2, -1))[:, half].flatten(0, 1)
            for p in (self.qkv.weight, self.qkv.bias)
        )
        qkv = recomputed(lambda x: linear(stripes(x), weight, bias), x).unflatten(
            3, (3, -1)
        )  # (N, h, w, 3, C/2)
        q, k, v = qkv.flatten(1, 2).unbind(2)
        attended = attention(q, k, v, self.num_heads).view(qkv[..., 0, :].shape)
        return attended + lepe(qkv[..., 2, :].permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class GroupPropagationBlock(Block):
    """Global exchange through a few group tokens. Every LayerNorm has eps 1e-5."""

    def __init__(
        self, dim: int, num_heads: int, num_groups: int, drop_path: float, norm: str
    ) -> None:
        super().__init__()
        self.group_token = nn.Parameter(torch.empty(1, num_groups, dim))
        self.group = Group(dim, num_heads)
        self.mixer = TokenMixer(dim, num_groups, drop_path)
        self.ungroup = Ungroup(dim, num_heads, drop_path)
        self.conv = ConvNormReLU(dim, dim, 3, groups=dim, norm=norm)
        nn.init.trunc_normal_(self.group_token, std=0.02)

    def mix(self, x: Tensor) -> Tensor:
        groups = self.group(self.group_token, x)  # (B, n, C)
        groups = self.mixer(groups)
        return self.ungroup(x, groups)


class Group(nn.Module):
    """Gathers the map into the group tokens: (1, n, C), (B, H, W, C) -> (B, n, C).

    Only the keys are projected; the normalised group tokens are the queries, the normalised map the values.
    """

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm_query = nn.LayerNorm(dim)
        self.norm_key = nn.LayerNorm(dim)
        self.key = Linear(dim, dim)

    def forward(self, groups: Tensor, x: Tensor) -> Tensor:
        x = self.norm_key(x)
        query = self.norm_query(groups).expand(len(x), -1, -1)
        return attention(query, self.key(x).flatten(1, 2), x.flatten(1, 2), self.num_heads)

    def weights(self, groups: Tensor, x: Tensor) -> Tensor:
        """How much each group token takes of each cell, for looking at: (B, heads, n, H, W), sums to 1 over the map."""
        x = self.norm_key(x)
        query = self.norm_query(groups).expand(len(x), -1, -1)
        return attention_weights(query, self.key(x).flatten(1, 2), self.num_heads).unflatten(
            -1, x.shape[1:3]
        )


class TokenMixer(nn.Module):
    """Exchange between the n group tokens, as in MLP-Mixer: (B, n, C) -> (B, n, C)."""

    def __init__(self, dim: int, num_groups: int, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.token_mlp = Mlp(num_groups, dim // 2)
        self.norm2 = nn.LayerNorm(dim)
        self.channel_mlp = Mlp(dim, 4 * dim)
        self.drop_path = StochasticDepth(drop_path, mode="row")

    def forward(self, x: Tensor) -> Tensor:
        x = x.unsqueeze(1)  # a map of one row
        x = x + self.drop_path(self.token_mlp(self.norm1(x).mT).mT)  # over the n tokens
        return (x + self.drop_path(self.channel_mlp(self.norm2(x)))).squeeze(1)


class Ungroup(nn.Module):
    """Gives the group tokens back to the map: (B, H, W, C), (B, n, C) -> (B, H, W, C)."""

    def __init__(self, dim: int, num_heads: int, drop_path: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm_query = nn.LayerNorm(dim)
        self.norm_key = nn.LayerNorm(dim)
        self.query = Linear(dim, dim)
        self.key = nn.Linear(dim, dim)
        self.value = nn.Linear(dim, dim)
        self.out = Linear(dim, dim)
        self.join = Linear(2 * dim, dim)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, 4 * dim)
        self.drop_path = StochasticDepth(drop_path, mode="row")

    def forward(self, x: Tensor, groups: Tensor) -> Tensor:
        groups = self.norm_key(groups)
        query = recomputed(lambda x: self.query(self.norm_query(x)), x).flatten(1, 2)
        returned = attention(query, self.key(groups), self.value(groups), self.num_heads).view_as(x)
        returned = self.drop_path(self.out(returned))
        kept, added = self.join.weight.chunk(
            2, dim=1
        )  # join(cat([x, returned])), without joining them
        x = linear(x, kept, self.join.bias) + linear(returned, added, None)
        return add_mlp(x, self.norm2, self.mlp, self.drop_path)

    def weights(self, x: Tensor, groups: Tensor) -> Tensor:
        """How much each cell takes of each group token, for looking at: (B, heads, n, H, W), sums to 1 over the tokens."""
        query, key = self.query(self.norm_query(x)).flatten(1, 2), self.key(self.norm_key(groups))
        return attention_weights(query, key, self.num_heads).mT.unflatten(-1, x.shape[1:3])
