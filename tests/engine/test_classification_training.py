"""Classifiers are trained and evaluated by train_net.py: on ImageNet's layout, and on folders."""

import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import official
import pytest
import torch
import train_net
from conftest import REPOSITORY, TINY
from detectron2.data import DatasetCatalog, MetadataCatalog
from gpvit import Predictor, checkpoint
from gpvit.cli.train import argument_parser
from gpvit.data.datasets.imagenet import NUM_IMAGES, register_imagenet
from gpvit.data.datasets.synthetic import make_dataset
from gpvit.model_zoo import IMAGENET_CLASSES
from gpvit.utils.errors import UserError
from PIL import Image
from sklearn.datasets import load_digits
from timm.data import ImageNetInfo

pytestmark = pytest.mark.long

PUBLISHED = str(REPOSITORY / "configs/published/classifier_gpvit_l1.py")
QUICKSTART = str(REPOSITORY / "configs/quickstart_classifier.py")
SMALL = [
    "model.backbone.embed_dim=24",
    "model.backbone.group_tokens=[0,4,0,4]",
    "dataloader.short_side=36",
    "dataloader.crop_size=32",
    "dataloader.train.total_batch_size=4",
    "dataloader.train.num_workers=0",
    "dataloader.test.num_workers=0",
    "train.log_period=1",
    "train.pictures=0",
    "train.seed=1",
    "train.device=cpu",
]


def call(*arguments: str) -> None:
    train_net.main(argument_parser().parse_intermixed_args(arguments))


def results_of(folder: Path) -> dict[str, float]:
    return json.loads((folder / "evaluation.json").read_text())["results"]["classification"]


def remove_imagenet() -> None:
    for split in NUM_IMAGES:
        DatasetCatalog.remove(f"imagenet_1k_{split}")
        MetadataCatalog.remove(f"imagenet_1k_{split}")


@pytest.fixture
def imagenet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """ImageNet's layout: an image for each class, and a flat validation set of five."""
    root = tmp_path_factory.mktemp("datasets")
    wordnet_ids = ImageNetInfo().label_names()
    rng = np.random.default_rng(0)
    for label, wordnet_id in enumerate(wordnet_ids):
        folder = root / "imagenet" / "train" / wordnet_id
        folder.mkdir(parents=True)
        pixels = rng.integers(0, 256, (4, 5, 3), np.uint8).repeat(10, 0).repeat(10, 1)
        Image.fromarray(pixels).save(folder / f"{label}.JPEG")
    (root / "imagenet" / "val").mkdir()
    lines = []
    for number, label in enumerate((0, 7, 7, 500, 999), start=1):
        name = f"ILSVRC2012_val_{number:08}.JPEG"
        original = root / "imagenet" / "train" / wordnet_ids[label] / f"{label}.JPEG"
        (root / "imagenet" / "val" / name).write_bytes(original.read_bytes())
        lines.append(f"{name} {label}\n")
    (root / "imagenet" / "val.txt").write_text("".join(lines))
    remove_imagenet()
    register_imagenet(str(root))
    yield root
    remove_imagenet()
    register_imagenet("datasets")


def test_training_resumes_bitwise_in_the_middle_of_an_epoch(imagenet: Path, tmp_path: Path) -> None:
    arguments = ["--config-file", PUBLISHED, *SMALL, "dataloader.train.num_workers=2"]
    arguments += ["train.amp.enabled=False", "train.max_iter=6", "train.checkpointer.period=2"]
    arguments += ["train.eval_period=3", "train.ema_decay=0.9"]
    arguments += ["train.best_metric=classification/top1"]
    for name in ("complete", "resumed"):
        call(*arguments, f"train.output_dir={tmp_path / name}")
    for name in ("model_final.pth", "model_best.pth", "model_0000004.pth", "model_0000006.pth"):
        (tmp_path / "resumed" / name).unlink(missing_ok=True)
    call(*arguments, f"train.output_dir={tmp_path / 'resumed'}", "--resume")
    states = []
    for name in ("complete", "resumed"):
        content = checkpoint.read_content(str(tmp_path / name / "model_final.pth"))
        assert content["classes"] == IMAGENET_CLASSES
        states.append(content["model"] | {f"ema {key}": v for key, v in content["ema"].items()})
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    rows = list(map(json.loads, (tmp_path / "complete/metrics.json").read_text().splitlines()))
    evaluated = [row for row in rows if "classification/top1" in row]
    assert len(evaluated) == 2 and "ema_classification/top5" in evaluated[-1]
    assert "classification/top1-goldfish" not in evaluated[-1]  # without an image
    assert "classification/top1-tench" in evaluated[-1]
    assert (tmp_path / "complete" / "model_best.pth").is_file()


