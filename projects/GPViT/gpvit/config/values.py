"""Checking the values of a config against a table of kinds, and suggesting valid overrides.

An override is parsed by the shell and then by Hydra, so a suggestion is quoted for both.
"""

import copy
import logging
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from detectron2.config import instantiate
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import nn

from ..utils.errors import UserError
from ..utils.kinds import FLAG, NULL, Kind, choice, either, integer, number, path, several, text
from ..utils.precision import DTYPES
from ..utils.text import LINE_LIMIT, PATH_LIMIT, one_line

MAX_SIDE = 10_000  # pixels that an image may be resized to
MAX_SEED = 2**63 - 1
MOST_DETECTIONS = 10_000  # per image; the config of a checkpoint has the same limit
MAX_WORKERS = 1024
MAX_DEPTH = 100  # of nested sections

SECTION = Kind(
    "a section with keys of its own",
    lambda value: not isinstance(value, str | int | float | list | None),
)
AUGMENTATIONS = Kind(
    "a list of augmentations, or a section that builds one",
    lambda value: (
        SECTION.fits(value) or (isinstance(value, list) and all(map(SECTION.fits, value)))
    ),
)
DATASET = text("a dataset", "a dataset")
DATASETS = either(DATASET, several(DATASET, "a list of them"))
PIXELS = integer(1, MAX_SIDE, of="pixels")
SIDES = several(PIXELS, f"a list of whole numbers of pixels from 1 to {MAX_SIDE}")
SEVERAL_SIDES = "for several in training, use dataloader.train.mapper.augmentations.short_side"
DETECTIONS = integer(1, MOST_DETECTIONS, of="detections")
FRACTION = number(0, 1)
DECAY = number(0, below=1)
POSITIVE = number(above=0)
NOT_NEGATIVE = number(0)
ITERATIONS = integer(1, of="iterations")
RANGE_OF_FRACTIONS = several(FRACTION, "two increasing numbers from 0 to 1", length=2, ordered=True)
MILESTONES = several(
    number(above=0, below=1),
    "a list of increasing fractions of train.max_iter between 0 and 1",
    least=0,
    ordered=True,
)


def free(kind: Kind) -> Kind:
    """Mark a kind of value that does not affect the trained weights.

    A resumed run may change such a value, and everything below it if it is a section.
    """
    return replace(kind, may_change=True)


