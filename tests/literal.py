"""A literal, slow implementation of GPViT: the reference for the backbone's tests and benchmarks.

Its parameters have the names of :class:`gpvit.GPViT`, so that one state dict fits both. Attention
is computed by matrix products and a softmax, with the complete matrix of scores in memory. Tokens
(B, N, C) are copied to maps (B, C, H, W) for every convolution, and q, k and v to windows one by
one: the layouts and copies are those of the published code. There is no drop path, and only the
last map is returned.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class LiteralGPViT(nn.Module):
    """(B, 3, 8H, 8W) -> {"last_feat": (B, C, H, W)}; see :class:`gpvit.GPViT` for the options."""

    def __init__(
        self,
        *,
        embed_dim: int,
        stem_convs: int = 0,
        group_tokens: tuple[int, ...] = (0, 64, 0, 0, 32, 0, 0, 32, 0, 0, 16, 0),
        num_heads: int = 6,
        final_norm: bool = True,
    ) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed(embed_dim, stem_convs)
        self.pos_embed = nn.Parameter(torch.zeros(1, 28 * 28, embed_dim))
        self.blocks = nn.ModuleList()
        for groups in group_tokens:
            if groups:
                self.blocks.append(GroupPropagationBlock(embed_dim, num_heads, groups))
            else:
                self.blocks.append(WindowBlock(embed_dim, num_heads))
        self.out_norms = nn.ModuleDict(
            {"last_feat": nn.LayerNorm(embed_dim, eps=1e-6)} if final_norm else {}
        )

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        x = self.embed(image)
        for block in self.blocks:
            x = block(x)
        for norm in self.out_norms.values():
            x = norm(x)
        return {"last_feat": x.permute(0, 3, 1, 2).contiguous()}  # (B, H, W, C) -> (B, C, H, W)

    def embed(self, image: Tensor) -> Tensor:
        """(B, 3, 8H, 8W) -> (B, H, W, C)."""
        x = self.patch_embed(image)
        pos = self.pos_embed.transpose(1, 2).unflatten(2, (28, 28))  # (1, C, 28, 28)
        if x.shape[1:3] != (28, 28):
            pos = F.interpolate(pos, x.shape[1:3], mode="bicubic", align_corners=False)
        return x + pos.permute(0, 2, 3, 1)


class PatchEmbed(nn.Module):
    """(B, 3, 8H, 8W) -> (B, H, W, C)."""

    def __init__(self, dim: int, stem_convs: int) -> None:
        super().__init__()
        self.stem = ConvNormReLU(3, 64, 7, stride=2, padding=3, bias=False)
        self.convs = nn.Sequential()
        for _ in range(stem_convs):
            self.convs.append(ConvNormReLU(64, 64, 3, padding=1, bias=False))
        self.projection = nn.Conv2d(64, dim, 4, stride=4)

    def forward(self, image: Tensor) -> Tensor:
        return self.projection(self.convs(self.stem(image))).permute(0, 2, 3, 1)


class ConvNormReLU(nn.Conv2d):
    """Convolution, batch norm, ReLU."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, **options) -> None:
        super().__init__(in_channels, out_channels, kernel, **options)
        self.norm = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(super().forward(x)))


