"""Malicious names in a dataset and a checkpoint are plain text in the output of every command."""

import html.parser
import io
import json
import logging
import os
import re
import shutil
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import gpvit
import markdown
import numpy as np
import pytest
import train_net
from conftest import REPOSITORY, TINY
from gpvit import checkpoint, hub
from gpvit.cli import check_data, convert, predict, share, view_attention, view_data, view_results
from gpvit.cli.train import argument_parser
from gpvit.data.video_io import VideoReader, VideoWriter
from gpvit.utils.events import read_metrics
from gpvit.utils.text import one_line
from huggingface_hub import ModelCard
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

pytestmark = pytest.mark.long

LONG = "上" * 10_000
CLASSES = [
    "<script>alert(1)</script><img src=x>](javascript:alert(1))|`a`\n\n# Heading\n---\n\u202egnp",
    "\x1b[31mRED\x1b]0;title\x07\r\ud800",
    f"{LONG}\n![x](http://example.org)",
]
# Latin-1 bytes, as in archives from Windows, which are invalid UTF-8.
NAME = os.fsdecode(b"caf\xe9 \x1b[31m\x07`a`|<b>x](javascript:y)\n# Heading")
FOLDER = os.fsdecode(b"\xe9t\xe9\x1b[31m `id`|<b>x](javascript:y)")


@pytest.fixture(autouse=True)
def opencv(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make OpenCV raise where a path that is not UTF-8 would end the process."""

    def checked(function: Callable) -> Callable:
        def call(path: Any, *args: Any) -> Any:
            str(path).encode()
            return function(path, *args)

        return call

    for name in ("imread", "imwrite", "VideoCapture"):
        monkeypatch.setattr(cv2, name, checked(getattr(cv2, name)))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("names") / FOLDER
    folder.mkdir()
    return folder


@pytest.fixture(scope="module")
def data(base: Path, synthetic_data: Path) -> Path:
    """A dataset with such names of classes, files and folders."""
    folder = base / "data" / NAME
    for part in ("annotations", "images"):
        (folder / part).mkdir(parents=True)
    for split in ("train", "val"):
        content = json.loads((synthetic_data / "annotations" / f"{split}.json").read_text())
        content["images"] = content["images"][:2]
        kept = [image["id"] for image in content["images"]]
        content["annotations"] = [
            item for item in content["annotations"] if item["image_id"] in kept
        ]
        for category, name in zip(content["categories"], CLASSES):
            category["name"] = name
        for image in content["images"]:
            name = f"{split}{image['id']} {NAME}.png"
            shutil.copy(synthetic_data / "images" / image["file_name"], folder / "images" / name)
            image["file_name"] = name
        (folder / "annotations" / f"{split}.json").write_text(json.dumps(content))
    return folder


@pytest.fixture(scope="module")
def training_run(base: Path, data: Path) -> tuple[Path, str]:
    """The folder of a training run on this dataset, and what it printed."""
    folder, printed = base / FOLDER, io.StringIO()
    loggers = [logging.getLogger(name) for name in ("detectron2", "fvcore", "gpvit")]
    handlers = [list(logger.handlers) for logger in loggers]
    config = str(REPOSITORY / "configs" / "quickstart.py")
    command = ["--config-file", config, "--data", str(data), *TINY, "train.device=cpu"]
    command += [f"train.output_dir={folder_override(folder)}", "train.eval_period=2"]
    command += ["train.pictures=1", "train.seed=1"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", printed)
        patch.setattr(sys, "argv", ["train_net.py", "--data", str(data)])
        train_net.main(argument_parser().parse_intermixed_args(command))
    for logger, previous in zip(loggers, handlers):
        logger.handlers = previous
    return folder, printed.getvalue()


def folder_override(folder: Path) -> str:
    """A path as the value of an override, in which any character is allowed."""
    escaped = str(folder).replace("'", "\\'")
    return f"'{escaped}'"


@pytest.fixture(scope="module")
def run(training_run: tuple[Path, str]) -> Path:
    return training_run[0]


def require_plain(text: str) -> None:
    """Assert that there are no control or bidi characters, forged lines or very long names."""
    text.encode()  # raises if there are surrogates
    for character in set(text) - set("\n\t"):
        # Control and format characters, line and paragraph separators.
        assert unicodedata.category(character) not in ("Cc", "Cf", "Zl", "Zp"), repr(character)
    assert not re.search(r"^(# Heading|---$|!\[x)", text, re.MULTILINE)
    assert LONG[:121] not in text


class Elements(html.parser.HTMLParser):
    """The start tags of a page with their attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attributes)))


