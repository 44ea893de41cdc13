"""The dtype of inference."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from .errors import UserError

DTYPES = ("auto", "float32", "bfloat16", "float16")

# Names of the layers that predict scores, boxes, masks and the classes of pixels or images.
PREDICTION_LAYERS = {
    "anchor_deltas",
    "auxiliary_predictor",
    "bbox_pred",
    "cls_score",
    "head",
    "objectness_logits",
    "predictor",
}


def choose_dtype(name: str, device: str | torch.device) -> torch.dtype:
    """Return the dtype of inference on a device.

    Args:
        name: one of :data:`DTYPES`; "auto" is bfloat16 on GPUs that have instructions for it, else
            float32. Where a device lacks them, bfloat16 is emulated, which is slow.
        device: of the model.

    Raises:
        UserError: there is no such name, or it is float16, and the device is not a GPU.
    """
    if name not in DTYPES:
        raise UserError(f"dtype must be one of {', '.join(DTYPES)}, got {name}")
    device = torch.device(device)
    is_gpu = device.type == "cuda"
    if name == "auto":
        is_fast = is_gpu and torch.cuda.get_device_capability(device) >= (8, 0)
        return torch.bfloat16 if is_fast else torch.float32
    if name == "float16" and not is_gpu:
        raise UserError(f"float16 needs a CUDA device, not {device}: use float32 or bfloat16")
    return getattr(torch, name)


def predict_in_float32(model: nn.Module) -> list[nn.Module]:
    """Let the layers that predict run in float32 under autocast, whatever the others run in.

    bfloat16 has two to three decimal digits: many scores would be equal, and the order of
    detections arbitrary.

    Returns:
        The layers that have been changed, to each of which an attribute ``forward`` was added.
    """
    changed = []
    for layer in prediction_layers(model):
        if "forward" not in vars(layer):
            layer.forward = _InFloat32(layer)
            changed.append(layer)
    return changed


@contextmanager
def inference_precision(dtype: torch.dtype, model: nn.Module) -> Iterator[None]:
    """Run a model in a dtype inside the context, but predict in float32."""
    if dtype == torch.float32:
        yield
        return
    changed = predict_in_float32(model)
    try:
        with torch.autocast(next(model.parameters()).device.type, dtype):
            yield
    finally:
        for layer in changed:
            del layer.forward


def prediction_layers(model: nn.Module) -> Iterator[nn.Module]:
    """Yield the layers that predict scores, boxes, masks and classes."""
    for name, layer in model.named_modules():
        is_layer = isinstance(layer, nn.Linear | nn.Conv2d)
        if is_layer and name.rpartition(".")[2] in PREDICTION_LAYERS:
            yield layer


class _InFloat32:
    """The forward function of a layer, in float32 whatever surrounds it."""

    def __init__(self, layer: nn.Module) -> None:
        self.forward = layer.forward

    def __call__(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return self.forward(x.float())
