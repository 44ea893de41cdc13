"""Reading, loading and writing of checkpoint files."""

import argparse
import copy
import datetime
import logging
import os
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import detectron2.checkpoint  # noqa: F401 (registers addresses such as catalog://)
import gpvit
import numpy as np
import official
import pytest
import torch
from children import in_a_child
from conftest import REPOSITORY
from detectron2.config import instantiate
from gpvit import checkpoint
from gpvit.checkpoint.loading import _layers_of_other_classes
from gpvit.checkpoint.published import COCO_CLASSES
from gpvit.config import load_config
from gpvit.data import set_num_classes
from gpvit.model_zoo import IMAGENET_WEIGHTS
from gpvit.utils.errors import UserError
from torch import nn

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def classifier_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with the exact layout of the official L1 classifier."""
    path = tmp_path_factory.mktemp("weights") / "gpvit_l1_in1k_300e.pth"
    meta = {
        "mmcv_version": "1.4.8",
        "time": "Mon Jan  1 00:00:00 2022",
        "epoch": 300,
        "iter": 375_300,
        "CLASSES": ["tench", "goldfish"],
        "seed": np.int64(3),
        "accuracy": np.float64(80.5),
        "hook_msgs": {},
        "args": argparse.Namespace(launcher="slurm"),
    }
    torch.save({"meta": meta, "state_dict": official.weights("classifier", "L1")}, path)
    return path


def detector(size: str = "L1", **options) -> nn.Module:
    cfg = load_config(str(REPOSITORY / "configs" / f"mask_rcnn_gpvit_{size.lower()}.py"))
    cfg.model.backbone.net.update(options)
    return instantiate(cfg.model)


@torch.no_grad()
def test_official_classifier_initializes_detector(
    classifier_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = detector().eval()
    head = model.roi_heads.box_predictor.cls_score.weight.clone()
    with caplog.at_level(logging.INFO, logger="gpvit"):
        checkpoint.load(model, str(classifier_file))
    (message,) = caplog.messages
    assert message.startswith(
        f"published ImageNet classifier L1 {classifier_file}: 327 of 333 tensors loaded; "
    )
    assert (
        "; dropped: 6 outside the backbone; randomly initialized: 74 outside the backbone"
        in message
    )
    assert torch.equal(model.roi_heads.box_predictor.cls_score.weight, head)

    backbone = gpvit.GPViT(**gpvit.SIZES["L1"]).eval()
    checkpoint.load(backbone, str(classifier_file))
    image = official.image(0, (1, 3, 64, 64))
    assert torch.equal(model.backbone.net(image)["last_feat"], backbone(image)["last_feat"])


@pytest.mark.parametrize(
    ("options", "summary"),
    [
        (
            dict(norm="FrozenBN"),
            "322 of 333 tensors loaded; dropped: 6 outside the backbone, "
            "5 step counters of batch norm",
        ),
        (
            dict(frozen_blocks=5),
            "327 of 333 tensors loaded; dropped: 6 outside the backbone; "
            "randomly initialized: 74 outside the backbone",
        ),
        (
            dict(final_norm=False),
            "325 of 333 tensors loaded; dropped: 6 outside the backbone, "
            "2 norms that the model does not have",
        ),
    ],
)
def test_official_classifier_loads_into_every_backbone_variant(
    classifier_file: Path, caplog: pytest.LogCaptureFixture, options: dict, summary: str
) -> None:
    model = detector(**options)
    with caplog.at_level(logging.INFO, logger="gpvit"):
        checkpoint.load(model, classifier_file)
    assert summary in caplog.messages[-1]
    expected = checkpoint.read(str(classifier_file)).backbone_alone().weights
    for key, tensor in model.backbone.net.state_dict().items():
        assert torch.equal(tensor, expected[key]), key


def test_frozen_batch_norm_loads_into_batch_norm_with_step_counters(
    classifier_file: Path, tmp_path: Path, caplog
) -> None:
    weights = checkpoint.read(str(classifier_file)).backbone_alone().weights
    for key in list(weights):
        if "num_batches" in key:
            del weights[key]
    checkpoint.write(str(tmp_path / "frozen.pth"), weights)
    with caplog.at_level(logging.INFO, logger="gpvit"):
        checkpoint.load(gpvit.GPViT(**gpvit.SIZES["L1"]), tmp_path / "frozen.pth")
    assert (
        "322 of 322 tensors loaded; randomly initialized: 5 step counters of batch norm"
        in caplog.messages[-1]
    )


def test_official_file_of_other_size_raises_and_leaves_model_unchanged(
    classifier_file: Path,
) -> None:
    model = detector("L2")
    before = model.backbone.net.pos_embed.clone()
    with pytest.raises(
        UserError,
        match="published ImageNet classifier L1. has 216 channels, the model is L2 and has 348",
    ) as error:
        checkpoint.load(model, str(classifier_file))
    assert "\n" not in str(error.value)
    assert torch.equal(model.backbone.net.pos_embed, before)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("backbone.layers.3.proj.bias"), r"1 missing \(blocks.3.attn.proj.bias\)"),
        (
            lambda w: w.update({"backbone.layers.3.gamma": torch.ones(1)}),
            "a published ImageNet classifier has no backbone.layers.3.gamma",
        ),
        (
            lambda w: w.update({"extra.x": torch.ones(1)}),
            "a published ImageNet classifier has no extra.x",
        ),
        (
            lambda w: w.update({"backbone.pos_embed": torch.tensor(1.0)}),
            r"pos_embed \(\) instead of \(1, 784, 216\)",
        ),
        (
            lambda w: w.update({"backbone.pos_embed": "text"}),
            "its 'state_dict' is not a dict of tensors",
        ),
        (
            lambda w: w.pop("head.fc.weight") + w.pop("head.fc.bias")[:, None],
            "not a published GPViT model; it contains backbone",
        ),
        (
            lambda w: w.update({"backbone.pos_embed": torch.ones(1, 196, 216)}),
            r"\(1, 196, 216\) instead of",
        ),
    ],
)
def test_official_classifier_with_wrong_tensors_raises_with_their_names(
    tmp_path: Path, change, message: str
) -> None:
    weights = official.weights("classifier", "L1")
    change(weights)
    torch.save({"meta": {}, "state_dict": weights}, tmp_path / "weights.pth")
    with pytest.raises(UserError, match=message):
        checkpoint.load(detector(), str(tmp_path / "weights.pth"))


class Canary:
    """Executes code when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "damaged"),
        (b"no checkpoint at all", "damaged"),
        ("truncated", "damaged"),
        ("canary", "contains posix.mkdir, which is code"),
        ("list", "holds a list"),
        ("neither", "has neither 'model' .* nor 'state_dict'"),
        ("none", "its 'model' is not a dict of tensors"),
    ],
)
def test_invalid_file_raises_and_executes_nothing(tmp_path: Path, content, message: str) -> None:
    path, canary = tmp_path / "weights.pth", tmp_path / "canary"
    if content == "truncated":
        torch.save({"model": {"weight": torch.zeros(1000)}}, path)
        path.write_bytes(path.read_bytes()[:-100])
    elif isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(
            {
                "canary": {"model": Canary(canary)},
                "list": [1],
                "neither": {"weights": 1},
                "none": {"model": None},
            }[content],
            path,
        )
    with pytest.raises(UserError, match=message) as error:
        checkpoint.load(nn.Linear(1, 1), str(path))
    assert "\n" not in str(error.value) and str(path) in str(error.value)
    assert not canary.exists()


