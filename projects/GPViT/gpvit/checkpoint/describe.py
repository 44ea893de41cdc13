"""What weights are of, by their names and shapes."""

from collections.abc import Mapping

from torch import Tensor

from ..modeling import SIZES


def width(weights: Mapping[str, Tensor]) -> int:
    """The channels of the GPViT among the tensors, by whichever names; 0 without one."""
    embeddings = (tensor for key, tensor in weights.items() if key.split(".")[-1] == "pos_embed" and tensor.ndim)
    return next((tensor.shape[-1] for tensor in embeddings), 0)


def size_name(weights: Mapping[str, Tensor]) -> str:
    """ "L1" to "L4" by the channels, "" for others."""
    return next((size for size, options in SIZES.items() if options["embed_dim"] == width(weights)), "")


def architecture(weights: Mapping[str, Tensor]) -> str:
    """What the weights are of, for messages, such as "Mask R-CNN with a simple feature pyramid"."""
    if "pos_embed" in weights:
        return "a backbone alone"
    detectors = {
        "head.": "RetinaNet",
        "roi_heads.box_predictor.0.": "Cascade Mask R-CNN",
        "roi_heads.box_predictor.": "Mask R-CNN",
    }
    names = (name for prefix, name in detectors.items() if any(key.startswith(prefix) for key in weights))
    detector = next(names, "a detector")
    return f"{detector} with {'the adapter' if 'backbone.bottom_up.level_embed' in weights else 'a simple feature pyramid'}"
