"""The training script: trains, evaluates, resumes, in one process and in two."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

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
from gpvit.evaluation.metrics import check_best_metric, of_average
from gpvit.evaluation.validation_sets import validation_names
from gpvit.hub.model_card import training_of
from gpvit.utils.errors import UserError
from gpvit.utils.events import folder_names
from gpvit.utils.seed import seed_everything
from omegaconf import DictConfig, OmegaConf
from torch import nn

CONFIG = "configs/quickstart.py"
ENVIRONMENT = os.environ | {
    "PYTHONPATH": os.pathsep.join(
        str(REPOSITORY / folder) for folder in (".", "projects/GPViT", "tests")
    ),
    "OMP_NUM_THREADS": "1",
}


def run(output_dir: Path, data: Path, *arguments: str) -> nn.Module | None:
    """Runs train_net.py in this process."""
    command = ["--config-file", str(REPOSITORY / CONFIG), "--data", str(data), *TINY]
    command += ["train.device=cpu", f"train.output_dir={output_dir}", *arguments]
    return train_net.main(argument_parser().parse_intermixed_args(command))


def metrics(output_dir: Path, key: str) -> dict[int, float]:
    """Iteration -> value, from the metrics file, which must be JSON all through."""
    lines = (output_dir / "metrics.json").read_text().splitlines()
    rows = [json.loads(line, parse_constant=pytest.fail) for line in lines]
    return {row["iteration"]: row[key] for row in rows if key in row}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, synthetic_data: Path) -> Path:
    """The folder of a training of four iterations."""
    folder = tmp_path_factory.mktemp("trained")
    run(folder, synthetic_data, "train.seed=1", "train.checkpointer.period=2", "train.max_iter=4")
    return folder


def test_a_training_leaves_checkpoints_config_metrics_and_results(trained: Path) -> None:
    names = {path.name for path in trained.iterdir()}
    assert {
        "model_0000002.pth",
        "model_final.pth",
        "config.yaml",
        "metrics.json",
        "log.txt",
    } <= names
    assert "coco_instances_results.json" in names
    assert any(name.startswith("events.out.tfevents") for name in names)
    assert list(metrics(trained, "total_loss")) == [0, 1, 2, 3]
    assert {"bbox/AP", "segm/AP"} <= final_metrics(trained).keys()


def test_the_saved_config_builds_the_same_model(trained: Path) -> None:
    cfg = load_config(str(trained / "config.yaml"), ["train.seed=2"])
    gpvit.checkpoint.load(instantiate(cfg.model), str(trained / "model_final.pth"))


def test_a_checkpoint_carries_config_and_versions_for_its_use(trained: Path) -> None:
    file = gpvit.checkpoint.read(str(trained))
    assert file.about["versions"] == gpvit.checkpoint.versions()
    cfg = config_from_yaml(file.config, file.path)
    assert cfg.keys() == {"model", "dataloader"} and "train" not in cfg.dataloader
    model = instantiate(cfg.model)
    gpvit.checkpoint.load(model, file)
    image = np.zeros((50, 100, 3), np.uint8)
    assert gpvit.Predictor.from_checkpoint(trained, "cpu").resize(image).shape == (
        3,
        64,
        128,
    )  # TINY's short side
    smaller = gpvit.Predictor.from_checkpoint(
        trained, "cpu", overrides=["dataloader.short_side=32"]
    )
    assert smaller.resize(image).shape == (3, 32, 64)


def test_a_checkpoint_carries_its_classes(trained: Path) -> None:
    assert gpvit.checkpoint.read(str(trained / "model_final.pth")).classes == [
        "disc",
        "triangle",
        "cross",
    ]


def test_a_run_goes_on_by_its_saved_config_with_data_that_moved(
    trained: Path, synthetic_data: Path, tmp_path: Path
) -> None:
    shutil.copytree(trained, tmp_path / "run")
    (tmp_path / "run" / "model_final.pth").unlink()
    shutil.copytree(synthetic_data, tmp_path / "moved")
    command = [
        "--config-file",
        str(tmp_path / "run" / "config.yaml"),
        "--data",
        str(tmp_path / "moved"),
        "--resume",
    ]
    train_net.main(
        argument_parser().parse_intermixed_args([*command, f"train.output_dir={tmp_path / 'run'}"])
    )
    assert (tmp_path / "run" / "model_final.pth").exists()


def test_evaluation_alone_needs_no_training_data(
    trained: Path, synthetic_data: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "data"
    (folder / "annotations").mkdir(parents=True)
    (folder / "images").symlink_to(synthetic_data / "images")
    (folder / "annotations" / "val.json").symlink_to(synthetic_data / "annotations" / "val.json")
    run(
        tmp_path / "out",
        folder,
        "--eval-only",
        f"train.init_checkpoint={trained / 'model_final.pth'}",
    )
    again = json.loads((tmp_path / "out" / "coco_instances_results.json").read_text())
    assert again == json.loads((trained / "coco_instances_results.json").read_text())


def test_an_evaluation_that_is_cut_short_leaves_the_one_before_it(
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


def test_a_last_evaluation_that_fails_leaves_the_losses_before_it(
    synthetic_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object) -> None:
        raise UserError("no room for masks")

    monkeypatch.setattr("gpvit.engine.run.evaluate", failing)
    with pytest.raises(UserError, match="no room for masks"):
        run(tmp_path, synthetic_data, "train.eval_period=0", "train.max_iter=2")
    rows = [json.loads(line) for line in (tmp_path / "metrics.json").read_text().splitlines()]
    assert [row["iteration"] for row in rows if "total_loss" in row] == [0, 1]
    assert "Stopped at " in (tmp_path / "README.md").read_text()


def test_evaluation_of_other_classes_is_refused(
    trained: Path, synthetic_data: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "data"
    (folder / "annotations").mkdir(parents=True)
    (folder / "images").symlink_to(synthetic_data / "images")
    content = json.loads((synthetic_data / "annotations" / "val.json").read_text())
    content["categories"][0]["name"] = "cat"
    (folder / "annotations" / "val.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="trained for other classes .disc.* than the data has .cat"):
        run(
            tmp_path / "out",
            folder,
            "--eval-only",
            f"train.init_checkpoint={trained / 'model_final.pth'}",
        )


def test_resuming_goes_on_with_iteration_schedule_and_optimizer(
    synthetic_data: Path, tmp_path: Path
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    options = ("train.checkpointer.period=2", "train.eval_period=0", "train.log_period=1")
    run(whole, synthetic_data, *options, "train.max_iter=4")
    run(parts, synthetic_data, *options, "train.max_iter=4")
    (parts / "model_final.pth").unlink()
    (parts / "metrics.json").unlink()
    run(parts, synthetic_data, *options, "train.max_iter=4", "--resume")
    assert list(metrics(parts, "total_loss")) == [2, 3]
    rates = metrics(whole, "lr")
    assert metrics(parts, "lr") == {iteration: rates[iteration] for iteration in (2, 3)}
    state = gpvit.checkpoint.read_content(str(parts / "model_final.pth"))["trainer"]["optimizer"][
        "state"
    ]
    assert {int(entry["step"]) for entry in state.values()} == {4}


def test_resuming_a_finished_training_only_evaluates(trained: Path, synthetic_data: Path) -> None:
    before = (trained / "model_final.pth").read_bytes()
    rows = len((trained / "metrics.json").read_text().splitlines())
    run(
        trained,
        synthetic_data,
        "--resume",
        "train.seed=1",
        "train.checkpointer.period=2",
        "train.max_iter=4",
    )
    assert (trained / "model_final.pth").read_bytes() == before
    assert len((trained / "metrics.json").read_text().splitlines()) <= rows + 1


def test_overrides_work_before_between_and_after_flags() -> None:
    parse = argument_parser().parse_intermixed_args
    args = parse(["a=1", "--config-file", "x.py", "b=2", "--num-gpus", "2", "--eval-only", "c=3"])
    assert args.overrides == ["a=1", "b=2", "c=3"] and args.num_gpus == 2 and args.eval_only


def test_the_device_is_found_and_too_many_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert choose_device("auto", num_gpus=1) == "cpu"
    assert choose_device("cpu", num_gpus=2) == "cpu"
    with pytest.raises(UserError, match="--num-gpus 8, but this machine has 0"):
        choose_device("auto", num_gpus=8)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert choose_device("auto", num_gpus=4) == "cuda"
    with pytest.raises(UserError, match="--num-gpus 8, but this machine has 4"):
        choose_device("cuda", num_gpus=8)


def test_torchruns_processes_find_their_device(monkeypatch: pytest.MonkeyPatch) -> None:
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
        ([], "coco/annotations/instances_val2017.json of data set coco_2017_val does not exist"),
        (["--data", "DATA", "train.init_checkpoint=nowhere.pth"], "nowhere.pth does not exist"),
        (["--data", "DATA", "--num-machines", "2"], "--num-machines needs --dist-url"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line(
    synthetic_data: Path, arguments: list[str], message: str
) -> None:
    arguments = [str(synthetic_data) if argument == "DATA" else argument for argument in arguments]
    result = subprocess.run(
        [sys.executable, "train_net.py", "--config-file", CONFIG, *arguments],
        cwd=REPOSITORY, env=ENVIRONMENT | {"DETECTRON2_DATASETS": "nowhere"}, capture_output=True, text=True,
    )  # fmt: skip
    assert result.returncode == 1
    assert (
        result.stderr.startswith("error: ")
        and result.stderr.count("\n") == 1
        and message in result.stderr
    )


class Quadratic(nn.Module):
    """A model of one weight w whose loss is the value of its image times w."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(4))

    def forward(self, batch: list[dict]) -> dict[str, torch.Tensor]:
        self.seen_dtype = torch.mm(torch.ones(1, 1), torch.ones(1, 1)).dtype
        return {"loss": batch[0]["value"] * self.weight.sum()}


