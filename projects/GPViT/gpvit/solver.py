"""Learning-rate schedule of the official recipe, and layer-wise learning-rate decay."""

from collections.abc import Callable, Sequence
from functools import partial

from detectron2.modeling.backbone.vit import get_vit_lr_decay_rate
from detectron2.solver import WarmupParamScheduler
from fvcore.common.param_scheduler import MultiStepParamScheduler

# MultiStepParamScheduler takes integer milestones. As iterations, those of a very short run could
# coincide, so they are millionths of the run.
RESOLUTION = 1_000_000


def multistep_schedule(
    max_iter: int, milestones: Sequence[float], warmup_iters: int, warmup_factor: float
) -> WarmupParamScheduler:
    """Factor of the learning rate: linear warmup, then divided by 10 at each milestone.

    Args:
        max_iter: length of the run in iterations.
        milestones: fractions of ``max_iter``.
        warmup_iters: length of the warmup in iterations; at most a tenth of the run is used.
        warmup_factor: factor at the first iteration.
    """
    return WarmupParamScheduler(
        MultiStepParamScheduler(
            values=[0.1**i for i in range(len(milestones) + 1)],
            milestones=[round(milestone * RESOLUTION) for milestone in milestones],
            num_updates=RESOLUTION,
        ),
        warmup_factor=warmup_factor,
        warmup_length=min(warmup_iters / max_iter, 0.1),
    )


def layer_decay(rate: float, num_layers: int) -> Callable[[str], float]:
    """Return a function from a parameter's name to the factor of its learning rate.

    As in ViTDet, the factor is ``rate`` to the power of the number of layers above the parameter.
    """
    return partial(get_vit_lr_decay_rate, lr_decay_rate=rate, num_layers=num_layers)
