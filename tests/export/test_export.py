"""Exported detectors agree with the PyTorch model at all image sizes, and run without gpvit."""

import copy
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gpvit
import numpy as np
import onnx
import pytest
import torch
from conftest import REPOSITORY, TINY
from detectron2.config import instantiate
from gpvit import checkpoint
from gpvit.cli import export as cli
from gpvit.cli import predict, view_attention
from gpvit.config import inference_config, load_config
from gpvit.data.image_io import read_image
from gpvit.export import graph as export
from gpvit.export import verify
from gpvit.export.runtime import OnnxClassifier, OnnxDetector, OnnxModel, OnnxSegmentor
from gpvit.modeling.deformable_attention import sample_by_bag, sample_by_row
from gpvit.utils.errors import UserError
from torch import nn

pytestmark = pytest.mark.long

CLASSES = ["disc", "ring", "star"]
# Config -> overrides for a tiny model.
MODELS = {
    "quickstart.py": [
        *(override for override in TINY if override.startswith("model")),
        "model.roi_heads.num_classes=3",
    ],
    "cascade_mask_rcnn_gpvit_l1.py": [
        "model.backbone.net.norm=BN",
        "model.backbone.net.embed_dim=24",
        "model.backbone.net.group_tokens=[0,4]",
        "model.roi_heads.num_classes=3",
        "model.proposal_generator.post_nms_topk=[20,20]",
    ],
    "published/retinanet_gpvit_l1_1x.py": [
        "model.backbone.bottom_up.net.norm=BN",
        "model.backbone.bottom_up.net.embed_dim=24",
        "model.backbone.bottom_up.net.group_tokens=[0,4]",
        "model.num_classes=3",
        "model.backbone.bottom_up.num_interactions=1",
    ],
}


def tiny_model(name: str) -> nn.Module:
    """Return a model with random weights whose scores differ and exceed the thresholds."""
    torch.manual_seed(0)
    model = instantiate(load_config(str(REPOSITORY / "configs" / name), MODELS[name]).model).eval()
    if hasattr(model, "roi_heads"):
        predictors = model.roi_heads.box_predictor
        if not isinstance(predictors, nn.ModuleList):
            predictors = [predictors]
        for predictor in predictors:
            nn.init.normal_(predictor.cls_score.weight, std=0.5)
            nn.init.normal_(predictor.bbox_pred.weight, std=0.1)
        nn.init.normal_(model.roi_heads.mask_head.predictor.weight, std=0.5)
    else:
        nn.init.normal_(model.head.cls_score.weight, std=0.5)
    return model


