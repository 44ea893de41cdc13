"""Values of configs and options are checked before anything starts; errors suggest valid ones."""

import copy
import json
import os
import random
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import train_net
from conftest import REPOSITORY
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from gpvit.cli import analyze, predict, view_attention, view_data, view_results
from gpvit.cli.train import argument_parser
from gpvit.config import load_config, save_config, with_overrides
from gpvit.config.values import KINDS, check_config, kind_of
from gpvit.data import class_names
from gpvit.data.loader import check_batches
from gpvit.utils.errors import UserError
from hypothesis import given, seed, settings
from hypothesis import strategies as st
from omegaconf import DictConfig, OmegaConf

L1 = load_config(str(REPOSITORY / "configs" / "mask_rcnn_gpvit_l1.py"))


def checked(*overrides: str, processes: int = 1) -> DictConfig:
    """Load and check a config with overrides, as train_net.py does."""
    cfg = with_overrides(copy.deepcopy(L1), overrides)
    check_config(cfg, train=True)
    check_batches(cfg, processes)
    return cfg


def error_of(action: Callable[[], object]) -> str:
    with pytest.raises(UserError) as error:
        action()
    assert "\n" not in str(error.value)
    return str(error.value)


def suggested(message: str) -> list[str]:
    """Split the override that a message suggests into words, as a shell does."""
    return shlex.split(re.split(", write |; write |needs quotes: ", message)[1])


