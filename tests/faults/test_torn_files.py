"""Files are written atomically: there is the complete old file or the complete new one.

This holds after a kill at any moment, on a full disk and through links.
"""

import itertools
import json
import os
import random
import re
import resource
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gpvit.checkpoint
import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances
from gpvit import hub
from gpvit.cli import predict, view_attention, view_data
from gpvit.config import save_config
from gpvit.data.image_io import save_image
from gpvit.data.sources import InputImage, Source
from gpvit.data.video_io import VideoWriter
from gpvit.engine import checkpointer as checkpoints
from gpvit.engine.monitoring.run_readme import RunReadme
from gpvit.evaluation import COCOEvaluator
from gpvit.evaluation.coco_results import ResultsWriter
from gpvit.utils.errors import UserError
from gpvit.utils.events import save_evaluation
from gpvit.utils.files import atomic_write, make_folder
from matplotlib.figure import Figure
from omegaconf import OmegaConf
from PIL import Image

TEXT = "text " * 3000
SEEDS = range(10)
LIMIT = 100  # bytes that fit into a file on the "full disk"


def noise(version: int) -> np.ndarray:
    return np.random.default_rng(version).integers(0, 255, (90, 120, 3), np.uint8)


def config(folder: Path, version: int) -> None:
    save_config(OmegaConf.create({"a": [version] * 300}), str(folder / "config.yaml"))


def metrics(folder: Path, version: int) -> None:
    if not (folder / "all").exists():
        rows = [f'{{"iteration": {iteration}, "loss": 1.5}}\n' for iteration in range(300)]
        (folder / "all").write_text("".join(rows))
        (folder / "metrics.json").symlink_to("all")  # is overwritten through the link
    # Each version is shorter than the previous one; earlier versions never come back.
    trainer = SimpleNamespace(done=300 - version)
    checkpoints.Checkpointer.forget_metrics(SimpleNamespace(folder=folder, trainer=trainer))


def evaluation(folder: Path, version: int) -> None:
    results = {"bbox": {"AP": float(version)}, "text": TEXT}
    about = {"weights": None, "iteration": version}
    save_evaluation(str(folder), results, about, images=1, seconds_per_image=1.0, device="cpu")


def page(folder: Path, version: int) -> None:
    page = RunReadme.__new__(RunReadme)
    page.folder, page.path, page.is_ours = folder, folder / "README.md", True
    page._results = page._origin = page._use = page._files = lambda: [TEXT]
    page._write(f"version {version}")


def starts(folder: Path, version: int) -> None:
    page = RunReadme.__new__(RunReadme)
    page.folder, page.is_ours, page.trainer = folder, False, SimpleNamespace(done=0)
    page.starts = [{"time": str(version), "command": TEXT}]
    page.before_train()


def coco_results(folder: Path, version: int) -> None:
    evaluator = COCOEvaluator.__new__(COCOEvaluator)
    metadata = {"thing_dataset_id_to_contiguous_id": {7: 0}}
    evaluator._metadata = SimpleNamespace(as_dict=lambda: metadata)
    result = {"image_id": 1, "category_id": 0, "bbox": [0, 0, 1, version], "score": 0.5}
    evaluator._write([{"image_id": 1, "instances": [result] * 100}], folder)


def predictions(folder: Path, version: int) -> None:
    results = ResultsWriter(folder, ["cat"])
    scores = torch.full((20,), 1 / (version + 2))
    instances = Instances((90, 120), pred_boxes=Boxes(torch.ones(20, 4)), scores=scores)
    instances.pred_classes = torch.zeros(20, dtype=torch.int64)
    try:
        for _ in range(5 + version):
            results.add(InputImage(Source("a.png", "a.png"), noise(version)), instances)
    finally:
        results.close()


def pil_image(folder: Path, version: int) -> None:
    with atomic_write(folder / "pil.png") as path:
        Image.fromarray(noise(version)).save(path)


def sheet(folder: Path, version: int) -> None:
    view_data.save_sheet([("a", noise(version))], folder / "sheet.png")


def cv2_image(folder: Path, version: int) -> None:
    save_image(folder / "cv2.png", noise(version))


def checkpoint(name: str, folder: Path, version: int) -> None:
    gpvit.checkpoint.write(str(folder / name), {"weight": torch.full((5000,), float(version))})


def video(folder: Path, version: int) -> None:
    with VideoWriter(folder / "video.mp4", 4) as writer:
        writer.write(noise(version))


def model_folder(folder: Path, version: int) -> None:
    with hub.new_folder(folder / "model", overwrite=True) as unfinished:
        for name in hub.FILES:
            (unfinished / name).write_text(f"{version} {TEXT}")


# Relative path of a file -> function that writes one of its versions to a folder.
WRITERS: dict[str, Callable[[Path, int], None]] = {
    "config.yaml": config,
    "all": metrics,
    "evaluation.json": evaluation,
    "README.md": page,
    "run.json": starts,
    "coco_instances_results.json": coco_results,
    "instances_predictions.pth": coco_results,
    "predictions.json": predictions,
    "images.json": predictions,
    "sheet.png": sheet,
    "cv2.png": cv2_image,
    "pil.png": pil_image,
    "video.mp4": video,
    "model.pth": partial(checkpoint, "model.pth"),
    "model.safetensors": partial(checkpoint, "model.safetensors"),
    "model/README.md": model_folder,
}


