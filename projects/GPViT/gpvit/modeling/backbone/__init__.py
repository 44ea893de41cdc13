"""GPViT, its adapter and its pyramid. Importing them registers the builders for Detectron2's older configs."""

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
