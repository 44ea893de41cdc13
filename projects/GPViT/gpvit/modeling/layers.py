"""The layers of GPViT and its adapter, and how they run fast on a CPU."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from detectron2.layers import get_norm
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

# In inference on a CPU: few enough for the hidden channels of an MLP to stay in its last cache (L1: 7 MB).
TOKENS_PER_PART = 2048


class ConvNormReLU(nn.Conv2d):
    """Convolution without bias, batch norm, ReLU; keeps the size where the stride is 1.

    In evaluation, the norm's factors go into the convolution's weights.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        *,
        stride: int = 1,
        groups: int = 1,
        norm: str,
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            kernel,
            stride=stride,
            padding=kernel // 2,
            groups=groups,
            bias=False,
        )
        self.norm = get_norm(norm, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        norm = self.norm
        if norm.training or getattr(norm, "running_var", None) is None:
            x = batch_norm(norm, super().forward(x))
        else:
            scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
            weight, bias = (
                scale[:, None, None, None] * self.weight,
                norm.bias - scale * norm.running_mean,
            )
            x = F.conv2d(x, weight, bias, self.stride, self.padding, groups=self.groups)
        return x.relu_().contiguous(memory_format=torch.channels_last)


def batch_norm(norm: nn.Module, x: Tensor) -> Tensor:
    """``norm(x)``; in channels-last, PyTorch's batch norm on CPUs gets gradients wrong by 1e-4 (seen: 2.14)."""
    if norm.training and x.device.type == "cpu":
        x = x.contiguous()
    return norm(x)


class Linear(nn.Linear):
    """A linear layer over the channels of a map: (B, H, W, C) -> (B, H, W, D)."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x weightᵀ + bias over the channels of a map: (B, H, W, C), (D, C), (D,) -> (B, H, W, D).

    On a CPU it is a 1x1 convolution: PyTorch takes these from oneDNN, and products of float32 matrices from MKL, which is
    half as fast on some processors.
    """
    if x.device.type != "cpu":
        return F.linear(x, weight, bias)
    return F.conv2d(x.permute(0, 3, 1, 2), weight[:, :, None, None], bias).permute(0, 2, 3, 1)


class Mlp(nn.Module):
    """Two linear layers with a GELU between them, over the channels of a map."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = Linear(dim, hidden_dim)
        self.fc2 = Linear(hidden_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.fc1(x))

    def second(self, hidden: Tensor) -> Tensor:
        return recomputed(lambda hidden: self.fc2(F.gelu(hidden)), hidden)


def add_mlp(x: Tensor, norm: nn.Module, mlp: Mlp, drop_path: nn.Module) -> Tensor:
    """x + drop_path(mlp(norm(x))), (B, H, W, C); in inference on a CPU by parts and in place, x changes then."""
    if mlp.training or torch.is_grad_enabled() or not is_eager_on_cpu(x):
        return x + drop_path(mlp.second(recomputed(lambda x: mlp.fc1(norm(x)), x)))
    x = x.contiguous()
    for part in x.view(1, -1, *x.shape[2:]).split(max(1, TOKENS_PER_PART // x.shape[2]), dim=1):
        part += mlp(norm(part))
    return x


def recomputed(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """function(x), which ends in a linear layer; of what comes before that, only x is kept for the backward pass.

    The layer itself is not repeated: PyTorch stops where it has what it needs.
    """
    if not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return function(x)
    return checkpoint(function, x, use_reentrant=False, preserve_rng_state=False)


def is_eager_on_cpu(x: Tensor) -> bool:
    """Whether operations that are faster on a CPU may be used: not where a graph is made for a compiler or for export."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


def bicubic_weights(old_size: int, new_size: int, like: Tensor) -> Tensor:
    """What each of the old points adds to each of the new ones when a line is resized: (new_size, old_size)."""
    unit = torch.eye(old_size, dtype=like.dtype, device=like.device)
    return F.interpolate(
        unit[None, None], (new_size, old_size), mode="bicubic", align_corners=False
    )[0, 0]


def attention(query: Tensor, key: Tensor, value: Tensor, num_heads: int) -> Tensor:
    """softmax(q kᵀ / sqrt(d)) v per head of width d = C / num_heads: (N, L, C), (N, M, C), (N, M, C) -> (N, L, C)."""
    query, key, value = (
        x.unflatten(-1, (num_heads, -1)).transpose(1, 2) for x in (query, key, value)
    )
    return (
        F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
    )  # (N, heads, L, d) -> (N, L, C)


def attention_weights(query: Tensor, key: Tensor, num_heads: int) -> Tensor:
    """The softmax in :func:`attention`, spelled out for looking at: (N, L, C), (N, M, C) -> (N, heads, L, M)."""
    query, key = (x.unflatten(-1, (num_heads, -1)).transpose(1, 2) for x in (query, key))
    return (query @ key.mT / query.shape[-1] ** 0.5).softmax(dim=-1)


def init_weights(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