# Kinds of values by key. In a key, "*" matches any part, "**" any number of parts, also none, and
# "#" an index. The first row that matches decides. A key without a row may have any value, such as
# the parameters of optimizers, schedules and augmentations that are not known here.
KINDS: dict[str, Kind] = {
    "train": SECTION,
    "train.output_dir": free(path("a folder", "a folder")),
    "train.init_checkpoint": free(
        path("the path or address of a file of weights", "a file", "random weights")
    ),
    "train.max_iter": ITERATIONS,
    "train.seed": integer(most=MAX_SEED, note="negative: a random seed"),
    "train.deterministic": FLAG,
    "train.device": free(choice("auto", "cuda", "cpu")),
    "train.amp": SECTION,
    "train.amp.enabled": choice(True, False, "auto"),
    "train.amp.dtype": choice("bfloat16", "float16"),
    "train.eval_dtype": free(choice(*DTYPES)),
    "train.large_images": free(SECTION),  # of --tile and --stream
    "train.large_images.tile": integer(0, MAX_SIDE, of="pixels", note="0: streamed"),
    "train.large_images.overlap": number(0, 0.5),
    "train.compile": free(FLAG),
    "train.clip_norm": number(0, note="0: no clipping"),
    "train.accumulate": free(integer(1, of="parts of a batch")),
    "train.ema_decay": number(0, below=1, note="0: no average"),
    "train.skip_budget": free(integer(0, of="images")),
    "train.ddp": free(SECTION),
    "train.ddp.broadcast_buffers": FLAG,
    "train.ddp.find_unused_parameters": FLAG,
    "train.ddp.gradient_as_bucket_view": FLAG,
    "train.ddp.static_graph": FLAG,
    "train.ddp.bucket_cap_mb": either(POSITIVE, NULL),
    "train.checkpointer": free(SECTION),
    "train.checkpointer.period": ITERATIONS,
    "train.checkpointer.max_to_keep": integer(1, of="checkpoints"),
    "train.best_metric": free(text("a metric such as segm/AP", "a metric", "none")),
    "train.patience": free(integer(0, of="evaluations", note="0: never stop early")),
    "train.eval_period": free(integer(0, of="iterations", note="0: only at the end")),
    "train.log_period": free(ITERATIONS),
    "train.pictures": free(integer(0, of="images", note="0: none")),
    "train.wandb": free(text("a project", "a project", "none")),
    "dataloader": SECTION,
    "dataloader.short_side": integer(1, MAX_SIDE, of="pixels", note=SEVERAL_SIDES),
    "dataloader.max_size": PIXELS,
    "dataloader.max_detections": free(DETECTIONS),
    "dataloader.folders": free(SECTION),  # of custom datasets, by their names
    "dataloader.train": SECTION,
    "dataloader.test": free(SECTION),
    "dataloader.evaluator": free(SECTION),
    "dataloader.train.total_batch_size": integer(1, of="images"),
    # These three are set by the run itself.
    "dataloader.train.seed": free(integer(most=MAX_SEED)),
    "dataloader.train.start_iter": free(integer(0, of="iterations")),
    "dataloader.train.skip": free(FLAG),
    "dataloader.train.timeout": free(number(0, note="seconds")),
    "dataloader.train.pin_memory": free(FLAG),
    "dataloader.train.prefetch_factor": free(integer(1, of="batches")),
    "dataloader.*.num_workers": free(integer(0, MAX_WORKERS, of="processes")),
    "dataloader.test.batch_size": integer(1, of="images"),
    "dataloader.test.drop_last": FLAG,
    "dataloader.*.sampler": either(SECTION, NULL),
    "dataloader.*.collate_fn": either(SECTION, NULL),
    "dataloader.*.dataset": SECTION,
    "dataloader.*.dataset.names": free(DATASETS),
    "dataloader.*.dataset.filter_empty": FLAG,
    "dataloader.*.dataset.min_keypoints": integer(0, of="keypoints"),
    "dataloader.*.dataset.check_consistency": FLAG,
    "dataloader.*.mapper": SECTION,
    "dataloader.*.mapper.is_train": FLAG,
    "dataloader.*.mapper.image_format": choice("RGB", "BGR"),
    "dataloader.*.mapper.use_instance_mask": FLAG,
    "dataloader.*.mapper.instance_mask_format": choice("bitmask", "polygon"),
    "dataloader.*.mapper.recompute_boxes": FLAG,
    "dataloader.*.mapper.augmentations": AUGMENTATIONS,
    "dataloader.*.mapper.augmentations.#": SECTION,
    "dataloader.*.mapper.augmentations.recipe": choice("resize", "lsj"),
    "dataloader.*.mapper.augmentations.short_side": either(PIXELS, SIDES),
    "dataloader.*.mapper.augmentations.short_sides": SIDES,
    "dataloader.*.mapper.augmentations.lsj_size": PIXELS,
    "dataloader.*.mapper.augmentations.#.short_side": PIXELS,
    "dataloader.*.mapper.augmentations.#.long_side": PIXELS,
    "dataloader.*.mapper.augmentations.#.size": PIXELS,
    "dataloader.*.mapper.augmentations.#.multiple": PIXELS,
    "dataloader.*.mapper.augmentations.#.ratio_range": several(
        POSITIVE, "two numbers above 0", length=2
    ),
    "dataloader.*.mapper.ignore_value": integer(0),
    "dataloader.*.mapper.num_classes": either(integer(1, of="classes"), NULL),
    "dataloader.*.mapper.augmentations.flip": FRACTION,
    "dataloader.*.mapper.augmentations.**.short_edge_length": either(PIXELS, SIDES),
    "dataloader.*.mapper.augmentations.**.max_size": integer(1, of="pixels"),
    "dataloader.*.mapper.augmentations.**.sample_style": choice("range", "choice"),
    "dataloader.*.mapper.augmentations.**.prob": FRACTION,
    "dataloader.*.mapper.augmentations.**.horizontal": FLAG,
    "dataloader.*.mapper.augmentations.**.vertical": FLAG,
    "dataloader.*.mapper.augmentations.**.min_scale": POSITIVE,
    "dataloader.*.mapper.augmentations.**.max_scale": POSITIVE,
    "dataloader.*.mapper.augmentations.**.target_height": PIXELS,
    "dataloader.*.mapper.augmentations.**.target_width": PIXELS,
    "dataloader.*.mapper.augmentations.**.intensity_min": NOT_NEGATIVE,
    "dataloader.*.mapper.augmentations.**.intensity_max": NOT_NEGATIVE,
    "dataloader.*.mapper.augmentations.**.crop_type": choice(
        "relative_range", "relative", "absolute", "absolute_range"
    ),
    "dataloader.evaluator.dataset_name": DATASETS,
    "dataloader.evaluator.tasks": either(
        several(choice("bbox", "segm", "keypoints"), "a list of bbox, segm and keypoints"), NULL
    ),
    "dataloader.evaluator.max_dets_per_image": either(DETECTIONS, NULL),
    "dataloader.evaluator.output_dir": path("a folder", "a folder", "none"),
    "dataloader.evaluator.distributed": FLAG,
    "dataloader.evaluator.use_fast_impl": FLAG,
    "dataloader.evaluator.allow_cached_coco": FLAG,
    "dataloader.evaluator.kpt_oks_sigmas": several(POSITIVE, "a list of numbers above 0", least=0),
    # Options of classifiers.
    "dataloader.crop_size": PIXELS,
    "dataloader.*.mapper.augmentations.#.area": RANGE_OF_FRACTIONS,
    "dataloader.*.mapper.augmentations.#.ratio": several(
        POSITIVE, "two increasing numbers above 0", length=2, ordered=True
    ),
    "dataloader.*.mapper.augmentations.#.magnitude": integer(0, 10),
    "dataloader.*.mapper.augmentations.#.deviation": NOT_NEGATIVE,
    "model.num_classes": integer(1, of="classes"),
    "model.pooling": choice("attention", "mean"),
    "model.label_smoothing": DECAY,
    "model.mixup": number(0, note="0: no mixup"),
    "model.cutmix": number(0, note="0: no CutMix"),
    "model.linear_probing": FLAG,
    # Options of segmentation models.
    "model.train_size": integer(0, MAX_SIDE, of="pixels", note="0: the largest image of a batch"),
    "model.class_map": free(FLAG),
    "model.window": free(integer(0, MAX_SIDE, of="pixels", note="0: the complete image")),
    "model.stride": free(integer(0, MAX_SIDE, of="pixels", note="0: two thirds of the window")),
    "model.scales": free(several(number(above=0, most=8), "a list of factors up to 8")),
    "model.flip": free(FLAG),
    "model.sem_seg_head.loss_average": choice("all", "labeled"),
    "model.sem_seg_head.class_weights": either(
        choice("balanced"), several(NOT_NEGATIVE, "a list of weights"), NULL
    ),
    # Options of the model, wherever it has them.
    "**.use_act_checkpoint": free(FLAG),
    "**.recompute_inputs": free(either(FLAG, NULL)),
    "**.test_score_thresh": free(number()),
    "**.test_nms_thresh": free(number()),
    "**.test_topk_per_image": free(integer(most=MOST_DETECTIONS)),
    "**.max_detections_per_image": free(integer(1, MOST_DETECTIONS)),
    "optimizer": SECTION,
    "optimizer.lr": POSITIVE,
    "optimizer.betas": several(
        DECAY, "two numbers, such as [0.9,0.999], from 0 to below 1", length=2
    ),
    "optimizer.eps": POSITIVE,
    "optimizer.weight_decay": NOT_NEGATIVE,
    "optimizer.momentum": DECAY,
    "optimizer.dampening": number(),
    "optimizer.nesterov": FLAG,
    "optimizer.amsgrad": FLAG,
    "optimizer.maximize": FLAG,
    "optimizer.foreach": either(FLAG, NULL),
    "optimizer.fused": either(FLAG, NULL),
    "optimizer.capturable": FLAG,
    "optimizer.differentiable": FLAG,
    "optimizer.params": SECTION,
    "optimizer.params.base_lr": either(POSITIVE, NULL),
    "optimizer.params.weight_decay": either(NOT_NEGATIVE, NULL),
    "optimizer.params.weight_decay_norm": either(NOT_NEGATIVE, NULL),
    "optimizer.params.weight_decay_bias": either(NOT_NEGATIVE, NULL),
    "optimizer.params.bias_lr_factor": either(NOT_NEGATIVE, NULL),
    "optimizer.params.no_decay": choice(
        "norms_and_biases", "layer_norms", "named_norms_and_biases"
    ),
    "optimizer.params.head_lr_factor": POSITIVE,
    "optimizer.params.lr_factor_func": either(SECTION, NULL),
    "optimizer.params.lr_factor_func.rate": number(above=0, most=1),
    "optimizer.params.lr_factor_func.num_layers": integer(1, of="blocks"),
    "optimizer.params.overrides": either(SECTION, NULL),
    "optimizer.params.overrides.*": SECTION,
    "optimizer.params.overrides.*.lr": NOT_NEGATIVE,
    "optimizer.params.overrides.*.weight_decay": NOT_NEGATIVE,
    "lr_multiplier": SECTION,
    "lr_multiplier.max_iter": ITERATIONS,
    "lr_multiplier.**.milestones": either(
        several(POSITIVE, "a list of increasing numbers above 0", least=0, ordered=True), NULL
    ),
    "lr_multiplier.**.num_updates": either(ITERATIONS, NULL),
    "lr_multiplier.warmup_iters": integer(0, of="iterations"),
    "lr_multiplier.**.warmup_factor": FRACTION,
    "lr_multiplier.**.warmup_length": FRACTION,
    "lr_multiplier.**.warmup_method": choice("linear", "constant"),
    "lr_multiplier.**.rescale_interval": FLAG,
    "lr_multiplier.**.start_value": NOT_NEGATIVE,
    "lr_multiplier.**.end_value": NOT_NEGATIVE,
    "lr_multiplier.**.value": NOT_NEGATIVE,
    "lr_multiplier.**.gamma": POSITIVE,
    "lr_multiplier.**.values": either(several(NOT_NEGATIVE, "a list of numbers, at least 0"), NULL),
    "lr_multiplier.scheduler": SECTION,
}
SECTIONS = ("train", "dataloader", "optimizer", "lr_multiplier", "model")
# Keys that train_net.py reads.
REQUIRED_FOR_EVALUATION = (
    "train.output_dir",
    "train.init_checkpoint",
    "train.deterministic",
    "train.device",
    "train.amp.enabled",
    "model",
    "dataloader.test",
    "dataloader.evaluator",
)
REQUIRED_FOR_TRAINING = (
    "train.max_iter",
    "train.seed",
    "train.amp.dtype",
    "train.clip_norm",
    "train.accumulate",
    "train.ema_decay",
    "train.skip_budget",
    "train.ddp",
    "train.checkpointer",
    "train.eval_period",
    "train.log_period",
    "dataloader.train",
    "optimizer.params",
    "lr_multiplier",
)

