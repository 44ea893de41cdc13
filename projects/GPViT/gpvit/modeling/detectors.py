"""Where the published detectors differ from Detectron2's, as small subclasses."""

import functools
from typing import Any

import torch
import torch.distributed as dist
from detectron2.layers import Conv2d, ROIAlign, get_norm
from detectron2.modeling import meta_arch
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.meta_arch import retinanet
from detectron2.structures import Boxes, Instances
from fvcore.nn import sigmoid_focal_loss
from torch import Tensor, nn


class ClampedBox2BoxTransform(Box2BoxTransform):
    """Limits the factor by which a box shrinks, too, to 16 / 1000; Detectron2 limits its growth."""

    def apply_deltas(self, deltas: Tensor, boxes: Tensor) -> Tensor:
        """Args: deltas: (N, 4k), boxes: (N, 4). Returns: (N, 4k)."""
        dx, dy, dw, dh = deltas.unflatten(1, (-1, 4)).unbind(2)  # each (N, k)
        # dx and dy are unlimited; dw and dh are logarithms of factors, times their weights. The
        # limits are numbers: a tensor of them would be copied to the GPU at every call.
        dw = dw.clamp(min=-self.scale_clamp * self.weights[2])
        dh = dh.clamp(min=-self.scale_clamp * self.weights[3])
        return super().apply_deltas(torch.stack([dx, dy, dw, dh], dim=2).flatten(1), boxes)


class LastLevelNormP6P7(nn.Module):
    """p6 from p5 and p7 from p6, by stride-2 convolutions.

    With a norm and without the ReLU of Detectron2's LastLevelP6P7.
    """

    num_levels = 2
    in_feature = "p5"

    def __init__(self, channels: int, norm: str) -> None:
        super().__init__()
        self.p6 = self._make_conv(channels, norm)
        self.p7 = self._make_conv(channels, norm)

    @staticmethod
    def _make_conv(channels: int, norm: str) -> Conv2d:
        options = dict(stride=2, padding=1, bias=False, norm=get_norm(norm, channels))
        return Conv2d(channels, channels, 3, **options)

    def forward(self, p5: Tensor) -> list[Tensor]:
        p6 = self.p6(p5)
        return [p6, self.p7(p6)]


def roi_align(layer: ROIAlign, features: Tensor, boxes: Tensor) -> Tensor:
    """RoIAlign in float32: (N, C, H, W), (K, 5) -> (K, C, height, width), of the features' dtype.

    Detectron2 rounds the boxes to the dtype of the features; in bfloat16, coordinates between 512
    and 1024 are rounded to multiples of 4. It then calls a function of torchvision which on GPUs,
    under deterministic algorithms, replaces the operator by Python code that needs tens of GB
    (pytorch/vision issue 8168). The operator adds the gradients of overlapping boxes in any order,
    so that they may differ in the last bits.
    """
    dtype = torch.promote_types(features.dtype, torch.float32)
    pooled = torch.ops.torchvision.roi_align(
        features.to(dtype),
        boxes.to(dtype),
        layer.spatial_scale,
        *layer.output_size,
        layer.sampling_ratio,
        layer.aligned,
    )
    return pooled.to(features.dtype)


ROIAlign.forward = roi_align

# The first results of the scripted function differ from later ones in the last bits, so that a run
# could not be resumed bitwise.
retinanet.sigmoid_focal_loss_jit = sigmoid_focal_loss

INITIAL_NORMALIZER = 100.0  # of RetinaNet's positive anchors, as in Detectron2


class RetinaNet(meta_arch.RetinaNet):
    """Detectron2's RetinaNet with two differences.

    Boxes are clipped to the image before non-maximum suppression, not after it, as in Detectron2's
    R-CNNs. The losses are divided by the same number in all processes.

    Attributes:
        loss_normalizer: moving average of the number of positive anchors: (), float64. A buffer, so
            that whoever saves or restores buffers has it; not persistent, since published files
            do not contain it.
    """

    loss_normalizer: Tensor

    # wraps: the signature, which configs are checked against, is Detectron2's.
    @functools.wraps(meta_arch.RetinaNet.__init__)  # type: ignore[misc]
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        initial = torch.tensor(INITIAL_NORMALIZER, dtype=torch.float64)
        self.register_buffer("loss_normalizer", initial, persistent=False)

    def _ema_update(
        self, name: str, value: float, initial_value: float, momentum: float = 0.9
    ) -> float:
        """Update the moving average, by the mean over the processes. Returns the new average."""
        if dist.is_initialized():
            mean = torch.tensor(float(value), device=self.device)
            dist.all_reduce(mean)
            value = mean.item() / dist.get_world_size()
        average: Tensor = self.get_buffer(name)
        average.mul_(momentum).add_(value * (1 - momentum))
        return average.item()

    def _decode_per_level_predictions(
        self,
        anchors: Boxes,
        pred_scores: Tensor,
        pred_deltas: Tensor,
        *limits: float | tuple[int, int],
    ) -> Instances:
        instances = super()._decode_per_level_predictions(
            anchors, pred_scores, pred_deltas, *limits
        )
        instances.pred_boxes.clip(instances.image_size)
        return instances
