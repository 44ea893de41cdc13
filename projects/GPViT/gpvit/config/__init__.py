"""LazyConfigs: load them, override and check their values, save them as YAML and read it back."""

from .lazy import (
    CONFIGS,
    add_gpvit_config,
    detectron2_config,
    flattened,
    inference_config,
    load_config,
    save_config,
    with_overrides,
)
from .saved import config_from_yaml, renamed
from .values import check_config

__all__ = [
    "CONFIGS",
    "add_gpvit_config",
    "check_config",
    "config_from_yaml",
    "detectron2_config",
    "flattened",
    "inference_config",
    "load_config",
    "renamed",
    "save_config",
    "with_overrides",
]