def require_plain_markdown(text: str) -> None:
    if text.startswith("---\n"):
        text = text.partition("\n---\n")[2]  # without the YAML header
    require_plain(text)
    page = markdown.markdown(text, extensions=["tables", "fenced_code"])
    for tag, attributes in Elements(page).found:
        assert tag not in ("script", "b") and "Heading" not in str(attributes)
        assert "javascript" not in str(attributes) and "example.org" not in str(attributes)
        source = attributes.get("src") or ""
        assert tag != "img" or re.fullmatch(r"curves\.png|pictures/\d+\.png", source)
    assert not re.search(r"<h\d>Heading", page)


def call(
    main: Callable[[list[str]], Any], capsys: pytest.CaptureFixture, *arguments: object
) -> str:
    """Run a command and returns what it printed."""
    assert main(list(map(str, arguments))) in (0, None)
    printed = "".join(capsys.readouterr())
    require_plain(printed)
    return printed


def test_training_run_prints_and_logs_plain_text(training_run: tuple[Path, str]) -> None:
    folder, printed = training_run
    require_plain(printed)
    require_plain((folder / "log.txt").read_text(encoding="utf-8"))
    assert printed.count("Per-category segm AP") == 2 and r"\x1b[31mRED" in printed
    warnings = [line for line in printed.splitlines() if line.startswith(("WARNING", "ERROR"))]
    assert len(warnings) <= 1
    if warnings:
        assert "no installed font has" in warnings[0]


def test_machine_readable_files_keep_names(run: Path, data: Path) -> None:
    assert checkpoint.read(str(run)).classes == CLASSES
    metrics = set().union(*read_metrics(run / "metrics.json"))
    per_class = {name for name in metrics if name.startswith("segm/AP-")}
    # Classes without objects have no AP.
    assert per_class and per_class <= {f"segm/AP-{one_line(name)}" for name in CLASSES}


def test_readme_of_run_has_no_markup_from_names(run: Path) -> None:
    page = (run / "README.md").read_text(encoding="utf-8")
    require_plain_markdown(page)
    assert page.count("```") == 4 and page.count("\n# ") == 1 and r"caf\\xe9" in page


def test_tensorboard_images_have_plain_names(run: Path, tmp_path: Path) -> None:
    (events,) = run.glob("events.out.*")
    shutil.copy(events, tmp_path)
    (tag,) = EventAccumulator(str(tmp_path)).Reload().Tags()["images"]
    require_plain(tag)
    assert len(list(run.glob("pictures/*.png"))) == 2


