"""What the published detectors do differently from Detectron2's, in the smallest subclasses."""

import math

import torch
import torch.distributed as dist
from detectron2.layers import Conv2d, get_norm
from detectron2.modeling import meta_arch
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.meta_arch import retinanet
from detectron2.structures import Boxes, Instances
from fvcore.nn import sigmoid_focal_loss
from torch import Tensor, nn


class ClampedBox2BoxTransform(Box2BoxTransform):
    """Limits how much smaller a box may become, too, not only how much larger: to 1000 / 16 times either way."""

    def apply_deltas(self, deltas: Tensor, boxes: Tensor) -> Tensor:
        """Args: deltas: (N, 4k), boxes: (N, 4). Returns: (N, 4k)."""
        smallest = deltas.new_tensor(
            [-math.inf, -math.inf, *(-self.scale_clamp * w for w in self.weights[2:])]
        )
        return super().apply_deltas(
            torch.maximum(deltas.unflatten(1, (-1, 4)), smallest).flatten(1), boxes
        )


class LastLevelNormP6P7(nn.Module):
    """p6 from p5 and p7 from p6, by convolutions with a norm and without the ReLU of Detectron2's LastLevelP6P7."""

    num_levels = 2
    in_feature = "p5"

    def __init__(self, channels: int, norm: str) -> None:
        super().__init__()
        self.p6, self.p7 = (
            Conv2d(
                channels,
                channels,
                3,
                stride=2,
                padding=1,
                bias=False,
                norm=get_norm(norm, channels),
            )
            for _ in range(2)
        )

    def forward(self, p5: Tensor) -> list[Tensor]:
        p6 = self.p6(p5)
        return [p6, self.p7(p6)]


# The compiled form's first results differ from later ones in the last bits, so that no training could be resumed exactly.
retinanet.sigmoid_focal_loss_jit = sigmoid_focal_loss


class RetinaNet(meta_arch.RetinaNet):
    """Clips boxes to the image before non-maximum suppression, as Detectron2's R-CNNs do, not after it.

    Its losses are divided by the same number in all processes.
    """

    def _ema_update(self, name: str, value: float, *args: float) -> float:
        if dist.is_initialized():
            mean = torch.tensor(float(value), device=self.device)
            dist.all_reduce(mean)
            value = mean.item() / dist.get_world_size()
        return super()._ema_update(name, value, *args)

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