@pytest.fixture(scope="module")
def official_file(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], str]:
    """Files with the exact layout of official ones, of any kind and size."""
    folder = tmp_path_factory.mktemp("published")

    def make(kind: str, size: str) -> str:
        path = folder / f"gpvit_{size.lower()}_{kind}.pth"
        if not path.exists():
            meta = {
                "mmcv_version": "1.4.8",
                "time": "Mon Jan  1 00:00:00 2022",
                "epoch": 12,
                "iter": 87_960,
            }
            torch.save({"meta": meta, "state_dict": official.weights(kind, size)}, path)
        return str(path)

    return make


def official_detector(name: str, num_classes: int = 80) -> nn.Module:
    cfg = load_config(str(REPOSITORY / "configs" / "published" / f"{name}.py"))
    set_num_classes(cfg.model, num_classes)
    return instantiate(cfg.model)


CLASS_LAYERS = {
    "maskrcnn": (
        "roi_heads.box_predictor.cls_score.weight",
        "roi_heads.box_predictor.cls_score.bias",
        "roi_heads.box_predictor.bbox_pred.weight",
        "roi_heads.box_predictor.bbox_pred.bias",
        "roi_heads.mask_head.predictor.weight",
        "roi_heads.mask_head.predictor.bias",
    ),
    "retinanet": ("head.cls_score.weight", "head.cls_score.bias"),
}


