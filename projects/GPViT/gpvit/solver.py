"""Learning-rate schedules and parameter groups of the official recipes, and layer-wise decay."""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from detectron2.modeling.backbone.vit import get_vit_lr_decay_rate
from detectron2.solver import WarmupParamScheduler
from fvcore.common.param_scheduler import MultiStepParamScheduler, ParamScheduler
from torch import nn

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


class WarmupSchedule(ParamScheduler):
    """Factor of the learning rate: a decay, multiplied by a linear warmup.

    Detectron2's warmup interpolates to the value at its end instead.

    Args:
        max_iter: length of the run in iterations.
        warmup_iters: length of the warmup in iterations; at most a tenth of the run is used.
        warmup_factor: factor of the warmup at the first iteration.
    """

    def __init__(self, max_iter: int, warmup_iters: int, warmup_factor: float) -> None:
        self.warmup_length = min(warmup_iters / max_iter, 0.1)  # fraction of the run
        self.warmup_factor = warmup_factor

    def decay(self, where: float) -> float:
        """Return the factor without warmup at a fraction of the run, from 0 to 1."""
        raise NotImplementedError

    def __call__(self, where: float) -> float:
        """Return the factor at a fraction of the run, from 0 to 1."""
        decay = self.decay(where)
        if where >= self.warmup_length:
            return decay
        return decay * (1 - (1 - where / self.warmup_length) * (1 - self.warmup_factor))


class LinearSchedule(WarmupSchedule):
    """Linear decay to 0: the schedule of the official segmentation models."""

    def decay(self, where: float) -> float:
        return 1 - where


class CosineSchedule(WarmupSchedule):
    """Half a cosine from 1 to 0.01: the schedule of the official classifiers."""

    def decay(self, where: float) -> float:
        return 0.01 + 0.99 * (1 + math.cos(math.pi * where)) / 2


NORMS = (nn.LayerNorm, nn.GroupNorm, nn.modules.batchnorm._BatchNorm)
WITHOUT_DECAY = ("pos_embed", "group_token", "level_embed", "query")
DECAY_RULES = ("norms_and_biases", "layer_norms", "named_norms_and_biases")


def parameter_groups(
    model: nn.Module,
    base_lr: float,
    weight_decay: float,
    no_decay: str,
    head_lr_factor: float = 1.0,
    lr_factor_func: Callable[[str], float] | None = None,
) -> list[dict[str, Any]]:
    """Parameter groups of the official models.

    Embeddings, group tokens and the query of attention pooling have no weight decay, nor what
    ``no_decay`` names.

    Args:
        model: a detector, segmentation model or classifier.
        base_lr: learning rate of the backbone.
        weight_decay: of all other parameters.
        no_decay: "norms_and_biases" (SegFormer, classifiers): of all layers but depthwise
            convolutions, whose biases decay; "layer_norms" (UPerNet): all but the one after the
            last block; or "named_norms_and_biases" (detectors): biases, and the norms whose
            official names contain "norm", which are the layer norms and those of the adapter's
            maps.
        head_lr_factor: factor of the learning rate of a segmentation head. If it is not 1, all
            parameters of the head decay.
        lr_factor_func: returns another factor of the learning rate by a parameter's name, such as
            :func:`layer_decay`.

    Raises:
        ValueError: there is no such rule.
    """
    if no_decay not in DECAY_RULES:
        raise ValueError(f"no_decay must be one of {', '.join(DECAY_RULES)}, got {no_decay}")
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for path, module, name, parameter in _parameters(model):
        rate, decay = base_lr, weight_decay
        if path.startswith("sem_seg_head") and head_lr_factor != 1:
            rate *= head_lr_factor
        elif name in WITHOUT_DECAY or _is_exempt(path, module, name, no_decay):
            decay = 0.0
        if lr_factor_func is not None:
            rate *= lr_factor_func(f"{path}.{name}")
        groups.setdefault((rate, decay), []).append(parameter)
    result = []
    for (rate, decay), parameters in groups.items():
        result.append({"params": parameters, "lr": rate, "weight_decay": decay})
    return result


def _parameters(model: nn.Module) -> Iterator[tuple[str, nn.Module, str, nn.Parameter]]:
    """Yield each trained parameter with the path of its module, the module, and its name there."""
    for path, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad:
                yield path, module, name, parameter


def _is_exempt(path: str, module: nn.Module, name: str, no_decay: str) -> bool:
    if no_decay == "layer_norms":
        # The official rule exempts names with "norm", and calls the last norm "ln1".
        return isinstance(module, nn.LayerNorm) and not path.endswith("out_norms.last_feat")
    if no_decay == "named_norms_and_biases":
        is_named = isinstance(module, nn.LayerNorm) or ".norms." in path
        return name == "bias" or (isinstance(module, NORMS) and is_named)
    is_depthwise = isinstance(module, nn.Conv2d) and module.groups == module.in_channels
    return isinstance(module, NORMS) or (name == "bias" and not is_depthwise)