def one_step(
    tmp_path: Path,
    value: float = 3.0,
    clip_norm: float = 0.0,
    amp_enabled: bool = False,
    dtype: str = "bfloat16",
) -> Quadratic:
    model = Quadratic()
    amp = OmegaConf.create(dict(enabled=amp_enabled, dtype=dtype))
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    trainer = Trainer(
        model, optimizer, seed=0, output_dir=str(tmp_path), amp=amp, clip_norm=clip_norm
    )
    try:
        trainer.train([[{"image": torch.zeros(3, 1, 1), "value": value, "skipped": []}]], 1)
    except UserError as error:
        model.error = str(error)
    return model


def test_gradients_are_clipped_to_their_norm(tmp_path: Path) -> None:
    torch.testing.assert_close(one_step(tmp_path).weight.detach(), torch.full((4,), -3.0))
    torch.testing.assert_close(
        one_step(tmp_path, clip_norm=1.0).weight.detach(), torch.full((4,), -0.5)
    )
    torch.testing.assert_close(
        one_step(tmp_path, clip_norm=100.0).weight.detach(), torch.full((4,), -3.0)
    )


def test_mixed_precision_is_used_where_asked_for(tmp_path: Path) -> None:
    assert one_step(tmp_path, amp_enabled=True).seen_dtype == torch.bfloat16


