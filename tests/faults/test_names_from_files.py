"""Names that somebody chose to do harm, in a dataset and a checkpoint, come out of every command as plain text."""

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

LONG = "上" * 10_000
CLASSES = [
    "<script>alert(1)</script><img src=x>](javascript:alert(1))|`a`\n\n# Heading\n---\n\u202egnp",
    "\x1b[31mRED\x1b]0;title\x07\r\ud800",
    f"{LONG}\n![x](http://example.org)",
]
# Latin-1, as in archives from Windows.
NAME = os.fsdecode(b"caf\xe9 \x1b[31m\x07`a`|<b>x](javascript:y)\n# Heading")
FOLDER = os.fsdecode(b"\xe9t\xe9\x1b[31m `id`|<b>x](javascript:y)")


@pytest.fixture(autouse=True)
def opencv(monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenCV that fails where it would end the process."""

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
    """A dataset with these names of classes, files and folders."""
    folder = base / "data" / NAME
    for part in ("annotations", "images"):
        (folder / part).mkdir(parents=True)
    for split, number in (("train", 2), ("val", 2)):
        content = json.loads((synthetic_data / "annotations" / f"{split}.json").read_text())
        content["images"] = content["images"][:number]
        kept = {image["id"] for image in content["images"]}
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
def training(base: Path, data: Path) -> tuple[Path, str]:
    """The folder of a training run on it, and what was printed meanwhile."""
    folder, printed = base / FOLDER, io.StringIO()
    before = {
        name: list(logging.getLogger(name).handlers) for name in ("detectron2", "fvcore", "gpvit")
    }
    options = [
        "train.device=cpu",
        f"train.output_dir={folder_override(folder)}",
        "train.eval_period=2",
    ]
    command = [
        "--config-file",
        str(REPOSITORY / "configs" / "quickstart.py"),
        "--data",
        str(data),
        *TINY,
        *options,
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", printed)
        patch.setattr(sys, "argv", ["train_net.py", "--data", str(data)])
        train_net.main(
            argument_parser().parse_intermixed_args([*command, "train.pictures=1", "train.seed=1"])
        )
    for name, handlers in before.items():
        logging.getLogger(name).handlers = handlers
    return folder, printed.getvalue()


def folder_override(folder: Path) -> str:
    """A path as the value of an override, where it may have any characters."""
    escaped = str(folder).replace("'", "\\'")
    return f"'{escaped}'"


@pytest.fixture(scope="module")
def run(training: tuple[Path, str]) -> Path:
    return training[0]


def require_plain(text: str) -> None:
    """No control character, nothing that changes the direction of writing, no forged line, and no long name."""
    text.encode()  # no surrogates
    marks = {c for c in text if unicodedata.category(c) in ("Cc", "Cf", "Zl", "Zp")} - set("\n\t")
    assert not marks
    assert not re.search(r"^(# Heading|---$|!\[x)", text, re.MULTILINE)
    assert LONG[:121] not in text


class Elements(html.parser.HTMLParser):
    """Counts the elements of a page, without those of its drawings."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attributes)))


def require_plain_markdown(text: str) -> None:
    text = (
        text.partition("\n---\n")[2] if text.startswith("---\n") else text
    )  # what is before it is YAML
    require_plain(text)
    page = markdown.markdown(text, extensions=["tables", "fenced_code"])
    for tag, attributes in Elements(page).found:
        assert tag not in ("script", "b") and "Heading" not in str(attributes)
        assert "javascript" not in str(attributes) and "example.org" not in str(attributes)
        assert tag != "img" or re.fullmatch(
            r"curves\.png|pictures/\d+\.png", attributes["src"] or ""
        )
    assert not re.search(r"<h\d>Heading", page)


def call(
    main: Callable[[list[str]], Any], capsys: pytest.CaptureFixture, *arguments: object
) -> str:
    """Runs a command; returns what it printed. Its arguments are as the system gives them."""
    assert main(list(map(str, arguments))) in (0, None)
    printed = "".join(capsys.readouterr())
    require_plain(printed)
    return printed


def test_a_training_run_prints_and_logs_plain_text(training: tuple[Path, str]) -> None:
    folder, printed = training
    require_plain(printed)
    require_plain((folder / "log.txt").read_text(encoding="utf-8"))
    assert printed.count("Per-category segm AP") == 2 and r"\x1b[31mRED" in printed
    warned = [line for line in printed.splitlines() if line.startswith(("WARNING", "ERROR"))]
    assert len(warned) <= 1 and all("no font here has" in line for line in warned)


def test_names_are_kept_as_they_are_where_programs_read_them(run: Path, data: Path) -> None:
    assert checkpoint.read(str(run)).classes == CLASSES
    metrics = {name for row in read_metrics(run / "metrics.json") for name in row}
    assert {name for name in metrics if name.startswith("segm/AP-")} <= {
        f"segm/AP-{one_line(name)}" for name in CLASSES
    }
    assert any(
        name.startswith("segm/AP-") for name in metrics
    )  # not of classes that have nothing to find


def test_the_page_of_a_run_has_no_markup_of_names(run: Path) -> None:
    page = (run / "README.md").read_text(encoding="utf-8")
    require_plain_markdown(page)
    assert page.count("```") == 4 and page.count("\n# ") == 1 and r"caf\\xe9" in page


def test_pictures_go_to_tensorboard_under_plain_names(run: Path, tmp_path: Path) -> None:
    (events,) = run.glob("events.out.*")
    shutil.copy(events, tmp_path)
    (tag,) = EventAccumulator(str(tmp_path)).Reload().Tags()["images"]
    require_plain(tag)
    assert len(list(run.glob("pictures/*.png"))) == 2


def test_a_card_has_no_markup_of_names_and_a_valid_header(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    for target in (run.parent / "shared", tmp_path / NAME):
        licence = "mit\x1b[31m\n---\nfoo: bar"
        call(share.main, capsys, "push", "--weights", run, "--output", target, "--license", licence)
        text = (target / "README.md").read_text(encoding="utf-8")
        require_plain_markdown(text)
        card = ModelCard(text)
        assert card.data.license == one_line(licence) and card.data.to_dict().keys() >= {
            "tags",
            "model-index",
        }
        assert "foo" not in card.data.to_dict()
    again = tmp_path / "again"
    call(
        share.main,
        capsys,
        "push",
        "--weights",
        target,
        "--output",
        again,
        "--license",
        one_line(licence),
    )
    assert 'from_checkpoint("path/to/again")' in (again / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "stated",
    [
        {"versions": {"gpvit": "1\n\n<script>alert(2)</script>", "x](javascript:1)": "\x1b[31m"}},
        {"versions": {3: [LONG]}, "trainer": {"iteration": "<b>\n# Heading"}, "source": 3},
        {
            "versions": LONG,
            "trainer": None,
            "iterations": ["# Heading"],
            "source": "a/b\n# Heading",
        },
    ],
)
def test_what_a_strange_checkpoint_says_of_itself_is_no_markup(
    run: Path, tmp_path: Path, stated: dict[str, Any]
) -> None:
    checkpoint.save(
        checkpoint.read_content(str(run / "model_final.pth")) | stated, str(tmp_path / "model.pth")
    )
    with hub.new_folder(tmp_path / "card", overwrite=False) as folder:
        hub.write(str(tmp_path / "model.pth"), folder, licence="mit", address="path/to/card")
    require_plain_markdown((tmp_path / "card" / "README.md").read_text(encoding="utf-8"))


def test_a_dataset_is_checked_and_drawn(
    data: Path, base: Path, capsys: pytest.CaptureFixture
) -> None:
    printed = call(check_data.main, capsys, "--data", data, "--json", base / "problems.json")
    assert (
        r"\x1b[31mRED" in printed and "<script>alert(1)</script>" in printed
    )  # which is text on a terminal
    call(view_data.main, capsys, "--data", data, "--output", base / "drawn", "--number", "2")
    drawn = sorted((base / "drawn").iterdir())
    assert len(drawn) == 3 and all(decoded(path).std() > 10 for path in drawn)


def decoded(path: Path) -> np.ndarray:
    return cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_COLOR)


def test_predictions_are_drawn_and_reported(
    run: Path, base: Path, capsys: pytest.CaptureFixture
) -> None:
    call(view_results.main, capsys, "--input", run, "--number", "1")
    assert decoded(run / "predictions" / "01.png").std() > 10
    (run / "evaluation.json").write_text(
        json.dumps({"seconds_per_image": 1, "device": f"<script>{LONG}\x1b", "images": 3})
    )
    call(view_results.main, capsys, "--input", run, "--report", "--output", base / "report.html")
    page = (base / "report.html").read_text(encoding="utf-8")
    require_plain(page)
    elements = Elements(page).found
    ours = [{"type": "application/json", "id": "figures"}, {}]
    assert [attributes for tag, attributes in elements if tag == "script"] == ours
    assert all(
        attributes["src"].startswith("data:image/jpeg")
        for tag, attributes in elements
        if tag == "img"
    )
    assert not any("onerror" in attributes or "href" in attributes for _, attributes in elements)


def test_a_demo_writes_pictures_videos_and_cutouts_of_any_name(
    run: Path, data: Path, base: Path, capsys: pytest.CaptureFixture
) -> None:
    video, output = base / f"{NAME}.mp4", base / "demo"
    with VideoWriter(video, 5) as writer:
        for gray in (0, 90):
            writer.write(np.full((64, 96, 3), gray, np.uint8))
    picture = sorted((data / "images").iterdir())[0]
    options = ("--device", "cpu", "--output", output, "--score-threshold", "0.01")
    detector = ("--weights", run, *options, "--json", "--cutouts")
    printed = call(predict.main, capsys, *detector, "--input", picture, video)
    assert "1 picture, 2 frames" in printed
    assert decoded(output / picture.name).std() > 10
    assert len(list(VideoReader(str(output / video.name)))) == 2
    images = json.loads((output / "images.json").read_bytes())
    assert [category["name"] for category in images["categories"]] == CLASSES
    assert {image["file_name"] for image in images["images"]} == {picture.name, video.name}
    assert list(output.glob("cutouts/*/*.png"))
    assert len(gpvit.Predictor.from_checkpoint(run, "cpu")(picture)) > 0


def test_the_other_commands_take_such_names(
    run: Path, data: Path, base: Path, capsys: pytest.CaptureFixture
) -> None:
    picture = sorted((data / "images").iterdir())[0]
    options = ("--weights", run, "--device", "cpu", "--output", base / "groups")
    call(view_attention.main, capsys, *options, "--input", picture)
    assert len(list((base / "groups").iterdir())) == 2
    call(convert.main, capsys, "--weights", run, "--output", base / f"{NAME}.safetensors")
    assert checkpoint.read(str(base / f"{NAME}.safetensors")).classes == CLASSES