INVALID = [
    ("train.max_iter=0", "whole number of iterations, at least 1, got 0", None),
    ("train.max_iter=-5", "got -5", None),
    ("train.max_iter=1e4", "got 10000.0", 10_000),
    ("train.max_iter=10,000", 'got "10,000"', 10_000),
    ('train.max_iter="500"', 'got "500"', 500),
    ("train.max_iter=2.5", "got 2.5", None),
    ("train.max_iter=", 'got ""', None),
    ("train.max_iter=null", "got null", None),
    ("train.max_iter=True", "got True", None),
    ("train.max_iter=[5]", "got [5]", 5),
    ("train.max_iter=range(1,5)", "got ", None),
    ("train.max_iter=${train.nothing}", "'train.nothing' not found", None),
    ("train.eval_period=-1", "at least 0 (0: only at the end), got -1", None),
    ("train.log_period=0", "at least 1", None),
    (
        "train.seed=abc",
        'a whole number, at most 9223372036854775807 (negative: a random seed), got "abc"',
        None,
    ),
    ("train.seed=1.0", "got 1.0", 1),
    (f"train.seed={2**64}", "at most", None),
    (f"train.seed=-{10**400}", "at most", None),
    (f"train.max_iter={10**400}", "at least 1, got 1000", None),
    (f"train.max_iter=1{'0' * 5000}", "at least 1, got", None),
    (f"optimizer.lr={10**400}", "above 0, got 1000", None),
    ("train.deterministic=yes", "must be True or False", True),
    ("train.deterministic=0", "must be True or False, got 0", False),
    ("train.device=gpu", "must be auto, cuda or cpu", "cuda"),
    ("train.device=CUDA", "must be auto, cuda or cpu", "cuda"),
    ("train.device=tpu", "must be auto, cuda or cpu", None),
    ("train.amp=True", "must be a section with keys of its own", None),
    ('train.amp.enabled="False"', "must be True, False or auto", False),
    (
        "train.amp={enabled:maybe}",
        'train.amp.enabled must be True, False or auto, got "maybe"',
        None,
    ),
    ("train.amp.dtype=bf16", "must be bfloat16 or float16", "bfloat16"),
    ("train.amp.dtype=float32", "must be bfloat16 or float16", None),
    ("train.clip_norm=-1", "at least 0 (0: no clipping)", None),
    ("train.clip_norm=inf", "got inf", None),
    ("train.accumulate=0", "at least 1", None),
    ("train.accumulate=3", "does not divide the 32 images that each process has", None),
    ("train.ema_decay=1", "from 0 to below 1", None),
    ("train.skip_budget=-1", "at least 0", None),
    ("train.ddp.find_unused_parameters=1", "must be True or False", True),
    ("train.checkpointer=500", "must be a section", None),
    ("train.checkpointer.period=0", "at least 1", None),
    ("train.patience=2", "needs train.best_metric", None),
    ("train.best_metric=50", "a metric such as segm/AP", "50"),
    ("train.wandb=2024", "a project named 2024 needs quotes", "2024"),
    ("train.wandb=None", 'a project, or "" for none', ""),
    (
        "train.output_dir=20240101",
        "a folder named 20240101 needs quotes: 'train.output_dir=\"20240101\"'",
        "20240101",
    ),
    ("train.output_dir=2024.10", "a folder named 2024.10 needs quotes", "2024.10"),
    ("train.output_dir=true", "a folder named true needs quotes", "true"),
    ("train.output_dir=null", "must be a folder, got null", None),
    ("train.output_dir=", 'must be a folder, got ""', None),
    ("train.output_dir=[a]", "must be a folder", "a"),
    ("train.output_dir={a:1}", "must be a folder", None),
    ("train.output_dir=a${b", "${ begins a reference", None),
    ("train.output_dir=a${b}", "'b' not found", None),
    ("train.init_checkpoint=7", "a file named 7 needs quotes", "7"),
    ("train.init_checkpoint=none", "for random weights", ""),
    (
        "train.init_checkpoint=https://host/x.pth?download=1",
        "needs quotes",
        "https://host/x.pth?download=1",
    ),
    ("dataloader.short_side=0", "pixels from 1 to 10000", None),
    ("dataloader.short_side=none", "pixels from 1 to 10000", None),
    ("dataloader.short_side=[640,800]", "dataloader.train.mapper.augmentations.short_side", None),
    ("dataloader.max_size=100", "is less than dataloader.short_side=800", None),
    ("dataloader.train.total_batch_size=0", "at least 1", None),
    ("dataloader.train.num_workers=-1", "from 0 to 1024", None),
    ("dataloader.test.num_workers=1.5", "from 0 to 1024", None),
    ("dataloader.train.timeout=-1", "at least 0 (seconds)", None),
    ("dataloader.train.dataset.names=5", "a dataset named 5 needs quotes", "5"),
    ("dataloader.train.dataset.names=[]", "a dataset or a list of them, got []", None),
    ("dataloader.train.dataset.names=a,b", "cannot read the override", ["a", "b"]),
    ("dataloader.train.dataset.names=[a,b", "cannot read the override", ["a", "b"]),
    ("dataloader.train.dataset.names=[größe,a=b]", "cannot read the override", ["größe", "a=b"]),
    ("dataloader.train.mapper.image_format=rgb", "must be RGB or BGR", "RGB"),
    (
        "dataloader.train.mapper.augmentations=lsj",
        "must be a list of augmentations, or a section",
        None,
    ),
    ("dataloader.train.mapper.augmentations.recipe=LSJ", "must be resize or lsj", "lsj"),
    ("dataloader.train.mapper.augmentations.flip=50", "from 0 to 1", None),
    ("dataloader.train.mapper.augmentations.flip=0,5", "from 0 to 1", 0.5),
    ("dataloader.train.mapper.use_instance_mask=False", "recompute_boxes=True needs", None),
    ("dataloader.evaluator.tasks=bbox", "a list of bbox, segm and keypoints", ["bbox"]),
    ("dataloader.evaluator.tasks=[bbox,mask]", "a list of bbox, segm and keypoints", None),
    ("dataloader.evaluator.use_fast_impl=no", "must be True or False", False),
    ("dataloader.evaluator.distributed=no", "must be True or False", False),
    ("dataloader.evaluator.allow_cached_coco=off", "must be True or False", False),
    ("dataloader.evaluator.kpt_oks_sigmas=abc", "a list of numbers above 0", None),
    ("dataloader.evaluator.max_dets_per_image=300", "counts more than the 100 detections", 300),
    ("dataloader.test.sampler=abc", "must be a section", None),
    ("optimizer=sgd", "must be a section", None),
    ("optimizer.lr=0", "a number above 0, got 0", None),
    ("optimizer.lr=nan", "got nan", None),
    ("optimizer.lr=1,5e-4", 'got "1,5e-4"', 1.5e-4),
    ('optimizer.lr="0.5"', 'got "0.5"', 0.5),
    ("optimizer.betas=[0.9,1.0]", "from 0 to below 1, got [0.9, 1.0]", None),
    ("optimizer.betas=0.9,0.95", "two numbers, such as [0.9,0.999], from 0", [0.9, 0.95]),
    ("optimizer.betas=[0.9,0.95,0.999]", "two numbers", None),
    ("optimizer.betas=[${nothing},0.9]", "'nothing' not found", None),
    (
        "+optimizer.momentum=0.9",
        "optimizer cannot be built from its values (AdamW.__init__() got",
        None,
    ),
    (
        "+optimizer.rho=anything",
        "optimizer cannot be built from its values (AdamW.__init__() got",
        None,
    ),
    ("optimizer.params.base_lr=null", "optimizer cannot be built from its values (", None),
    (
        "optimizer.params.weight_decay_bias=0.01",
        "optimizer cannot be built from its values (Conflicting",
        None,
    ),
    ("optimizer.weight_decay=-0.1", "at least 0", None),
    ("optimizer.params.lr_factor_func.rate=0", "from above 0 to 1", None),
    ("optimizer.params.overrides.bias.weight_decay=no", "at least 0", None),
    ("lr_multiplier=0.1", "must be a section", None),
    ("lr_multiplier.milestones=[0.9,0.7]", "increasing", None),
    ("lr_multiplier.milestones=0.7", "increasing", [0.7]),
    ("lr_multiplier.milestones=null", "increasing", None),
    (
        "lr_multiplier.milestones=[0.0000001]",
        "lr_multiplier cannot be built from its values (",
        None,
    ),
    ("lr_multiplier.milestones=[0.5,1]", "between 0 and 1, got [0.5, 1]", None),
    ("lr_multiplier.milestones=[21988,43000]", "fractions of train.max_iter", [0.5, 0.9778]),
    ("lr_multiplier.warmup_iters=-1", "at least 0", None),
    ("model.roi_heads.num_classes=many", 'a number, True or False, got "many"', None),
    ("model.pixel_mean=1,2,3", "must be a list", [1, 2, 3]),
    ("train.max_iter.x=1", "no keys below a value", None),
    ("+train.max_iter.x=1", "no keys below a value", None),
    ("+train.note=a,b", "cannot read the override +train.note=a,b", "a,b"),
    ("++train.max_iter=0", "at least 1", None),
    ("+=1", "not of the form key=value", None),
    ("~train.wandb", "not of the form key=value", None),
]