def images_of_size(height: int, width: int, number: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(height)
    shape = (number, 3, height, width)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def run_export(weights: Path, images: Path, output: Path, *overrides: str) -> None:
    config = REPOSITORY / "configs" / "quickstart.py"
    command = ["--config-file", config, "--weights", weights, "--input", images]
    command += ["--output", output, *MODELS["quickstart.py"], "dataloader.short_side=96"]
    cli.main(list(map(str, [*command, *overrides])))


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "model.pth"
    checkpoint.save(
        {"model": tiny_model("quickstart.py").state_dict(), "classes": CLASSES}, str(path)
    )
    return path


@pytest.fixture(scope="module")
def images(synthetic_data: Path) -> Path:
    """A glob pattern of 4 images."""
    return synthetic_data / "images" / "val_*.png"


@pytest.fixture(scope="module")
def pt2_file(weights: Path, images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("exported") / "model.pt2"
    run_export(weights, images, path)
    return path


def test_onnx_detections_agree_at_all_sizes(
    capsys: pytest.CaptureFixture, weights: Path, images: Path, tmp_path: Path
) -> None:
    output = tmp_path / "new" / "model.onnx"
    run_export(weights, images, output)
    report = capsys.readouterr().out
    agreement = r".*model.onnx: on 4 images, 100.0% of .* difference \d\.\de-0\d .*"
    time = r"takes \d+\.\d\d of .*\n"
    assert re.fullmatch(agreement + time, report)
    assert [path.name for path in output.parent.iterdir()] == ["model.onnx"]
    onnx.checker.check_model(output)
    properties = {prop.key: json.loads(prop.value) for prop in onnx.load(output).metadata_props}
    assert "StandardROIHeads" in properties.pop("config")
    assert len(properties.pop("palette")) == len(CLASSES)
    assert properties == {
        "classes": CLASSES,
        "smallest_side": 65,
        "short_side": 96,
        "max_size": 320,
    }
    run, model = verify.load(output), tiny_model("quickstart.py")
    # The smallest size, that of the stored position embedding, and two others. Only 192 is a
    # multiple of the stride.
    for size in ((65, 65, 1), (192, 192), (97, 300), (331, 190)):
        expected = verify.eager(model, images_of_size(*size))
        assert len(expected["scores"]) > 3 and expected["masks"].shape[1:] == (28, 28)
        assert verify.differences(expected, run(images_of_size(*size))).max() < 1e-3, size


def test_predictor_runs_an_onnx_file(
    weights: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    output = tmp_path / "model.onnx"
    run_export(weights, images, output)
    options = [*MODELS["quickstart.py"], "dataloader.short_side=96"]
    config = load_config(str(REPOSITORY / "configs" / "quickstart.py"), options)
    predictors = [gpvit.Predictor(config, weights, "cpu"), gpvit.Predictor.from_checkpoint(output)]
    paths = sorted(map(str, images.parent.glob(images.name)))
    outputs = [predictor(paths * 2) for predictor in predictors]  # in batches
    for expected, found in zip(*outputs, strict=True):
        assert len(found) == len(expected) > 3
        assert found.image_size == expected.image_size
        torch.testing.assert_close(found.scores, expected.scores, rtol=1e-3, atol=1e-3)
        boxes = found.pred_boxes.tensor, expected.pred_boxes.tensor
        torch.testing.assert_close(*boxes, rtol=1e-3, atol=0.01)
        assert (found.pred_masks == expected.pred_masks).float().mean() > 0.999
    arguments = ["--weights", str(output), "--input", paths[0], "--output", str(tmp_path / "out")]
    predict.main([*arguments, "--score-threshold", "0.5"])
    scores = predictors[1](paths[0]).scores
    number = int((scores > 0.5).sum())
    assert 0 < number < len(scores)
    assert re.search(rf"\b{number} objects", capsys.readouterr().out)
    with pytest.raises(UserError, match="runs in float32, with the config .*; remove dtype bfloat"):
        gpvit.Predictor.from_checkpoint(output, dtype="bfloat16")
    with pytest.raises(UserError, match="; remove config file a.py, x=1$"):
        gpvit.Predictor.from_checkpoint(output, config_file="a.py", overrides=["x=1"])
    with pytest.raises(UserError, match="^foo is not a device; use cpu or cuda$"):
        gpvit.Predictor.from_checkpoint(output, "foo")
    with pytest.raises(UserError, match="does not run on device cuda; use cpu"):
        gpvit.Predictor.from_checkpoint(output, "cuda")
    with pytest.raises(UserError, match="is an exported model: give the checkpoint"):
        cli.main([*arguments[:4], "--output", str(tmp_path / "again.onnx")])
    with pytest.raises(UserError, match="is an exported model: give the checkpoint"):
        view_attention.main(arguments)


def onnx_model(**change: Any) -> onnx.ModelProto:
    """A graph with the output of a classifier, scores = images + constant."""
    constant = onnx.helper.make_tensor("constant", onnx.TensorProto.FLOAT, [1], bytes(4), raw=True)
    node = onnx.helper.make_node("Add", ["images", "constant"], ["scores"])
    images, scores = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1])
        for name in ("images", "scores")
    ]
    graph = onnx.helper.make_graph([node], "graph", [images], [scores], [constant])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)])
    model.ir_version = 10
    metadata = {"classes": ["a"], "smallest_side": 1, "config": "model: {}", "palette": []} | change
    for key, value in metadata.items():
        model.metadata_props.add(key=key, value=json.dumps(value))
    model.metadata_props.add(key="other", value="a text of another tool")
    return model


