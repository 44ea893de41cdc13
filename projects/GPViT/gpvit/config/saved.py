"""YAML configs of runs and in checkpoints, which are verified before anything in them is called."""

import inspect
import math
import re
from collections.abc import Collection, Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from detectron2.utils.registry import locate
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from ..utils.errors import UserError, preview
from ..utils.text import one_line
from ..utils.yaml_io import read_yaml
from .values import MAX_SIDE

# Functions, classes and keys that had another name in earlier versions: old name -> current name.
# See `renamed` and `update_keys`, applied before names are compared with the tables below.
RENAMED: dict[str, str] = {
    "gpvit.detectors.ClampedBox2BoxTransform": "gpvit.modeling.ClampedBox2BoxTransform",
    "gpvit.detectors.LastLevelNormP6P7": "gpvit.modeling.LastLevelNormP6P7",
    "gpvit.detectors.RetinaNet": "gpvit.modeling.RetinaNet",
    "gpvit.engine.build_train_loader": "gpvit.data.build_train_loader",
    "gpvit.optim.layer_decay": "gpvit.solver.layer_decay",
    "gpvit.optim.multistep_schedule": "gpvit.solver.multistep_schedule",
    "train.checkpointer.best_metric": "train.best_metric",
    "train.checkpointer.patience": "train.patience",
}


def renamed(content: Any) -> Any:
    """Return a saved config with current names of what it calls and, if flattened, of its keys."""
    if isinstance(content, dict):
        return {RENAMED.get(key, key): renamed(value) for key, value in content.items()}
    if isinstance(content, list):
        return list(map(renamed, content))
    return RENAMED.get(content, content) if isinstance(content, str) else content


# Keys that configs of earlier versions lack -> what they did.
ADDED: dict[str, Any] = {"train.compile": False, "train.eval_dtype": "float32"}


def update_keys(cfg: DictConfig) -> None:
    """Give values in a nested config the current names of their keys, and add missing keys."""
    for old, new in RENAMED.items():
        section_key, _, key = old.rpartition(".")
        if section_key.partition(".")[0] not in cfg:
            continue
        section = OmegaConf.select(cfg, section_key)
        if isinstance(section, DictConfig) and key in section:
            OmegaConf.update(cfg, new, section.pop(key))
    for new, value in ADDED.items():
        section_key, _, key = new.partition(".")
        section = cfg.get(section_key)
        if isinstance(section, DictConfig) and key not in section:
            OmegaConf.update(cfg, new, value)


# What a config in a checkpoint may call, by its full name as save_config writes it. Only names are
# trusted, never modules, which contain functions that call or import whatever their arguments name.
# None of these opens or writes a file.
MODELS = frozenset(
    {
        "detectron2.modeling.GeneralizedRCNN",
        "gpvit.modeling.ImageClassifier",
        "gpvit.modeling.RetinaNet",
        "gpvit.modeling.SemanticSegmentor",
    }
)
MAPPERS = frozenset(
    {
        "gpvit.data.ClassificationMapper",
        "gpvit.data.InstanceMapper",
        "gpvit.data.SemanticMapper",
    }
)
MODEL_CALLS = (
    MODELS
    | MAPPERS
    | {
        "detectron2.data.transforms.Resize",
        "detectron2.data.transforms.ResizeShortestEdge",
        "detectron2.layers.ShapeSpec",
        "detectron2.modeling.FPN",
        "detectron2.modeling.FastRCNNOutputLayers",
        "detectron2.modeling.StandardROIHeads",
        "detectron2.modeling.anchor_generator.DefaultAnchorGenerator",
        "detectron2.modeling.backbone.fpn.LastLevelMaxPool",
        "detectron2.modeling.backbone.fpn.LastLevelP6P7",
        "detectron2.modeling.box_regression.Box2BoxTransform",
        "detectron2.modeling.matcher.Matcher",
        "detectron2.modeling.meta_arch.retinanet.RetinaNetHead",
        "detectron2.modeling.meta_arch.semantic_seg.SemSegFPNHead",
        "detectron2.modeling.poolers.ROIPooler",
        "detectron2.modeling.proposal_generator.RPN",
        "detectron2.modeling.proposal_generator.StandardRPNHead",
        "detectron2.modeling.roi_heads.CascadeROIHeads",
        "detectron2.modeling.roi_heads.FastRCNNConvFCHead",
        "detectron2.modeling.roi_heads.MaskRCNNConvUpsampleHead",
        "gpvit.GPViT",
        "gpvit.GPViTAdapter",
        "gpvit.SimpleFeaturePyramid",
        "gpvit.data.CenterCrop",
        "gpvit.data.FitResize",
        "gpvit.data.OpenCVResize",
        "gpvit.data.ResizeShorterSide",
        "gpvit.data.StretchToMultiple",
        "gpvit.modeling.ClampedBox2BoxTransform",
        "gpvit.modeling.LastLevelNormP6P7",
        "gpvit.modeling.SegFormerHead",
        "gpvit.modeling.UPerNetHead",
    }
)