@pytest.mark.parametrize(
    ("override", "message", "meant"), INVALID, ids=[row[0][:50] for row in INVALID]
)
def test_invalid_value_raises_with_suggestion(
    caplog: pytest.LogCaptureFixture, override: str, message: str, meant: Any
) -> None:
    error = error_of(lambda: checked(override))
    assert message in error
    if meant is None:
        assert not caplog.records  # which would be printed in addition to the error
        assert "; write " not in error and "needs quotes" not in error
    else:
        key = override.partition("=")[0].lstrip("+")
        value = OmegaConf.select(checked(*suggested(error)), key)
        assert value is meant or (value == meant and not isinstance(value, bool))


@pytest.mark.parametrize(
    ("overrides", "meant"),
    [
        (["train.output_dir=my", "big", "folder (1)"], "my big folder (1)"),
        (["train.max_iter=10", "000"], 10_000),
        (["train.max_iter=", "5"], 5),
        (["optimizer.lr", "=", "1e-3"], 1e-3),
        (["train.max_iter", "7"], 7),
        (["dataloader.train.dataset.names=[a,", "b]"], ["a", "b"]),
        (["words"], None),
        (["train.seed=1", ""], None),
    ],
)
def test_override_split_by_shell_raises_with_suggestion(overrides: list[str], meant: Any) -> None:
    message = error_of(lambda: checked(*overrides))
    assert "is not of the form key=value" in message
    assert ("; write " in message) == (meant is not None)
    if meant is not None:
        words = suggested(message)
        assert OmegaConf.select(checked(*words), words[0].partition("=")[0]) == meant


