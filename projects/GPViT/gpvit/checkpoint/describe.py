"""The kind of model that weights belong to, derived from their names and shapes."""

import re
from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

from ..modeling import SIZES


class Architecture(NamedTuple):
    """A detector architecture, recognized by this project's parameter names.

    Attributes:
        name: for messages.
        prefix: of parameter names that only this architecture has; the first match in
            :data:`ARCHITECTURES` decides.
        class_layers: matches the names of the parameters whose shape depends on the classes.
    """

    name: str
    prefix: str
    class_layers: re.Pattern[str]


# Cascade R-CNN numbers its box predictors: roi_heads.box_predictor.0.cls_score.weight.
_RCNN_LAYERS = re.compile(
    r"roi_heads\.(box_predictor(\.\d)?\.(cls_score|bbox_pred)|mask_head\.predictor)\..*"
)
RETINANET = Architecture("RetinaNet", "head.", re.compile(r"head\.cls_score\..*"))
CASCADE_MASK_RCNN = Architecture("Cascade Mask R-CNN", "roi_heads.box_predictor.0.", _RCNN_LAYERS)
MASK_RCNN = Architecture("Mask R-CNN", "roi_heads.box_predictor.", _RCNN_LAYERS)
# Cascade Mask R-CNN comes before Mask R-CNN, whose prefix matches its names as well.
ARCHITECTURES = (RETINANET, CASCADE_MASK_RCNN, MASK_RCNN)


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
    """Return the detector architecture; None for a backbone alone and for any other model."""
    for candidate in ARCHITECTURES:
        if any(key.startswith(candidate.prefix) for key in weights):
            return candidate
    return None


def architecture(weights: Mapping[str, Tensor]) -> str:
    """Describe the model for messages, for example "Mask R-CNN with a simple feature pyramid"."""
    if "pos_embed" in weights:
        return "a backbone alone"
    detector = architecture_of(weights)
    name = detector.name if detector else "a detector"
    has_adapter = "backbone.bottom_up.level_embed" in weights
    return f"{name} with {'the adapter' if has_adapter else 'a simple feature pyramid'}"