@pytest.mark.parametrize(
    ("kind", "config", "classes"),
    [
        ("maskrcnn", "mask_rcnn_gpvit_l1_1x", ["fig", "date", "hazelnut"]),
        ("retinanet", "retinanet_gpvit_l1_3x", ["fig", "date", "hazelnut"]),
        (
            "maskrcnn",
            "mask_rcnn_gpvit_l1_3x",
            [f"class {i}" for i in range(80)],  # as many as COCO, with other names
        ),
        ("maskrcnn", "mask_rcnn_gpvit_l1_3x", None),  # as many as COCO, names unknown
        ("retinanet", "retinanet_gpvit_l1_1x", COCO_CLASSES),
    ],
)
def test_official_detector_loads_all_but_layers_of_other_classes(
    official_file,
    caplog: pytest.LogCaptureFixture,
    kind: str,
    config: str,
    classes: list[str] | None,
) -> None:
    model = official_detector(config, len(classes or COCO_CLASSES))
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    with caplog.at_level(logging.DEBUG, logger="gpvit"):
        checkpoint.load(model, official_file(kind, "L1"), classes)
    weights = checkpoint.read(official_file(kind, "L1")).weights
    not_loaded = [] if classes in (None, COCO_CLASSES) else CLASS_LAYERS[kind]
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[key] if key in not_loaded else weights[key]), key
    *details, summary = caplog.messages
    assert caplog.records[-1].levelno == logging.INFO
    assert f"{len(before) - len(not_loaded)} of {len(before)} tensors loaded" in summary
    reason = f"randomly initialized: {len(not_loaded)} that depend on the classes"
    assert (reason in summary) == bool(not_loaded)
    for key in not_loaded:
        assert key in "\n".join(details)


@pytest.mark.parametrize("kind", ["segformer", "upernet"])
def test_backbone_of_official_segmentation_model_is_loaded(
    official_file, caplog, kind: str
) -> None:
    model = detector()
    with caplog.at_level(logging.INFO, logger="gpvit"):
        checkpoint.load(model, official_file(kind, "L1"))
    expected = official.weights(kind, "L1")
    assert torch.equal(model.backbone.net.pos_embed, expected["backbone.pos_embed"])
    assert torch.equal(
        model.backbone.net.out_norms.last_feat.weight, expected["backbone.ln1.weight"]
    )
    assert "327 of" in caplog.messages[-1]
    assert "6 norms that the model does not have" in caplog.messages[-1]


