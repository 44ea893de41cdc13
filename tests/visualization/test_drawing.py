"""Drawings of predictions and annotations, sheets and curves."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, BoxMode, Instances
from gpvit.visualization import drawing
from gpvit.visualization.curves import save_curves
from matplotlib.figure import Figure


def test_predictions_are_drawn_at_their_positions() -> None:
    mask = torch.zeros(1, 700, 700, dtype=torch.bool)
    mask[:, 230:270, 430:470] = True
    instances = Instances(
        (700, 700),
        pred_boxes=Boxes(torch.tensor([[400.0, 200.0, 500.0, 300.0]])),
        scores=torch.tensor([0.9]),
        pred_classes=torch.tensor([1]),
        pred_masks=mask,
    )
    image = np.full((700, 700, 3), 128, np.uint8)
    drawn = drawing.draw_predictions(image, instances, ["cat", "dog"])
    changed = np.argwhere(np.any(drawn != 128, axis=2))
    assert drawn.shape == (700, 700, 3)
    assert (
        changed.min(0)[0] > 150 and changed.max(0)[0] < 310
    )  # rows; the label may be above the box
    assert np.abs(changed.min(0)[1] - 400) < 20 and changed.max(0)[1] < 600
    assert np.any(drawn[235:265, 435:465] != 128, axis=2).all()  # the mask
    assert np.any(drawn[225:275, 398:403] != 128, axis=2).any(axis=1).all()  # an edge of the box


def test_dollar_signs_in_names_are_not_math() -> None:
    item = {"category_id": 0, "bbox": [10, 20, 30, 40], "bbox_mode": BoxMode.XYWH_ABS}
    image = np.full((700, 700, 3), 128, np.uint8)
    drawn = drawing.draw_annotations(image, {"annotations": [item]}, ["a$b_$c"])
    assert np.any(drawn != 128)


def test_sheet_and_curves_are_images(tmp_path: Path) -> None:
    image = np.zeros((40, 60, 3), np.uint8)
    drawing.save_sheet([(image, image)] * 3, tmp_path / "sheet.png")
    rows = []
    for i in range(5):
        rows.append({"iteration": i, "total_loss": 2.0 / (i + 1), "loss_cls": 1.0 / (i + 1)})
    rows.append({"iteration": 5, "bbox/AP": 30.0, "segm/AP": 25.0})
    cut_off = '\n{"iteration": 6, "bbo'
    (tmp_path / "metrics.json").write_text("\n".join(map(json.dumps, rows)) + cut_off)
    save_curves(tmp_path / "metrics.json", tmp_path / "curves.png")
    for name in ("sheet.png", "curves.png"):
        assert cv2.imread(str(tmp_path / name)).std() > 10


def test_curves_of_several_validation_sets_are_labeled(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    labels: list[str] = []

    def remember(figure: Figure, *_: object, **__: object) -> None:
        labels.extend(text.get_text() for text in figure.axes[1].get_legend().get_texts())

    monkeypatch.setattr(Figure, "savefig", remember)
    metrics = {
        "day/segm/AP": 1.0,
        "a/$b/segm/AP": 2.0,
        "a/$b/bbox/AP": 2.0,
        "day/ema_segm/AP": 3.0,
        "day/segm/AP-cat": 4.0,
    }
    (tmp_path / "metrics.json").write_text(
        json.dumps({"iteration": 5, "total_loss": 1.0} | metrics)
    )
    save_curves(tmp_path / "metrics.json", tmp_path / "curves.png")
    assert labels == ["a/$b boxes", "a/$b masks", "day masks"]