def test_model_card_has_no_markup_from_names_and_valid_header(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    def push(weights: Path, target: Path, license_id: str) -> str:
        """Return the model card."""
        options = ("--weights", weights, "--output", target, "--license", license_id)
        call(share.main, capsys, "push", *options)
        return (target / "README.md").read_text(encoding="utf-8")

    license_id = "mit\x1b[31m\n---\nfoo: bar"
    for target in (run.parent / "shared", tmp_path / NAME):
        text = push(run, target, license_id)
        require_plain_markdown(text)
        header = ModelCard(text).data
        assert header.license == one_line(license_id)
        assert header.to_dict().keys() >= {"tags", "model-index"}
        assert "foo" not in header.to_dict()
    text = push(target, tmp_path / "again", one_line(license_id))
    assert 'from_checkpoint("path/to/again")' in text


@pytest.mark.parametrize(
    "metadata",
    [
        {"versions": {"gpvit": "1\n\n<script>alert(2)</script>", "x](javascript:1)": "\x1b[31m"}},
        {"versions": {3: [LONG]}, "trainer": {"iteration": "<b>\n# Heading"}, "source": 3},
        {
            "versions": LONG,
            "trainer": None,
            "source": "a/b\n# Heading",
            "iterations": ["# Heading"],
        },
    ],
)
def test_metadata_of_checkpoint_is_no_markup(
    run: Path, tmp_path: Path, metadata: dict[str, Any]
) -> None:
    content, path = checkpoint.read_content(str(run / "model_final.pth")), tmp_path / "model.pth"
    checkpoint.save(content | metadata, str(path))
    with hub.new_folder(tmp_path / "card", overwrite=False) as folder:
        hub.write(str(path), folder, license="mit", address="path/to/card")
    require_plain_markdown((tmp_path / "card" / "README.md").read_text(encoding="utf-8"))


def test_check_data_and_view_data_accept_malicious_names(
    data: Path, base: Path, capsys: pytest.CaptureFixture
) -> None:
    printed = call(check_data.main, capsys, "--data", data, "--json", base / "problems.json")
    assert r"\x1b[31mRED" in printed
    assert "<script>alert(1)</script>" in printed  # plain text on a terminal
    call(view_data.main, capsys, "--data", data, "--output", base / "drawn", "--number", "2")
    drawings = sorted((base / "drawn").iterdir())
    assert len(drawings) == 3
    for path in drawings:
        require_content(path)


def require_content(path: Path) -> None:
    """Assert that an image is not blank."""
    image = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_COLOR)
    assert image.std() > 10


def test_view_results_and_report_accept_malicious_names(
    run: Path, base: Path, capsys: pytest.CaptureFixture
) -> None:
    call(view_results.main, capsys, "--input", run, "--number", "1")
    require_content(run / "predictions" / "01.png")
    evaluation = {"seconds_per_image": 1, "device": f"<script>{LONG}\x1b", "images": 3}
    (run / "evaluation.json").write_text(json.dumps(evaluation))
    call(view_results.main, capsys, "--input", run, "--report", "--output", base / "report.html")
    page = (base / "report.html").read_text(encoding="utf-8")
    require_plain(page)
    scripts = []
    for tag, attributes in Elements(page).found:
        assert not {"onerror", "href"} & attributes.keys()
        if tag == "script":
            scripts.append(attributes)
        elif tag == "img":
            assert attributes["src"].startswith("data:image/jpeg")
    assert scripts == [{"type": "application/json", "id": "figures"}, {}]  # those of the template


def test_predict_writes_images_videos_and_cutouts_of_any_name(
    run: Path, data: Path, base: Path, capsys: pytest.CaptureFixture
) -> None:
    image, video, output = first_image(data), base / f"{NAME}.mp4", base / "demo"
    with VideoWriter(video, 5) as writer:
        for gray in (0, 90):
            writer.write(np.full((64, 96, 3), gray, np.uint8))
    options = ("--device", "cpu", "--output", output, "--score-threshold", "0.01")
    detector = ("--weights", run, *options, "--json", "--cutouts")
    printed = call(predict.main, capsys, *detector, "--input", image, video)
    assert "1 image, 2 frames" in printed
    require_content(output / image.name)
    assert len(list(VideoReader(str(output / video.name)))) == 2
    written = json.loads((output / "images.json").read_bytes())
    assert [category["name"] for category in written["categories"]] == CLASSES
    assert {entry["file_name"] for entry in written["images"]} == {image.name, video.name}
    assert list(output.glob("cutouts/*/*.png"))
    assert len(gpvit.Predictor.from_checkpoint(run, "cpu")(image)) > 0


def first_image(data: Path) -> Path:
    return min((data / "images").iterdir())


def test_view_attention_and_convert_accept_malicious_names(
    run: Path, data: Path, base: Path, capsys: pytest.CaptureFixture
) -> None:
    options = ("--weights", run, "--device", "cpu", "--output", base / "groups")
    call(view_attention.main, capsys, *options, "--input", first_image(data))
    assert len(list((base / "groups").iterdir())) == 2
    call(convert.main, capsys, "--weights", run, "--output", base / f"{NAME}.safetensors")
    assert checkpoint.read(str(base / f"{NAME}.safetensors")).classes == CLASSES
