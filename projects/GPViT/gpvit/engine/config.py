"""Configs from files and the command line."""

import difflib
import inspect
import math
import os
import re
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import detectron2
from detectron2.config import LazyConfig
from detectron2.layers import ShapeSpec
from detectron2.utils.registry import _convert_target_to_string, locate
from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from ..utils.errors import UserError, listed
from ..utils.files import atomic_write
from ..utils.text import one_line
from ..utils.yaml_io import read_yaml
from .values import A_NUMBER, MAX_SIDE, assignment, check_value, check_values, correction, kind_like, kind_of, parse


def detectron2_config(path: str) -> DictConfig:
    """One of the configs that come with Detectron2, such as "common/models/mask_rcnn_fpn.py".

    By its path: importing ``detectron2.model_zoo`` needs ``pkg_resources``, which setuptools has dropped.
    """
    return LazyConfig.load(str(Path(detectron2.__file__).parent / "model_zoo" / "configs" / path))


def load_config(path: str, overrides: Sequence[str] = ()) -> DictConfig:
    """Loads a config and applies ``key=value`` overrides.

    Args:
        path: a LazyConfig file, which is Python and is run, or what :func:`save_config` wrote, which is only read.
        overrides: in Hydra's notation.

    Raises:
        UserError: the file is missing, is YAML that would run code, or an override names no key of the config, or gives
            text for a number.
    """
    if not os.path.isfile(path):
        raise UserError(f"config file {path or '(none given)'} does not exist; see configs/, and give --config-file")
    return with_overrides(_load_yaml(path) if path.endswith((".yaml", ".yml")) else LazyConfig.load(path), overrides)


def with_overrides(cfg: DictConfig, overrides: Sequence[str]) -> DictConfig:
    """A config with ``key=value`` overrides applied. Raises as :func:`load_config` does."""
    for number, override in enumerate(overrides):
        _check_override(cfg, override, _in_one(overrides, number))
    for override in overrides:
        cfg = _with_override(cfg, override)
    return cfg


