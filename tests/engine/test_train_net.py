"""The training script: trains, evaluates and resumes, in one process and in two."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import gpvit.checkpoint
import numpy as np
import official
import pytest
import torch
import train_net
from conftest import REPOSITORY, TINY
from detectron2.config import instantiate
from detectron2.data import DatasetCatalog, MetadataCatalog
from gpvit.cli.train import argument_parser
from gpvit.config import config_from_yaml, load_config
from gpvit.engine import Trainer
from gpvit.engine.launch import choose_device
from gpvit.evaluation.coco_results import read_inputs
from gpvit.evaluation.metrics import check_best_metric, rename_averaged
from gpvit.evaluation.validation_sets import validation_names
from gpvit.hub.model_card import read_training_run
from gpvit.utils.errors import UserError
from gpvit.utils.events import folder_names
from gpvit.utils.seed import seed_everything
from omegaconf import DictConfig, OmegaConf
from torch import nn

pytestmark = pytest.mark.long

CONFIG = "configs/quickstart.py"
PYTHON_PATH = [REPOSITORY, REPOSITORY / "projects" / "GPViT", REPOSITORY / "tests"]
ENVIRONMENT = os.environ | {
    "PYTHONPATH": os.pathsep.join(map(str, PYTHON_PATH)),
    "OMP_NUM_THREADS": "1",
}
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def call(*arguments: object) -> nn.Module | None:
    """Calls train_net.py's main function in this process."""
    return train_net.main(argument_parser().parse_intermixed_args(list(map(str, arguments))))


def run(output_dir: Path, data: Path, *arguments: str) -> nn.Module | None:
    """Trains or evaluates a tiny model of the quick start."""
    options = ["--config-file", REPOSITORY / CONFIG, "--data", data, *TINY, "train.device=cpu"]
    return call(*options, f"train.output_dir={output_dir}", *arguments)


def start(*arguments: object, **environment: str) -> subprocess.CompletedProcess:
    """Runs train_net.py in another process."""
    return subprocess.run(
        [sys.executable, "train_net.py", *map(str, arguments)], cwd=REPOSITORY,
        env=ENVIRONMENT | environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip


def read_json(path: Path) -> Any:
    return json.loads(path.read_text())


def rows(output_dir: Path) -> list[dict[str, Any]]:
    """The lines of metrics.json, each of which must be strict JSON (without NaN)."""
    lines = (output_dir / "metrics.json").read_text().splitlines()
    return [json.loads(line, parse_constant=pytest.fail) for line in lines]


def metrics(output_dir: Path, key: str) -> dict[int, float]:
    """Iteration -> value, from metrics.json."""
    return {row["iteration"]: row[key] for row in rows(output_dir) if key in row}


def final_metrics(output_dir: Path) -> dict[str, float]:
    return rows(output_dir)[-1]


def detections(folder: Path) -> list[dict[str, Any]]:
    return read_json(folder / "coco_instances_results.json")


def image_ids(results: list[dict[str, Any]]) -> set[int]:
    return {result["image_id"] for result in results}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, synthetic_data: Path) -> Path:
    """The output folder of a run of four iterations."""
    folder = tmp_path_factory.mktemp("trained")
    run(folder, synthetic_data, "train.seed=1", "train.checkpointer.period=2", "train.max_iter=4")
    return folder


def val_only(data: Path, folder: Path) -> Path:
    """Creates a dataset with the validation split of another one, and without training data."""
    (folder / "annotations").mkdir(parents=True)
    (folder / "images").symlink_to(data / "images")
    shutil.copy(data / "annotations" / "val.json", folder / "annotations")
    return folder


def test_training_writes_checkpoints_config_metrics_and_results(trained: Path) -> None:
    names = {path.name for path in trained.iterdir()}
    assert {"model_0000002.pth", "model_final.pth", "config.yaml"} <= names
    assert {"metrics.json", "log.txt", "coco_instances_results.json"} <= names
    assert any(name.startswith("events.out.tfevents") for name in names)
    assert list(metrics(trained, "total_loss")) == [0, 1, 2, 3]
    assert {"bbox/AP", "segm/AP"} <= final_metrics(trained).keys()


