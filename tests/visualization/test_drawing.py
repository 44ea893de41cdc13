"""Predictions, annotations, sheets and curves are drawn where and as they are."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, BoxMode, Instances
from gpvit.visualization import drawing as visualize
from gpvit.visualization.curves import save_curves
from matplotlib.figure import Figure


def test_predictions_are_drawn_where_they_are() -> None:
    mask = torch.zeros(1, 700, 700, dtype=torch.bool)
    mask[:, 230:270, 430:470] = True
    instances = Instances(
        (700, 700),
        pred_boxes=Boxes(torch.tensor([[400.0, 200.0, 500.0, 300.0]])),
        scores=torch.tensor([0.9]),
        pred_classes=torch.tensor([1]),
        pred_masks=mask,
    )
    picture = visualize.draw_predictions(
        np.full((700, 700, 3), 128, np.uint8), instances, ["cat", "dog"]
    )
    changed = np.argwhere(np.any(picture != 128, axis=2))
    assert picture.shape == (700, 700, 3)
    assert changed.min(0)[0] > 150 and changed.max(0)[0] < 310  # rows; the label may stand above
    assert np.abs(changed.min(0)[1] - 400) < 20 and changed.max(0)[1] < 600
    assert np.any(picture[235:265, 435:465] != 128, axis=2).all()  # the mask
    assert np.any(picture[225:275, 398:403] != 128, axis=2).any(axis=1).all()  # an edge of the box


def test_names_with_dollars_are_drawn_as_they_are() -> None:
    record = {
        "annotations": [{"category_id": 0, "bbox": [10, 20, 30, 40], "bbox_mode": BoxMode.XYWH_ABS}]
    }
    picture = visualize.draw_annotations(np.full((700, 700, 3), 128, np.uint8), record, ["a$b_$c"])
    assert np.any(picture != 128)


def test_sheet_and_curves_are_pictures(tmp_path: Path) -> None:
    picture = np.zeros((40, 60, 3), np.uint8)
    visualize.save_sheet([(picture, picture)] * 3, tmp_path / "sheet.png")
    rows = [
        {"iteration": i, "total_loss": 2.0 / (i + 1), "loss_cls": 1.0 / (i + 1)} for i in range(5)
    ]
    rows.append({"iteration": 5, "bbox/AP": 30.0, "segm/AP": 25.0})
    (tmp_path / "metrics.json").write_text(
        "\n".join(map(json.dumps, rows)) + '\n{"iteration": 6, "bbo'
    )  # cut short
    save_curves(tmp_path / "metrics.json", tmp_path / "curves.png")
    for name in ("sheet.png", "curves.png"):
        assert cv2.imread(str(tmp_path / name)).std() > 10


def test_curves_of_several_validation_sets_have_their_names(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    labels: list[str] = []

    def remember(figure: Figure, *_: object, **__: object) -> None:
        labels.extend(text.get_text() for text in figure.axes[1].get_legend().get_texts())

    monkeypatch.setattr(Figure, "savefig", remember)
    found = {
        "day/segm/AP": 1.0,
        "a/$b/segm/AP": 2.0,
        "a/$b/bbox/AP": 2.0,
        "day/ema_segm/AP": 3.0,
        "day/segm/AP-cat": 4.0,
    }
    (tmp_path / "metrics.json").write_text(json.dumps({"iteration": 5, "total_loss": 1.0} | found))
    save_curves(tmp_path / "metrics.json", tmp_path / "curves.png")
    assert labels == ["a/$b boxes", "a/$b masks", "day masks"]
