"""Every config builds, trains, infers, and has the size it says."""

import gpvit
import pytest
import torch
from conftest import REPOSITORY
from detectron2.config import get_cfg, instantiate
from detectron2.modeling import build_model
from detectron2.solver import LRMultiplier
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage
from gpvit.engine import load_config
from gpvit.errors import UserError
from omegaconf import DictConfig
from torch import nn

PARAMETERS = {
    "mask_rcnn_gpvit_l1": 30_831_556,
    "mask_rcnn_gpvit_l2": 45_464_778,
    "mask_rcnn_gpvit_l3": 58_200_648,
    "mask_rcnn_gpvit_l4": 97_416_680,
    "cascade_mask_rcnn_gpvit_l1": 61_096_754,
    "cascade_mask_rcnn_gpvit_l2": 75_729_976,
    "cascade_mask_rcnn_gpvit_l3": 88_465_846,
    "cascade_mask_rcnn_gpvit_l4": 127_681_878,
}
DROP_PATH = {"l1": 0.1, "l2": 0.1, "l3": 0.1, "l4": 0.2}
ALL = pytest.mark.parametrize("name", PARAMETERS)


def config(name: str, *overrides: str) -> DictConfig:
    return load_config(str(REPOSITORY / "configs" / f"{name}.py"), overrides)


def image_with_an_object(height: int, width: int) -> dict:
    mask = torch.zeros(1, height, width, dtype=torch.bool)
    mask[:, 10:40, 20:60] = True
    instances = Instances(
        (height, width),
        gt_boxes=Boxes(torch.tensor([[20.0, 10.0, 60.0, 40.0]])),
        gt_classes=torch.tensor([3]),
        gt_masks=BitMasks(mask),
    )
    return {"image": torch.randint(0, 256, (3, height, width), dtype=torch.uint8), "instances": instances}


