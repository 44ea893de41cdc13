"""The parts of a detector: what each holds, computes and takes.

A FLOP is a multiplication or an addition: a multiply-accumulate is two of them (papers often call it one). Counted are
matrix products, convolutions, attention and what deformable attention looks up, not norms, activations, resizing, the
pooling of boxes or their suppression. As many boxes go through the box head, and masks through the mask head, as the
config lets through at most.
"""

import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from detectron2.config import instantiate
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from .errors import UserError
from .profiler import Meter

PARTS = ("backbone", "adapter", "pyramid", "dense head", "box head", "mask head", "rest")
RUNS = 5


def parts_of(model: Any) -> dict[str, list[nn.Module]]:
    """The modules of each part, outer parts first: what is inside of a later part's module is that part's.

    The dense head is the RPN or RetinaNet's. "rest" is what is around all of them: scaling and padding images, RetinaNet's
    choice of boxes, pasting masks into the image.

    Raises:
        UserError: the model is none of this project's detectors.
    """
    pyramid = getattr(model, "backbone", None)
    adapter = getattr(pyramid, "bottom_up", None)
    net = getattr(adapter or pyramid, "net", None)
    if net is None:
        raise UserError(
            f"the model ({type(model).__name__}) is no detector with a GPViT below a pyramid, as in configs/"
        )
    parts = {"rest": [model], "pyramid": [pyramid], "adapter": [adapter] if adapter else []}
    parts["backbone"] = [net, net.patch_embed, *net.blocks]  # an adapter calls these, not the whole
    if not hasattr(model, "roi_heads"):
        return parts | {"dense head": [model.head]}
    heads = model.roi_heads
    masks = [heads.mask_pooler, heads.mask_head] if heads.mask_on else []
    return parts | {
        "dense head": [model.proposal_generator],
        "box head": [heads],
        "mask head": masks,
    }


def parameters(model: nn.Module) -> dict[str, int]:
    """Number of parameters of each part."""
    owner = {
        weight: part
        for part, modules in parts_of(model).items()
        for module in modules
        for weight in module.parameters()
    }
    counts = dict.fromkeys(PARTS, 0)
    for weight, part in owner.items():
        counts[part] += weight.numel()
    return counts


@torch.no_grad()
def flops(model: Any, height: int, width: int) -> dict[str, float]:
    """1e9 FLOPs of each part for one image; the model must be on the device "meta", where nothing is computed."""
    step = model.backbone.size_divisibility
    image = torch.empty(1, 3, -(-height // step) * step, -(-width // step) * step, device="meta")
    with flop_counter() as counter:
        levels = model.backbone(image)
    of_module = {
        name: sum(of_kind.values()) / 1e9 for name, of_kind in counter.get_flop_counts().items()
    }
    root = type(model.backbone).__name__
    names = {
        module: f"{root}.{name}".rstrip(".") for name, module in model.backbone.named_modules()
    }
    parts, counts = parts_of(model), dict.fromkeys(PARTS, 0.0)
    counts["backbone"] = sum(of_module[names[module]] for module in parts["backbone"][1:])
    for part in ("adapter", "pyramid"):
        for module in parts[part]:
            counts[part] = of_module[names[module]] - sum(counts.values())
    return counts | head_flops(model, list(levels.values()))


def head_flops(model: Any, levels: list[Tensor]) -> dict[str, float]:
    if not hasattr(model, "roi_heads"):
        return {"dense head": count(model.head, levels)}
    heads, cascade = model.roi_heads, isinstance(model.roi_heads.box_head, nn.ModuleList)
    stages = (
        list(zip(heads.box_head, heads.box_predictor))
        if cascade
        else [(heads.box_head, heads.box_predictor)]
    )

    def pooled(number: int, pooler: Any) -> Tensor:
        return levels[0].new_empty(number, levels[0].shape[1], *pooler.output_size)

    boxes = pooled(model.proposal_generator.post_nms_topk[False], heads.box_pooler)
    counts = {
        "dense head": count(model.proposal_generator.rpn_head, levels),
        "box head": sum(count(nn.Sequential(*stage), boxes) for stage in stages),
    }
    if heads.mask_on:
        masks = pooled(stages[-1][1].test_topk_per_image, heads.mask_pooler)
        counts["mask head"] = count(heads.mask_head.layers, masks)
    return counts


def count(function: Callable[[Any], Any], inputs: Tensor | list[Tensor]) -> float:
    """1e9 FLOPs of a call."""
    with flop_counter() as counter:
        function(inputs)
    return counter.get_total_flops() / 1e9


@contextmanager
def flop_counter() -> Iterator[FlopCounterMode]:
    sampling = dict.fromkeys(
        (torch.ops.aten._embedding_bag, torch.ops.aten._embedding_bag_forward_only), bag_flops
    )
    # The spelled-out attention, since the counter does not know every fused one.
    with (
        FlopCounterMode(display=False, custom_mapping=sampling) as counter,
        sdpa_kernel(SDPBackend.MATH),
    ):
        yield counter


def bag_flops(
    weight_shape: torch.Size, indices_shape: torch.Size, *args: Any, **kwargs: Any
) -> int:
    """Deformable attention: one multiply-accumulate for each channel of each cell that is looked up."""
    return 2 * indices_shape.numel() * weight_shape[1]


def built_on_meta(model_config: DictConfig) -> nn.Module:
    """A detector of shapes without numbers, in evaluation."""
    with torch.device("meta"):
        return instantiate(model_config).eval()


@torch.no_grad()
def costs(
    model: nn.Module, height: int, width: int
) -> tuple[dict[str, float], dict[str, float], int]:
    """What inference of one image takes: seconds and peak MiB of each part, and how many objects were found.

    The seconds are medians. A peak is above what was held before the image came. The classes' weights are made large, so
    that a model with random weights finds as much as it may.
    """
    device = next(model.parameters()).device.type
    for name, weight in model.named_parameters():
        if name.endswith("cls_score.weight"):
            nn.init.normal_(weight)
    meters = {
        part: [Meter(module, device) for module in modules]
        for part, modules in parts_of(model).items()
    }
    image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8)
    for _ in range(1 + RUNS):
        found = model([{"image": image, "height": height, "width": width}])[0]["instances"]
    seconds, peaks = dict.fromkeys(PARTS, 0.0), dict.fromkeys(PARTS, 0.0)
    for part, of_part in meters.items():
        called = [meter for meter in of_part if meter.seconds]
        seconds[part] = sum(statistics.median(meter.own_seconds[1:]) for meter in called)
        peaks[part] = max((max(meter.own_peaks[1:]) for meter in called), default=0.0)
    return seconds, peaks, len(found)
