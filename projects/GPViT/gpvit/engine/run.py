"""Training runs, with checkpoints and evaluations, and evaluation alone."""

import contextlib
import copy
import logging
import os
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from detectron2.config import instantiate
from detectron2.engine import hooks
from detectron2.evaluation import inference_on_dataset, print_csv_format
from detectron2.solver import LRMultiplier
from detectron2.utils import comm
from omegaconf import DictConfig, OmegaConf
from torch import nn

from .. import checkpoint
from ..config import save_config
from ..data.datasets.register import class_names, palette
from ..data.loader import loading_failure, share_batches
from ..evaluation.coco_evaluation import evaluated_data
from ..evaluation.validation_sets import validation_sets
from ..modeling.segmentation import predicting_class_maps
from ..utils.errors import ProcessError, UserError, preview
from ..utils.events import save_evaluation
from ..utils.files import lock_folder
from ..utils.fingerprint import dataset_fingerprint, fingerprint_like
from ..utils.precision import choose_dtype, inference_precision
from .checkpointer import Checkpointer
from .ddp import build_ddp, unwrap_ddp
from .eval_hook import EvalHook
from .large_images import read_by_model
from .monitoring.hooks import build_monitors
from .monitoring.progress_bar import evaluation_bar
from .resume import (
    DATA,
    check_config_unchanged,
    latest_checkpoint,
    require_no_evaluation,
    require_same_evaluation,
    require_unused_output_dir,
    settings,
)
from .setup import device_name, setup, shared_seed
from .trainer import Trainer

logger = logging.getLogger("gpvit")


def do_train(cfg: DictConfig, *, resume: bool = False, config_file: str = "") -> nn.Module:
    """Train a model, with checkpoints, metrics and evaluations.

    Args:
        cfg: a config from :func:`gpvit.cli.train.configure`, which chooses device and AMP. It has:
            model, optimizer, lr_multiplier: instantiated here, with ``optimizer.params.model`` set
            dataloader.{train, test, evaluator}: instantiated here, with
                ``dataloader.train.{seed, start_iter, skip}`` set
            train: see configs/common/train.py
        resume: whether to resume from the latest checkpoint in ``train.output_dir``, if any.
        config_file: path of the config file, for the run's README.md.

    Returns:
        The trained model.

    Raises:
        UserError: an input is wrong, or another run uses ``train.output_dir``.
    """
    cfg, sets = _split_sets(cfg)
    with lock_output_dir(cfg.train.output_dir):
        setup(cfg)
        return _train(cfg, sets, resume, config_file)


def _train(
    cfg: DictConfig, sets: Mapping[str, DictConfig], resume: bool, config_file: str
) -> nn.Module:
    if not resume:
        require_unused_output_dir(cfg.train.output_dir)
    require_no_evaluation(cfg.train.output_dir)
    state = latest_checkpoint(cfg.train.output_dir) if resume else None
    seed = state["seed"] if state is not None else shared_seed(cfg.train.seed)
    start_iter = state["trainer"]["iteration"] if state is not None else 0
    cfg.dataloader.train.update(seed=seed, start_iter=start_iter, skip=cfg.train.skip_budget > 0)
    loader = instantiate(cfg.dataloader.train)
    records = loader.dataset.records
    classes = class_names(cfg.dataloader.train)
    checkpointer = Checkpointer(
        cfg,
        classes,
        dataset_fingerprint(records, classes),
        **cfg.train.checkpointer,
        best_metric=cfg.train.get("best_metric") or "",  # older configs do not have these two
        patience=cfg.train.get("patience") or 0,
        palette=palette(cfg.dataloader.train),
    )
    if state is not None:
        _require_same_run(state, checkpointer.config, records, classes)
    about = {}
    if comm.is_main_process():
        save_configs(cfg, sets)
        about = describe_results(cfg, sets, None)
    trainer = _build_trainer(cfg, seed, classes, from_checkpoint=state is not None)
    scheduler = LRMultiplier(trainer.optimizer, instantiate(cfg.lr_multiplier), cfg.train.max_iter)
    # Hooks run in this order: Checkpointer saves a state that includes the updated schedule.
    trainer.register_hooks(
        [hooks.IterationTimer(), hooks.LRScheduler(scheduler=scheduler), checkpointer]
    )
    model = unwrap_ddp(trainer.model)
    if state is not None:
        checkpointer.restore(state)
    monitors = []
    if comm.is_main_process():
        checkpointer.forget_metrics()
        monitors = build_monitors(
            cfg, sets, model, checkpointer, seed, records, config_file=config_file, resume=resume
        )

    def evaluate_now(net: nn.Module) -> dict[str, Any]:
        return evaluate(cfg, sets, net, about | {"iteration": trainer.done})

    eval_hook = EvalHook(cfg.train.eval_period, evaluate_now, checkpointer, monitors)
    trainer.register_hooks([eval_hook, *monitors])
    trainer.train(loader, cfg.train.max_iter)
    return model


