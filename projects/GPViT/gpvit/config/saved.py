"""Configs in YAML, which nobody need trust: those of runs and those in checkpoints."""

import inspect
import math
import re
from collections.abc import Collection, Iterator
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

# What has another name than in configs of before: functions and classes, and keys. Old name -> present one, see `renamed`
# and `move_keys`; what a config calls is compared with the tables of names below after that.
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
    """A saved config with the present names of what it calls and, if it is flattened, of its keys."""
    if isinstance(content, dict):
        return {RENAMED.get(key, key): renamed(value) for key, value in content.items()}
    if isinstance(content, list):
        return [renamed(value) for value in content]
    return RENAMED.get(content, content) if isinstance(content, str) else content


def move_keys(cfg: DictConfig) -> None:
    """Gives values in a nested config the present names of their keys."""
    for old, new in RENAMED.items():
        section, _, key = old.rpartition(".")
        place = OmegaConf.select(cfg, section) if section.partition(".")[0] in cfg else None
        if isinstance(place, DictConfig) and key in place:
            OmegaConf.update(cfg, new, place.pop(key))


# What a config in a checkpoint may call, by its full name as save_config writes it. A name is trusted, never a module:
# modules hold functions that call or import whatever their arguments name. Nothing here opens a file or writes one.
DETECTORS = frozenset({"detectron2.modeling.GeneralizedRCNN", "gpvit.modeling.RetinaNet"})
MODEL_CALLS = DETECTORS | {
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
    "detectron2.modeling.poolers.ROIPooler",
    "detectron2.modeling.proposal_generator.RPN",
    "detectron2.modeling.proposal_generator.StandardRPNHead",
    "detectron2.modeling.roi_heads.CascadeROIHeads",
    "detectron2.modeling.roi_heads.FastRCNNConvFCHead",
    "detectron2.modeling.roi_heads.MaskRCNNConvUpsampleHead",
    "gpvit.GPViT",
    "gpvit.GPViTAdapter",
    "gpvit.SimpleFeaturePyramid",
    "gpvit.data.InstanceMapper",
    "gpvit.data.OpenCVResize",
    "gpvit.modeling.ClampedBox2BoxTransform",
    "gpvit.modeling.LastLevelNormP6P7",
}


# What the config.yaml of a training run may call besides. `_check_calls` looks at their arguments that name files.
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
    "gpvit.data.build_train_loader",
    "gpvit.data.multi_scale_crop",
    "gpvit.data.train_augmentations",
    "gpvit.evaluation.COCOEvaluator",
    "gpvit.solver.layer_decay",
    "gpvit.solver.multistep_schedule",
    "torch.optim.Adam",
    "torch.optim.AdamW",
    "torch.optim.SGD",
}
MAX_REFERENCES = 1000
MAX_VALUES = 20_000
MAX_LIST = 100  # items; anchors are made for all levels, sizes and shapes
# The largest values in a config of a checkpoint of what takes memory or time for each image, by the ends of their keys.
MAX_NUMBERS = {
    "output_size": 64,
    "resolution": 64,
    "sampling_ratio": 16,
    "square_pad": MAX_SIDE,
    "topk": 10_000,
}
MAX_NUMBERS |= {
    "topk_per_image": 10_000,
    "topk_candidates": 10_000,
    "max_detections_per_image": 10_000,
}
_REFERENCE = re.compile(r"\$\{[\w.]+\}")


