"""Multi-scale deformable attention (Zhu et al., ICLR 2021), and two ways to sample."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import reduce

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Shapes = Sequence[
    tuple[int, int]
]  # height and width of the grids whose tokens follow each other in one sequence


def cell_centres(shapes: Shapes, device: torch.device) -> Tensor:
    """Centres (x, y) of the cells of grids, as shares of the image's width and height: (number of cells, 2)."""
    grids = []
    for height, width in shapes:
        y = (torch.arange(height, device=device) + 0.5) / height
        x = (torch.arange(width, device=device) + 0.5) / width
        grids.append(torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1).flatten(0, 1))
    return torch.cat(grids)


def sample(value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
    """Weighted sums of bilinear samples, which are zero outside of the image.

    A bilinear sample is a weighted sum of four cells, so all samples of a query and head are one weighted sum of rows
    of ``value``: exactly what an embedding bag computes, without ever holding the samples themselves.

    Args:
        value: (B, M, heads, C / heads), the grids of all levels one after the other.
        shapes: of these grids.
        locations: (B, L, heads, levels, points, 2), x and y as shares of the image's width and height.
        weights: (B, L, heads, levels, points).

    Returns:
        (B, L, C), summed over levels and points.
    """
    B, M, heads, _ = value.shape
    device = value.device
    first_row = torch.arange(0, B * M, M, device=device, dtype=torch.int32)[
        :, None, None, None, None
    ]
    head = torch.arange(heads, device=device, dtype=torch.int32)[:, None, None, None]
    rows, factors = [], []
    for level, (height, width) in enumerate(shapes):
        x, x_factor = _neighbours(
            locations[..., level, :, 0] * width - 0.5, width
        )  # each (B, L, heads, points, 2)
        y, y_factor = _neighbours(locations[..., level, :, 1] * height - 0.5, height)
        y_factor = y_factor * weights[..., level, :, None]
        cell = (y * width + first_row)[..., :, None] + x[
            ..., None, :
        ]  # (B, L, heads, points, 2, 2)
        rows.append((cell * heads + head).flatten(3))
        factors.append((y_factor[..., :, None] * x_factor[..., None, :]).flatten(3))
        first_row = first_row + height * width
    samples = F.embedding_bag(
        torch.cat(rows, dim=-1).flatten(0, 2),  # (B * L * heads, 4 * levels * points)
        value.flatten(0, 2),  # (B * M * heads, C / heads)
        mode="sum",
        per_sample_weights=torch.cat(factors, dim=-1).flatten(0, 2),
    )
    return samples.view(B, locations.shape[1], -1)


def _neighbours(position: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The two cells beside a position on an axis of ``size`` cells, and their shares in linear interpolation.

    Each gets a further last dimension of two. Cells that do not exist have the share zero.
    """
    below = position.floor()
    share = position - below
    cells = torch.stack([below, below + 1], dim=-1)
    shares = torch.stack([1 - share, share], dim=-1)
    shares = shares * ((cells >= 0) & (cells < size))
    return cells.clamp(0, size - 1).to(torch.int32), shares


def sample_by_grid(value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
    """:func:`sample` by an operation that ONNX has, at the cost of memory for all samples of a level."""
    heads = value.shape[2]
    of_levels = []
    for level, (x, (height, width)) in enumerate(
        zip(value.split([h * w for h, w in shapes], dim=1), shapes)
    ):
        x = (
            x.unflatten(1, (height, width)).permute(0, 3, 4, 1, 2).flatten(0, 1)
        )  # (B * heads, C / heads, h, w)
        where = (
            2 * locations[:, :, :, level].transpose(1, 2).flatten(0, 1) - 1
        )  # (B * heads, L, points, 2)
        samples = F.grid_sample(x, where, align_corners=False)  # (B * heads, C / heads, L, points)
        of_levels.append(
            (samples * weights[:, :, :, level].transpose(1, 2).flatten(0, 1)[:, None]).sum(-1)
        )
    return (
        reduce(torch.add, of_levels).unflatten(0, (-1, heads)).permute(0, 3, 1, 2).flatten(2)
    )  # (B, L, C)


class DeformableAttention(nn.Module):
    """Multi-scale deformable attention (Zhu et al., ICLR 2021).

    Each query looks at a few points around its own place in every level of the features; where, and with which
    weights, it says itself. Under autocast all of it runs in float32, as published.

    Attributes:
        sample: what samples; :func:`sampling_by_grid` exchanges it.
    """

    sample = staticmethod(sample)

    def __init__(self, dim: int, num_heads: int, num_levels: int, num_points: int) -> None:
        super().__init__()
        self.sampling = (num_heads, num_levels, num_points)
        self.offsets = nn.Linear(dim, 2 * num_heads * num_levels * num_points)
        self.weights = nn.Linear(dim, num_heads * num_levels * num_points)
        self.value = nn.Linear(dim, dim)
        self.out = nn.Linear(dim, dim)

    def forward(
        self, query: Tensor, query_shapes: Shapes, feature: Tensor, feature_shapes: Shapes
    ) -> Tensor:
        """(B, L, C), (B, M, C) -> (B, L, C); both sequences are grids of the same image, one after the other."""
        device = query.device
        autocasts = torch.amp.is_autocast_available(device.type)  # not on "meta"
        with torch.autocast(device.type, enabled=False) if autocasts else nullcontext():
            dtype = self.value.weight.dtype
            query, feature = query.to(dtype), feature.to(dtype)
            offsets = self.offsets(query).unflatten(
                -1, (*self.sampling, 2)
            )  # in cells of the level: x, y
            # Side by side, as torch.export would take the sides of a list for constants.
            sizes = torch.stack(
                [offsets.new_full((), side) for shape in feature_shapes for side in reversed(shape)]
            )
            centres = cell_centres(query_shapes, device)
            locations = centres[:, None, None, None] + offsets / sizes.view(-1, 1, 2)
            weights = self.weights(query).unflatten(-1, (self.sampling[0], -1)).softmax(-1)
            value = self.value(feature).unflatten(-1, (self.sampling[0], -1))
            return self.out(
                self.sample(value, feature_shapes, locations, weights.view(locations.shape[:-1]))
            )


@contextmanager
def sampling_by_grid(model: nn.Module) -> Iterator[None]:
    """Lets all deformable attention in a model sample by :func:`sample_by_grid`."""
    attentions = [module for module in model.modules() if isinstance(module, DeformableAttention)]
    for module in attentions:
        module.sample = sample_by_grid
    try:
        yield
    finally:
        for module in attentions:
            del module.sample  # the class has the other one