def test_saved_config_builds_the_same_model(trained: Path) -> None:
    cfg = load_config(str(trained / "config.yaml"), ["train.seed=2"])
    gpvit.checkpoint.load(instantiate(cfg.model), str(trained / "model_final.pth"))


def test_checkpoint_contains_config_and_versions_for_inference(trained: Path) -> None:
    file = gpvit.checkpoint.read(str(trained))
    assert file.about["versions"] == gpvit.checkpoint.versions()
    cfg = config_from_yaml(file.config, file.path)
    assert cfg.keys() == {"model", "dataloader"} and "train" not in cfg.dataloader
    model = instantiate(cfg.model)
    gpvit.checkpoint.load(model, file)
    image = np.zeros((50, 100, 3), np.uint8)
    predictor = gpvit.Predictor.from_checkpoint(trained, "cpu")
    assert predictor.resize(image).shape == (3, 64, 128)  # the short side in TINY
    overrides = ["dataloader.short_side=32"]
    smaller = gpvit.Predictor.from_checkpoint(trained, "cpu", overrides=overrides)
    assert smaller.resize(image).shape == (3, 32, 64)


def test_checkpoint_contains_class_names(trained: Path) -> None:
    file = gpvit.checkpoint.read(str(trained / "model_final.pth"))
    assert file.classes == ["disc", "triangle", "cross"]


def test_run_resumes_from_its_saved_config_with_moved_data(
    trained: Path, synthetic_data: Path, tmp_path: Path
) -> None:
    folder, data = tmp_path / "run", tmp_path / "moved"
    shutil.copytree(trained, folder)
    (folder / "model_final.pth").unlink()
    shutil.copytree(synthetic_data, data)
    options = ["--config-file", folder / "config.yaml", "--data", data, "--resume"]
    call(*options, f"train.output_dir={folder}")
    assert (folder / "model_final.pth").exists()


def test_evaluation_needs_no_training_data(
    trained: Path, synthetic_data: Path, tmp_path: Path
) -> None:
    data, output_dir = val_only(synthetic_data, tmp_path / "data"), tmp_path / "out"
    run(output_dir, data, "--eval-only", f"train.init_checkpoint={trained / 'model_final.pth'}")
    assert detections(output_dir) == detections(trained)


