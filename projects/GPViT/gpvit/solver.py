"""The published schedule and Detectron2's layer-wise learning-rate decay, in the form configs need."""

from collections.abc import Callable, Sequence
from functools import partial

from detectron2.modeling.backbone.vit import get_vit_lr_decay_rate
from detectron2.solver import WarmupParamScheduler
from fvcore.common.param_scheduler import MultiStepParamScheduler

RESOLUTION = 1_000_000  # the scheduler wants whole milestones; in iterations, those of a very short training would collide


def multistep_schedule(
    max_iter: int, milestones: Sequence[float], warmup_iters: int, warmup_factor: float
) -> WarmupParamScheduler:
    """Learning rate over its base: linear warm-up, then a tenth of it after each milestone.

    Args:
        max_iter: length of the training in iterations.
        milestones: fractions of ``max_iter``.
        warmup_iters: iterations of warm-up, at most a tenth of the training.
        warmup_factor: where the warm-up starts.
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
    """Parameter name -> learning-rate factor, ``rate`` to the power of the blocks above it (ViTDet's rule)."""
    return partial(get_vit_lr_decay_rate, lr_decay_rate=rate, num_layers=num_layers)