class WindowBlock(nn.Module):
    """(B, H, W, C) -> (B, H, W, C)."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = StripeAttention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, 4 * dim)
        self.conv = nn.Conv2d(dim, dim, 3, padding=1, groups=dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[1:3]
        x = x.flatten(1, 2)  # (B, N, C)
        x = x + self.attn(self.norm1(x), height, width)
        x = x + self.mlp(self.norm2(x))
        return self.conv(to_map(x, height, width)).permute(0, 2, 3, 1)


class StripeAttention(nn.Module):
    """(B, N, C) -> (B, N, C).

    Half of the channels attend in vertical stripes (H x 2), half in horizontal ones (2 x W).
    """

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.lepe_vertical = nn.Conv2d(dim // 2, dim // 2, 3, padding=1, groups=dim // 2)
        self.lepe_horizontal = nn.Conv2d(dim // 2, dim // 2, 3, padding=1, groups=dim // 2)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        qkv = self.qkv(x).unflatten(-1, (3, -1)).permute(2, 0, 1, 3)  # (3, B, N, C)
        vertical, horizontal = qkv.chunk(2, dim=-1)
        vertical = self.attend(vertical, height, width, (height, 2), self.lepe_vertical)
        horizontal = self.attend(horizontal, height, width, (2, width), self.lepe_horizontal)
        return self.proj(torch.cat([vertical, horizontal], dim=-1))

    def attend(
        self, qkv: Tensor, height: int, width: int, window: tuple[int, int], lepe: nn.Conv2d
    ) -> Tensor:
        """(3, B, N, C/2) -> (B, N, C/2)."""
        q, k, v = (to_windows(to_map(x, height, width), window) for x in qkv)
        # q, k, v: (windows, C/2, h, w)
        x = attention(*map(self.to_heads, (q, k, v))) + self.to_heads(lepe(v))
        x = x.transpose(1, 2).flatten(2).unflatten(1, window)  # (windows, h, w, C/2)
        x = x.unflatten(0, (-1, height // window[0], width // window[1]))
        x = x.transpose(2, 3)  # (B, H/h, W/w, h, w, C/2) -> (B, H/h, h, W/w, w, C/2)
        return x.reshape(-1, height * width, x.shape[-1])

    def to_heads(self, x: Tensor) -> Tensor:
        """(windows, C/2, h, w) -> (windows, heads, h * w, d)."""
        return x.flatten(2).unflatten(1, (self.num_heads, -1)).transpose(2, 3).contiguous()


class GroupPropagationBlock(nn.Module):
    """(B, H, W, C) -> (B, H, W, C), through n group tokens."""

    def __init__(self, dim: int, num_heads: int, num_group_tokens: int) -> None:
        super().__init__()
        self.group_token = nn.Parameter(torch.zeros(1, num_group_tokens, dim))
        self.group = Group(dim, num_heads)
        self.mixer = TokenMixer(dim, num_group_tokens)
        self.ungroup = Ungroup(dim, num_heads)
        self.conv = ConvNormReLU(dim, dim, 3, padding=1, groups=dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[1:3]
        x = x.flatten(1, 2)  # (B, N, C)
        groups = self.mixer(self.group(self.group_token.expand(len(x), -1, -1), x))  # (B, n, C)
        return self.conv(to_map(self.ungroup(x, groups), height, width)).permute(0, 2, 3, 1)


class Group(nn.Module):
    """(B, n, C), (B, N, C) -> (B, n, C)."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm_query = nn.LayerNorm(dim)
        self.norm_key = nn.LayerNorm(dim)
        self.key = nn.Linear(dim, dim)

    def forward(self, groups: Tensor, x: Tensor) -> Tensor:
        x = self.norm_key(x)
        return multi_head_attention(self.norm_query(groups), self.key(x), x, self.num_heads)


class TokenMixer(nn.Module):
    """(B, n, C) -> (B, n, C)."""

    def __init__(self, dim: int, num_group_tokens: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.token_mlp = Mlp(num_group_tokens, dim // 2)
        self.norm2 = nn.LayerNorm(dim)
        self.channel_mlp = Mlp(dim, 4 * dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.token_mlp(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        return x + self.channel_mlp(self.norm2(x))


class Ungroup(nn.Module):
    """(B, N, C), (B, n, C) -> (B, N, C)."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm_query = nn.LayerNorm(dim)
        self.norm_key = nn.LayerNorm(dim)
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(dim, dim)
        self.value = nn.Linear(dim, dim)
        self.out = nn.Linear(dim, dim)
        self.join = nn.Linear(2 * dim, dim)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, 4 * dim)

    def forward(self, x: Tensor, groups: Tensor) -> Tensor:
        groups = self.norm_key(groups)
        query = self.query(self.norm_query(x))
        returned = self.out(
            multi_head_attention(query, self.key(groups), self.value(groups), self.num_heads)
        )
        x = self.join(torch.cat([x, returned], dim=-1))
        return x + self.mlp(self.norm2(x))


class Mlp(nn.Module):
    """(..., dim) -> (..., dim)."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


def attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """softmax(q kᵀ / sqrt(d)) v.

    (B, heads, L, d), (B, heads, M, d), (B, heads, M, d) -> (B, heads, L, d).
    """
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)  # (B, heads, L, M)
    return scores.softmax(dim=-1) @ value


def multi_head_attention(query: Tensor, key: Tensor, value: Tensor, num_heads: int) -> Tensor:
    """(B, L, C), (B, M, C), (B, M, C) -> (B, L, C)."""
    tensors = (query, key, value)
    heads = [x.unflatten(-1, (num_heads, -1)).transpose(1, 2) for x in tensors]  # (B, heads, ., d)
    return attention(*heads).transpose(1, 2).flatten(2)


def to_map(x: Tensor, height: int, width: int) -> Tensor:
    """(B, N, C) -> (B, C, H, W), a copy."""
    return x.transpose(1, 2).contiguous().unflatten(2, (height, width))


def to_windows(x: Tensor, window: tuple[int, int]) -> Tensor:
    """(B, C, H, W) -> (B * H/h * W/w, C, h, w), a copy."""
    x = x.unflatten(3, (-1, window[1])).unflatten(2, (-1, window[0]))  # (B, C, H/h, h, W/w, w)
    return x.permute(0, 2, 4, 1, 3, 5).contiguous().flatten(0, 2)