def _require_same_run(
    state: dict[str, Any],
    config: dict[str, str],
    records: Collection[dict[str, Any]],
    classes: list[str],
) -> None:
    """Raise a UserError if a checkpoint is that of a run with other classes, config or data.

    Args:
        state: content of the checkpoint.
        config: what the checkpoints of this run contain as "config".
        records: the training data.
        classes: names of its classes.
    """
    if state["classes"] != classes:
        raise UserError(
            f"{state['path']} is from a training run with other classes "
            f"({preview(state['classes'])}) than the data ({preview(classes)}): start a new run "
            "with another train.output_dir, from its weights if you like"
        )
    data = fingerprint_like(state["config"].get(DATA, ""), records, classes)
    check_config_unchanged(state["config"], config | {DATA: data}, state["path"])


def _build_trainer(
    cfg: DictConfig, seed: int, classes: list[str], *, from_checkpoint: bool
) -> Trainer:
    """Build model, optimizer and trainer; set ``cfg.optimizer.params.model``.

    Args:
        cfg: the config of the run.
        seed: of the run.
        classes: names of the classes of the data.
        from_checkpoint: whether a checkpoint is loaded later, in place of the initial weights.
    """
    model = instantiate(cfg.model).to(cfg.train.device)
    if cfg.train.init_checkpoint and not from_checkpoint:
        checkpoint.load(model, cfg.train.init_checkpoint, classes, for_training=True)
    _compile(cfg, model)
    ddp = build_ddp(model, **cfg.train.ddp)
    cfg.optimizer.params.model = model
    return Trainer(
        ddp,
        instantiate(cfg.optimizer),
        seed=seed,
        output_dir=cfg.train.output_dir,
        amp=cfg.train.amp,
        clip_norm=cfg.train.clip_norm,
        accumulate=cfg.train.accumulate,
        ema_decay=cfg.train.ema_decay,
        skip_budget=cfg.train.skip_budget,
    )


def _compile(cfg: DictConfig, model: nn.Module) -> None:
    """Let backbone and pyramid be compiled at their first call, if ``train.compile`` is set."""
    if cfg.train.compile:
        # For sizes of images that PyTorch cannot compile (seen in 2.14), it warns and runs the
        # backbone as it is.
        torch._dynamo.config.suppress_errors = True
        model.get_submodule("backbone").compile()


def do_test(cfg: DictConfig) -> nn.Module:
    """Evaluate ``train.init_checkpoint``, and write the results to ``train.output_dir``.

    Args:
        cfg: as for :func:`do_train`.

    Returns:
        The evaluated model.

    Raises:
        UserError: the checkpoint cannot be read or has other classes than the data, or
            ``train.output_dir`` has other results.
    """
    cfg, sets = _split_sets(cfg)
    with lock_output_dir(cfg.train.output_dir):
        return _test(cfg, sets)


