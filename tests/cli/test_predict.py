"""`gpvit predict` draws, crops and lists detections, and leaves other files unchanged."""

import io
import itertools
import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import detectron2.data.transforms as T
import numpy as np
import pytest
import torch
from detectors import write_detector
from detectron2.structures import Boxes, Instances
from gpvit import Predictor
from gpvit.cli import predict
from gpvit.data.video_io import VideoReader, VideoWriter
from gpvit.utils.errors import UserError
from gpvit.visualization import drawing as visualize
from pycocotools.coco import COCO
from torch import Tensor, nn

RED = (255, 0, 0)
read_frames = VideoReader.__iter__  # some tests replace the attribute


class FindSquares(nn.Module):
    """Mock detector: detects the red square, as an apple with score 0.9 and a pear with 0.3."""

    test_score_thresh = 0.05  # an attribute of real heads

    def forward(self, batch: list[dict[str, Any]]) -> list[dict[str, Instances]]:
        return [{"instances": self.detect(**entry)} for entry in batch]

    def detect(self, image: Tensor, height: int, width: int) -> Instances:
        r, g, b = image.int()
        mask = (r > 180) & (g < 80) & (b < 80)
        rows = mask.any(1).nonzero().flatten().tolist()
        columns = mask.any(0).nonzero().flatten().tolist()
        boxes = [[columns[0], rows[0], columns[-1] + 1.0, rows[-1] + 1.0]] * 2 if rows else []
        return Instances(
            (height, width),
            pred_boxes=Boxes(torch.tensor(boxes).reshape(-1, 4)),
            scores=torch.tensor([0.9, 0.3])[: len(boxes)],
            pred_classes=torch.tensor([0, 1])[: len(boxes)],
            pred_masks=mask.repeat(len(boxes), 1, 1),
        )


@pytest.fixture
def squares(monkeypatch: pytest.MonkeyPatch) -> Predictor:
    """A predictor that detects red squares, whatever checkpoint is given."""
    predictor = Predictor.__new__(Predictor)
    predictor.model, predictor.classes = FindSquares(), ["apple", "pear / Birne"]
    predictor.augmentations, predictor.channels = T.AugmentationList([]), [0, 1, 2]
    predictor.autocast_device, predictor.dtype = "cpu", torch.float32
    monkeypatch.setattr(Predictor, "from_checkpoint", lambda *_, **__: predictor)
    return predictor


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Run the command in an empty folder; its output is in out/."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str | Path, weights: str | Path = "model.pth") -> int:
        command = ["--weights", weights, "--output", "out", "--device", "cpu", *arguments]
        return predict.main(list(map(str, command)))

    return call


def square_image(
    x: int = 20, y: int = 10, size: int = 16, shape: tuple[int, int] = (48, 64)
) -> np.ndarray:
    """Return a gray image with a red square, (H, W, 3), RGB."""
    image = np.full((*shape, 3), 128, np.uint8)
    image[y : y + size, x : x + size] = RED
    return image


def save(*paths: str) -> None:
    for path in paths:
        predict.save_image(Path(path), square_image())


def save_video(path: Path, frames: int = 8, fps: float = 4) -> None:
    """Write a video of a square that moves four pixels to the right in each frame."""
    with VideoWriter(path, fps) as writer:
        for number in range(frames):
            writer.write(square_image(4 * number, 16, shape=(64, 96)))


def written(folder: str = "out") -> list[str]:
    """Return the files below a folder."""
    files = filter(Path.is_file, Path(folder).rglob("*"))
    return sorted(path.relative_to(folder).as_posix() for path in files)


def read(path: str) -> np.ndarray:
    return cv2.imread(path, cv2.IMREAD_UNCHANGED)


def frames_of(path: str) -> list[np.ndarray]:
    return list(read_frames(VideoReader(path)))


