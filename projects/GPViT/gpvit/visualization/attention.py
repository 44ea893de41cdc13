"""What a detector sees in a picture: where its group tokens look, and the maps of its pyramid.

Nothing here takes part in detecting: the hooks are there while one picture is looked at, and gone after it.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..modeling.backbone.gpvit import GPViT, GroupPropagationBlock
from ..predictor import ImageInput, Predictor, as_rgb
from ..utils.errors import UserError

TOKEN_STRIDE = 8  # pixels


class GroupMaps(NamedTuple):
    """Attention between the n group tokens of a block and its map of H x W cells, the mean over the heads.

    Attributes:
        gathered: (..., n, H, W), how much each token takes of each cell; sums to 1 over the map.
        given: (..., n, H, W), how much each cell takes of each token; sums to 1 over the tokens.
    """

    gathered: Tensor
    given: Tensor


class Inspection(NamedTuple):
    """What was seen in a picture. All maps end with the picture, of whose padding they show nothing.

    Attributes:
        size: height and width of the picture as the model took it, in pixels.
        groups: the maps of each group propagation block, by its number, at stride 8.
        levels: the pyramid's maps by name, (C, H, W).
        strides: their strides in pixels.
    """

    size: tuple[int, int]
    groups: dict[int, GroupMaps]
    levels: dict[str, Tensor]
    strides: dict[str, int]


@torch.no_grad()
def inspect(predictor: Predictor, picture: ImageInput) -> Inspection:
    """Runs a detector's backbone and pyramid on a picture, once. Raises a UserError if the picture cannot be read."""
    model: Any = predictor.model  # one of Detectron2's, which have no types
    images = model.preprocess_image([{"image": predictor.resize(as_rgb(picture))}])
    height, width = images.image_sizes[0]

    def cropped(maps: Tensor, stride: int) -> Tensor:
        """(1, C, H, W) -> (C, h, w) on the CPU; the last cells may reach over the picture's edge."""
        return maps[0, :, : -(-height // stride), : -(-width // stride)].float().cpu()

    with watch_groups(gpvit_in(model)) as groups:
        levels = model.backbone(images.tensor)
    strides = {name: shape.stride for name, shape in model.backbone.output_shape().items()}
    return Inspection(
        (height, width),
        {
            number: GroupMaps(*(cropped(kind, TOKEN_STRIDE) for kind in maps))
            for number, maps in groups.items()
        },
        {name: cropped(level, strides[name]) for name, level in levels.items()},
        strides,
    )


def gpvit_in(model: nn.Module) -> GPViT:
    """The GPViT in a detector. Raises a UserError if there is none."""
    found = next((module for module in model.modules() if isinstance(module, GPViT)), None)
    if found is None:
        raise UserError(
            f"the model ({type(model).__name__}) has no GPViT in it, whose group tokens could be looked at"
        )
    return found


@contextmanager
def watch_groups(net: GPViT) -> Iterator[dict[int, GroupMaps]]:
    """Fills a dict with the maps of each group propagation block, (B, n, H, W), while pictures go through the net."""
    maps: dict[int, GroupMaps] = {}

    def hook_of(
        number: int, block: GroupPropagationBlock
    ) -> Callable[[nn.Module, tuple[Tensor, Tensor]], None]:
        def hook(_: nn.Module, inputs: tuple[Tensor, Tensor]) -> None:
            x, groups = inputs
            gathered, given = (
                block.group.weights(block.group_token, x),
                block.ungroup.weights(x, groups),
            )
            maps[number] = GroupMaps(gathered.mean(1), given.mean(1))

        return hook

    hooks: list[Any] = [
        block.ungroup.register_forward_pre_hook(hook_of(number, block))
        for number, block in enumerate(net.blocks)
        if isinstance(block, GroupPropagationBlock)
    ]
    try:
        yield maps
    finally:
        for hook in hooks:
            hook.remove()


def strongest(maps: GroupMaps) -> list[int]:
    """All tokens, first those that give more than the others to the most cells; among equals, those that give more."""
    given = maps.given.flatten(1)  # (n, HW)
    cells = given.argmax(0).bincount(minlength=len(given))
    return sorted(
        range(len(given)), key=lambda token: (-cells[token].item(), -given[token].sum().item())
    )


def principal_colours(level: Tensor) -> tuple[Tensor, float]:
    """A map's three main components as red, green and blue, and their share of its variance: (C, H, W) -> (H, W, 3), 0 to 1.

    Each goes from its 1st to its 99th percentile. Signs are such that the largest weight of each is positive.
    """
    cells = level.double().flatten(1).T  # (HW, C)
    cells = cells - cells.mean(0)
    variances, components = torch.linalg.eigh(cells.T @ cells)  # ascending
    components = components[:, -3:].flip(1)  # (C, 3)
    largest = components.gather(0, components.abs().argmax(0, keepdim=True))
    colours = cells @ (components * largest.sign())
    low, high = colours.quantile(torch.tensor([0.01, 0.99], dtype=torch.float64), dim=0)
    colours = ((colours - low) / (high - low).clamp(min=1e-12)).clamp(0, 1)
    share = variances[-3:].sum() / variances.sum().clamp(min=1e-12)
    return colours.float().unflatten(0, level.shape[1:]), share.item()
