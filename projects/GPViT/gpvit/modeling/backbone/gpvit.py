"""The Group Propagation Vision Transformer (GPViT; Yang et al., ICLR 2023), a Detectron2 backbone.

A single stride-8 map passes through the network. B images, a grid of H x W tokens, C channels:

    x = patch_embed(image) + pos_embed                     (B, 3, 8H, 8W) -> (B, H, W, C)
    for block in blocks:
        x = block(x)                                       (B, H, W, C)
    return {"last_feat": out_norm(x)}                      (B, C, H, W)

Most blocks are local: attention inside stripes two tokens wide (``WindowBlock``). Every third block
is global: a few learned group tokens gather information from the map, exchange it, and propagate it
back to the map (``GroupPropagationBlock``).
"""

from collections.abc import Iterable, Sequence
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
    gather,
    gather_from_parts,
    head_padding,
    init_weights,
    is_eager_on_cpu,
    linear,
    pad_heads,
    recomputed,
)

# Arguments of GPViT for the published sizes; the others are the same.
SIZES: dict[str, dict[str, Any]] = {
    "L1": dict(embed_dim=216, stem_convs=0),
    "L2": dict(embed_dim=348, stem_convs=1),
    "L3": dict(embed_dim=432, stem_convs=1),
    "L4": dict(embed_dim=624, stem_convs=2),
}


