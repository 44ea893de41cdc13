"""Loading the weights of a file into a model, with an account of every tensor."""

import logging
import os
from collections.abc import Collection, Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple

from torch import Tensor, nn

from ..modeling.backbone.gpvit import GPViT
from ..utils.errors import UserError, preview
from ..utils.text import PAGE_LIMIT, PATH_LIMIT, one_line
from .describe import architecture, architecture_of, size_name, width
from .files import File, read, require_weights

logger = logging.getLogger(__name__)

Groups = dict[str, list[str]]  # names of tensors by the reason why they are dropped or initialized
CLASS_DEPENDENT = "that depend on the classes"


def load(
    model: nn.Module,
    file: str | os.PathLike | File,
    classes: Sequence[str] | None = None,
    *,
    for_training: bool = False,
) -> None:
    """Load a file into a model and log which tensors were loaded, dropped or randomly initialized.

    A backbone is loaded into the GPViT inside the model; everything around it stays randomly
    initialized. So is the backbone of a model for another task, such as that of a classifier for a
    detector. A file of the same task must match the complete model, except for the layers that
    depend on the classes: these stay randomly initialized if the classes differ.

    Args:
        model: the model.
        file: a path, an address or the result of :func:`read`.
        classes: class names of the model. If they or those of the file are unknown, the numbers of
            classes are compared.
        for_training: whether the model is trained next, so that weights that are NaN or infinite
            cause a warning only.

    Raises:
        UserError: the file cannot be read, does not fit, or has weights that are not finite. The
            message names the tensors, and the model is unchanged.
    """
    file = file if isinstance(file, File) else read(str(file))
    match = _match(model, file, classes)
    not_finite = [name for name, tensor in match.loaded.items() if not tensor.isfinite().all()]
    if not_finite:
        message = f"{file.path} has weights that are not finite: {preview(not_finite)}"
        if not for_training:
            raise UserError(f"{message}; use another checkpoint")
        logger.warning(message)
    # Names and shapes have been compared; strict loading would refuse the tensors without weights.
    is_complete = not any(match.initialized.values())
    match.target.load_state_dict(match.loaded, strict=is_complete)
    # Without the argument `classes`, random class layers may come as a surprise, and logging may
    # not be configured: Python prints warnings even then.
    is_surprising = classes is None and CLASS_DEPENDENT in match.initialized
    logger.log(logging.WARNING if is_surprising else logging.INFO, match.summary)


def require_fit(model: nn.Module, file: File, classes: Sequence[str] | None = None) -> None:
    """Raise a UserError if :func:`load` would; the model may be on the device "meta"."""
    _match(model, file, classes)


class _Match(NamedTuple):
    """Which tensors of a file are loaded, and where.

    Attributes:
        target: the part of the model that is loaded.
        loaded: the tensors of the file that are loaded, by their names in the target.
        initialized: names of the target's tensors that are not in the file, by reason.
        summary: number of tensors that are loaded, dropped and initialized.
    """

    target: nn.Module
    loaded: dict[str, Tensor]
    initialized: Groups
    summary: str


def _match(model: nn.Module, file: File, classes: Sequence[str] | None) -> _Match:
    theirs, ours = architecture_of(file.weights), architecture_of(model.state_dict())
    # Models for different tasks give each other their backbones.
    if theirs and theirs.task != (ours.task if ours else "detection"):
        file = file.backbone_alone()
    target = _backbone_in(model, file) if file.is_backbone else model
    wanted = target.state_dict()
    _check_kind(file, wanted)
    dropped, initialized = _differences(file, wanted, classes)
    loaded = dict(file.weights)
    for key in chain.from_iterable(dropped.values()):
        loaded.pop(key, None)  # those of file.dropped are not among the weights
    may_miss = set(chain.from_iterable(initialized.values()))
    _require_same(wanted, loaded, file.path, may_miss=may_miss)

    path, total = one_line(file.path, PATH_LIMIT), len(file.weights) + len(file.dropped)
    parts = [f"{file.title} {path}: {len(loaded)} of {total} tensors loaded"]
    num_around = len(model.state_dict()) - len(wanted)
    parts += _count(path, "dropped", dropped)
    parts += _count(path, "randomly initialized", initialized, num_around)
    return _Match(target, loaded, initialized, "; ".join(parts))


def _differences(
    file: File, wanted: Mapping[str, Tensor], classes: Sequence[str] | None
) -> tuple[Groups, Groups]:
    """Return the names of tensors that only the file has, and that only the model has.

    Only differences that are harmless are considered.
    """
    # Frozen batch norm has no step counters, and nothing here uses their values.
    counters, counter = "step counters of batch norm", "num_batches_tracked"
    dropped = {
        "outside the backbone": file.dropped,
        counters: _only_in(file.weights, wanted, suffix=counter),
    }
    initialized = {counters: _only_in(wanted, file.weights, suffix=counter)}
    if file.is_backbone:
        # The norms of the outputs; which outputs a backbone has depends on the model around it.
        # A model that needs the norm of the last output, "out_norms.last_feat", must find it.
        dropped["norms that the model does not have"] = _only_in(
            file.weights, wanted, prefix="out_norms."
        )
        initialized["norms that the file does not have"] = _only_in(
            wanted, file.weights, prefix="out_norms.block"
        )
        return dropped, initialized
    kind = architecture_of(wanted)
    if kind and kind.optional:
        unused = "of the auxiliary head, which inference does not need"
        dropped[unused] = _only_in(file.weights, wanted, prefix=kind.optional)
        initialized[unused] = _only_in(wanted, file.weights, prefix=kind.optional)
    layers = _layers_of_other_classes(file, wanted, classes)
    if layers:
        dropped["that belong to other classes"] = initialized[CLASS_DEPENDENT] = layers
    return dropped, initialized


