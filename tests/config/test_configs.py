"""All configs build models that train and infer; published configs have the official recipe."""

import itertools
from pathlib import Path
from typing import Any

import gpvit
import pytest
import torch
from conftest import REPOSITORY
from detectron2.config import get_cfg, instantiate
from detectron2.modeling import build_backbone, build_model
from detectron2.solver import LRMultiplier
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage
from gpvit.checkpoint import published
from gpvit.config import flattened, load_config, save_config
from gpvit.model_zoo import IMAGENET_ACCURACY
from gpvit.utils.errors import UserError
from omegaconf import DictConfig
from torch import nn

pytestmark = pytest.mark.long

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

PUBLISHED = [
    f"published/{detector}_gpvit_{size}_{schedule}"
    for detector, size, schedule in itertools.product(
        ("mask_rcnn", "retinanet"), ("l1", "l2", "l3", "l4"), ("1x", "3x")
    )
]
# Drop path rates of the published configs that are not 0.1.
PUBLISHED_DROP_PATH = {
    "published/mask_rcnn_gpvit_l4_1x": 0.2,
    "published/mask_rcnn_gpvit_l3_3x": 0.2,
    "published/mask_rcnn_gpvit_l4_3x": 0.2,
    "published/retinanet_gpvit_l3_3x": 0.2,
    "published/retinanet_gpvit_l4_3x": 0.2,
}
ALL_PUBLISHED = pytest.mark.parametrize("name", PUBLISHED)
SEGMENTATION = [
    f"published/{head}_gpvit_{size}"
    for head, size in itertools.product(("segformer", "upernet"), ("l1", "l2", "l3", "l4"))
]
CLASSIFIERS = [f"published/classifier_gpvit_{size}" for size in ("l1", "l2", "l3", "l4")]


def config(name: str, *overrides: str) -> DictConfig:
    return load_config(str(REPOSITORY / "configs" / f"{name}.py"), overrides)


def image_with_object(height: int, width: int) -> dict:
    mask = torch.zeros(1, height, width, dtype=torch.bool)
    mask[:, 10:40, 20:60] = True
    instances = Instances(
        (height, width),
        gt_boxes=Boxes(torch.tensor([[20.0, 10.0, 60.0, 40.0]])),
        gt_classes=torch.tensor([3]),
        gt_masks=BitMasks(mask),
    )
    return {
        "image": torch.randint(0, 256, (3, height, width), dtype=torch.uint8),
        "instances": instances,
    }


def type_names(objects: list[Any]) -> list[str]:
    return [type(item).__name__ for item in objects]


def train_and_infer(model: nn.Module, *, masks: bool = True) -> Instances:
    batch = [image_with_object(64, 96), image_with_object(90, 70)]
    with EventStorage():
        losses = model.train()(batch)
    total_loss = sum(losses.values())
    assert total_loss.isfinite()
    total_loss.backward()
    for name, parameter in model.named_parameters():
        assert not parameter.requires_grad or parameter.grad is not None, name
    with torch.no_grad():
        results = model.eval()([{"image": batch[0]["image"], "height": 128, "width": 192}])
    output = results[0]["instances"]
    assert output.image_size == (128, 192)
    assert output.has("pred_masks") == masks
    assert not masks or output.pred_masks.shape[1:] == (128, 192)
    return output


@ALL
def test_detector_has_expected_number_of_parameters_trains_and_infers(name: str) -> None:
    small = (
        "model.roi_heads.batch_size_per_image=16",
        "model.proposal_generator.post_nms_topk=[50,30]",
    )
    cfg = config(name, *small)
    model = instantiate(cfg.model)
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]
    train_and_infer(model)


@ALL
def test_config_sets_size_drop_path_weights_and_folder(name: str) -> None:
    cfg, size = config(name), name[-2:]
    assert cfg.model.backbone.net.embed_dim == gpvit.SIZES[size.upper()]["embed_dim"]
    assert cfg.model.backbone.net.drop_path_rate == DROP_PATH[size]
    assert cfg.train.init_checkpoint.endswith(f"/gpvit_{size}_in1k_300e.pth")
    assert cfg.train.output_dir == f"output/{name}"
    assert len((REPOSITORY / "configs" / f"{name}.py").read_text().splitlines()) <= 20