class GPViT(Backbone):
    """The backbone: image to one or more maps at stride 8.

    Args:
        embed_dim: channels C of the map, a multiple of ``2 * num_heads``.
        stem_convs: number of 3x3 convolutions between the first convolution and the projection.
        group_tokens: number of group tokens of each block; 0 for a window block.
        num_heads: attention heads of a group propagation block, and of each of the two directions
            of a window block.
        drop_path_rate: stochastic depth probability of the last block; increases linearly from 0
            in the first block.
        norm: batch norm of the stem and the group propagation blocks: "BN", "SyncBN", "FrozenBN" or
            another name that :func:`detectron2.layers.get_norm` accepts, except "" for none.
        final_norm: apply a LayerNorm to each returned map. The published detectors have none.
        out_features: maps to return: "block0", "block1", ... after these blocks, "last_feat" after
            the last one.
        pretrain_img_size: side in pixels of the square images that the position embedding is for.
        use_act_checkpoint: recompute the blocks, but for their convolutions, in the backward pass
            to save memory.
        recompute_inputs: recompute only norms, GELUs and copies before linear layers; None: on
            CPUs. See :func:`gpvit.modeling.layers.recomputed`.
        frozen_blocks: if positive, freeze patch embedding, position embedding and this many blocks:
            neither weights nor batch-norm statistics change, and drop path is off.

    Raises:
        ValueError: an argument does not fit the others.
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
        recompute_inputs: bool | None = None,
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
            raise ValueError(f"frozen_blocks must be between 0 and {depth}, got {frozen_blocks}")

        self.patch_embed = PatchEmbed(embed_dim, stem_convs, norm)
        self.pos_embed = nn.Parameter(torch.empty(1, (pretrain_img_size // 8) ** 2, embed_dim))
        self.blocks = nn.ModuleList()
        for i, num_group_tokens in enumerate(group_tokens):
            drop_path = drop_path_rate * i / max(depth - 1, 1)
            block: Block
            if num_group_tokens:
                block = GroupPropagationBlock(
                    embed_dim, num_heads, num_group_tokens, drop_path, norm
                )
            else:
                block = WindowBlock(embed_dim, num_heads, drop_path)
            block.use_checkpoint = use_act_checkpoint
            self.blocks.append(block)
        self.out_norms = nn.ModuleDict()
        if final_norm:
            for name in out_features:
                self.out_norms[name] = nn.LayerNorm(embed_dim, eps=1e-6)
        self._out_features = list(out_features)
        self._out_feature_channels = dict.fromkeys(out_features, embed_dim)
        self._out_feature_strides = dict.fromkeys(out_features, 8)
        self.apply(init_weights)
        for module in self.modules():
            if isinstance(module, Mlp | StripeAttention | Ungroup):
                module.recompute = recompute_inputs
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        if frozen_blocks:
            self._freeze(frozen_blocks)

    @property
    def size_divisibility(self) -> int:
        return 16  # a stripe is two tokens wide, a token is 8 pixels

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Compute the maps.

        Args:
            image: (B, 3, 8H, 8W), normalized, sides multiples of 16.

        Returns:
            Name of each output to its map, (B, C, H, W).
        """
        x = self.embed(image)
        outputs = {}
        for name, block in self.named_blocks().items():
            x = block(x)
            if name in self._out_features:
                out = self.out_norms[name](x) if name in self.out_norms else x
                outputs[name] = out.permute(0, 3, 1, 2)  # (B, H, W, C) -> (B, C, H, W)
        return outputs

    def named_blocks(self) -> dict[str, nn.Module]:
        """The blocks by the names of their maps: "block0", "block1", ..., "last_feat"."""
        return dict(zip(self._block_names, self.blocks))

    def embed(self, image: Tensor) -> Tensor:
        """The input of the first block: (B, 3, 8H, 8W) -> (B, H, W, C)."""
        height, width = image.shape[-2:]
        if height % 16 or width % 16:
            padded_height, padded_width = -(-height // 16) * 16, -(-width // 16) * 16  # rounded up
            raise ValueError(
                f"GPViT needs image sides that are multiples of 16, got {height}x{width} (height x "
                f"width); pad to {padded_height}x{padded_width}, as detectron2's ImageList does by "
                "size_divisibility"
            )
        x = self.patch_embed(image)
        return x + self._pos_embed_for(*x.shape[1:3])

    def _pos_embed_for(self, height: int, width: int) -> Tensor:
        """The position embedding, resized to a grid: (1, H, W, C)."""
        pos = self._stored_pos_embed()
        # While compiling, sizes may be symbolic: the graph must not depend on this comparison.
        if not torch.compiler.is_compiling() and (height, width) == pos.shape[1:3]:
            return pos
        if is_eager_on_cpu(pos):
            return self.pos_embed_of_region(height, width, slice(None), slice(None))
        pos = pos.permute(0, 3, 1, 2)  # (1, H0, W0, C) -> (1, C, H0, W0)
        pos = F.interpolate(pos, (height, width), mode="bicubic", align_corners=False)
        return pos.permute(0, 2, 3, 1)  # (1, C, H, W) -> (1, H, W, C)

    def _stored_pos_embed(self) -> Tensor:
        """The position embedding of the square that it is stored for: (1, H0, W0, C)."""
        side = int(self.pos_embed.shape[1] ** 0.5)
        return self.pos_embed.unflatten(1, (side, side))

    def pos_embed_of_region(self, height: int, width: int, rows: slice, columns: slice) -> Tensor:
        """The position embedding, resized to H x W, of h x w of these tokens: (1, h, w, C).

        Bicubic interpolation is separable: two matrix products, (h, H0) over the rows and (w, W0)
        over the columns, which are many times faster than F.interpolate on a CPU. They are in
        float32, as F.interpolate is under autocast.
        """
        pos = self._stored_pos_embed()
        side = pos.shape[1]
        with torch.autocast(pos.device.type, enabled=False):
            over_rows = bicubic_weights(side, height, pos)[rows]
            over_columns = bicubic_weights(side, width, pos)[columns]
            resized = over_rows @ pos[0].flatten(1)  # (h, H0) (H0, W0 C) -> (h, W0 C)
            # (w, W0) (1, h, W0, C) -> (1, h, w, C), broadcast over the rows
            return torch.matmul(over_columns, resized.view(1, len(over_rows), side, -1))

    def _freeze(self, num_blocks: int) -> None:
        self.pos_embed.requires_grad_(False)
        for module in (self.patch_embed, *self.blocks[:num_blocks]):
            # Replaces the batch norms inside of the module, which itself is none.
            FrozenBatchNorm2d.convert_frozen_batchnorm(module).requires_grad_(False)
            for submodule in module.modules():
                if isinstance(submodule, StochasticDepth):
                    submodule.p = 0.0


class PatchEmbed(nn.Module):
    """Convolutional stem and projection to tokens: (B, 3, 8H, 8W) -> (B, H, W, C)."""

    def __init__(self, dim: int, stem_convs: int, norm: str, stem_dim: int = 64) -> None:
        super().__init__()
        self.stem = ConvNormReLU(3, stem_dim, 7, stride=2, norm=norm)
        self.convs = nn.Sequential()
        for _ in range(stem_convs):
            self.convs.append(ConvNormReLU(stem_dim, stem_dim, 3, norm=norm))
        self.projection = nn.Conv2d(stem_dim, dim, 4, stride=4)

    @property
    def halo(self) -> int:
        """The pixels around a token's own 8 x 8 that it depends on, in each direction."""
        return 3 + 2 * len(self.convs)  # 7x7 at stride 1, and 3x3 at stride 2

    def forward(self, image: Tensor) -> Tensor:
        x = image.contiguous(memory_format=torch.channels_last)  # the permute below is contiguous
        x = self.projection(self.convs(self.stem(x)))
        return x.permute(0, 2, 3, 1)  # (B, C, H, W) -> (B, H, W, C), contiguous


class Block(nn.Module):
    """Base class: attention and MLP (``mix``), then a depthwise 3x3 convolution (``convolve``).

    In group propagation blocks, batch norm and ReLU follow the convolution.
    With ``use_checkpoint``, ``mix`` is recomputed in the backward pass. The convolution is not:
    its batch norm must see every batch once.
    """

    conv: nn.Conv2d
    use_checkpoint = False

    def mix(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        if self.use_checkpoint and torch.is_grad_enabled():
            x = checkpoint(self.mix, x, use_reentrant=False)
        else:
            x = self.mix(x)
        return self.convolve(x)

    def convolve(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        return self.conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)  # views: x is channels-last


class WindowBlock(Block):
    """Local block: attention inside stripes, as in CSWin (Dong et al., CVPR 2022), two tokens wide.

    Every LayerNorm has eps 1e-6.
    """

    def __init__(self, dim: int, num_heads: int, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = StripeAttention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, 4 * dim)
        self.drop_path = StochasticDepth(drop_path, mode="row")
        self.conv = nn.Conv2d(dim, dim, 3, padding=1, groups=dim, bias=False)

    def mix(self, x: Tensor) -> Tensor:
        # x = x + attn(norm1(x)), then x = x + mlp(norm2(x)). The norms are passed on, so that the
        # normalized maps are temporary: in training they are recomputed and not kept, in inference
        # those of the MLP are computed in parts. Otherwise L1 needs 10 % more memory in training
        # (512x512) and 21 % more in inference (800x1216).
        return self.add(x, self.attn(x, norm=self.norm1))

    def add(self, x: Tensor, attended: Tensor) -> Tensor:
        """What follows the attention: twice (B, H, W, C) -> (B, H, W, C)."""
        x = x + self.drop_path(attended)
        return add_mlp(x, self.mlp, norm=self.norm2, drop_path=self.drop_path)

    # The same in parts, for maps that are not in memory.

    def mix_columns(self, x: Tensor) -> Tensor:
        """Attention in the vertical stripes of an even number of columns.

        (B, H, w, C) -> (B, H, w/2, 2, C/2), where C/2 includes the padding of the heads.
        """
        return self.attn.vertical(x, norm=self.norm1)

    def mix_rows(self, x: Tensor, vertical: Tensor) -> Tensor:
        """The rest, for an even number of rows.

        (B, h, W, C), (B, h, W/2, 2, C/2) -> (B, h, W, C)
        """
        horizontal = self.attn.horizontal(x, norm=self.norm1)
        return self.add(x, self.attn.join(vertical, horizontal))


class StripeAttention(nn.Module):
    """Attention inside stripes: half of the channels in vertical ones, half in horizontal ones.

    A vertical stripe has H x 2 tokens, a horizontal one 2 x W. Each half adds a locally enhanced
    positional encoding (LePE): a depthwise 3x3 convolution of the values inside the stripe.
    """

    recompute: bool | None = None  # see `recomputed`

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = StripeQKV(dim)
        self.lepe_vertical = LePE(dim // 2)
        self.lepe_horizontal = LePE(dim // 2)
        self.proj = Linear(dim, dim)

    def forward(self, x: Tensor, norm: nn.Module) -> Tensor:
        """Attention over norm(x): (B, H, W, C) -> (B, H, W, C)."""
        return self.join(self.vertical(x, norm), self.horizontal(x, norm))

    def vertical(self, x: Tensor, norm: nn.Module) -> Tensor:
        """Attention over norm(x) in vertical stripes: (B, H, W, C) -> (B, H, W/2, 2, C/2)."""
        B, H, W, C = x.shape
        padding = self.padding(x)

        # x is an argument: it is all that `recomputed` keeps.
        def qkv(x: Tensor) -> Tensor:
            pairs = norm(x).view(B, H, W // 2, 2, C)  # of neighboring columns
            stripes = pairs.transpose(1, 2).contiguous()  # (B, W/2, H, 2, C)
            return self.qkv(stripes.view(B * W // 2, H, 2, C), 0, self.num_heads, padding)

        attended = self.attend(recomputed(qkv, x, self.recompute), self.lepe_vertical, padding)
        return attended.view(B, W // 2, H, 2, -1).transpose(1, 2)  # from (B W/2, H, 2, C/2)

    def horizontal(self, x: Tensor, norm: nn.Module) -> Tensor:
        """Attention over norm(x) in horizontal stripes: (B, H, W, C) -> (B, H, W/2, 2, C/2)."""
        B, H, W, C = x.shape
        padding = self.padding(x)

        def qkv(x: Tensor) -> Tensor:
            stripes = norm(x).view(B * H // 2, 2, W, C)  # neighboring rows are adjacent in memory
            return self.qkv(stripes, 1, self.num_heads, padding)

        attended = self.attend(recomputed(qkv, x, self.recompute), self.lepe_horizontal, padding)
        return attended.view(B, H, W // 2, 2, -1)  # from (B H/2, 2, W, C/2)

    def join(self, vertical: Tensor, horizontal: Tensor) -> Tensor:
        """Project the two halves: twice (B, H, W/2, 2, C/2) -> (B, H, W, C)."""
        attended = torch.cat([vertical, horizontal], dim=-1).flatten(2, 3)
        padding = self.padding(attended)
        return self.proj(attended, in_heads=2 * self.num_heads, padding=padding)

    def padding(self, x: Tensor) -> int:
        """The padding of each head for a map: see :func:`head_padding`."""
        return head_padding(x, self.proj.in_features // 2 // self.num_heads)

    def attend(self, qkv: Tensor, lepe: "LePE", padding: int) -> Tensor:
        """Attention and LePE inside each of N stripes: (N, h, w, 3, C/2) -> (N, h, w, C/2).

        C includes the padding of the heads.
        """
        value_map = qkv[..., 2, :]  # (N, h, w, C/2): 0, 1 and 2 are queries, keys and values
        query, key, value = qkv.flatten(1, 2).unbind(2)  # each (N, h w, C/2)
        attended = attention(query, key, value, self.num_heads, padding).view(value_map.shape)
        encoding = lepe(value_map.permute(0, 3, 1, 2), self.num_heads, padding)
        return attended + encoding.permute(0, 2, 3, 1)


class LePE(nn.Conv2d):
    """Depthwise 3x3 convolution of the values in a stripe: (N, C, h, w) -> (N, C, h, w)."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim, dim, 3, padding=1, groups=dim)
        self.bias: nn.Parameter

    def forward(self, x: Tensor, num_heads: int, padding: int) -> Tensor:  # type: ignore[override]
        """Each of the ``num_heads`` heads that x consists of has ``padding`` zeros at its end."""
        weight = pad_heads(self.weight, num_heads, padding, dim=0)
        bias = pad_heads(self.bias, num_heads, padding)
        return F.conv2d(x, weight, bias, padding=1, groups=len(weight))


class StripeQKV(nn.Linear):
    """Projects all C channels to half of the queries, keys and values: those of one direction.

    The published layer computes both halves at once, and then copies the queries, keys and values
    of each direction to stripes, 3C channels in all. Here the input is copied to vertical stripes,
    C channels; horizontal ones need no copy. The weight is the same, (3C, C): queries, keys and
    values one after the other, each with the vertical half first.
    """

    def __init__(self, dim: int) -> None:
        super().__init__(dim, 3 * dim)

    def forward(  # type: ignore[override]
        self, stripes: Tensor, half: int, num_heads: int, padding: int
    ) -> Tensor:
        """(N, h, w, C) -> (N, h, w, 3, C/2), where C/2 includes the padding.

        Args:
            stripes: of one direction.
            half: 0 for vertical, 1 for horizontal stripes.
            num_heads: of this direction.
            padding: zeros at the end of each head.
        """
        # (3C, C) -> (3, 2, C/2, C) -> (3, C/2, C) -> (3C/2, C), and the same without the last C
        weight = self.weight.unflatten(0, (3, 2, -1))[:, half]
        weight = pad_heads(weight, num_heads, padding, dim=1).flatten(0, 1)
        bias = self.bias.unflatten(0, (3, 2, -1))[:, half]
        bias = pad_heads(bias, num_heads, padding).flatten(0, 1)
        return linear(stripes, weight, bias).unflatten(3, (3, -1))


class GroupPropagationBlock(Block):
    """Global block: exchange between all tokens through n group tokens.

    Every LayerNorm has eps 1e-5.
    """

    def __init__(
        self, dim: int, num_heads: int, num_group_tokens: int, drop_path: float, norm: str
    ) -> None:
        super().__init__()
        self.group_token = nn.Parameter(torch.empty(1, num_group_tokens, dim))
        self.group = Group(dim, num_heads)
        self.mixer = TokenMixer(dim, num_group_tokens, drop_path)
        self.ungroup = Ungroup(dim, num_heads, drop_path)
        self.conv = ConvNormReLU(dim, dim, 3, groups=dim, norm=norm)
        nn.init.trunc_normal_(self.group_token, std=0.02)

    def mix(self, x: Tensor) -> Tensor:
        return self.propagate(x, self.group(self.group_token, x))

    def propagate(self, x: Tensor, groups: Tensor) -> Tensor:
        """What follows the grouping: (B, H, W, C), (B, n, C) -> (B, H, W, C).

        x may be any part of the map.
        """
        return self.ungroup(x, self.mixer(groups))


class Group(nn.Module):
    """Grouping: cross-attention from the group tokens to the map.

    Only the keys are projected: the normalized group tokens are the queries, the normalized map
    holds the values.
    """

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm_query = nn.LayerNorm(dim)
        self.norm_key = nn.LayerNorm(dim)
        self.key = Linear(dim, dim)

    def forward(self, groups: Tensor, x: Tensor) -> Tensor:
        """(1, n, C), (B, H, W, C) -> (B, n, C)."""
        x = self.norm_key(x)
        query = self.norm_query(groups).expand(x.shape[0], -1, -1)
        return gather(query, x, self.key, self.num_heads)

    def of_parts(self, groups: Tensor, parts: Iterable[Tensor]) -> Tensor:
        """The same for the parts of one map: (1, n, C), each (1, h, w, C) -> (1, n, C)."""
        query = self.norm_query(groups)
        return gather_from_parts(query, map(self.norm_key, parts), self.key, self.num_heads)

    def attention_weights(self, groups: Tensor, x: Tensor) -> Tensor:
        """The attention weights of each group token: (B, heads, n, H, W), sum 1 over the map."""
        x = self.norm_key(x)
        query = self.norm_query(groups).expand(x.shape[0], -1, -1)
        weights = attention_weights(query, self.key(x).flatten(1, 2), self.num_heads)
        return weights.unflatten(-1, x.shape[1:3])  # (B, heads, n, H W) -> (B, heads, n, H, W)


class TokenMixer(nn.Module):
    """Exchange between the n group tokens, as in MLP-Mixer: (B, n, C) -> (B, n, C)."""

    def __init__(self, dim: int, num_group_tokens: int, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.token_mlp = Mlp(num_group_tokens, dim // 2)
        self.norm2 = nn.LayerNorm(dim)
        self.channel_mlp = Mlp(dim, 4 * dim)
        self.drop_path = StochasticDepth(drop_path, mode="row")

    def forward(self, x: Tensor) -> Tensor:
        x = x.unsqueeze(1)  # (B, 1, n, C): the MLPs take maps
        x = x + self.drop_path(self.token_mlp(self.norm1(x).mT).mT)  # over the n tokens
        x = x + self.drop_path(self.channel_mlp(self.norm2(x)))
        return x.squeeze(1)


class Ungroup(nn.Module):
    """Ungrouping: cross-attention from the map to the group tokens, then an MLP.

    The result of the attention is not added to the map: ``join`` projects the two together,
    concatenated, to C channels. ``norm_query`` and ``norm_key`` precede the attention, ``norm2``
    precedes the MLP; its name is that of the published layer.
    """

    recompute: bool | None = None  # see `recomputed`

    def __init__(self, dim: int, num_heads: int, drop_path: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm_query = nn.LayerNorm(dim)
        self.norm_key = nn.LayerNorm(dim)
        self.query = Linear(dim, dim)  # over a map, (B, H, W, C)
        self.key = nn.Linear(dim, dim)  # over the group tokens, (B, n, C)
        self.value = nn.Linear(dim, dim)
        self.out = Linear(dim, dim)
        self.join = Linear(2 * dim, dim)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, 4 * dim)
        self.drop_path = StochasticDepth(drop_path, mode="row")

    def forward(self, x: Tensor, groups: Tensor) -> Tensor:
        """(B, H, W, C), (B, n, C) -> (B, H, W, C)."""
        groups = self.norm_key(groups)
        heads = self.num_heads
        padding = head_padding(x, x.shape[-1] // heads)

        def queries(x: Tensor) -> Tensor:
            return self.query(self.norm_query(x), out_heads=heads, padding=padding)

        key = pad_heads(self.key(groups), heads, padding)
        value = pad_heads(self.value(groups), heads, padding)
        query = recomputed(queries, x, self.recompute)
        attended = attention(query.flatten(1, 2), key, value, heads, padding).view_as(query)
        attended = self.drop_path(self.out(attended, in_heads=heads, padding=padding))
        # join(cat([x, attended])), as two products without a map of 2C channels
        weight_of_x, weight_of_attended = self.join.weight.chunk(2, dim=1)
        x = linear(x, weight_of_x, self.join.bias) + linear(attended, weight_of_attended, None)
        return add_mlp(x, self.mlp, norm=self.norm2, drop_path=self.drop_path)

    def attention_weights(self, x: Tensor, groups: Tensor) -> Tensor:
        """The attention weights of each token: (B, heads, n, H, W), sum 1 over the group tokens."""
        query, key = self.query(self.norm_query(x)).flatten(1, 2), self.key(self.norm_key(groups))
        weights = attention_weights(query, key, self.num_heads)  # (B, heads, H W, n)
        return weights.mT.unflatten(-1, x.shape[1:3])
