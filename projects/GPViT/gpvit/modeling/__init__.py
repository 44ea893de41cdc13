"""Backbones, and parts of detectors that Detectron2 does not have."""

from .backbone import SIZES, GPViT, GPViTAdapter, SimpleFeaturePyramid
from .detectors import ClampedBox2BoxTransform, LastLevelNormP6P7, RetinaNet

__all__ = [
    "SIZES",
    "ClampedBox2BoxTransform",
    "GPViT",
    "GPViTAdapter",
    "LastLevelNormP6P7",
    "RetinaNet",
    "SimpleFeaturePyramid",
]