VALID = {
    "train.max_iter=1_000": 1000,
    "train.max_iter=${train.checkpointer.period}": 3665,
    "train.eval_period=0": 0,
    "train.seed=-1": -1,
    f"train.seed={2**63 - 1}": 2**63 - 1,
    "train.deterministic=TRUE": True,
    "train.amp.enabled=auto": "auto",
    "train.amp={enabled:false}": {"enabled": False, "dtype": "bfloat16"},
    "train.clip_norm=1": 1,
    "train.ema_decay=0.9998": 0.9998,
    "train.accumulate=4": 4,
    "train.best_metric=segm/AP": "segm/AP",
    "train.best_metric=null": None,
    "train.checkpointer.period=100000000": 10**8,
    "train.wandb=": "",
    "train.output_dir=./out-1/x.y_z": "./out-1/x.y_z",
    "train.output_dir=/tmp/a b/c": "/tmp/a b/c",
    "train.output_dir='20240101'": "20240101",
    "train.output_dir=run_20240101": "run_20240101",
    "train.output_dir=C:\\x": "C:\\x",
    "train.init_checkpoint=https://host/x.pth": "https://host/x.pth",
    "dataloader.train.dataset.names=[a,b]": ["a", "b"],
    "dataloader.train.dataset.names=coco:/tmp/x:train": "coco:/tmp/x:train",
    "dataloader.train.num_workers=0": 0,
    "dataloader.train.timeout=0.5": 0.5,
    "dataloader.test.mapper.augmentations=[]": [],
    "dataloader.train.mapper.augmentations.short_side=[640,672]": [640, 672],
    "dataloader.train.mapper.augmentations.flip=0": 0,
    "dataloader.evaluator.tasks=null": None,
    "optimizer.lr=1e-4": 1e-4,
    "optimizer.lr=.5": 0.5,
    "optimizer.betas=[0.9,0.95]": [0.9, 0.95],
    "optimizer.weight_decay=0": 0,
    "optimizer.fused=null": None,
    "+optimizer.amsgrad=True": True,
    "lr_multiplier.milestones=[]": [],
    "lr_multiplier.warmup_iters=100000": 100_000,
    "model.backbone.net.norm=BN": "BN",
    "model.roi_heads.num_classes=3": 3,
}


@pytest.mark.parametrize(("override", "value"), VALID.items(), ids=VALID)
def test_valid_value_is_accepted(override: str, value: Any) -> None:
    assert OmegaConf.select(checked(override), override.partition("=")[0].lstrip("+")) == value


def output_dir(override: str) -> str:
    cfg = OmegaConf.create({"train": {"output_dir": "out"}})
    return with_overrides(cfg, [override]).train.output_dir


def check_suggested_name(text: str) -> None:
    """An override sets the name of a folder, or raises an error that suggests how to write it."""
    try:
        name = output_dir(f"train.output_dir={text}")
    except UserError as error:
        if "; put quotes around the value" in str(error) or "${" in text:
            return
        if "needs quotes: " not in str(error):
            # Not a name: empty, null, a dict, a list, an unclosed quote; or one without special
            # characters.
            no_name = r"must be a folder, got (\"\"|null|\"n|\{|\[|')|; write train"
            assert re.search(no_name, str(error)), str(error)
            return
        (suggestion,) = suggested(str(error))
        name = output_dir(suggestion)
        meant = text.strip()
        if meant[0] in "'\"":
            meant = meant[1:].removesuffix(meant[0])
        list_of_one = re.fullmatch(r"\[\s*([^\[\],]+?)\s*\]", meant)  # "[a]" stands for "a"
        assert name == meant or (list_of_one is not None and name == list_of_one[1])
    else:
        # Hydra removes the backslash before its special characters, and quotes around the value.
        unescaped = re.sub(r"\\([\\()\[\]{}:=, \t])", r"\1", text.strip())
        unquoted = text.strip()[1:-1].replace("\\'", "'").replace('\\"', '"')
        assert name in (text.strip(), unescaped, unquoted)