def other_files(model: onnx.ModelProto) -> None:
    onnx.external_data_helper.set_external_data(model.graph.initializer[0], "secret")


def other_files_in_a_branch(model: onnx.ModelProto) -> None:
    branch = copy.deepcopy(model.graph)
    branch.ClearField("input")
    onnx.external_data_helper.set_external_data(branch.initializer[0], "secret")
    attribute = onnx.helper.make_attribute("then_branch", branch)
    model.graph.node.add(op_type="If", attribute=[attribute])


def external_tensor() -> onnx.TensorProto:
    tensor = onnx.helper.make_tensor("x", onnx.TensorProto.FLOAT, [1], bytes(4), raw=True)
    onnx.external_data_helper.set_external_data(tensor, "secret")
    return tensor


def external_sparse_tensor() -> onnx.SparseTensorProto:
    sparse = onnx.SparseTensorProto(dims=[8])
    sparse.values.CopyFrom(external_tensor())
    return sparse


def other_files_in_a_list_of_branches(model: onnx.ModelProto) -> None:
    branch = onnx.GraphProto(initializer=[external_tensor()])
    attribute = onnx.AttributeProto(name="branches", type="GRAPHS", graphs=[branch])
    model.graph.node.add(op_type="If", attribute=[attribute])


def other_files_in(**values: Any) -> Callable[[onnx.ModelProto], None]:
    """Return what adds a node with an attribute."""

    def add(model: onnx.ModelProto) -> None:
        attribute = onnx.AttributeProto(name="value", **values)
        model.graph.node.add(op_type="Constant", output=["y"], attribute=[attribute])

    return add


def other_files_in_a_sparse_initializer(model: onnx.ModelProto) -> None:
    model.graph.sparse_initializer.append(external_sparse_tensor())


def other_operator(model: onnx.ModelProto) -> None:
    model.graph.node[0].domain = "com.example"


def other_operator_in_a_branch(model: onnx.ModelProto) -> None:
    branch = onnx.GraphProto(node=[onnx.NodeProto(op_type="Run", domain="com.example")])
    attribute = onnx.helper.make_attribute("then_branch", branch)
    model.graph.node.add(op_type="If", attribute=[attribute])


def augmentations_of_another_kind(model: onnx.ModelProto) -> None:
    config = (REPOSITORY / "configs" / "quickstart_classifier.py").as_posix()
    cfg = load_config(config)
    cfg.dataloader.test.mapper.augmentations = [1]
    for prop in model.metadata_props:
        if prop.key == "config":
            prop.value = json.dumps(inference_config(cfg))


def function(model: onnx.ModelProto) -> None:
    operator = onnx.helper.make_node("Add", ["x", "x"], ["y"])
    opset = onnx.helper.make_opsetid("", 18)
    model.functions.append(
        onnx.helper.make_function("", "Twice", ["x"], ["y"], [operator], [opset])
    )


def no_classes(model: onnx.ModelProto) -> None:
    model.metadata_props[0].value = "[]"


def input_of_an_older_version(model: onnx.ModelProto) -> None:
    model.graph.input[0].name = model.graph.node[0].input[0] = "image"


def undefined_metadata(model: onnx.ModelProto) -> None:
    del model.metadata_props[:]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (other_files, "refers to other files"),
        (other_files_in_a_branch, "refers to other files"),
        (other_files_in_a_list_of_branches, "refers to other files"),
        (other_files_in_a_sparse_initializer, "refers to other files"),
        (other_files_in(type="TENSOR", t=external_tensor()), "refers to other files"),
        (other_files_in(type="TENSORS", tensors=[external_tensor()]), "refers to other files"),
        (
            other_files_in(type="SPARSE_TENSOR", sparse_tensor=external_sparse_tensor()),
            "refers to other files",
        ),
        (other_operator_in_a_branch, "has operators other than ONNX's own: com.example"),
        (augmentations_of_another_kind, "cannot use the config in .*model.onnx: "),
        (other_operator, "has operators other than ONNX's own: com.example"),
        (function, "has operators other than ONNX's own: functions"),
        (input_of_an_older_version, "is not a model that gpvit export wrote, one of an older"),
        (undefined_metadata, "is not a model that gpvit export wrote.*KeyError"),
        (lambda model: model.graph.output[0].ClearField("name"), "is not a model that gpvit exp"),
        (lambda model: None, "the config in"),
        (no_classes, "classes are not text"),
    ],
)
def test_onnx_files_of_strangers_are_refused_in_one_line(
    tmp_path: Path, spoil: Callable[[onnx.ModelProto], None], message: str
) -> None:
    model = onnx_model()
    spoil(model)
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(UserError, match=message) as caught:
        gpvit.Predictor.from_checkpoint(path)
    assert "\n" not in str(caught.value)