# What the config.yaml of a training run may call in addition. Some take the names of files and
# folders; `_check_arguments` checks these arguments.
RUN_CALLS = MODEL_CALLS | {
    "detectron2.data.build_detection_test_loader",
    "detectron2.data.get_detection_dataset_dicts",
    "detectron2.data.transforms.FixedSizeCrop",
    "detectron2.data.transforms.RandomApply",
    "detectron2.data.transforms.RandomBrightness",
    "detectron2.data.transforms.RandomContrast",
    "detectron2.data.transforms.RandomCrop",
    "detectron2.data.transforms.RandomFlip",
    "detectron2.data.transforms.RandomLighting",
    "detectron2.data.transforms.RandomRotation",
    "detectron2.data.transforms.RandomSaturation",
    "detectron2.data.transforms.ResizeScale",
    "detectron2.modeling.get_vit_lr_decay_rate",
    "detectron2.solver.WarmupParamScheduler",
    "detectron2.solver.get_default_optimizer_params",
    "fvcore.common.param_scheduler.ConstantParamScheduler",
    "fvcore.common.param_scheduler.CosineParamScheduler",
    "fvcore.common.param_scheduler.LinearParamScheduler",
    "fvcore.common.param_scheduler.MultiStepParamScheduler",
    "gpvit.data.CropWithSeveralClasses",
    "gpvit.data.PhotometricDistortion",
    "gpvit.data.RandAugment",
    "gpvit.data.RandomErasing",
    "gpvit.data.RandomResizedCrop",
    "gpvit.data.build_train_loader",
    "gpvit.data.multi_scale_crop",
    "gpvit.data.train_augmentations",
    "gpvit.evaluation.COCOEvaluator",
    "gpvit.evaluation.ClassificationEvaluator",
    "gpvit.evaluation.SemanticEvaluator",
    "gpvit.solver.CosineSchedule",
    "gpvit.solver.LinearSchedule",
    "gpvit.solver.layer_decay",
    "gpvit.solver.multistep_schedule",
    "gpvit.solver.parameter_groups",
    "torch.optim.Adam",
    "torch.optim.AdamW",
    "torch.optim.SGD",
}
MAX_REFERENCES = 1000
MAX_VALUES = 20_000
MAX_LIST = 100  # items; the number of anchors is a product of the lengths of lists
# Limits in the config of a checkpoint for what determines the memory and time that an image takes,
# by the end of the key: "topk" is the limit of "pre_nms_topk".
MAX_NUMBERS = {
    "output_size": 64,
    "resolution": 64,
    "sampling_ratio": 16,
    "square_pad": MAX_SIDE,
    "topk": 10_000,
    "topk_per_image": 10_000,
    "topk_candidates": 10_000,
    "max_detections_per_image": 10_000,
    "stem_convs": 100,  # layers, which are built one by one before their weights are compared
    "num_interactions": 100,
}
_REFERENCE = re.compile(r"\$\{[\w.]+\}")  # ${train.max_iter}, but not ${oc.env:HOME}


