"""Each command works with a classifier as with a detector."""

import json
import re
import shutil
from pathlib import Path

import cv2
import gpvit
import numpy as np
import pytest
import torch
import train_net
from conftest import REPOSITORY
from detectron2.config import instantiate
from gpvit import checkpoint
from gpvit.cli import analyze, convert, export, predict, share, view_attention, view_results
from gpvit.cli.train import argument_parser
from gpvit.config import inference_config, load_config
from gpvit.data.image_io import read_image
from gpvit.data.video_io import VideoReader, VideoWriter
from gpvit.evaluation.classification_evaluation import RESULTS, metrics_of
from gpvit.evaluation.classification_results import read_classification_results
from gpvit.export.graph import export_onnx
from gpvit.export.verify import batches, check, load
from gpvit.utils.errors import UserError
from gpvit.visualization.attention import inspect, visible_part
from gpvit.visualization.classification_drawing import (
    NARROWEST,
    draw_label,
    draw_scores,
    with_scores,
)
from matplotlib.colors import to_rgb
from PIL import Image

pytestmark = pytest.mark.long

CONFIG = str(REPOSITORY / "configs" / "quickstart_classifier.py")
TINY = [
    "model.backbone.embed_dim=24",
    "model.backbone.group_tokens=[0,4,0,4]",
    "dataloader.short_side=48",
    "dataloader.crop_size=32",
    "dataloader.test.batch_size=4",
    "dataloader.test.num_workers=0",
    "train.device=cpu",
]
NAMES = ["ant", "bee & $x^2$", "cat", "dog", "elk", "fox", "gnu"]


def build(size: str = "attention") -> torch.nn.Module:
    cfg = load_config(CONFIG, [*TINY, f"model.num_classes={len(NAMES)}", f"model.pooling={size}"])
    torch.manual_seed(0)
    model = instantiate(cfg.model).eval()
    torch.nn.init.normal_(model.head.weight)  # to predict several classes
    return model


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of an untrained model."""
    path = tmp_path_factory.mktemp("model") / "model.pth"
    cfg = load_config(CONFIG, [*TINY, f"model.num_classes={len(NAMES)}"])
    content = {
        "model": build().state_dict(),
        "classes": NAMES,
        "inference_config": inference_config(cfg),
        "iterations": 3,
    }
    checkpoint.save(content, str(path))
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders with five images each, of colored squares."""
    folder = tmp_path_factory.mktemp("data") / "animals"
    rng = np.random.default_rng(0)
    for name in NAMES:
        for split, number in (("train", 1), ("val", 5)):
            for index in range(number):
                pixels = rng.integers(0, 256, (4, 6, 3), np.uint8).repeat(12, 0).repeat(12, 1)
                path = folder / split / name / f"{index}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(path)
    return folder


