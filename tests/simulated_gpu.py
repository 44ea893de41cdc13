"""A simulated GPU: tensors are on cuda:0, their kernels run on the CPU.

As on a GPU, operations that mix devices raise an error, CUDA's autocast rules apply, and what makes
the host wait is counted. It says nothing about kernels, memory, speed, streams and NCCL.

    with simulated_gpu() as gpu:
        model.to("cuda")(image.to("cuda")).sum().backward()
    gpu.waits  # {"gpvit/modeling/detectors.py: item": 1}
"""

import contextlib
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any
from unittest import mock

import gpvit
import torch
import torchvision  # noqa: F401 (its operators)
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map

aten = torch.ops.aten
DEVICE = torch.device("cuda:0")
PACKAGE = str(Path(gpvit.__file__).parent)

COPIES = {aten._to_copy.default, aten.copy_.default}
# Their second argument has the indices.
INDEXES = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default}
INDEXES |= {aten._index_put_impl_.default}
FILLS = {aten.fill.Tensor, aten.fill_.Tensor}

# The size or value of the result depends on values that only the GPU has.
WAITS = {
    aten._local_scalar_dense.default: "item",
    aten.nonzero.default: "nonzero",
    aten.masked_select.default: "masked_select",
    aten._unique2.default: "unique",
    aten.unique_dim.default: "unique",
    aten.unique_consecutive.default: "unique",
    aten.equal.default: "equal",
    aten.repeat_interleave.Tensor: "repeat_interleave",
    aten.bincount.default: "bincount",
    torch.ops.torchvision.nms.default: "nms",
}


