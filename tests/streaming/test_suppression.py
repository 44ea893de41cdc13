"""Suppression of many boxes equals torchvision's."""

import pytest
import torch
from detectron2.layers import batched_nms
from gpvit.streaming import suppression
from gpvit.streaming.suppression import suppress


def crowd(n: int, extent: float, largest: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Boxes whose sides differ by a factor of 100, some of them equal, with equal scores."""
    corner = extent * torch.rand(n, 2)
    sides = largest * 100 ** -torch.rand(n, 2)
    boxes = torch.cat([corner, corner + sides], dim=1)
    boxes[: n // 10] = boxes[n // 10 : 2 * (n // 10)]
    scores = torch.rand(n)
    scores[: n // 5] = 0.5
    return boxes, scores


@pytest.mark.parametrize("n", [0, 1, 2, 300, 2000])
@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.5, 0.7, 1.0])
def test_result_is_that_of_torchvision(
    n: int, threshold: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(n)
    monkeypatch.setattr(suppression, "CHUNK", 70)
    boxes, scores = crowd(n, extent=200, largest=60)
    groups = torch.randint(3, (n,))
    expected = batched_nms(boxes, scores, groups, threshold)
    kept = suppress(boxes, scores, groups, threshold)
    assert set(kept.tolist()) == set(expected.tolist())
    assert torch.equal(scores[kept], scores[expected])


def test_box_that_is_suppressed_suppresses_no_other() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [4, 0, 14, 10], [8, 0, 18, 10]])
    scores, groups = torch.tensor([0.9, 0.8, 0.7]), torch.zeros(3, dtype=torch.int64)
    assert suppress(boxes, scores, groups, 0.4).tolist() == [0, 2]


def test_tens_of_thousands_of_boxes_take_a_second() -> None:
    torch.manual_seed(0)
    corner = 20_000 * torch.rand(30_000, 2)
    boxes = torch.cat([corner, corner + 8 + 32 * torch.rand(30_000, 2)], dim=1)
    scores, groups = torch.rand(len(boxes)), torch.zeros(len(boxes), dtype=torch.int64)
    kept = suppress(boxes, scores, groups, 0.3)
    assert 25_000 < len(kept) < 30_000 and (scores[kept].diff() <= 0).all()
