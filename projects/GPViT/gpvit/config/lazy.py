"""Loading configs from files, applying overrides from the command line, and saving them."""

import difflib
import inspect
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import detectron2
from detectron2.config import CfgNode, LazyConfig
from detectron2.config.lazy import _CFG_PACKAGE_NAME
from detectron2.layers import ShapeSpec
from detectron2.utils.registry import _convert_target_to_string, locate
from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ..modeling.backbone import build  # noqa: F401 (registers the backbones that yacs configs name)
from ..utils.errors import UserError
from ..utils.files import atomic_write
from ..utils.text import one_line
from .saved import RENAMED, load_yaml, update_keys
from .values import (
    A_NUMBER,
    assignment,
    check_value,
    check_values,
    correction,
    kind_like,
    kind_of,
    parse,
)

CONFIGS = Path(__file__).resolve().parents[4] / "configs"  # of this repository


def detectron2_config(path: str) -> DictConfig:
    """Load a config that comes with Detectron2, such as "common/models/mask_rcnn_fpn.py".

    ``detectron2.model_zoo.get_config`` is not used, since importing it needs ``pkg_resources``,
    which setuptools has removed.
    """
    return LazyConfig.load(str(Path(detectron2.__file__).parent / "model_zoo" / "configs" / path))


def load_config(path: str, overrides: Sequence[str] = ()) -> DictConfig:
    """Load a config and apply ``key=value`` overrides.

    Args:
        path: a LazyConfig file, which is Python and is executed, or a YAML file that
            :func:`save_config` wrote, which is only read.
        overrides: in Hydra's syntax.

    Raises:
        UserError: the file is missing, is YAML that would run code, or an override has an unknown
            key or a value of the wrong type.
    """
    if not os.path.isfile(path):
        raise UserError(
            f"config file {path or '(none given)'} does not exist; see configs/, and give "
            "--config-file"
        )
    cfg = load_yaml(path) if path.endswith((".yaml", ".yml")) else LazyConfig.load(path)
    update_keys(cfg)
    return with_overrides(cfg, overrides)


def with_overrides(cfg: DictConfig, overrides: Sequence[str]) -> DictConfig:
    """Return a config with ``key=value`` overrides applied. Raise as :func:`load_config` does."""
    overrides = list(map(_with_current_key, overrides))
    # All keys are checked before any override is applied.
    for index, override in enumerate(overrides):
        _check_override(cfg, override, _joined(overrides, index))
    for override in overrides:
        cfg = _with_override(cfg, override)
    return cfg


def _with_current_key(override: str) -> str:
    """Replace a key of an earlier version by its current name."""
    written, equals, value = override.partition("=")
    key = written.lstrip("+")  # "+key=value" adds a key
    return written.removesuffix(key) + RENAMED.get(key, key) + equals + value


def _with_override(cfg: DictConfig, override: str) -> DictConfig:
    written_key, _, written = override.partition("=")
    key = written_key.lstrip("+")
    try:
        before = OmegaConf.select(cfg, key)
    except OmegaConfBaseException:  # a broken reference, which the override may replace
        before = None
    kind = kind_of(key) or kind_like(before)
    try:
        parse(override)
    except HydraException:
        hint = correction(kind, written_key, written, written)
        # Either Hydra's syntax is the only problem, or any text would be allowed.
        if kind.fits(written) or kind.noun:
            hint = hint or "; put quotes around the value"
            raise UserError(f"cannot read the override {override}{hint}") from None
        raise UserError(f"{key} {kind.fault(written)}{hint}") from None
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
    """Save a config as plain YAML, atomically.

    Raises:
        UserError: the file cannot be written; an existing file is intact.
    """
    text = _yaml(_plain(OmegaConf.to_container(cfg, resolve=False)))
    with atomic_write(path) as partial:
        partial.write_text(text, encoding="utf-8")


def inference_config(cfg: DictConfig) -> str:
    """Return as YAML what :class:`gpvit.Predictor` needs: the model and the test-time mapper."""
    everything = _plain(OmegaConf.to_container(cfg, resolve=False))
    data = everything["dataloader"]
    dataloader = {}
    # Keys that the model and the mapper refer to.
    for key in ("short_side", "max_size", "crop_size", "max_detections"):
        if key in data:
            dataloader[key] = data[key]
    dataloader["test"] = {"mapper": data["test"]["mapper"]}
    return _yaml({"model": everything["model"], "dataloader": dataloader})


def _yaml(content: dict[str, Any]) -> str:
    return OmegaConf.to_yaml(OmegaConf.create(content))


