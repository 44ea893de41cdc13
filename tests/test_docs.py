"""The commands and the Python of the documentation run: here, in a small copy of the world that it describes.

Models are made narrow and trainings short by further overrides; what else is changed or not run is said below.
"""

import re
import runpy
import shlex
import shutil
import sys
from importlib import import_module
from pathlib import Path

import cv2
import gpvit
import official
import pytest
import torch
import train_net
from conftest import REPOSITORY, TINY
from gpvit.cli.train import argument_parser
from gpvit.config import load_config
from gpvit.model_zoo import COCO_AP, detector_address
from gpvit.utils import environment

PAGES = [
    REPOSITORY / "README.md",
    REPOSITORY / "projects" / "GPViT" / "README.md",
    *sorted((REPOSITORY / "docs").glob("*.md")),
]

# Commands that are not run here, by what they begin with, and what runs them.
ELSEWHERE = {
    "make ": ".ci/run",
    "source ": ".ci/run, by what make installs",
    "python -m pytest": ".ci/run",
    "python tools/quickstart.py": ".ci/run",
    "python tools/install.py": "tests/tools/test_install.py",
    "torchrun ": "tests/faults/test_launchers.py",
    "tensorboard ": "nothing of ours",
    "hf ": "nothing of ours",
    "python -m pip install ": "nothing of ours",
    "python train_net.py --config-file configs/quickstart.py --data my_data train.wandb": "tests/engine/test_monitoring.py",
    "gpvit share push --weights ./shapes --output USER": "tests/hub/test_hub.py",
    "gpvit share pull": "tests/hub/test_hub.py",
    "gpvit predict --weights hf:": "tests/hub/test_hub.py",
    "gpvit analyze": "tests/cli/test_analyze.py",
    "gpvit convert": "tests/cli/test_convert.py",
    "gpvit export": "tests/export/test_export.py",
    "python train_net.py --config-file configs/published/mask_rcnn_gpvit_l1_1x.py": "tests/engine/test_train_net.py",
}
HERE = [
    "train.device=cpu",
    "train.max_iter=2",
    "train.eval_period=2",
    "train.checkpointer.period=2",
]
SMALL = [
    "dataloader.short_side=96",
    "dataloader.max_size=128",
    "dataloader.train.total_batch_size=2",
]
SMALL += ["dataloader.train.num_workers=0", "dataloader.test.num_workers=0"]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(
        rf"^```{language}\n(.*?)^```", page.read_text(), flags=re.MULTILINE | re.DOTALL
    )


def commands() -> list[tuple[str, str]]:
    """Page and command, of all pages; without variables, such as the address of a published file."""
    found = []
    for page in PAGES:
        for block in blocks(page, "bash"):
            lines = block.replace("\\\n", " ").splitlines()
            found += [
                (page.name, " ".join(line.split()))
                for line in lines
                if line.strip() and not re.match(r"#|\w+=", line)
            ]
    return found


RUN_HERE = [each for each in commands() if not each[1].startswith(tuple(ELSEWHERE))]


def test_what_is_run_elsewhere_is_in_the_documentation() -> None:
    unknown = [
        start
        for start in ELSEWHERE
        if not any(command.startswith(start) for _, command in commands())
    ]
    assert not unknown


def test_the_configs_and_overrides_of_all_trainings_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    trainings = [
        words for _, command in commands() if "train_net.py" in (words := shlex.split(command))
    ]
    assert len(trainings) >= 10
    for words in trainings:
        args = argument_parser().parse_intermixed_args(words[words.index("train_net.py") + 1 :])
        load_config(
            args.config_file, [override.replace("$W", "weights.pth") for override in args.overrides]
        )


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, synthetic_data: Path) -> Path:
    """A clone in which the quick start has run, with pictures and own data at hand."""
    folder = tmp_path_factory.mktemp("world") / "clone"
    folder.mkdir()
    for name in ("configs", "tools", "train_net.py", "projects", "docs"):
        (folder / name).symlink_to(REPOSITORY / name)
    quickstart = folder / "output" / "quickstart"
    command = [
        "--config-file",
        str(REPOSITORY / "configs" / "quickstart.py"),
        "--data",
        str(synthetic_data),
        *TINY,
        *SMALL,
    ]
    command += ["train.device=cpu", f"train.output_dir={quickstart}", "train.best_metric=segm/AP"]
    command += [
        "model.roi_heads.box_predictor.test_score_thresh=0.0"
    ]  # there is always something to see
    train_net.main(argument_parser().parse_intermixed_args(command))
    shutil.copytree(quickstart, folder / "output" / "fine_tuned")  # another training
    for link in (quickstart / "data", folder / "my_data"):
        link.symlink_to(synthetic_data)
    shutil.copy(quickstart / "coco_instances_results.json", folder / "results.json")
    (folder / "pictures").mkdir()
    path, *_ = sorted((synthetic_data / "images").glob("val_*.png"))
    for name in ("pictures/1.jpg", "picture.jpg", "a.jpg", "b.png"):
        cv2.imwrite(str(folder / name), cv2.imread(str(path)))
    return folder