def test_stand_in_of_published_file_is_evaluated(
    imagenet: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The classes of the list are, by rank of the prediction, the first, third, first, last."""
    weights = official.save(tmp_path / "weights.pth", "classifier", "L1")
    size = ["dataloader.short_side=72", "dataloader.crop_size=64"]
    predictor = Predictor.from_checkpoint(weights, "cpu", overrides=size)
    lines = []
    images = sorted((imagenet / "imagenet" / "val").iterdir())
    for path, rank in zip(images, (0, 2, 0, 999, 5)):
        scores = predictor(path)
        assert isinstance(scores, torch.Tensor)
        label = scores.argsort(descending=True)[rank]
        lines.append(f"{path.name} {label}\n")
    (imagenet / "imagenet" / "val.txt").write_text("".join(lines))
    arguments = ["--config-file", PUBLISHED, "--eval-only", f"train.init_checkpoint={weights}"]
    arguments += [*size, "train.device=cpu"]
    arguments += ["dataloader.test.num_workers=0", "dataloader.test.batch_size=2"]
    call(*arguments, f"train.output_dir={tmp_path / 'out'}")
    output = capsys.readouterr().out
    assert "evaluated 5 images in " in output and " images/s" in output
    assert "has 5 images instead of 50000" in output
    results = results_of(tmp_path / "out")
    assert (results["top1"], results["top5"]) == pytest.approx((40, 60))


def test_missing_imagenet_raises_one_line(tmp_path: Path) -> None:
    remove_imagenet()
    register_imagenet(str(tmp_path))
    try:
        message = "of dataset imagenet_1k_val does not exist: .* the folder with imagenet/"
        with pytest.raises(UserError, match=message) as error:
            call("--config-file", PUBLISHED, *SMALL, f"train.output_dir={tmp_path / 'out'}")
        assert "\n" not in str(error.value) and not (tmp_path / "out").exists()
    finally:
        remove_imagenet()
        register_imagenet("datasets")


def write_colors(folder: Path, number: int = 12) -> Path:
    """Write images of three classes, which differ in color."""
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for index, name in enumerate(["blue", "green", "red"] * number):
            pixels = rng.integers(0, 150, (40, 48, 3), np.uint8)
            pixels[..., ["red", "green", "blue"].index(name)] += 60
            path = folder / split / name / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
    return folder


@pytest.fixture(scope="module")
def colors_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a short run on class folders."""
    folder = tmp_path_factory.mktemp("colors")
    data = write_colors(folder / "data")
    arguments = ["--config-file", QUICKSTART, "--data", str(data), *SMALL, "train.pictures=2"]
    arguments += ["train.max_iter=45", "train.eval_period=15", "optimizer.lr=5e-3"]
    arguments += ["lr_multiplier.warmup_iters=3", f"train.output_dir={folder / 'run'}"]
    call(*arguments)
    return folder


def test_custom_dataset_is_learned_and_drawn(colors_run: Path) -> None:
    run = colors_run / "run"
    assert results_of(run)["top1"] > 70  # chance: 33
    content = checkpoint.read_content(str(run / "model_final.pth"))
    assert content["classes"] == ["blue", "green", "red"]
    assert (run / "pictures" / "0000045.png").is_file()
    readme = (run / "README.md").read_text()
    assert "classification/top1" in readme and "gpvit view-results" in readme
    predictor = Predictor.from_checkpoint(run, "cpu")
    scores = predictor(np.full((30, 90, 3), (0, 0, 255), np.uint8))
    assert isinstance(scores, torch.Tensor) and predictor.classes[scores.argmax()] == "blue"


def test_detector_starts_from_a_classifier_trained_here(
    colors_run: Path, synthetic_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--config-file", str(REPOSITORY / "configs/quickstart.py"), *TINY]
    arguments += ["model.backbone.net.group_tokens=[0,4,0,4]", "train.device=cpu"]
    arguments += ["model.backbone.net.pretrain_img_size=64", "--data", str(synthetic_data)]
    arguments += [f"train.init_checkpoint={colors_run / 'run'}", "train.max_iter=1"]
    arguments += ["optimizer.lr=1e-12", f"train.output_dir={tmp_path / 'detector'}"]
    call(*arguments, "train.eval_period=0")
    assert "6 outside the backbone" in capsys.readouterr().out
    detector = checkpoint.read(str(tmp_path / "detector")).weights
    classifier = checkpoint.read(str(colors_run / "run")).weights
    for name in ("pos_embed", "blocks.3.group_token", "out_norms.last_feat.weight"):
        expected = classifier[f"backbone.{name}"]
        assert torch.allclose(detector[f"backbone.net.{name}"], expected, atol=1e-6)


def test_linear_probing_trains_nothing_but_the_head(colors_run: Path, tmp_path: Path) -> None:
    data, run = colors_run / "data", colors_run / "run"
    arguments = ["--config-file", QUICKSTART, "--data", str(data), *SMALL, "train.max_iter=3"]
    arguments += [f"train.init_checkpoint={run}", "model.linear_probing=True"]
    call(*arguments, f"train.output_dir={tmp_path}", "train.eval_period=0")
    before = checkpoint.read(str(run)).weights
    after = checkpoint.read(str(tmp_path)).weights
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert changed == {"head.weight", "head.bias"}


def test_unreadable_image_stops_unless_it_may_be_skipped(tmp_path: Path) -> None:
    data = write_colors(tmp_path / "data", 2)
    (data / "train" / "red" / "broken.png").write_bytes(b"no image")
    arguments = ["--config-file", QUICKSTART, "--data", str(data), *SMALL, "train.max_iter=5"]
    arguments += ["dataloader.train.total_batch_size=6", "train.eval_period=0"]
    with pytest.raises(UserError, match="broken.png: cannot be read"):
        call(*arguments, f"train.output_dir={tmp_path / 'a'}")
    call(*arguments, "train.skip_budget=9", f"train.output_dir={tmp_path / 'b'}")
    assert (tmp_path / "b" / "model_final.pth").is_file()


@pytest.mark.slow
def test_training_on_shuffled_classes_stays_at_chance(tmp_path: Path) -> None:
    """On crops of synthetic objects, as in the quick start; there are three classes."""
    make_dataset(tmp_path / "right", train=120, val=60)
    shutil.copytree(tmp_path / "right", tmp_path / "shuffled")
    path = tmp_path / "shuffled" / "annotations" / "train.json"
    content = json.loads(path.read_text())
    classes = [item["category_id"] for item in content["annotations"]]
    random.Random(0).shuffle(classes)
    for item, category_id in zip(content["annotations"], classes):
        item["category_id"] = category_id
    path.write_text(json.dumps(content))
    accuracies = {}
    for kind in ("right", "shuffled"):
        arguments = ["--config-file", QUICKSTART, "--data", str(tmp_path / kind)]
        arguments += ["train.device=cpu", "train.max_iter=250", "train.pictures=0"]
        arguments += ["dataloader.short_side=32", "dataloader.crop_size=32"]
        arguments += ["train.eval_period=0", f"train.output_dir={tmp_path / 'output' / kind}"]
        call(*arguments)
        accuracies[kind] = results_of(tmp_path / "output" / kind)["top1"]
    assert accuracies["right"] > 60, accuracies
    assert 22 < accuracies["shuffled"] < 46, accuracies


@pytest.mark.slow
def test_handwritten_digits_are_read(tmp_path: Path) -> None:
    """The command of the documentation, with scikit-learn's images of 8 x 8 pixels."""
    digits = load_digits()
    for number, (image, label) in enumerate(zip(digits.images, digits.target)):
        path = tmp_path / "digits" / str(label) / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((image * 15).astype(np.uint8)).save(path)
    arguments = ["--config-file", QUICKSTART, "--data", str(tmp_path / "digits")]
    arguments += ["dataloader.train.mapper.augmentations.1.prob=0.0", "train.max_iter=300"]
    arguments += ["dataloader.short_side=32", "dataloader.crop_size=32"]
    arguments += ["train.device=cpu", f"train.output_dir={tmp_path / 'run'}"]
    call(*arguments)
    assert results_of(tmp_path / "run")["top1"] > 97