def load_yaml(path: str) -> DictConfig:
    """Load the ``config.yaml`` of a run.

    Raises:
        UserError: the file cannot be read, or calls anything but :data:`RUN_CALLS`.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}") from None
    return _from_yaml(text, path, RUN_CALLS)


def config_from_yaml(text: str, path: str) -> DictConfig:
    """Parse a config that :func:`inference_config` wrote, from a checkpoint that is not trusted.

    Args:
        text: YAML.
        path: of the checkpoint, for errors.

    Raises:
        UserError: it is not the config of a detector, or it calls, opens or refers to anything
            else.
    """
    cfg = _from_yaml(text, path, MODEL_CALLS)
    content: Any = OmegaConf.to_container(cfg, resolve=True)
    _check_required(content, path)
    _check_limits(content, path)
    return cfg


def _check_required(content: dict[str, Any], path: str) -> None:
    """Raise a UserError if this is not the config of a detector and its mapper."""
    required = {
        "model._target_": MODELS,
        "dataloader.test.mapper._target_": MAPPERS,
        "dataloader.test.mapper.image_format": {"RGB", "BGR"},
    }
    error = f"{path} is not the config of a detector: "
    for key, allowed in required.items():
        value = _entry(content, key)
        if not isinstance(value, str) or value not in allowed:
            raise UserError(f"{error}{key} must be one of {preview(sorted(allowed))}")
    if not isinstance(_entry(content, "dataloader.test.mapper.augmentations"), list):
        raise UserError(f"{error}dataloader.test.mapper.augmentations must be a list")


def _check_limits(content: dict[str, Any], path: str) -> None:
    """Raise a UserError for values that would exhaust memory or time."""
    for key, value in _values(content):
        if isinstance(value, list) and len(value) > MAX_LIST:
            raise UserError(f"{path}: {key} has {len(value)} items, at most {MAX_LIST} are allowed")
    for key, value in _values(content["model"]):
        limit = _limit(str(key))
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, int | float) and number > limit:
                raise UserError(f"{path}: {key} is {one_line(value)}, at most {limit} is allowed")
    for key, value in _values(content["dataloader"]):
        if isinstance(value, int | float) and abs(value) > MAX_SIDE:
            raise UserError(
                f"{path}: {key} is {value}, and images may be resized to at most {MAX_SIDE} pixels"
            )


def _limit(key: str) -> float:
    for end, limit in MAX_NUMBERS.items():
        if key.endswith(end):
            return limit
    return math.inf


def _entry(content: Any, key: str) -> Any:
    """Return the value of a dotted key in nested dicts; None if there is none."""
    for part in key.split("."):
        content = content.get(part) if isinstance(content, dict) else None
    return content


def _from_yaml(text: str, path: str, calls: Collection[str]) -> DictConfig:
    """Parse a YAML config.

    Args:
        text: YAML.
        path: of the file, for errors.
        calls: full names of what the config may call.

    Raises:
        UserError: it is not a config, or it calls or refers to anything else.
    """
    # Limits what OmegaConf is given, which parses slowly and has its own rules for numbers.
    read_yaml(text, path, MAX_VALUES)
    try:
        cfg: Any = OmegaConf.create(text)
        content = renamed(OmegaConf.to_container(cfg, resolve=False))
        if not isinstance(content, dict):
            raise UserError(f"{path} is not a config")
        _check_calls(content, path, calls)
        _check_references(cfg, path)
    except (YAMLError, OmegaConfBaseException, RecursionError, ValueError, TypeError) as error:
        reason = one_line(error, 500) or type(error).__name__
        raise UserError(f"cannot read {path}: {reason}") from None
    return DictConfig(content, flags={"allow_objects": True})  # as LazyConfig does


def _check_calls(content: dict[Any, Any], path: str, calls: Collection[str]) -> None:
    """Raise a UserError if the config calls anything but ``calls``, or a key is not a string."""
    output_dir = _entry(content, "train.output_dir")
    for _, node in chain([("", content)], _values(content)):
        if not isinstance(node, dict):
            continue
        for key in node:
            if not isinstance(key, str):
                raise UserError(f"{path} has the key {one_line(key)}, and keys must be strings")
        if "_target_" not in node:
            continue
        target = node["_target_"]
        if not isinstance(target, str) or target not in calls:
            raise UserError(
                f"{path} would call {one_line(target)}, which a YAML config may not: give the "
                "config that it was made from (a .py file), or write it as save_config does"
            )
        _check_arguments(node, target, path, {None, "${train.output_dir}", output_dir})


def _check_arguments(
    node: dict[str, Any], target: str, path: str, output_dirs: Collection[Any]
) -> None:
    """Raise a UserError for unknown arguments, and for files to open or folders to write to."""
    parameters = inspect.signature(locate(target)).parameters
    kinds = [parameter.kind for parameter in parameters.values()]
    if inspect.Parameter.VAR_KEYWORD not in kinds:
        unknown = sorted(node.keys() - parameters.keys() - {"_target_"})
        if unknown:
            raise UserError(f"{path}: {target} has no argument {preview(unknown)}")
    # Detectron2 unpickles proposal files. An evaluator may write to the run's output folder only.
    for key, allowed in {"proposal_files": {None}, "output_dir": output_dirs}.items():
        value = node.get(key)
        if not isinstance(value, str | None) or value not in allowed:
            raise UserError(
                f"{path}: {key} of {target} may not be {one_line(value)} in a YAML config"
            )


def _check_references(cfg: DictConfig, path: str) -> None:
    """Raise a UserError for anything that OmegaConf computes, except references to single values.

    A resolver, such as oc.decode, could turn text into targets. A reference to a list of references
    to lists doubles in size with every level.
    """
    references = 0
    content = OmegaConf.to_container(cfg, resolve=False)
    for key, value in _values(content):
        if isinstance(key, str) and "${" in key:
            raise UserError(f"{path} has the key {one_line(key)}, and keys may not refer to others")
        if not isinstance(value, str) or "${" not in value:
            continue
        references += 1
        if not _REFERENCE.fullmatch(value):
            raise UserError(
                f"{path} would compute {one_line(value)}: a YAML config may refer to its own "
                "values only"
            )
        if references > MAX_REFERENCES:
            raise UserError(f"{path} has more than {MAX_REFERENCES} references")
    for node, key in _nodes(cfg):
        if OmegaConf.is_interpolation(node, key) and not _is_single(node[key]):
            raise UserError(
                f"{path}: {one_line(key)} refers to more than a single value or a list of these"
            )


def _nodes(node: Any) -> Iterator[tuple[Any, Any]]:
    """Yield all entries of a config as (container, key), depth first, without following references.

    ``_get_node`` returns an entry without resolving it.
    """
    if not isinstance(node, DictConfig | ListConfig):
        return
    for key in list(node) if isinstance(node, DictConfig) else range(len(node)):
        yield node, key
        if not OmegaConf.is_interpolation(node, key):
            yield from _nodes(node._get_node(key))


def _is_single(value: Any) -> bool:
    """Return whether this is a single value or a short list of single values."""
    if isinstance(value, ListConfig):
        items: Any = OmegaConf.to_container(value, resolve=False)
        return len(items) <= MAX_LIST and all(map(_is_plain, items))
    return not isinstance(value, DictConfig)


def _is_plain(item: Any) -> bool:
    """Return whether a list item is neither a container nor a reference."""
    return not isinstance(item, dict | list) and "${" not in str(item)


def _values(node: Any) -> Iterator[tuple[Any, Any]]:
    """Yield all (key, value) pairs and (index, item) pairs of nested dicts and lists."""
    children: Iterable[tuple[Any, Any]] = ()
    if isinstance(node, dict):
        children = node.items()
    elif isinstance(node, list):
        children = enumerate(node)
    for key, value in children:
        yield key, value
        yield from _values(value)