def _test(cfg: DictConfig, sets: Mapping[str, DictConfig]) -> nn.Module:
    if not cfg.train.init_checkpoint:
        raise UserError("--eval-only needs weights; write train.init_checkpoint=FILE")
    file = checkpoint.read(cfg.train.init_checkpoint)
    classes = file.require_classes()
    data_classes = class_names(cfg.dataloader.test)
    if classes != data_classes:
        raise UserError(
            f"{file.path} was trained for other classes ({preview(classes)}) "
            f"than the data has ({preview(data_classes)})"
        )
    folder, about = cfg.train.output_dir, {}
    if comm.is_main_process():
        about = describe_results(cfg, sets, file.about.get("iterations"), file.path)
    run_in_process_0(lambda: require_same_evaluation(folder, about))
    setup(cfg)
    model = instantiate(cfg.model).to(cfg.train.device)
    checkpoint.load(model, file, classes)
    _compile(cfg, model)
    if comm.is_main_process():
        # Written first, so that the files of an interrupted evaluation can be attributed. An
        # existing file is of the same evaluation and keeps its results until the end.
        if not os.path.exists(f"{folder}/evaluation.json"):
            save_evaluation(folder, None, about)
        save_configs(cfg, sets)
    evaluate(cfg, sets, model, about)
    return model


def _split_sets(cfg: DictConfig) -> tuple[DictConfig, dict[str, DictConfig]]:
    """Return the config, and one for each validation set, by name.

    A config with a list of one validation set becomes the same as with its name alone.
    """
    sets = validation_sets(cfg)
    if len(sets) == 1:
        (cfg,) = sets.values()
    return cfg, sets


class SetResults(NamedTuple):
    """The evaluation of a model on one validation set.

    results: in the format of Detectron2's evaluators, in rank 0.
    images: number of evaluated images.
    seconds: of all processes together, from the first image to the last.
    unwritten: why the evaluator could not write its files; "" if it could.
    max_detections: per image and class that AP counts; None if the evaluator does not define it.
    """

    results: dict[str, Any]
    images: int
    seconds: float
    unwritten: str
    max_detections: int | None


def evaluate(
    cfg: DictConfig, sets: Mapping[str, DictConfig], model: nn.Module, about: dict[str, Any]
) -> dict[str, Any]:
    """Evaluate a model on each validation set.

    Args:
        cfg: the config of the run.
        sets: its :func:`.validation_sets`.
        model: the model.
        about: :func:`describe_results`, in rank 0.

    Returns:
        The results in rank 0, by name if there are several validation sets; {} in other ranks.

    Raises:
        UserError: an image cannot be read; or, with ``--eval-only``, results cannot be written.
    """
    evaluated: dict[str, SetResults] = {}
    unwritten = []
    for number, (name, set_cfg) in enumerate(sets.items()):
        if len(sets) > 1:
            logger.info(f"evaluation on {name}, validation set {number + 1} of {len(sets)}")
        evaluated[name] = evaluation = evaluate_set(set_cfg, model)
        unwritten.append(evaluation.unwritten)
        if len(sets) > 1 and comm.is_main_process():
            about_set = about | {"data": about["data"][number]}
            unwritten.append(write_results(set_cfg, [evaluation], evaluation.results, about_set))
    if not comm.is_main_process():
        return {}
    results = {name: evaluation.results for name, evaluation in evaluated.items()}
    if len(sets) == 1:
        (results,) = results.values()
    unwritten.append(write_results(cfg, evaluated.values(), results, about))
    # Raised only now, since the other processes take part in the evaluation of all sets.
    reason = next(filter(None, unwritten), "")
    if reason and about["weights"] is not None:
        raise ProcessError(reason)
    if reason:
        logger.error(f"{reason}; training continues")
    return results