def _with_override(cfg: DictConfig, override: str) -> DictConfig:
    as_given, _, written = override.partition("=")
    key = as_given.lstrip("+")
    try:
        before = OmegaConf.select(cfg, key)
    except OmegaConfBaseException:  # a reference that leads nowhere, which the override may replace
        before = None
    kind = kind_of(key) or kind_like(before)
    try:
        parse(override)
    except HydraException:
        correct = correction(kind, as_given, written, written)
        if kind.fits(written) or kind.noun:
            correct = correct or "; put the value in quotes of its own"
            raise UserError(f"cannot read the override {override}{correct}") from None
        raise UserError(f"{key} {kind.fault(written)}{correct}") from None
    try:
        cfg = LazyConfig.apply_overrides(cfg, [override])
        value = OmegaConf.select(cfg, key)
    except KeyError:
        raise UserError(f"override {override}: there are no keys below a value") from None
    except (OmegaConfBaseException, TypeError, ValueError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(f"override {override} cannot be applied: {one_line(reason, 500)}") from None
    if isinstance(value, DictConfig | ListConfig):
        check_values(value, key)
    if kind_of(key) or (kind is A_NUMBER and isinstance(value, str)):
        check_value(key, value, kind, written)
    return cfg


def save_config(cfg: DictConfig, path: str) -> None:
    """Saves a config as plain YAML.

    Raises:
        UserError: it cannot be written; what was there is still there.
    """
    text = _yaml(_plain(OmegaConf.to_container(cfg, resolve=False)))
    with atomic_write(path) as partial:
        partial.write_text(text, encoding="utf-8")


def inference_config(cfg: DictConfig) -> str:
    """What :class:`gpvit.Predictor` needs of a config, as YAML: the model, and how its images are made."""
    everything = _plain(OmegaConf.to_container(cfg, resolve=False))
    data = everything["dataloader"]
    shared = {key: data[key] for key in ("short_side", "max_size", "max_detections") if key in data}
    return _yaml({"model": everything["model"], "dataloader": shared | {"test": {"mapper": data["test"]["mapper"]}}})


def _yaml(content: dict[str, Any]) -> str:
    return OmegaConf.to_yaml(OmegaConf.create(content))


def _plain(node: Any) -> Any:
    """A config without objects: functions and classes by their names."""
    if isinstance(node, ShapeSpec):
        node = {"_target_": ShapeSpec} | {key: value for key, value in vars(node).items() if value is not None}
    if isinstance(node, dict):
        return {key: _plain(value) for key, value in node.items()}
    if isinstance(node, (list, tuple)):
        return [_plain(value) for value in node]
    return _convert_target_to_string(node) if callable(node) else node


# What configs call by names that have changed since they were saved: old name -> present one. Read by `renamed` before
# the tables of names below.
RENAMED: dict[str, str] = {
    "gpvit.detectors.ClampedBox2BoxTransform": "gpvit.modeling.ClampedBox2BoxTransform",
    "gpvit.detectors.LastLevelNormP6P7": "gpvit.modeling.LastLevelNormP6P7",
    "gpvit.detectors.RetinaNet": "gpvit.modeling.RetinaNet",
    "gpvit.optim.layer_decay": "gpvit.solver.layer_decay",
    "gpvit.optim.multistep_schedule": "gpvit.solver.multistep_schedule",
}


def renamed(content: Any) -> Any:
    """A saved config, nested or flattened, with the present names of what it calls."""
    if isinstance(content, dict):
        return {key: renamed(value) for key, value in content.items()}
    if isinstance(content, list):
        return [renamed(value) for value in content]
    return RENAMED.get(content, content) if isinstance(content, str) else content


def flattened(cfg: DictConfig) -> dict[str, str]:
    """A config as text, key by key."""

    def walk(node: Any, key: str) -> None:
        if isinstance(node, dict) and node:
            for name, item in node.items():
                walk(item, f"{key}.{name}" if key else str(name))
        elif isinstance(node, list) and node:
            for number, item in enumerate(node):
                walk(item, f"{key}.{number}")
        else:
            flat[key] = str(node)

    flat: dict[str, str] = {}
    walk(_plain(OmegaConf.to_container(cfg, resolve=True)), "")
    return flat


# What a config in a checkpoint may call, by its full name as save_config writes it. A name is trusted, never a module:
# modules hold functions that call or import whatever their arguments name. Nothing here opens a file or writes one.
DETECTORS = frozenset({"detectron2.modeling.GeneralizedRCNN", "gpvit.modeling.RetinaNet"})
MODEL_CALLS = DETECTORS | {
    "detectron2.data.transforms.Resize",
    "detectron2.data.transforms.ResizeShortestEdge",
    "detectron2.layers.ShapeSpec",
    "detectron2.modeling.FPN",
    "detectron2.modeling.FastRCNNOutputLayers",
    "detectron2.modeling.StandardROIHeads",
    "detectron2.modeling.anchor_generator.DefaultAnchorGenerator",
    "detectron2.modeling.backbone.fpn.LastLevelMaxPool",
    "detectron2.modeling.backbone.fpn.LastLevelP6P7",
    "detectron2.modeling.box_regression.Box2BoxTransform",
    "detectron2.modeling.matcher.Matcher",
    "detectron2.modeling.meta_arch.retinanet.RetinaNetHead",
    "detectron2.modeling.poolers.ROIPooler",
    "detectron2.modeling.proposal_generator.RPN",
    "detectron2.modeling.proposal_generator.StandardRPNHead",
    "detectron2.modeling.roi_heads.CascadeROIHeads",
    "detectron2.modeling.roi_heads.FastRCNNConvFCHead",
    "detectron2.modeling.roi_heads.MaskRCNNConvUpsampleHead",
    "gpvit.GPViT",
    "gpvit.GPViTAdapter",
    "gpvit.SimpleFeaturePyramid",
    "gpvit.data.InstanceMapper",
    "gpvit.data.OpenCVResize",
    "gpvit.modeling.ClampedBox2BoxTransform",
    "gpvit.modeling.LastLevelNormP6P7",
}
# What the config.yaml of a training run may call besides. `_check_calls` looks at their arguments that name files.
RUN_CALLS = MODEL_CALLS | {
    "detectron2.data.build_detection_test_loader",
    "detectron2.data.get_detection_dataset_dicts",
    "detectron2.data.transforms.FixedSizeCrop",
    "detectron2.data.transforms.RandomApply",
    "detectron2.data.transforms.RandomBrightness",
    "detectron2.data.transforms.RandomContrast",
    "detectron2.data.transforms.RandomCrop",
    "detectron2.data.transforms.RandomFlip",
    "detectron2.data.transforms.RandomLighting",
    "detectron2.data.transforms.RandomRotation",
    "detectron2.data.transforms.RandomSaturation",
    "detectron2.data.transforms.ResizeScale",
    "detectron2.modeling.get_vit_lr_decay_rate",
    "detectron2.solver.WarmupParamScheduler",
    "detectron2.solver.get_default_optimizer_params",
    "fvcore.common.param_scheduler.ConstantParamScheduler",
    "fvcore.common.param_scheduler.CosineParamScheduler",
    "fvcore.common.param_scheduler.LinearParamScheduler",
    "fvcore.common.param_scheduler.MultiStepParamScheduler",
    "gpvit.data.multi_scale_crop",
    "gpvit.data.train_augmentations",
    "gpvit.engine.build_train_loader",
    "gpvit.evaluation.COCOEvaluator",
    "gpvit.solver.layer_decay",
    "gpvit.solver.multistep_schedule",
    "torch.optim.Adam",
    "torch.optim.AdamW",
    "torch.optim.SGD",
}
MAX_REFERENCES = 1000
MAX_VALUES = 20_000
MAX_LIST = 100  # items; anchors are made for all levels, sizes and shapes
# The largest values in a config of a checkpoint of what takes memory or time for each image, by the ends of their keys.
MAX_NUMBERS = {"output_size": 64, "resolution": 64, "sampling_ratio": 16, "square_pad": MAX_SIDE, "topk": 10_000}
MAX_NUMBERS |= {"topk_per_image": 10_000, "topk_candidates": 10_000, "max_detections_per_image": 10_000}
_REFERENCE = re.compile(r"\$\{[\w.]+\}")


def _load_yaml(path: str) -> DictConfig:
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}") from None
    return _from_yaml(text, path, RUN_CALLS)