def _plain(node: Any) -> Any:
    """Return a config of plain values: functions and classes are replaced by their full names."""
    if isinstance(node, ShapeSpec):
        call: dict[str, Any] = {"_target_": ShapeSpec}
        for name, value in vars(node).items():
            if value is not None:
                call[name] = value
        node = call
    if isinstance(node, dict):
        return {key: _plain(value) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return list(map(_plain, node))
    if not callable(node):
        return node
    # LazyConfig executes a file without a module name, which the functions in it therefore lack;
    # files that it imports have a random one after this prefix, which has no public name.
    is_in_config = not node.__module__ or node.__module__.startswith(_CFG_PACKAGE_NAME)
    return node.__qualname__ if is_in_config else _convert_target_to_string(node)


def flattened(cfg: DictConfig) -> dict[str, str]:
    """Return all values of a config as text, by dotted keys such as "train.amp.dtype"."""

    def walk(node: Any, key: str) -> None:
        if isinstance(node, dict) and node:
            for name, item in node.items():
                walk(item, f"{key}.{name}" if key else str(name))
        elif isinstance(node, list) and node:
            for index, item in enumerate(node):
                walk(item, f"{key}.{index}")
        else:
            flat[key] = str(node)

    flat: dict[str, str] = {}
    walk(_plain(OmegaConf.to_container(cfg, resolve=True)), "")
    return flat


def _joined(overrides: Sequence[str], index: int) -> str:
    """Return an override that the shell may have split at its spaces, as one text.

    It is the given word with its neighbors: ["output_dir=my", "big", "folder"] is one override, and
    so is ["lr", "=", "0.1"].
    """
    first = index
    if index > 0 and "=" in overrides[index - 1]:
        first = index - 1  # its value may continue in this word
    last = first + 1
    while last < len(overrides) and ("=" not in overrides[last] or overrides[last].startswith("=")):
        last += 1
    return " ".join(overrides[first:last])


def _check_override(cfg: DictConfig, override: str, joined: str) -> None:
    """Raise a UserError for an unknown key, so that a typo does not add a new one.

    "+key=value" adds a key explicitly.

    Args:
        cfg: the config.
        override: one word of the command line.
        joined: the override with the words next to it that may belong to it.
    """
    key, equals, _ = override.lstrip("+").partition("=")
    if not key or not equals:
        separator = "=" if "=" in joined else " "
        likely_key, _, written = map(str.strip, joined.partition(separator))
        kind = kind_of(likely_key)
        meant = kind.meant(written, written) if kind and written and override else []
        hint = f"; write {assignment(likely_key, meant[0])}" if meant else ""
        raise UserError(f"override {override!r} is not of the form key=value{hint}")
    if override.startswith("+"):
        return
    node, parts = cfg, key.split(".")
    for depth, part in enumerate(parts):
        parent = ".".join(parts[:depth])
        known = _known_keys(node)
        if not known:
            raise UserError(f"override {override}: there are no keys below a value, {parent}")
        if part not in known:
            similar = difflib.get_close_matches(part, known, n=1)
            hint = f"known here: {', '.join(known)}"
            if similar:
                hint = f"did you mean {'.'.join([*parts[:depth], similar[0]])}?"
            missing = ".".join(parts[: depth + 1])
            raise UserError(f"override {key}: the config has no {missing}; {hint}")
        node = OmegaConf.select(node, part)  # None for a parameter that the config does not set


def _known_keys(node: object) -> list[str]:
    """Return the keys of a node, and the parameters of the function that it calls."""
    if isinstance(node, ListConfig):
        return list(map(str, range(len(node))))
    if not isinstance(node, DictConfig):
        return []
    keys = list(map(str, node))
    if "_target_" in node:
        target = node["_target_"]
        keys += inspect.signature(locate(target) if isinstance(target, str) else target).parameters
    return keys


def add_gpvit_config(cfg: CfgNode) -> None:
    """Add the options of the registered backbones and of ImageClassifier to a yacs config.

    Each option in MODEL.GPVIT and MODEL.CLASSIFIER is the constructor argument of the same name.
    """
    cfg.MODEL.GPVIT = CfgNode()
    cfg.MODEL.GPVIT.SIZE = "L1"
    cfg.MODEL.GPVIT.DROP_PATH_RATE = 0.1
    cfg.MODEL.GPVIT.NORM = "SyncBN"
    cfg.MODEL.GPVIT.FINAL_NORM = True
    cfg.MODEL.GPVIT.OUT_FEATURES = ["last_feat"]
    cfg.MODEL.GPVIT.USE_ACT_CHECKPOINT = False
    cfg.MODEL.GPVIT.FROZEN_BLOCKS = 0
    cfg.MODEL.GPVIT.PYRAMID = CfgNode()
    cfg.MODEL.GPVIT.PYRAMID.OUT_CHANNELS = 256
    cfg.MODEL.GPVIT.PYRAMID.SCALE_FACTORS = [2.0, 1.0, 0.5, 0.25]
    cfg.MODEL.GPVIT.PYRAMID.NORM = "LN"
    cfg.MODEL.GPVIT.PYRAMID.SQUARE_PAD = 0
    cfg.MODEL.CLASSIFIER = CfgNode()
    cfg.MODEL.CLASSIFIER.NUM_CLASSES = 1000
    cfg.MODEL.CLASSIFIER.POOLING = "attention"
    cfg.MODEL.CLASSIFIER.NUM_HEADS = 6
    cfg.MODEL.CLASSIFIER.LABEL_SMOOTHING = 0.0
    cfg.MODEL.CLASSIFIER.MIXUP = 0.0
    cfg.MODEL.CLASSIFIER.CUTMIX = 0.0
    cfg.MODEL.CLASSIFIER.LINEAR_PROBING = False