def forked(action: Callable[[], None]) -> int:
    """The id of a forked process that runs the action; exit code 0 if the action returns."""
    if pid := os.fork():
        return pid
    code = 70
    try:
        action()
        code = 0
    finally:
        os._exit(code)


@pytest.mark.long
@pytest.mark.parametrize("name", WRITERS)
def test_kill_at_any_moment_leaves_complete_old_or_new_file(name: str, tmp_path: Path) -> None:
    write, path, versions = WRITERS[name], tmp_path / name, []
    for version in range(3):
        start = time.perf_counter()
        write(tmp_path, version)
        seconds = time.perf_counter() - start
        versions.append(path.read_bytes())
    assert len(set(versions)) == 3

    def write_forever() -> None:
        for version in itertools.cycle(range(3)):
            write(tmp_path, version)

    def shorten() -> None:
        for version in range(1, 300):
            write(tmp_path, version)

    action = write_forever
    if name == "all":  # metrics.json only becomes shorter
        action = shorten
        path.unlink()
        (tmp_path / "metrics.json").unlink()
        write(tmp_path, 0)
        lines = path.read_bytes().splitlines(keepends=True)
        versions = [b"".join(lines[:length]) for length in range(301)]
    for seed in SEEDS:
        pid = forked(action)
        time.sleep(random.Random(seed).uniform(0.3, 2.3) * max(seconds, 0.002))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        assert path.read_bytes() in versions, seed
    # Partial files remain, but they are harmless.
    for remaining in tmp_path.glob(".*"):
        assert "partial" in remaining.name or remaining.is_dir()
    if name != "all":
        write(tmp_path, 1)
        assert path.read_bytes() == versions[1]