def test_heads_equal_those_of_official_detectors() -> None:
    heads = config("mask_rcnn_gpvit_l1").model.roi_heads
    cascade_heads = config("cascade_mask_rcnn_gpvit_l2").model.roi_heads
    for box_head in (heads.box_head, *cascade_heads.box_heads):
        assert box_head.conv_dims == [256] * 4 and box_head.fc_dims == [1024]
        assert box_head.conv_norm == "SyncBN"
    assert len(heads.mask_head.conv_dims) == 5 and not heads.mask_head.get("conv_norm")


def optimizer_options(cfg: DictConfig, option: str) -> dict[nn.Parameter, float]:
    """An option of the optimizer, such as "lr", by parameter. ``optimizer.params.model`` is set."""
    options = {}
    for group in instantiate(cfg.optimizer).param_groups:
        options.update(dict.fromkeys(group["params"], group[option]))
    return options


def decay_of_parameters(name: str) -> dict[str, tuple[nn.Parameter, float]]:
    """The weight decay of each parameter of a config's model, by name."""
    cfg = config(name)
    with torch.device("meta"):
        model = instantiate(cfg.model)
    cfg.optimizer.params.model = model
    decay = optimizer_options(cfg, "weight_decay")
    return {key: (parameter, decay[parameter]) for key, parameter in model.named_parameters()}


def test_weight_decay_applies_to_layer_weights_only() -> None:
    for key, (parameter, decay) in decay_of_parameters("mask_rcnn_gpvit_l1").items():
        decays = key.endswith("weight") and parameter.ndim > 1
        assert decay == (0.05 if decays else 0.0), key


@pytest.mark.parametrize("name", PUBLISHED[::8])  # each architecture
def test_weight_decay_of_official_detectors_follows_official_names(name: str) -> None:
    parameters = decay_of_parameters(name)
    kind = published.MASK_RCNN if "mask_rcnn" in name else published.RETINANET
    decaying_norms = set()
    for key, (parameter, decay) in parameters.items():
        [official_name] = published.rename({key: parameter}, kind, inverse=True)
        exempt = ("norm", "bias", "pos_embed", "level_embed", "group_token")
        assert decay == (0.0 if any(word in official_name for word in exempt) else 0.05), key
        if decay and parameter.ndim == 1:
            decaying_norms.add(official_name.split(".")[1])
    # Batch norms of other names decay, and so do the injectors' gammas.
    assert {"patch_embed", "layers", "spm", "interactions"} <= decaying_norms


def test_one_override_enables_layer_decay() -> None:
    cfg = config("mask_rcnn_gpvit_l1", "optimizer.params.lr_factor_func.rate=0.5")
    with torch.device("meta"):
        cfg.optimizer.params.model = instantiate(cfg.model)
    rates = optimizer_options(cfg, "lr")
    parameters = dict(cfg.optimizer.params.model.named_parameters())
    powers = {"pos_embed": 13, "blocks.0.norm1.weight": 12, "blocks.11.norm1.weight": 1}
    for name, power in powers.items():
        assert rates[parameters[f"backbone.net.{name}"]] == pytest.approx(2e-4 * 0.5**power)
    assert rates[parameters["proposal_generator.rpn_head.conv.weight"]] == pytest.approx(2e-4)


@pytest.mark.parametrize(
    ("overrides", "drops"),
    [
        ([], {29_300: 1.0, 29_330: 0.1, 40_300: 0.1, 40_330: 0.01}),
        (
            ["train.max_iter=131925", "lr_multiplier.milestones=[0.75,0.9167]"],
            {98_930: 1.0, 98_960: 0.1, 120_950: 0.01},
        ),
    ],
)
def test_schedule_has_official_warmup_and_milestones(
    overrides: list[str], drops: dict[int, float]
) -> None:
    cfg = config("mask_rcnn_gpvit_l1", *overrides)
    schedule = instantiate(cfg.lr_multiplier)

    def factor(iteration: int) -> float:
        return schedule(iteration / cfg.train.max_iter)

    assert factor(0) == pytest.approx(0.001)
    assert factor(250) == pytest.approx(0.5, rel=0.01)
    assert factor(501) == pytest.approx(1.0)
    for iteration, expected in drops.items():
        assert factor(iteration) == pytest.approx(expected), iteration


