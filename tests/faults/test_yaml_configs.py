"""Configs as YAML: what the project writes is read again, and nothing that a stranger writes is called or grows."""

import inspect
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY
from detectron2.utils.registry import _convert_target_to_string, locate
from gpvit.config import config_from_yaml, flattened, inference_config, load_config, save_config
from gpvit.config.saved import MODEL_CALLS, RUN_CALLS
from gpvit.config.values import SECTIONS, check_config, kind_of
from gpvit.utils.errors import UserError
from omegaconf import OmegaConf

CONFIGS = sorted(
    path
    for folder in ("configs", "configs/published")
    for path in (REPOSITORY / folder).glob("*.py")
)
MAPPER = "mapper: {_target_: gpvit.data.InstanceMapper, is_train: false, augmentations: [], image_format: RGB}"
GOOD = f"model: {{_target_: gpvit.modeling.RetinaNet}}\ndataloader: {{test: {{{MAPPER}}}}}\n"
# What an argument is called that names a file to open, a place to write, or code to load.
NAMES_A_FILE = re.compile(
    r"file|path|dir|folder|root|url|weights|checkpoint|module|import|command|proposals?_",
    re.IGNORECASE,
)
# Numbers and modules that such a word is part of.
HARMLESS = {
    "drop_path_rate",
    "proposal_generator",
    "proposal_matchers",
    "proposal_append_gt",
    "weights",
    "loss_weight",
}
HARMLESS |= {"use_act_checkpoint", "get_fed_loss_cls_weights"}


def without_a_row(content: Any, key: str = "") -> Iterator[str]:
    """The keys of which no kind of value is known."""
    for name, value in content.items() if isinstance(content, dict) else enumerate(content):
        child = f"{key}.{name}" if key else name
        if kind_of(child) is None and name != "_target_":
            yield child
        if isinstance(value, dict) or (
            isinstance(value, list) and any(isinstance(item, dict) for item in value)
        ):
            yield from without_a_row(value, child)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_config_is_the_same_after_its_yaml(path: Path, tmp_path: Path) -> None:
    """A class that is new to the configs must enter the table of names, and a key that of values."""
    cfg = load_config(str(path))
    check_config(cfg, train=True)
    content = OmegaConf.to_container(cfg, resolve=True)
    assert not list(without_a_row({key: content[key] for key in SECTIONS if key != "model"}))
    save_config(cfg, str(tmp_path / "config.yaml"))
    assert flattened(load_config(str(tmp_path / "config.yaml"))) == flattened(cfg)
    text = inference_config(cfg)
    assert inference_config(config_from_yaml(text, "the config")) == text


@pytest.mark.parametrize("name", sorted(RUN_CALLS))
def test_a_name_in_the_table_is_how_its_object_is_written(name: str) -> None:
    assert _convert_target_to_string(locate(name)) == name


@pytest.mark.parametrize("name", sorted(MODEL_CALLS))
def test_nothing_that_a_checkpoint_may_call_takes_a_file(name: str) -> None:
    assert not [
        key
        for key in inspect.signature(locate(name)).parameters
        if NAMES_A_FILE.search(key) and key not in HARMLESS
    ]


