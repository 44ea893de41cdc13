"""Configs from files and the command line."""

import difflib
import inspect
import os
import re
from collections.abc import Iterator, Sequence
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

from ..errors import UserError


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
    for override in overrides:
        _check_override(cfg, override)
    keys = [override.partition("=")[0] for override in overrides]
    numbers = [key for key in keys if isinstance(OmegaConf.select(cfg, key), (int, float))]
    try:
        cfg = LazyConfig.apply_overrides(cfg, list(overrides))
    except HydraException as error:
        raise UserError(f"cannot read the overrides: {str(error).splitlines()[0]}") from None
    for key in numbers:
        if isinstance(value := OmegaConf.select(cfg, key), str):
            raise UserError(f"override {key}: must be a number, true or false, got {value}")
    return cfg


def save_config(cfg: DictConfig, path: str) -> None:
    """Saves a config as plain YAML."""
    Path(path).write_text(_yaml(_plain(OmegaConf.to_container(cfg, resolve=False))), encoding="utf-8")


def inference_config(cfg: DictConfig) -> str:
    """What :class:`gpvit.Predictor` needs of a config, as YAML: the model, and how its images are made."""
    everything = _plain(OmegaConf.to_container(cfg, resolve=False))
    data = everything["dataloader"]
    sizes = {key: data[key] for key in ("short_side", "max_size") if key in data}
    return _yaml({"model": everything["model"], "dataloader": sizes | {"test": {"mapper": data["test"]["mapper"]}}})


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


# Where what a YAML config calls may come from; elsewhere there are functions that do anything.
TRUSTED = (
    *(f"gpvit.{part}." for part in ("adapter", "backbone", "data", "detectors", "engine.loader", "evaluation", "optim")),
    "gpvit.pyramid.",
    *(f"detectron2.{part}." for part in ("data.build", "data.transforms", "evaluation", "layers", "modeling", "solver")),
    *("torch.optim.", "torch.nn.", "fvcore.common.param_scheduler."),
)


def _load_yaml(path: str) -> DictConfig:
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}") from None
    return config_from_yaml(text, path)


def config_from_yaml(text: str, path: str) -> DictConfig:
    """A config that :func:`save_config` or :func:`inference_config` wrote; only what is trusted can be called by it.

    Args:
        text: YAML.
        path: where it comes from, for messages.

    Raises:
        UserError: it is no config, or would run code.
    """
    try:
        cfg = OmegaConf.create(text)
    except (YAMLError, OmegaConfBaseException) as error:
        raise UserError(f"cannot read {path}: {' '.join(str(error).split())}") from None
    if not isinstance(cfg, DictConfig):
        raise UserError(f"{path} is no config")
    content = OmegaConf.to_container(cfg, resolve=False)
    for key, value in _values(content):
        if key == "_target_" and not _is_trusted(str(value)):
            raise UserError(f"{path} would call {value}: a YAML config may only call what is in {', '.join(TRUSTED)}")
        # Anything but a plain reference calls a resolver, of which oc.decode, for example, makes targets of text.
        if isinstance(value, str) and "${" in re.sub(r"\$\{[\w.]+\}", "", value):
            raise UserError(f"{path} would call {value}: a YAML config may refer to its own values only")
    return DictConfig(content, flags={"allow_objects": True})  # as LazyConfig does


def _is_trusted(target: str) -> bool:
    """Whether what a name stands for comes from a trusted module, whatever module it is named by."""
    if target.partition(".")[0] not in {prefix.partition(".")[0] for prefix in TRUSTED}:
        return False  # looking for it would import it
    try:
        found = locate(target)
    except Exception:
        return False
    return f"{getattr(found, '__module__', '')}.".startswith(TRUSTED)


def _values(node: Any) -> Iterator[tuple[Any, Any]]:
    """All values of a config, however deep, with their keys or numbers."""
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in children:
        yield key, value
        yield from _values(value)


def _check_override(cfg: DictConfig, override: str) -> None:
    """A typo must not pass as a new key. "+key=value" adds one on purpose."""
    if override.startswith("+"):
        return
    key, equals, _ = override.partition("=")
    if not equals:
        raise UserError(f"override {override!r} is not of the form key=value")
    node, parts = cfg, key.split(".")
    for i, part in enumerate(parts):
        known = _known_keys(node)
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
