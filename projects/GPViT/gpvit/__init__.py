"""GPViT for Detectron2. Public names are imported lazily, on first access."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .version import __version__

if TYPE_CHECKING:
    from . import checkpoint, published, streaming
    from .config import add_gpvit_config
    from .modeling import SIZES, GPViT, GPViTAdapter, SimpleFeaturePyramid
    from .predictor import Predictor

__all__ = [
    "SIZES",
    "GPViT",
    "GPViTAdapter",
    "Predictor",
    "SimpleFeaturePyramid",
    "__version__",
    "add_gpvit_config",
    "checkpoint",
    "published",
    "streaming",
]

# Attribute -> the submodule that defines it.
_MODULES = {
    "GPViT": "modeling",
    "GPViTAdapter": "modeling",
    "Predictor": "predictor",
    "SIZES": "modeling",
    "SimpleFeaturePyramid": "modeling",
    "add_gpvit_config": "config",
}


def __getattr__(name: str) -> Any:
    if name in ("checkpoint", "published", "streaming"):
        return import_module(f".{name}", __name__)
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_MODULES[name]}", __name__), name)


def __dir__() -> list[str]:
    return __all__