@pytest.mark.parametrize(
    "text",
    [
        "my folder (1)", "a=b", "a,b", "(x)", "a{b}", "a[1]", "größe", "日本", "it's", 'say "x"',
        "'a", '"my folder', "a#b", "a&b", "a;b", "a!b", "a<b>", "a`b`", "$(x)", "a\\", "a\\'b",
        "C:\\new folder (x)", "a\\\"", "~x~", "x~", "a\\\\'",
        "1e5", "-1", "+.5", "inf", "NaN", "0x10", "tRue", "1_0", "a:b=c", "?x=1&y=2", "100%", "^",
        "f(x)", "'a=b'", "é ü",
    ],
)  # fmt: skip
def test_suggestion_for_name_is_valid(text: str) -> None:
    check_suggested_name(text)


def test_suggestion_for_random_name_is_valid() -> None:
    rng = random.Random(0)
    characters = "ab01.-_ ,;:=+~'\"\\/()[]{}$#&!*?<>|@%^`äß日e\t"
    for _ in range(300):
        length = rng.randint(1, 12)
        check_suggested_name("".join(rng.choices(characters, k=length)))


@seed(0)
@settings(max_examples=60, deadline=None, database=None)
@given(st.text(st.sampled_from("abtrin.=+~'\"[]{}$@/01, _"), max_size=12), st.text(max_size=6))
def test_any_override_is_applied_or_raises_one_line(key: str, value: str) -> None:
    for override in (f"{key}={value}", f"+{key}={value}", f"train.{key}={value}", key + value):
        cfg = OmegaConf.create(
            {"train": {"output_dir": "out", "sizes": [1], "a": 1}, "b": "${train.a}"}
        )
        try:
            with_overrides(cfg, [override])
        except UserError as error:
            assert "\n" not in str(error)


@pytest.mark.parametrize("suffix", ["py", "yaml"])
@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (
            "train.max_iter",
            1e4,
            "train.max_iter must be .*, got 10000.0; write train.max_iter=10000",
        ),
        (
            "train.output_dir",
            20240101,
            "a folder named 20240101 needs quotes: 'train.output_dir=\"20240101\"'",
        ),
        ("train.output_dir", None, "train.output_dir must be a folder, got null"),
        ("train.seed", "${train.nothing}", "Interpolation key 'train.nothing' not found"),
        ("optimizer.lr", "1e-3x", 'optimizer.lr must be a number above 0, got "1e-3x"'),
        ("optimizer.betas", ["0.9", "0.95"], r"write 'optimizer.betas=\[0.9,0.95\]'"),
        ("train.amp", 1, "train.amp must be a section"),
    ],
)
def test_values_in_config_file_are_checked(
    tmp_path: Path, suffix: str, key: str, value: Any, message: str
) -> None:
    if suffix == "yaml":
        cfg = copy.deepcopy(L1)
        OmegaConf.update(cfg, key, value, merge=False)
        save_config(cfg, str(tmp_path / "config.yaml"))
    else:
        base = REPOSITORY / "configs" / "mask_rcnn_gpvit_l1.py"
        (tmp_path / "config.py").write_text(
            "from detectron2.config import LazyConfig\n"
            "from omegaconf import OmegaConf\n"
            f"cfg = LazyConfig.load({str(base)!r})\n"
            f"OmegaConf.update(cfg, {key!r}, {value!r}, merge=False)\n"
            "dataloader, lr_multiplier = cfg.dataloader, cfg.lr_multiplier\n"
            "model, optimizer, train = cfg.model, cfg.optimizer, cfg.train\n"
        )
    arguments = argument_parser().parse_args(["--config-file", str(tmp_path / f"config.{suffix}")])
    assert re.search(message, error_of(lambda: train_net.configure(arguments)))


@pytest.mark.parametrize(
    ("missing", "needed_for_evaluation"),
    [("train.device", True), ("model", True), ("lr_multiplier", False)],
)
def test_missing_key_raises_if_it_is_required(missing: str, needed_for_evaluation: bool) -> None:
    cfg = copy.deepcopy(L1)
    parent, _, name = missing.rpartition(".")
    del (cfg[parent] if parent else cfg)[name]
    message = f"the config has no {missing};"
    assert message in error_of(lambda: check_config(cfg, train=True))
    if needed_for_evaluation:
        assert message in error_of(lambda: check_config(cfg, train=False))
    else:
        check_config(cfg, train=False)


