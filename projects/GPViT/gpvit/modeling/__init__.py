"""Backbones, heads for semantic segmentation, the classifier, and parts of detectors."""

from .backbone import SIZES, GPViT, GPViTAdapter, SimpleFeaturePyramid
from .classifier import ImageClassifier
from .detectors import ClampedBox2BoxTransform, LastLevelNormP6P7, RetinaNet
from .segmentation import SegFormerHead, SemanticSegmentor, UPerNetHead

__all__ = [
    "SIZES",
    "ClampedBox2BoxTransform",
    "GPViT",
    "GPViTAdapter",
    "ImageClassifier",
    "LastLevelNormP6P7",
    "RetinaNet",
    "SegFormerHead",
    "SemanticSegmentor",
    "SimpleFeaturePyramid",
    "UPerNetHead",
]
