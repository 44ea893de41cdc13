"""GPViT for Detectron2. Importing it registers the backbones."""

from . import checkpoint
from .backbone import SIZES, GPViT
from .pyramid import SimpleFeaturePyramid
from .yacs import add_gpvit_config

__all__ = ["SIZES", "GPViT", "SimpleFeaturePyramid", "add_gpvit_config", "checkpoint"]
__version__ = "0.1.0"