def test_float16_scales_the_loss_and_clips_what_is_unscaled(tmp_path: Path) -> None:
    model = one_step(tmp_path, clip_norm=1.0, amp_enabled=True, dtype="float16")
    assert model.seen_dtype == torch.float16
    torch.testing.assert_close(model.weight.detach(), torch.full((4,), -0.5))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_detector_trains_on_a_gpu(synthetic_data: Path, tmp_path: Path, dtype: str) -> None:
    options = (
        "train.device=cuda",
        f"train.amp.dtype={dtype}",
        "model.backbone.net.norm=SyncBN",
        "train.max_iter=2",
    )
    run(tmp_path, synthetic_data, *options)
    assert list(metrics(tmp_path, "total_loss")) == [0, 1]


def test_a_detector_trains_in_bfloat16_on_a_cpu(synthetic_data: Path, tmp_path: Path) -> None:
    run(tmp_path, synthetic_data, "train.amp.enabled=True", "train.max_iter=2")
    assert list(metrics(tmp_path, "total_loss")) == [0, 1]


def test_a_loss_that_is_not_finite_stops_before_the_weights_change(tmp_path: Path) -> None:
    model = one_step(tmp_path, value=float("nan"))
    assert "iteration 0: loss or gradient is not finite" in model.error
    assert torch.equal(model.weight.detach(), torch.zeros(4))