def evaluate_set(cfg: DictConfig, model: nn.Module) -> SetResults:
    """Evaluate a model on ``cfg.dataloader.test`` with ``cfg.dataloader.evaluator``."""
    dtype = choose_dtype(cfg.train.eval_dtype, cfg.train.device)
    if "large_images" in cfg.train:
        cfg = copy.deepcopy(cfg)
        model = read_by_model(cfg, model, class_names(cfg.dataloader.test))
    loader = share_batches(instantiate(cfg.dataloader.test))
    evaluator = instantiate(cfg.dataloader.evaluator)
    times: list[float] = []  # of the start and the end

    def note_time() -> None:
        times.append(time.perf_counter())

    try:
        with (
            evaluation_bar(loader) as batches,
            predicting_class_maps(model),
            inference_precision(dtype, model),
        ):
            callbacks = {"on_start": note_time, "on_end": note_time}
            results = inference_on_dataset(model, batches, evaluator, callbacks)
    except UserError as error:  # an image that this process loads
        raise ProcessError(str(error)) from None
    except (RuntimeError, OSError) as error:
        reason = loading_failure(error)
        if reason:
            raise ProcessError(f"evaluation: {reason}") from error
        raise
    dataset: Any = loader.dataset  # PyTorch's Dataset is typed without a length
    seconds = times[1] - times[0]
    if comm.is_main_process():
        print_csv_format(results)
        speed = f"{len(dataset)} images in {seconds:.1f} s, {len(dataset) / seconds:.1f} images/s"
        logger.info(f"evaluated {speed}")
    return SetResults(
        results,
        images=len(dataset),
        seconds=seconds * comm.get_world_size(),
        unwritten=getattr(evaluator, "unwritten", ""),
        max_detections=getattr(evaluator, "max_detections", None),
    )


def write_results(
    cfg: DictConfig,
    evaluated: Collection[SetResults],
    results: dict[str, Any],
    about: dict[str, Any],
) -> str:
    """Write evaluation.json, and return why it cannot be written; "" if it was."""
    images, seconds = 0, 0.0
    for evaluation in evaluated:
        images += evaluation.images
        seconds += evaluation.seconds
    try:
        save_evaluation(
            cfg.train.output_dir,
            results,
            about,
            images=images,
            seconds_per_image=seconds / images,
            device=device_name(cfg.train.device),
            dtype=str(choose_dtype(cfg.train.eval_dtype, cfg.train.device)).removeprefix("torch."),
            max_detections=next(iter(evaluated)).max_detections,  # the same for all sets
        )
    except UserError as error:
        return str(error)
    return ""


def describe_results(
    cfg: DictConfig,
    sets: Mapping[str, DictConfig],
    iteration: int | None,
    weights: str | None = None,
) -> dict[str, Any]:
    """Return what evaluation.json states of the results: weights, iteration, settings and data.

    Args:
        cfg: the config of the run.
        sets: its :func:`.validation_sets`.
        iteration: number of iterations that the model was trained for, if known.
        weights: path of the evaluated checkpoint; None in a training run.
    """
    masks = "segm" in (OmegaConf.select(cfg, "dataloader.evaluator.tasks") or ())
    data = []
    for set_cfg in sets.values():
        data.append(evaluated_data(set_cfg.dataloader.test.dataset.names, masks=masks))
    return {
        "weights": weights,
        "iteration": iteration,
        "settings": settings(cfg),
        "data": data if len(data) > 1 else data[0],
    }


def save_configs(cfg: DictConfig, sets: Mapping[str, DictConfig]) -> None:
    """Save config.yaml of a run, and of each of several validation sets next to its results."""
    configs = [cfg, *sets.values()] if len(sets) > 1 else [cfg]
    for config in configs:
        save_config(config, f"{config.train.output_dir}/config.yaml")


@contextlib.contextmanager
def lock_output_dir(folder: str) -> Iterator[None]:
    """Lock the output folder for this job; raise a UserError in all processes if it is locked."""
    with contextlib.ExitStack() as stack:
        run_in_process_0(lambda: stack.enter_context(lock_folder(folder)))
        yield


def run_in_process_0(action: Callable[[], object]) -> None:
    """Call a function in process 0; raise its UserError, if any, in all processes."""
    error = ""
    if comm.is_main_process():
        try:
            action()
        except UserError as failure:
            error = str(failure)
    error = next(filter(None, comm.all_gather(error)), "")
    if error:
        raise UserError(error)