def test_detections_of_trained_detector_are_drawn_on_all_images(
    run, synthetic_data: Path, capsys: pytest.CaptureFixture
) -> None:
    write_detector(Path("model_final.pth"))
    pattern = synthetic_data / "images" / "val_*.png"
    assert run("--input", pattern, "--score-threshold", "0.28", "--json", weights=".") == 0
    sources = sorted((synthetic_data / "images").glob("val_*.png"))
    assert written() == ["images.json", "predictions.json", *(path.name for path in sources)]
    for source in sources:
        before, after = read(str(source)), read(f"out/{source.name}")
        assert min(after.shape[:2]) >= 640  # enlarged, for readable labels
        assert not np.array_equal(cv2.resize(after, before.shape[1::-1]), before)
    number = 0
    for instances in Predictor.from_checkpoint(".", "cpu")(sources):
        number += int((instances.scores >= 0.28).sum())
    lines = capsys.readouterr().out.splitlines()
    assert lines[3].startswith(f"[4/4] {sources[-1]}: ")
    assert lines[4] == f"4 images, {number} objects -> out"
    assert len(json.loads(Path("out/predictions.json").read_text())) == number > 0


def test_unreadable_inputs_are_skipped_and_listed_at_end(
    run, squares: Predictor, capsys: pytest.CaptureFixture
) -> None:
    save("1.png", "3.png")
    Path("2.png").write_bytes(b"not an image")
    Path("clip.mp4").write_bytes(b"not a video")
    inputs = ("1.png", "2.png", "clip.mp4", "missing.jpg", "no_*.jpg", "3.png")
    assert run("--input", *inputs, "--batch-size", "3") == 1
    assert written() == ["1.png", "3.png"]
    output = capsys.readouterr()
    assert output.out.splitlines()[-1] == "2 images, 2 objects -> out"
    errors = output.err.splitlines()
    assert errors[-5] == "error: 4 inputs could not be read completely:"
    for error, name in zip(errors[-4:], ("2.png", "missing.jpg", "no_*.jpg", "clip.mp4")):
        assert error.startswith(f"  {name}: cannot be ")


def test_output_names_include_subfolders(run, squares: Predictor) -> None:
    save("images/a.jpg", "images/a.png", "images/a.tif", "images/sub/a.jpg")
    save("images/sub/deep/B.JPG", "images/.hidden.jpg", "images/.cache/a.jpg")
    Path("images/notes.txt").write_text("")
    assert run("--input", "images") == 0
    assert written() == ["a.jpg", "a.png", "a.tif.png", "sub/a.jpg", "sub/deep/B.JPG"]
    assert run("--input", "images/*/a.*", "images/sub/deep/B.JPG", "--output", "glob") == 0
    assert written("glob") == ["B.JPG", "sub/a.jpg"]
    with pytest.raises(UserError, match="a.jpg is an input, or would be written twice"):
        run("--input", "images/a.jpg", "images/sub/a.jpg", "--output", "twice")
    assert not Path("twice").exists()


def test_existing_file_takes_precedence_over_glob_pattern(run, squares: Predictor) -> None:
    save("img[1].png")
    assert run("--input", "img[1].png") == 0 and written() == ["img[1].png"]


def test_output_folder_inside_input_folder_is_skipped(run, squares: Predictor) -> None:
    save("a.png")
    for _ in range(2):
        assert run("--input", ".", "--overwrite") == 0
        assert written() == ["a.png"]


def test_folder_without_images_raises(run) -> None:
    Path("empty").mkdir()
    with pytest.raises(UserError, match="empty: there are no images below it"):
        run("--input", "empty")


@pytest.mark.parametrize(
    "existing, options",
    [
        ("a.png", []),
        ("clip.mp4", []),
        ("predictions.json", ["--json"]),
        ("images.json", ["--json"]),
        ("cutouts/a.png/001_apple_90.png", ["--cutouts"]),
    ],
)
def test_existing_files_are_kept_without_overwrite(
    run, squares: Predictor, existing: str, options: list[str]
) -> None:
    save("a.png")
    save_video(Path("clip.mp4"), frames=2)
    file = Path("out") / existing
    file.parent.mkdir(parents=True)
    file.write_text("old")
    with pytest.raises(
        UserError, match=r"out/.* already exists; give another --output, or --overwrite"
    ):
        run("--input", "a.png", "clip.mp4", *options)
    assert written() == [existing] and file.read_text() == "old"
    assert run("--input", "a.png", "clip.mp4", *options, "--overwrite") == 0
    assert file.read_bytes() != b"old"