@pytest.mark.parametrize(
    ("kind", "size", "make", "message"),
    [
        (
            "retinanet",
            "L1",
            lambda: official_detector("mask_rcnn_gpvit_l1_1x"),
            "is RetinaNet with the adapter .published RetinaNet L1., the model is Mask R-CNN with",
        ),
        (
            "maskrcnn",
            "L1",
            lambda: official_detector("retinanet_gpvit_l1_1x"),
            "is Mask R-CNN with the adapter .published Mask R-CNN L1., the model is RetinaNet with",
        ),
        (
            "maskrcnn",
            "L1",
            detector,
            "the model is Mask R-CNN with a simple feature pyramid: use the config",
        ),
        (
            "maskrcnn",
            "L1",
            lambda: official_detector("mask_rcnn_gpvit_l2_1x"),
            "has 216 channels, the model is L2",
        ),
        (
            "maskrcnn",
            "L1",
            lambda: gpvit.GPViT(embed_dim=216),
            "is Mask R-CNN with the adapter .*, the model is a backbone alone",
        ),
        ("upernet", "L3", lambda: gpvit.GPViT(embed_dim=216), "has 432 channels, the model is L1"),
        (
            "segformer",
            "L1",
            lambda: nn.Linear(1, 1),
            "contains one GPViT, the model has 0 of them",
        ),
    ],
)
def test_official_file_of_other_architecture_or_size_raises_one_line(
    official_file, kind, size, make, message: str
) -> None:
    model = make()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    with pytest.raises(UserError, match=message) as error:
        checkpoint.load(model, official_file(kind, size))
    assert "\n" not in str(error.value)
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[key])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda w: w.pop("neck.fpn_convs.2.bn.bias"),
            r"1 missing \(backbone.fpn_output4.norm.bias\)",
        ),
        (
            lambda w: w.pop("roi_head.bbox_head.fc_reg.weight"),
            "1 missing .roi_heads.box_predictor.bbox_pred.weight",
        ),
        (
            lambda w: w.update({"neck.gate.weight": torch.ones(1)}),
            "a published Mask R-CNN has no neck.gate.weight",
        ),
        (
            lambda w: w.pop("roi_head.bbox_head.fc_cls.weight"),
            "1 missing .roi_heads.box_predictor.cls_score.weight",
        ),
        (
            lambda w: w.update({"backbone.interactions.5.extractor.ffn.fc1.bias": torch.ones(54)}),
            "a published Mask R-CNN has no backbone.interactions.5.extractor.ffn.fc1.bias",
        ),
        (
            lambda w: w.update({"rpn_head.rpn_cls.bias": torch.ones(5)}),
            r"objectness_logits.bias \(5,\) instead of \(3,\)",
        ),
    ],
)
def test_official_detector_with_wrong_tensors_raises_with_their_names(
    tmp_path: Path, change, message: str
) -> None:
    weights = official.weights("maskrcnn", "L1")
    change(weights)
    torch.save({"meta": {}, "state_dict": weights}, tmp_path / "weights.pth")
    model = official_detector("mask_rcnn_gpvit_l1_1x")
    before = model.backbone.bottom_up.net.pos_embed.clone()
    with pytest.raises(UserError, match=message):
        checkpoint.load(model, str(tmp_path / "weights.pth"))
    assert torch.equal(model.backbone.bottom_up.net.pos_embed, before)


def test_official_detector_has_class_names(official_file, tmp_path: Path) -> None:
    assert checkpoint.read(official_file("retinanet", "L1")).classes == COCO_CLASSES
    assert (
        COCO_CLASSES[0] == "person" and COCO_CLASSES[79] == "toothbrush" and len(COCO_CLASSES) == 80
    )
    weights = official.weights("retinanet", "L1")
    weights["bbox_head.retina_cls.weight"] = torch.zeros(18, 256, 3, 3)
    weights["bbox_head.retina_cls.bias"] = torch.zeros(18)
    for meta, classes in (({"CLASSES": ("fig", "date")}, ["fig", "date"]), ({}, None)):
        torch.save({"meta": meta, "state_dict": weights}, tmp_path / "two.pth")
        assert checkpoint.read(str(tmp_path / "two.pth")).classes == classes
    model = official_detector("retinanet_gpvit_l1_1x", 2)
    checkpoint.load(model, str(tmp_path / "two.pth"))
    assert not model.head.cls_score.weight.any()


@pytest.mark.parametrize(
    ("shapes", "of_file", "of_model", "not_loaded"),
    [
        ({"cls_score.weight": 4, "bbox_pred.weight": 12}, "abc", "abc", []),
        (
            {"cls_score.weight": 4, "bbox_pred.weight": 12},
            "abc",
            "abd",
            ["cls_score.weight", "bbox_pred.weight"],
        ),
        ({"cls_score.weight": 4, "bbox_pred.weight": 12}, "abc", None, []),
        (
            {"cls_score.weight": 4, "bbox_pred.weight": 4},
            "abc",
            "abd",
            ["cls_score.weight"],  # the box is the same for all classes
        ),
        (  # four outputs are one box, for the only class
            {"cls_score.weight": 2, "bbox_pred.weight": 4},
            "a",
            "b",
            ["cls_score.weight", "bbox_pred.weight"],
        ),
    ],
)
def test_layers_of_other_classes_are_not_loaded(shapes, of_file, of_model, not_loaded) -> None:
    prefix = "roi_heads.box_predictor."
    weights = {prefix + key: torch.zeros(rows, 8) for key, rows in shapes.items()}
    file = checkpoint.File("file", weights, list(of_file))
    layers = _layers_of_other_classes(file, weights, list(of_model) if of_model else None)
    assert layers == [prefix + key for key in not_loaded]


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
def test_written_checkpoint_is_read_back(tmp_path: Path, name: str) -> None:
    path = str(tmp_path / name)
    weights = {"weight": torch.randn(3, 2).T, "bias": torch.tensor(3)}
    checkpoint.write(path, weights, classes=["cat", "dog"], source="somewhere")
    file = checkpoint.read(path)
    assert file.classes == ["cat", "dog"] and checkpoint.read_content(path)["source"] == "somewhere"
    assert file.weights.keys() == weights.keys()
    (tmp_path / "other").touch()
    assert Path(path).stat().st_mode == (tmp_path / "other").stat().st_mode
    for key, tensor in weights.items():
        assert torch.equal(file.weights[key], tensor)
    content = Path(path).read_bytes()
    Path(path).write_bytes(content[:-30])
    with pytest.raises(UserError, match="the file is damaged"):
        checkpoint.read(path)


