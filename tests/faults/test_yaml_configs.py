"""Configs round-trip through YAML, and those from untrusted sources cannot do harm.

They neither call functions nor grow without limit.
"""

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

CONFIGS = sorted((REPOSITORY / "configs").glob("*.py"))
CONFIGS += sorted((REPOSITORY / "configs" / "published").glob("*.py"))
MAPPER = (
    "mapper: {_target_: gpvit.data.InstanceMapper, is_train: false, augmentations: [], "
    "image_format: RGB}"
)
GOOD = f"model: {{_target_: gpvit.modeling.RetinaNet}}\ndataloader: {{test: {{{MAPPER}}}}}\n"
# Names of arguments that are a file to open, a location to write to, or code to load.
NAMES_A_FILE = re.compile(
    r"file|path|dir|folder|root|url|weights|checkpoint|module|import|command|proposals?_",
    re.IGNORECASE,
)
# Arguments that contain such a word and are numbers or modules.
HARMLESS = {"drop_path_rate", "proposal_generator", "proposal_matchers", "proposal_append_gt"}
HARMLESS |= {"weights", "loss_weight", "use_act_checkpoint", "get_fed_loss_cls_weights"}
HARMLESS |= {"class_weights"}


def keys_without_kind(content: Any, key: str = "") -> Iterator[str]:
    """The keys whose kind of value is unknown."""
    for name, value in content.items() if isinstance(content, dict) else enumerate(content):
        child = f"{key}.{name}" if key else name
        if kind_of(child) is None and name != "_target_":
            yield child
        has_dicts = isinstance(value, list) and any(isinstance(item, dict) for item in value)
        if isinstance(value, dict) or has_dicts:
            yield from keys_without_kind(value, child)


@pytest.mark.long
@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_config_round_trips_through_yaml(path: Path, tmp_path: Path) -> None:
    """Fails if a new class is missing in the tables of calls, or a new key in that of values."""
    cfg = load_config(str(path))
    check_config(cfg, train=True)
    content = OmegaConf.to_container(cfg, resolve=True)
    checked = {key: content[key] for key in SECTIONS if key != "model"}
    assert not list(keys_without_kind(checked))
    yaml_path = str(tmp_path / "config.yaml")
    save_config(cfg, yaml_path)
    assert flattened(load_config(yaml_path)) == flattened(cfg)
    text = inference_config(cfg)
    assert inference_config(config_from_yaml(text, "the config")) == text


@pytest.mark.parametrize("name", sorted(RUN_CALLS))
def test_callable_is_listed_under_its_canonical_name(name: str) -> None:
    assert _convert_target_to_string(locate(name)) == name


@pytest.mark.parametrize("name", sorted(MODEL_CALLS))
def test_function_that_checkpoint_may_call_has_no_file_argument(name: str) -> None:
    for argument in inspect.signature(locate(name)).parameters.keys() - HARMLESS:
        assert not NAMES_A_FILE.search(argument), argument


def test_checkpoint_config_must_describe_detector() -> None:
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
        (
            GOOD.replace(
                "RetinaNet", "RetinaNet, backbone: {_target_: gpvit.GPViT, stem_convs: 1000000}"
            ),
            "stem_convs is 1000000, at most 100 is allowed",
        ),
        (GOOD.replace("[]", "[{_target_: torch.optim.AdamW}]"), "would call torch.optim.AdamW"),
        (GOOD + "1: 2", "keys must be strings"),
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
EVALUATOR = (
    "train: {output_dir: out}\n"
    "evaluator: {_target_: gpvit.evaluation.COCOEvaluator, dataset_name: x, output_dir: %s}"
)


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
        ("a: " + "x" * 1_000_001, "maximum of 1000000"),
        ("".join(f"k{i}: ${{k}}\n" for i in range(1001)) + "k: 1", "more than 1000 references"),
        ("model: {_target_: {_target_: os.system}}", "would call"),
        ("model: {_target_: [os.system]}", "would call"),
        ("model: {_target_: detectron2.modeling.poolers.ROIPooler.forward}", "would call"),
        ("model: {_target_: ' gpvit.GPViT'}", "would call"),
        ("model: {_target_: gpvit.modeling.GPViT}", "would call"),  # names are compared as written
    ],
    ids=lambda value: value[:60],
)
def test_config_that_opens_writes_or_grows_raises_quickly(
    tmp_path: Path, text: str, message: str
) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    start = time.process_time()
    with pytest.raises(UserError, match=message) as error:
        load_config(str(path))
    assert "\n" not in str(error.value) and len(str(error.value)) < 1000
    assert time.process_time() - start < 20  # without the limits these would take hours


def test_evaluator_may_write_to_output_dir_of_run(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    for value in ("out", "'${train.output_dir}'", "null"):
        path.write_text(EVALUATOR % value)
        assert load_config(str(path)).evaluator.output_dir in ("out", None)
