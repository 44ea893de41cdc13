"""Parameters, FLOPs, run time and memory of each part of a model.

A FLOP is one multiplication or one addition, so a multiply-accumulate is two FLOPs (papers often
call it one). Matrix products, convolutions, attention and the sampling of deformable attention are
counted; norms, activations, resizing, box pooling and non-maximum suppression are not. The box
head and the mask head are counted for the largest number of boxes that the config passes to them.
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

from ..modeling import GPViT, GPViTAdapter, ImageClassifier, SemanticSegmentor
from .errors import UserError
from .profiler import Meter

PARTS = (
    *("backbone", "adapter", "pyramid", "decode head"),
    *("dense head", "box head", "mask head", "classifier head", "rest"),
)
RUNS = 5


def parts_of(model: Any) -> dict[str, list[nn.Module]]:
    """Return the modules of each part, outer parts first.

    Parts are nested: a module inside a module of a later part belongs to that later part. The
    dense head is the RPN or RetinaNet's head, the classifier head pooling and linear layer. "rest"
    is everything around the other parts: image normalization and padding, RetinaNet's box
    selection, pasting masks into the image, resizing logits.

    Raises:
        UserError: the model has no backbone.
    """
    outer = getattr(model, "backbone", None)  # the pyramid, or the backbone itself
    if outer is None:
        raise UserError(f"{type(model).__name__} has no backbone; use a model from configs/")
    inner = getattr(outer, "bottom_up", None) or getattr(outer, "net", None)
    adapter = inner if isinstance(inner, GPViTAdapter) else None
    net = adapter.net if adapter else inner or outer
    parts = {
        "rest": [model],
        "pyramid": [outer] if inner else [],
        "adapter": [adapter] if adapter else [],
        "backbone": [net],
    }
    if isinstance(net, GPViT):
        # An adapter calls the stem and the blocks one by one and never the backbone's own forward.
        parts["backbone"] += [net.patch_embed, *net.blocks]
    if isinstance(model, ImageClassifier):
        return parts | {"classifier head": [model.neck, model.head]}
    if hasattr(model, "sem_seg_head"):
        # In inference, the layers of the head are called one by one and not its own forward.
        return parts | {"decode head": list(model.sem_seg_head.modules())}
    if not hasattr(model, "roi_heads"):
        return parts | {"dense head": [model.head]}
    heads = model.roi_heads
    mask_modules = [heads.mask_pooler, heads.mask_head] if heads.mask_on else []
    return parts | {
        "dense head": [model.proposal_generator],
        "box head": [heads],
        "mask head": mask_modules,
    }


def parameters(model: nn.Module) -> dict[str, int]:
    """Return the number of parameters of each part."""
    owner: dict[nn.Parameter, str] = {}
    for part, modules in parts_of(model).items():
        for module in modules:
            # Later parts are inside earlier ones and take their parameters over.
            owner.update(dict.fromkeys(module.parameters(), part))
    counts = dict.fromkeys(PARTS, 0)
    for weight, part in owner.items():
        counts[part] += weight.numel()
    return counts


@torch.no_grad()
def flops(model: Any, height: int, width: int) -> dict[str, float]:
    """Return the GFLOPs of each part for one image.

    Args:
        model: on the device "meta", where only shapes are computed.
        height, width: of the image, in pixels, before padding.
    """
    backbone = model.backbone
    divisor = (
        backbone.padding_constraints.get("size_divisibility") or backbone.size_divisibility or 1
    )
    # -(-n // divisor) is n / divisor rounded up.
    padded_height, padded_width = -(-height // divisor) * divisor, -(-width // divisor) * divisor
    image = torch.empty(1, 3, padded_height, padded_width, device="meta")
    with flop_counter() as counter:
        levels = model.backbone(image)

    # The counter's keys are paths such as "FPN.bottom_up.net"; the root has no trailing dot.
    counted = counter.get_flop_counts()
    root = type(model.backbone).__name__
    paths = {
        module: f"{root}.{name}".rstrip(".") for name, module in model.backbone.named_modules()
    }

    def gflops(module: nn.Module) -> float:
        """GFLOPs of a module together with its submodules."""
        return sum(counted[paths[module]].values()) / 1e9

    parts, counts = parts_of(model), dict.fromkeys(PARTS, 0.0)
    net, *net_parts = parts["backbone"]
    counts["backbone"] = sum(map(gflops, net_parts or [net]))
    # From the inside out: each part is what its module has more than all parts inside it.
    for part in ("adapter", "pyramid"):
        for module in parts[part]:
            counts[part] = gflops(module) - sum(counts.values())
    if isinstance(model, ImageClassifier):
        head = nn.Sequential(model.neck, model.head)
        return counts | {"classifier head": count(head, levels[model.in_feature])}
    if hasattr(model, "sem_seg_head"):
        return counts | {"decode head": count(model.sem_seg_head.layers, levels)}
    return counts | head_flops(model, list(levels.values()))


def head_flops(model: Any, levels: list[Tensor]) -> dict[str, float]:
    """Return the GFLOPs of each head for the feature maps of one image."""
    if not hasattr(model, "roi_heads"):
        return {"dense head": count(model.head, levels)}
    heads = model.roi_heads
    if isinstance(heads.box_head, nn.ModuleList):  # Cascade R-CNN
        stages = list(zip(heads.box_head, heads.box_predictor))
    else:
        stages = [(heads.box_head, heads.box_predictor)]

    def roi_features(number: int, pooler: Any) -> Tensor:
        """(number, C, pooled height, pooled width)"""
        return levels[0].new_empty(number, levels[0].shape[1], *pooler.output_size)

    box_features = roi_features(model.proposal_generator.post_nms_topk[False], heads.box_pooler)
    counts = {"dense head": count(model.proposal_generator.rpn_head, levels), "box head": 0.0}
    for stage in stages:
        counts["box head"] += count(nn.Sequential(*stage), box_features)
    if heads.mask_on:
        max_detections = stages[-1][1].test_topk_per_image
        mask_features = roi_features(max_detections, heads.mask_pooler)
        counts["mask head"] = count(heads.mask_head.layers, mask_features)
    return counts


def count(function: Callable[[Any], Any], inputs: Any) -> float:
    """Return the GFLOPs of a call."""
    with flop_counter() as counter:
        function(inputs)
    return counter.get_total_flops() / 1e9


@contextmanager
def flop_counter() -> Iterator[FlopCounterMode]:
    """Count FLOPs, those of deformable attention included."""
    aten = torch.ops.aten
    sampling = dict.fromkeys((aten._embedding_bag, aten._embedding_bag_forward_only), bag_flops)
    counter = FlopCounterMode(display=False, custom_mapping=sampling)
    # The counter does not know every fused attention kernel, so attention runs as matrix products.
    with counter, sdpa_kernel(SDPBackend.MATH):
        yield counter


def bag_flops(
    weight_shape: torch.Size, indices_shape: torch.Size, *args: Any, **kwargs: Any
) -> int:
    """FLOPs of deformable attention: one multiply-accumulate per channel of each sampled cell.

    The arguments are those of ``aten::_embedding_bag``: weight (cells, channels), indices (any
    shape).
    """
    return 2 * indices_shape.numel() * weight_shape[1]


def build_on_meta(model_config: DictConfig) -> nn.Module:
    """Build a detector on the device "meta" (shapes without data), in evaluation mode."""
    try:
        with torch.device("meta"):
            return instantiate(model_config).eval()
    except RuntimeError:  # Detectron2's Swin and ViT read values of tensors when they are built
        return instantiate(model_config).to("meta").eval()


@torch.no_grad()
def costs(
    model: nn.Module, height: int, width: int
) -> tuple[dict[str, float], dict[str, float], int]:
    """Measure inference on one image.

    The weights of the classification layer are enlarged, so that a randomly initialized model
    returns as many objects as it may.

    Returns:
        The median seconds of each part, its peak memory in MiB above what was allocated before
        the image was read, and the number of detected objects. A segmentation model returns class
        maps.
    """
    device = next(model.parameters()).device.type
    for name, weight in model.named_parameters():
        if name.endswith("cls_score.weight"):
            nn.init.normal_(weight)
    if isinstance(model, SemanticSegmentor):
        model.class_map = True
    meters: dict[str, list[Meter]] = {}
    for part, modules in parts_of(model).items():
        meters[part] = [Meter(module, device) for module in modules]
    image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8)
    for _ in range(1 + RUNS):
        output = model([{"image": image, "height": height, "width": width}])[0]

    seconds, peaks = dict.fromkeys(PARTS, 0.0), dict.fromkeys(PARTS, 0.0)
    for part, part_meters in meters.items():
        part_peaks = []
        for meter in part_meters:
            if meter.seconds:  # some modules are never called themselves, only their submodules
                seconds[part] += statistics.median(meter.own_seconds[1:])  # [0] is the warm-up
                part_peaks.append(max(meter.own_peaks[1:]))
        peaks[part] = max(part_peaks, default=0.0)
    return seconds, peaks, len(output.get("instances", ()))
