"""GPViT for Detectron2. Importing it registers the backbones."""

import warnings

# What PyTorch says to Detectron2 about functions it still uses; nothing a user can change.
warnings.filterwarnings("ignore", message="`torch.jit")
warnings.filterwarnings("ignore", message="torch.meshgrid: in an upcoming release")

from . import checkpoint
from .backbone import SIZES, GPViT
from .predictor import Predictor
from .pyramid import SimpleFeaturePyramid
from .yacs import add_gpvit_config

__all__ = ["SIZES", "GPViT", "Predictor", "SimpleFeaturePyramid", "add_gpvit_config", "checkpoint"]
__version__ = "0.1.0"
