"""Drawings of the objects in very large images."""

import itertools

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances
from gpvit.data.cropped_masks import CroppedMasks, crop
from gpvit.large_images import reduced as reduced_images
from gpvit.visualization import drawing, overview
from gpvit.visualization.overview import Objects, Overview

CLASSES = ["a$b", "line\nbreak"]


class Pixels:
    """A gradient of any size that records how many pixels were read at once."""

    def __init__(self, height: int, width: int) -> None:
        self.shape = (height, width, 3)
        self.largest = 0

    def __getitem__(self, item: tuple[slice, slice]) -> np.ndarray:
        rows, columns = item
        y, x = np.arange(rows.start, rows.stop), np.arange(columns.start, columns.stop)
        assert 0 <= rows.start < rows.stop <= self.shape[0]
        assert 0 <= columns.start < columns.stop <= self.shape[1]
        self.largest = max(self.largest, len(y) * len(x))
        gray = 100 * y[:, None] / self.shape[0] + 100 * x / self.shape[1]
        return np.repeat(gray.astype(np.uint8)[:, :, None], 3, axis=2)


def detections(count: int, size: tuple[int, int], side: int = 20, masks: bool = True) -> Instances:
    """Discs at random positions; scores rise from left to right."""
    rng = np.random.default_rng(0)
    height, width = size
    y, x = rng.integers(0, height - side, count), rng.integers(0, width - side, count)
    boxes = torch.from_numpy(np.column_stack([x, y, x + side, y + side])).float()
    instances = Instances(size, pred_boxes=Boxes(boxes), scores=torch.from_numpy(x / width))
    instances.pred_classes = torch.arange(count) % 2
    if masks:
        v, u = np.mgrid[:side, :side] - side / 2 + 0.5
        disc = u * u + v * v < side * side / 4
        crops = [crop(disc, left, top) for left, top in zip(x.tolist(), y.tolist())]
        instances.pred_masks = CroppedMasks.of(crops, size)
    return instances


@pytest.mark.parametrize("size", [(3000, 4000), (90, 5000), (5000, 90), (300, 200), (1, 3000)])
@pytest.mark.parametrize("count", [0, 1, 50])
def test_overview_has_the_image_and_a_legend(
    monkeypatch: pytest.MonkeyPatch, size: tuple[int, int], count: int
) -> None:
    monkeypatch.setattr(overview, "LARGEST_SIDE", 900)
    pixels = Pixels(*size)
    found = Overview(CLASSES)
    found.add(detections(count, size, min(20, min(size) - 1)))
    drawn = found.draw(pixels)
    scale = min(1, 900 / max(size))
    height, width = (max(1, round(side * scale)) for side in size)
    assert drawn.dtype == np.uint8 and drawn.shape[2] == 3
    is_high = height > width
    assert drawn.shape[0] >= height + (not is_high) * 100
    assert drawn.shape[1] >= width + is_high * 500
    image = drawn[:height, :width].astype(int)
    expected = reduced_images.read_reduced(pixels, scale)
    if not count:
        assert np.abs(image - expected).max() <= 1
    else:
        assert np.abs(image - expected).max() > 20
    legend = drawn[:, width:] if is_high else drawn[height:]
    assert legend.min() < 80 and legend[-1].min() == 255  # text, with a margin below
    assert pixels.largest <= 1.1 * reduced_images.WINDOW**2


def test_reading_in_parts_reduces_the_image() -> None:
    pixels = Pixels(5000, 3300)
    reduced = reduced_images.read_reduced(pixels, 0.1)
    assert reduced.shape == (500, 330, 3) and pixels.largest < reduced_images.WINDOW**2
    y, x = np.mgrid[:500, :330] + 0.5
    assert np.abs(reduced[..., 0] - (y / 5 + x / 3.3)).max() <= 1.5


def test_density_is_in_objects_per_megapixel() -> None:
    size = (4000, 6000)
    boxes = detections(500, size).pred_boxes.tensor.numpy()
    values = overview.density(boxes, size, (1707, 2560))
    assert values.mean() == pytest.approx(500 / 24)
    # Near a cluster, most of the objects are within three standard deviations.
    boxes = np.tile([[1000, 2000, 1010, 2010]], (100, 1))
    values = overview.density(boxes, size, (1707, 2560))
    row, column = np.unravel_index(values.argmax(), values.shape)
    assert abs(row / values.shape[0] - 2005 / 4000) < 0.01
    assert abs(column / values.shape[1] - 1005 / 6000) < 0.01