def test_warmup_is_at_most_a_tenth_of_the_run() -> None:
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


def test_one_override_enables_large_scale_jitter() -> None:
    cfg = config("mask_rcnn_gpvit_l1")
    types = type_names(instantiate(cfg.dataloader.train.mapper.augmentations))
    assert types == ["ResizeShortestEdge", "RandomFlip"]
    cfg = config("mask_rcnn_gpvit_l1", "dataloader.train.mapper.augmentations.recipe=lsj")
    types = type_names(instantiate(cfg.dataloader.train.mapper.augmentations))
    assert types == ["ResizeScale", "FixedSizeCrop", "RandomFlip"]
    with pytest.raises(UserError, match='recipe must be resize or lsj, got "ljs"'):
        config("mask_rcnn_gpvit_l1", "dataloader.train.mapper.augmentations.recipe=ljs")


def test_all_published_configs_are_tested() -> None:
    files = (REPOSITORY / "configs" / "published").glob("*.py")
    names = sorted(PUBLISHED + SEGMENTATION + CLASSIFIERS)
    assert names == [f"published/{file.stem}" for file in sorted(files)]


@pytest.mark.parametrize("name", SEGMENTATION)
def test_segmentation_config_has_official_recipe(name: str) -> None:
    cfg, size = config(name), name[-2:]
    net = cfg.model.backbone
    assert {key: net[key] for key in ("embed_dim", "stem_convs")} == gpvit.SIZES[size.upper()]
    assert net.drop_path_rate == (0.1 if size in ("l1", "l2") else 0.2)
    assert cfg.train.init_checkpoint.endswith(f"/v0.0.1/gpvit_{size}_in1k_300e.pth")
    assert cfg.train.output_dir == f"output/{name}"
    assert (cfg.optimizer.lr, cfg.optimizer.weight_decay) == (1.2e-4, 0.01)
    assert cfg.dataloader.train.total_batch_size == 32 and cfg.train.max_iter == 160_000
    assert cfg.train.eval_period == (16_000 if "segformer" in name else 0)
    assert cfg.train.checkpointer.period == 16_000
    assert not cfg.train.amp.enabled and not cfg.train.clip_norm
    train = instantiate(cfg.dataloader.train.mapper.augmentations)
    assert type_names(train) == [
        "FitResize", "CropWithSeveralClasses", "RandomFlip", "PhotometricDistortion"
    ]  # fmt: skip
    resize, crop, flip, _ = train
    assert (resize.short_side, resize.long_side, list(resize.ratio_range)) == (512, 2048, [0.5, 2])
    assert (crop.size, cfg.model.train_size, flip.prob) == (512, 512, 0.5)
    fit, stretch = instantiate(cfg.dataloader.test.mapper.augmentations)
    assert (fit.short_side, fit.long_side, tuple(fit.ratio_range)) == (512, 2048, (1, 1))
    assert stretch.multiple == 32
    assert len((REPOSITORY / "configs" / f"{name}.py").read_text().splitlines()) <= 20


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_classifier_config_has_official_recipe(name: str) -> None:
    cfg, size = config(name), name[-2:]
    net, train = cfg.model.backbone, cfg.train
    assert {key: net[key] for key in ("embed_dim", "stem_convs")} == gpvit.SIZES[size.upper()]
    is_small = size in ("l1", "l2")
    assert net.drop_path_rate == (0.2 if is_small else 0.3) and net.norm == "BN"
    assert cfg.model.pooling == ("attention" if is_small else "mean")
    assert (cfg.model.label_smoothing, cfg.model.mixup, cfg.model.cutmix) == (0.1, 0.8, 1.0)
    assert (cfg.optimizer.lr, cfg.optimizer.weight_decay) == (2e-3, 0.05)
    assert "eps" not in cfg.optimizer and list(cfg.optimizer.betas) == [0.9, 0.999]
    assert cfg.dataloader.train.total_batch_size == 2048 and train.max_iter == 300 * 625
    assert (cfg.lr_multiplier.warmup_iters, cfg.lr_multiplier.warmup_factor) == (15 * 625, 1e-3)
    assert (train.eval_period, train.clip_norm, train.ema_decay) == (5 * 625, 1.0, 0.0)
    assert (train.amp.dtype, train.init_checkpoint) == ("float16", "")
    assert train.output_dir == f"output/{name}"
    assert type_names(instantiate(cfg.dataloader.train.mapper.augmentations)) == [
        "RandomResizedCrop", "RandomFlip", "RandAugment", "RandomErasing"
    ]  # fmt: skip
    resize, crop = instantiate(cfg.dataloader.test.mapper.augmentations)
    assert (type_names([resize, crop]), resize.size, crop.size) == (
        ["ResizeShorterSide", "CenterCrop"], 256, 224
    )  # fmt: skip
    text = (REPOSITORY / "configs" / f"{name}.py").read_text()
    top1, top5 = IMAGENET_ACCURACY[name.removeprefix("published/")]
    assert f"Top-1 / top-5 as published: {top1} / {top5}." in text
    assert len(text.splitlines()) <= 20