def config_from_yaml(text: str, path: str) -> DictConfig:
    """A config that :func:`inference_config` wrote, from a checkpoint whose author need not be trusted.

    Args:
        text: YAML.
        path: where it comes from, for messages.

    Raises:
        UserError: it is not the config of a detector, or it calls, opens or refers to anything else.
    """
    cfg = _from_yaml(text, path, MODEL_CALLS)
    required = {
        "model._target_": DETECTORS,
        "dataloader.test.mapper._target_": {"gpvit.data.InstanceMapper"},
        "dataloader.test.mapper.image_format": {"RGB", "BGR"},
    }
    content: Any = OmegaConf.to_container(cfg, resolve=True)
    for key, allowed in required.items():
        value = _entry(content, key)
        if not isinstance(value, str) or value not in allowed:
            raise UserError(f"{path} is not the config of a detector: {key} must be one of {listed(sorted(allowed))}")
    if not isinstance(_entry(content, "dataloader.test.mapper.augmentations"), list):
        raise UserError(f"{path} is not the config of a detector: dataloader.test.mapper.augmentations must be a list")
    for key, value in _values(content):
        if isinstance(value, list) and len(value) > MAX_LIST:
            raise UserError(f"{path}: {key} has {len(value)} items, at most {MAX_LIST} are allowed")
    for key, value in _values(content["model"]):
        limit = next((limit for end, limit in MAX_NUMBERS.items() if str(key).endswith(end)), math.inf)
        numbers = value if isinstance(value, list) else [value]
        if any(isinstance(number, int | float) and number > limit for number in numbers):
            raise UserError(f"{path}: {key} is {one_line(value)}, at most {limit} is allowed")
    for key, value in _values(content["dataloader"]):
        if isinstance(value, int | float) and abs(value) > MAX_SIDE:
            raise UserError(f"{path}: {key} is {value}, and images may be resized to at most {MAX_SIDE} pixels")
    return cfg


def _entry(content: Any, key: str) -> Any:
    """The value of a dotted key in nested dicts; None where there is none."""
    for part in key.split("."):
        content = content.get(part) if isinstance(content, dict) else None
    return content


def _from_yaml(text: str, path: str, calls: Collection[str]) -> DictConfig:
    """The config in a YAML text that calls nothing but ``calls``. Raises a UserError for anything else."""
    read_yaml(text, path, MAX_VALUES)  # OmegaConf reads what this accepts, slowly, and by other rules for numbers
    try:
        cfg: Any = OmegaConf.create(text)
        content = renamed(OmegaConf.to_container(cfg, resolve=False))
        if not isinstance(content, dict):
            raise UserError(f"{path} is not a config")
        _check_calls(content, path, calls)
        _check_references(cfg, path)
    except (YAMLError, OmegaConfBaseException, RecursionError, ValueError, TypeError) as error:
        raise UserError(f"cannot read {path}: {one_line(error, 500) or type(error).__name__}") from None
    return DictConfig(content, flags={"allow_objects": True})  # as LazyConfig does


def _check_calls(content: dict[Any, Any], path: str, calls: Collection[str]) -> None:
    output_dir = _entry(content, "train.output_dir")
    for node in [content, *(value for _, value in _values(content))]:
        if not isinstance(node, dict):
            continue
        if strange := [key for key in node if not isinstance(key, str)]:
            raise UserError(f"{path} has the key {one_line(strange[0])}, and keys must be text")
        if "_target_" not in node:
            continue
        target = node["_target_"]
        if not isinstance(target, str) or target not in calls:
            raise UserError(
                f"{path} would call {one_line(target)}, which a YAML config may not: give the config that it was made from "
                "(a .py file), or write it as save_config does"
            )
        _check_arguments(node, target, path, {None, "${train.output_dir}", output_dir})


