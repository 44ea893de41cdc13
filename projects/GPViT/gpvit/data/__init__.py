"""Datasets, dataset mapper, data loader and augmentations."""

from .classification_mapper import ClassificationMapper
from .classification_transforms import (
    CenterCrop,
    RandAugment,
    RandomErasing,
    RandomResizedCrop,
    ResizeShorterSide,
)
from .datasets.register import (
    check_classes,
    class_names,
    folder_of,
    register_folder,
    require_files,
    set_num_classes,
    use_folder,
)
from .instance_mapper import InstanceMapper
from .loader import build_train_loader
from .semantic_mapper import SemanticMapper
from .semantic_transforms import (
    CropWithSeveralClasses,
    FitResize,
    PhotometricDistortion,
    StretchToMultiple,
)
from .transforms import OpenCVResize, multi_scale_crop, train_augmentations

__all__ = [
    "CenterCrop",
    "ClassificationMapper",
    "CropWithSeveralClasses",
    "FitResize",
    "InstanceMapper",
    "OpenCVResize",
    "PhotometricDistortion",
    "RandAugment",
    "RandomErasing",
    "RandomResizedCrop",
    "ResizeShorterSide",
    "SemanticMapper",
    "StretchToMultiple",
    "build_train_loader",
    "check_classes",
    "class_names",
    "folder_of",
    "multi_scale_crop",
    "register_folder",
    "require_files",
    "set_num_classes",
    "train_augmentations",
    "use_folder",
]