def load_yaml(path: str) -> DictConfig:
    """The ``config.yaml`` of a run. Raises a UserError if it cannot be read, or calls what is in no table."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}") from None
    return _from_yaml(text, path, RUN_CALLS)


def config_from_yaml(text: str, path: str) -> DictConfig:
    """A config that :func:`inference_config` wrote, from a checkpoint whose author need not be trusted.

    Args:
        text: YAML.
        path: where it comes from, for messages.

    Raises:
        UserError: it is not the config of a detector, or it calls, opens or refers to anything else.
    """
    cfg = _from_yaml(text, path, MODEL_CALLS)
    required = {
        "model._target_": DETECTORS,
        "dataloader.test.mapper._target_": {"gpvit.data.InstanceMapper"},
        "dataloader.test.mapper.image_format": {"RGB", "BGR"},
    }
    content: Any = OmegaConf.to_container(cfg, resolve=True)
    for key, allowed in required.items():
        value = _entry(content, key)
        if not isinstance(value, str) or value not in allowed:
            raise UserError(
                f"{path} is not the config of a detector: {key} must be one of {preview(sorted(allowed))}"
            )
    if not isinstance(_entry(content, "dataloader.test.mapper.augmentations"), list):
        raise UserError(
            f"{path} is not the config of a detector: dataloader.test.mapper.augmentations must be a list"
        )
    for key, value in _values(content):
        if isinstance(value, list) and len(value) > MAX_LIST:
            raise UserError(f"{path}: {key} has {len(value)} items, at most {MAX_LIST} are allowed")
    for key, value in _values(content["model"]):
        limit = next(
            (limit for end, limit in MAX_NUMBERS.items() if str(key).endswith(end)), math.inf
        )
        numbers = value if isinstance(value, list) else [value]
        if any(isinstance(number, int | float) and number > limit for number in numbers):
            raise UserError(f"{path}: {key} is {one_line(value)}, at most {limit} is allowed")
    for key, value in _values(content["dataloader"]):
        if isinstance(value, int | float) and abs(value) > MAX_SIDE:
            raise UserError(
                f"{path}: {key} is {value}, and images may be resized to at most {MAX_SIDE} pixels"
            )
    return cfg


def _entry(content: Any, key: str) -> Any:
    """The value of a dotted key in nested dicts; None where there is none."""
    for part in key.split("."):
        content = content.get(part) if isinstance(content, dict) else None
    return content


def _from_yaml(text: str, path: str, calls: Collection[str]) -> DictConfig:
    """The config in a YAML text that calls nothing but ``calls``. Raises a UserError for anything else."""
    read_yaml(
        text, path, MAX_VALUES
    )  # OmegaConf reads what this accepts, slowly, and by other rules for numbers
    try:
        cfg: Any = OmegaConf.create(text)
        content = renamed(OmegaConf.to_container(cfg, resolve=False))
        if not isinstance(content, dict):
            raise UserError(f"{path} is not a config")
        _check_calls(content, path, calls)
        _check_references(cfg, path)
    except (YAMLError, OmegaConfBaseException, RecursionError, ValueError, TypeError) as error:
        raise UserError(
            f"cannot read {path}: {one_line(error, 500) or type(error).__name__}"
        ) from None
    return DictConfig(content, flags={"allow_objects": True})  # as LazyConfig does


def _check_calls(content: dict[Any, Any], path: str, calls: Collection[str]) -> None:
    output_dir = _entry(content, "train.output_dir")
    for node in [content, *(value for _, value in _values(content))]:
        if not isinstance(node, dict):
            continue
        if strange := [key for key in node if not isinstance(key, str)]:
            raise UserError(f"{path} has the key {one_line(strange[0])}, and keys must be text")
        if "_target_" not in node:
            continue
        target = node["_target_"]
        if not isinstance(target, str) or target not in calls:
            raise UserError(
                f"{path} would call {one_line(target)}, which a YAML config may not: give the config that it was made from "
                "(a .py file), or write it as save_config does"
            )
        _check_arguments(node, target, path, {None, "${train.output_dir}", output_dir})


def _check_arguments(
    node: dict[str, Any], target: str, path: str, output_dirs: Collection[Any]
) -> None:
    """Raises a UserError for arguments that are unknown, or that name a file to open or a folder to write to."""
    parameters = inspect.signature(locate(target)).parameters
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    unknown = [] if takes_any else sorted(node.keys() - parameters.keys() - {"_target_"})
    if unknown:
        raise UserError(f"{path}: {target} has no argument {preview(unknown)}")
    # Detectron2 unpickles proposals. An evaluator writes to where the run does.
    for key, allowed in {"proposal_files": {None}, "output_dir": output_dirs}.items():
        value = node.get(key)
        if not isinstance(value, str | None) or value not in allowed:
            raise UserError(
                f"{path}: {key} of {target} may not be {one_line(value)} in a YAML config"
            )


def _check_references(cfg: DictConfig, path: str) -> None:
    """Refuses what OmegaConf computes but plain references to single values: resolvers, circles, texts that grow.

    A resolver, such as oc.decode, makes targets of text; a list of references to lists doubles with every level.
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
                f"{path} would compute {one_line(value)}: a YAML config may refer to its own values only"
            )
        if references > MAX_REFERENCES:
            raise UserError(f"{path} has more than {MAX_REFERENCES} references")
    for node, key in _nodes(cfg):
        if OmegaConf.is_interpolation(node, key) and not _is_single(node[key]):
            raise UserError(
                f"{path}: {one_line(key)} refers to more than a single value or a list of these"
            )


def _nodes(node: Any) -> Iterator[tuple[Any, Any]]:
    """All entries of a config, however deep, as their container and key; does not follow references."""
    if not isinstance(node, DictConfig | ListConfig):
        return
    for key in list(node) if isinstance(node, DictConfig) else range(len(node)):
        yield node, key
        if not OmegaConf.is_interpolation(node, key):
            yield from _nodes(node._get_node(key))


def _is_single(value: Any) -> bool:
    """Whether a value is no dict, and if it is a list, a short one of values that are neither lists nor references."""
    if isinstance(value, ListConfig):
        items: list[Any] = OmegaConf.to_container(value, resolve=False)  # type: ignore[assignment]
        return len(items) <= MAX_LIST and not any(
            isinstance(item, dict | list) or "${" in str(item) for item in items
        )
    return not isinstance(value, DictConfig)


def _values(node: Any) -> Iterator[tuple[Any, Any]]:
    """All values of a config, however deep, with their keys or numbers."""
    children = (
        node.items()
        if isinstance(node, dict)
        else enumerate(node)
        if isinstance(node, list)
        else ()
    )
    for key, value in children:
        yield key, value
        yield from _values(value)