def test_overwrite_removes_cutouts_of_earlier_run(run, squares: Predictor) -> None:
    save("a.png")
    assert run("--input", "a.png", "--cutouts", "--score-threshold", "0.2") == 0
    assert run("--input", "a.png", "--cutouts", "--overwrite") == 0
    assert written() == ["a.png", "cutouts/a.png/001_apple_90.png"]


def test_overwrite_does_not_replace_inputs(run, squares: Predictor) -> None:
    save("images/a.png")
    with pytest.raises(UserError, match="is an input"):
        run("--input", "images/*.png", "--output", "images", "--overwrite")


def test_pycocotools_reads_predictions(run, squares: Predictor) -> None:
    save("images/a.png", "images/sub/b.png")
    predict.save_image(Path("images/c.png"), np.full((40, 30, 3), 128, np.uint8))
    assert run("--input", "images", "--json", "--score-threshold", "0.2") == 0
    images = COCO("out/images.json")
    names = {image["id"]: image["file_name"] for image in images.dataset["images"]}
    assert sorted(names.values()) == ["a.png", "c.png", "sub/b.png"]
    assert [category["name"] for category in images.dataset["categories"]] == squares.classes
    results = images.loadRes("out/predictions.json")
    assert len(results.anns) == 4  # two squares, as apple and as pear
    for annotation in results.anns.values():
        assert names[annotation["image_id"]] in ("a.png", "sub/b.png")
        assert annotation["bbox"] == [20, 10, 16, 16]
        assert annotation["score"] == pytest.approx({1: 0.9, 2: 0.3}[annotation["category_id"]])
        assert np.array_equal(results.annToMask(annotation), (square_image() == RED).all(2))


@pytest.mark.parametrize("threshold, expected", [("0.2", 0.2), ("0.01", 0.05)])
def test_score_threshold_is_passed_to_heads(
    run, squares: Predictor, threshold: str, expected: float
) -> None:
    save("a.png")
    assert run("--input", "a.png", "--score-threshold", threshold) == 0
    assert squares.model.test_score_thresh == expected


def test_predictions_without_objects_are_an_empty_list(run, squares: Predictor) -> None:
    predict.save_image(Path("a.png"), np.full((40, 30, 3), 128, np.uint8))
    assert run("--input", "a.png", "--json") == 0
    assert json.loads(Path("out/predictions.json").read_text()) == []


def test_cutouts_contain_only_the_object(run, squares: Predictor) -> None:
    save("images/sub/a.png")
    assert run("--input", "images", "--cutouts", "--score-threshold", "0.2") == 0
    names = ["cutouts/sub/a.png/001_apple_90.png", "cutouts/sub/a.png/002_pear-Birne_30.png"]
    assert written() == [*names, "sub/a.png"]
    for name in names:
        assert np.array_equal(read(f"out/{name}"), np.full((16, 16, 4), (0, 0, 255, 255)))  # BGRA


def test_cutout_is_transparent_outside_its_mask() -> None:
    image, mask = np.full((20, 30, 3), 77, np.uint8), torch.zeros(2, 20, 30, dtype=torch.bool)
    mask[0, 5, 3:9] = mask[0, 5:11, 3] = True
    boxes = Boxes(torch.tensor([[2.0, 4, 10, 12], [-3, 5.4, 9.6, 30]]))
    cut, empty = visualize.cut_outs(image, Instances((20, 30), pred_boxes=boxes, pred_masks=mask))
    assert cut.shape == (6, 6, 4) and empty.size == 0
    assert np.array_equal(cut[..., 3] == 255, mask[0, 5:11, 3:9])
    assert set(cut[..., 0].flat) == {0, 77}
    # RetinaNet predicts no masks.
    _, boxed = visualize.cut_outs(image, Instances((20, 30), pred_boxes=boxes))
    assert boxed.shape == (15, 10, 4) and (boxed == (77, 77, 77, 255)).all()