def test_a_batch_in_parts_makes_the_same_step(tmp_path: Path) -> None:
    images = [
        {"image": torch.zeros(3, 1, 1), "value": value, "skipped": []} for value in (1.0, 2.0, 4.0)
    ]

    class Mean(Quadratic):
        def forward(self, batch: list[dict]) -> dict[str, torch.Tensor]:
            self.largest = max(getattr(self, "largest", 0), len(batch))
            return {"loss": sum(image["value"] for image in batch) / len(batch) * self.weight.sum()}

    weights = []
    for accumulate, largest in ((1, 3), (2, 2), (3, 1)):
        model = Mean()
        amp = OmegaConf.create(dict(enabled=False, dtype="bfloat16"))
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        trainer = Trainer(
            model, optimizer, seed=0, output_dir=str(tmp_path), amp=amp, accumulate=accumulate
        )
        trainer.train([images], 1)
        assert model.largest == largest
        weights.append(model.weight.detach())
    torch.testing.assert_close(weights[0], torch.full((4,), -7 / 3))
    for other in weights[1:]:
        torch.testing.assert_close(other, weights[0])


# Nothing random: all proposals are used, the images are taken as they are, in an order that the seed gives. With its
# large epsilon AdamW makes steps in proportion to the gradients, and no full ones of rounding errors.
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


@pytest.fixture(scope="module")
def one_process(tmp_path_factory: pytest.TempPathFactory, even_data: Path) -> Path:
    folder = tmp_path_factory.mktemp("one")
    run(folder, even_data, *DETERMINISTIC)
    return folder


@pytest.fixture(scope="module")
def even_data(tmp_path_factory: pytest.TempPathFactory, synthetic_data: Path) -> Path:
    """A data set all of whose images have one size, so that a batch of two is not padded more than each alone."""
    folder = tmp_path_factory.mktemp("even") / "data"
    (folder / "annotations").mkdir(parents=True)
    (folder / "images").mkdir()
    for split in ("train", "val"):
        content = json.loads((synthetic_data / "annotations" / f"{split}.json").read_text())
        for image in content["images"]:
            pixels = cv2.imread(str(synthetic_data / "images" / image["file_name"]))
            cv2.imwrite(str(folder / "images" / image["file_name"]), pixels[:256, :256])
            image.update(height=256, width=256)
        content["annotations"] = [a for a in content["annotations"] if not a["iscrowd"]]
        (folder / "annotations" / f"{split}.json").write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize("launcher", ["torchrun", "detectron2"])
def test_two_processes_do_what_one_does(
    launcher: str, even_data: Path, one_process: Path, tmp_path: Path
) -> None:
    worker = [
        str(REPOSITORY / "tests" / "engine" / "distributed_worker.py"),
        "--config-file",
        CONFIG,
        "--data",
        str(even_data),
    ]
    worker += [*TINY, *DETERMINISTIC, "train.device=cpu", f"train.output_dir={tmp_path}"]
    command = {
        "torchrun": [
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node",
            "2",
            *worker,
        ],
        "detectron2": [*worker, "--num-gpus", "2"],
    }[launcher]
    subprocess.run(
        [sys.executable, *command], cwd=REPOSITORY, env=ENVIRONMENT, check=True, timeout=300
    )

    weights = [torch.load(tmp_path / f"rank{rank}.pth") for rank in (0, 1)]
    assert all(torch.equal(tensor, weights[1][key]) for key, tensor in weights[0].items())
    one = gpvit.checkpoint.read(str(one_process / "model_final.pth")).weights
    # The heads' losses are means over the proposals or boxes of a process, whose numbers differ a little; so what they
    # alone move is not compared, and the losses after the first steps are only nearly the same.
    start = initial_weights(even_data)
    for key, tensor in weights[0].items():
        if tensor.is_floating_point() and not key.startswith("roi_heads."):
            moved, expected = tensor - start[key], one[key] - start[key]
            assert (moved - expected).norm() <= 0.3 * expected.norm() + 1e-6, key
    assert not torch.equal(weights[0][NORM], start[NORM])
    tolerances = {
        "loss_rpn_cls": 1e-3,
        "loss_rpn_loc": 1e-3,
        "loss_cls": 1e-2,
        "loss_mask": 1e-2,
        "loss_box_reg": 0.1,
    }
    for key, tolerance in tolerances.items():
        together, apart = metrics(one_process, key), metrics(tmp_path, key)
        assert list(together) == [0, 1, 2]
        assert apart == pytest.approx(together, rel=tolerance), key
    results, expected = (
        {
            result["image_id"]
            for result in json.loads((folder / "coco_instances_results.json").read_text())
        }
        for folder in (tmp_path, one_process)
    )
    assert results == expected and len(expected) == 4  # the images of both processes
    for task in ("bbox", "segm"):
        assert final_metrics(tmp_path)[f"{task}/AP"] == pytest.approx(
            final_metrics(one_process)[f"{task}/AP"], abs=0.5
        )


