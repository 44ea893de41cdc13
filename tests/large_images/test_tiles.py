"""Objects in tiles are merged to those of the whole image."""

from typing import Any

import cv2
import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances
from gpvit.large_images.tiles import Tiles, detect_in_tiles
from gpvit.utils.errors import UserError


def components(image: np.ndarray, masks: bool = True) -> Instances:
    """A perfect detector: connected pixels that are bright in a channel are an object of it."""
    boxes, classes, crops = [], [], []
    for kind in (0, 1):
        bright = (image[..., kind] > 127).astype(np.uint8)
        count, labels, stats, _ = cv2.connectedComponentsWithStats(bright)
        for label in range(1, count):
            x, y, width, height, _ = stats[label]
            boxes.append([x, y, x + width, y + height])
            classes.append(kind)
            crops.append(labels == label)
    found = Instances(image.shape[:2])
    found.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).view(-1, 4))
    found.scores = torch.linspace(0.9, 0.8, len(boxes))
    found.pred_classes = torch.tensor(classes, dtype=torch.int64)
    if masks:
        stacked = np.array(crops, bool).reshape(-1, *image.shape[:2])
        found.pred_masks = torch.from_numpy(stacked)
    return found


def picture(*objects: tuple[int, int, int, int, int], size: tuple[int, int]) -> np.ndarray:
    """An image with ellipses: x, y, width, height, class."""
    image = np.zeros((*size, 3), np.uint8)
    for x, y, width, height, kind in objects:
        center, axes = (x + width // 2, y + height // 2), (width // 2, height // 2)
        color = [255 * (channel == kind) for channel in range(3)]
        cv2.ellipse(image, center, axes, 0, 0, 360, color, -1)
    return image


def same_objects(found: Instances, expected: Instances, tolerance: float = 0) -> None:
    """Require the same boxes and classes, and masks that are equal or nearly so."""
    boxes, others = found.pred_boxes.tensor, expected.pred_boxes.tensor
    distances = (boxes[:, None] - others).abs().amax(dim=2)
    distances += 1000 * (found.pred_classes[:, None] != expected.pred_classes)
    nearest, match = distances.min(dim=1)
    assert sorted(match.tolist()) == list(range(len(expected)))
    assert nearest.max() <= tolerance
    if expected.has("pred_masks"):
        masks, other_masks = found.pred_masks.tensor, expected.pred_masks[match]
        common = (masks & other_masks).flatten(1).sum(1) / (masks | other_masks).flatten(1).sum(1)
        assert common.min() > 0.8 if tolerance else common.min() == 1


def scattered(largest: int) -> np.ndarray:
    """Objects in a grid, so that they do not touch, of all sizes up to the largest."""
    rng = np.random.default_rng(0)
    cell = largest + 4
    image = np.zeros((4 * cell, 6 * cell, 3), np.uint8)
    for row in range(4):
        for column in range(6):
            width, height = rng.integers(6, largest, 2)
            kind = int(rng.integers(2))
            one = picture((2, 2, width, height, kind), size=(cell, cell))
            image[row * cell : (row + 1) * cell, column * cell : (column + 1) * cell] = one
    return image


@pytest.mark.parametrize("masks", [True, False])
@pytest.mark.parametrize("reduced", [True, False])
@pytest.mark.parametrize(("largest", "side"), [(24, 128), (90, 128), (126, 128), (300, 256)])
def test_objects_are_those_of_the_whole_image(
    largest: int, side: int, reduced: bool, masks: bool
) -> None:
    """Smaller than the overlap, a fourth of a tile, than a tile, and larger."""
    image = scattered(largest)
    expected = components(image, masks)
    found = detect_in_tiles(
        lambda tile: components(tile, masks), image, Tiles(side, 0.25, reduced=reduced)
    )
    assert found.image_size == image.shape[:2]
    # Objects of the reduced image have coarser outlines.
    scale = max(image.shape) / side
    same_objects(found, expected, tolerance=2 * scale if reduced and largest > side else 0)


def test_parts_of_different_objects_are_not_united() -> None:
    """Two of one class on both sides of a seam, and two that cross it, of different classes."""
    image = picture((60, 10, 60, 20, 0), (140, 10, 60, 20, 0), size=(100, 256))
    image = np.maximum(image, picture((20, 40, 200, 20, 0), size=(100, 256)))
    image = np.maximum(image, picture((20, 61, 200, 20, 1), size=(100, 256)))
    found = detect_in_tiles(components, image, Tiles(128, 0.25, reduced=False))
    same_objects(found, components(image))


def test_parts_of_an_object_that_the_reduced_image_shows_are_dropped() -> None:
    image = picture((10, 10, 480, 480, 0), (500, 500, 12, 12, 1), size=(512, 512))

    def detect(tile: np.ndarray) -> Instances:
        found = components(tile, masks=False)
        if len(found) < 2:  # only in the reduced image are both objects in view
            boxes = found.pred_boxes.tensor
            boxes[:, 2] = boxes[:, ::2].mean(dim=1)  # half of what is there: strips are not united
        return found

    found = detect_in_tiles(detect, image, Tiles(128, 0.25))
    assert len(found) == 2
    assert (found.pred_boxes.tensor[0] - torch.tensor([10, 10, 490, 490])).abs().max() < 8


def test_parts_are_united_by_their_masks_where_there_are_any() -> None:
    """Two lines that cross a seam next to each other: their boxes overlap there."""
    image = np.zeros((160, 224, 3), np.uint8)
    for points in ([(40, 20), (96, 50), (128, 80), (190, 80)], [(40, 64), (96, 64), (190, 152)]):
        cv2.polylines(image, [np.array(points, np.int32)], False, (255, 0, 0), 6)
    expected = components(image)
    assert len(expected) == 2
    same_objects(detect_in_tiles(components, image, Tiles(128, 0.25, reduced=False)), expected)


class Recorded:
    """An image that notes the regions that are read."""

    def __init__(self, image: np.ndarray) -> None:
        self.image, self.shape, self.regions = image, image.shape, []

    def __getitem__(self, index: tuple[slice, slice]) -> np.ndarray:
        self.regions.append(self.image[index].shape)
        return self.image[index]


def test_tiles_have_one_size_and_cover_the_image() -> None:
    image = Recorded(picture((290, 190, 9, 9, 0), size=(200, 300)))
    found = detect_in_tiles(components, image, Tiles(128, 0.2, reduced=False))
    assert image.regions == [(128, 128, 3)] * 6 and len(found) == 1


def test_image_that_is_smaller_than_a_tile_is_one() -> None:
    image = Recorded(picture((50, 20, 9, 9, 0), size=(64, 100)))
    found = detect_in_tiles(components, image, Tiles(128))
    assert image.regions == [(64, 100, 3)]
    same_objects(found, components(image.image))


def test_nothing_is_found_in_an_empty_image() -> None:
    found = detect_in_tiles(components, np.zeros((300, 300, 3), np.uint8), Tiles(128))
    assert len(found) == 0 and len(found.pred_masks) == 0


@pytest.mark.parametrize(
    ("tiles", "message"),
    [
        (Tiles(63), "a tile must have at least 64 pixels, got 63"),
        (Tiles(128, -0.1), "the overlap must be from 0 to 0.5 of a tile, got -0.1"),
        (Tiles(128, 0.6), "the overlap must be from 0 to 0.5 of a tile, got 0.6"),
    ],
)
def test_impossible_tiles_are_refused(tiles: Tiles, message: str) -> None:
    image: Any = np.zeros((300, 300, 3), np.uint8)
    with pytest.raises(UserError, match=message):
        detect_in_tiles(components, image, tiles)
