"""Inference of segmentation models: class maps by strips, sliding windows, scales and flips.

A network returns logits at a fraction of its input's size. The classes of the original image's
pixels are the largest logits after two bilinear resizes, of which each is a product with a matrix
over the rows and one over the columns. Their products are used here: for logits L of a class, the
resized ones are ``R L Cᵀ``, of which a few rows are computed at a time and never kept.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

# Resized logits that are in memory at once: as many as fit into the cache of a CPU.
STRIP, STRIP_ON_GPU = 1 << 19, 1 << 26
BLOCK = 64  # columns of the original image that are computed by one matrix product
KEPT_ROWS = 2  # of a band that the next one's resize needs, too: bilinear weights have two rows


class Prediction(NamedTuple):
    """What a network predicts for an image.

    Attributes:
        logits: (K, h, w).
        rows: (H, h), the resize of the rows to the original image.
        columns: (W, w), that of the columns.
    """

    logits: Tensor
    rows: Tensor
    columns: Tensor


def resize_matrix(old_size: int, new_size: int, like: Tensor) -> Tensor:
    """The matrix that resizes a line by bilinear interpolation: (new_size, old_size).

    ``like``: a tensor of the dtype and on the device of the result.
    """
    unit = torch.eye(old_size, dtype=like.dtype, device=like.device)[None, None]
    size = new_size, old_size
    return F.interpolate(unit, size, mode="bilinear", align_corners=False)[0, 0]


def resize_twice(old_size: int, network_size: int, used: int, new_size: int, x: Tensor) -> Tensor:
    """The matrix from logits to the original image: (new_size, old_size).

    Args:
        old_size: of the logits.
        network_size: of the network's input, to which they are resized first.
        used: part of the input without padding, which is resized to the original image.
        new_size: of the original image.
        x: a tensor of the dtype and on the device of the result.
    """
    to_input = resize_matrix(old_size, network_size, x)[:used]
    with torch.autocast(x.device.type, enabled=False):
        return resize_matrix(used, new_size, x) @ to_input


def class_map(predictions: Sequence[Prediction]) -> Tensor:
    """Return the classes of an image's pixels, (H, W), int64.

    Args:
        predictions: one, or several whose probabilities are averaged.
    """
    logits = predictions[0].logits
    height, width = len(predictions[0].rows), len(predictions[0].columns)
    classes = torch.empty(height, width, dtype=torch.int64, device=logits.device)
    resizes = [ColumnResize(prediction.columns) for prediction in predictions]
    strip_size = STRIP if logits.device.type == "cpu" else STRIP_ON_GPU
    rows = max(1, strip_size // (len(logits) * width))
    with torch.autocast(logits.device.type, enabled=False):
        for top in range(0, height, rows):
            strips = []
            for prediction, resize in zip(predictions, resizes):
                weights = prediction.rows[top : top + rows]
                first, end = _span(weights)
                strips.append(resize(weights[:, first:end] @ prediction.logits[:, first:end]))
            strip = strips[0]
            if len(strips) > 1:
                strip = torch.stack([part.softmax(1) for part in strips]).sum(0)
            classes[top : top + rows] = resizes[0].to_rows(_argmax(strip), width)
    return classes


def _span(weights: Tensor) -> tuple[int, int]:
    """The first column of a matrix that is not zero, and the one behind the last."""
    used = weights.any(dim=0).nonzero()
    return int(used[0]), int(used[-1]) + 1


def _argmax(values: Tensor) -> Tensor:
    """The index of the largest value over dimension 1; of equal ones, the first.

    Faster than ``argmax``, which does not use vector instructions on CPUs.
    """
    K = values.shape[1]
    # Class k counts K - k, so that the first one of equal values counts most.
    dtype = torch.uint8 if K <= 255 else torch.int16
    ranks = torch.arange(K, 0, -1, dtype=dtype, device=values.device)
    is_largest = values == values.amax(1, keepdim=True)
    first = (is_largest.to(dtype) * ranks.view(-1, *[1] * (values.ndim - 2))).amax(1)
    # Without any largest value, because of NaN, it is the last class.
    return (K - first.long()).clamp_(max=K - 1)


class ColumnResize:
    """Resizes the columns of a strip: (K, r, w) -> blocks, (n, K, r * BLOCK).

    A block of columns depends on a few columns of the strip only, so each is the product with a
    small matrix.

    Args:
        weights: (W, w), see :class:`Prediction`.
    """

    def __init__(self, weights: Tensor) -> None:
        # By block: the first column of the strip that it depends on, and the matrix.
        self.blocks: list[tuple[int, Tensor]] = []
        for part in weights.split(BLOCK):
            first, end = _span(part)
            block = weights.new_zeros(end - first, BLOCK)  # the last block may be narrower
            block[:, : len(part)] = part[:, first:end].T
            self.blocks.append((first, block))

    def __call__(self, strip: Tensor) -> Tensor:
        K, rows, width = strip.shape
        lines = strip.reshape(K * rows, width)
        resized = strip.new_empty(len(self.blocks), K * rows, BLOCK)
        for out, (first, block) in zip(resized, self.blocks):
            torch.mm(lines[:, first : first + len(block)], block, out=out)
        return resized.view(len(self.blocks), K, rows * BLOCK)

    def to_rows(self, blocks: Tensor, columns: int) -> Tensor:
        """Put blocks next to each other: (n, r * BLOCK) -> (r, columns)."""
        n = len(blocks)
        rows = blocks.view(n, -1, BLOCK).transpose(0, 1)  # (r, n, BLOCK)
        return rows.reshape(len(rows), n * BLOCK)[:, :columns]


class Windows(NamedTuple):
    """Overlapping windows over an image, row by row; the last of each line ends at the border.

    Attributes:
        tops, lefts: of the windows.
        height, width: of each window; an image that is smaller than a window is one.
    """

    tops: list[int]
    lefts: list[int]
    height: int
    width: int

    @classmethod
    def over(cls, height: int, width: int, side: int, stride: int) -> "Windows":
        """Place square windows of a side over an image, at a stride."""
        return cls(
            _starts(height, side, stride),
            _starts(width, side, stride),
            min(side, height),
            min(side, width),
        )


def _starts(length: int, side: int, stride: int) -> list[int]:
    count = max(length - side + stride - 1, 0) // stride + 1
    return [max(0, min(number * stride, length - side)) for number in range(count)]


def counts_of(starts: Sequence[int], side: int, length: int, like: Tensor) -> Tensor:
    """Return how many windows each row or column of an image is in, (length,)."""
    counts = like.new_zeros(length)
    for start in starts:
        counts[start : start + side] += 1
    return counts


Network = Callable[[Tensor], Tensor]  # (3, h, w) -> logits, (K, h, w)


def sliding_logits(network: Network, image: Tensor, windows: Windows) -> Tensor:
    """Average the logits of windows: (3, H, W) -> (K, H, W)."""
    height, width = image.shape[1:]
    total: Tensor | None = None
    for top in windows.tops:
        for left in windows.lefts:
            logits = network(image[:, top : top + windows.height, left : left + windows.width])
            if total is None:
                total = logits.new_zeros(len(logits), height, width)
            total[:, top : top + windows.height, left : left + windows.width] += logits
    assert total is not None
    total /= counts_of(windows.tops, windows.height, height, total)[:, None]
    total /= counts_of(windows.lefts, windows.width, width, total)
    return total


def sliding_class_map(
    network: Network, image: Tensor, windows: Windows, size: tuple[int, int]
) -> Tensor:
    """Return the class map of an image, (H, W), of which only a band of logits is in memory.

    Args:
        network: logits of a window.
        image: (3, h, w).
        windows: over the image.
        size: H and W.
    """
    parts = []
    for logits, rows, columns in _bands(network, image, windows, size):
        parts.append(class_map([Prediction(logits, rows, columns)]))
    return torch.cat(parts)


def _bands(
    network: Network, image: Tensor, windows: Windows, size: tuple[int, int]
) -> Iterator[Prediction]:
    """Yield the averaged logits from top to bottom, with the resize of as many new rows as it can.

    The rows of windows at one height overlap those at the next one: they are final above it.
    """
    height, width = image.shape[1:]
    band: Tensor | None = None
    done = 0  # rows of the result
    for number, top in enumerate(windows.tops):
        for left in windows.lefts:
            logits = network(image[:, top : top + windows.height, left : left + windows.width])
            if band is None:  # the rows that are kept, then those of the windows
                band = logits.new_zeros(len(logits), KEPT_ROWS + windows.height, width)
                row_weights = resize_matrix(height, size[0], band)
                columns = resize_matrix(width, size[1], band)
                row_counts = counts_of(windows.tops, windows.height, height, band)
                column_counts = counts_of(windows.lefts, windows.width, width, band)
            band[:, KEPT_ROWS:, left : left + windows.width] += logits
        assert band is not None
        is_last = number == len(windows.tops) - 1
        final = windows.height if is_last else windows.tops[number + 1] - top
        finished = band[:, KEPT_ROWS : KEPT_ROWS + final]
        finished /= row_counts[top : top + final, None]
        finished /= column_counts
        # The first row of the image in the band, of which rows below 0 do not exist.
        first = top - KEPT_ROWS
        end = len(row_weights)
        if not is_last:
            needs_more = row_weights[:, top + final :].any(dim=1).nonzero()
            end = int(needs_more[0]) if len(needs_more) else end
        if end > done:
            start = max(first, 0)
            yield Prediction(
                band[:, start - first : KEPT_ROWS + final],
                row_weights[done:end, start : top + final],
                columns,
            )
            done = end
        if not is_last:
            for of_class in band:  # class by class, so that the copy is small
                of_class[:-final] = of_class[final:].clone()
                of_class[-final:] = 0
