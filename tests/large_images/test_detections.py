"""Masks that are stored inside their boxes are those of Detectron2 at full size."""

import numpy as np
import pytest
import torch
from detectron2.layers import paste_masks_in_image
from detectron2.structures import Boxes, Instances
from gpvit.large_images import detections
from gpvit.large_images.detections import enlarged, in_image, with_cropped_masks


def found(boxes: torch.Tensor, size: tuple[int, int], **fields: torch.Tensor) -> Instances:
    return Instances(size, pred_boxes=Boxes(boxes), **fields)


@pytest.mark.parametrize("strip", [1, 300, 2**22])
def test_pasted_masks_are_those_of_detectron2(strip: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(detections, "STRIP", strip)
    torch.manual_seed(0)
    size = 60, 90
    corners = torch.rand(40, 4) * torch.tensor([80, 50, 60, 40])
    boxes = torch.cat([corners[:, :2], corners[:, :2] + corners[:, 2:] + 0.3], dim=1)
    boxes[:3] = torch.tensor([[0, 0, 90, 60], [89.2, 3, 90, 59], [0, 59.5, 40.7, 60.0]])
    boxes = boxes.clamp(max=torch.tensor([90, 60, 90, 60]))
    # Some masks are high at their borders, and reach one pixel beyond their boxes.
    masks = torch.rand(40, 1, 7, 7) ** torch.linspace(0.05, 2, 40)[:, None, None, None]
    cropped = with_cropped_masks(found(boxes, size, pred_masks=masks)).pred_masks
    expected = paste_masks_in_image(masks[:, 0], boxes, size)
    assert torch.equal(cropped.tensor, expected) and expected.any()


def test_detections_of_a_part_are_moved() -> None:
    masks = torch.zeros(1, 20, 30, dtype=torch.bool)
    masks[0, 5:9, 7:12] = True
    part = found(torch.tensor([[7.0, 5, 12, 9]]), (20, 30), pred_masks=masks)
    moved = in_image(part, 100, 50, (200, 300))
    assert moved.image_size == (200, 300)
    assert moved.pred_boxes.tensor.tolist() == [[107, 55, 112, 59]]
    rows, columns = np.nonzero(moved.pred_masks.tensor[0].numpy())
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (55, 58, 107, 111)


def test_detections_of_a_reduced_image_are_enlarged() -> None:
    masks = torch.zeros(2, 20, 30, dtype=torch.bool)
    masks[0, 5:9, 7:12] = True  # the second one is empty
    boxes = torch.tensor([[7.0, 5, 12, 9], [0, 0, 1, 1]])
    large = enlarged(found(boxes, (20, 30), pred_masks=masks), (80, 150))
    assert large.pred_boxes.tensor[0].tolist() == [35, 20, 60, 36]
    expected = masks.repeat_interleave(4, dim=1).repeat_interleave(5, dim=2)
    assert torch.equal(large.pred_masks.tensor, expected)
