"""Published segmentation models are trained and evaluated by train_net.py on ADE20K's layout."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import gpvit.checkpoint
import numpy as np
import official
import pytest
import torch
import train_net
from conftest import REPOSITORY
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.builtin import register_all_ade20k
from gpvit import Predictor
from gpvit.cli.train import argument_parser
from gpvit.data.datasets.semantic import ADE20K_FOLDERS, register_ade20k
from gpvit.data.label_maps import read_labels, save_labels
from gpvit.evaluation import SemanticEvaluator
from gpvit.model_zoo import ADE20K_CLASSES
from gpvit.utils.errors import UserError
from PIL import Image

pytestmark = pytest.mark.long

TINY = [
    "model.backbone.embed_dim=24",
    "model.backbone.group_tokens=[0,4,0,4,0,0,0,0,0,0,0,0]",
    "model.sem_seg_head.channels=16",
    "dataloader.short_side=64",
    "dataloader.max_size=128",
    "model.train_size=64",
    "dataloader.train.total_batch_size=2",
    "dataloader.train.num_workers=2",
    "dataloader.test.num_workers=0",
    "train.max_iter=6",
    "train.checkpointer.period=2",
    "train.eval_period=3",
    "train.log_period=1",
    "train.pictures=0",
    "train.seed=1",
    "train.device=cpu",
    "train.init_checkpoint=''",
]


@pytest.fixture(autouse=True)
def ade20k(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Images and label maps in ADE20K's layout, five training and three validation images."""
    root = tmp_path_factory.mktemp("datasets")
    rng = np.random.default_rng(0)
    for split, number in (("training", 5), ("validation", 3)):
        folder = root / "ADEChallengeData2016"
        for kind in ("images", "annotations"):
            (folder / kind / split).mkdir(parents=True)
        for i in range(number):
            labels = np.kron(rng.integers(0, 5, (3, 4)), np.ones((24, 24))).astype(np.uint8)
            image = np.stack([labels * 50, 255 - labels * 40, labels * 20], axis=-1)
            Image.fromarray(image).save(folder / "images" / split / f"{i}.jpg")
            Image.fromarray(labels).save(folder / "annotations" / split / f"{i}.png")
    remove_datasets()
    register_ade20k(str(root))
    yield
    remove_datasets()
    register_ade20k("datasets")


def remove_datasets(names: Iterable[str] = ADE20K_FOLDERS) -> None:
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def run(folder: Path, kind: str, *arguments: str) -> None:
    config = str(REPOSITORY / f"configs/published/{kind}_gpvit_l1.py")
    call("--config-file", config, *TINY, f"train.output_dir={folder}", *arguments)


def call(*arguments: str) -> None:
    train_net.main(argument_parser().parse_intermixed_args(arguments))


@pytest.mark.parametrize("kind", ["segformer", pytest.param("upernet", marks=pytest.mark.slow)])
def test_training_resumes_bitwise_in_the_middle_of_an_epoch(kind: str, tmp_path: Path) -> None:
    best = ["train.best_metric=sem_seg/mIoU", "train.ema_decay=0.9"]
    run(tmp_path / "complete", kind, *best)
    run(tmp_path / "resumed", kind, *best)
    for name in ("model_final.pth", "model_best.pth", "model_0000004.pth", "model_0000006.pth"):
        (tmp_path / "resumed" / name).unlink(missing_ok=True)
    run(tmp_path / "resumed", kind, *best, "--resume")
    states = []
    for folder in ("complete", "resumed"):
        content = gpvit.checkpoint.read_content(str(tmp_path / folder / "model_final.pth"))
        assert content["classes"] == ADE20K_CLASSES
        states.append(content["model"] | content["ema"])
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    rows = list(map(json.loads, (tmp_path / "complete/metrics.json").read_text().splitlines()))
    evaluated = [row for row in rows if "sem_seg/mIoU" in row]
    assert len(evaluated) == 2 and "ema_sem_seg/IoU-wall" in evaluated[-1]
    assert (tmp_path / "complete" / "model_best.pth").is_file()
    predictor = Predictor.from_checkpoint(tmp_path / "complete", device="cpu")
    assert predictor(np.zeros((40, 50, 3), np.uint8)).shape == (150, 40, 50)


def test_stand_in_of_published_file_is_evaluated(tmp_path: Path) -> None:
    weights = official.save(tmp_path / "weights.pth", "segformer", "L1")
    config = str(REPOSITORY / "configs/published/segformer_gpvit_l1.py")
    command = ["--config-file", config, "--eval-only", f"train.init_checkpoint={weights}"]
    command += ["dataloader.short_side=64", "dataloader.max_size=128", "train.device=cpu"]
    command += ["dataloader.test.num_workers=0", f"train.output_dir={tmp_path / 'evaluation'}"]
    call(*command)
    evaluation = json.loads((tmp_path / "evaluation" / "evaluation.json").read_text())
    results = evaluation["results"]["sem_seg"]
    assert evaluation["images"] == 3 and 0 <= results["mIoU"] <= 100
    assert {"pACC", "mBoundaryIoU", "IoU-wall", "IoU-sky"} <= results.keys()