# Kinds for keys without a row, chosen by the value that an override replaces.
A_NUMBER = Kind("a number, True or False", lambda value: isinstance(value, int | float))
A_LIST = several(Kind("", lambda value: True), "a list")
A_TEXT = Kind("a text", lambda value: isinstance(value, str))


_WILDCARDS = {"*": r"[^.]+", "**": r".+", "#": r"\d+"}


def _pattern(key: str) -> re.Pattern[str]:
    """Return the regular expression of a key with wildcards."""
    parts = [_WILDCARDS.get(part, re.escape(part)) for part in key.split(".")]
    return re.compile(r"\.".join(parts))


def _expanded() -> Iterator[tuple[re.Pattern[str], Kind]]:
    for key, kind in KINDS.items():
        yield _pattern(key), kind
        if ".**" in key:  # "**" matches at least one part, so a second row is for none
            yield _pattern(key.replace(".**", "")), kind


PATTERNS = list(_expanded())


def kind_of(key: str) -> Kind | None:
    """Return the kind of a key's values; None if any value is allowed."""
    for pattern, kind in PATTERNS:
        if pattern.fullmatch(key):
            return kind
    return None


def may_change(key: str) -> bool:
    """Return whether a resumed run may change this value.

    The row of the key or of any section around it allows it; see :func:`free`.
    """
    parts = key.split(".")
    for end in range(1, len(parts) + 1):  # train, train.amp, train.amp.dtype
        kind = kind_of(".".join(parts[:end]))
        if kind is not None and kind.may_change:
            return True
    return False