def train_and_infer(model: nn.Module) -> None:
    batch = [image_with_an_object(64, 96), image_with_an_object(90, 70)]
    with EventStorage():
        losses = model.train()(batch)
    assert all(loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    assert not [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    with torch.no_grad():
        output = model.eval()([{"image": batch[0]["image"], "height": 128, "width": 192}])[0]["instances"]
    assert output.image_size == (128, 192)
    assert output.has("pred_masks") and output.pred_masks.shape[1:] == (128, 192)


@ALL
def test_a_detector_has_its_number_of_parameters_and_trains_and_infers(name: str) -> None:
    small = ("model.roi_heads.batch_size_per_image=16", "model.proposal_generator.post_nms_topk=[50,30]")
    cfg = config(name, *small)
    model = instantiate(cfg.model)
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]
    train_and_infer(model)


@ALL
def test_a_config_differs_from_its_neighbours_where_it_should(name: str) -> None:
    cfg, size = config(name), name[-2:]
    assert cfg.model.backbone.net.embed_dim == gpvit.SIZES[size.upper()]["embed_dim"]
    assert cfg.model.backbone.net.drop_path_rate == DROP_PATH[size]
    assert cfg.train.init_checkpoint.endswith(f"/gpvit_{size}_in1k_300e.pth")
    assert cfg.train.output_dir == f"output/{name}"
    assert len((REPOSITORY / "configs" / f"{name}.py").read_text().splitlines()) <= 20


def test_heads_are_those_of_the_published_detectors() -> None:
    heads = config("mask_rcnn_gpvit_l1").model.roi_heads
    for box_head in [heads.box_head, *config("cascade_mask_rcnn_gpvit_l2").model.roi_heads.box_heads]:
        assert (box_head.conv_dims, box_head.fc_dims, box_head.conv_norm) == ([256] * 4, [1024], "SyncBN")
    assert len(heads.mask_head.conv_dims) == 5 and not heads.mask_head.get("conv_norm")


def test_only_weights_of_layers_decay() -> None:
    cfg = config("mask_rcnn_gpvit_l1")
    with torch.device("meta"):
        model = instantiate(cfg.model)
    cfg.optimizer.params.model = model
    decay = {id(p): group["weight_decay"] for group in instantiate(cfg.optimizer).param_groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        is_weight_of_layer = name.endswith("weight") and parameter.ndim > 1
        assert decay[id(parameter)] == (0.05 if is_weight_of_layer else 0.0), name


def test_layer_decay_is_one_override() -> None:
    cfg = config("mask_rcnn_gpvit_l1", "optimizer.params.lr_factor_func.rate=0.5")
    with torch.device("meta"):
        cfg.optimizer.params.model = instantiate(cfg.model)
    rates = {id(p): group["lr"] for group in instantiate(cfg.optimizer).param_groups for p in group["params"]}
    named = dict(cfg.optimizer.params.model.named_parameters())
    for name, power in (("pos_embed", 13), ("blocks.0.norm1.weight", 12), ("blocks.11.norm1.weight", 1)):
        assert rates[id(named[f"backbone.net.{name}"])] == pytest.approx(2e-4 * 0.5**power)
    assert rates[id(named["proposal_generator.rpn_head.conv.weight"])] == pytest.approx(2e-4)


@pytest.mark.parametrize(
    ("overrides", "drops"),
    [
        ([], {29_300: 1.0, 29_330: 0.1, 40_300: 0.1, 40_330: 0.01}),
        (["train.max_iter=131925", "lr_multiplier.milestones=[0.75,0.9167]"], {98_930: 1.0, 98_960: 0.1, 120_950: 0.01}),
    ],
)
def test_the_schedule_warms_up_and_drops_where_published(overrides: list[str], drops: dict[int, float]) -> None:
    cfg = config("mask_rcnn_gpvit_l1", *overrides)
    schedule = instantiate(cfg.lr_multiplier)
    factor = lambda iteration: schedule(iteration / cfg.train.max_iter)  # noqa: E731
    assert factor(0) == pytest.approx(0.001)
    assert factor(250) == pytest.approx(0.5, rel=0.01)
    assert factor(501) == pytest.approx(1.0)
    for iteration, expected in drops.items():
        assert factor(iteration) == pytest.approx(expected), iteration


def test_a_short_training_warms_up_for_a_tenth_of_it() -> None:
    cfg = config("mask_rcnn_gpvit_l1", "train.max_iter=100")
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = LRMultiplier(optimizer, instantiate(cfg.lr_multiplier), cfg.train.max_iter)
    rates = []
    for _ in range(100):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates[0] == pytest.approx(0.001) and rates[11] == pytest.approx(1.0)
    assert rates[-1] == pytest.approx(0.01)


def test_large_scale_jitter_is_one_override() -> None:
    kinds = lambda *overrides: [  # noqa: E731
        type(augmentation).__name__
        for augmentation in instantiate(config("mask_rcnn_gpvit_l1", *overrides).dataloader.train.mapper.augmentations)
    ]
    assert kinds() == ["ResizeShortestEdge", "RandomFlip"]
    lsj = kinds("dataloader.train.mapper.augmentations.recipe=lsj")
    assert lsj == ["ResizeScale", "FixedSizeCrop", "RandomFlip"]
    with pytest.raises(UserError, match="must be one of resize, lsj, got ljs"):
        kinds("dataloader.train.mapper.augmentations.recipe=ljs")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.max_itr=1", "did you mean train.max_iter?"),
        ("model.backbone.net.frozen_block=1", "did you mean model.backbone.net.frozen_blocks?"),
        ("model.roi_heads.box_heads=1", "did you mean model.roi_heads.box_head?"),
        ("train.max_iter", "not of the form key=value"),
        ("train.output_dir=[", "cannot read the overrides"),
        ("dataloader.test.mapper.augmentations.3.max_size=1", "known here: 0"),
    ],
)
def test_a_mistyped_override_is_one_line_with_the_likely_key(override: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        config("mask_rcnn_gpvit_l1", override)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_an_override_may_set_a_parameter_that_the_config_leaves_out() -> None:
    cfg = config(
        "mask_rcnn_gpvit_l1",
        "model.backbone.net.frozen_blocks=2",
        "dataloader.test.mapper.augmentations.0.max_size=99",
        "+train.note=mine",
    )
    assert cfg.model.backbone.net.frozen_blocks == 2
    assert cfg.dataloader.test.mapper.augmentations[0].max_size == 99
    assert cfg.train.note == "mine"


def test_a_missing_config_file_is_named() -> None:
    with pytest.raises(UserError, match="configs/nothing.py does not exist"):
        load_config("configs/nothing.py")


def test_the_yacs_example_builds_the_same_detector_and_runs() -> None:
    cfg = get_cfg()
    gpvit.add_gpvit_config(cfg)
    cfg.merge_from_file(str(REPOSITORY / "configs" / "yacs" / "mask_rcnn_gpvit_l1.yaml"))
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE = 16
    cfg.MODEL.RPN.POST_NMS_TOPK_TRAIN = 50
    model = build_model(cfg)
    lazy = instantiate(config("mask_rcnn_gpvit_l1").model)
    assert {k: v.shape for k, v in model.state_dict().items()} == {k: v.shape for k, v in lazy.state_dict().items()}
    assert torch.equal(model.pixel_std, lazy.pixel_std)
    train_and_infer(model)


def test_the_plain_backbone_is_registered_too() -> None:
    cfg = get_cfg()
    gpvit.add_gpvit_config(cfg)
    cfg.MODEL.GPVIT.OUT_FEATURES = ["block2", "last_feat"]
    cfg.MODEL.BACKBONE.NAME = "build_gpvit_backbone"
    from detectron2.modeling import build_backbone

    net = build_backbone(cfg)
    assert isinstance(net, gpvit.GPViT)
    assert list(net.output_shape()) == ["block2", "last_feat"]
