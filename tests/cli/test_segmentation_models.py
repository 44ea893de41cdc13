"""Each command works with a segmentation model as with a detector."""

import json
import re
import shutil
from pathlib import Path

import cv2
import gpvit
import numpy as np
import pytest
import tifffile
import torch
import train_net
from conftest import REPOSITORY
from detectors import write_detector
from detectron2.config import instantiate
from gpvit import checkpoint
from gpvit.cli import analyze, convert, export, predict, share, view_attention, view_results
from gpvit.cli.train import argument_parser
from gpvit.config import inference_config, load_config
from gpvit.data.image_io import read_image, save_image
from gpvit.data.label_maps import class_palette, labels_of, palette_of, read_labels, save_labels
from gpvit.data.video_io import VideoReader, VideoWriter
from gpvit.evaluation.semantic_evaluation import PixelCounts, metrics_of
from gpvit.evaluation.semantic_results import read_semantic_results
from gpvit.export.graph import export_onnx
from gpvit.export.verify import check, load
from gpvit.utils.errors import UserError
from gpvit.visualization.semantic_comparison import draw_errors

pytestmark = pytest.mark.long

CONFIG = str(REPOSITORY / "configs" / "quickstart_semantic.py")
TINY = [
    "model.backbone.embed_dim=24",
    "model.backbone.group_tokens=[0,4,0,4]",
    "model.sem_seg_head.channels=16",
    "model.sem_seg_head.class_weights=null",
    "dataloader.short_side=64",
    "dataloader.max_size=128",
    "dataloader.train.num_workers=0",
    "dataloader.test.num_workers=0",
    "train.device=cpu",
]
NAMES = ["background", "disc", "triangle", "cross"]  # of the synthetic dataset
PALETTE = [[1, 2, 3], [250, 10, 20], [30, 240, 40], [50, 60, 230]]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of an untrained model with a palette."""
    path = tmp_path_factory.mktemp("model") / "model.pth"
    cfg = load_config(CONFIG, [*TINY, "model.sem_seg_head.num_classes=4"])
    torch.manual_seed(0)
    model = instantiate(cfg.model)
    torch.nn.init.normal_(model.sem_seg_head.predictor.weight)  # to predict several classes
    content = {
        "model": model.state_dict(),
        "classes": NAMES,
        "palette": PALETTE,
        "inference_config": inference_config(cfg),
    }
    checkpoint.save(content, str(path))
    return path


@pytest.fixture(scope="module")
def evaluation(
    weights: Path, synthetic_data: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The folder of an evaluation with predicted label maps."""
    folder = tmp_path_factory.mktemp("evaluation") / "out"
    arguments = ["--config-file", CONFIG, "--data", str(synthetic_data), "--eval-only", *TINY]
    arguments += [f"train.init_checkpoint={weights}", f"train.output_dir={folder}"]
    train_net.main(argument_parser().parse_intermixed_args(arguments))
    return folder


def images_of(data: Path) -> list[str]:
    return sorted(map(str, (data / "images").glob("val_*.png")))