def test_every_row_of_the_table_matches_a_key() -> None:
    for key in KINDS:
        assert kind_of(key.replace("**", "x").replace("*", "x").replace("#", "0")) is not None


def test_conflicting_optimizer_options_raise() -> None:
    message = error_of(lambda: checked("optimizer.fused=True", "optimizer.foreach=True"))
    assert message.startswith("optimizer cannot be built from its values (")


def test_keys_added_in_later_versions_are_optional() -> None:
    cfg = copy.deepcopy(L1)
    del cfg.train["pictures"], cfg.train["wandb"]
    check_config(cfg, train=True)


def test_path_object_raises_with_suggestion() -> None:
    cfg = copy.deepcopy(L1)
    cfg.train.output_dir = Path("out")
    assert error_of(lambda: check_config(cfg, train=True)).endswith("; write train.output_dir=out")


def test_additional_sections_are_not_checked_unless_referred_to() -> None:
    cfg = OmegaConf.merge(copy.deepcopy(L1), {"mine": {"width": 5, "more": "${..lost}"}})
    cfg.train.max_iter = "${mine.width}"
    check_config(cfg, train=True)
    cfg.train.max_iter = "${mine.more}"
    assert "train.max_iter cannot be resolved" in error_of(lambda: check_config(cfg, train=True))


@pytest.mark.parametrize(
    ("amp", "ddp"),
    [
        ("${train.ddp}", "${train.amp}"),
        ({"more": "${train.ddp}"}, {"more": "${train.amp}"}),
    ],
)
def test_circular_reference_raises(amp: Any, ddp: Any) -> None:
    cfg = copy.deepcopy(L1)
    cfg.train.update(amp=amp, ddp=ddp)
    message = error_of(lambda: check_config(cfg, train=True))
    assert re.search("train.amp.*(is circular|Recursive)", message) and len(message) < 300


def test_batch_size_is_checked_against_processes_in_training_only(
    monkeypatch: pytest.MonkeyPatch, synthetic_data: Path
) -> None:
    checked(processes=8)
    assert "cannot be divided among 3 processes" in error_of(lambda: checked(processes=3))
    message = error_of(lambda: checked("train.accumulate=8", processes=8))
    assert "train.accumulate=8 does not divide the 4 images" in message
    assert message.endswith("it may be 1, 2, 4")
    assert configured("--data", synthetic_data, "--num-gpus", 3, "train.device=cpu", "--eval-only")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert "among 3 processes" in error_of(
        lambda: configured("--data", synthetic_data, "train.device=cpu")
    )


def configured(
    *arguments: object, config: Path = REPOSITORY / "configs" / "quickstart.py"
) -> DictConfig:
    words = ["--config-file", str(config), *map(str, arguments)]
    return train_net.configure(argument_parser().parse_intermixed_args(words))


@pytest.fixture
def registered(tmp_path: Path) -> Iterator[Callable[..., str]]:
    """A function that registers a dataset as in Detectron2's tutorial.

    The class names are in the JSON file only.
    """
    names: list[str] = []

    def register(name: str, classes: list[str]) -> str:
        image = {"id": 1, "file_name": "a.png", "width": 8, "height": 8}
        box = {"bbox": [0, 0, 4, 4], "area": 16, "iscrowd": 0}
        annotation = {"id": 1, "image_id": 1, "category_id": 1} | box
        categories = [{"id": number, "name": label} for number, label in enumerate(classes, 1)]
        content = {"images": [image], "annotations": [annotation], "categories": categories}
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
        register_coco_instances(name, {}, str(tmp_path / f"{name}.json"), str(tmp_path))
        names.append(name)
        return name

    yield register
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def data(train: str, test: str) -> list[str]:
    return [f"dataloader.train.dataset.names={train}", f"dataloader.test.dataset.names={test}"]


