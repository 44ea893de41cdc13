"""The commands and the Python code in the documentation run, in a small copy of the repository.

Further overrides make models narrow and runs short. What else is changed, or not run, is listed
below.
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
import numpy as np
import official
import pytest
import torch
import train_net
from conftest import REPOSITORY, TINY
from gpvit.cli.train import argument_parser
from gpvit.config import load_config
from gpvit.model_zoo import COCO_AP, detector_address
from gpvit.utils import environment

pytestmark = pytest.mark.long

PAGES = [
    REPOSITORY / "README.md",
    REPOSITORY / "projects" / "GPViT" / "README.md",
    *sorted((REPOSITORY / "docs").glob("*.md")),
]

# Prefixes of commands that are not run here, and what runs them.
QUICKSTART = "python train_net.py --config-file configs/quickstart.py"
WANDB = f"{QUICKSTART} --data my_data train.wandb"
PUBLISHED = "python train_net.py --config-file configs/published/mask_rcnn_gpvit_l1_1x.py"
SEGMENTATION = "python train_net.py --config-file configs/published/segformer_gpvit_l1.py"
CLASSIFIER = "python train_net.py --config-file configs/published/classifier_gpvit_l1.py"
COCO = "python train_net.py --config-file configs/mask_rcnn_gpvit_l1.py --eval-only"
ELSEWHERE = {
    "make ": ".ci/run",
    "source ": ".ci/run, by what make installs",
    "python -m pytest": ".ci/run",
    "python tools/ablate.py": "tests/tools/test_ablate.py",
    "python tools/quickstart.py": ".ci/run",
    "python tools/install.py": "tests/tools/test_install.py",
    "python tools/make_synthetic_data.py --output datasets/l": "tests/data/test_large_scenes.py",
    "python tests/benchmarks/large_images.py": "tests/test_benchmarks.py",
    "torchrun ": "tests/faults/test_launchers.py",
    "tensorboard ": "nothing of ours",
    "hf ": "nothing of ours",
    "python -m pip install ": "nothing of ours",
    WANDB: "tests/engine/test_monitoring.py",
    "gpvit share push --weights ./shapes --output USER": "tests/hub/test_hub.py",
    "gpvit share pull": "tests/hub/test_hub.py",
    "gpvit predict --weights hf:": "tests/hub/test_hub.py",
    "gpvit analyze": "tests/cli/test_analyze.py",
    "gpvit convert": "tests/cli/test_convert.py",
    "gpvit export": "tests/export/test_export.py",
    COCO: "tests/engine/test_train_net.py",
    PUBLISHED: "tests/engine/test_train_net.py",
    SEGMENTATION: "tests/engine/test_semantic_training.py",
    CLASSIFIER: "tests/engine/test_classification_training.py",
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
SEMANTIC = "configs/quickstart_semantic.py"
SEMANTIC_MODEL = [
    "model.backbone.embed_dim=24",
    "model.backbone.group_tokens=[0,4]",
    "model.backbone.out_features=[block0,last_feat]",
    "model.sem_seg_head.in_features=[block0,last_feat]",
    "model.sem_seg_head.channels=16",
    "model.train_size=96",
]
CLASSIFICATION = "configs/quickstart_classifier.py"
SMALL += ["dataloader.train.num_workers=0", "dataloader.test.num_workers=0"]


def blocks(page: Path, language: str) -> list[str]:
    """The fenced code blocks of a page in a language."""
    pattern = rf"^```{language}\n(.*?)^```"
    return re.findall(pattern, page.read_text(), flags=re.MULTILINE | re.DOTALL)


def commands() -> list[tuple[str, str]]:
    """Page and command, of all pages; without comments and assignments of shell variables."""
    found = []
    for page in PAGES:
        for block in blocks(page, "bash"):
            for line in block.replace("\\\n", " ").splitlines():
                if line.strip() and not re.match(r"#|\w+=", line):
                    found.append((page.name, " ".join(line.split())))
    return found


RUN_HERE = [each for each in commands() if not each[1].startswith(tuple(ELSEWHERE))]


def test_commands_run_elsewhere_are_in_documentation() -> None:
    documented = [command for _, command in commands()]
    for start in ELSEWHERE:
        assert any(command.startswith(start) for command in documented), start


def test_configs_and_overrides_in_documentation_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    runs = [shlex.split(command) for _, command in commands() if "train_net.py" in command]
    assert len(runs) >= 10
    for words in runs:
        args = argument_parser().parse_intermixed_args(words[words.index("train_net.py") + 1 :])
        overrides = [override.replace("$W", "weights.pth") for override in args.overrides]
        load_config(args.config_file, overrides)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, synthetic_data: Path) -> Path:
    """A clone in which the quick start has run, with images and a custom dataset."""
    folder = tmp_path_factory.mktemp("world") / "clone"
    folder.mkdir()
    for name in ("configs", "tools", "train_net.py", "projects", "docs"):
        (folder / name).symlink_to(REPOSITORY / name)
    quickstart = folder / "output" / "quickstart"
    command = ["--config-file", str(REPOSITORY / "configs" / "quickstart.py")]
    command += ["--data", str(synthetic_data), *TINY, *SMALL]
    command += ["train.device=cpu", f"train.output_dir={quickstart}", "train.best_metric=segm/AP"]
    command += ["model.roi_heads.box_predictor.test_score_thresh=0.0"]  # to have detections
    train_net.main(argument_parser().parse_intermixed_args(command))
    command = ["--config-file", str(REPOSITORY / SEMANTIC), "--data", str(synthetic_data)]
    command += [*SEMANTIC_MODEL, *HERE, *SMALL]
    command += [f"train.output_dir={folder / 'output' / 'quickstart_semantic'}"]
    train_net.main(argument_parser().parse_intermixed_args(command))
    command = ["--config-file", str(REPOSITORY / CLASSIFICATION), "--data", str(synthetic_data)]
    command += [*HERE, *for_classifier(SMALL)]
    command += [f"train.output_dir={folder / 'output' / 'quickstart_classifier'}"]
    train_net.main(argument_parser().parse_intermixed_args(command))
    for number in range(10):
        for name in ("ant", "bee"):
            path = folder / "my_classes" / name / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), np.full((8, 8, 3), 20 * number, np.uint8))
    shutil.copytree(folder / "my_classes", folder / "digits")
    shutil.copytree(quickstart, folder / "output" / "fine_tuned")  # another run
    shutil.copytree(quickstart, folder / "output" / "my_training")  # a run to resume
    for link in (quickstart / "data", folder / "my_data"):
        link.symlink_to(synthetic_data)
    shutil.copy(quickstart / "coco_instances_results.json", folder / "results.json")
    (folder / "images").mkdir()
    path, *_ = sorted((synthetic_data / "images").glob("val_*.png"))
    for name in ("images/1.jpg", "image.jpg", "a.jpg", "b.png", "slide.tif"):
        cv2.imwrite(str(folder / name), cv2.imread(str(path)))
    return folder


@pytest.fixture
def clone(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of ``world`` to write to, as the working directory."""
    monkeypatch.chdir(shutil.copytree(world, tmp_path / "clone", symlinks=True))
    return Path()


