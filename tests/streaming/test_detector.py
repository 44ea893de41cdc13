"""A streamed detector finds what it finds in one pass."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import REPOSITORY
from detectron2.config import instantiate
from detectron2.modeling.backbone.fpn import LastLevelP6P7
from detectron2.structures import Boxes, Instances
from gpvit.config import load_config
from gpvit.streaming.backbone import stream
from gpvit.streaming.detector import _stand_in, _streamed_pooler, detect
from gpvit.streaming.image import ModelInput
from gpvit.streaming.pyramid import StreamedPyramid
from simulated_gpu import simulated_gpu
from torch import nn

NARROW = [
    "model.backbone.net.embed_dim=24",
    "model.backbone.net.num_heads=2",
    "model.backbone.net.group_tokens=[0,4]",
    "model.backbone.net.norm=BN",
    "model.roi_heads.num_classes=3",
]
QUICK = [
    *NARROW,
    "model.backbone.out_channels=16",
    "model.proposal_generator.head.in_channels=16",
    "model.roi_heads.box_head.conv_dims=[16]",
    "model.roi_heads.box_head.input_shape.channels=16",
    "model.roi_heads.mask_head.conv_dims=[16,16]",
    "model.roi_heads.mask_head.input_shape.channels=16",
]
CASCADE = [*NARROW, "model.proposal_generator.post_nms_topk=[100,100]"]


def build(config: str = "quickstart", overrides: list[str] = QUICK) -> nn.Module:
    """A detector with random weights that finds many objects of all sizes."""
    cfg = load_config(str(REPOSITORY / "configs" / f"{config}.py"), overrides)
    torch.manual_seed(0)
    model = instantiate(cfg.model).eval()
    scales = {"objectness_logits": 1, "anchor_deltas": 0.1, "bbox_pred": 0.1, "cls_score": 1}
    scales["predictor"] = 3  # of masks
    for name, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.5, 0.5)
            module.running_var.uniform_(0.5, 2)
        scale = scales.get(name.rpartition(".")[2])
        if scale:
            nn.init.normal_(module.weight, std=scale * module.weight[0].numel() ** -0.5)
    return model


def picture(height: int, width: int) -> np.ndarray:
    """Noise in patches of eight pixels: (H, W, 3)."""
    rng = np.random.default_rng(0)
    patches = rng.integers(0, 256, (-(-height // 8), -(-width // 8), 3), np.uint8)
    return patches.repeat(8, axis=0).repeat(8, axis=1)[:height, :width]


def predictors_of(model: nn.Module) -> list[Any]:
    predictor = model.roi_heads.box_predictor
    return list(predictor) if isinstance(predictor, nn.ModuleList) else [predictor]


@torch.no_grad()
def in_one_pass(model: nn.Module, pixels: np.ndarray) -> Instances:
    """The same with the limits of the streamed detector, and without pasting masks."""
    limit = max(pixels.shape[0] * pixels.shape[1] / 1e6, 1)
    for numbers in (model.proposal_generator.pre_nms_topk, model.proposal_generator.post_nms_topk):
        numbers[False] = round(limit * numbers[False])
    for predictor in predictors_of(model):
        predictor.test_topk_per_image = round(limit * predictor.test_topk_per_image)
    image = torch.from_numpy(pixels.transpose(2, 0, 1).copy())
    (instances,) = model.inference([{"image": image}], do_postprocess=False)
    return instances


def streamed(model: nn.Module, pixels: np.ndarray, **options: Any) -> Instances:
    return Instances.cat(list(detect(model, pixels, **options)))


def agreement(found: Instances, expected: Instances) -> float:
    """The share of detections that both have, within 0.05 pixels and 1e-4 of score and mask."""
    boxes, others = found.pred_boxes.tensor, expected.pred_boxes.tensor
    is_same = (boxes[:, None] - others).abs().amax(dim=2) < 0.05
    is_same &= (found.scores[:, None] - expected.scores).abs() < 1e-4
    is_same &= found.pred_classes[:, None] == expected.pred_classes
    if expected.has("pred_masks"):
        for row, column in is_same.nonzero().tolist():
            difference = found.pred_masks[row] - expected.pred_masks[column]
            is_same[row, column] = difference.abs().max() < 1e-3
    shares = is_same.any(dim=1).float().mean(), is_same.any(dim=0).float().mean()
    return min(shares).item()


@pytest.mark.parametrize(
    ("size", "tokens"),
    [((250, 333), 64), ((96, 700), 1024), ((640, 64), 2**14), ((1040, 1100), 2048)],
)
def test_detections_are_those_of_one_pass(size: tuple[int, int], tokens: int) -> None:
    model, pixels = build(), picture(*size)
    found = streamed(model, pixels, tokens=tokens)
    expected = in_one_pass(model, pixels)
    assert len(expected) > 50 and found.image_size == size
    assert agreement(found, expected) >= 0.98


def test_cascades_are_streamed() -> None:
    model, pixels = build("cascade_mask_rcnn_gpvit_l1", CASCADE), picture(96, 160)
    found = streamed(model, pixels, tokens=2048)
    expected = in_one_pass(model, pixels)
    assert len(expected) > 50 and agreement(found, expected) >= 0.98


def test_detectors_without_masks_are_streamed() -> None:
    model, pixels = build(), picture(99, 300)
    model.roi_heads.mask_on = False
    model.roi_heads.mask_pooler = None
    found = streamed(model, pixels, tokens=256)
    assert not found.has("pred_masks")
    assert agreement(found, in_one_pass(model, pixels)) >= 0.98


@torch.no_grad()
def test_boxes_of_any_extent_are_pooled_exactly(tmp_path: Path) -> None:
    """From the whole image to less than a pixel, thin ones, and empty ones."""
    model, pixels = build(), picture(320, 576)
    boxes = [[0, 0, 576, 320], [0, 100, 576, 101], [575, 0, 576, 320], [3, 3, 3, 3], [9, 9, 10, 10]]
    boxes += [[100, 50, 400, 300], [500, 250, 576, 320]]
    image = model.preprocess_image([{"image": torch.from_numpy(pixels.transpose(2, 0, 1).copy())}])
    features = model.backbone(image.tensor)
    heads = model.roi_heads
    levels = [features[name] for name in heads.box_in_features]
    expected = heads.box_pooler(levels, [Boxes(torch.tensor(boxes, dtype=torch.float32))])
    source = stream(model.backbone.net, ModelInput(pixels, model))
    pyramid = StreamedPyramid(model.backbone, source, tmp_path, tokens=16)
    pooler = _streamed_pooler(heads.box_pooler, heads.box_in_features, pyramid, tokens=16)
    stand_ins = [_stand_in(pyramid)] * len(levels)
    pooled = pooler(stand_ins, [Boxes(torch.tensor(boxes, dtype=torch.float32))])
    assert (pooled - expected).abs().max() < 1e-4 * expected.abs().max()


PARTS = ["backbone.simfp_2", "backbone.simfp_4", "proposal_generator.rpn_head.conv"]
PARTS += ["roi_heads.box_head", "roi_heads.mask_head.deconv", "backbone.net.blocks.0.norm2"]


@pytest.mark.parametrize("part", PARTS)
def test_replaced_parts_change_both_forms_alike(part: str) -> None:
    model, pixels = build(), picture(128, 192)
    before = streamed(model, pixels, tokens=256)
    model.get_submodule(part).register_forward_hook(lambda *args: args[-1] * 1.5)
    found = streamed(model, pixels, tokens=256)
    assert agreement(found, before) < 0.98
    assert agreement(found, in_one_pass(model, pixels)) >= 0.98


def test_limits_are_per_megapixel() -> None:
    model, pixels = build(), picture(1000, 2000)
    model.proposal_generator.post_nms_topk[False] = 20
    model.roi_heads.box_predictor.test_topk_per_image = 10
    assert len(streamed(model, picture(100, 300))) == 10
    assert len(streamed(model, pixels)) == 20


def test_detections_come_in_parts_row_by_row() -> None:
    model, pixels = build(), picture(384, 400)
    parts = list(detect(model, pixels, tokens=1024))
    rows = [part.pred_boxes.get_centers()[:, 1] // 128 for part in parts]
    assert len(parts) > 6 and all((row == row[0]).all() for row in rows)
    assert [row[0] for row in rows] == sorted(row[0] for row in rows)


def test_channels_are_put_in_the_order_of_the_model() -> None:
    model, pixels = build(), picture(128, 192)
    reversed_pixels = np.ascontiguousarray(pixels[..., ::-1])
    found = streamed(model, reversed_pixels, channels=slice(None, None, -1))
    assert agreement(found, streamed(model, pixels)) == 1
    assert agreement(streamed(model, reversed_pixels), found) < 0.5


def test_model_and_folder_are_left_as_they_were(tmp_path: Path) -> None:
    model = build()
    heads = model.roi_heads
    before = heads.box_pooler, heads.mask_pooler, heads.box_predictor
    settings = dict(vars(heads.box_predictor))
    streamed(model, picture(128, 192), folder=tmp_path)
    assert before == (heads.box_pooler, heads.mask_pooler, heads.box_predictor)
    assert vars(heads.box_predictor) == settings and not list(tmp_path.iterdir())


def test_nothing_found_is_one_empty_part() -> None:
    model = build()
    model.roi_heads.box_predictor.test_score_thresh = 1.1
    (found,) = detect(model, picture(64, 64))
    assert len(found) == 0 and found.image_size == (64, 64) and found.has("pred_masks")


def test_no_proposal_is_one_empty_part() -> None:
    model = build()
    model.proposal_generator.min_box_size = 1000
    (found,) = detect(model, picture(64, 64))
    assert len(found) == 0


def test_everything_is_in_float32_whatever_surrounds_it() -> None:
    model, pixels = build(), picture(128, 192)
    expected = streamed(model, pixels)
    with torch.autocast("cpu", torch.bfloat16):
        found = streamed(model, pixels)
    assert agreement(found, expected) == 1


def test_gpu_receives_regions_and_returns_detections_on_the_cpu() -> None:
    model, pixels = build(), picture(128, 192)
    expected = streamed(model, pixels)
    with simulated_gpu():
        found = streamed(model.to("cuda"), pixels, tokens=256)
    assert found.pred_boxes.device.type == found.pred_masks.device.type == "cpu"
    assert agreement(found, expected) >= 0.98


def with_top_block(model: nn.Module) -> None:
    model.backbone.top_block = LastLevelP6P7(16, 16)


def with_squares(model: nn.Module) -> None:
    model.backbone._square_pad = 512


def with_other_levels(model: nn.Module) -> None:
    model.backbone.top_block.in_feature = "p4"


def with_keypoints(model: nn.Module) -> None:
    model.roi_heads.keypoint_on = True


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (with_top_block, "a pyramid with LastLevelP6P7 cannot be streamed; use tiles"),
        (with_squares, "images that are padded to squares cannot be streamed; use tiles"),
        (with_other_levels, "further levels from p4, not from p5, cannot be streamed; use tiles"),
        (with_keypoints, "a GeneralizedRCNN of this kind cannot be streamed; use tiles"),
        (lambda model: model.train(), "the network is in training mode; call net.eval()"),
        (lambda model: setattr(model, "backbone", model.backbone.net), "not with GPViT; use tiles"),
    ],
)
def test_other_models_raise_an_error(change: Any, message: str) -> None:
    model = build()
    change(model)
    with pytest.raises(ValueError, match=message):
        streamed(model, picture(64, 64))