@ALL_PUBLISHED
def test_published_config_sets_size_weights_and_folder(name: str) -> None:
    cfg, size = config(name), name[-5:-3]
    net = cfg.model.backbone.bottom_up.net
    assert {key: net[key] for key in ("embed_dim", "stem_convs")} == gpvit.SIZES[size.upper()]
    assert not net.final_norm and "group_tokens" not in net
    assert cfg.train.init_checkpoint.endswith(f"/v0.0.1/gpvit_{size}_in1k_300e.pth")
    assert cfg.train.output_dir == f"output/{name}"
    assert len((REPOSITORY / "configs" / f"{name}.py").read_text().splitlines()) <= 20


@ALL_PUBLISHED
@pytest.mark.parametrize("override", [None, 0.3])
def test_drop_path_rate_is_official_and_shared_by_adapter_and_backbone(
    name: str, override: float | None
) -> None:
    overrides = [f"model.backbone.bottom_up.net.drop_path_rate={override}"] if override else []
    with torch.device("meta"):
        adapter = instantiate(config(name, *overrides).model.backbone.bottom_up)
    rate = override or PUBLISHED_DROP_PATH.get(name, 0.1)
    assert [extractor.drop_path.p for extractor in adapter.extractors] == [rate] * 6
    assert [block.drop_path.p for block in adapter.net.blocks[::11]] == pytest.approx([0.0, rate])


@ALL_PUBLISHED
def test_published_config_has_official_recipe(name: str) -> None:
    cfg, is_mask_rcnn = config(name), "mask_rcnn" in name
    assert (cfg.optimizer.lr, cfg.optimizer.weight_decay) == (2e-4, 0.05)
    assert cfg.dataloader.train.total_batch_size == 32
    assert (cfg.lr_multiplier.warmup_iters, cfg.lr_multiplier.warmup_factor) == (500, 0.001)
    assert cfg.train.clip_norm == (0.0 if is_mask_rcnn else 35.0)
    tasks = ["bbox", "segm"] if is_mask_rcnn else ["bbox"]
    assert list(cfg.dataloader.evaluator.tasks) == tasks
    assert cfg.dataloader.train.mapper.use_instance_mask == is_mask_rcnn
    assert not cfg.dataloader.train.mapper.recompute_boxes

    augmentations = list(instantiate(cfg.dataloader.train.mapper.augmentations))
    types = type_names(augmentations)
    milestones = list(cfg.lr_multiplier.milestones)
    if name.endswith("1x"):
        assert cfg.train.max_iter == 43_975 and milestones == [8 / 12, 11 / 12]
        assert types == ["OpenCVResize", "RandomFlip"]
        resize, flip = augmentations
        assert set(resize.short_edge_length) == {800}
    else:
        assert cfg.train.max_iter == 131_925 and milestones == [27 / 36, 33 / 36]
        assert types == ["RandomFlip", "RandomApply", "OpenCVResize", "RandomCrop"]
        flip, _, resize, _ = augmentations
        assert list(resize.short_edge_length) == list(range(480, 801, 32))
    assert (resize.max_size, flip.prob, flip.horizontal) == (1333, 0.5, True)
    (resize,) = instantiate(cfg.dataloader.test.mapper.augmentations)
    assert type(resize).__name__ == "OpenCVResize"
    assert (*resize.short_edge_length, resize.max_size) == (800, 800, 1333)


