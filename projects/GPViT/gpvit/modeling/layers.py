"""The layers of GPViT and its adapter, with fast paths for CPUs and GPUs."""

from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from detectron2.layers import get_norm
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

# Tokens of one part of an MLP in inference on a CPU: the hidden channels of this many fit into the
# last-level cache (7 MB for L1).
TOKENS_PER_PART = 2048

# Fused attention on GPUs needs heads whose widths are multiples of these.
HEAD_MULTIPLES = {torch.float32: 4, torch.bfloat16: 8, torch.float16: 8}


class ConvNormReLU(nn.Conv2d):
    """Convolution without bias, batch norm, ReLU. With stride 1, the output has the input's size.

    In evaluation, the batch norm is folded into the convolution's weights.
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
            # norm(conv(x)) = scale * (weight * x - mean) + norm.bias, per output channel
            scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
            weight = scale[:, None, None, None] * self.weight
            bias = norm.bias - scale * norm.running_mean
            x = F.conv2d(x, weight, bias, self.stride, self.padding, groups=self.groups)
        return x.relu_().contiguous(memory_format=torch.channels_last)


def batch_norm(norm: nn.Module, x: Tensor) -> Tensor:
    """``norm(x)``, in channels-first when training on a CPU.

    Works around PyTorch (seen in 2.14): with channels-last inputs, the gradients of its batch norm
    on CPUs are off by 1e-4.
    """
    if norm.training and x.device.type == "cpu":
        x = x.contiguous()
    return norm(x)


class Linear(nn.Linear):
    """A linear layer over the channels of a map: (B, H, W, C) -> (B, H, W, D)."""

    def forward(self, x: Tensor, in_heads: int = 0, out_heads: int = 0, padding: int = 0) -> Tensor:
        """Apply the layer.

        Args:
            x: (B, H, W, C).
            in_heads: number of heads that C consists of, each with zeros at its end.
            out_heads: number of heads that D consists of, to which zeros are appended.
            padding: number of zeros at the end of each of these heads, see :func:`head_padding`.
        """
        weight: Tensor = self.weight
        bias: Tensor | None = self.bias
        if in_heads:
            weight = pad_heads(weight, in_heads, padding, dim=1)
        if out_heads:
            weight = pad_heads(weight, out_heads, padding, dim=0)
            bias = None if bias is None else pad_heads(bias, out_heads, padding)
        return linear(x, weight, bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x weightᵀ + bias over the channels of a map: (B, H, W, C), (D, C), (D,) -> (B, H, W, D).

    On a CPU it runs as a 1x1 convolution. PyTorch computes these with oneDNN, and float32 matrix
    products with MKL, which is half as fast on some processors.
    """
    if x.device.type != "cpu":
        return F.linear(x, weight, bias)
    return F.conv2d(x.permute(0, 3, 1, 2), weight[:, :, None, None], bias).permute(0, 2, 3, 1)


