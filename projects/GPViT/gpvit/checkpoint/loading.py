"""Weights from a file into a model that is built, tensor by tensor."""

import logging
import os
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from ..modeling.backbone.gpvit import GPViT
from ..utils.errors import UserError, preview
from ..utils.text import PAGE_LIMIT, PATH_LIMIT, one_line
from .describe import architecture, architecture_of, size_name, width
from .files import File, read, require_weights

logger = logging.getLogger(__name__)


def load(
    model: nn.Module,
    file: str | os.PathLike | File,
    classes: Sequence[str] | None = None,
    *,
    for_training: bool = False,
) -> None:
    """Loads a file into a built model and logs what became of every tensor: loaded, dropped or starting afresh.

    A backbone, such as that of a published ImageNet classifier or segmentation model, goes into the GPViT inside the
    model; all around it starts afresh. A detector must fit the whole model, but for the layers that depend on the
    classes: these start afresh where the classes are others.

    Args:
        model: the model.
        file: a path, an address or what :func:`read` returned.
        classes: names of the classes that the model is for; where these or the file's are unknown, their number decides.
        for_training: whether the model is trained next, so that weights that are NaN or infinite only are a warning.

    Raises:
        UserError: the file cannot be read, does not fit, or has weights that are not finite; the message names the keys, and
            the model is as it was.
    """
    file = file if isinstance(file, File) else read(str(file))
    match = _match(model, file, classes)
    if strange := [name for name, tensor in match.kept.items() if not tensor.isfinite().all()]:
        message = f"{file.path} has weights that are not finite: {preview(strange)}"
        if not for_training:
            raise UserError(f"{message}; use another checkpoint")
        logger.warning(message)
    match.target.load_state_dict(match.kept, strict=not match.may_miss)
    unexpected = classes is None and "that depend on the classes" in match.fresh
    # Who has not said for which classes the model is may not expect it, and need not have set up a log.
    logger.log(logging.WARNING if unexpected else logging.INFO, match.summary)


def require_fit(model: nn.Module, file: File, classes: Sequence[str] | None = None) -> None:
    """Raises as :func:`load` does for a file that does not fit; the model may be on the device "meta"."""
    _match(model, file, classes)


class _Match(NamedTuple):
    """What of a file goes where.

    Attributes:
        target: the part of the model that is loaded.
        kept: the tensors that go into it.
        fresh: names of its tensors that are not in the file, by reason.
        summary: what becomes of every tensor.
    """

    target: nn.Module
    kept: dict[str, Tensor]
    fresh: dict[str, list[str]]
    summary: str

    @property
    def may_miss(self) -> set[str]:
        return {key for keys in self.fresh.values() for key in keys}


def _match(model: nn.Module, file: File, classes: Sequence[str] | None) -> _Match:
    target = _backbone_in(model, file) if file.is_backbone else model
    wanted = target.state_dict()
    _check_kind(file, wanted)
    # Batch norm's step counter: frozen batch norm has none, and nothing here reads it.
    counters = {
        key for key in wanted.keys() ^ file.weights.keys() if key.endswith("num_batches_tracked")
    }
    dropped = {
        "that are not of the backbone": file.dropped,
        "step counters of batch norm": [key for key in file.weights if key in counters],
    }
    fresh = {"step counters of batch norm": [key for key in wanted if key in counters]}
    outside = 0
    if file.is_backbone:
        norms = "out_norms."  # of the maps that leave the backbone, which are not the same ones everywhere
        dropped["norms that the model lacks"] = [
            key for key in file.weights if key.startswith(norms) and key not in wanted
        ]
        fresh["norms that it lacks"] = [
            key for key in wanted if key.startswith(norms + "block") and key not in file.weights
        ]
        outside = len(model.state_dict()) - len(wanted)
    elif layers := _layers_of_other_classes(file, wanted, classes):
        dropped["that belong to other classes"] = fresh["that depend on the classes"] = layers
    gone = {key for keys in dropped.values() for key in keys}
    kept = {key: tensor for key, tensor in file.weights.items() if key not in gone}
    _require_same(
        wanted, kept, file.path, may_miss={key for keys in fresh.values() for key in keys}
    )

    path, total = one_line(file.path, PATH_LIMIT), len(file.weights) + len(file.dropped)
    parts = [f"{file.title} {path}: {len(kept)} of {total} tensors loaded"]
    for what, groups in (("dropped", dropped), ("starting afresh", fresh)):
        counts = {reason: len(keys) for reason, keys in groups.items() if keys}
        if what == "starting afresh" and outside:
            counts["outside of the backbone"] = outside
        if counts:
            parts.append(
                f"{what}: " + ", ".join(f"{count} {reason}" for reason, count in counts.items())
            )
        for reason, keys in groups.items():
            if keys:
                names = one_line(", ".join(keys), PAGE_LIMIT)
                logger.debug(f"{path}, {what}, {reason}: {names}")
    return _Match(target, kept, fresh, "; ".join(parts))