@ALL_PUBLISHED
def test_published_config_has_official_thresholds_and_limits(name: str) -> None:
    with torch.device("meta"):
        model = instantiate(config(name).model)
    if "mask_rcnn" in name:
        rpn, box = model.proposal_generator, model.roi_heads.box_predictor
        assert rpn.pre_nms_topk == {True: 2000, False: 1000}  # by model.training
        assert rpn.post_nms_topk == {True: 1000, False: 1000}
        assert (rpn.nms_thresh, rpn.min_box_size) == (0.7, 0.0)
        assert (box.test_score_thresh, box.test_nms_thresh) == (0.05, 0.5)
        assert box.test_topk_per_image == 100
    else:
        assert (model.test_score_thresh, model.test_nms_thresh) == (0.05, 0.5)
        assert model.max_detections_per_image == 100
        assert model.test_topk_candidates == 1000


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        (
            "published/mask_rcnn_gpvit_l1_1x",
            [
                "model.proposal_generator.post_nms_topk=[50,30]",
                "model.roi_heads.batch_size_per_image=16",
                "model.roi_heads.box_predictor.test_score_thresh=0",
            ],
        ),
        ("published/retinanet_gpvit_l1_1x", ["model.test_score_thresh=0"]),
    ],
)
def test_published_detector_trains_and_infers(name: str, overrides: list[str]) -> None:
    net = "model.backbone.bottom_up.net"
    small = (f"{net}.embed_dim=24", f"{net}.group_tokens=[0,4,0,4]")
    model = instantiate(config(name, *overrides, *small).model)
    output = train_and_infer(model, masks="mask_rcnn" in name)
    assert len(output) == 100  # the maximum, since no score is below the threshold of 0
    # gamma, a factor of everything else in an injector, is 0 at the start.
    for key, parameter in model.backbone.bottom_up.injectors.named_parameters():
        assert parameter.grad.any() == key.endswith("gamma"), key


def test_resolution_overrides_apply_to_published_config() -> None:
    cfg = config(
        "published/retinanet_gpvit_l1_1x",
        "dataloader.short_side=400",
        "dataloader.max_size=666",
        "dataloader.test.mapper.augmentations.0.max_size=99",
    )
    train = instantiate(cfg.dataloader.train.mapper.augmentations)[0]
    test = instantiate(cfg.dataloader.test.mapper.augmentations)[0]
    assert (*train.short_edge_length, train.max_size) == (400, 400, 666)
    assert (*test.short_edge_length, test.max_size) == (400, 400, 99)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.max_itr=1", "did you mean train.max_iter?"),
        ("model.backbone.net.frozen_block=1", "did you mean model.backbone.net.frozen_blocks?"),
        ("model.roi_heads.box_heads=1", "did you mean model.roi_heads.box_head?"),
        ("train.max_iter", "not of the form key=value"),
        (
            "train.output_dir=[",
            "cannot read the override train.output_dir=[; a folder named [ needs quotes",
        ),
        ("dataloader.test.mapper.augmentations.3.max_size=1", "known here: 0"),
    ],
)
def test_misspelled_override_raises_with_similar_key(override: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        config("mask_rcnn_gpvit_l1", override)
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "override", "likely"),
    [
        (
            "mask_rcnn_gpvit_l1_1x",
            "model.backbone.bottom_up.out_feature=[f3]",
            "model.backbone.bottom_up.out_features",
        ),
        (
            "mask_rcnn_gpvit_l1_1x",
            "model.backbone.bottom_up.num_head=2",
            "model.backbone.bottom_up.num_heads",
        ),
        ("retinanet_gpvit_l1_1x", "model.test_score_tresh=0.1", "model.test_score_thresh"),
        (
            "retinanet_gpvit_l1_3x",
            "dataloader.train.mapper.augmentations.short_side=[480]",
            "dataloader.train.mapper.augmentations.short_sides",
        ),
    ],
)
def test_misspelled_override_of_published_config_raises_with_similar_key(
    name: str, override: str, likely: str
) -> None:
    with pytest.raises(
        UserError, match=rf"the config has no .*; did you mean {likely}\?$"
    ) as error:
        config(f"published/{name}", override)
    assert "\n" not in str(error.value)