def test_predict_draws_classes_and_writes_label_maps(
    weights: Path, synthetic_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = images_of(synthetic_data)
    arguments = ["--weights", str(weights), "--input", *paths, "--output", str(tmp_path / "out")]
    assert predict.main(arguments) == 0
    assert re.search(r"4 images, \d classes -> ", capsys.readouterr().out)
    predictor = gpvit.Predictor.from_checkpoint(weights, "cpu")
    assert predictor.palette == list(map(tuple, PALETTE))
    for path in paths:
        label_map = tmp_path / "out" / "label_maps" / Path(path).name
        labels = read_labels(label_map)
        expected = predictor(path).argmax(0).numpy()
        assert (labels == expected).mean() > 0.995
        assert palette_of(label_map)[:4] == list(map(tuple, PALETTE))
        drawing = cv2.imread(str(tmp_path / "out" / Path(path).name))[..., ::-1]
        height, width = labels.shape
        enlarged = drawing.shape[1] / width
        assert drawing.shape[0] > enlarged * height  # a legend below the drawing
        legend = drawing[round(enlarged * height) :].reshape(-1, 3)
        for index in np.unique(labels):
            assert (legend == PALETTE[index]).all(1).any(), index


def test_predict_draws_videos_without_label_maps(
    weights: Path, synthetic_data: Path, tmp_path: Path
) -> None:
    with VideoWriter(tmp_path / "clip.mp4", 5) as writer:
        for path in images_of(synthetic_data)[:2]:
            writer.write(np.ascontiguousarray(cv2.resize(cv2.imread(path), (96, 64))[..., ::-1]))
    arguments = ["--weights", str(weights), "--input", str(tmp_path / "clip.mp4")]
    assert predict.main([*arguments, "--output", str(tmp_path / "out")]) == 0
    frames = list(VideoReader(str(tmp_path / "out" / "clip.mp4")))
    assert len(frames) == 2 and frames[0].shape == (64, 96, 3)
    assert not (tmp_path / "out" / "label_maps").exists()


@pytest.mark.parametrize("option", [["--json"], ["--cutouts"], ["--score-threshold", "0.5"]])
def test_predict_refuses_options_of_detectors(
    option: list[str], weights: Path, synthetic_data: Path, tmp_path: Path
) -> None:
    arguments = ["--weights", str(weights), "--input", *images_of(synthetic_data), *option]
    with pytest.raises(UserError, match=f"{option[0]}: .* is a segmentation model, no detector"):
        predict.main([*arguments, "--output", str(tmp_path)])


def test_streamed_label_map_is_that_of_one_pass_without_resizing(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (76, 128, 3), np.uint8)
    pixels = pixels.repeat(8, axis=0).repeat(8, axis=1)
    save_image(tmp_path / "a.png", pixels)
    arguments = ["--weights", str(weights), "--input", str(tmp_path / "a.png"), "--stream"]
    assert predict.main([*arguments, "--output", str(tmp_path / "out"), "--device", "cpu"]) == 0
    assert re.search(r"a.png: \d classes -> ", capsys.readouterr().out)
    with tifffile.TiffFile(tmp_path / "out" / "label_maps" / "a.png.tif") as file:
        labels, is_tiled = file.asarray(), file.pages[0].is_tiled
        colors = file.pages[0].colormap[:, :4].T // 257
    resize = "dataloader.test.mapper.augmentations=[]"
    predictor = gpvit.Predictor.from_checkpoint(weights, "cpu", overrides=[resize])
    predictor.model.class_map = True
    expected = predictor(pixels).numpy()
    assert is_tiled and len(np.unique(labels)) > 1 and colors.tolist() == PALETTE
    assert (labels == expected).mean() > 0.999
    assert read_image(tmp_path / "out" / "a.png").shape[1] >= 1024


@pytest.mark.parametrize("option", [["--tile", "128"], ["--stream", "--geojson"]])
def test_tiles_and_outlines_are_for_detectors(
    option: list[str], weights: Path, synthetic_data: Path, tmp_path: Path
) -> None:
    arguments = ["--weights", str(weights), "--input", *images_of(synthetic_data)]
    message = f"^{option[-1] if 'geojson' in option[-1] else option[0]}: .* no detector$"
    with pytest.raises(UserError, match=message):
        predict.main([*arguments, *option, "--output", str(tmp_path / "out")])


def test_predict_takes_options_of_inference(
    weights: Path, synthetic_data: Path, tmp_path: Path
) -> None:
    options = ["model.window=48", "model.scales=[1.0,1.5]", "model.flip=true"]
    arguments = ["--weights", str(weights), *options, "--input", images_of(synthetic_data)[0]]
    assert predict.main([*arguments, "--output", str(tmp_path)]) == 0


def test_evaluation_writes_label_maps_that_give_its_metrics(
    evaluation: Path, synthetic_data: Path
) -> None:
    results = json.loads((evaluation / "evaluation.json").read_text())["results"]["sem_seg"]
    assert len(list((evaluation / "label_maps").glob("*.png"))) == 4
    read = read_semantic_results(evaluation, None, None)
    assert metrics_of(read.counts, NAMES) == pytest.approx(results)
    literal = PixelCounts(4)
    errors = {}
    for record in read.truth.records:
        labels = labels_of(record)
        predicted = read_labels(evaluation / "label_maps" / Path(record["file_name"]).name)
        literal.add(predicted, labels)
        errors[record["file_name"]] = (labels != predicted)[labels != 255].mean()
    assert np.array_equal(read.counts.confusion, literal.confusion)
    found = [case.error for case in read.cases]
    assert found == sorted(errors.values(), reverse=True)


def test_worst_images_are_drawn_first(
    evaluation: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--input", str(evaluation), "--output", str(tmp_path / "out"), "--number", "3"]
    assert view_results.main(arguments) == 0
    output = capsys.readouterr().out
    errors = [float(value) for value in re.findall(r"([\d.]+)% of the pixels wrong", output)]
    assert len(errors) == 3 and errors == sorted(errors, reverse=True)
    drawing = cv2.imread(str(tmp_path / "out" / "01.png"))
    assert drawing.shape[1] > 2 * drawing.shape[0] and (tmp_path / "out" / "sheet.png").exists()
    with pytest.raises(UserError, match="already exist|exists"):
        view_results.main(arguments)


def test_errors_are_red_and_ignored_pixels_gray() -> None:
    labels = np.array([[0, 1, 255, 1]])
    predicted = np.array([[0, 0, 0, 1]])
    drawing = draw_errors(np.zeros((1, 4, 3), np.uint8), labels, predicted, 255).astype(int)
    right, wrong, ignored, same = drawing[0]
    assert (right == same).all() and right.max() == right.min()
    assert wrong[0] > wrong[1] + 100
    assert ignored.max() - ignored.min() < 40 and (ignored != right).any()


def test_report_has_metrics_of_evaluation(evaluation: Path, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    assert view_results.main(["--input", str(evaluation), "--report", "--output", str(path)]) == 0
    page = path.read_text()
    content = re.search(r'id="figures">(.*?)</script>', page, re.DOTALL)
    assert content is not None
    figures = json.loads(content[1])
    results = json.loads((evaluation / "evaluation.json").read_text())["results"]["sem_seg"]
    assert figures["overall"]["mIoU"] == pytest.approx(results["mIoU"] / 100)
    for row in figures["classes"]:
        for metric in ("IoU", "BoundaryIoU"):
            value = results.get(f"{metric}-{row['name']}")
            assert row[metric] == (None if value is None else pytest.approx(value / 100))
    counts = read_semantic_results(evaluation, None, None).counts.confusion
    cells = re.findall(r"<td[^>]*>(\d*)</td>", page[page.index('class="heat"') :])
    assert [int(cell or 0) for cell in cells[:16]] == counts.ravel().tolist()
    assert page.count("data:image/jpeg") == 4


def test_predictions_of_other_data_raise(
    evaluation: Path, synthetic_data: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="belong to other data than"):
        view_results.main(
            ["--input", str(evaluation), "--data", str(synthetic_data), "--split", "train"]
        )
    copy = tmp_path / "copy"
    shutil.copytree(evaluation, copy)
    path = next((copy / "label_maps").glob("*.png"))
    save_labels(path, read_labels(path)[:-1])
    with pytest.raises(UserError, match="does not belong to .* with 4 classes"):
        view_results.main(["--input", str(copy)])
    path.unlink()
    with pytest.raises(UserError, match="does not exist: the predictions in"):
        view_results.main(["--input", str(copy)])
    shutil.rmtree(copy / "label_maps")
    with pytest.raises(UserError, match="no predicted label maps: evaluate with"):
        view_results.main(["--input", str(copy)])


@pytest.mark.parametrize("option", ["--score-threshold", "--max-detections"])
def test_view_results_refuses_options_of_detectors(option: str, evaluation: Path) -> None:
    with pytest.raises(UserError, match=f"{option} applies to detectors"):
        view_results.main(["--input", str(evaluation), option, "1"])


@pytest.mark.slow
def test_analyze_lists_parts_of_a_segmentation_model(
    weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    analyze.main(["--weights", str(weights), "--image", "64x96", "--device", "cpu"])
    output = capsys.readouterr().out
    for part in ("backbone", "decode head", "rest", "total"):
        assert re.search(rf"\| {part} \|", output), part
    assert "detections" not in output
    milliseconds = re.search(r"\| decode head \|.*\| ([\d.]+) \| \d+% \|", output)
    assert milliseconds is not None and float(milliseconds[1]) > 0


@pytest.mark.parametrize("suffix", [".onnx", pytest.param(".pt2", marks=pytest.mark.slow)])
def test_exported_model_predicts_the_same(
    suffix: str,
    weights: Path,
    synthetic_data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    paths = images_of(synthetic_data)
    output = str(tmp_path / f"model{suffix}")
    export.main(["--weights", str(weights), "--input", *paths, "--output", output])
    agreement = re.search(r"([\d.]+)% of the pixels have PyTorch's class", capsys.readouterr().out)
    assert agreement is not None and float(agreement[1]) > 99.5
    if suffix == ".onnx":
        exported = gpvit.Predictor.from_checkpoint(output)
        images = [read_image(paths[0]), np.ascontiguousarray(read_image(paths[0])[::-1])]
        expected = gpvit.Predictor.from_checkpoint(weights, "cpu")(images)
        for found, logits in zip(exported(images), expected, strict=True):  # one batch
            torch.testing.assert_close(found, logits, rtol=1e-3, atol=1e-3)
        exported.model.class_map = True
        for classes, logits in zip(exported(images), expected, strict=True):
            assert (classes == logits.argmax(0)).float().mean() > 0.995


@pytest.mark.slow
def test_exported_upernet_predicts_the_same_at_any_size(tmp_path: Path) -> None:
    config = str(REPOSITORY / "configs" / "published" / "upernet_gpvit_l1.py")
    size = ["model.backbone.embed_dim=24", "model.backbone.group_tokens=[0,4,0,0]"]
    size += ["model.backbone.out_features=[block0,block1,block2,last_feat]"]
    size += ["model.sem_seg_head.in_features=[block0,block1,block2,last_feat]"]
    size += ["model.sem_seg_head.channels=16", "model.sem_seg_head.num_classes=5"]
    size += ["model.backbone.norm=BN", "model.sem_seg_head.norm=BN"]
    torch.manual_seed(0)
    model = instantiate(load_config(config, size).model).eval()
    torch.nn.init.normal_(model.sem_seg_head.predictor.weight)
    path = tmp_path / "x.onnx"
    export_onnx(model).save(path)
    images = []
    for shape in ((64, 96), (100, 70), (17, 17)):
        images.append(torch.randint(0, 256, (3, *shape), dtype=torch.uint8))
    report = check(model, load(path), images)
    agreement = re.search(r"([\d.]+)% of the pixels have PyTorch's class", report)
    assert agreement is not None and float(agreement[1]) > 99.5


def test_inference_that_a_graph_lacks_is_not_exported(
    weights: Path, synthetic_data: Path, tmp_path: Path
) -> None:
    arguments = [
        "--weights",
        str(weights),
        "model.window=64",
        "--input",
        images_of(synthetic_data)[0],
    ]
    with pytest.raises(UserError, match="windows, scales and flips cannot be exported"):
        export.main([*arguments, "--output", str(tmp_path / "x.onnx")])


def test_shared_and_converted_models_keep_classes_and_palette(
    weights: Path, synthetic_data: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "shared"
    arguments = ["--weights", str(weights), "--output", str(folder), "--license", "mit"]
    share.main(["push", *arguments])
    card = (folder / "README.md").read_text()
    assert "semantic-segmentation" in card and "assigns one of 4 classes" in card
    assert "logits.argmax(0)" in card and "detects" not in card
    convert.main(["--weights", str(weights), "--output", str(tmp_path / "x.safetensors")])
    expected = gpvit.Predictor.from_checkpoint(weights, "cpu")(images_of(synthetic_data)[0])
    for path in (folder, tmp_path / "x.safetensors"):
        predictor = gpvit.Predictor.from_checkpoint(path, "cpu")
        assert predictor.classes == NAMES and predictor.palette == list(map(tuple, PALETTE))
        assert torch.equal(predictor(images_of(synthetic_data)[0]), expected)


@pytest.mark.parametrize("palette", [None, "red", [[1, 2]], [[1, 2, 3]], [[0, 0, 256]] * 4])
def test_palette_that_does_not_fit_is_replaced(
    palette: object, weights: Path, tmp_path: Path
) -> None:
    content = checkpoint.read_content(str(weights)) | {"palette": palette}
    checkpoint.save(content, str(tmp_path / "x.pth"))
    assert gpvit.Predictor.from_checkpoint(tmp_path / "x.pth", "cpu").palette == class_palette(4)


def test_attention_of_a_segmentation_model_is_drawn(
    weights: Path, synthetic_data: Path, tmp_path: Path
) -> None:
    arguments = ["--weights", str(weights), "--input", images_of(synthetic_data)[0]]
    assert view_attention.main([*arguments, "--output", str(tmp_path)]) == 0
    assert len(list(tmp_path.glob("*.png"))) == 2


def test_semantic_fpn_is_trained_and_predicts(synthetic_data: Path, tmp_path: Path) -> None:
    config = str(REPOSITORY / "configs" / "semantic_fpn_gpvit_l1.py")
    arguments = ["--config-file", config, "--data", str(synthetic_data), "train.device=cpu"]
    arguments += ["model.backbone.net.embed_dim=24", "model.backbone.net.group_tokens=[0,4]"]
    arguments += ["dataloader.short_side=64", "dataloader.max_size=128", "model.train_size=64"]
    arguments += ["dataloader.train.total_batch_size=2", "dataloader.train.num_workers=0"]
    arguments += ["dataloader.test.num_workers=0", "train.max_iter=2", "train.init_checkpoint=''"]
    arguments += ["train.eval_period=0", f"train.output_dir={tmp_path}"]
    train_net.main(argument_parser().parse_intermixed_args(arguments))
    file = checkpoint.read(str(tmp_path))
    assert "semantic FPN" in checkpoint.architecture(file.weights)
    predictor = gpvit.Predictor.from_checkpoint(tmp_path, "cpu")
    path = images_of(synthetic_data)[0]
    logits = predictor(path)
    assert logits.shape == (4, *cv2.imread(path).shape[:2])
    predictor.model.class_map = True
    assert (predictor(path) == logits.argmax(0)).float().mean() > 0.995


def test_detector_gives_a_segmentation_model_its_backbone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_detector(tmp_path / "detector.pth")
    size = ["model.backbone.embed_dim=24", "model.backbone.group_tokens=[0,4]"]
    size += ["model.backbone.out_features=[block0,last_feat]"]
    size += ["model.sem_seg_head.in_features=[block0,last_feat]"]
    size += ["model.sem_seg_head.class_weights=null"]
    model = instantiate(load_config(CONFIG, size).model)
    with caplog.at_level("INFO"):
        checkpoint.load(model, str(tmp_path / "detector.pth"), NAMES)
    assert "norms that the file does not have" in caplog.text
    weights = checkpoint.read(str(tmp_path / "detector.pth")).weights
    found = model.state_dict()
    for name in ("pos_embed", "blocks.1.group_token", "out_norms.last_feat.weight"):
        assert torch.equal(found[f"backbone.{name}"], weights[f"backbone.net.{name}"])