@pytest.fixture
def clone(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it to write to, and the present folder."""
    monkeypatch.chdir(shutil.copytree(world, tmp_path / "clone", symlinks=True))
    return Path()


@pytest.mark.parametrize(
    ("page", "command"), [pytest.param(*each, id=f"{each[0]}: {each[1][:60]}") for each in RUN_HERE]
)
def test_a_command_of_the_documentation_runs(
    page: str, command: str, clone: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    words = shlex.split(
        command.replace("$W", published_file(tmp_path)) if "$W" in command else command
    )
    program = words.pop(0)
    if program == "gpvit":
        name, *arguments = words
        if "$W" in command:
            arguments += ["--device", "cpu", "dataloader.short_side=64"]
        assert not import_module(f"gpvit.cli.{name.replace('-', '_')}").main(arguments)
        return
    assert program == "python"
    if words[0] == "train_net.py":
        words = shortened(words, tmp_path)
    monkeypatch.setattr(sys, "argv", words)
    monkeypatch.setattr(environment, "prepare_command", lambda: None)  # which changes the process
    try:
        runpy.run_path(words[0], run_name="__main__")
    except SystemExit as end:
        assert not end.code, end.code


def shortened(words: list[str], folder: Path) -> list[str]:
    """A training of train_net.py that takes seconds."""
    for option in ("--num-gpus", "--num-machines", "--machine-rank", "--dist-url"):
        if option in words:
            del words[(i := words.index(option)) : i + 2]
    if "--data" not in words:
        words += ["--data", "my_data"]
    weights = next((word for word in words if word.startswith("train.init_checkpoint=")), "")
    words = [
        word
        for word in words
        if not word.startswith(("train.max_iter", "train.eval_period", "train.checkpointer"))
    ]
    words += [override for override in TINY if override.startswith("model")]
    if not weights:
        words.append("train.init_checkpoint=''")
    return [*words, *HERE, *SMALL, f"train.output_dir={folder / 'output'}"]


def published_file(folder: Path) -> str:
    return official.save(folder / "gpvit_l1_maskrcnn_1x.pth", "maskrcnn", "L1")


@pytest.mark.parametrize(
    "page", [page for page in PAGES if blocks(page, "python")], ids=lambda page: page.name
)
def test_the_python_of_the_documentation_runs(
    page: Path, clone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save({"state_dict": official.weights("classifier", "L1")}, "classifier.pth")
    monkeypatch.setitem(gpvit.published.IMAGENET_WEIGHTS, "L1", "classifier.pth")
    names: dict[str, object] = {}
    for block in blocks(page, "python"):
        exec(block, names)


def test_configs_say_which_ap_was_published() -> None:
    for name, (box, *mask) in COCO_AP.items():
        text = (REPOSITORY / "configs" / "published" / f"{name}.py").read_text()
        assert (
            f"AP as published: {box} box" + "".join(f", {ap} mask" for ap in mask) + "." in text
        ), name
    for name in ("mask_rcnn_gpvit_l1_1x", "retinanet_gpvit_l1_1x"):
        assert (
            detector_address(name)
            in (REPOSITORY / "configs" / "published" / f"{name}.py").read_text()
        )


def test_the_documentation_names_files_and_keys_that_exist() -> None:
    documentation = {page: page.read_text() for page in PAGES}
    names = {path.name for path in REPOSITORY.rglob("*.py") if ".venv" not in path.parts}
    for page, text in documentation.items():
        for path in re.findall(r"(?<![\w/.-])(?:tools|configs|tests|docs)/[\w/]+\.\w+", text):
            assert (REPOSITORY / path).is_file(), (page, path)
        for name in re.findall(r"`(\w+\.py)`", text):
            assert name in names, (page, name)
        for path in re.findall(r"(?<![\w/])gpvit/[\w/]+\.\w+", text):
            assert (REPOSITORY / "projects" / "GPViT" / path).is_file(), (page, path)
        for path in re.findall(r"\]\(([\w./]+?)(?:#[\w-]+)?\)", text):
            assert (page.parent / path).exists(), (page, path)
    text = documentation[REPOSITORY / "docs" / "training.md"]
    overrides = [
        o.strip("'\"")
        for o in re.findall(r"[\w.']+=[^\s`]+", text)
        if "." in o.split("=")[0] and '"' not in o
    ]
    assert len(overrides) > 12
    for override in overrides:
        load_config(
            str(REPOSITORY / "configs" / "mask_rcnn_gpvit_l1.py"), [override.replace("$", "")]
        )