def test_ade20k_as_detectron2_registers_it_is_evaluated(tmp_path: Path) -> None:
    """Its label maps are minus one already, and nothing may be subtracted twice."""
    original = Path(MetadataCatalog.get("ade20k_val").image_root).parents[2]
    folder = tmp_path / "ADEChallengeData2016"
    (folder / "images").mkdir(parents=True)
    for split in ADE20K_FOLDERS.values():
        (folder / "images" / split).symlink_to(original / "ADEChallengeData2016" / "images" / split)
        (folder / "annotations_detectron2" / split).mkdir(parents=True)
        for path in (original / "ADEChallengeData2016" / "annotations" / split).iterdir():
            labels = read_labels(path, offset=1)
            save_labels(folder / "annotations_detectron2" / split / path.name, labels)
    names = ("ade20k_sem_seg_train", "ade20k_sem_seg_val")
    remove_datasets(names)
    register_all_ade20k(str(tmp_path))
    try:
        weights = official.save(tmp_path / "weights.pth", "segformer", "L1")
        config = str(REPOSITORY / "configs/published/segformer_gpvit_l1.py")
        results = []
        for name in ("ade20k_val", names[1]):
            command = ["--config-file", config, "--eval-only", "dataloader.max_size=128"]
            command += [f"train.init_checkpoint={weights}", "dataloader.short_side=64"]
            command += ["dataloader.test.num_workers=0", "train.device=cpu"]
            command += [f"dataloader.test.dataset.names={name}"]
            call(*command, f"train.output_dir={tmp_path / name}")
            evaluation = json.loads((tmp_path / name / "evaluation.json").read_text())
            results.append(evaluation["results"])
        assert results[0] == results[1]
    finally:
        remove_datasets(names)
        register_all_ade20k("datasets")


def test_custom_dataset_is_trained_on_and_drawn(synthetic_data: Path, tmp_path: Path) -> None:
    data = ["--data", str(synthetic_data), "train.pictures=1", "train.max_iter=2"]
    data += ["train.eval_period=0"]
    balanced = "model.sem_seg_head.class_weights=balanced"
    run(tmp_path / "out", "segformer", *data, balanced, "dataloader.train.num_workers=0")
    content = gpvit.checkpoint.read_content(str(tmp_path / "out" / "model_final.pth"))
    assert content["classes"][0] == "background" and len(content["palette"]) == 4
    assert (tmp_path / "out" / "pictures" / "0000002.png").is_file()
    assert "| \N{EM DASH} |" not in (tmp_path / "out" / "README.md").read_text()


def test_evaluator_writes_predictions_on_demand(tmp_path: Path) -> None:
    evaluator = SemanticEvaluator("ade20k_val", output_dir=str(tmp_path))
    [record, *_] = DatasetCatalog.get("ade20k_val")
    labels = read_labels(record["sem_seg_file_name"], offset=1)
    predicted = np.where(labels == 255, 0, labels).astype(np.uint8)
    evaluator.process([record], [{"sem_seg": torch.from_numpy(predicted)}])
    assert evaluator.evaluate()["sem_seg"]["mIoU"] == 100
    name = f"{Path(record['file_name']).name}.png"
    assert np.array_equal(read_labels(tmp_path / "label_maps" / name), predicted)


def test_missing_folder_of_ade20k_raises_one_line(
    tmp_path: Path,
) -> None:
    remove_datasets()
    register_ade20k(str(tmp_path))
    config = str(REPOSITORY / "configs/published/segformer_gpvit_l1.py")
    message = "of dataset ade20k_val does not exist: put it there, or set DETECTRON2_DATASETS"
    with pytest.raises(UserError, match=message):
        call("--config-file", config, *TINY, f"train.output_dir={tmp_path / 'out'}")
    assert not (tmp_path / "out").exists()


def write_colored_shapes(folder: Path, kind: str) -> None:
    """Images whose colors are their classes; training label maps may be shuffled or shifted."""
    rng = np.random.default_rng(0)
    colors = np.array([[60, 60, 200], [220, 40, 40], [40, 200, 40]], np.uint8)
    for split, number in (("train", 12), ("val", 4)):
        labels = []
        for _ in range(number):
            label = np.zeros((64, 64), np.uint8)
            for index in (1, 2, 1, 2):
                top, left = rng.integers(0, 40, 2)
                label[top : top + 20, left : left + 20] = index
            labels.append(label)
        for name, label in enumerate(labels):
            pixels = np.clip(colors[label].astype(int) + rng.integers(-20, 20, (64, 64, 3)), 0, 255)
            if split == "train" and kind == "shuffled":
                label = labels[(name + 1) % number]
            if split == "train" and kind == "shifted":
                label = np.roll(label, (16, 16), (0, 1))
            for part, image in (("images", pixels.astype(np.uint8)), ("labels", label)):
                path = folder / part / split / f"{name}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(image).save(path)


@pytest.mark.slow
def test_training_on_shuffled_or_shifted_label_maps_falls_far_below(tmp_path: Path) -> None:
    config = str(REPOSITORY / "configs" / "quickstart_semantic.py")
    command = ["--config-file", config, "train.device=cpu", "model.backbone.embed_dim=24"]
    command += ["model.backbone.group_tokens=[0,4]", "model.backbone.out_features=[last_feat]"]
    command += ["model.sem_seg_head.in_features=[last_feat]", "model.sem_seg_head.channels=16"]
    command += ["model.train_size=64", "dataloader.short_side=64", "optimizer.lr=5e-3"]
    command += ["dataloader.train.num_workers=0", "dataloader.test.num_workers=0"]
    command += ["train.max_iter=60", "train.eval_period=0", "train.pictures=0"]
    found = {}
    for kind in ("right", "shuffled", "shifted"):
        write_colored_shapes(tmp_path / kind, kind)
        folder = tmp_path / "output" / kind
        call(*command, "--data", str(tmp_path / kind), f"train.output_dir={folder}")
        evaluation = json.loads((folder / "evaluation.json").read_text())
        found[kind] = evaluation["results"]["sem_seg"]["mIoU"]
    assert found["right"] > 70, found
    assert found["shuffled"] < found["right"] - 25 and found["shifted"] < found["right"] - 25, found