class SimulatedTensor(Tensor):
    """A tensor on the simulated GPU; its values are in ``values``, on the CPU."""

    values: Tensor

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, values: Tensor) -> "SimulatedTensor":
        tensor = Tensor._make_wrapper_subclass(
            cls,
            values.size(),
            strides=values.stride(),
            storage_offset=values.storage_offset(),
            dtype=values.dtype,
            layout=values.layout,
            device=DEVICE,
        )
        tensor.values = values
        return tensor

    def __repr__(self) -> str:  # type: ignore[override]
        return f"SimulatedTensor({self.values!r})"

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.values.__reduce_ex__(protocol)  # saved files have plain tensors

    def tolist(self) -> Any:  # not supported for wrappers
        return self.cpu().tolist()

    @classmethod
    def __torch_dispatch__(
        cls,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        return SimulatedGPU.current.run(func, args, dict(kwargs or {}))


class SimulatedGPU(TorchDispatchMode):
    """Runs the operations of simulated tensors, and creates them.

    Attributes:
        operations: number of operations.
        waits: how often the host waited for the GPU because of the package, by file and reason.
        other_waits: the same for all other code, by file.
    """

    current: "SimulatedGPU"

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0
        self.waits: Counter[str] = Counter()
        self.other_waits: Counter[str] = Counter()

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = dict(kwargs or {})
        is_simulated = any(isinstance(item, SimulatedTensor) for item in tree_iter((args, kwargs)))
        if is_simulated or is_gpu(kwargs.get("device")):
            return self.run(func, args, kwargs)
        return func(*args, **kwargs)

    def run(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        tensors = [item for item in tree_iter((args, kwargs)) if isinstance(item, Tensor)]
        simulated = [item for item in tensors if isinstance(item, SimulatedTensor)]
        check_devices(func, args, tensors)
        if is_gpu(kwargs.get("device")) and kwargs.get("generator") is not None:
            raise RuntimeError(f"{func}: the generator is on the CPU")
        self.operations += 1
        self.count_waits(func, args, kwargs, simulated)
        result = KERNELS.get(func, func)(*tree_map(to_cpu, args), **tree_map(to_cpu, kwargs))
        if func._schema.is_mutable:
            return changed_arguments(func, args, kwargs, result)
        device = kwargs.get("device")
        if func is aten.index.Tensor:
            on_gpu = isinstance(args[0], SimulatedTensor)  # its indices may be on the CPU
        else:
            on_gpu = bool(simulated) if device is None else is_gpu(device)
        return tree_map(to_gpu, result) if on_gpu else result

    def count_waits(
        self, func: Any, args: Sequence[Any], kwargs: dict[str, Any], simulated: list
    ) -> None:
        reason = WAITS.get(func) if simulated else None
        device = kwargs.get("device")
        if func is aten._to_copy.default and device is not None:
            if is_gpu(device) != bool(simulated):
                reason = "to GPU" if is_gpu(device) else "to CPU"
        elif func is aten.copy_.default and len(simulated) == 1:
            reason = "to GPU" if isinstance(args[0], SimulatedTensor) else "to CPU"
        elif func in INDEXES:
            indices = [item for item in args[1] if item is not None]
            if any(index.dtype in (torch.bool, torch.uint8) for index in indices):
                reason = "boolean index"
            elif isinstance(args[0], SimulatedTensor) and not all(map(is_simulated, indices)):
                reason = "to GPU"  # indices on the CPU
        if reason:
            file = calling_file(sys._getframe())
            counter = self.waits if file.startswith("gpvit/") else self.other_waits
            counter[f"{file}: {reason}"] += 1


def is_simulated(item: Any) -> bool:
    return isinstance(item, SimulatedTensor)


def is_gpu(device: Any) -> bool:
    return device is not None and torch.device(device).type == "cuda"


def to_cpu(item: Any) -> Any:
    """Replace a simulated tensor by its values, and the GPU by the CPU."""
    if isinstance(item, SimulatedTensor):
        return item.values
    if isinstance(item, torch.device):
        return torch.device("cpu") if item.type == "cuda" else item
    return item


def to_gpu(item: Any) -> Any:
    is_plain = isinstance(item, Tensor) and not isinstance(item, SimulatedTensor)
    return SimulatedTensor(item) if is_plain else item


def check_devices(func: Any, args: Sequence[Any], tensors: Sequence[Tensor]) -> None:
    """Raise a RuntimeError if tensors are on both devices.

    Allowed are copies, indices on the CPU, and numbers on the CPU, (), that are read by operations
    on single elements.
    """
    if func in COPIES:
        return
    may_have_numbers = torch.Tag.pointwise in func.tags or func in INDEXES | FILLS
    if func in INDEXES:
        indexed, _, *values = args
        if is_simulated(indexed):
            tensors = [item for item in (indexed, *values) if isinstance(item, Tensor)]
    plain = []
    for item in tensors:
        is_changed = func._schema.is_mutable and item is args[0]
        is_number = item.dim() == 0 and may_have_numbers and not is_changed
        if not is_simulated(item) and not is_number:
            plain.append(tuple(item.shape))
    if plain and any(map(is_simulated, tensors)):
        raise RuntimeError(f"{func}: expected all tensors to be on {DEVICE}, but {plain} are not")


def changed_arguments(
    func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any
) -> Any:
    """Return the results of an in-place operation: the arguments that it changed, and others."""
    arguments: dict[frozenset, Any] = {}
    for position, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[position] if position < len(args) else kwargs.get(argument.name)
            arguments[frozenset(argument.alias_info.before_set)] = value
    on_gpu = any(map(is_simulated, tree_iter((args, kwargs))))
    results = result if isinstance(result, tuple) else (result,)
    returned = []
    for declared, item in zip(func._schema.returns, results):
        if declared.alias_info is not None and declared.alias_info.is_write:
            returned.append(arguments[frozenset(declared.alias_info.before_set)])
        else:
            returned.append(tree_map(to_gpu, item) if on_gpu else item)
    if not returned:
        return None
    return tuple(returned) if isinstance(result, tuple) else returned[0]


def calling_file(frame: FrameType | None) -> str:
    """Return the file that called PyTorch, such as gpvit/modeling/detectors.py."""
    while frame is not None:
        path = frame.f_code.co_filename
        if path.startswith(PACKAGE):
            return f"gpvit{path[len(PACKAGE) :]}"
        if path != __file__ and "/torch/" not in path and not path.startswith("<"):
            return path.split("site-packages/")[-1]
        frame = frame.f_back
    return "unknown"


# CUDA's batch norm is another operation than the CPU's.


def batch_norm(x: Tensor, weight: Tensor, bias: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    result, mean, deviation = aten.native_batch_norm(x, weight, bias, *rest)
    return result, mean, deviation, torch.empty(0, dtype=torch.uint8)


def batch_norm_backward(
    x: Tensor,
    gradient: Tensor,
    weight: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    mean: Tensor,
    deviation: Tensor,
    epsilon: float,
    reserved: Tensor,
) -> tuple[Tensor, ...]:
    return aten.native_batch_norm_backward(
        gradient, x, weight, running_mean, running_var, mean, deviation, True, epsilon, [True] * 3
    )


KERNELS: dict[Any, Callable] = {
    aten.cudnn_batch_norm.default: batch_norm,
    aten.cudnn_batch_norm_backward.default: batch_norm_backward,
}


@contextlib.contextmanager
def simulated_gpu() -> Iterator[SimulatedGPU]:
    """Simulate a GPU inside the context."""
    gpu = SimulatedGPU()
    replacements = {
        "torch.cuda.is_available": lambda: True,
        "torch.cuda.device_count": lambda: 1,
        "torch.cuda.current_device": lambda: 0,
        "torch.cuda.set_device": lambda device: None,
        "torch.cuda._lazy_init": lambda: None,
        "torch.cuda.is_bf16_supported": lambda *_, **__: True,
        "torch.cuda.get_device_name": lambda *_: "simulated GPU",
        "torch.cuda.get_device_capability": lambda *_: (9, 0),
        "torch.cuda.synchronize": lambda *_: None,
        "torch.cuda.empty_cache": lambda: None,
        "torch.cuda.mem_get_info": lambda *_: (2**34, 2**34),
        "torch.cuda.memory_allocated": lambda *_: 0,
        "torch.cuda.max_memory_allocated": lambda *_: 0,
        "torch.cuda.reset_peak_memory_stats": lambda *_: None,
        "torch.cuda.set_per_process_memory_fraction": lambda fraction: None,
        "torch.cuda.manual_seed_all": lambda seed: None,
        "torch.cuda.get_rng_state_all": lambda: [torch.zeros(16, dtype=torch.uint8)],
        "torch.cuda.set_rng_state_all": lambda states: None,
        "torch.amp.autocast_mode.torch.cuda.amp.common.amp_definitely_not_available": lambda: False,
        "torch.Tensor.backward": backward,
        "torch.autograd.backward": backward,
    }
    with contextlib.ExitStack() as stack:
        for name, function in replacements.items():
            stack.enter_context(mock.patch(name, function))
        torch._C._ensureCUDADeviceGuardSet()
        # torch.tensor(..., device="cuda") creates its values on the CPU.
        torch._C._set_only_lift_cpu_tensors(True)
        stack.callback(torch._C._set_only_lift_cpu_tensors, False)
        # Module.to replaces parameters; otherwise it would set .data, which wrappers do not have.
        torch.__future__.set_swap_module_params_on_conversion(True)
        stack.callback(torch.__future__.set_swap_module_params_on_conversion, False)
        stack.enter_context(mock.patch.object(SimulatedGPU, "current", gpu, create=True))
        stack.enter_context(gpu)
        yield gpu


def backward(
    loss: Tensor,
    gradient: Tensor | None = None,
    retain_graph: bool | None = None,
    create_graph: bool = False,
    inputs: Any = None,
) -> None:
    """What PyTorch's engine does, which would need CUDA's streams: accumulate into ``grad``."""
    assert not create_graph and inputs is None, "not simulated"
    start = loss.grad_fn
    assert start is not None, "the loss does not require a gradient"
    gradients: dict[Any, dict[int, Tensor]] = {
        start: {0: torch.ones_like(loss) if gradient is None else gradient}
    }
    with torch.no_grad():
        for node in reversed(in_topological_order(start)):
            received = gradients.pop(node, None)
            if received is None:
                continue
            if hasattr(node, "variable"):
                accumulate(node.variable, received[0])
                continue
            metadata = node._input_metadata
            incoming = []
            for index, of in enumerate(metadata):
                incoming.append(as_gradient_of(of, received.get(index)))
            # Nodes of Python, such as those of torchvision's operators, are not callable.
            outgoing = node(*incoming) if callable(node) else node.apply(*incoming)
            outgoing = outgoing if isinstance(outgoing, tuple) else (outgoing,)
            for (following, index), value in zip(node.next_functions, outgoing):
                if following is not None and value is not None:
                    slots = gradients.setdefault(following, {})
                    slots[index] = slots[index] + value if index in slots else value


def in_topological_order(start: Any) -> list[Any]:
    """Return the nodes of a graph, each after all nodes that it passes gradients to."""
    order: list[Any] = []
    seen = set()
    stack = [(start, False)]
    while stack:
        node, is_expanded = stack.pop()
        if is_expanded:
            order.append(node)
        elif node not in seen:
            seen.add(node)
            stack.append((node, True))
            for following, _ in node.next_functions:
                if following is not None:
                    stack.append((following, False))
    return order


def as_gradient_of(metadata: Any, value: Tensor | None) -> Tensor | None:
    """Give a gradient the shape and dtype of the result that it belongs to, as PyTorch does."""
    if value is None:
        return None
    if value.device != metadata.device:
        raise RuntimeError(f"a gradient is on {value.device} instead of {metadata.device}")
    if tuple(value.shape) != tuple(metadata.shape):
        value = value.sum_to_size(tuple(metadata.shape))
    return value.to(metadata.dtype)


def accumulate(variable: Tensor, gradient: Tensor) -> None:
    if gradient.device != variable.device:
        raise RuntimeError(f"a gradient is on {gradient.device} instead of {variable.device}")
    if gradient.shape != variable.shape:
        gradient = gradient.sum_to_size(variable.shape)
    gradient = gradient.to(variable.dtype)
    if variable.grad is None:
        variable.grad = gradient.detach().clone()
    else:
        variable.grad.add_(gradient)