def boxes_only(height: int, width: int, boxes: list[list[float]]) -> Instances:
    return Instances(
        (height, width),
        pred_boxes=Boxes(torch.tensor(boxes)),
        scores=torch.full((len(boxes),), 0.5),
        pred_classes=torch.zeros(len(boxes), dtype=torch.int64),
    )


def test_labels_stay_inside_image_and_do_not_overlap(monkeypatch: pytest.MonkeyPatch) -> None:
    drawings, spread_labels = [], visualize._spread_labels

    def spread(drawing: Any) -> None:
        spread_labels(drawing)
        drawings.append(drawing)

    monkeypatch.setattr(visualize, "_spread_labels", spread)
    boxes = [[10.0, 10, 300, 300], [12, 12, 302, 302], [12, 12, 298, 298]]
    boxes += [[690, 690, 699, 699], [600, 500, 699, 699]]
    image = np.zeros((700, 700, 3), np.uint8)
    visualize.draw_predictions(image, boxes_only(700, 700, boxes), ["something"])
    (drawing,) = drawings
    renderer = drawing.canvas.get_renderer()
    labels = [text.get_window_extent(renderer) for text in drawing.ax.texts]
    assert len(labels) == len(boxes)
    for number, label in enumerate(labels):
        assert min(label.min) >= 0 and max(label.max) <= 700
        assert not label.count_overlaps(labels[:number])