def test_onnx_file_is_not_taken_for_one_in_another_format(tmp_path: Path) -> None:
    """By these bytes ONNX Runtime recognizes its own format, which is not checked."""
    path = tmp_path / "model.onnx"
    prefix = onnx.ModelProto(producer_name="ORTM" + "x" * 16384).SerializeToString()
    assert prefix[4:8] == b"ORTM"
    path.write_bytes(prefix + onnx_model().SerializeToString())
    with pytest.raises(UserError, match="the config in"):  # it was read as ONNX
        gpvit.Predictor.from_checkpoint(path)


WHOLE = onnx_model().SerializeToString()


@pytest.mark.parametrize("content", [b"", b"text", bytes(100), WHOLE[:-40], WHOLE[40:]])
def test_damaged_onnx_files_are_refused_in_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(UserError, match="model.onnx is not a model that gpvit export wrote"):
        gpvit.Predictor.from_checkpoint(path)


def test_missing_onnx_file_is_reported(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot read .*model.onnx: No such file"):
        gpvit.Predictor.from_checkpoint(tmp_path / "model.onnx")


def test_onnx_file_is_not_downloaded() -> None:
    with pytest.raises(
        UserError, match=r"^https://.*x\.ONNX: an ONNX file is not downloaded; give"
    ):
        gpvit.Predictor.from_checkpoint("https://example.com/x.ONNX")


def test_small_images_are_padded_for_an_onnx_file() -> None:
    seen = []

    def run(names: list[str], inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        seen.append(inputs["images"])
        return [inputs["images"][:, :1].astype(np.float32)]

    session = SimpleNamespace(get_outputs=lambda: [SimpleNamespace(name="logits")], run=run)
    metadata = {"classes": ["a"], "smallest_side": 5, "config": "", "palette": []}
    images = images_of_size(8, 3)
    outputs = OnnxSegmentor(session, metadata)([{"image": image} for image in images])
    (padded,) = seen
    assert padded.shape == (2, 3, 8, 5) and np.array_equal(padded[..., :3], images)
    assert np.allclose(padded[:, :, 0, 4], images.float().mean((2, 3)).round())
    for image, output in zip(images, outputs):
        assert torch.equal(output["sem_seg"], image[:1].float())


@pytest.mark.parametrize("kind", [OnnxClassifier, OnnxSegmentor])
def test_number_of_classes_of_an_onnx_file_must_be_that_of_its_names(kind: type[OnnxModel]) -> None:
    name = "logits" if kind is OnnxSegmentor else "scores"
    session = SimpleNamespace(
        get_outputs=lambda: [SimpleNamespace(name=name)],
        run=lambda names, inputs: [np.zeros((1, 2, 8, 8)[: 4 if name == "logits" else 2])],
    )
    model = kind(session, {"classes": ["a"], "smallest_side": 1, "config": "", "palette": []})
    with pytest.raises(ValueError, match="the graph has 2 classes, and 1 names"):
        model([{"image": images_of_size(8, 8)[0]}])


@pytest.mark.parametrize("index", [-1, 1, 57])
def test_classes_of_an_onnx_file_must_have_names(index: int) -> None:
    metadata = {"classes": ["a"], "smallest_side": 1, "config": "", "palette": []}
    session = SimpleNamespace(
        get_outputs=lambda: [SimpleNamespace(name=name) for name in export.OUTPUTS[:4]],
        run=lambda names, inputs: [np.zeros((1, 4)), np.ones(1), np.array([index]), np.zeros(1)],
    )
    detector = OnnxDetector(session, metadata)
    with pytest.raises(ValueError, match="other classes than its 1 names"):
        detector([{"image": images_of_size(8, 8)[0]}])


def test_config_in_an_onnx_file_calls_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    config = "model: {_target_: os.system, command: 'true'}"
    path.write_bytes(onnx_model(config=config).SerializeToString())
    with pytest.raises(UserError, match="would call os.system"):
        gpvit.Predictor.from_checkpoint(path)


@pytest.mark.slow
def test_onnx_graph_of_the_adapter_has_no_grid_sample(tmp_path: Path) -> None:
    model = tiny_model("published/retinanet_gpvit_l1_1x.py")
    program = export.export_onnx(model)
    operators = {node.op_type for node in program.model.graph.all_nodes()}
    assert "Gather" in operators and "GridSample" not in operators
    program.save(tmp_path / "model.onnx")
    expected = verify.eager(model, images_of_size(160, 200))
    found = verify.load(tmp_path / "model.onnx")(images_of_size(160, 200))
    assert len(expected["scores"]) > 3
    assert verify.differences(expected, found).max() < 1e-3


@pytest.mark.parametrize("name", MODELS)
def test_graph_detections_agree_at_all_sizes(name: str, pt2_file: Path) -> None:
    model = tiny_model(name)
    run = verify.load(pt2_file) if name == "quickstart.py" else export.export(model).module()
    smallest = export.smallest_side(model)
    for size in ((smallest, smallest, 3), (192, 192, 1), (224, 224), (161, 250)):
        expected = verify.eager(model, images_of_size(*size))
        assert set(expected["image_index"].tolist()) == set(range(len(images_of_size(*size))))
        assert len(expected["scores"]) > 3 and ("masks" in expected) == ("retinanet" not in name)
        assert verify.differences(expected, run(images_of_size(*size))).max() < 1e-3, size


def test_graph_returns_empty_tensors_without_detections() -> None:
    model = tiny_model("quickstart.py")
    model.roi_heads.box_predictor.test_score_thresh = 1.0
    outputs = export.export(model).module()(images_of_size(96, 128))
    shapes = {name: tuple(x.shape) for name, x in outputs.items()}
    assert list(shapes) == export.OUTPUTS
    assert shapes["boxes"] == (0, 4) and shapes["masks"] == (0, 28, 28)
    assert shapes["scores"] == shapes["classes"] == shapes["image_index"] == (0,)


def test_pt2_file_runs_without_gpvit_and_detectron2(pt2_file: Path, tmp_path: Path) -> None:
    torch.save(images_of_size(120, 150), tmp_path / "images.pth")
    code = """
import json, sys, torch, torchvision
extra = {"metadata.json": ""}
run = torch.export.load(sys.argv[1], extra_files=extra).module()
torch.save((run(torch.load("images.pth")), json.loads(extra["metadata.json"])), "outputs.pth")
assert not {"gpvit", "detectron2"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code, pt2_file], check=True, cwd=tmp_path)
    detections, metadata = torch.load(tmp_path / "outputs.pth")
    assert metadata["classes"] == CLASSES
    expected = verify.eager(tiny_model("quickstart.py"), images_of_size(120, 150))
    assert verify.differences(expected, detections).max() < 1e-3


def test_detections_agree_on_real_images(real_data: Path, weights: Path, pt2_file: Path) -> None:
    overrides = [*MODELS["quickstart.py"], "dataloader.short_side=160"]
    cfg = load_config(str(REPOSITORY / "configs" / "quickstart.py"), overrides)
    predictor = gpvit.Predictor(cfg, str(weights), "cpu")
    paths = sorted((real_data / "fruits_nuts" / "images").iterdir())
    images = [predictor.resize(read_image(path)) for path in paths]
    report = verify.check(predictor.model, verify.load(pt2_file), images)
    assert report.startswith("on 18 images, 100.0% of the detections")


def test_file_with_different_detections_is_not_kept(
    monkeypatch: pytest.MonkeyPatch, weights: Path, images: Path, tmp_path: Path
) -> None:
    model = tiny_model("quickstart.py")

    def half_a_pixel_off(images: torch.Tensor) -> dict[str, torch.Tensor]:
        detections = verify.eager(model, images)
        return detections | {"boxes": detections["boxes"] + 0.5}

    monkeypatch.setattr(cli, "write", lambda predictor, path, metadata: path.write_text("wrong"))
    monkeypatch.setattr(cli, "load", lambda path: half_a_pixel_off)
    output = tmp_path / "model.onnx"
    message = "^not exported: 100.0% of the detections are missing in PyTorch or in the exported"
    with pytest.raises(UserError, match=message):
        run_export(weights, images, output)
    assert not list(tmp_path.iterdir())
    output.write_text("old")
    with pytest.raises(UserError, match=message):
        run_export(weights, images, output, "--overwrite")
    assert list(tmp_path.iterdir()) == [output] and output.read_text() == "old"
    output.unlink()
    no_detections = "model.roi_heads.box_predictor.test_score_thresh=1.0"
    model.roi_heads.box_predictor.test_score_thresh = 1.0
    with pytest.raises(UserError, match="nothing is detected on any image of --input"):
        run_export(weights, images, output, no_detections)


def test_unsupported_export_raises_before_writing(
    weights: Path, images: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="name must end in .onnx or .pt2"):
        run_export(weights, images, tmp_path / "model.pth")
    with pytest.raises(UserError, match="is resized to 48 x 48 pixels, .* at least 65 x 65"):
        run_export(weights, images, tmp_path / "model.onnx", "dataloader.short_side=48")
    (tmp_path / "model.onnx").write_text("old")
    with pytest.raises(
        UserError, match="model.onnx already exists; give another --output, or --overwrite"
    ):
        run_export(weights, images, tmp_path / "model.onnx")
    assert (tmp_path / "model.onnx").read_text() == "old"
    model = tiny_model("quickstart.py")
    model.backbone._square_pad = 128
    with pytest.raises(UserError, match="square_pad cannot be exported"):
        export.export(model)
    with pytest.raises(UserError, match="Module cannot be exported; use Mask R-CNN, "):
        other = nn.Module()
        other.backbone = tiny_model("quickstart.py").backbone
        export.graph_of(other)


def test_comparison_ignores_order_of_detections() -> None:
    model = tiny_model("quickstart.py")
    with torch.no_grad():
        detections = verify.eager(model, images_of_size(96, 128))
    reverse = {name: x.flip(0) for name, x in detections.items()}
    assert verify.differences(detections, reverse).max() == 0
    for name, change in (("boxes", 1.0), ("scores", 0.1), ("masks", 0.1)):
        changed = reverse | {name: reverse[name] + change}
        assert verify.differences(detections, changed).min() >= 0.05, name
    for name in ("classes", "image_index"):
        changed = reverse | {name: reverse[name] + 3}
        assert verify.differences(detections, changed).isinf().all(), name
    fewer = {name: x[:-1] for name, x in detections.items()}
    assert verify.differences(detections, fewer).max() > 0.01
    assert verify.differences(fewer, detections).max() > 0.01
    empty = {name: x[:0] for name, x in detections.items()}
    distances = verify.differences(detections, empty)
    assert distances.isinf().all() and len(distances) == len(detections["scores"])
    assert len(verify.differences(empty, empty)) == 0


def test_sampling_for_onnx_equals_deformable_sampling() -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = [(6, 8), (3, 4)]
    value = torch.randn(2, 60, 3, 5, generator=generator)  # (B, M, heads, C / heads)
    # (B, L, heads, levels, points, 2), some outside the image
    locations = torch.rand(2, 7, 3, 2, 4, 2, generator=generator) * 1.4 - 0.2
    weights = torch.rand(2, 7, 3, 2, 4, generator=generator)
    expected = sample_by_bag(value, shapes, locations, weights)
    assert torch.allclose(sample_by_row(value, shapes, locations, weights), expected, atol=1e-5)