@pytest.mark.parametrize(
    ("page", "command"), RUN_HERE, ids=[f"{page}: {command[:60]}" for page, command in RUN_HERE]
)
def test_command_in_documentation_runs(
    page: str, command: str, clone: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    weights = published_file(tmp_path) if "$W" in command else ""
    words = shlex.split(command.replace("$W", weights))
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
    """The arguments of a run of train_net.py that takes seconds."""
    for option in ("--num-gpus", "--num-machines", "--machine-rank", "--dist-url"):
        if option in words:
            position = words.index(option)
            del words[position : position + 2]  # the option and its value
    if "--data" not in words:
        words += ["--data", "my_data"]
    weights = next((word for word in words if word.startswith("train.init_checkpoint=")), "")
    replaced = ("train.max_iter", "train.eval_period", "train.checkpointer")
    words = [word for word in words if not word.startswith(replaced)]
    if CLASSIFICATION in words:
        small = for_classifier(SMALL)
        return [*words, *HERE, *small, f"train.output_dir={folder / 'output'}"]
    if SEMANTIC in words:
        words += SEMANTIC_MODEL
    else:
        keeps_backbone = "quickstart_classifier" in weights
        for override in TINY:
            if override.startswith("model") and not (keeps_backbone and "backbone" in override):
                words.append(override)
    if not weights:
        words.append("train.init_checkpoint=''")
    return [*words, *HERE, *SMALL, f"train.output_dir={folder / 'output'}"]


def for_classifier(overrides: list[str]) -> list[str]:
    """Without those that the config of a classifier does not have."""
    return [override for override in overrides if "max_size" not in override]


def published_file(folder: Path) -> str:
    return official.save(folder / "gpvit_l1_maskrcnn_1x.pth", "maskrcnn", "L1")


WITH_PYTHON = [page for page in PAGES if blocks(page, "python")]


@pytest.mark.parametrize("page", WITH_PYTHON, ids=lambda page: page.name)
def test_python_code_in_documentation_runs(
    page: Path, clone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save({"state_dict": official.weights("classifier", "L1")}, "classifier.pth")
    official.save(Path("gpvit_l1_in1k_300e.pth"), "classifier", "L1")
    monkeypatch.setitem(gpvit.published.IMAGENET_WEIGHTS, "L1", "classifier.pth")
    official.save(Path("gpvit_l1_segformer.pth"), "segformer", "L1")
    names: dict[str, object] = {}
    for block in blocks(page, "python"):
        exec(block, names)


def test_configs_state_published_ap() -> None:
    configs = REPOSITORY / "configs" / "published"
    for name, (box, *mask) in COCO_AP.items():
        expected = f"AP as published: {box} box"
        if mask:
            expected += f", {mask[0]} mask"
        assert f"{expected}." in (configs / f"{name}.py").read_text(), name
    for name in ("mask_rcnn_gpvit_l1_1x", "retinanet_gpvit_l1_1x"):
        assert detector_address(name) in (configs / f"{name}.py").read_text()


def test_files_and_keys_in_documentation_exist() -> None:
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
    config = str(REPOSITORY / "configs" / "mask_rcnn_gpvit_l1.py")
    overrides = 0
    for word in re.findall(r"[\w.']+=[^\s`]+", text):  # key=value
        if "." in word.split("=")[0] and '"' not in word:
            load_config(config, [word.strip("'").replace("$", "")])
            overrides += 1
    assert overrides > 12