def test_legend_counts_classes() -> None:
    indices = np.repeat([2, 0, 1], [1200, 3, 5])
    labels = [patch.get_label() for patch in overview.class_patches(indices, True, ["a", "b", "c"])]
    assert labels == ["c: 1,200", "b: 5", "a: 3"]
    many = [str(number) for number in range(100)]
    labels = [patch.get_label() for patch in overview.class_patches(np.arange(100), False, many)]
    assert len(labels) == overview.MANY_CLASSES and labels[-1] == "89 other classes: 89"


def test_only_objects_that_are_visible_are_outlined(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overview, "LARGEST_SIDE", 1000)
    size = (2000, 2000)
    boxes = np.array([[100, 100, 120, 120], [1000, 1000, 1100, 1100]])  # 10 and 50 pixels there
    drawn = overview.draw_overview(Pixels(*size), boxes, np.array([3, 3]), list("abcd"))
    red = np.round(overview.style.CLASS_COLORS[3] * 255)
    y, x = np.nonzero((drawn[:1000] == red).all(axis=2))
    assert (x.min(), x.max(), y.min(), y.max()) == pytest.approx((500, 550, 500, 550), abs=2)


def test_regions_are_disjoint_and_ordered_by_mean_score() -> None:
    found = detections(3000, (5000, 7100))
    objects = Objects(
        found.pred_boxes.tensor.numpy(), found.scores.numpy(), found.pred_classes.numpy()
    )
    best, worst = overview.select_regions(objects, 5000, 7100)
    assert len(best) == len(worst) == overview.REGIONS
    for a, b in itertools.combinations(best + worst, 2):
        assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]
    for left, top, right, bottom in best + worst:
        assert 0 <= left < right <= 7100 and 0 <= top < bottom <= 5000
        assert max(right - left, bottom - top) <= overview.REGION
    means = [overview.cut_instances(found, window).scores.mean() for window in best + worst[::-1]]
    assert means == sorted(means, reverse=True)
    assert means[overview.REGIONS - 1] > 0.7 and means[overview.REGIONS] < 0.3


def test_regions_with_few_objects_are_not_selected() -> None:
    boxes = np.concatenate([np.tile([[5, 5, 9, 9]], (40, 1)), [[1500, 5, 1509, 9]]])
    scores = np.append(np.full(40, 0.5), 0.01)
    assert overview.select_regions(Objects(boxes, scores, scores), 1000, 2000) == (
        [(0, 0, 1000, 1000)],
        [],
    )


def test_regions_are_drawn_from_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overview, "REGIONS", 1)
    size = (1100, 1500)
    found = Overview(CLASSES)
    chunk = detections(30, size)
    for part in (chunk[:10], chunk[10:10], chunk[10:]):
        found.add(part)
    regions = dict(found.regions(Pixels(*size)))
    assert len(regions) == 2 and next(iter(regions)).startswith("best_1_x750_y")
    for drawn in regions.values():
        assert drawn.dtype == np.uint8 and drawn.shape[0] > 550
    assert list(Overview(CLASSES).regions(Pixels(*size))) == []


def test_masks_beyond_the_limit_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    chunk = detections(3, (500, 500))
    monkeypatch.setattr(overview, "MASK_BYTES", 5 * 400)
    found = Overview(CLASSES)
    found.add(chunk)
    assert found.chunks[0].has("pred_masks")
    found.add(chunk)
    assert not any(part.has("pred_masks") for part in found.chunks)
    assert chunk.has("pred_masks") and len(found.objects().boxes) == 6


def test_cropped_masks_are_drawn_as_full_masks() -> None:
    chunk = detections(12, (640, 650), 60)
    image = Pixels(640, 650)[0:640, 0:650]
    drawn = drawing.draw_predictions(image, chunk, CLASSES)
    without = drawing.draw_predictions(image, chunk, CLASSES, with_labels=False)
    chunk.pred_masks = chunk.pred_masks.tensor
    assert np.array_equal(drawn, drawing.draw_predictions(image, chunk, CLASSES))
    assert not np.array_equal(drawn, without)