@pytest.mark.parametrize(
    ("config", "key", "mode"),
    [
        ("quickstart", "model.roi_heads.num_classes", []),
        ("quickstart", "model.roi_heads.num_classes", ["--eval-only"]),
        ("published/retinanet_gpvit_l1_1x", "model.num_classes", []),
    ],
)
def test_number_of_classes_unlike_dataset_raises(
    registered: Callable[..., str], config: str, key: str, mode: list[str]
) -> None:
    names = data(
        registered("made_up_train", ["a", "b", "c"]), registered("made_up_val", ["a", "b", "c"])
    )
    path = REPOSITORY / "configs" / f"{config}.py"
    message = error_of(lambda: configured(*mode, *names, config=path))
    assert message == f"the model is for 80 classes, the data has 3: {key}=3"
    message = error_of(lambda: configured(*mode, *names, f"{key}=2", config=path))
    assert message == f"the model is for 2 classes, the data has 3: {key}=3"
    assert OmegaConf.select(configured(*mode, *names, f"{key}=3", config=path), key) == 3


@pytest.mark.parametrize(
    ("config", "key"),
    [
        ("quickstart", "model.roi_heads.box_predictor.num_classes"),
        ("quickstart", "model.roi_heads.mask_head.num_classes"),
        ("cascade_mask_rcnn_gpvit_l1", "model.roi_heads.box_predictors.1.num_classes"),
        ("published/retinanet_gpvit_l1_1x", "model.head.num_classes"),
    ],
)
def test_number_of_classes_of_a_head_unlike_dataset_raises(
    synthetic_data: Path, config: str, key: str
) -> None:
    path = REPOSITORY / "configs" / f"{config}.py"
    message = error_of(lambda: configured("--data", synthetic_data, f"{key}=80", config=path))
    assert message == f"the model is for 80 classes, the data has 3: {key}=3"


def test_class_agnostic_mask_head_is_accepted(synthetic_data: Path) -> None:
    configured("--data", synthetic_data, "model.roi_heads.mask_head.num_classes=1")


@pytest.mark.parametrize(
    ("train", "test", "difference"),
    [
        (["a", "b"], ["b", "a"], "from class number 0 on: a, b and b, a"),
        (["a", "b"], ["a", "b", "c"], "from class number 2 on: none and c"),
        (["a", "b"], ["a", "B"], "from class number 1 on: b and B"),
    ],
)
def test_different_classes_in_training_and_validation_data_raise(
    registered: Callable[..., str], train: list[str], test: list[str], difference: str
) -> None:
    names = [registered("made_up_train", train), registered("made_up_val", test)]
    for overrides in (data(*names), data(f"[{','.join(names)}]", names[0])):
        message = error_of(partial(configured, *overrides, "model.roi_heads.num_classes=2"))
        assert "made_up_train and made_up_val have different classes, " in message
        assert difference in message
    configured("--eval-only", *data(*names), f"model.roi_heads.num_classes={len(test)}")


def test_dataset_without_class_names_raises(registered: Callable[..., str], tmp_path: Path) -> None:
    DatasetCatalog.register("made_up_nameless", lambda: [])
    try:
        message = error_of(lambda: configured("--eval-only", *data("x", "made_up_nameless")))
        assert "made_up_nameless is registered without class names" in message
        assert ": add MetadataCatalog.get(" in message
        MetadataCatalog.get("made_up_nameless").thing_classes = ["a", "b"]
        loader = OmegaConf.create({"dataset": {"names": "made_up_nameless"}})
        assert class_names(loader) == ["a", "b"]
    finally:
        DatasetCatalog.remove("made_up_nameless")
        MetadataCatalog.remove("made_up_nameless")
    name = registered("made_up_damaged", ["a"])
    (tmp_path / "made_up_damaged.json").write_text("{")
    assert "made_up_damaged cannot be read (JSONDecodeError" in error_of(
        lambda: configured("--eval-only", *data("x", name))
    )