def _backbone_in(model: nn.Module, file: File) -> GPViT:
    backbones = [module for module in model.modules() if isinstance(module, GPViT)]
    if len(backbones) != 1:
        raise UserError(
            f"{file.path} ({file.title}) goes into a GPViT, and the model has {len(backbones)} of them"
        )
    return backbones[0]


def _check_kind(file: File, wanted: Mapping[str, Tensor]) -> None:
    """Raises a UserError if the file is of another kind or size than the model, before keys are compared one by one."""
    if not file.is_backbone and width(wanted) and width(file.weights):
        theirs, ours = architecture(file.weights), architecture(wanted)
        if theirs != ours:
            raise UserError(
                f"{file.path} is {theirs} ({file.title}), the model is {ours}: take the config that the file is for"
            )
    channels, wanted_channels = width(file.weights), width(wanted)
    if channels and wanted_channels and channels != wanted_channels:
        size = f"is {size_name(wanted)} and " if size_name(wanted) else ""
        raise UserError(
            f"{file.path} ({file.title}) has {channels} channels, the model {size}has {wanted_channels}"
        )


def _layers_of_other_classes(
    file: File, wanted: Mapping[str, Tensor], classes: Sequence[str] | None
) -> list[str]:
    """The layers that the file cannot give to the model, since they belong to other classes."""
    kind = architecture_of(wanted)
    layers = [
        key for key in wanted if kind and kind.class_layers.fullmatch(key) and key in file.weights
    ]
    other_shape = [key for key in layers if file.weights[key].shape != wanted[key].shape]
    if classes is None or file.classes is None:
        others = bool(other_shape)
    else:
        others = list(classes) != list(file.classes)
    return (
        [key for key in layers if key in other_shape or not _is_for_any_class(key, wanted)]
        if others
        else []
    )


def _is_for_any_class(key: str, wanted: Mapping[str, Tensor]) -> bool:
    """Whether a layer gives one box for all classes: four outputs beside scores of several classes and the background."""
    scores = wanted[key.replace("bbox_pred", "cls_score")]
    return "bbox_pred" in key and len(wanted[key]) == 4 and len(scores) > 2


def load_strictly(model: nn.Module, weights: Any, path: str) -> None:
    """Copies weights into the model if names and shapes are the same on both sides, else changes nothing.

    Raises:
        UserError: they differ, or these are no weights.
    """
    require_same(model, weights, path)
    model.load_state_dict(weights)


def require_same(model: nn.Module, weights: Any, path: str) -> None:
    """Raises as :func:`load_strictly` does; the model may be on the device "meta"."""
    require_weights(weights, f"cannot use {path}: the state of the model")
    _require_same(model.state_dict(), weights, path)


def _require_same(
    wanted: Mapping[str, Tensor],
    weights: Mapping[str, Tensor],
    path: str,
    may_miss: Collection[str] = (),
) -> None:
    """Raises a UserError for other names or shapes than wanted, but for those that may be missing."""
    problems = {
        "missing": [key for key in wanted if key not in weights and key not in may_miss],
        "surplus": [key for key in weights if key not in wanted],
        "of another shape": [
            f"{key} {tuple(weights[key].shape)} instead of {tuple(tensor.shape)}"
            for key, tensor in wanted.items()
            if key in weights and weights[key].shape != tensor.shape
        ],
    }
    if any(problems.values()):
        details = "; ".join(
            f"{len(keys)} {what} ({preview(keys)})" for what, keys in problems.items() if keys
        )
        raise UserError(f"{path} does not fit the model: {details}")
