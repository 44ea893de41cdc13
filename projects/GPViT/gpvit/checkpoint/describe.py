"""The kind of model that weights belong to, derived from their names and shapes."""

import re
from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

from ..modeling import SIZES


class Architecture(NamedTuple):
    """The architecture of a complete model, recognized by this project's parameter names.

    Attributes:
        name: for messages.
        prefix: of parameter names that only this architecture has; the first match in
            :data:`ARCHITECTURES` decides.
        class_layers: matches the names of the parameters whose shape depends on the classes.
        task: "detection", "segmentation" or "classification".
        optional: prefix of the parameters that a file need not have, since they are for training
            only; "" if there are none.
    """

    name: str
    prefix: str
    class_layers: re.Pattern[str]
    task: str = "detection"
    optional: str = ""

    @property
    def is_detector(self) -> bool:
        return self.task == "detection"


# Cascade R-CNN numbers its box predictors: roi_heads.box_predictor.0.cls_score.weight.
_RCNN_LAYERS = re.compile(
    r"roi_heads\.(box_predictor(\.\d)?\.(cls_score|bbox_pred)|mask_head\.predictor)\..*"
)
RETINANET = Architecture("RetinaNet", "head.cls_", re.compile(r"head\.cls_score\..*"))
CASCADE_MASK_RCNN = Architecture("Cascade Mask R-CNN", "roi_heads.box_predictor.0.", _RCNN_LAYERS)
MASK_RCNN = Architecture("Mask R-CNN", "roi_heads.box_predictor.", _RCNN_LAYERS)
_SEGMENTATION_LAYERS = re.compile(r"sem_seg_head\.(auxiliary_)?predictor\..*")
SEGFORMER = Architecture(
    "semantic segmentation with the SegFormer head",
    "sem_seg_head.convs.",
    _SEGMENTATION_LAYERS,
    "segmentation",
)
UPERNET = Architecture(
    "semantic segmentation with the UPerNet head",
    "sem_seg_head.pooled.",
    _SEGMENTATION_LAYERS,
    "segmentation",
    optional="sem_seg_head.auxiliary_",
)
SEMANTIC_FPN = Architecture(
    "semantic segmentation with the semantic FPN head",
    "sem_seg_head.p5.",  # the head names its layers after the levels of the pyramid
    _SEGMENTATION_LAYERS,
    "segmentation",
)
CLASSIFIER = Architecture(
    "an image classifier", "head.weight", re.compile(r"head\.(weight|bias)"), "classification"
)
# Cascade Mask R-CNN comes before Mask R-CNN, whose prefix matches its names as well.
ARCHITECTURES = (
    *(RETINANET, CASCADE_MASK_RCNN, MASK_RCNN),
    *(SEGFORMER, UPERNET, SEMANTIC_FPN),
    CLASSIFIER,
)


def width(weights: Mapping[str, Tensor]) -> int:
    """Return the channels of the GPViT in the weights, official or converted; 0 without one."""
    for key, tensor in weights.items():
        if key.split(".")[-1] == "pos_embed" and tensor.ndim:  # (1, H * W, C)
            return tensor.shape[-1]
    return 0


def size_name(weights: Mapping[str, Tensor]) -> str:
    """Return "L1" to "L4", judging by the number of channels, or "" for any other GPViT."""
    channels = width(weights)
    for size, options in SIZES.items():
        if options["embed_dim"] == channels:
            return size
    return ""


def architecture_of(weights: Mapping[str, Tensor]) -> Architecture | None:
    """Return the architecture; None for a backbone alone and for any other model."""
    for candidate in ARCHITECTURES:
        if any(key.startswith(candidate.prefix) for key in weights):
            return candidate
    return None


def architecture(weights: Mapping[str, Tensor]) -> str:
    """Describe the model for messages, for example "Mask R-CNN with a simple feature pyramid"."""
    if "pos_embed" in weights:
        return "a backbone alone"
    found = architecture_of(weights)
    if found is CLASSIFIER:
        pooling = "attention" if "neck.query" in weights else "mean"
        return f"{found.name} with {pooling} pooling"
    if found and found.task == "segmentation":
        return found.name
    name = found.name if found else "a detector"
    has_adapter = "backbone.bottom_up.level_embed" in weights
    return f"{name} with {'the adapter' if has_adapter else 'a simple feature pyramid'}"