NORM = "backbone.net.patch_embed.stem.norm.weight"


def initial_weights(data: Path) -> dict[str, torch.Tensor]:
    """What the trainings with ``DETERMINISTIC`` start from."""
    seed_everything(1)
    overrides = [*TINY, *DETERMINISTIC]
    cfg = load_config(str(REPOSITORY / CONFIG), overrides)
    gpvit.data.use_folder(cfg, str(data), train=True)
    return instantiate(cfg.model).state_dict()


SETS = ("day", "night/city")  # the validation and the training images of the synthetic data
NIGHT = folder_names(SETS)["night/city"]


@pytest.fixture
def config_of_sets(synthetic_data: Path, tmp_path: Path) -> Iterator[Path]:
    """A config that registers its data, as people do; what it left in this process is removed."""
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


def found_in(folder: Path) -> list[dict]:
    content = json.loads((folder / "coco_instances_results.json").read_text())
    return sorted(
        content, key=lambda result: (result["image_id"], -result["score"], result["bbox"])
    )


@pytest.mark.parametrize(
    "key", ["dataloader.max_detections", "model.roi_heads.box_predictor.test_topk_per_image"]
)
def test_a_run_begins_with_a_note_on_images_of_more_objects_than_are_given(
    synthetic_data: Path, tmp_path: Path, key: str
) -> None:
    run(tmp_path, synthetic_data, "train.max_iter=1", "train.eval_period=0", f"{key}=1")
    before_training = (tmp_path / "log.txt").read_text().partition("Starting training")[0]
    for split in ("train", "val"):
        assert re.search(
            rf"{split}: images have up to \d+ objects, of which .* AP counts 1;", before_training
        )


def test_an_evaluation_without_weights_or_on_other_data_than_is_named_is_refused(
    synthetic_data: Path, tmp_path: Path
) -> None:
    with pytest.raises(
        UserError, match="--eval-only needs weights; write train.init_checkpoint=FILE"
    ):
        run(tmp_path, synthetic_data, "--eval-only", "train.init_checkpoint=null")
    with pytest.raises(UserError, match="dataset_name=night is not what is evaluated"):
        run(tmp_path, synthetic_data, "dataloader.evaluator.dataset_name=night")


def test_several_validation_sets_are_evaluated_each(
    synthetic_data: Path, config_of_sets: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    command = [
        "--config-file",
        str(config_of_sets),
        "train.device=cpu",
        f"train.output_dir={folder}",
    ]
    command += ["train.ema_decay=0.5", "train.best_metric=night/city/ema_segm/AP"]
    command += ["train.max_iter=2", "train.pictures=1"]
    train_net.main(argument_parser().parse_intermixed_args(command))
    measured = final_metrics(folder)
    names = {
        f"{name}/{task}/AP" for name in SETS for task in ("bbox", "segm", "ema_bbox", "ema_segm")
    }
    assert names <= measured.keys() and not {"bbox/AP", "segm/AP", "ema_segm/AP"} & measured.keys()
    whole = json.loads((folder / "evaluation.json").read_text())
    assert whole["images"] == 12 and [data["name"] for data in whole["data"]] == list(SETS)
    for name, inside, images in (("day", "day", 4), ("night/city", NIGHT, 8)):
        evaluation = json.loads((folder / "inference" / inside / "evaluation.json").read_text())
        assert evaluation["results"] == whole["results"][name] and evaluation["images"] == images
        assert evaluation["results"]["segm"]["AP"] == measured[f"{name}/ema_segm/AP"]
        assert evaluation["data"]["name"] == name
        assert len(read_inputs(folder / "inference" / inside).truth.imgs) == images
    page = (folder / "README.md").read_text()
    assert (
        f"gpvit view-results --input {folder}/inference/day --report\n" in page
        and "| val: night/city | " in page
    )
    assert "Best night/city/ema\\_segm/AP: " in page and "in `model_best.pth`" in page
    assert "`coco_instances_results.json`" not in page
    with pytest.raises(
        UserError, match=f"of several validation sets: give the folder of one, .*{NIGHT}$"
    ):
        read_inputs(folder)
    card = training_of(gpvit.checkpoint.read(str(folder / "model_final.pth")))
    assert card.val_data == "day" and card.images == 4
    assert card.metrics["segm/AP"] == measured["day/ema_segm/AP"]


def test_two_processes_evaluate_as_one_does_each_of_several_sets(
    trained: Path, synthetic_data: Path, config_of_sets: Path, tmp_path: Path
) -> None:
    worker = [str(REPOSITORY / "train_net.py"), "--config-file", str(config_of_sets)]
    worker += ["--eval-only", "train.device=cpu", f"train.output_dir={tmp_path / 'out'}"]
    worker += [f"train.init_checkpoint={trained / 'model_final.pth'}"]
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        *worker,
    ]
    subprocess.run(command, cwd=REPOSITORY, env=ENVIRONMENT, check=True, timeout=300)
    ours, expected = found_in(tmp_path / "out" / "inference" / "day"), found_in(trained)
    assert len(ours) == len(expected) > 0
    for one, other in zip(ours, expected):
        assert (one["image_id"], one["category_id"]) == (other["image_id"], other["category_id"])
        assert one["score"] == pytest.approx(other["score"], abs=1e-4)
    ids = {
        image["id"]
        for image in json.loads((synthetic_data / "annotations" / "train.json").read_text())[
            "images"
        ]
    }
    assert {
        result["image_id"] for result in found_in(tmp_path / "out" / "inference" / NIGHT)
    } == ids
    evaluation = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert evaluation["results"].keys() == set(SETS) and evaluation["images"] == 12


