"""`gpvit predict` and `--eval-only` with --tile and --stream."""

import json
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
import train_net
from conftest import REPOSITORY, TINY
from detectors import TINY_MODEL, write_detector
from detectron2.modeling import GeneralizedRCNN
from detectron2.modeling.roi_heads import StandardROIHeads
from detectron2.structures import Instances
from gpvit import Predictor
from gpvit.cli import predict, predict_large
from gpvit.cli.train import argument_parser, configure
from gpvit.data import image_io
from gpvit.data.image_io import read_image, save_image
from gpvit.engine import large_images
from gpvit.large_images.tiles import Tiles
from gpvit.streaming import storage
from gpvit.streaming.detector import check_detector
from gpvit.utils.errors import UserError
from gpvit.utils.events import read_evaluation
from PIL import Image
from pycocotools import mask as mask_api

CONFIG = str(REPOSITORY / "configs" / "quickstart.py")
ALL = ["--score-threshold", "0"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of an untrained detector that finds something everywhere."""
    path = tmp_path_factory.mktemp("model") / "model.pth"
    overrides = [*TINY_MODEL, "model.roi_heads.box_predictor.test_score_thresh=0"]
    write_detector(path, overrides=overrides)
    content = torch.load(path)
    content["classes"] = ["disc", "triangle", "cross"]  # of the synthetic dataset
    torch.save(content, path)
    return path


@pytest.fixture
def run(weights: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., int]:
    """Run the command in a folder with an image of 300 x 200 pixels; its output is in out/."""
    monkeypatch.chdir(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (25, 38, 3), np.uint8)
    save_image(tmp_path / "a.png", pixels.repeat(8, axis=0).repeat(8, axis=1)[:200, :300])

    def call(*arguments: str | Path) -> int:
        command = ["--weights", weights, "--output", "out", "--device", "cpu", *arguments]
        return predict.main(list(map(str, command)))

    return call


def boxes_of(folder: Path) -> list[list[float]]:
    results = json.loads((folder / "predictions.json").read_text())
    return sorted(result["bbox"] for result in results)


@pytest.mark.parametrize("way", ["--stream", "--tile 192", "--tile 192 --overlap 0"])
def test_results_are_those_of_the_predictor(
    way: str, run: Callable[..., int], weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--input", "a.png", *way.split(), *ALL, "--json", "--geojson") == 0
    tiles = None
    if way != "--stream":
        tiles = Tiles(192, 0 if "--overlap" in way else 0.2)
    predictor = Predictor.from_checkpoint(weights, "cpu")
    expected = []
    for part in predictor.detect_large("a.png", tiles):
        for x0, y0, x1, y1 in part.pred_boxes.tensor.tolist():
            expected.append([x0, y0, x1 - x0, y1 - y0])
    assert len(expected) > 5
    assert np.abs(np.array(boxes_of(Path("out"))) - sorted(expected)).max() < 1e-3
    features = json.loads(Path("out/a.png.geojson").read_text())["features"]
    assert len(features) == len(expected)
    assert f"a.png: {len(expected)} objects -> out/a.png" in capsys.readouterr().out
    (image,) = json.loads(Path("out/images.json").read_text())["images"]
    assert image == {"id": 1, "file_name": "a.png", "height": 200, "width": 300}
    # The overview, with a legend below it, and regions at full size.
    assert read_image("out/a.png").shape[1] > 600
    assert {path.name for path in Path("out/regions/a.png").iterdir()} == {"best_1_x0_y0.png"}


def test_masks_are_those_of_the_predictor(run: Callable[..., int], weights: Path) -> None:
    run("--input", "a.png", "--stream", *ALL, "--json")
    found = Instances.cat(list(Predictor.from_checkpoint(weights, "cpu").detect_large("a.png")))
    results = json.loads(Path("out/predictions.json").read_text())
    assert len(results) == len(found)
    for result, mask in zip(results, found.pred_masks):
        decoded = mask_api.decode(result["segmentation"])
        assert np.array_equal(decoded, mask.numpy())


@pytest.mark.parametrize("way", [["--stream"], ["--tile", "128"]])
def test_tiffs_above_the_limit_give_what_small_files_give(
    way: list[str], run: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    tifffile.imwrite("a.tif", read_image("a.png"), tile=(64, 64), compression="zlib")
    run("--input", "a.png", *way, *ALL, "--json")
    expected = boxes_of(Path("out"))
    monkeypatch.setattr(image_io, "MAX_PIXELS", 1000)
    assert run("--input", "a.tif", *way, *ALL, "--json", "--overwrite") == 0
    assert boxes_of(Path("out")) == expected and len(expected) > 5


def test_score_threshold_applies(run: Callable[..., int]) -> None:
    assert run("--input", "a.png", "--stream", "--score-threshold", "0.99", "--json") == 0
    assert boxes_of(Path("out")) == []
    assert json.loads(Path("out/images.json").read_text())["images"]


def test_existing_files_are_kept_without_overwrite(run: Callable[..., int]) -> None:
    run("--input", "a.png", "--stream", *ALL, "--geojson")
    for path in ("out/a.png", "out/a.png.geojson"):
        Path(path).unlink()
    with pytest.raises(UserError, match="regions/a.png"):
        run("--input", "a.png", "--stream", *ALL)
    old, own = Path("out/regions/a.png/worst_7_x9_y9.png"), Path("out/regions/a.png/own.png")
    for path in (old, own):
        save_image(path, np.zeros((4, 4, 3), np.uint8))
    run("--input", "a.png", "--stream", *ALL, "--overwrite")
    assert own.exists() and not old.exists()


def test_images_that_cannot_be_read_do_not_stop_the_others(
    run: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    Path("0.png").write_bytes(b"no image")
    assert run("--input", "0.png", "a.png", "--stream", *ALL, "--json") == 1
    output = capsys.readouterr()
    assert "1 image, " in output.out and "0.png: cannot be read: it is not an image" in output.err
    assert boxes_of(Path("out"))


def raising(function: Callable[..., Any], number: int, calls: list[int]) -> Callable[..., Any]:
    """A function that is interrupted by a signal in its second call."""

    def interrupted(*arguments: Any, **options: Any) -> Any:
        calls.append(number)
        if len(calls) == 2:
            signal.raise_signal(number)
        return function(*arguments, **options)

    return interrupted


WHERE = [
    (GeneralizedRCNN, "forward", ["--tile", "192"]),  # errors of the model are caught there
    (StandardROIHeads, "_forward_box", ["--stream"]),
    (predict.Run, "show", ["--stream"]),
]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize(("owner", "name", "way"), WHERE)
def test_signal_stops_at_once_and_leaves_no_part_of_an_image(
    owner: type,
    name: str,
    way: list[str],
    number: int,
    run: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[int] = []
    monkeypatch.setattr(owner, name, raising(getattr(owner, name), number, calls))
    Path("scratch").mkdir()
    for copy in ("b.png", "c.png"):
        Path(copy).write_bytes(Path("a.png").read_bytes())
    images = ["a.png", "b.png", "c.png"]
    options = [*way, *ALL, "--geojson", "--json", "--temp-dir", "scratch"]
    assert run("--input", *images, *options) == 128 + number
    assert len(calls) == 2
    assert ".png: stopped before it was complete" in capsys.readouterr().err
    assert not list(Path("scratch").iterdir()) and not list(Path("out").rglob("*partial*"))
    complete = {path.name.removesuffix(".geojson") for path in Path("out").glob("*.geojson")}
    listed = json.loads(Path("out/images.json").read_text())["images"]
    assert {image["file_name"] for image in listed} == complete
    ids = {result["image_id"] for result in json.loads(Path("out/predictions.json").read_text())}
    assert ids == {image["id"] for image in listed}


def test_q_in_the_window_stops_after_an_image(
    run: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def press_q(self: predict.Run, *_: Any, **__: Any) -> None:
        self.stopped = True

    monkeypatch.setattr(predict.Run, "show", press_q)
    Path("b.png").write_bytes(Path("a.png").read_bytes())
    assert run("--input", "a.png", "b.png", "--stream", *ALL, "--json") == 0
    (image,) = json.loads(Path("out/images.json").read_text())["images"]
    assert image["file_name"] == "a.png"


def test_failure_names_the_image_and_goes_on_with_the_next(
    run: Callable[..., int], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("out of memory")

    forward = StandardROIHeads.forward_with_given_boxes
    calls: list[int] = []

    def fail_once(*arguments: Any) -> Any:
        calls.append(1)
        return fail() if len(calls) == 1 else forward(*arguments)

    monkeypatch.setattr(StandardROIHeads, "forward_with_given_boxes", fail_once)
    Path("b.png").write_bytes(Path("a.png").read_bytes())
    assert run("--input", "a.png", "b.png", "--stream", *ALL, "--json") == 1
    error = capsys.readouterr().err
    assert "a.png: the model of" in error and "failed: RuntimeError: out of memory" in error
    (image,) = json.loads(Path("out/images.json").read_text())["images"]
    assert image["file_name"] == "b.png"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--overlap", "0.1"], "--overlap needs --tile N"),
        (["--geojson"], "--geojson needs --tile N or --stream"),
        (["--stream", "--temp-dir", "missing"], "--temp-dir: missing is no folder"),
        (["--temp-dir", "."], "--temp-dir needs --tile N or --stream"),
        (["--stream", "--cutouts"], "--cutouts cannot be combined with --tile or --stream"),
        (["--stream", "--overlap", "0.1"], "--overlap needs --tile N"),
        (["--stream", "--geojson", "map"], "a.png: is not a TIFF and has no map coordinates"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    options: list[str], message: str, run: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code = run("--input", "a.png", *options)
    except UserError as error:
        assert str(error).startswith(message)
    else:
        assert code == 1 and message in capsys.readouterr().err


def test_videos_are_refused(run: Callable[..., int]) -> None:
    Path("clip.mp4").touch()
    with pytest.raises(UserError, match="^clip.mp4 is a video: --tile and --stream are for images"):
        run("--input", "a.png", "clip.mp4", "--tile", "128")


@pytest.mark.parametrize("option", [["--tile", "63"], ["--tile", "128", "--overlap", "0.6"]])
def test_impossible_tiles_are_refused(option: list[str], run: Callable[..., int]) -> None:
    with pytest.raises(SystemExit):
        run("--input", "a.png", *option)


def test_model_that_cannot_be_streamed_is_named(
    run: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def with_keypoints(model: Any) -> None:
        model.roi_heads.keypoint_on = True
        check_detector(model)

    monkeypatch.setattr(predict_large, "check_detector", with_keypoints)
    with pytest.raises(UserError, match="model.pth: a GeneralizedRCNN .* be streamed; use tiles$"):
        run("--input", "a.png", "--stream")


def evaluate(data: Path, folder: Path, weights: Path, *options: str) -> dict[str, Any]:
    arguments = ["--config-file", CONFIG, "--data", str(data), "--eval-only", *options, *TINY]
    arguments += [f"train.init_checkpoint={weights}", f"train.output_dir={folder}"]
    arguments += ["train.device=cpu", "model.roi_heads.box_predictor.test_score_thresh=0"]
    train_net.main(argument_parser().parse_intermixed_args(arguments))
    return read_evaluation(folder / "evaluation.json")


def test_evaluation_in_tiles_and_streamed(
    synthetic_data: Path, weights: Path, tmp_path: Path
) -> None:
    """Each way has its own settings, and the results that the predictor returns."""
    evaluations = {}
    for name, options in {
        "usual": (),
        "tiles": ("--tile", "128"),
        "streamed": ("--stream",),
    }.items():
        evaluations[name] = evaluate(synthetic_data, tmp_path / name, weights, *options)
    assert len({found["settings"] for found in evaluations.values()}) == 3
    predictor = Predictor.from_checkpoint(weights, "cpu")
    annotations = json.loads((synthetic_data / "annotations" / "val.json").read_text())
    for name, tiles in (("tiles", Tiles(128)), ("streamed", None)):
        results = json.loads((tmp_path / name / "coco_instances_results.json").read_text())
        expected = 0
        for image in annotations["images"]:
            path = synthetic_data / "images" / image["file_name"]
            expected += sum(map(len, predictor.detect_large(path, tiles)))
        assert len(results) == expected > 0 and "segmentation" in results[0]


def test_evaluation_does_not_decode_images_for_the_model(
    synthetic_data: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    forward = large_images.LargeImageDetector.forward

    def noted(self: Any, batch: Any) -> Any:
        seen.extend(batch)
        return forward(self, batch)

    monkeypatch.setattr(large_images.LargeImageDetector, "forward", noted)
    evaluate(synthetic_data, tmp_path / "out", weights, "--tile", "256")
    assert len(seen) == 4 and not any("image" in record for record in seen)


def test_evaluation_of_a_streamed_model_is_in_float32(
    synthetic_data: Path, weights: Path, tmp_path: Path
) -> None:
    options = ["--stream", "train.eval_dtype=bfloat16"]
    assert evaluate(synthetic_data, tmp_path / "out", weights, *options)["dtype"] == "float32"


@pytest.mark.parametrize("option", [["--tile", "128"], ["--stream"]])
def test_training_in_tiles_is_refused(option: list[str]) -> None:
    args = argument_parser().parse_intermixed_args(["--config-file", CONFIG, *option])
    with pytest.raises(UserError, match="^--tile and --stream .* are for --eval-only$"):
        configure(args)


def test_paths_arrays_and_pillow_images_are_the_same(run: Any, weights: Path) -> None:
    predictor = Predictor.from_checkpoint(weights, "cpu")
    boxes = []
    for image in ("a.png", read_image("a.png"), Image.open("a.png")):
        found = Instances.cat(list(predictor.detect_large(image)))
        boxes.append(found.pred_boxes.tensor)
    assert torch.equal(boxes[0], boxes[1]) and torch.equal(boxes[0], boxes[2])


def test_too_little_space_is_one_line(run: Any, weights: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(storage.shutil, "disk_usage", lambda folder: SimpleNamespace(free=0))
    predictor = Predictor.from_checkpoint(weights, "cpu")
    with pytest.raises(UserError, match=r"^this image needs 0.0 GB in .*; give another"):
        list(predictor.detect_large("a.png"))