class Mlp(nn.Module):
    """Two linear layers with a GELU between them, over the channels of a map."""

    recompute: bool | None = None  # see `recomputed`

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = Linear(dim, hidden_dim)
        self.fc2 = Linear(hidden_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.activate_and_project(self.fc1(x))

    def activate_and_project(self, hidden: Tensor) -> Tensor:
        """fc2(gelu(hidden)), keeping ``hidden`` for the backward pass and not its GELU."""
        return recomputed(lambda hidden: self.fc2(F.gelu(hidden)), hidden, self.recompute)


def add_mlp(x: Tensor, mlp: Mlp, *, norm: nn.Module, drop_path: nn.Module) -> Tensor:
    """x + drop_path(mlp(norm(x))): (B, H, W, C) -> (B, H, W, C).

    In inference on a CPU, computed in place and in parts that fit into the cache: x is modified.
    """
    if mlp.training or torch.is_grad_enabled() or not is_eager_on_cpu(x):
        hidden = recomputed(lambda x: mlp.fc1(norm(x)), x, mlp.recompute)
        return x + drop_path(mlp.activate_and_project(hidden))
    x = x.contiguous()
    rows = x.view(1, -1, *x.shape[2:])  # (1, B H, W, C)
    for part in rows.split(max(1, TOKENS_PER_PART // x.shape[2]), dim=1):
        part += mlp(norm(part))
    return x


def recomputed(function: Callable[[Tensor], Tensor], x: Tensor, recompute: bool | None) -> Tensor:
    """function(x), which must end in a linear layer, keeping only x for the backward pass.

    What precedes the linear layer is computed again there; the layer itself is not, since
    PyTorch's checkpointing stops once it has the layer's input.

    Args:
        function: the function.
        x: its argument.
        recompute: whether to do this; False keeps everything. None: on CPUs, where it saves a third
            of the memory (measured); on GPUs neither time nor memory has been measured.
    """
    if recompute is None:
        recompute = x.device.type == "cpu"
    if not recompute or not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return function(x)
    return checkpoint(function, x, use_reentrant=False, preserve_rng_state=False)


def is_eager_on_cpu(x: Tensor) -> bool:
    """Whether to take the fast path for CPUs: not while a graph is compiled or exported."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


def bicubic_weights(old_size: int, new_size: int, like: Tensor) -> Tensor:
    """The matrix that resizes a line by bicubic interpolation: (new_size, old_size).

    ``like``: a tensor of the dtype and on the device of the result.
    """
    unit = torch.eye(old_size, dtype=like.dtype, device=like.device)[None, None]
    return F.interpolate(unit, (new_size, old_size), mode="bicubic", align_corners=False)[0, 0]


def head_padding(x: Tensor, width: int) -> int:
    """Return how many zeros to append to each head of attention over x.

    PyTorch's fused kernels for GPUs need heads whose width is a multiple of 4 in float32 and of 8
    in bfloat16 and float16. With others, it holds the attention weights of all pairs of tokens in
    memory, or copies queries, keys and values at every call. On a CPU any width is fused.
    """
    return -width % HEAD_MULTIPLES.get(gpu_dtype(x), 1) if x.device.type == "cuda" else 0


def gpu_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype that attention over x runs in on a GPU."""
    return torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else x.dtype


def pad_heads(x: Tensor, num_heads: int, padding: int, dim: int = -1) -> Tensor:
    """Append zeros to each head, in a dimension of heads * d: it becomes heads * (d + padding).

    Padding the weights of a linear layer costs less than padding its output.
    """
    if not padding:
        return x
    dim %= x.dim()
    heads = x.unflatten(dim, (num_heads, -1))
    return F.pad(heads, [0, 0] * (x.dim() - 1 - dim) + [0, padding]).flatten(dim, dim + 1)


def attention(
    query: Tensor, key: Tensor, value: Tensor, num_heads: int, padding: int = 0
) -> Tensor:
    """softmax(q kᵀ / sqrt(d)) v for each head of width d = C / num_heads - padding.

    (N, L, C), (N, M, C), (N, M, C) -> (N, L, C).

    Args:
        query, key, value: with ``padding`` zeros at the end of each head.
        num_heads: number of heads.
        padding: :func:`head_padding`.
    """
    query, key, value = (split_heads(x, num_heads) for x in (query, key, value))
    scale = (query.shape[-1] - padding) ** -0.5
    attended = F.scaled_dot_product_attention(query, key, value, scale=scale)
    return attended.transpose(1, 2).flatten(2)  # (N, heads, L, d) -> (N, L, C)


def gather(query: Tensor, x: Tensor, key: Linear, num_heads: int) -> Tensor:
    """Cross-attention from n tokens to a map, of which only the keys are projected.

    (B, n, C), (B, H, W, C) -> (B, n, C).
    """
    padding = head_padding(x, x.shape[-1] // num_heads)
    if padding:
        x = x.to(gpu_dtype(x))  # normalized maps are in float32: do not pad twice the memory
    query, value = pad_heads(query, num_heads, padding), pad_heads(x, num_heads, padding)
    keys = key(x, out_heads=num_heads, padding=padding)
    attended = attention(query, keys.flatten(1, 2), value.flatten(1, 2), num_heads, padding)
    if padding:
        attended = attended.unflatten(-1, (num_heads, -1))[..., :-padding].flatten(-2)
    return attended


def gather_from_parts(
    query: Tensor, parts: Iterable[Tensor], key: Linear, num_heads: int
) -> Tensor:
    """:func:`gather` from the parts of one map: (1, n, C), each (1, h, w, C) -> (1, n, C).

    The softmax is over all parts. Sums of weights and of weighted values are relative to the
    largest score so far, as in "Online normalizer calculation for softmax" (Milakov and Gimelshein,
    2018).
    """
    query = split_heads(query, num_heads)  # (1, heads, n, d)
    query = query * query.shape[-1] ** -0.5
    largest = query.new_full((*query.shape[:-1], 1), -torch.inf)
    total, weighted = torch.zeros_like(largest), torch.zeros_like(query)
    for x in parts:
        keys, values = (split_heads(y.flatten(1, 2), num_heads) for y in (key(x), x))
        scores = query @ keys.mT  # (1, heads, n, h w)
        new_largest = largest.maximum(scores.amax(dim=-1, keepdim=True))
        factor = (largest - new_largest).exp()
        weights = (scores - new_largest).exp()
        total = total * factor + weights.sum(dim=-1, keepdim=True)
        weighted = weighted * factor + weights @ values
        largest = new_largest
    return (weighted / total).transpose(1, 2).flatten(2)


def attention_weights(query: Tensor, key: Tensor, num_heads: int) -> Tensor:
    """The softmax of :func:`attention`: (N, L, C), (N, M, C) -> (N, heads, L, M)."""
    query, key = split_heads(query, num_heads), split_heads(key, num_heads)
    return (query @ key.mT / query.shape[-1] ** 0.5).softmax(dim=-1)


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    """(N, L, C) -> (N, heads, L, C / heads)."""
    return x.unflatten(-1, (num_heads, -1)).transpose(1, 2)


def init_weights(module: nn.Module) -> None:
    """Initialize a linear layer as published; other modules keep PyTorch's initialization."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