def parse(override: str) -> Override:
    """Parse an override by Hydra. Raise a HydraException if that fails."""
    try:
        parsed = OverridesParser.create().parse_overrides([override])[0]
    except ValueError as error:  # a number with thousands of digits
        raise HydraException(str(error)) from None
    if parsed.is_sweep_override():  # "a,b" or "range(1,3)", for several runs
        raise HydraException(f"{override} gives several values")
    return parsed


def hydra_text(value: Any, inside: str = "{}") -> str:
    """Write a value in Hydra's syntax.

    Args:
        value: None, a number, a string, or a list of these.
        inside: what the value is placed in, such as "[{}]": fewer characters are allowed there.
    """
    if value is None:
        return "null"
    if isinstance(value, list):
        items = [hydra_text(item, "[{}]") for item in value]
        return f"[{','.join(items)}]"
    if not isinstance(value, str):
        return str(value)
    parsed = None
    if value:
        try:
            parsed = OverridesParser.create().parse_rule(inside.format(value), "value")
        except HydraException:
            parsed = None
    if parsed in (value, [value]):  # read as this string without quotes
        return value
    return QuotedString(value, Quote.double).with_quotes()


def assignment(key: str, value: Any) -> str:
    """Write an override as it is typed in a shell."""
    return f'{key}=""' if value == "" else shlex.quote(f"{key}={hydra_text(value)}")


