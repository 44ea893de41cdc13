"""Detection in overlapping tiles of an image, whose objects are merged over the seams.

An object that is smaller than the overlap is whole in at least one tile. For the others:

    parts of one object in neighboring tiles, which agree where the tiles overlap, are united;
    a part of an object that another tile shows whole is dropped;
    objects that are longer than a tile are taken from a pass over the reduced image.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor
from tqdm import tqdm

from ..data.cropped_masks import Crop, CroppedMasks
from ..modeling.semantic_inference import Windows
from ..streaming.suppression import Overlaps, suppress
from ..utils.errors import UserError
from .detections import enlarged, in_image, united
from .reduced import read_reduced

Detector = Callable[[np.ndarray], Instances]
SAME = 0.5  # IoU of two detections of one object, or share of a part that is inside of a whole one
SMALLEST_TILE, LARGEST_OVERLAP = 64, 0.5  # pixels, share of the side
BORDER = 2  # pixels from the border of a tile that the box of a cut object may end at


class Tiles(NamedTuple):
    """How to cut an image into tiles.

    Attributes:
        side: of the square tiles, in pixels.
        overlap: share of the side that neighbors have in common, at least.
        reduced: whether to add a pass over the image, reduced to the side of a tile.
    """

    side: int
    overlap: float = 0.2
    reduced: bool = True

    def check(self) -> None:
        """Raise a UserError if there are no such tiles."""
        if self.side < SMALLEST_TILE:
            raise UserError(f"a tile must have at least {SMALLEST_TILE} pixels, got {self.side}")
        if not 0 <= self.overlap <= LARGEST_OVERLAP:
            raise UserError(
                f"the overlap must be from 0 to {LARGEST_OVERLAP} of a tile, got {self.overlap}"
            )


def detect_in_tiles(
    detect: Detector, pixels: Any, tiles: Tiles, *, progress: bool = False
) -> Instances:
    """Return the detections in an image.

    Args:
        detect: returns the detections in an image (h, w, 3), uint8, on the CPU.
        pixels: (H, W, 3), uint8, an array or an object that returns arrays for
            ``pixels[rows, columns]``.
        tiles: the tiles.
        progress: whether to show a progress bar.

    Returns:
        "pred_boxes", "scores", "pred_classes" and, of a detector that predicts masks, "pred_masks",
        :class:`.CroppedMasks`.
    """
    tiles.check()
    height, width, _ = pixels.shape
    size = height, width
    stride = max(round(tiles.side * (1 - tiles.overlap)), 1)
    windows = Windows.over(height, width, tiles.side, stride)
    corners = [(left, top) for top, left in itertools.product(windows.tops, windows.lefts)]
    found, numbers = [], []
    with tqdm(corners, desc="tiles", unit="tile", disable=not progress) as bar:
        for number, (left, top) in enumerate(bar):
            rows, columns = slice(top, top + windows.height), slice(left, left + windows.width)
            in_tile = detect(np.ascontiguousarray(pixels[rows, columns]))
            found.append(in_image(in_tile, left, top, size))
            numbers.append(torch.full((len(in_tile),), number))
    lefts, tops = torch.tensor(corners, dtype=torch.float32).T
    areas = torch.stack([lefts, tops, lefts + windows.width, tops + windows.height], dim=1)
    instances, tile_of = Instances.cat(found), torch.cat(numbers)
    if len(corners) == 1:
        return instances
    whole = None
    if tiles.reduced:
        reduced = read_reduced(pixels, tiles.side / max(size))
        whole = detect(reduced)
        sides = whole.pred_boxes.tensor[:, 2:] - whole.pred_boxes.tensor[:, :2]
        longest = sides.amax(dim=1) * max(size) / max(reduced.shape)
        whole = enlarged(whole[longest > tiles.side], size)
    return merged(instances, areas[tile_of], whole)


def merged(instances: Instances, tiles: Tensor, whole: Instances | None = None) -> Instances:
    """Merge detections over the seams of tiles.

    Args:
        instances: of all tiles, in the image.
        tiles: (N, 4), the tile of each of them, x0, y0, x1, y1.
        whole: detections in the whole image.
    """
    is_cut = cut_by(instances.pred_boxes.tensor, tiles, instances.image_size)
    parts, tiles, complete = instances[is_cut], tiles[is_cut], _suppressed(instances[~is_cut])
    is_part = ~_inside(parts, complete)
    found = [complete, _suppressed(_united(parts[is_part], tiles[is_part]))]
    if whole is not None:
        found[1] = found[1][~_inside(found[1], whole)]
        found.append(whole)
    return _suppressed(Instances.cat(found))


def cut_by(boxes: Tensor, tiles: Tensor, size: tuple[int, int]) -> Tensor:
    """Return whether boxes end at a border of their tile that is inside of the image: (N,)."""
    height, width = size
    end = boxes.new_tensor([width, height])
    starts = (boxes[:, :2] < tiles[:, :2] + BORDER) & (tiles[:, :2] > 0)
    ends = (boxes[:, 2:] > tiles[:, 2:] - BORDER) & (tiles[:, 2:] < end)
    return (starts | ends).any(dim=1)


def _suppressed(instances: Instances) -> Instances:
    """Keep the best one of detections of the same object."""
    boxes, scores = instances.pred_boxes.tensor, instances.scores
    return instances[suppress(boxes, scores, instances.pred_classes, SAME)]


def _inside(parts: Instances, complete: Instances) -> Tensor:
    """Return whether most of a part is inside of a complete detection of its class: (N,)."""
    boxes = parts.pred_boxes.tensor
    inside = torch.zeros(len(parts), dtype=torch.bool)
    if len(parts) and len(complete):
        first, second, common = Overlaps(complete.pred_boxes.tensor).of(boxes)
        areas = parts.pred_boxes.area().double().numpy()
        is_same = (parts.pred_classes[first] == complete.pred_classes[second]).numpy()
        inside[first[is_same & (common > SAME * areas[first])]] = True
    return inside


def _united(parts: Instances, tiles: Tensor) -> Instances:
    """Unite the parts of each object."""
    parents = list(range(len(parts)))  # a part of the same object, or the part itself
    for first, second in _neighbors(parts, tiles):
        parents[_root(parents, first)] = _root(parents, second)
    objects: dict[int, list[int]] = {}
    for part in range(len(parts)):
        objects.setdefault(_root(parents, part), []).append(part)
    crops = list(parts.pred_masks.crops()) if parts.has("pred_masks") else []
    boxes, scores, classes, masks = [torch.zeros(0, 4)], [], [], []
    corners = parts.pred_boxes.tensor
    for members in objects.values():
        of_object = corners[members]
        boxes.append(torch.cat([of_object[:, :2].amin(0), of_object[:, 2:].amax(0)])[None])
        scores.append(parts.scores[members].max())
        classes.append(parts.pred_classes[members[0]])
        if crops:
            masks.append(united([crops[member] for member in members]))
    fields: dict[str, Any] = {
        "pred_boxes": Boxes(torch.cat(boxes)),
        "scores": parts.scores.new_tensor(scores),
        "pred_classes": parts.pred_classes.new_tensor(classes),
    }
    if parts.has("pred_masks"):
        fields["pred_masks"] = CroppedMasks.of(masks, parts.image_size)
    return Instances(parts.image_size, **fields)


def _root(parents: list[int], part: int) -> int:
    """Return the part that stands for the object of a part, and shorten the way to it."""
    while parents[part] != part:
        parents[part] = parents[parents[part]]
        part = parents[part]
    return part


def _neighbors(parts: Instances, tiles: Tensor) -> Iterator[tuple[int, int]]:
    """Yield the pairs of parts that are the same where their two tiles overlap."""
    boxes = parts.pred_boxes.tensor
    if not len(parts):
        return
    first, second, _ = Overlaps(boxes).of(boxes)
    is_pair = (first < second) & (tiles[first] != tiles[second]).any(dim=1).numpy()
    is_pair &= (parts.pred_classes[first] == parts.pred_classes[second]).numpy()
    first, second = first[is_pair], second[is_pair]
    # What both tiles see, and how much of it is in the boxes: one may be larger because of what the
    # other tile does not see.
    zones = _intersections(tiles[first], tiles[second])
    one, other = _intersections(boxes[first], zones), _intersections(boxes[second], zones)
    smaller = _areas(one).minimum(_areas(other))
    agree = (_areas(_intersections(one, other)) > SAME * smaller).numpy()
    crops = list(parts.pred_masks.crops()) if parts.has("pred_masks") else []
    for i, j, zone in zip(first[agree].tolist(), second[agree].tolist(), zones[agree].tolist()):
        if not crops or _mask_iou(crops[i], crops[j], list(map(int, zone))) > SAME:
            yield i, j


def _intersections(boxes: Tensor, others: Tensor) -> Tensor:
    """Twice (N, 4) -> (N, 4), with ends before their starts where there is none."""
    starts = boxes[:, :2].maximum(others[:, :2])
    return torch.cat([starts, boxes[:, 2:].minimum(others[:, 2:])], dim=1)


def _areas(boxes: Tensor) -> Tensor:
    return (boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(dim=1)


def _mask_iou(mask: Crop, other: Crop, zone: Sequence[int]) -> float:
    """The IoU of two masks in a zone x0, y0, x1, y1 of the image."""
    one, two = (
        CroppedMasks.of([crop], (zone[3], zone[2])).cut(*zone).tensor[0] for crop in (mask, other)
    )
    return float((one & two).sum() / (one | two).sum().clamp(min=1))