def of_sets(*names: str, **train: object) -> DictConfig:
    loaders = {
        "test": {"dataset": {"names": list(names)}},
        "evaluator": {"tasks": ["bbox", "segm"]},
    }
    return OmegaConf.create({"dataloader": loaders, "train": {"ema_decay": 0.0} | train})


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        ("segm/AP", "does not say of which validation set: name one of a/segm/AP, b/c/segm/AP$"),
        ("segm/AP-dog", "name one of a/segm/AP-dog, b/c/segm/AP-dog$"),
        ("a/segm/AP-cow", "is none of a/bbox/AP, "),
        ("c/segm/AP", "is none of a/bbox/AP, "),
        ("a/ema_segm/AP", "is none of a/bbox/AP, "),
    ],
)
def test_the_best_metric_names_one_of_several_validation_sets(metric: str, message: str) -> None:
    cfg = of_sets("a", "b/c")
    with pytest.raises(UserError, match=message):
        check_best_metric(metric, cfg, ["cat", "dog"])
    check_best_metric("b/c/segm/AP-dog", cfg, ["cat", "dog"])
    check_best_metric("a/ema_bbox/AP", of_sets("a", "b", ema_decay=0.9), [])
    check_best_metric("segm/AP", of_sets("a"), [])


def test_without_known_tasks_the_best_metric_still_names_the_set() -> None:
    cfg = of_sets("a", "b")
    cfg.dataloader.evaluator = {}
    check_best_metric("b/anything", cfg, [])
    with pytest.raises(UserError, match="name one of a/anything, b/anything$"):
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
def test_validation_sets_that_cannot_be_told_apart_are_refused(names: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        validation_names(OmegaConf.create({"dataloader": {"test": {"dataset": {"names": names}}}}))


def test_folders_of_validation_sets_are_safe_and_differ() -> None:
    names = [
        "coco_2017_val",
        "a/b",
        "a_b",
        "a\\b",
        "..",
        "",
        "Day",
        "day",
        "x" * 300,
        "x" * 301,
        "ä",
        "\udcff",
    ]
    folders = list(folder_names(names).values())
    assert folders[0] == "coco_2017_val" and folders[2] == "a_b"
    assert len({folder.lower() for folder in folders}) == len(names)
    assert all(re.fullmatch(r"[\w-]{1,100}", folder, re.ASCII) for folder in folders)


def test_the_average_has_names_of_its_own_below_those_of_the_sets() -> None:
    one = {"bbox": {"AP": 1.0}, "speed": 2.0}
    assert of_average(one) == {"ema_bbox": {"AP": 1.0}, "ema_speed": 2.0}
    assert of_average({"a": one, "b": {}}) == {"a": of_average(one), "ema_b": {}}


def test_an_error_in_several_processes_is_one_line(synthetic_data: Path, tmp_path: Path) -> None:
    torch.save({"model": {"weight": torch.zeros(1)}}, tmp_path / "other.pth")
    command = [
        sys.executable,
        "train_net.py",
        "--config-file",
        CONFIG,
        "--data",
        str(synthetic_data),
        "--num-gpus",
        "2",
    ]
    command += [
        "train.device=cpu",
        f"train.output_dir={tmp_path}",
        f"train.init_checkpoint={tmp_path / 'other.pth'}",
    ]
    result = subprocess.run(
        command, cwd=REPOSITORY, env=ENVIRONMENT, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 1
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert "does not fit the model" in line and "Traceback" not in result.stderr


def final_metrics(output_dir: Path) -> dict[str, float]:
    return json.loads((output_dir / "metrics.json").read_text().splitlines()[-1])


@pytest.mark.parametrize(
    ("config", "kind"),
    [
        pytest.param("mask_rcnn_gpvit_l1_1x", "maskrcnn", marks=pytest.mark.slow),
        ("retinanet_gpvit_l1_1x", "retinanet"),
    ],
)
def test_a_published_file_is_evaluated_and_fine_tuned(
    real_data: Path, synthetic_data: Path, tmp_path: Path, config: str, kind: str
) -> None:
    weights, folder = tmp_path / f"gpvit_l1_{kind}_1x.pth", tmp_path / "coco"
    torch.save({"meta": {"epoch": 12}, "state_dict": official.weights(kind, "L1")}, weights)
    content = json.loads((real_data / "coco_val_ccby" / "annotations" / "val.json").read_text())
    content["images"] = content["images"][:2]
    ids = [image["id"] for image in content["images"]]
    content["annotations"] = [item for item in content["annotations"] if item["image_id"] in ids]
    (folder / "annotations").mkdir(parents=True)
    (folder / "annotations" / "val.json").write_text(json.dumps(content))
    (folder / "images").symlink_to(real_data / "coco_val_ccby" / "images")

    def run_published(output: str, *arguments: str) -> nn.Module:
        command = [
            "--config-file",
            str(REPOSITORY / "configs" / "published" / f"{config}.py"),
            "train.device=cpu",
        ]
        command += [
            f"train.init_checkpoint={weights}",
            f"train.output_dir={tmp_path / output}",
            *arguments,
        ]
        command += [
            "dataloader.short_side=64",
            "dataloader.train.num_workers=0",
            "dataloader.test.num_workers=0",
        ]
        return train_net.main(argument_parser().parse_intermixed_args(command))

    run_published("evaluation", "--eval-only", "--data", str(folder))
    results = json.loads((tmp_path / "evaluation" / "coco_instances_results.json").read_text())
    assert {result["image_id"] for result in results} == set(ids) and len(results) > 100
    assert ("segmentation" in results[0]) == (kind == "maskrcnn")

    tiny = ["train.max_iter=1", "train.eval_period=0", "dataloader.train.total_batch_size=2"]
    model = run_published("out", "--data", str(synthetic_data), *tiny)
    log = (tmp_path / "out" / "log.txt").read_text()
    layers = 6 if kind == "maskrcnn" else 2
    assert f"starting afresh: {layers} that depend on the classes" in log
    file = gpvit.checkpoint.read(str(tmp_path / "out" / "model_final.pth"))
    assert file.classes == ["disc", "triangle", "cross"]
    gpvit.checkpoint.load(model, file, file.classes)


def test_registered_data_without_class_names_is_one_line(
    synthetic_data: Path, tmp_path: Path
) -> None:
    config = tmp_path / "bare.py"
    config.write_text(f"""
from detectron2.data import DatasetCatalog
from gpvit.config import load_config

DatasetCatalog.register("bare", lambda: [])
base = load_config({str(REPOSITORY / CONFIG)!r})
model, dataloader, train = base.model, base.dataloader, base.train
dataloader.train.dataset.names = dataloader.test.dataset.names = "bare"
""")
    command = [
        sys.executable,
        "train_net.py",
        "--config-file",
        str(config),
        "--eval-only",
        "train.device=cpu",
    ]
    command += [
        f"train.output_dir={tmp_path / 'out'}",
        f"train.init_checkpoint={tmp_path / 'model.pth'}",
    ]
    gpvit.checkpoint.write(str(tmp_path / "model.pth"), {"weight": torch.zeros(1)}, classes=["cat"])
    result = subprocess.run(
        command, cwd=REPOSITORY, env=ENVIRONMENT, capture_output=True, text=True
    )
    assert result.returncode == 1 and result.stderr.startswith(
        "error: data set bare is registered without"
    ), result.stderr
    assert result.stderr.count("\n") == 1