def _check_arguments(node: dict[str, Any], target: str, path: str, output_dirs: Collection[Any]) -> None:
    """Raises a UserError for arguments that are unknown, or that name a file to open or a folder to write to."""
    parameters = inspect.signature(locate(target)).parameters
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    unknown = [] if takes_any else sorted(node.keys() - parameters.keys() - {"_target_"})
    if unknown:
        raise UserError(f"{path}: {target} has no argument {listed(unknown)}")
    # Detectron2 unpickles proposals. An evaluator writes to where the run does.
    for key, allowed in {"proposal_files": {None}, "output_dir": output_dirs}.items():
        value = node.get(key)
        if not isinstance(value, str | None) or value not in allowed:
            raise UserError(f"{path}: {key} of {target} may not be {one_line(value)} in a YAML config")


def _check_references(cfg: DictConfig, path: str) -> None:
    """Refuses what OmegaConf computes but plain references to single values: resolvers, circles, texts that grow.

    A resolver, such as oc.decode, makes targets of text; a list of references to lists doubles with every level.
    """
    references = 0
    content = OmegaConf.to_container(cfg, resolve=False)
    for key, value in _values(content):
        if isinstance(key, str) and "${" in key:
            raise UserError(f"{path} has the key {one_line(key)}, and keys may not refer to others")
        if not isinstance(value, str) or "${" not in value:
            continue
        references += 1
        if not _REFERENCE.fullmatch(value):
            raise UserError(f"{path} would compute {one_line(value)}: a YAML config may refer to its own values only")
        if references > MAX_REFERENCES:
            raise UserError(f"{path} has more than {MAX_REFERENCES} references")
    for node, key in _nodes(cfg):
        if OmegaConf.is_interpolation(node, key) and not _is_single(node[key]):
            raise UserError(f"{path}: {one_line(key)} refers to more than a single value or a list of these")


def _nodes(node: Any) -> Iterator[tuple[Any, Any]]:
    """All entries of a config, however deep, as their container and key; does not follow references."""
    if not isinstance(node, DictConfig | ListConfig):
        return
    for key in list(node) if isinstance(node, DictConfig) else range(len(node)):
        yield node, key
        if not OmegaConf.is_interpolation(node, key):
            yield from _nodes(node._get_node(key))


def _is_single(value: Any) -> bool:
    """Whether a value is no dict, and if it is a list, a short one of values that are neither lists nor references."""
    if isinstance(value, ListConfig):
        items: list[Any] = OmegaConf.to_container(value, resolve=False)  # type: ignore[assignment]
        return len(items) <= MAX_LIST and not any(isinstance(item, dict | list) or "${" in str(item) for item in items)
    return not isinstance(value, DictConfig)


def _values(node: Any) -> Iterator[tuple[Any, Any]]:
    """All values of a config, however deep, with their keys or numbers."""
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in children:
        yield key, value
        yield from _values(value)


def _in_one(overrides: Sequence[str], number: int) -> str:
    """An override that the shell may have cut into words at its spaces, of which one is given by its number."""
    first = number if number == 0 or "=" not in overrides[number - 1] else number - 1
    last = first + 1
    while last < len(overrides) and ("=" not in overrides[last] or overrides[last].startswith("=")):
        last += 1
    return " ".join(overrides[first:last])


def _check_override(cfg: DictConfig, override: str, in_one: str) -> None:
    """A typo must not pass as a new key. "+key=value" adds one on purpose.

    Args:
        in_one: the override with the words around it that may belong to it.
    """
    key, equals, _ = override.lstrip("+").partition("=")
    if not key or not equals:
        likely, _, written = (part.strip() for part in in_one.partition("=" if "=" in in_one else " "))
        kind = kind_of(likely)
        meant = kind.meant(written, written) if kind and written and override else []
        hint = f"; write {assignment(likely, meant[0])}" if meant else ""
        raise UserError(f"override {override!r} is not of the form key=value{hint}")
    if override.startswith("+"):
        return
    node, parts = cfg, key.split(".")
    for i, part in enumerate(parts):
        known = _known_keys(node)
        if not known:
            raise UserError(f"override {override}: there are no keys below a value, {'.'.join(parts[:i])}")
        if part not in known:
            close = difflib.get_close_matches(part, known, n=1)
            hint = f"did you mean {'.'.join([*parts[:i], close[0]])}?" if close else f"known here: {', '.join(known)}"
            raise UserError(f"override {key}: the config has no {'.'.join(parts[: i + 1])}; {hint}")
        node = OmegaConf.select(node, part)  # None for a parameter that the config leaves out


def _known_keys(node: object) -> list[str]:
    """The keys of a node, and the parameters of the function it calls."""
    if isinstance(node, ListConfig):
        return [str(i) for i in range(len(node))]
    if not isinstance(node, DictConfig):
        return []
    keys = [str(key) for key in node]
    if "_target_" in node:
        target = node["_target_"]
        keys += inspect.signature(locate(target) if isinstance(target, str) else target).parameters
    return keys
