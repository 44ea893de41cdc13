"""Configs from files and the command line."""

import difflib
import inspect
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import detectron2
from detectron2.config import CfgNode, LazyConfig
from detectron2.layers import ShapeSpec
from detectron2.utils.registry import _convert_target_to_string, locate
from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ..modeling.backbone import build  # noqa: F401 (registers the backbones that yacs configs name)
from ..utils.errors import UserError
from ..utils.files import atomic_write
from ..utils.text import one_line
from .saved import RENAMED, load_yaml, move_keys
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
        raise UserError(
            f"config file {path or '(none given)'} does not exist; see configs/, and give --config-file"
        )
    cfg = load_yaml(path) if path.endswith((".yaml", ".yml")) else LazyConfig.load(path)
    move_keys(cfg)
    return with_overrides(cfg, overrides)


def with_overrides(cfg: DictConfig, overrides: Sequence[str]) -> DictConfig:
    """A config with ``key=value`` overrides applied. Raises as :func:`load_config` does."""
    overrides = [_by_present_name(override) for override in overrides]
    for number, override in enumerate(overrides):
        _check_override(cfg, override, _in_one(overrides, number))
    for override in overrides:
        cfg = _with_override(cfg, override)
    return cfg


def _by_present_name(override: str) -> str:
    written, equals, value = override.partition("=")
    key = written.lstrip("+")
    return written.removesuffix(key) + RENAMED.get(key, key) + equals + value


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
    return _yaml(
        {
            "model": everything["model"],
            "dataloader": shared | {"test": {"mapper": data["test"]["mapper"]}},
        }
    )


def _yaml(content: dict[str, Any]) -> str:
    return OmegaConf.to_yaml(OmegaConf.create(content))


def _plain(node: Any) -> Any:
    """A config without objects: functions and classes by their names."""
    if isinstance(node, ShapeSpec):
        node = {"_target_": ShapeSpec} | {
            key: value for key, value in vars(node).items() if value is not None
        }
    if isinstance(node, dict):
        return {key: _plain(value) for key, value in node.items()}
    if isinstance(node, (list, tuple)):
        return [_plain(value) for value in node]
    return _convert_target_to_string(node) if callable(node) else node


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
        likely, _, written = (
            part.strip() for part in in_one.partition("=" if "=" in in_one else " ")
        )
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
            raise UserError(
                f"override {override}: there are no keys below a value, {'.'.join(parts[:i])}"
            )
        if part not in known:
            close = difflib.get_close_matches(part, known, n=1)
            hint = (
                f"did you mean {'.'.join([*parts[:i], close[0]])}?"
                if close
                else f"known here: {', '.join(known)}"
            )
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


def add_gpvit_config(cfg: CfgNode) -> None:
    """Adds MODEL.GPVIT, which the two registered backbones read. The names are those of the constructors."""
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