def correction(kind: Kind, key: str, value: Any, written: str | None = None) -> str:
    """Suggest how to write the value that was probably meant.

    Args:
        kind: of the key's values.
        key: with the "+" of an override, if any.
        value: which does not fit or cannot be read.
        written: the value of an override, before Hydra parses it.

    Returns:
        the end of a message, which begins with "; ", or "".
    """
    if written is not None and "${" in written:
        return (
            "; ${ begins a reference to another value, such as ${train.max_iter}, and is no part "
            "of a name"
        )
    for meant in kind.meant(value, written):
        typed = assignment(key, meant)
        if one_line(typed, PATH_LIMIT) != typed:
            # It would be shown escaped or truncated, so typing what is shown would be wrong.
            return "; put quotes around the value"
        as_written = isinstance(meant, str) and meant != "" and meant in (written or str(value))
        if kind.noun and as_written and typed.startswith("'"):
            return f"; {kind.noun} named {meant} needs quotes: {typed}"
        return f"; write {typed}"
    return ""


def check_value(key: str, value: Any, kind: Kind | None, written: str | None = None) -> None:
    """Raise a UserError if a value is not of its kind. ``written``: see :func:`correction`."""
    if isinstance(value, ListConfig):
        value = OmegaConf.to_container(value, resolve=True)
    if kind is not None and not kind.fits(value):
        raise UserError(f"{key} {kind.fault(value)}{correction(kind, key, value, written)}")


def kind_like(value: Any) -> Kind:
    """Return the kind of an override that replaces this value, for a key without a row."""
    if isinstance(value, int | float):
        return A_NUMBER
    return A_LIST if isinstance(value, ListConfig) else A_TEXT


def check_values(node: DictConfig | ListConfig, key: str = "") -> None:
    """Check all values below a node of a config against the table.

    Args:
        node: a config or a part of it.
        key: of the node; "" for a complete config, of which :data:`SECTIONS` are checked.

    Raises:
        UserError: a value is not of its kind, or a reference cannot be resolved.
    """
    # References come last (sorting is stable), so that a wrong value is reported under its own key.
    for name, value, _ in sorted(_entries(node, key, False), key=lambda entry: entry[2]):
        check_value(name, value, kind_of(name))


def _entries(node: Any, key: str, is_referred: bool) -> Iterator[tuple[str, Any, bool]]:
    """Yield the key and value of everything below a node, following references.

    The third item is whether a reference leads there.
    """
    if key.count(".") > MAX_DEPTH:
        raise UserError(f"{one_line(key)} is circular: a section refers to one that contains it")
    names: Sequence[Any] = list(node) if isinstance(node, DictConfig) else range(len(node))
    if not key:  # a config file may define further sections, which need not be valid by themselves
        names = [section for section in SECTIONS if section in names]
    for name in names:
        child = f"{key}.{name}" if key else str(name)
        try:
            value = node[name]
        except OmegaConfBaseException as error:
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise UserError(
                f"{child} cannot be resolved ({one_line(reason, LINE_LIMIT)})"
            ) from None
        is_reference = is_referred or OmegaConf.is_interpolation(node, name)
        yield child, value, is_reference
        if isinstance(value, DictConfig | ListConfig):
            yield from _entries(value, child, is_reference)