@pytest.fixture(scope="module")
def evaluation(weights: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an evaluation."""
    folder = tmp_path_factory.mktemp("evaluation") / "out"
    arguments = ["--config-file", CONFIG, "--data", str(data), "--eval-only", *TINY]
    arguments += [f"train.init_checkpoint={weights}", f"train.output_dir={folder}"]
    train_net.main(argument_parser().parse_intermixed_args(arguments))
    return folder


def images_of(data: Path) -> list[str]:
    return sorted(map(str, (data / "val" / "ant").glob("*.png")))


def scores_of(weights: Path, path: str) -> torch.Tensor:
    scores = gpvit.Predictor.from_checkpoint(weights, "cpu")(path)
    assert isinstance(scores, torch.Tensor)
    return scores


def test_predict_draws_scores_and_writes_json(
    weights: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = images_of(data)
    arguments = ["--weights", str(weights), "--input", *paths, "--json"]
    assert predict.main([*arguments, "--output", str(tmp_path / "out")]) == 0
    output = capsys.readouterr().out
    rows = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert [row["file_name"] for row in rows] == [Path(path).name for path in paths]
    for row, path in zip(rows, paths):
        best = scores_of(weights, path).topk(5)
        found = [(item["class"], item["score"]) for item in row["predictions"]]
        assert [name for name, _ in found] == [NAMES[index] for index in best.indices]
        assert [score for _, score in found] == pytest.approx(best.values.tolist(), abs=1e-5)
        line = f"{path}: {found[0][0]} {found[0][1]:.0%} -> "
        assert line in output
        drawing = cv2.imread(str(tmp_path / "out" / Path(path).name))
        height, width = read_image(path).shape[:2]
        assert drawing.shape[0] > drawing.shape[1] * height / width + 100  # bars below the image
    assert not (tmp_path / "out" / "images.json").exists()


def test_predict_writes_the_class_into_videos(weights: Path, data: Path, tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "clip.mp4", 5) as writer:
        for path in images_of(data)[:2]:
            writer.write(np.ascontiguousarray(cv2.resize(read_image(path), (320, 240))))
    arguments = ["--weights", str(weights), "--input", str(tmp_path / "clip.mp4"), "--json"]
    assert predict.main([*arguments, "--output", str(tmp_path / "out")]) == 0
    frames = list(VideoReader(str(tmp_path / "out" / "clip.mp4")))
    originals = list(VideoReader(str(tmp_path / "clip.mp4")))
    assert len(frames) == 2 and frames[0].shape == (240, 320, 3)
    changed = np.abs(frames[0].astype(int) - originals[0]).max(2) > 60
    assert changed[:60].sum() > 100 and not changed[60:].any()  # the label is at the top
    rows = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert [row["frame"] for row in rows] == [0, 1]


@pytest.mark.parametrize("option", [["--cutouts"], ["--score-threshold", "0.5"]])
def test_predict_refuses_options_of_detectors(
    option: list[str], weights: Path, data: Path, tmp_path: Path
) -> None:
    arguments = ["--weights", str(weights), "--input", *images_of(data), *option]
    with pytest.raises(UserError, match=f"{option[0]}: .* is a classifier, no detector"):
        predict.main([*arguments, "--output", str(tmp_path)])


@pytest.mark.parametrize("size", [(8, 8), (1, 300), (300, 1), (40, 3000)])
def test_images_of_any_size_are_drawn(size: tuple[int, int]) -> None:
    image = np.zeros((*size, 3), np.uint8)
    drawing = draw_scores(image, NAMES, [1, 0], [0.9, 0.1])
    assert drawing.shape[1] >= NARROWEST and drawing.dtype == np.uint8
    labeled = draw_label(image, NAMES[1])
    assert max(labeled.shape) <= 2560 and labeled.any()  # white on black
    assert draw_label(image, NAMES[1], resize=False).shape == image.shape


def test_length_of_a_bar_is_its_score() -> None:
    image = np.full((10, 1000, 3), 255, np.uint8)
    color = "#0969da"
    drawing = with_scores(image, ["a", "b"], [0.8, 0.4], [color, color])
    is_bar = np.abs(drawing - 255 * np.array(to_rgb(color))).max(2) < 2
    lengths = sorted(set(is_bar.sum(1).tolist()) - {0})
    assert lengths[-1] == pytest.approx(2 * lengths[0], abs=4)


def test_evaluation_writes_predictions_that_give_its_metrics(evaluation: Path) -> None:
    results = json.loads((evaluation / "evaluation.json").read_text())["results"]
    read = read_classification_results(evaluation, None, None)
    assert len(read.cases) == 35 and read.truth.classes == NAMES
    assert metrics_of(read.images, NAMES) == pytest.approx(results["classification"])
    wrong = [case.scores.scores[0] for case in read.mistakes]
    assert wrong == sorted(wrong, reverse=True) and 0 < len(wrong) < 35
    for case in read.mistakes:
        assert case.scores.classes[0] != case.record["label"]
        assert Path(case.record["file_name"]).parent.name == NAMES[case.record["label"]]


def test_most_confident_mistakes_are_drawn_first(
    evaluation: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--input", str(evaluation), "--output", str(tmp_path / "out"), "--number", "3"]
    assert view_results.main(arguments) == 0
    output = capsys.readouterr().out
    scores = [float(value) for value in re.findall(r"predicted as .*, ([\d.]+)%", output)]
    assert len(scores) == 3 and scores == sorted(scores, reverse=True)
    mistakes = read_classification_results(evaluation, None, None).mistakes
    assert scores[0] == pytest.approx(100 * mistakes[0].scores.scores[0], abs=0.06)
    assert f"{len(mistakes)} of 35 images are predicted wrongly" in output
    assert (tmp_path / "out" / "sheet.png").exists()
    with pytest.raises(UserError, match=r"sheet\.png already exists"):
        view_results.main(arguments)


def test_report_has_metrics_of_evaluation(evaluation: Path, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    assert view_results.main(["--input", str(evaluation), "--report", "--output", str(path)]) == 0
    page = path.read_text()
    content = re.search(r'id="figures">(.*?)</script>', page, re.DOTALL)
    assert content is not None
    figures = json.loads(content[1])
    results = json.loads((evaluation / "evaluation.json").read_text())["results"]
    accuracy = results["classification"]
    assert figures["overall"]["top-1"] == pytest.approx(accuracy["top1"] / 100)
    assert figures["overall"]["top-5"] == pytest.approx(accuracy["top5"] / 100)
    for row in figures["classes"]:
        assert row["accuracy"] == pytest.approx(accuracy[f"top1-{row['name']}"] / 100)
        assert row["images"] == 5
    counts = read_classification_results(evaluation, None, None).counts
    cells = re.findall(r"<td[^>]*>(\d*)</td>", page[page.index('class="heat"') :])
    assert [int(cell or 0) for cell in cells[:49]] == counts.ravel().tolist()
    assert page.count("data:image/jpeg") == 8 and "bee &amp; $x^2$" in page


def test_predictions_of_other_data_raise(evaluation: Path, data: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="belong to other data than"):
        view_results.main(["--input", str(evaluation), "--data", str(data), "--split", "train"])
    copy = tmp_path / "copy"
    shutil.copytree(evaluation, copy)
    rows = json.loads((copy / RESULTS).read_text())
    (copy / RESULTS).write_text(json.dumps(rows[1:]))
    with pytest.raises(UserError, match="has no prediction for .*0.png"):
        view_results.main(["--input", str(copy)])
    (copy / RESULTS).unlink()
    with pytest.raises(UserError, match=f"has no {RESULTS}: evaluate with"):
        view_results.main(["--input", str(copy)])


@pytest.mark.parametrize(
    "change",
    [
        {"classes": [7, 0, 1, 2, 3]}, {"classes": "01234"}, {"scores": [0.5]}, {"scores": None},
        {"image_id": "1"}, {"classes": [], "scores": []}, {"scores": [float("nan")] * 5},
    ],
)  # fmt: skip
def test_damaged_predictions_raise_one_line(change: dict, evaluation: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(evaluation, copy)
    rows = json.loads((copy / RESULTS).read_text())
    rows[3] |= change
    (copy / RESULTS).write_text(json.dumps(rows))
    with pytest.raises(UserError, match="cannot be used .*; evaluate again") as error:
        view_results.main(["--input", str(copy)])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("option", ["--score-threshold", "--max-detections"])
def test_view_results_refuses_options_of_detectors(option: str, evaluation: Path) -> None:
    with pytest.raises(UserError, match=f"{option} applies to detectors, .* is of a classifier"):
        view_results.main(["--input", str(evaluation), option, "1"])


@pytest.mark.slow
def test_analyze_lists_parts_of_a_classifier(capsys: pytest.CaptureFixture[str]) -> None:
    overrides = ["model.num_classes=1000", "dataloader.crop_size=32"]
    analyze.main(["--config-file", CONFIG, *overrides, "--device", "cpu"])
    output = capsys.readouterr().out
    assert "one image of 32x32" in output and "detections" not in output
    for part in ("backbone", "classifier head", "rest", "total"):
        assert re.search(rf"\| {part} \|", output), part
    parameters = 96 + 2 * 96 + 96 * 96 + 97 * 1000  # query, norm, key, linear layer
    assert f"| classifier head | {parameters / 1e6:.2f} |" in output and parameters > 1e5


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
def test_exported_model_predicts_batches_of_any_size(
    suffix: str, weights: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / f"model{suffix}"
    arguments = ["--weights", str(weights), "--input", *images_of(data)]
    export.main([*arguments, "--output", str(output)])
    assert "on 5 images, 100.0% of the images have PyTorch's class" in capsys.readouterr().out
    exported, predictor = load(output), gpvit.Predictor.from_checkpoint(weights, "cpu")
    if suffix == ".onnx":
        found = gpvit.Predictor.from_checkpoint(output)(images_of(data))
        for scores, path in zip(found, images_of(data), strict=True):
            assert torch.allclose(scores, scores_of(weights, path), atol=1e-5)
    for number in (1, 2, 5):
        images = [predictor.resize(read_image(path)) for path in images_of(data)[:number]]
        scores = exported(torch.stack(images))["scores"]
        assert scores.shape == (number, len(NAMES))
        for row, path in zip(scores, images_of(data)):
            assert torch.allclose(row, scores_of(weights, path), atol=1e-5)


@pytest.mark.slow
def test_exported_classifier_takes_other_sizes(tmp_path: Path) -> None:
    model = build("mean")
    export_onnx(model).save(tmp_path / "x.onnx")
    images = []
    for shape in ((32, 32), (64, 40), (32, 32), (33, 50)):
        images.append(torch.randint(0, 256, (3, *shape), dtype=torch.uint8))
    assert [len(batch) for batch in batches(images)] == [1, 2, 1, 1]
    report = check(model, load(tmp_path / "x.onnx"), images)
    assert "100.0% of the images have PyTorch's class" in report


def test_export_that_differs_is_refused(weights: Path) -> None:
    model = build()
    images = [torch.zeros(3, 32, 32, dtype=torch.uint8)]
    with pytest.raises(UserError, match="not exported: 100.0% of the images have another class"):
        check(model, lambda images: {"scores": -model.logits(images.float())}, images)


def test_shared_and_converted_models_keep_their_classes(
    weights: Path, data: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "shared"
    arguments = ["--weights", str(weights), "--output", str(folder), "--license", "mit"]
    share.main(["push", *arguments])
    card = (folder / "README.md").read_text()
    assert "pipeline_tag: image-classification" in card
    assert "An image classifier with attention pooling and a [GPViT]" in card
    assert "shorter side is 48 pixels, and the 32 x 32 pixels in the center" in card
    assert "scores.topk(3)" in card and "detects" not in card
    convert.main(["--weights", str(weights), "--output", str(tmp_path / "x.safetensors")])
    expected = scores_of(weights, images_of(data)[0])
    for path in (folder, tmp_path / "x.safetensors"):
        predictor = gpvit.Predictor.from_checkpoint(path, "cpu")
        assert predictor.classes == NAMES
        assert torch.equal(scores_of(path, images_of(data)[0]), expected)


def test_attention_is_drawn_over_the_part_that_the_model_sees(
    weights: Path, tmp_path: Path
) -> None:
    image = np.zeros((48, 96, 3), np.uint8)
    image[:, 40:56] = (250, 20, 30)
    Image.fromarray(image).save(tmp_path / "wide.png")
    arguments = ["--weights", str(weights), "--input", str(tmp_path / "wide.png")]
    assert view_attention.main([*arguments, "--output", str(tmp_path / "out")]) == 0
    assert len(list((tmp_path / "out").glob("*.png"))) == 2
    predictor = gpvit.Predictor.from_checkpoint(weights, "cpu")
    part = visible_part(predictor, image)
    assert np.array_equal(part, image[8:40, 32:64])
    inspection = inspect(predictor, image)
    assert inspection.size == (32, 32) and inspection.groups[1].grouping.shape == (4, 4, 4)


def test_predictor_returns_probabilities(weights: Path, data: Path) -> None:
    predictor = gpvit.Predictor.from_checkpoint(weights, "cpu")
    for scores in predictor(images_of(data), batch_size=3):
        assert isinstance(scores, torch.Tensor)
        assert scores.shape == (7,) and scores.sum().item() == pytest.approx(1, abs=1e-5)