def test_override_sets_parameter_that_config_does_not_set() -> None:
    cfg = config(
        "mask_rcnn_gpvit_l1",
        "model.backbone.net.frozen_blocks=2",
        "dataloader.test.mapper.augmentations.0.max_size=99",
        "+train.note=mine",
    )
    assert cfg.model.backbone.net.frozen_blocks == 2
    assert cfg.dataloader.test.mapper.augmentations[0].max_size == 99
    assert cfg.train.note == "mine"


def test_old_key_names_are_accepted(tmp_path: Path) -> None:
    old = ("train.checkpointer.best_metric=segm/AP", "+train.checkpointer.patience=3")
    saved = tmp_path / "config.yaml"
    save_config(config("quickstart"), str(saved))
    old_keys = "  checkpointer:\n    best_metric: bbox/AP\n    patience: 5\n"
    saved.write_text(saved.read_text().replace("  checkpointer:\n", old_keys))
    for cfg, expected in (
        (config("quickstart", *old), ("segm/AP", 3)),
        (load_config(str(saved)), ("bbox/AP", 5)),
        (load_config(str(saved), old), ("segm/AP", 3)),
    ):
        assert (cfg.train.best_metric, cfg.train.patience) == expected
        assert set(cfg.train.checkpointer) == {"period", "max_to_keep"}


def test_old_config_gets_missing_keys_with_what_they_did(tmp_path: Path) -> None:
    saved = tmp_path / "config.yaml"
    cfg = config("quickstart")
    del cfg.train.eval_dtype, cfg.train.compile
    save_config(cfg, str(saved))
    loaded = load_config(str(saved))
    assert (loaded.train.eval_dtype, loaded.train.compile) == ("float32", False)
    assert load_config(str(saved), ["train.eval_dtype=bfloat16"]).train.eval_dtype == "bfloat16"
    for text in ("train:\n", "train: 3\n"):
        saved.write_text(text)
        assert list(load_config(str(saved))) == ["train"]


def test_function_in_a_config_file_is_saved_by_name_and_not_called_from_yaml(
    tmp_path: Path,
) -> None:
    saved = tmp_path / "config.yaml"
    save_config(config("ablation/unmixed"), str(saved))
    assert "_target_: unmixed_gpvit\n" in saved.read_text()
    with pytest.raises(UserError, match="would call unmixed_gpvit, which a YAML config may not"):
        load_config(str(saved))


def test_class_in_an_imported_config_file_has_the_same_name_at_every_load() -> None:
    first, second = [flattened(config("ablation/stride16_large")) for _ in range(2)]
    assert first == second
    assert first["model.backbone.net._target_"] == "CoarseGPViT"


def test_missing_config_file_raises_with_its_name() -> None:
    with pytest.raises(UserError, match="configs/nothing.py does not exist"):
        load_config("configs/nothing.py")


def test_yacs_example_builds_same_detector_trains_and_infers() -> None:
    cfg = get_cfg()
    gpvit.add_gpvit_config(cfg)
    cfg.merge_from_file(str(REPOSITORY / "configs" / "yacs" / "mask_rcnn_gpvit_l1.yaml"))
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE = 16
    cfg.MODEL.RPN.POST_NMS_TOPK_TRAIN = 50
    model = build_model(cfg)
    lazy = instantiate(config("mask_rcnn_gpvit_l1").model)
    expected = lazy.state_dict()
    assert model.state_dict().keys() == expected.keys()
    for key, tensor in model.state_dict().items():
        assert tensor.shape == expected[key].shape, key
    assert torch.equal(model.pixel_std, lazy.pixel_std)
    train_and_infer(model)


def test_plain_backbone_is_registered() -> None:
    cfg = get_cfg()
    gpvit.add_gpvit_config(cfg)
    cfg.MODEL.GPVIT.OUT_FEATURES = ["block2", "last_feat"]
    cfg.MODEL.BACKBONE.NAME = "build_gpvit_backbone"
    net = build_backbone(cfg)
    assert isinstance(net, gpvit.GPViT)
    assert list(net.output_shape()) == ["block2", "last_feat"]
