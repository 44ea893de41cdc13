"""Overlaps of as many boxes as large images have, and their non-maximum suppression."""

import numpy as np
import shapely
import torch
from torch import Tensor

CHUNK = 1000  # boxes whose overlaps are in memory at once


class Overlaps:
    """A tree that finds the boxes which overlap others.

    Args:
        boxes: (N, 4), finite, on the CPU.
    """

    def __init__(self, boxes: Tensor) -> None:
        self.corners = boxes.double().numpy()
        self.tree = shapely.STRtree(shapely.box(*self.corners.T))

    def of(self, boxes: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the overlaps of other boxes, (M, 4), with those of the tree.

        Returns:
            For each pair, in the order of the first: the index of the box, that of the box in the
            tree, and their common area, which may be 0.
        """
        corners = boxes.double().numpy()
        first, second = self.tree.query(shapely.box(*corners.T))
        one, other = corners[first], self.corners[second]
        start, end = np.maximum(one[:, :2], other[:, :2]), np.minimum(one[:, 2:], other[:, 2:])
        return first, second, (end - start).clip(0).prod(axis=1)


def suppress(boxes: Tensor, scores: Tensor, groups: Tensor, threshold: float) -> Tensor:
    """Return the same as torchvision's ``batched_nms``, in a time that grows with the overlaps.

    torchvision compares all pairs of boxes, which takes minutes for 400,000 of them.

    Args:
        boxes: (N, 4), finite, on the CPU.
        scores: (N,).
        groups: (N,), integers: a box suppresses only boxes of its own group.
        threshold: a box is suppressed by one with a higher score and an IoU above this.

    Returns:
        The indices of the boxes that are kept, by descending score.
    """
    order = scores.argsort(descending=True, stable=True)
    boxes, groups = boxes[order].double(), groups[order]
    kept = torch.zeros(len(boxes), dtype=torch.bool)
    for group in groups.unique():
        members = (groups == group).nonzero()[:, 0]
        kept[members] = torch.from_numpy(_best(boxes[members], threshold))
    return order[kept]


def _best(boxes: Tensor, threshold: float) -> np.ndarray:
    """Return which boxes of a group, in descending order of their scores, are kept: (N,)."""
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1).numpy()
    overlaps = Overlaps(boxes)
    kept = np.ones(len(boxes), bool)
    for start in range(0, len(boxes), CHUNK):
        chunk = start + np.flatnonzero(kept[start : start + CHUNK])
        first, second, common = overlaps.of(boxes[chunk])
        first = chunk[first]
        suppresses = second > first
        suppresses &= common > threshold * (areas[first] + areas[second] - common)
        first, second = first[suppresses], second[suppresses]
        ends = np.flatnonzero(np.diff(first, append=-1)) + 1  # of the pairs with the same first
        for begin, end in zip(np.append(0, ends), ends):
            if kept[first[begin]]:
                kept[second[begin:end]] = False
    return kept