def _only_in(
    names: Collection[str], others: Collection[str], *, prefix: str = "", suffix: str = ""
) -> list[str]:
    """Return the names with this prefix and suffix that are not among the others."""
    matching = (key for key in names if key.startswith(prefix) and key.endswith(suffix))
    return [key for key in matching if key not in others]


def _count(path: str, action: str, groups: Groups, num_around: int = 0) -> list[str]:
    """Summarize groups of tensors, and log their names at level DEBUG.

    Args:
        path: of the file, for the log.
        action: what happens to the tensors.
        groups: their names, by reason.
        num_around: number of tensors outside the backbone that is loaded, which belong to none.

    Returns:
        a list of one text, such as "dropped: 6 outside the backbone"; empty without tensors.
    """
    counts = []
    for reason, keys in groups.items():
        if keys:
            counts.append(f"{len(keys)} {reason}")
            names = one_line(", ".join(keys), PAGE_LIMIT)
            logger.debug(f"{path}, {action}, {reason}: {names}")
    if num_around:
        counts.append(f"{num_around} outside the backbone")
    return [f"{action}: {', '.join(counts)}"] if counts else []


def _backbone_in(model: nn.Module, file: File) -> GPViT:
    backbones = [module for module in model.modules() if isinstance(module, GPViT)]
    if len(backbones) != 1:
        raise UserError(
            f"{file.path} ({file.title}) contains one GPViT, the model has {len(backbones)} of them"
        )
    return backbones[0]


def _check_kind(file: File, wanted: Mapping[str, Tensor]) -> None:
    """Raise a UserError if the file is of another architecture or size than the model.

    It is shorter than a list of all names that differ.
    """
    channels, wanted_channels = width(file.weights), width(wanted)
    if not file.is_backbone and wanted_channels and channels:
        theirs, ours = architecture(file.weights), architecture(wanted)
        if theirs != ours:
            raise UserError(
                f"{file.path} is {theirs} ({file.title}), the model is {ours}: use the config that "
                "matches the file"
            )
    if channels and wanted_channels and channels != wanted_channels:
        size = f"is {size_name(wanted)} and " if size_name(wanted) else ""
        raise UserError(
            f"{file.path} ({file.title}) has {channels} channels, the model {size}has "
            f"{wanted_channels}"
        )


def _layers_of_other_classes(
    file: File, wanted: Mapping[str, Tensor], classes: Sequence[str] | None
) -> list[str]:
    """Return the tensors that are not loaded because the classes of file and model differ."""
    kind = architecture_of(wanted)
    if kind is None:
        return []
    layers, other_shape = [], set()
    for key, tensor in wanted.items():
        if kind.class_layers.fullmatch(key) and key in file.weights:
            layers.append(key)
            if file.weights[key].shape != tensor.shape:
                other_shape.add(key)
    if classes is None or file.classes is None:
        differ = bool(other_shape)
    else:
        differ = list(classes) != list(file.classes)
    if not differ:
        return []
    return [key for key in layers if key in other_shape or not _is_class_agnostic(key, wanted)]


def _is_class_agnostic(key: str, wanted: Mapping[str, Tensor]) -> bool:
    """Return whether a layer predicts one box for all classes.

    It has four outputs then. So has one with a box for each class if there is a single class,
    where the scores are of two: this class and the background.
    """
    scores = wanted[key.replace("bbox_pred", "cls_score")]
    return "bbox_pred" in key and len(wanted[key]) == 4 and len(scores) > 2


def load_strictly(model: nn.Module, weights: Any, path: str) -> None:
    """Copy weights into a model with the same names and shapes.

    Args:
        model: the model.
        weights: a dict of tensors by name.
        path: where the weights come from, for the error.

    Raises:
        UserError: names or shapes differ, or these are not weights; the model is unchanged.
    """
    require_same(model, weights, path)
    model.load_state_dict(weights)


def require_same(model: nn.Module, weights: Any, path: str) -> None:
    """Raise a UserError if :func:`load_strictly` would; the model may be on the device "meta"."""
    require_weights(weights, f"cannot use {path}: the state of the model")
    _require_same(model.state_dict(), weights, path)


def _require_same(
    wanted: Mapping[str, Tensor],
    weights: Mapping[str, Tensor],
    path: str,
    may_miss: Collection[str] = (),
) -> None:
    """Raise a UserError if names or shapes differ, except for names that may be missing."""
    missing, other_shape = [], []
    for key, tensor in wanted.items():
        if key not in weights:
            if key not in may_miss:
                missing.append(key)
        elif weights[key].shape != tensor.shape:
            other_shape.append(
                f"{key} {tuple(weights[key].shape)} instead of {tuple(tensor.shape)}"
            )
    unexpected = [key for key in weights if key not in wanted]
    problems = {"missing": missing, "unexpected": unexpected, "of another shape": other_shape}
    details = []
    for problem, keys in problems.items():
        if keys:
            details.append(f"{len(keys)} {problem} ({preview(keys)})")
    if details:
        raise UserError(f"{path} does not fit the model: {'; '.join(details)}")