def test_interrupted_evaluation_keeps_the_previous_results(
    trained: Path, synthetic_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("--eval-only", f"train.init_checkpoint={trained / 'model_final.pth'}")
    run(tmp_path / "out", synthetic_data, *arguments)
    before = (tmp_path / "out" / "evaluation.json").read_bytes()

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("gpvit.engine.run.evaluate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "out", synthetic_data, *arguments)
    assert (tmp_path / "out" / "evaluation.json").read_bytes() == before


def test_failed_final_evaluation_keeps_the_losses(
    synthetic_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object) -> None:
        raise UserError("no memory for masks")

    monkeypatch.setattr("gpvit.engine.run.evaluate", failing)
    with pytest.raises(UserError, match="no memory for masks"):
        run(tmp_path, synthetic_data, "train.eval_period=0", "train.max_iter=2")
    assert list(metrics(tmp_path, "total_loss")) == [0, 1]
    assert "Stopped at " in (tmp_path / "README.md").read_text()


def test_evaluation_with_other_classes_raises(
    trained: Path, synthetic_data: Path, tmp_path: Path
) -> None:
    data = val_only(synthetic_data, tmp_path / "data")
    content = read_json(data / "annotations" / "val.json")
    content["categories"][0]["name"] = "cat"
    (data / "annotations" / "val.json").write_text(json.dumps(content))
    weights = f"train.init_checkpoint={trained / 'model_final.pth'}"
    with pytest.raises(UserError, match="trained for other classes .disc.* than the data has .cat"):
        run(tmp_path / "out", data, "--eval-only", weights)


def test_resume_restores_iteration_schedule_and_optimizer(
    synthetic_data: Path, tmp_path: Path
) -> None:
    uninterrupted, resumed = tmp_path / "uninterrupted", tmp_path / "resumed"
    options = ("train.checkpointer.period=2", "train.eval_period=0", "train.log_period=1")
    run(uninterrupted, synthetic_data, *options, "train.max_iter=4")
    run(resumed, synthetic_data, *options, "train.max_iter=4")
    (resumed / "model_final.pth").unlink()
    (resumed / "metrics.json").unlink()
    run(resumed, synthetic_data, *options, "train.max_iter=4", "--resume")
    assert list(metrics(resumed, "total_loss")) == [2, 3]
    rates = metrics(uninterrupted, "lr")
    assert metrics(resumed, "lr") == {2: rates[2], 3: rates[3]}
    content = gpvit.checkpoint.read_content(str(resumed / "model_final.pth"))
    for entry in content["trainer"]["optimizer"]["state"].values():
        assert int(entry["step"]) == 4


def test_resuming_a_finished_run_only_evaluates(trained: Path, synthetic_data: Path) -> None:
    before, number = (trained / "model_final.pth").read_bytes(), len(rows(trained))
    options = ("train.seed=1", "train.checkpointer.period=2", "train.max_iter=4")
    run(trained, synthetic_data, "--resume", *options)
    assert (trained / "model_final.pth").read_bytes() == before
    assert len(rows(trained)) <= number + 1


def test_overrides_are_accepted_before_between_and_after_flags() -> None:
    parse = argument_parser().parse_intermixed_args
    args = parse(["a=1", "--config-file", "x.py", "b=2", "--num-gpus", "2", "--eval-only", "c=3"])
    assert args.overrides == ["a=1", "b=2", "c=3"] and args.num_gpus == 2 and args.eval_only


def test_choose_device_finds_gpus_and_rejects_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert choose_device("auto", num_gpus=1) == "cpu"
    assert choose_device("cpu", num_gpus=2) == "cpu"
    with pytest.raises(UserError, match="--num-gpus 8, but this machine has 0"):
        choose_device("auto", num_gpus=8)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert choose_device("auto", num_gpus=4) == "cuda"
    with pytest.raises(UserError, match="--num-gpus 8, but this machine has 4"):
        choose_device("cuda", num_gpus=8)


def test_choose_device_uses_the_local_world_size_of_torchrun(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert choose_device("auto", num_gpus=1) == "cpu"
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_device("auto", num_gpus=1) == "cuda"
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UserError, match="--nproc-per-node 2, but this machine has 1"):
        choose_device("auto", num_gpus=1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train.max_itr=1"], "did you mean train.max_iter"),
        (["train.max_iter=many"], "train.max_iter must be a whole number of iterations"),
        (
            ["train.device=gpu"],
            'train.device must be auto, cuda or cpu, got "gpu"; write train.device=cuda',
        ),
        (["--num-gpus", "9999"], "9999, but this machine has"),
        (["--data", "nowhere"], "nowhere"),
        ([], "coco/annotations/instances_val2017.json of dataset coco_2017_val does not exist"),
        (["--data", "DATA", "train.init_checkpoint=nowhere.pth"], "nowhere.pth does not exist"),
        (["--data", "DATA", "--num-machines", "2"], "--num-machines needs --dist-url"),
    ],
)
def test_command_line_error_is_one_line(
    synthetic_data: Path, arguments: list[str], message: str
) -> None:
    arguments = [argument.replace("DATA", str(synthetic_data)) for argument in arguments]
    result = start("--config-file", CONFIG, *arguments, DETECTRON2_DATASETS="nowhere")
    assert result.returncode == 1
    assert result.stderr.startswith("error: ") and message in result.stderr
    assert result.stderr.count("\n") == 1


class Quadratic(nn.Module):
    """A model with a loss of value * sum(weight), where value is that of the image."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(4))

    def forward(self, batch: list[dict]) -> dict[str, torch.Tensor]:
        self.autocast_dtype = torch.mm(torch.ones(1, 1), torch.ones(1, 1)).dtype
        return {"loss": batch[0]["value"] * self.weight.sum()}


def image_of(value: float) -> dict[str, Any]:
    return {"image": torch.zeros(3, 1, 1), "value": value, "skipped": []}


def trainer_of(model: nn.Module, folder: Path, dtype: str | None = None, **options: Any) -> Trainer:
    """A trainer with SGD and a learning rate of 1; dtype: of mixed precision, None for none."""
    amp = OmegaConf.create({"enabled": dtype is not None, "dtype": dtype or "bfloat16"})
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    return Trainer(model, optimizer, seed=0, output_dir=str(folder), amp=amp, **options)


def one_step(
    folder: Path, value: float = 3.0, clip_norm: float = 0.0, dtype: str | None = None
) -> Quadratic:
    model = Quadratic()
    trainer_of(model, folder, dtype, clip_norm=clip_norm).train([[image_of(value)]], 1)
    return model


def test_gradients_are_clipped_by_their_norm(tmp_path: Path) -> None:
    # The gradient is 3 in each of 4 entries, its norm 6.
    for clip_norm, expected in ((0.0, -3.0), (1.0, -0.5), (100.0, -3.0)):
        weight = one_step(tmp_path, clip_norm=clip_norm).weight.detach()
        torch.testing.assert_close(weight, torch.full((4,), expected))


def test_mixed_precision_is_used_if_enabled(tmp_path: Path) -> None:
    assert one_step(tmp_path, dtype="bfloat16").autocast_dtype == torch.bfloat16


def test_float16_clips_unscaled_gradients(tmp_path: Path) -> None:
    model = one_step(tmp_path, clip_norm=1.0, dtype="float16")
    assert model.autocast_dtype == torch.float16
    torch.testing.assert_close(model.weight.detach(), torch.full((4,), -0.5))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_detector_trains_on_a_gpu(synthetic_data: Path, tmp_path: Path, dtype: str) -> None:
    options = (
        "train.device=cuda",
        f"train.amp.dtype={dtype}",
        "model.backbone.net.norm=SyncBN",
        "train.max_iter=2",
    )
    run(tmp_path, synthetic_data, *options)
    assert list(metrics(tmp_path, "total_loss")) == [0, 1]


def test_detector_trains_in_bfloat16_on_a_cpu(synthetic_data: Path, tmp_path: Path) -> None:
    run(tmp_path, synthetic_data, "train.amp.enabled=True", "train.max_iter=2")
    assert list(metrics(tmp_path, "total_loss")) == [0, 1]


def test_non_finite_loss_stops_before_the_weights_change(tmp_path: Path) -> None:
    model = Quadratic()
    with pytest.raises(UserError, match="iteration 0: loss or gradient is not finite"):
        trainer_of(model, tmp_path).train([[image_of(float("nan"))]], 1)
    assert torch.equal(model.weight.detach(), torch.zeros(4))


class Mean(Quadratic):
    """As :class:`Quadratic`, with the mean loss of the images."""

    largest_batch = 0

    def forward(self, batch: list[dict]) -> dict[str, torch.Tensor]:
        self.largest_batch = max(self.largest_batch, len(batch))
        values = torch.tensor([image["value"] for image in batch])
        return {"loss": values.mean() * self.weight.sum()}


def test_accumulated_gradients_make_the_same_step(tmp_path: Path) -> None:
    images = list(map(image_of, (1.0, 2.0, 4.0)))
    for accumulate, largest_batch in ((1, 3), (2, 2), (3, 1)):
        model = Mean()
        trainer_of(model, tmp_path, accumulate=accumulate).train([images], 1)
        assert model.largest_batch == largest_batch
        torch.testing.assert_close(model.weight.detach(), torch.full((4,), -7 / 3))


# Without randomness: all proposals are used, images are not augmented, and the seed gives their
# order. With a large epsilon, steps of AdamW are proportional to the gradients; with the default
# one, rounding errors of tiny gradients would become steps of full size.
DETERMINISTIC = [
    "train.seed=1",
    "train.max_iter=3",
    "train.log_period=1",
    "dataloader.train.mapper.augmentations.flip=0",
    "dataloader.short_side=256",
    "model.proposal_generator.batch_size_per_image=100000",
    "model.roi_heads.batch_size_per_image=1000",
    "model.backbone.net.norm=SyncBN",
    "model.roi_heads.box_head.conv_norm=SyncBN",
    "model.roi_heads.mask_head.conv_norm=SyncBN",
    "train.clip_norm=0",
    "optimizer.lr=0.05",
    "optimizer.eps=1",
    "optimizer.weight_decay=0",
    "lr_multiplier.warmup_length=0",
]
NORM = "backbone.net.patch_embed.stem.norm.weight"  # of a SyncBN


@pytest.fixture(scope="module")
def one_process(tmp_path_factory: pytest.TempPathFactory, equal_sizes: Path) -> Path:
    folder = tmp_path_factory.mktemp("one")
    run(folder, equal_sizes, *DETERMINISTIC)
    return folder


@pytest.fixture(scope="module")
def equal_sizes(tmp_path_factory: pytest.TempPathFactory, synthetic_data: Path) -> Path:
    """A dataset with images of one size, so that a batch of two needs no more padding than one."""
    folder = tmp_path_factory.mktemp("equal_sizes") / "data"
    (folder / "annotations").mkdir(parents=True)
    (folder / "images").mkdir()
    for split in ("train", "val"):
        content = read_json(synthetic_data / "annotations" / f"{split}.json")
        for image in content["images"]:
            pixels = cv2.imread(str(synthetic_data / "images" / image["file_name"]))
            cv2.imwrite(str(folder / "images" / image["file_name"]), pixels[:256, :256])
            image.update(height=256, width=256)
        content["annotations"] = [item for item in content["annotations"] if not item["iscrowd"]]
        (folder / "annotations" / f"{split}.json").write_text(json.dumps(content))
    return folder


def initial_weights(data: Path) -> dict[str, torch.Tensor]:
    """The initial weights of the runs with ``DETERMINISTIC``."""
    seed_everything(1)
    cfg = load_config(str(REPOSITORY / CONFIG), [*TINY, *DETERMINISTIC])
    gpvit.data.use_folder(cfg, str(data), train=True)
    return instantiate(cfg.model).state_dict()


@pytest.mark.parametrize("launcher", ["torchrun", "detectron2"])
def test_two_processes_train_like_one(
    launcher: str, equal_sizes: Path, one_process: Path, tmp_path: Path
) -> None:
    worker = [
        *(str(REPOSITORY / "tests" / "engine" / "distributed_worker.py"), "--config-file", CONFIG),
        *("--data", str(equal_sizes), *TINY, *DETERMINISTIC),
        *("train.device=cpu", f"train.output_dir={tmp_path}"),
    ]
    command = [*TORCHRUN, *worker] if launcher == "torchrun" else [*worker, "--num-gpus", "2"]
    subprocess.run(
        [sys.executable, *command], cwd=REPOSITORY, env=ENVIRONMENT, check=True, timeout=300
    )

    weights, other = (torch.load(tmp_path / f"rank{rank}.pth") for rank in (0, 1))
    for key, tensor in weights.items():
        assert torch.equal(tensor, other[key]), key
    # The losses of the heads are means over the proposals or boxes of a process, the numbers of
    # which differ slightly. So weights with gradients from these losses alone are not compared, and
    # losses after the first step are compared with a tolerance.
    expected = gpvit.checkpoint.read(str(one_process / "model_final.pth")).weights
    initial = initial_weights(equal_sizes)
    for key, tensor in weights.items():
        if tensor.is_floating_point() and not key.startswith("roi_heads."):
            change, expected_change = tensor - initial[key], expected[key] - initial[key]
            difference = (change - expected_change).norm()
            assert difference <= 0.3 * expected_change.norm() + 1e-6, key
    assert not torch.equal(weights[NORM], initial[NORM])
    tolerances = {
        "loss_rpn_cls": 1e-3,
        "loss_rpn_loc": 1e-3,
        "loss_cls": 1e-2,
        "loss_mask": 1e-2,
        "loss_box_reg": 0.1,
    }
    for key, tolerance in tolerances.items():
        losses, expected_losses = metrics(tmp_path, key), metrics(one_process, key)
        assert list(expected_losses) == [0, 1, 2]
        assert losses == pytest.approx(expected_losses, rel=tolerance), key
    # The results have the images of both processes.
    ids = image_ids(detections(one_process))
    assert image_ids(detections(tmp_path)) == ids and len(ids) == 4
    results, expected_results = final_metrics(tmp_path), final_metrics(one_process)
    for task in ("bbox", "segm"):
        expected_ap = expected_results[f"{task}/AP"]
        assert results[f"{task}/AP"] == pytest.approx(expected_ap, abs=0.5)


SETS = ("day", "night/city")  # the validation and the training images of the synthetic data
NIGHT = folder_names(SETS)["night/city"]


@pytest.fixture
def config_of_sets(synthetic_data: Path, tmp_path: Path) -> Iterator[Path]:
    """A config that registers datasets, as users write it; they are removed after the test."""
    config = tmp_path / "sets.py"
    config.write_text(f"""
from detectron2.data.datasets import register_coco_instances
from gpvit.config import load_config

for name, split in (("mine", "train"), ("day", "val"), ("night/city", "train")):
    file = f"{synthetic_data}/annotations/{{split}}.json"
    classes = {{"thing_classes": ["disc", "triangle", "cross"]}}
    register_coco_instances(name, classes, file, "{synthetic_data}/images")
base = load_config({str(REPOSITORY / CONFIG)!r}, {TINY!r})
model, dataloader, optimizer = base.model, base.dataloader, base.optimizer
lr_multiplier, train = base.lr_multiplier, base.train
dataloader.train.dataset.names = "mine"
dataloader.test.dataset.names = {SETS!r}
model.roi_heads.num_classes = 3
""")
    yield config
    for name in {"mine", *SETS} & set(DatasetCatalog.list()):
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@pytest.mark.parametrize(
    "key", ["dataloader.max_detections", "model.roi_heads.box_predictor.test_topk_per_image"]
)
def test_run_warns_about_images_with_more_objects_than_detections(
    synthetic_data: Path, tmp_path: Path, key: str
) -> None:
    run(tmp_path, synthetic_data, "train.max_iter=1", "train.eval_period=0", f"{key}=1")
    before_training = (tmp_path / "log.txt").read_text().partition("Starting training")[0]
    for split in ("train", "val"):
        message = rf"{split}: images have up to \d+ objects, of which .* AP counts 1;"
        assert re.search(message, before_training)


def test_evaluation_without_weights_or_with_another_dataset_name_raises(
    synthetic_data: Path, tmp_path: Path
) -> None:
    message = "--eval-only needs weights; write train.init_checkpoint=FILE"
    with pytest.raises(UserError, match=message):
        run(tmp_path, synthetic_data, "--eval-only", "train.init_checkpoint=null")
    with pytest.raises(UserError, match="dataset_name=night is not the evaluated dataset"):
        run(tmp_path, synthetic_data, "dataloader.evaluator.dataset_name=night")


def test_each_of_several_validation_sets_is_evaluated(config_of_sets: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    options = ["train.device=cpu", "train.max_iter=2", "train.pictures=1", "train.ema_decay=0.5"]
    options += ["train.best_metric=night/city/ema_segm/AP", f"train.output_dir={folder}"]
    call("--config-file", config_of_sets, *options)
    measured = final_metrics(folder)
    for task in ("bbox", "segm", "ema_bbox", "ema_segm"):
        assert {f"day/{task}/AP", f"night/city/{task}/AP"} <= measured.keys()
        assert f"{task}/AP" not in measured
    together = read_json(folder / "evaluation.json")
    assert together["images"] == 12
    assert [data["name"] for data in together["data"]] == list(SETS)
    for name, subfolder, images in (("day", "day", 4), ("night/city", NIGHT, 8)):
        results = folder / "inference" / subfolder
        evaluation = read_json(results / "evaluation.json")
        assert evaluation["results"] == together["results"][name]
        assert evaluation["images"] == images and evaluation["data"]["name"] == name
        assert evaluation["results"]["segm"]["AP"] == measured[f"{name}/ema_segm/AP"]
        assert len(read_inputs(results).ground_truth.imgs) == images
    page = (folder / "README.md").read_text()
    assert f"gpvit view-results --input {folder}/inference/day --report\n" in page
    assert "| val: night/city | " in page and "`coco_instances_results.json`" not in page
    assert "Best night/city/ema\\_segm/AP: " in page and "in `model_best.pth`" in page
    message = f"of several validation sets: give the folder of one of them, .*{NIGHT}$"
    with pytest.raises(UserError, match=message):
        read_inputs(folder)
    card = read_training_run(gpvit.checkpoint.read(str(folder / "model_final.pth")))
    assert card.val_data == "day" and card.images == 4
    assert card.metrics["segm/AP"] == measured["day/ema_segm/AP"]


def sorted_detections(folder: Path) -> list[dict[str, Any]]:
    return sorted(
        detections(folder),
        key=lambda result: (result["image_id"], -result["score"], result["bbox"]),
    )


def test_two_processes_evaluate_several_sets_like_one(
    trained: Path, synthetic_data: Path, config_of_sets: Path, tmp_path: Path
) -> None:
    output_dir = tmp_path / "out"
    worker = [str(REPOSITORY / "train_net.py"), "--config-file", str(config_of_sets)]
    worker += ["--eval-only", "train.device=cpu", f"train.output_dir={output_dir}"]
    worker += [f"train.init_checkpoint={trained / 'model_final.pth'}"]
    command = [sys.executable, *TORCHRUN, *worker]
    subprocess.run(command, cwd=REPOSITORY, env=ENVIRONMENT, check=True, timeout=300)
    results = sorted_detections(output_dir / "inference" / "day")
    expected = sorted_detections(trained)
    assert len(results) == len(expected) > 0
    for one, other in zip(results, expected):
        assert (one["image_id"], one["category_id"]) == (other["image_id"], other["category_id"])
        assert one["score"] == pytest.approx(other["score"], abs=1e-4)
    images = read_json(synthetic_data / "annotations" / "train.json")["images"]
    ids = {image["id"] for image in images}
    assert image_ids(detections(output_dir / "inference" / NIGHT)) == ids
    evaluation = read_json(output_dir / "evaluation.json")
    assert evaluation["results"].keys() == set(SETS) and evaluation["images"] == 12


def with_validation_sets(*names: str, **train: object) -> DictConfig:
    loaders = {
        "test": {"dataset": {"names": list(names)}},
        "evaluator": {"tasks": ["bbox", "segm"]},
    }
    return OmegaConf.create({"dataloader": loaders, "train": {"ema_decay": 0.0} | train})


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        ("segm/AP", "does not name the validation set: use one of a/segm/AP, b/c/segm/AP$"),
        ("segm/AP-dog", "use one of a/segm/AP-dog, b/c/segm/AP-dog$"),
        ("a/segm/AP-cow", "is none of a/bbox/AP, "),
        ("c/segm/AP", "is none of a/bbox/AP, "),
        ("a/ema_segm/AP", "is none of a/bbox/AP, "),
    ],
)
def test_best_metric_must_name_one_of_several_validation_sets(metric: str, message: str) -> None:
    cfg = with_validation_sets("a", "b/c")
    with pytest.raises(UserError, match=message):
        check_best_metric(metric, cfg, ["cat", "dog"])
    check_best_metric("b/c/segm/AP-dog", cfg, ["cat", "dog"])
    check_best_metric("a/ema_bbox/AP", with_validation_sets("a", "b", ema_decay=0.9), [])
    check_best_metric("segm/AP", with_validation_sets("a"), [])


def test_best_metric_of_unknown_tasks_must_name_the_validation_set() -> None:
    cfg = with_validation_sets("a", "b")
    cfg.dataloader.evaluator = {}
    check_best_metric("b/anything", cfg, [])
    with pytest.raises(UserError, match="use one of a/anything, b/anything$"):
        check_best_metric("anything", cfg, [])


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a", "b", "a"], "has a twice; name each validation set once"),
        (["a\n", "a\\n"], r"has a.n twice"),  # whose metrics would have the same names
        ([], "must be names of datasets"),
        (["a", 1], "must be names of datasets"),
        (None, "must be names of datasets"),
    ],
)
def test_ambiguous_or_invalid_validation_sets_raise(names: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        validation_names(OmegaConf.create({"dataloader": {"test": {"dataset": {"names": names}}}}))


def test_folder_names_of_validation_sets_are_safe_and_unique() -> None:
    usual = ["coco_2017_val", "a/b", "a_b", "a\\b", "Day", "day"]
    names = [*usual, "..", "", "x" * 300, "x" * 301, "ä", "\udcff"]
    folders = list(folder_names(names).values())
    assert folders[0] == "coco_2017_val" and folders[2] == "a_b"
    assert len(set(map(str.lower, folders))) == len(names)
    for folder in folders:
        assert re.fullmatch(r"[\w-]{1,100}", folder, re.ASCII)


def test_metrics_of_the_averaged_weights_are_prefixed_below_the_set_names() -> None:
    one = {"bbox": {"AP": 1.0}, "speed": 2.0}
    assert rename_averaged(one) == {"ema_bbox": {"AP": 1.0}, "ema_speed": 2.0}
    assert rename_averaged({"a": one, "b": {}}) == {"a": rename_averaged(one), "ema_b": {}}


def test_error_of_several_processes_is_one_line(synthetic_data: Path, tmp_path: Path) -> None:
    torch.save({"model": {"weight": torch.zeros(1)}}, tmp_path / "other.pth")
    options = ["--config-file", CONFIG, "--data", synthetic_data, "--num-gpus", 2]
    options += ["train.device=cpu", f"train.output_dir={tmp_path}"]
    result = start(*options, f"train.init_checkpoint={tmp_path / 'other.pth'}")
    assert result.returncode == 1
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert "does not fit the model" in line and "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("config", "kind"),
    [
        pytest.param("mask_rcnn_gpvit_l1_1x", "maskrcnn", marks=pytest.mark.slow),
        ("retinanet_gpvit_l1_1x", "retinanet"),
    ],
)
def test_published_checkpoint_is_evaluated_and_fine_tuned(
    real_data: Path, synthetic_data: Path, tmp_path: Path, config: str, kind: str
) -> None:
    weights, data = tmp_path / f"gpvit_l1_{kind}_1x.pth", tmp_path / "coco"
    torch.save({"meta": {"epoch": 12}, "state_dict": official.weights(kind, "L1")}, weights)
    content = read_json(real_data / "coco_val_ccby" / "annotations" / "val.json")
    content["images"] = content["images"][:2]
    ids = {image["id"] for image in content["images"]}
    content["annotations"] = [item for item in content["annotations"] if item["image_id"] in ids]
    (data / "annotations").mkdir(parents=True)
    (data / "annotations" / "val.json").write_text(json.dumps(content))
    (data / "images").symlink_to(real_data / "coco_val_ccby" / "images")

    def run_published(output: str, *arguments: object) -> nn.Module:
        options = ["train.device=cpu", f"train.init_checkpoint={weights}"]
        options += ["dataloader.short_side=64", f"train.output_dir={tmp_path / output}"]
        options += ["dataloader.train.num_workers=0", "dataloader.test.num_workers=0"]
        file = REPOSITORY / "configs" / "published" / f"{config}.py"
        return call("--config-file", file, *options, *arguments)

    run_published("evaluation", "--eval-only", "--data", data)
    results = detections(tmp_path / "evaluation")
    assert image_ids(results) == ids and len(results) > 100
    assert ("segmentation" in results[0]) == (kind == "maskrcnn")

    tiny = ["train.max_iter=1", "train.eval_period=0", "dataloader.train.total_batch_size=2"]
    model = run_published("out", "--data", synthetic_data, *tiny)
    log = (tmp_path / "out" / "log.txt").read_text()
    layers = 6 if kind == "maskrcnn" else 2
    assert f"randomly initialized: {layers} that depend on the classes" in log
    file = gpvit.checkpoint.read(str(tmp_path / "out" / "model_final.pth"))
    assert file.classes == ["disc", "triangle", "cross"]
    gpvit.checkpoint.load(model, file, file.classes)


def test_registered_dataset_without_class_names_raises_one_line(tmp_path: Path) -> None:
    config = tmp_path / "bare.py"
    config.write_text(f"""
from detectron2.data import DatasetCatalog
from gpvit.config import load_config

DatasetCatalog.register("bare", lambda: [])
base = load_config({str(REPOSITORY / CONFIG)!r})
model, dataloader, train = base.model, base.dataloader, base.train
dataloader.train.dataset.names = dataloader.test.dataset.names = "bare"
""")
    weights = tmp_path / "model.pth"
    gpvit.checkpoint.write(str(weights), {"weight": torch.zeros(1)}, classes=["cat"])
    options = ["--config-file", config, "--eval-only", "train.device=cpu"]
    options += [f"train.output_dir={tmp_path / 'out'}", f"train.init_checkpoint={weights}"]
    result = start(*options)
    assert result.returncode == 1
    message = "error: dataset bare is registered without"
    assert result.stderr.startswith(message), result.stderr
    assert result.stderr.count("\n") == 1
