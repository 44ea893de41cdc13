"""Backbones and what detectors need beside Detectron2's parts."""

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
