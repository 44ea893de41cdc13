"""What weights are of, by their names and shapes."""

import re
from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

from ..modeling import SIZES


class Architecture(NamedTuple):
    """A kind of model, by this project's names of tensors.

    name: for messages.
    mark: how names begin that models of this kind have; the first line of :data:`ARCHITECTURES` that fits decides.
    class_layers: the layers whose shape depends on the classes.
    """

    name: str
    mark: str
    class_layers: re.Pattern[str]


_RCNN_LAYERS = re.compile(
    r"roi_heads\.(box_predictor(\.\d)?\.(cls_score|bbox_pred)|mask_head\.predictor)\..*"
)
RETINANET = Architecture("RetinaNet", "head.", re.compile(r"head\.cls_score\..*"))
CASCADE_MASK_RCNN = Architecture("Cascade Mask R-CNN", "roi_heads.box_predictor.0.", _RCNN_LAYERS)
MASK_RCNN = Architecture("Mask R-CNN", "roi_heads.box_predictor.", _RCNN_LAYERS)
ARCHITECTURES = (RETINANET, CASCADE_MASK_RCNN, MASK_RCNN)


def width(weights: Mapping[str, Tensor]) -> int:
    """The channels of the GPViT among the tensors, by whichever names; 0 without one."""
    embeddings = (
        tensor
        for key, tensor in weights.items()
        if key.split(".")[-1] == "pos_embed" and tensor.ndim
    )
    return next((tensor.shape[-1] for tensor in embeddings), 0)


def size_name(weights: Mapping[str, Tensor]) -> str:
    """ "L1" to "L4" by the channels, "" for others."""
    return next(
        (size for size, options in SIZES.items() if options["embed_dim"] == width(weights)), ""
    )


def architecture_of(weights: Mapping[str, Tensor]) -> Architecture | None:
    """The line of :data:`ARCHITECTURES`; None of a backbone alone, and of a model that has none."""
    return next(
        (kind for kind in ARCHITECTURES if any(key.startswith(kind.mark) for key in weights)), None
    )


def architecture(weights: Mapping[str, Tensor]) -> str:
    """What the weights are of, for messages, such as "Mask R-CNN with a simple feature pyramid"."""
    if "pos_embed" in weights:
        return "a backbone alone"
    kind = architecture_of(weights)
    name = kind.name if kind else "a detector"
    return f"{name} with {'the adapter' if 'backbone.bottom_up.level_embed' in weights else 'a simple feature pyramid'}"