@pytest.mark.parametrize(
    "size, drawn",
    [
        ((100, 200), (640, 1280)),
        ((700, 900), (700, 900)),
        ((1500, 3000), (1280, 2560)),
        ((50, 2), (2560, 102)),
    ],
)
def test_drawings_have_limited_size(size: tuple[int, int], drawn: tuple[int, int]) -> None:
    height, width = size
    image = np.full((height, width, 3), 128, np.uint8)
    mask = torch.zeros(1, height, width, dtype=torch.bool)
    mask[:, height // 2 :] = True
    instances = boxes_only(height, width, [[0, height / 2, width, height]])
    instances.pred_masks = mask
    drawing = visualize.draw_predictions(image, instances, ["a"])
    assert drawing.shape[:2] == drawn
    top, bottom = drawing[: int(0.4 * drawn[0])], drawing[int(0.6 * drawn[0]) :]
    assert (top == 128).all()
    assert (bottom != 128).any(2).mean() > 0.9


@pytest.mark.parametrize("batch_size", ["1", "3"])
def test_video_keeps_frames_size_and_frame_rate(
    run, squares: Predictor, capsys: pytest.CaptureFixture, batch_size: str
) -> None:
    save_video(Path("clip.avi"), frames=8, fps=12.5)
    assert run("--input", "clip.avi", "--json", "--cutouts", "--batch-size", batch_size) == 0
    reader = VideoReader("out/clip.avi.mp4")
    frames = list(reader)
    assert reader.fps == 12.5 and reader.frames == len(frames) == 8
    assert {frame.shape for frame in frames} == {(64, 96, 3)}
    assert "clip.avi: 8 objects in 8 frames -> out/clip.avi.mp4" in capsys.readouterr().out
    images = json.loads(Path("out/images.json").read_text())["images"]
    assert {image["file_name"] for image in images} == {"clip.avi"}
    assert [image["frame"] for image in images] == list(range(8))
    boxes = [result["bbox"] for result in json.loads(Path("out/predictions.json").read_text())]
    for number, (box, frame) in enumerate(zip(boxes, frames, strict=True)):
        assert box == pytest.approx([4 * number, 16, 16, 16], abs=2)
        inside = frame[20:28, 4 * number + 4 : 4 * number + 12].mean((0, 1))
        assert np.abs(inside - RED).max() > 40  # tinted by the mask
    assert written("out/cutouts") == [
        f"clip.avi/frame_{number:06}_001_apple_90.png" for number in range(8)
    ]


def test_truncated_video_keeps_processed_frames(
    run, squares: Predictor, capsys: pytest.CaptureFixture
) -> None:
    # The format of old cameras.
    writer = cv2.VideoWriter("complete.avi", cv2.VideoWriter.fourcc(*"MJPG"), 4, (64, 64))
    for _ in range(20):
        writer.write(square_image(shape=(64, 64)))
    writer.release()
    content = Path("complete.avi").read_bytes()
    Path("clip.avi").write_bytes(content[: len(content) // 2])
    save_video(Path("next.mp4"), frames=2)
    assert run("--input", "clip.avi", "next.mp4", "--json", "--batch-size", "4") == 1
    kept = len(frames_of("out/clip.avi.mp4"))
    assert 2 < kept < 16
    images = json.loads(Path("out/images.json").read_text())["images"]
    assert [image["file_name"] for image in images] == ["clip.avi"] * kept + ["next.mp4"] * 2
    assert f"clip.avi: breaks off after {kept} of 20 frames" in capsys.readouterr().err


def interrupt_after(monkeypatch: pytest.MonkeyPatch, number: int, signal_number: int) -> None:
    """Make this process receive a signal while it reads a frame."""

    def interrupted(reader: VideoReader) -> Iterator[np.ndarray]:
        for count, frame in enumerate(read_frames(reader), start=1):
            if count == number:
                os.kill(os.getpid(), signal_number)
            yield frame

    monkeypatch.setattr(VideoReader, "__iter__", interrupted)


def test_ctrl_c_finishes_webcam_video(
    monkeypatch: pytest.MonkeyPatch, run, squares: Predictor, capsys: pytest.CaptureFixture
) -> None:
    save_video(Path("stand_in.avi"))
    interrupt_after(monkeypatch, 3, signal.SIGINT)
    assert run("--webcam", "stand_in.avi", "--json") == 0
    assert len(frames_of("out/webcam.mp4")) == 3
    assert len(json.loads(Path("out/predictions.json").read_text())) == 3
    assert capsys.readouterr().out.splitlines()[-1] == "3 frames, 3 objects -> out"


@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGTERM])
def test_signal_finishes_current_video_and_skips_the_rest(
    monkeypatch: pytest.MonkeyPatch, run, squares: Predictor, signal_number: int
) -> None:
    save_video(Path("1.avi"))
    save_video(Path("2.avi"))
    interrupt_after(monkeypatch, 3, signal_number)
    before = signal.getsignal(signal.SIGINT)
    assert run("--input", "1.avi", "2.avi", "--json", "--batch-size", "2") == 128 + signal_number
    assert written() == ["1.avi.mp4", "images.json", "predictions.json"]
    assert len(frames_of("out/1.avi.mp4")) == 3
    assert signal.getsignal(signal.SIGINT) is before


def test_video_frames_are_read_one_batch_ahead_at_most(
    monkeypatch: pytest.MonkeyPatch, run, squares: Predictor
) -> None:
    save_video(Path("clip.avi"))
    counts = {"read": 0, "written": 0}
    write = VideoWriter.write

    def counted_frames(reader: VideoReader) -> Iterator[np.ndarray]:
        for frame in read_frames(reader):
            counts["read"] += 1
            assert counts["read"] - counts["written"] <= 2  # a batch
            yield frame

    def counted_write(writer: VideoWriter, frame: np.ndarray) -> None:
        counts["written"] += 1
        write(writer, frame)

    monkeypatch.setattr(VideoReader, "__iter__", counted_frames)
    monkeypatch.setattr(VideoWriter, "write", counted_write)
    assert run("--input", "clip.avi", "--batch-size", "2") == 0
    assert counts == {"read": 8, "written": 8}


def test_missing_webcam_is_reported(run, squares: Predictor, capsys: pytest.CaptureFixture) -> None:
    assert run("--webcam", "99") == 1
    assert "camera 99: cannot be opened; check" in capsys.readouterr().err and written() == []


def test_lost_video_frame_raises(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a.mp4 would hold 1 of 2 frames; is the disk full"):  # noqa: SIM117
        with VideoWriter(tmp_path / "a.mp4", 4) as writer:
            writer.write(square_image())
            writer.written += 1  # as if OpenCV had lost one frame


def test_output_below_a_file_raises(run, squares: Predictor) -> None:
    save("a.png")
    Path("file").write_text("")
    with pytest.raises(UserError, match="cannot create the folder file/below: Not a directory"):
        run("--input", "a.png", "--output", "file/below")


def test_progress_bar_is_shown_on_terminal_only(
    monkeypatch: pytest.MonkeyPatch, run, squares: Predictor, capsys: pytest.CaptureFixture
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    save("a.png")
    save_video(Path("clip.avi"))
    assert run("--input", "a.png", "clip.avi") == 0
    output = capsys.readouterr()
    assert len(output.out.splitlines()) == 3 and not output.err
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    assert run("--input", "a.png", "clip.avi", "--overwrite") == 0
    assert capsys.readouterr().out == "1 image, 8 frames, 9 objects -> out\n"
    assert "1/1 [" in terminal.getvalue() and "8/8 [" in terminal.getvalue()


def test_show_without_gui_or_display_raises_before_loading(
    monkeypatch: pytest.MonkeyPatch, run
) -> None:
    monkeypatch.setattr(Predictor, "from_checkpoint", pytest.fail)
    gui = "  GUI:                           "
    monkeypatch.setattr(cv2, "getBuildInformation", lambda: f"{gui}NONE\n")
    hint = "install opencv-python in place of opencv-python-headless, or leave --show out"
    with pytest.raises(UserError, match=hint):
        run("--input", "a.png", "--show")
    monkeypatch.setattr(cv2, "getBuildInformation", lambda: f"{gui}QT6\n")
    # The exit code of a process that cannot open a window.
    monkeypatch.setattr(predict.sys, "executable", "false")
    with pytest.raises(UserError, match="no display to open a window on; leave --show out"):
        run("--input", "a.png", "--show")


def test_window_waits_for_key_and_q_stops(
    monkeypatch: pytest.MonkeyPatch, run, squares: Predictor
) -> None:
    save("1.png", "2.png", "3.png")
    shown = []
    keys = itertools.chain([-1, -1, ord(" "), -1, ord("q")], itertools.repeat(-1))
    monkeypatch.setattr(predict, "require_window", lambda: None)
    monkeypatch.setattr(cv2, "imshow", lambda title, image: shown.append(image), raising=False)
    monkeypatch.setattr(cv2, "waitKey", lambda wait: next(keys), raising=False)
    monkeypatch.setattr(cv2, "getWindowProperty", lambda title, what: 1.0, raising=False)
    assert run("--input", "1.png", "2.png", "3.png", "--show") == 0
    assert len(shown) == 2 and np.array_equal(shown[0], read("out/1.png"))
    assert written() == ["1.png", "2.png"]


def test_no_file_is_written_outside_output_folder(
    run, squares: Predictor, capsys: pytest.CaptureFixture
) -> None:
    squares.classes = ["../" * 40 + "é" * 300, "\ud800"]
    save("in/a/one.png", "in/two.png", "three.png")
    Path("in/a/b").mkdir()
    before = written(".")
    assert run("--input", "in/*/../../*.png", "in/a/b/../../two.png", "--cutouts", "--json") == 0
    new_files = {*written(".")} - {*before}
    assert {"out/three.png", "out/two.png"} <= new_files
    assert new_files == {f"out/{name}" for name in written("out")}
    assert len(written("out/cutouts")) == 2


def test_symbolic_link_in_output_folder_is_not_followed(run, squares: Predictor) -> None:
    save("one.png")
    Path("out").mkdir()
    Path("out/one.png").symlink_to("../elsewhere.png")
    for options in ([], ["--overwrite"]):
        with pytest.raises(UserError, match="out/one.png is a symbolic link"):
            run("--input", "one.png", *options)
    assert not Path("elsewhere.png").exists()
