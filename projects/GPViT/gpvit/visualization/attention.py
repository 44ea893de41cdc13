"""What a detector computes on an image: attention of its group tokens, and pyramid features.

Inference is not affected: the hooks exist only while one image is inspected.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ..modeling import ImageClassifier
from ..modeling.backbone.gpvit import GPViT, GroupPropagationBlock
from ..predictor import ImageInput, Predictor, as_rgb
from ..utils.errors import UserError

TOKEN_STRIDE = 8  # pixels


class GroupMaps(NamedTuple):
    """Attention between the n group tokens of a block and its H x W cells, averaged over the heads.

    Attributes:
        grouping: (..., n, H, W): attention of each token to each cell; sums to 1 over the cells.
        ungrouping: (..., n, H, W): attention of each cell to each token; sums to 1 over the tokens.
    """

    grouping: Tensor
    ungrouping: Tensor


class Inspection(NamedTuple):
    """Attention and features of an image, cropped to the image without its padding.

    Attributes:
        size: height and width of the resized image, in pixels.
        groups: attention of each group propagation block by block number, at stride 8.
        levels: feature maps of the pyramid by name, (C, H, W).
        strides: their strides in pixels.
    """

    size: tuple[int, int]
    groups: dict[int, GroupMaps]
    levels: dict[str, Tensor]
    strides: dict[str, int]


@torch.no_grad()
def inspect(predictor: Predictor, image: ImageInput) -> Inspection:
    """Run a detector's backbone and pyramid on an image, once.

    Raises:
        UserError: the image cannot be read, or the model has no GPViT.
    """
    model: Any = predictor.model  # a Detectron2 model, which has no type annotations
    images = model.preprocess_image([{"image": predictor.resize(as_rgb(image))}])
    height, width = images.image_sizes[0]

    def cropped(maps: Tensor, stride: int) -> Tensor:
        """(1, C, H, W) -> (C, ceil(height / stride), ceil(width / stride)) on the CPU."""
        return maps[0, :, : -(-height // stride), : -(-width // stride)].float().cpu()

    with watch_groups(gpvit_in(model)) as watched:
        features = model.backbone(images.tensor)
    groups = {}
    for number, maps in watched.items():
        groups[number] = GroupMaps(
            cropped(maps.grouping, TOKEN_STRIDE), cropped(maps.ungrouping, TOKEN_STRIDE)
        )
    strides = {name: shape.stride for name, shape in model.backbone.output_shape().items()}
    levels = {name: cropped(level, strides[name]) for name, level in features.items()}
    return Inspection((height, width), groups, levels, strides)


def visible_part(predictor: Predictor, image: np.ndarray) -> np.ndarray:
    """Return what the maps of :func:`inspect` cover: the image, or the center for a classifier.

    Args:
        predictor: of the inspection.
        image: (H, W, 3), RGB, uint8.

    Returns:
        (h, w, 3), RGB, uint8.
    """
    if not isinstance(predictor.model, ImageClassifier):
        return image
    resized = predictor.resize(image).permute(1, 2, 0).numpy()  # (3, h, w) -> (h, w, 3)
    return resized[:, :, predictor.channels]  # RGB -> RGB, BGR -> RGB


def gpvit_in(model: nn.Module) -> GPViT:
    """Return the GPViT in a detector; raise a UserError if there is none."""
    for module in model.modules():
        if isinstance(module, GPViT):
            return module
    raise UserError(f"the model ({type(model).__name__}) contains no GPViT, so no group tokens")


@contextmanager
def watch_groups(net: GPViT) -> Iterator[dict[int, GroupMaps]]:
    """Yield a dict that each forward pass fills with the (B, n, H, W) maps of each block."""
    maps: dict[int, GroupMaps] = {}

    def hook_of(
        number: int, block: GroupPropagationBlock
    ) -> Callable[[nn.Module, tuple[Tensor, Tensor]], None]:
        def hook(_: nn.Module, inputs: tuple[Tensor, Tensor]) -> None:
            x, groups = inputs
            # (B, heads, n, H, W) -> (B, n, H, W)
            grouping = block.group.attention_weights(block.group_token, x).mean(1)
            ungrouping = block.ungroup.attention_weights(x, groups).mean(1)
            maps[number] = GroupMaps(grouping, ungrouping)

        return hook

    hooks: list[Any] = []
    for number, block in enumerate(net.blocks):
        if isinstance(block, GroupPropagationBlock):
            hooks.append(block.ungroup.register_forward_pre_hook(hook_of(number, block)))
    try:
        yield maps
    finally:
        for hook in hooks:
            hook.remove()


def strongest(maps: GroupMaps) -> list[int]:
    """All tokens, sorted by the number of cells that attend to them most, then by attention."""
    attention = maps.ungrouping.flatten(1)  # (n, HW)
    cells = attention.argmax(0).bincount(minlength=len(attention))
    order = [(-cells[token].item(), -attention[token].sum().item()) for token in range(len(cells))]
    return sorted(range(len(attention)), key=order.__getitem__)


def principal_colors(level: Tensor) -> tuple[Tensor, float]:
    """Show a feature map's first three principal components as red, green and blue.

    Each is scaled from its 1st to its 99th percentile. Signs are such that the largest weight of
    each component is positive.

    Args:
        level: (C, H, W).

    Returns:
        Colors (H, W, 3) from 0 to 1, and the fraction of the variance that they explain.
    """
    cells = level.double().flatten(1).T  # (HW, C)
    cells = cells - cells.mean(0)
    variances, components = torch.linalg.eigh(cells.T @ cells)  # ascending
    components = components[:, -3:].flip(1)  # (C, 3), the largest variance first
    largest = components.gather(0, components.abs().argmax(0, keepdim=True))  # (1, 3)
    colors = cells @ (components * largest.sign())  # (HW, 3)
    low, high = colors.quantile(torch.tensor([0.01, 0.99], dtype=torch.float64), dim=0)
    colors = ((colors - low) / (high - low).clamp(min=1e-12)).clamp(0, 1)
    explained = variances[-3:].sum() / variances.sum().clamp(min=1e-12)
    return colors.float().unflatten(0, level.shape[1:]), explained.item()