def test_the_config_of_a_checkpoint_is_that_of_a_detector() -> None:
    config_from_yaml(GOOD, "x")
    for text, message in (
        ("{}", "model._target_ must be one of"),
        ("model: 3\ndataloader: 4", "model._target_ must be one of"),
        ("[1]", "is not a config"),
        ("", "model._target_ must be one of"),
        (GOOD.replace("gpvit.modeling.RetinaNet", "gpvit.GPViT"), "model._target_ must be one of"),
        (GOOD.replace("RGB", "CMYK"), "image_format must be one of BGR, RGB"),
        (GOOD.replace("[]", "{}"), "augmentations must be a list"),
        (GOOD.replace("RGB", "RGB, x: 1"), "InstanceMapper has no argument x"),
        (GOOD.replace("[]", str([0] * 1001)), "1001 items"),
        (GOOD.replace("test:", "short_side: 1000000000, test:"), "at most 10000 pixels"),
        (GOOD.replace("test:", "short_side: 1.0e+9, test:"), "at most 10000 pixels"),
        (
            f"far: 1000000000\n{GOOD}".replace("test:", "short_side: '${far}', test:"),
            "at most 10000 pixels",
        ),
        (GOOD.replace("[]", "[{_target_: torch.optim.AdamW}]"), "would call torch.optim.AdamW"),
        (GOOD + "1: 2", "keys must be text"),
        (
            GOOD.replace("RetinaNet}", "RetinaNet, head: {pre_nms_topk: [1000000, 1]}}"),
            "pre_nms_topk",
        ),
        (
            GOOD.replace("RetinaNet}", "RetinaNet, head: {output_size: 700}}"),
            "output_size is 700, at most 64",
        ),
        (f"x: [{'1, ' * 30_000}]", "more than 20000 values"),
        ("e: '$'\nx: '${e}{oc.env:HOME}'", "refer to its own values only"),
    ):
        with pytest.raises(UserError, match=message) as error:
            config_from_yaml(text, "x")
        assert "\n" not in str(error.value)


LOADER = (
    "dataset: {_target_: detectron2.data.get_detection_dataset_dicts, names: x, proposal_files: %s}"
)
EVALUATOR = "train: {output_dir: out}\nevaluator: {_target_: gpvit.evaluation.COCOEvaluator, dataset_name: x, output_dir: %s}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (LOADER % "[a.pkl]", "proposal_files of .* may not be"),
        (LOADER % "a.pkl", "proposal_files of .* may not be a.pkl"),
        (EVALUATOR % "/etc", "output_dir of .* may not be /etc"),
        (EVALUATOR % "out/../..", "output_dir of .* may not be"),
        (EVALUATOR % "[a]", "output_dir of .* may not be"),
        ("a: ${b}\nb: ${a}", "cannot read"),
        ("a: ${a}", "cannot read"),
        ("a: ${nowhere}", "cannot read"),
        ("a: '${b}${b}'\nb: x", "refer to its own values only"),
        ("a: ${${b}}\nb: x", "refer to its own values only"),
        ("a: ${oc.env:HOME}", "refer to its own values only"),
        ("a: ${b}\nb: {c: 1}", "refers to more than a single value"),
        ("a: ${b}\nb: ['${c}']\nc: 1", "refers to more than a single value"),
        ("'${b}': 1", "keys may not refer"),
        ("a: " + "[" * 60 + "]" * 60, "nested more than 50 levels"),
        ("a: &x 1\nb: *x", "line 1: has an anchor"),
        ("a: " + "x" * 1_000_001, "more than 1000000"),
        ("".join(f"k{i}: ${{k}}\n" for i in range(1001)) + "k: 1", "more than 1000 references"),
        ("model: {_target_: {_target_: os.system}}", "would call"),
        ("model: {_target_: [os.system]}", "would call"),
        ("model: {_target_: detectron2.modeling.poolers.ROIPooler.forward}", "would call"),
        ("model: {_target_: ' gpvit.GPViT'}", "would call"),
        ("model: {_target_: gpvit.modeling.GPViT}", "would call"),  # names are compared as written
    ],
    ids=str,
)
def test_what_opens_or_writes_or_grows_is_one_line_at_once(
    tmp_path: Path, text: str, message: str
) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    start = time.process_time()
    with pytest.raises(UserError, match=message) as error:
        load_config(str(path))
    assert "\n" not in str(error.value) and len(str(error.value)) < 1000
    assert time.process_time() - start < 20  # without the limits these would take hours


def test_an_evaluator_may_write_to_where_the_run_does(tmp_path: Path) -> None:
    for value in ("out", "'${train.output_dir}'", "null"):
        (tmp_path / "config.yaml").write_text(EVALUATOR % value)
        assert load_config(str(tmp_path / "config.yaml")).evaluator.output_dir in ("out", None)