def test_missing_file_and_unreachable_address_raise_with_hint() -> None:
    with pytest.raises(UserError, match="nowhere.pth does not exist"):
        checkpoint.load(nn.Linear(1, 1), "nowhere.pth")
    address = "http://127.0.0.1:9/gpvit_l1_in1k_300e.pth"
    with pytest.raises(
        UserError, match='cannot download http.*give its path instead; .*train.init_checkpoint=""'
    ) as error:
        checkpoint.load(nn.Linear(1, 1), address)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "address",
    [
        "http://127.0.0.1:9/../../../x.pth",
        "http://127.0.0.1:9/a/../../x.pth",
        "http://127.0.0.1:9/a/..",
        "http://127.0.0.1:9/a?b=/..",
        "http://127.0.0.1:9/a\\..\\x.pth",
        "detectron2://../../x.pth",
        "catalog://nothing/here",
        "http://[bad/x.pth",
        "hf://me/toys/../../x",
        "hf://me/toys@..%2f..%2fx/model.safetensors",
        "hf://me/toys@..",
        "hf://me/toys/a\\..\\b",
        "hf://me/toys/x\0",
    ],
)
def test_address_outside_the_cache_raises(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, address: str
) -> None:
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "a" / "b" / "cache"))
    reason = "no part that is empty" if address.startswith("hf:") else "cannot download"
    with pytest.raises(UserError, match=reason) as raised:
        checkpoint.fetch(address)
    assert "\n" not in str(raised.value) and not list(tmp_path.rglob("x*"))


def test_folder_resolves_to_best_then_final_then_newest_checkpoint(
    tmp_path: Path,
) -> None:
    with pytest.raises(UserError, match="has no checkpoint of a detector"):
        checkpoint.read(str(tmp_path))
    for name in ("model_0000200", "model_0001000", "model_final", "model_best"):
        expected = str(tmp_path / f"{name}.pth")
        checkpoint.write(expected, {"x": torch.zeros(1)})
        assert checkpoint.read(str(tmp_path)).path == expected
        assert checkpoint.fetch(str(tmp_path)) == expected