def check_config(cfg: DictConfig, *, train: bool) -> None:
    """Find errors in a config before files and data are read.

    Args:
        cfg: the config.
        train: whether the config is used for training, and not only for evaluation.

    Raises:
        UserError: a value is missing, is not of its kind, or conflicts with another one.
    """
    check_values(cfg)
    for key in REQUIRED_FOR_EVALUATION + (REQUIRED_FOR_TRAINING if train else ()):
        # The default is an object that no config contains, since null is a value.
        if OmegaConf.select(cfg, key, default=NULL) is NULL:
            raise UserError(
                f"the config has no {key}; see configs/mask_rcnn_gpvit_l1.py, which has all keys "
                "that are required"
            )
    _check_evaluation(cfg)
    if train:
        _check_training(cfg)


def _check_evaluation(cfg: DictConfig) -> None:
    """Raise a UserError for values of the data loaders and the evaluator that conflict."""
    short_side, max_size = cfg.dataloader.get("short_side"), cfg.dataloader.get("max_size")
    if None not in (short_side, max_size) and max_size < short_side:
        raise UserError(
            f"dataloader.max_size={max_size} is less than dataloader.short_side={short_side}, "
            "which no image would reach; raise or lower one of them"
        )
    counted = cfg.dataloader.evaluator.get("max_dets_per_image")
    returned = cfg.dataloader.get("max_detections")
    if None not in (counted, returned) and counted > returned:
        raise UserError(
            f"dataloader.evaluator.max_dets_per_image={counted} counts more than the {returned} "
            "detections per image that the detector returns; to raise both, write "
            f"dataloader.max_detections={counted}"
        )


def _check_training(cfg: DictConfig) -> None:
    """Raise a UserError for values that training needs and that conflict or cannot be used."""
    if cfg.train.get("patience") and not cfg.train.get("best_metric"):
        raise UserError(f"train.patience={cfg.train.patience} needs train.best_metric")
    mapper = cfg.dataloader.train.get("mapper")
    recomputes_boxes = isinstance(mapper, DictConfig) and mapper.get("recompute_boxes")
    if recomputes_boxes and not mapper.get("use_instance_mask"):  # from the masks
        raise UserError(
            "dataloader.train.mapper.recompute_boxes=True needs "
            "dataloader.train.mapper.use_instance_mask=True"
        )
    _check_schedule(cfg)
    _check_optimizer(cfg)


def _check_schedule(cfg: DictConfig) -> None:
    """Raise a UserError if the schedule cannot be built, or its milestones are iterations."""
    schedule = cfg.lr_multiplier
    if _is_target(schedule, "multistep_schedule"):
        key, milestones = "lr_multiplier.milestones", schedule.get("milestones", [])
        milestones = list(milestones) if isinstance(milestones, ListConfig) else milestones
        if not MILESTONES.fits(milestones):
            fractions = []
            for milestone in milestones or ():
                fractions.append(round(milestone / cfg.train.max_iter, 4))
            hint = ""
            if fractions and MILESTONES.fits(fractions):
                hint = f"; write {assignment(key, fractions)}"
            raise UserError(f"{key} {MILESTONES.fault(milestones)}{hint}")
    _try_to_build("lr_multiplier", schedule)


def _check_optimizer(cfg: DictConfig) -> None:
    """Raise a UserError if the optimizer does not accept its values, which a single layer shows."""
    # Any other function may need particular parts of the model.
    if _is_target(cfg.optimizer.params, "get_default_optimizer_params"):
        optimizer = copy.deepcopy(cfg.optimizer)
        optimizer.params.model = nn.Linear(1, 1)
        _try_to_build("optimizer", optimizer)


def _is_target(node: DictConfig, name: str) -> bool:
    """Return whether a node of a LazyConfig calls a function of this name."""
    target = node.get("_target_")
    return getattr(target, "__name__", str(target)).rpartition(".")[2] == name


def _try_to_build(key: str, node: DictConfig) -> None:
    log = logging.getLogger(instantiate.__module__)
    log.disabled = True  # Detectron2 would log the same error in another line
    try:
        instantiate(node)
    except (TypeError, ValueError, AssertionError, RuntimeError) as error:
        raise UserError(f"{key} cannot be built from its values ({one_line(error)})") from None
    finally:
        log.disabled = False
