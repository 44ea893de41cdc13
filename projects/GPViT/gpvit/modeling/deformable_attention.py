"""Multi-scale deformable attention (Zhu et al., ICLR 2021), and two samplers for it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Height and width of each level, in cells. The tokens of all levels form one sequence, level after
# level, each in row-major order.
Shapes = Sequence[tuple[int, int]]


def cell_centers(shapes: Shapes, device: torch.device) -> Tensor:
    """Centers (x, y) of all cells, in normalized coordinates: (number of cells, 2)."""
    grids = []
    for height, width in shapes:
        y = (torch.arange(height, device=device) + 0.5) / height
        x = (torch.arange(width, device=device) + 0.5) / width
        grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)  # (height, width, 2)
        grids.append(grid.flatten(0, 1))
    return torch.cat(grids)


def sample_by_bag(value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
    """Weighted sums of bilinear samples; a sample is zero outside of the image.

    A bilinear sample is a weighted sum of four cells, so all samples of one query and head are a
    single weighted sum of rows of ``value``. That is what an embedding bag computes, without
    storing the samples.

    Args:
        value: (B, M, heads, C / heads), the M cells of all levels.
        shapes: of the levels.
        locations: (B, L, heads, levels, points, 2), x and y in normalized coordinates.
        weights: (B, L, heads, levels, points).

    Returns:
        (B, L, C), summed over levels and points.
    """
    rows, factors = [], []
    for level_rows, level_factors in _samples(value, shapes, locations, weights):
        rows.append(level_rows.flatten(3))  # (B, L, heads, 4 * points)
        factors.append(level_factors.flatten(3))
    samples = F.embedding_bag(
        torch.cat(rows, dim=-1).flatten(0, 2),  # (B * L * heads, 4 * levels * points)
        value.flatten(0, 2),  # (B * M * heads, C / heads)
        mode="sum",
        per_sample_weights=torch.cat(factors, dim=-1).flatten(0, 2),
    )
    return samples.view(*locations.shape[:2], -1)


def sample_by_row(value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
    """:func:`sample_by_bag` by operations that ONNX has. Stores a fourth of a level's rows.

    There is no GridSample among them, which TensorRT computes wrongly (its issues 4646 and 4813).
    """
    table = value.flatten(0, 2)  # (B * M * heads, C / heads)
    total = value.new_zeros(())
    for rows, factors in _samples(value, shapes, locations, weights):
        for neighbor in range(4):
            cells = F.embedding(rows[..., neighbor], table)  # (B, L, heads, points, C / heads)
            total = total + (cells * factors[..., neighbor, None]).sum(-2)
    return total.flatten(2)  # (B, L, heads, C / heads) -> (B, L, C)


def _samples(
    value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the rows of ``value.flatten(0, 2)`` that each level's samples consist of.

    Args:
        value, shapes, locations, weights: as in :func:`sample_by_bag`.

    Yields:
        Rows (int32) and their factors, each (B, L, heads, points, 4).
    """
    B, M, heads, _ = value.shape
    device = value.device
    # A cell's number in the batch is image * M + level's first cell + y * width + x, and its row in
    # the table (B * M * heads, C / heads) is number * heads + head. `first` is the number of each
    # image's first cell in the present level; it broadcasts to (B, L, heads, points, 2).
    images = torch.arange(B, device=device, dtype=torch.int32)
    first = (images * M)[:, None, None, None, None]
    head = torch.arange(heads, device=device, dtype=torch.int32)[:, None, None]
    for level, (height, width) in enumerate(shapes):
        # The center of cell 0 is at 0.5 / width, so cell positions are x * width - 0.5.
        x, x_factor = _neighbors(locations[..., level, :, 0] * width - 0.5, width)
        y, y_factor = _neighbors(locations[..., level, :, 1] * height - 0.5, height)
        y_factor = y_factor * weights[..., level, :, None]
        # Rows times columns: the four cells of each point, (B, L, heads, points, 2, 2).
        cell = (y * width + first)[..., :, None] + x[..., None, :]
        factor = y_factor[..., :, None] * x_factor[..., None, :]
        yield cell.flatten(-2) * heads + head, factor.flatten(-2)
        first = first + height * width


def _neighbors(position: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The two cells next to a position on an axis, and their factors in linear interpolation.

    Args:
        position: any shape, in cells.
        size: number of cells of the axis.

    Returns:
        Cells (int32) and factors, each with a further last dimension of two. A cell outside of the
        axis is clamped to it and has the factor zero.
    """
    below = position.floor()
    fraction = position - below
    cells = torch.stack([below, below + 1], dim=-1)
    factors = torch.stack([1 - fraction, fraction], dim=-1)
    factors = factors * ((cells >= 0) & (cells < size))
    return cells.clamp(0, size - 1).to(torch.int32), factors


SAMPLERS = {"bag": sample_by_bag, "row": sample_by_row}


class DeformableAttention(nn.Module):
    """Multi-scale deformable attention (Zhu et al., ICLR 2021).

    Each query attends to a few points around its own place in every level; it predicts offsets and
    weights of these points. Under autocast it runs in float32, as published.

    Attributes:
        sampler: a key of :data:`SAMPLERS`: "bag", which needs less memory, or "row" for ONNX.
    """

    def __init__(self, dim: int, num_heads: int, num_levels: int, num_points: int) -> None:
        super().__init__()
        self.sampler = "bag"
        self.sampling = (num_heads, num_levels, num_points)
        self.offsets = nn.Linear(dim, 2 * num_heads * num_levels * num_points)
        self.weights = nn.Linear(dim, num_heads * num_levels * num_points)
        self.value = nn.Linear(dim, dim)
        self.out = nn.Linear(dim, dim)

    def forward(
        self, query: Tensor, query_shapes: Shapes, feature: Tensor, feature_shapes: Shapes
    ) -> Tensor:
        """(B, L, C), (B, M, C) -> (B, L, C): tokens of one or more levels of the same image."""
        device = query.device
        autocasts = torch.amp.is_autocast_available(device.type)  # not on "meta"
        with torch.autocast(device.type, enabled=False) if autocasts else nullcontext():
            dtype = self.value.weight.dtype
            query, feature = query.to(dtype), feature.to(dtype)
            num_heads = self.sampling[0]
            offsets = self.offsets(query).unflatten(-1, (*self.sampling, 2))  # x, y in cells
            # Stacked one by one: torch.export would take a list of the sides for constants.
            sides = []
            for height, width in feature_shapes:
                sides += [offsets.new_full((), width), offsets.new_full((), height)]
            centers = cell_centers(query_shapes, device)[:, None, None, None]
            locations = centers + offsets / torch.stack(sides).view(-1, 1, 2)
            weights = self.weights(query).unflatten(-1, (num_heads, -1)).softmax(-1)
            weights = weights.view(locations.shape[:-1])  # (B, L, heads, levels, points)
            value = self.value(feature).unflatten(-1, (num_heads, -1))
            sample = SAMPLERS[self.sampler]
            return self.out(sample(value, feature_shapes, locations, weights))


@contextmanager
def sampling_by_row(model: nn.Module) -> Iterator[None]:
    """Set the sampler of all deformable attention in a model to "row", as ONNX needs."""
    modules = [module for module in model.modules() if isinstance(module, DeformableAttention)]
    before = [module.sampler for module in modules]
    for module in modules:
        module.sampler = "row"
    try:
        yield
    finally:
        for module, sampler in zip(modules, before):
            module.sampler = sampler
