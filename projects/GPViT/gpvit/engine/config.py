"""Configs from files and the command line."""

import difflib
import inspect
import os
from collections.abc import Sequence
from pathlib import Path

import detectron2
from detectron2.config import LazyConfig
from detectron2.utils.registry import locate
from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf

from ..errors import UserError


def detectron2_config(path: str) -> DictConfig:
    """One of the configs that come with Detectron2, such as "common/models/mask_rcnn_fpn.py".

    By its path: importing ``detectron2.model_zoo`` needs ``pkg_resources``, which setuptools has dropped.
    """
    return LazyConfig.load(str(Path(detectron2.__file__).parent / "model_zoo" / "configs" / path))


def load_config(path: str, overrides: Sequence[str] = ()) -> DictConfig:
    """Loads a LazyConfig file and applies ``key=value`` overrides.

    Raises:
        UserError: the file is missing, or an override names no key of the config.
    """
    if not os.path.isfile(path):
        raise UserError(f"config file {path or '(none given)'} does not exist; see configs/, and give --config-file")
    cfg = LazyConfig.load(path)
    for override in overrides:
        _check_override(cfg, override)
    try:
        return LazyConfig.apply_overrides(cfg, list(overrides))
    except HydraException as error:
        raise UserError(f"cannot read the overrides: {str(error).splitlines()[0]}") from None


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