def test_other_classes_without_argument_cause_warning(
    official_file, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoint.load(official_detector("retinanet_gpvit_l1_1x", 3), official_file("retinanet", "L1"))
    assert caplog.records[-1].levelno == logging.WARNING
    assert "randomly initialized: 2 that depend on the classes" in caplog.messages[-1]


def test_saved_weights_and_classes_are_loaded(tmp_path: Path) -> None:
    model, other = nn.Linear(3, 2), nn.Linear(3, 2)
    checkpoint.write(str(tmp_path / "model.pth"), model.state_dict(), classes=["cat", "dog"])
    checkpoint.load(other, str(tmp_path / "model.pth"))
    assert torch.equal(other.weight, model.weight)
    assert checkpoint.read(str(tmp_path / "model.pth")).require_classes() == ["cat", "dog"]
    with pytest.raises(UserError, match=r"weight \(2, 3\) instead of \(2, 4\)"):
        checkpoint.load(nn.Linear(4, 2), str(tmp_path / "model.pth"))


def test_backbone_alone_has_no_classes(classifier_file: Path) -> None:
    file = checkpoint.read(str(classifier_file))
    assert len(file.require_classes()) == 1000
    with pytest.raises(UserError, match="is not a checkpoint of a model with class names"):
        file.backbone_alone().require_classes()


def test_metadata_written_by_numpy_1_is_read(tmp_path: Path) -> None:
    torch.save({"meta": {"seed": np.int64(3)}}, tmp_path / "new.pth")
    with (
        zipfile.ZipFile(tmp_path / "new.pth") as new,
        zipfile.ZipFile(tmp_path / "old.pth", "w") as old,
    ):
        for name in new.namelist():
            content = new.read(name).replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
            old.writestr(name, content)
            assert not name.endswith("data.pkl") or b"numpy.core.multiarray" in content
    assert checkpoint.read_content(str(tmp_path / "old.pth"))["meta"].keys() == {"seed"}


def test_every_size_has_weights_to_download() -> None:
    assert IMAGENET_WEIGHTS.keys() == gpvit.SIZES.keys()
    assert IMAGENET_WEIGHTS["L1"] == (
        "https://github.com/ChenhongyiYang/GPViT/releases/download/v0.0.1/gpvit_l1_in1k_300e.pth"
    )


def official_metadata() -> dict[str, Any]:
    """Metadata that the official tools write, of every type that occurs or may occur."""
    return {
        "mmcv_version": "1.4.8",
        "time": "Mon Oct 10 10:10:10 2022",
        "epoch": 12,
        "iter": 87_960,
        "env_info": "sys.platform: linux\nPython: 3.8",
        "config": "model = dict(type='MaskRCNN')\n",
        "seed": np.int64(3),
        "exp_name": "l1.py",
        "hook_msgs": {"best_score": np.float64(0.481), "last_ckpt": Path("work_dirs/epoch_12.pth")},
        "CLASSES": ("a", "b"),
        "PALETTE": [[1, 2, 3]],
        "fp16": {"loss_scaler": {"cur_scale": 512.0, "cur_iter": 5}},
        "args": argparse.Namespace(
            lr=np.float32(0.1), flag=np.bool_(True), name=np.str_("x"), none=None
        ),
        "array": np.zeros((2, 2)),
        "date": datetime.datetime(2022, 10, 10),
        "ordered": OrderedDict(a=1),
    }


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_official_files_with_all_metadata_types_are_read(
    classifier_file: Path, tmp_path: Path, zipped: bool
) -> None:
    weights = checkpoint.read_content(str(classifier_file))["state_dict"]
    optimizer = torch.optim.AdamW(nn.Linear(2, 1).parameters()).state_dict()
    content = {
        "meta": official_metadata(),
        "state_dict": OrderedDict(weights),
        "optimizer": optimizer,
    }
    torch.save(content, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    file = checkpoint.read(str(tmp_path / "a.pth"))
    assert len(file.weights) == len(weights) and not file.dropped
    meta = checkpoint.read_content(str(tmp_path / "a.pth"))["meta"]
    assert meta["CLASSES"] == ("a", "b") and meta["epoch"] == 12
    for key in ("seed", "array", "args", "date"):  # stand-ins, which ignore what the file contains
        assert type(meta[key]).__module__ == "gpvit.checkpoint.files" and not vars(meta[key])


def write_array_with_false_layout(path: Path) -> None:
    """Write a pickle of a NumPy array whose layout states that 8 bytes of an object are a float64.

    With NumPy's own types, reading it would follow an invalid pointer.
    """

    def text(string: str) -> bytes:  # BINUNICODE: length, UTF-8
        return b"X" + struct.pack("<I", len(string)) + string.encode()

    def number(value: int) -> bytes:  # BININT: 4 bytes
        return b"J" + struct.pack("<i", value)

    def dtype(code: str) -> bytes:  # GLOBAL numpy.dtype, called with (code, False, True)
        return b"cnumpy\ndtype\n" + text(code) + b"\x89\x88\x87R"

    # The state that numpy.dtype("f8") is set to: (3, "<", (dtype("O8"), (1,)), None, None, ...),
    # that is, an array of one object in place of a number.
    state = b"(" + number(3) + text("<") + dtype("O8") + number(1) + b"\x85\x86NN"
    state += number(-1) + number(-1) + number(0) + b"tb"
    # The bytes b"AAAAAAAA", as a call of _codecs.encode, are the pointer.
    pointer = b"c_codecs\nencode\n" + text("A" * 8) + text("latin1") + b"\x86R"
    # numpy.ndarray((1,), dtype, pointer)
    array = b"cnumpy\nndarray\n(" + number(1) + b"\x85" + dtype("f8") + state + pointer + b"tR"
    # {"model": {}, "ema": array}
    content = b"\x80\x02}(" + text("model") + b"}" + text("ema") + array + b"u."
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a/data.pkl", content)
        file.writestr("a/byteorder", "little")
        file.writestr("a/version", "3\n")


def test_array_with_false_memory_layout_raises_instead_of_crashing(tmp_path: Path) -> None:
    write_array_with_false_layout(tmp_path / "a.pth")

    def read() -> str:
        with pytest.raises(UserError) as error:
            checkpoint.read(str(tmp_path / "a.pth"))
        return str(error.value)

    assert "'ema' is not a dict of tensors by name" in in_a_child(read)


@pytest.mark.parametrize(
    ("tensor", "fault"),
    [
        (lambda: torch.ones(2).to_sparse(), "contains torch._utils._rebuild_sparse_tensor"),
        (
            lambda: torch.quantize_per_tensor(torch.ones(2), 1.0, 0, torch.qint8),
            "contains torch._utils._rebuild_qtensor",
        ),
        (lambda: torch.ones(2, dtype=torch.complex64), "is of torch.complex64"),
        (
            lambda: torch.ones(2, device="meta"),
            "contains torch._utils._rebuild_meta_tensor_no_storage",
        ),
        (lambda: torch.ones(1).expand(10**9), "tensors in its 'model' are larger than the file"),
        (lambda: torch.ones(1).expand(3), "repeats its values"),
        (lambda: {"nested": torch.ones(1)}, "is a dict"),
    ],
)
def test_weights_other_than_plain_tensors_raise(
    tmp_path: Path, tensor: Callable[[], Any], fault: str
) -> None:
    torch.save({"model": {"weight": tensor()}}, tmp_path / "a.pth")
    with pytest.raises(UserError, match=fault) as error:
        checkpoint.read(str(tmp_path / "a.pth"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "content",
    [
        {1: 2, None: 3},
        {"state_dict": {1: torch.ones(1)}},
        {"state_dict": {"a": torch.ones(1), 2: torch.ones(1)}},
        {"model": {1: torch.ones(1)}},
        {"model": {"a": torch.ones(1)}, "ema": torch.ones(2)},
        {"model": {"a": torch.ones(1)}, "ema": [1]},
    ],
)
def test_names_that_are_not_strings_raise(tmp_path: Path, content: dict) -> None:
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(UserError, match=r"not a checkpoint|not a dict of tensors by name"):
        checkpoint.read(str(tmp_path / "a.pth"))


def test_compressed_file_and_file_with_overlapping_entries_raise(
    tmp_path: Path,
) -> None:
    torch.save({"model": {"weight": torch.zeros(1_000_000)}}, tmp_path / "good.pth")
    with (
        zipfile.ZipFile(tmp_path / "good.pth") as good,
        zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as bomb,
    ):
        for entry in good.infolist():
            bomb.writestr(entry.filename, good.read(entry))
    assert (tmp_path / "bomb.pth").stat().st_size < 100_000
    with pytest.raises(UserError, match="compressed archive"):
        checkpoint.read(str(tmp_path / "bomb.pth"))
    with zipfile.ZipFile(tmp_path / "good.pth", "a") as file:
        largest = max(file.infolist(), key=lambda entry: entry.file_size)
        twin = copy.copy(largest)
        twin.filename = "archive/data/1"
        file.filelist.append(twin)
        file._didModify = True
    with pytest.raises(UserError, match="entries are larger than the file"):
        checkpoint.read(str(tmp_path / "good.pth"))


def test_non_finite_weights_raise_for_inference_and_warn_for_training(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    weights = {"weight": torch.full((2, 3), float("nan")), "bias": torch.zeros(2)}
    checkpoint.write(str(tmp_path / "a.pth"), weights)
    model = nn.Linear(3, 2)
    with pytest.raises(UserError, match="not finite: weight; use another checkpoint"):
        checkpoint.load(model, str(tmp_path / "a.pth"))
    assert model.weight.isfinite().all()
    checkpoint.load(model, str(tmp_path / "a.pth"), for_training=True)
    assert "not finite: weight" in caplog.text and model.weight.isnan().all()


def test_plain_pickle_is_not_reported_as_damaged(tmp_path: Path) -> None:
    for protocol in (2, 4):
        (tmp_path / "model_final.pkl").write_bytes(
            pickle.dumps({"model": {"w": np.zeros(3)}}, protocol)
        )
        with pytest.raises(
            UserError, match="is a plain pickle, like the files of Detectron2's model zoo"
        ):
            checkpoint.read(str(tmp_path / "model_final.pkl"))


def write_pickle(path: Path, entry: bytes, *, key: bytes = b"X\x01\0\0\0x") -> None:
    """Write a checkpoint with an additional entry, which is given as operations of a pickle."""
    torch.save({"model": {"weight": torch.ones(2, 3), "bias": torch.ones(2)}}, path)
    with zipfile.ZipFile(path) as old:
        entries = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(path, "w") as new:
        for name, content in entries.items():
            if name.endswith("data.pkl"):
                content = content.removesuffix(b"s.") + b"s" + key + entry + b"s."
            new.writestr(name, content)


# A pair of a pair of ... of a text: each is stored with BINPUT (q), and combined with itself, from
# BINGET (h), by TUPLE2 (\x86). 40 levels would be 2 ** 40 values.
NESTED = b"X\x01\0\0\0a" + b"".join(b"q%c" % n + b"h%c" % n + b"\x86" for n in range(100, 140))


@pytest.mark.parametrize(
    ("entry", "fault"),
    [
        (b"cbuiltins\nbytearray\nJ\0\0\0\x70\x85R", "contains builtins.bytearray"),
        (b"ctorch\nTensor\nJ\0\0\0\x70\x85R", "contains torch.Tensor"),
        (b"ctorch\nFloatTensor\nJ\0\0\0\x70\x85R", "contains torch.FloatTensor"),
        (b"ccollections\nCounter\n)R", "contains collections.Counter"),
        (
            b"ctorch._tensor\n_rebuild_from_type_v2\n)R",
            "contains torch._tensor._rebuild_from_type_v2",
        ),
        (b"c_codecs\nencode\nX\x02\0\0\0abX\x08\0\0\0punycode\x86R", "contains _codecs.encode"),
        (b"c_codecs\nencode\nX\x02\0\0\0abX\x06\0\0\0latin1\x86R", ""),
        (b"c_codecs\nencode\n(X\x02\0\0\0abX\x03\0\0\0hextR", "contains _codecs.encode"),
        (NESTED, "tuple of more than"),
        (b"}" + NESTED + b"Ns", "tuple of more than"),  # as a key, which would have to be hashed
        (b"(X\x01\0\0\0a" * 3 + b"ttt", ""),
    ],
)
def test_pickle_that_exhausts_time_or_memory_raises_before_loading(
    tmp_path: Path, entry: bytes, fault: str
) -> None:
    write_pickle(tmp_path / "a.pth", entry)

    def read() -> None:
        if not fault:
            checkpoint.load(nn.Linear(3, 2), str(tmp_path / "a.pth"))
            return
        with pytest.raises(UserError, match=fault) as error:
            checkpoint.read(str(tmp_path / "a.pth"))
        assert "\n" not in str(error.value)

    in_a_child(read)


def test_zip_file_with_two_directories_raises(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    torch.save({"model": {"weight": torch.ones(2, 3), "bias": torch.ones(2)}}, path)
    checkpoint.read(str(path))
    content = bytearray(path.read_bytes())
    # The offset of the central directory in the 64-bit locator.
    place = content.rindex(b"PK\6\7") + 8
    content[place] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="two central directories"):
        checkpoint.read(str(path))


def test_tensors_sharing_bytes_raise_if_larger_than_file(tmp_path: Path) -> None:
    shared = torch.ones(100_000)
    torch.save({"model": {f"weight{number}": shared for number in range(100)}}, tmp_path / "a.pth")
    with pytest.raises(UserError, match="tensors in its 'model' are larger than the file"):
        checkpoint.read(str(tmp_path / "a.pth"))
