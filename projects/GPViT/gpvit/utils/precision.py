"""The dtype of inference."""

import contextlib
from collections.abc import Iterator
from unittest import mock

import torch
from torch import Tensor, nn

from .errors import UserError

DTYPES = ("auto", "float32", "bfloat16", "float16")

# Names of the layers that predict scores, boxes, masks and the classes of pixels or images.
LAST_LAYERS = {
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
        name: one of :data:`DTYPES`; "auto" is bfloat16 on GPUs that compute in it, else float32.
        device: of the model.

    Raises:
        UserError: the device does not compute in this dtype.
    """
    is_gpu = torch.device(device).type == "cuda"
    if name == "auto":
        is_fast = is_gpu and torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if is_fast else torch.float32
    if name == "float16" and not is_gpu:
        raise UserError(f"float16 needs a GPU, not device {device}: use float32 or bfloat16")
    return getattr(torch, name)


@contextlib.contextmanager
def inference_in(dtype: torch.dtype, model: nn.Module) -> Iterator[None]:
    """Let a model run in a dtype inside the context, but for its last layers and what follows.

    These, which predict scores, boxes and masks, run in float32: bfloat16 has two to three decimal
    digits, so that many scores would be equal, and the order of detections arbitrary.
    """
    if dtype == torch.float32:
        yield
        return
    device_type = next(model.parameters()).device.type
    with contextlib.ExitStack() as stack:
        for name, layer in model.named_modules():
            if name.rpartition(".")[2] in LAST_LAYERS and isinstance(layer, nn.Linear | nn.Conv2d):
                forward = _InFloat32(layer, device_type)
                stack.enter_context(mock.patch.object(layer, "forward", forward))
        stack.enter_context(torch.autocast(device_type, dtype))
        yield


class _InFloat32:
    """The forward function of a layer, in float32 whatever surrounds it."""

    def __init__(self, layer: nn.Module, device_type: str) -> None:
        self.forward = layer.forward
        self.device_type = device_type

    def __call__(self, x: Tensor) -> Tensor:
        with torch.autocast(self.device_type, enabled=False):
            return self.forward(x.float())
