"""The roofline: the shortest time in which this machine could run a network.

It follows from what the operations compute and what they read and write. FLOPs are counted for
linear layers, convolutions and attention. Bytes are counted for these, LayerNorm, GELU and
additions: inputs, weights and output, each tensor once; the scores of attention are not counted.
Everything else is free: batch norm and ReLU (fused with the convolution before them), layout
copies, concatenation, and resizing the position embedding (once per image size). An operation takes
the longer of

    FLOPs / matrix rate    for a linear layer, the fastest of F.linear, torch.mm and a 1x1
                           convolution for its shape; otherwise the best rate of all shapes
    bytes / copy rate      bytes read and written when a tensor is copied that is much larger than
                           the caches

and the limit is the sum. Each rate is the best of several measurements.
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

Product = tuple[int, int, int]  # M, K, N: the shapes are (M, K) and (K, N)
MIN_SECONDS = 0.02  # duration of each measurement of a rate
MEMORY_BOUND = (F.layer_norm, F.gelu, Tensor.add)


@dataclass
class Operation:
    kind: str
    bytes: int
    flops: int = 0
    product: Product | None = None  # of a linear layer


class Operations(TorchFunctionMode):
    """Lists the operations that run inside this context; tensors may be on the device "meta"."""

    def __init__(self) -> None:
        super().__init__()
        self.list: list[Operation] = []

    def __torch_function__(
        self, function: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        out = function(*args, **(kwargs or {}))
        flops, product = 0, None
        if function is F.linear:
            outputs, inputs = args[1].shape  # of the weight
            product = (args[0].numel() // inputs, inputs, outputs)
            flops = 2 * args[0].numel() * outputs
        elif function is F.conv2d:
            flops = 2 * out.numel() * args[1][0].numel()  # the weights of one output channel
        elif function is F.scaled_dot_product_attention:
            # Two products: L queries by M keys, and the weights by M values.
            flops = 4 * args[0].numel() * args[1].shape[-2]
        elif function not in MEMORY_BOUND:
            return out
        moved = 0  # bytes
        for tensor in (*args, *(kwargs or {}).values(), out):
            if isinstance(tensor, Tensor):
                moved += tensor.numel() * tensor.itemsize
        self.list.append(Operation(function.__name__, moved, flops, product))
        return out


class Rates:
    """The best rates of the machine so far, per second."""

    def __init__(self, products: set[Product], device: str, dtype: torch.dtype) -> None:
        self.device, self.dtype = device, dtype
        self.copy = 0.0  # bytes read and written
        self.products: dict[Product, dict[str, float]] = {}  # FLOPs, by function
        for product in sorted(products):
            self.products[product] = dict.fromkeys(MATRIX_PRODUCTS, 0.0)

    @torch.no_grad()
    def measure(self) -> None:
        source = torch.zeros(2**28, dtype=torch.uint8, device=self.device)
        target = torch.zeros_like(source)
        self.copy = max(self.copy, 2 * source.numel() / best_seconds(target.copy_, source))
        for (M, K, N), rates in self.products.items():
            x, weight, bias = torch.ones(M, K), torch.ones(N, K), torch.ones(N)
            tensors = [tensor.to(self.device, self.dtype) for tensor in (x, weight, bias)]
            for name, function in MATRIX_PRODUCTS.items():
                rates[name] = max(rates[name], 2 * M * K * N / best_seconds(function, *tensors))

    def seconds(self, operations: list[Operation]) -> dict[str, float]:
        """Return the shortest possible time of all operations of each kind."""
        fastest = {product: max(rates.values()) for product, rates in self.products.items()}
        best = max(fastest.values())
        seconds: dict[str, float] = defaultdict(float)
        for operation in operations:
            compute_seconds = operation.flops / fastest.get(operation.product, best)
            seconds[operation.kind] += max(compute_seconds, operation.bytes / self.copy)
        return dict(seconds)


def conv1x1(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A linear layer as a channels-last convolution: (M, K), (N, K), (N,) -> (1, N, 1, M)."""
    return F.conv2d(x[None, None].permute(0, 3, 1, 2), weight[:, :, None, None], bias)


# Functions of x (M, K), weight (N, K) and bias (N,).
MATRIX_PRODUCTS = {
    "linear": F.linear,
    "mm": lambda x, weight, bias: torch.mm(x, weight.t()),
    "conv1x1": conv1x1,
}


def best_seconds(function: Callable, *args: Any) -> float:
    variables = {"function": function, "args": args}
    timer = Timer("function(*args)", globals=variables, num_threads=torch.get_num_threads())
    return min(timer.blocked_autorange(min_run_time=MIN_SECONDS).times)