def test_unknown_best_metric_raises(synthetic_data: Path, tmp_path: Path) -> None:
    arguments = ["--data", synthetic_data, f"train.output_dir={tmp_path / 'out'}"]
    message = error_of(lambda: configured(*arguments, "train.best_metric=segm/APx"))
    assert "segm/APx is none of bbox/AP" in message


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--num-gpus", "0"], "argument --num-gpus: must be a whole number, at least 1, got 0"),
        (["--num-gpus", "-1"], "argument --num-gpus: must be a whole number, at least 1, got -1"),
        (["--num-gpus", "two"], "got two"),
        (["--num-gpus", "1.5"], "got 1.5"),
        (["--num-machines", "0"], "argument --num-machines: must be a whole number, at least 1"),
        (["--machine-rank", "-1"], "argument --machine-rank: must be a whole number, at least 0"),
        (["--dist-url", "localhost:29500"], "argument --dist-url: must be auto or tcp://HOST:PORT"),
        (["--dist-url", "tcp://host"], "argument --dist-url"),
        (["--dist-url", "tcp://host:0"], "argument --dist-url"),
        (["--dist-url", "tcp://host:65536"], "argument --dist-url"),
        (["--dist-url", "tcp://:29500"], "argument --dist-url"),
        (["--dist-url", "tcp://host:port"], "argument --dist-url"),
    ],
)
def test_invalid_option_is_reported_by_argparse(
    capsys: pytest.CaptureFixture, arguments: list[str], message: str
) -> None:
    with pytest.raises(SystemExit) as stop:
        argument_parser().parse_intermixed_args(["--config-file", "x", *arguments])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_valid_options_are_accepted(synthetic_data: Path) -> None:
    for url in (
        "auto",
        "tcp://host:29500",
        "tcp://10.0.0.1:1",
        "tcp://[::1]:65535",
        "file:///shared/x",
        "env://",
    ):
        assert (
            argument_parser().parse_args(["--config-file", "x", "--dist-url", url]).dist_url == url
        )
    options = ["--data", synthetic_data, "--num-machines", 2, "--dist-url", "tcp://host:1"]
    configured(*options, "--machine-rank", 1)
    message = error_of(lambda: configured(*options, "--machine-rank", 2))
    assert message == "--machine-rank 2 must be below --num-machines 2: ranks start at 0"


@pytest.mark.parametrize(
    ("main", "arguments", "message"),
    [
        (
            view_data.main,
            ["--data", "x", "--number", "0"],
            "argument --number: must be a whole number, at least 1, got 0",
        ),
        (
            view_results.main,
            ["--input", "x", "--number", "-2"],
            "argument --number: must be a whole number, at least 1",
        ),
        (
            view_results.main,
            ["--input", "x", "--score-threshold", "nan"],
            "--score-threshold: must be a number from 0 to 1, got nan",
        ),
        (
            view_results.main,
            ["--input", "x", "--score-threshold", "1.5"],
            "--score-threshold: must be a number from 0 to 1, got 1.5",
        ),
        (
            predict.main,
            ["--weights", "x", "--input", "x", "--score-threshold", "50"],
            "--score-threshold: must be a number",
        ),
        (
            predict.main,
            ["--weights", "x", "--input", "x", "--batch-size", "0"],
            "--batch-size: must be a whole number",
        ),
        (
            view_attention.main,
            ["--weights", "x", "--input", "x", "--tokens", "-1"],
            "--tokens: must be a whole number",
        ),
        (
            analyze.main,
            ["--image", "0x512"],
            "--image: must be HEIGHTxWIDTH in pixels, such as 512x512, got 0x512",
        ),
        (analyze.main, ["--image", "512"], "--image: must be HEIGHTxWIDTH"),
    ],
)
def test_invalid_number_for_a_command_is_reported_by_argparse(
    capsys: pytest.CaptureFixture,
    main: Callable[[list[str]], object],
    arguments: list[str],
    message: str,
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.long
def test_invalid_value_starts_no_process_and_writes_no_file(
    synthetic_data: Path, tmp_path: Path
) -> None:
    """The complete command, which would start two processes."""
    config = REPOSITORY / "configs" / "quickstart.py"
    command = [sys.executable, REPOSITORY / "train_net.py", "--config-file", config]
    command += ["--data", synthetic_data, "--num-gpus", "2", "train.device=cpu"]
    result = subprocess.run(
        [*command, "train.output_dir=20240101"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY / "projects" / "GPViT")},
        capture_output=True,
        text=True,
    )
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == (
        "error: train.output_dir must be a folder, got the number 20240101; "
        "a folder named 20240101 needs quotes: 'train.output_dir=\"20240101\"'\n"
    )
    assert not list(tmp_path.iterdir())
