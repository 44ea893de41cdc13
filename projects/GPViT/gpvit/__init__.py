"""GPViT for Detectron2. Importing it registers the backbones."""

import contextlib
import logging
import os
import sys
import warnings

from .utils.environment import set_defaults
from .version import __version__

# What PyTorch says about functions that Detectron2 and older PyTorch need; nothing a user can change.
warnings.filterwarnings("ignore", message="`torch.jit")
warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated")
warnings.filterwarnings("ignore", message="torch.meshgrid: in an upcoming release")
for _name in ("torch.fx._symbolic_trace", "torch.utils.cpp_extension"):
    logging.getLogger(_name).setLevel(logging.ERROR)

set_defaults()  # before PyTorch is imported

# A notebook names its backend in MPLBACKEND, for its children too. Importing matplotlib raises an error
# where there is no such backend, as in another environment; without the variable, matplotlib chooses.
if "matplotlib" not in sys.modules:
    _backend = os.environ.pop("MPLBACKEND", "")
    import matplotlib

    if _backend:
        with contextlib.suppress(ValueError):
            matplotlib.rcParams["backend"] = _backend  # what the import would have done
            os.environ["MPLBACKEND"] = _backend

from . import checkpoint, published
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
]
