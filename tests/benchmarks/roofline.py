"""The shortest time in which this machine could run a network, from what its operations compute and move.

Counted are linear layers, convolutions and attention by their FLOPs, and these, LayerNorm, GELU and additions by the
bytes that they read and write, each tensor once: inputs, weights and output. Attention keeps its scores to itself.
Everything else is free: batch norm and ReLU (they go with the convolution before them), copies between layouts,
concatenation, and resizing the position embedding (once per image size). An operation takes the longer of

    FLOPs / matrix rate      of a linear layer: what the fastest of F.linear, torch.mm and a 1x1 convolution reaches for
                             its very shape; of the others: the best that was reached for any shape
    bytes / copy rate        what copying a tensor far larger than the caches reaches, bytes read plus bytes written

and the limit is their sum. Each rate is the best of several measurements.
"""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils.benchmark import Timer

Product = tuple[int, int, int]  # (M, K, N): (M, K) by (K, N)
MIN_SECONDS = 0.02  # that a rate is measured for, each time
MOVING = (F.layer_norm, F.gelu, Tensor.add)


@dataclass
class Operation:
    kind: str
    bytes: int
    flops: int = 0
    product: Product | None = None  # of a linear layer


class Operations(TorchFunctionMode):
    """Lists the operations of what is run inside; tensors may be on "meta", where nothing is computed."""

    def __init__(self) -> None:
        super().__init__()
        self.list: list[Operation] = []

    def __torch_function__(
        self, function: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        out = function(*args, **(kwargs or {}))
        flops, product = 0, None
        if function is F.linear:
            outputs, inputs = args[1].shape
            product = (args[0].numel() // inputs, inputs, outputs)
            flops = 2 * args[0].numel() * outputs
        elif function is F.conv2d:
            flops = 2 * out.numel() * args[1][0].numel()
        elif function is F.scaled_dot_product_attention:
            flops = (
                4 * args[0].numel() * args[1].shape[-2]
            )  # L queries by M keys, weights by values
        elif function not in MOVING:
            return out
        tensors = [
            tensor
            for tensor in (*args, *(kwargs or {}).values(), out)
            if isinstance(tensor, Tensor)
        ]
        moved = sum(tensor.numel() * tensor.itemsize for tensor in tensors)
        self.list.append(Operation(function.__name__, moved, flops, product))
        return out


class Rates:
    """What the machine does in a second, at the best that was seen so far."""

    def __init__(self, products: set[Product], device: str, dtype: torch.dtype) -> None:
        self.device, self.dtype = device, dtype
        self.copy = 0.0  # bytes read and written
        self.products = {product: dict.fromkeys(WAYS, 0.0) for product in sorted(products)}  # FLOPs

    @torch.no_grad()
    def measure(self) -> None:
        source = torch.zeros(2**28, dtype=torch.uint8, device=self.device)
        target = torch.zeros_like(source)
        self.copy = max(self.copy, 2 * source.numel() / best_seconds(target.copy_, source))
        for (M, K, N), rates in self.products.items():
            tensors = [
                torch.ones(shape, device=self.device, dtype=self.dtype)
                for shape in ((M, K), (N, K), (N,))
            ]
            for way, function in WAYS.items():
                rates[way] = max(rates[way], 2 * M * K * N / best_seconds(function, *tensors))

    def seconds(self, operations: list[Operation]) -> dict[str, float]:
        """What all operations of each kind take."""
        fastest = {product: max(rates.values()) for product, rates in self.products.items()}
        best = max(fastest.values())
        seconds: dict[str, float] = defaultdict(float)
        for operation in operations:
            computing = operation.flops / fastest.get(operation.product, best)
            seconds[operation.kind] += max(computing, operation.bytes / self.copy)
        return dict(seconds)


def conv1x1(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A linear layer as a convolution in channels-last: (M, K), (N, K), (N,) -> (1, N, 1, M)."""
    return F.conv2d(x[None, None].permute(0, 3, 1, 2), weight[:, :, None, None], bias)


WAYS = {
    "linear": F.linear,
    "mm": lambda x, weight, bias: torch.mm(x, weight.t()),
    "conv1x1": conv1x1,
}


def best_seconds(function: Callable, *args: Any) -> float:
    variables = {"function": function, "args": args}
    timer = Timer("function(*args)", globals=variables, num_threads=torch.get_num_threads())
    return min(timer.blocked_autorange(min_run_time=MIN_SECONDS).times)