def fill_the_disk() -> None:
    """Limit the size of files in this process, which causes errors as on a full disk."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, resource.RLIM_INFINITY))


NOT_ON_FULL_DISK = {"README.md", "run.json", "model/README.md", "images.json"}


@pytest.mark.parametrize("name", sorted(WRITERS.keys() - NOT_ON_FULL_DISK))
def test_full_disk_raises_and_keeps_old_file(name: str, tmp_path: Path) -> None:
    WRITERS[name](tmp_path, 0)
    before = contents(tmp_path)

    message = "cannot write .*|would hold 0 of 1 frames; is the disk full"

    def write() -> None:
        fill_the_disk()
        with pytest.raises(UserError, match=message) as caught:
            WRITERS[name](tmp_path, 1)
        assert "\n" not in str(caught.value)

    assert os.waitpid(forked(write), 0)[1] == 0
    assert contents(tmp_path) == before


def contents(folder: Path) -> dict[str, bytes]:
    """Relative path -> content of all files."""
    files = filter(Path.is_file, folder.rglob("*"))
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.fixture
def folder(tmp_path: Path, synthetic_data: Path) -> Path:
    """A folder with the input files of the commands below."""
    content = json.loads((synthetic_data / "annotations" / "val.json").read_text())
    results = []
    for item in content["annotations"]:
        if not item["iscrowd"]:
            result = {key: item[key] for key in ("image_id", "category_id", "bbox")}
            results.append(result | {"score": 0.9})
    (tmp_path / "results.json").write_text(json.dumps(results))
    rows = '{"iteration": 0, "segm/AP": 1}\n{"iteration": 1, "segm/AP": 2}\n'
    (tmp_path / "metrics.json").write_text(rows)
    gpvit.checkpoint.write(str(tmp_path / "in.pth"), {"weight": torch.arange(3.0)}, classes=["cat"])
    save_image(tmp_path / "a.png", noise(0))
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "old"),
    [
        (
            "view-results --report --input results.json --data DATA --output report.html",
            "report.html",
        ),
        ("view-results --input results.json --data DATA --output out --number 1", "out/01.png"),
        ("view-data --data DATA --split val --output out --ids 1", "out/1_val_00000.png"),
        ("view-attention --weights none --input a.png --output out", "out/a_groups.png"),
        ("convert --weights in.pth --output out.safetensors", "out.safetensors"),
        ("convert --weights in.pth --output out.pth", "out.pth"),
        ("check-data --data DATA --annotations-only --json problems.json", "problems.json"),
    ],
)
def test_command_on_full_disk_reports_one_error_and_keeps_old_file(
    monkeypatch: pytest.MonkeyPatch, folder: Path, synthetic_data: Path, arguments: str, old: str
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setattr(view_attention, "load_pytorch_predictor", lambda args: None)
    monkeypatch.setattr(view_attention, "inspect", lambda *args: None)
    monkeypatch.setattr(view_attention, "visible_part", lambda *args: None)
    for name in ("draw_groups", "draw_features"):
        monkeypatch.setattr(view_attention, name, lambda *args: Figure())
    Path(old).parent.mkdir(exist_ok=True)
    Path(old).write_text("old")
    before = contents(folder)
    command, *options = arguments.replace("DATA", str(synthetic_data)).split()
    options += ["--overwrite"] if command != "check-data" else []
    code, output = run_command(command, options)
    (error,) = re.findall("^error: .*$", output, re.MULTILINE)
    assert code == 1 and error == output.splitlines()[-1], output
    assert error.startswith(f"error: cannot write {old}"), output
    assert error.endswith("; the old one is intact") and "Traceback" not in output, output
    assert contents(folder) == before


def run_command(command: str, options: list[str]) -> tuple[int, str]:
    """The exit code of a command on a full disk, and what it prints."""
    if command == "view-results":  # it evaluates, which not every forked process can
        line = [sys.executable, "-m", "gpvit", command, *options]
        result = subprocess.run(
            line,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            preexec_fn=fill_the_disk,
        )
        return result.returncode, result.stdout
    source, sink = os.pipe()

    def run() -> None:
        os.dup2(sink, 1)
        os.dup2(sink, 2)
        sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
        fill_the_disk()
        code: Any = 0
        try:
            code = import_module(f"gpvit.cli.{command.replace('-', '_')}").main(options)
        except UserError as error:  # as each command does
            print(f"error: {error}", file=sys.stderr)
            code = 1
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code or 0)

    pid = forked(run)
    os.close(sink)
    with open(source) as pipe:
        output = pipe.read()
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), output


def test_old_cutouts_are_kept_until_new_ones_are_complete(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = tmp_path / "cutouts" / "a.png"
    folder.mkdir(parents=True)
    old = ["001_cat_90.png", "002_cat_80.png", "notes.png", "notes.txt"]
    for name in old:
        (folder / name).write_text("old")
    run = predict.Run.__new__(predict.Run)
    run.args, run.cutouts = SimpleNamespace(output=tmp_path), predict.defaultdict(set)
    run.predictor = SimpleNamespace(classes=["cat"])
    scores, classes = torch.tensor([0.7]), torch.tensor([0])
    instances = Instances((90, 120), scores=scores, pred_classes=classes)
    image = InputImage(Source("a.png", "a.png"), noise(0))
    monkeypatch.setattr(predict, "cut_outs", lambda *args: [noise(0)])

    def cut_out() -> None:
        fill_the_disk()
        with pytest.raises(UserError, match="No space|too large"):
            run.cut_out(image, instances)

    assert os.waitpid(forked(cut_out), 0)[1] == 0
    assert contents(folder) == dict.fromkeys(old, b"old")
    run.cut_out(image, instances)
    assert contents(folder).keys() == {"001_cat_70.png", "notes.png", "notes.txt"}


def test_symlink_is_kept_and_its_target_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    target, link = tmp_path / "other" / "target.txt", tmp_path / "link.txt"
    target.write_text("old")
    target.chmod(0o600)
    link.symlink_to(target)
    with atomic_write(link) as path:
        path.write_text("new")
    assert link.is_symlink() and target.read_text() == "new"
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert list(target.parent.iterdir()) == [target]


def test_pipe_is_written_to_and_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    pipe, read = tmp_path / "pipe", []
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()), daemon=True)
    reader.start()
    with atomic_write(pipe) as path:
        path.write_text("new")
    reader.join(5)
    assert read == ["new"] and stat.S_ISFIFO(pipe.stat().st_mode)


def test_file_name_of_maximum_length_can_be_written(tmp_path: Path) -> None:
    target = tmp_path / ("ä" * 125 + ".html")
    for text in ("one", "two"):
        with atomic_write(target) as path:
            path.write_text(text)
        assert target.read_text() == text and list(tmp_path.iterdir()) == [target]


def test_error_while_writing_is_not_reported_as_full_disk(tmp_path: Path) -> None:
    target = tmp_path / "file.txt"
    target.write_text("old")
    with pytest.raises(RuntimeError, match="a bug") as caught, atomic_write(target) as path:
        path.write_text("ne")
        raise RuntimeError("a bug")
    assert not isinstance(caught.value, UserError)
    assert target.read_text() == "old" and list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("name", ["file", "file/below", "x" * 300, "null\0"])
def test_folder_that_cannot_be_created_raises(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("old")
    with pytest.raises(UserError, match="cannot create the folder") as caught:
        make_folder(tmp_path / name)
    assert "\n" not in str(caught.value) and (tmp_path / "file").read_text() == "old"
    if name != "null\0":
        target = tmp_path / name / "a.txt"
        with pytest.raises(UserError, match="cannot write"), atomic_write(target) as path:
            path.write_text("new")


def test_standard_output_can_be_written_to(tmp_path: Path) -> None:
    code = (
        "from gpvit.utils.files import atomic_write\n"
        "with atomic_write('/dev/stdout') as path: path.write_text('x')"
    )
    command = [sys.executable, "-c", code]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "x"
    target = tmp_path / "a.txt"
    with target.open("w") as file:
        subprocess.run(command, stdout=file, check=True)
    assert target.read_text() == "x" and list(tmp_path.iterdir()) == [target]
