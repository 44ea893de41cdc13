"""GPViT, the adapter and the simple feature pyramid. Registers the builders for yacs configs."""

from .adapter import GPViTAdapter
from .build import build_gpvit_backbone, build_gpvit_simple_fpn_backbone
from .gpvit import SIZES, GPViT
from .pyramid import SimpleFeaturePyramid

__all__ = [
    "SIZES",
    "GPViT",
    "GPViTAdapter",
    "SimpleFeaturePyramid",
    "build_gpvit_backbone",
    "build_gpvit_simple_fpn_backbone",
]
