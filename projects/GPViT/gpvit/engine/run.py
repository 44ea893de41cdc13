"""The life of a run: training with its checkpoints and evaluations, or an evaluation alone."""

import contextlib
import logging
import os
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, NamedTuple

from detectron2.config import instantiate
from detectron2.engine import hooks
from detectron2.evaluation import inference_on_dataset, print_csv_format
from detectron2.solver import LRMultiplier
from detectron2.utils import comm
from omegaconf import DictConfig, OmegaConf
from torch import nn

from .. import checkpoint
from ..config import save_config
from ..data.datasets.register import class_names
from ..data.loader import loading_failure, share_batches
from ..evaluation.coco_evaluation import evaluated_data
from ..evaluation.validation_sets import validation_sets
from ..utils.errors import ProcessError, UserError, preview
from ..utils.events import save_evaluation
from ..utils.files import lock_folder
from ..utils.fingerprint import dataset_fingerprint, like
from .checkpointer import Checkpointer
from .ddp import build_ddp
from .eval_hook import EvalHook
from .monitoring.hooks import build_monitors
from .monitoring.progress_bar import evaluation_bar
from .resume import (
    DATA,
    check_config_unchanged,
    latest_checkpoint,
    refuse_evaluated,
    refuse_to_replace_results,
    require_unused_output_dir,
    settings,
)
from .setup import device_name, setup, shared_seed
from .trainer import Trainer

logger = logging.getLogger("gpvit")


def do_train(cfg: DictConfig, *, resume: bool = False, config_file: str = "") -> nn.Module:
    """Trains what the config says, with checkpoints, metrics and evaluation along the way.

    Args:
        cfg: a config, as :func:`gpvit.cli.train.configure` makes it, whose device and AMP are chosen, with these attributes:
            model, optimizer, lr_multiplier: instantiated; ``optimizer.params.model`` is set here
            dataloader.{train, test, evaluator}: instantiated; ``dataloader.train.{seed, start_iter, skip}`` are set here
            train: see configs/common/train.py
        resume: whether to go on from the newest checkpoint in ``train.output_dir``, if there is one.
        config_file: where the config came from, for the run's README.md.

    Returns:
        The trained model.

    Raises:
        UserError: something that was given is wrong, or another run uses ``train.output_dir``.
    """
    cfg, sets = _split_sets(cfg)
    with alone_in(cfg.train.output_dir):
        setup(cfg)
        return _train(cfg, sets, resume, config_file)


def _train(
    cfg: DictConfig, sets: Mapping[str, DictConfig], resume: bool, config_file: str
) -> nn.Module:
    if not resume:
        require_unused_output_dir(cfg.train.output_dir)
    refuse_evaluated(cfg.train.output_dir)
    state = latest_checkpoint(cfg.train.output_dir) if resume else None
    seed = state["seed"] if state is not None else shared_seed(cfg.train.seed)
    start_iter = state["trainer"]["iteration"] if state is not None else 0
    cfg.dataloader.train.update(seed=seed, start_iter=start_iter, skip=cfg.train.skip_budget > 0)
    loader = instantiate(cfg.dataloader.train)
    classes = class_names(cfg.dataloader.train)
    records = loader.dataset.records
    checkpoints = Checkpointer(
        cfg,
        classes,
        dataset_fingerprint(records, classes),
        **cfg.train.checkpointer,
        best_metric=cfg.train.get("best_metric") or "",  # which older configs lack, and patience
        patience=cfg.train.get("patience") or 0,
    )
    if state is not None:
        if state["classes"] != classes:
            raise UserError(
                f"{state['path']} is of a training for other classes ({preview(state['classes'])}) than the data has "
                f"({preview(classes)}): begin anew in another train.output_dir, from its weights if you like"
            )
        data = like(state["config"].get(DATA, ""), records, classes)
        check_config_unchanged(state["config"], checkpoints.config | {DATA: data}, state["path"])
    about = {}
    if comm.is_main_process():
        save_configs(cfg, sets)
        about = describe_results(cfg, sets, None)
    model = instantiate(cfg.model).to(cfg.train.device)
    if state is None and cfg.train.init_checkpoint:
        checkpoint.load(model, cfg.train.init_checkpoint, classes, for_training=True)
    ddp = build_ddp(model, **cfg.train.ddp)
    cfg.optimizer.params.model = model
    trainer = Trainer(
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

    scheduler = LRMultiplier(trainer.optimizer, instantiate(cfg.lr_multiplier), cfg.train.max_iter)
    trainer.register_hooks(
        [
            hooks.IterationTimer(),
            hooks.LRScheduler(scheduler=scheduler),
            checkpoints,
        ]
    )
    if state is not None:
        checkpoints.restore(state)
    followers = []
    if comm.is_main_process():
        checkpoints.forget_metrics()
        followers = build_monitors(
            cfg, sets, model, checkpoints, seed, records, config_file=config_file, resume=resume
        )

    def evaluate_now(net: nn.Module) -> dict[str, Any]:
        return evaluate(cfg, sets, net, about | {"iteration": trainer.done})

    evaluation = EvalHook(cfg.train.eval_period, evaluate_now, checkpoints, followers)
    trainer.register_hooks([evaluation, *followers])
    trainer.train(loader, cfg.train.max_iter)
    return model


def do_test(cfg: DictConfig) -> nn.Module:
    """Evaluates ``train.init_checkpoint``, and writes what evaluations write to ``train.output_dir``.

    Args:
        cfg: as for :func:`do_train`.

    Returns:
        The evaluated model.

    Raises:
        UserError: there are no such weights, they are of other classes, or the folder has results of something else.
    """
    cfg, sets = _split_sets(cfg)
    with alone_in(cfg.train.output_dir):
        return _test(cfg, sets)


def _test(cfg: DictConfig, sets: Mapping[str, DictConfig]) -> nn.Module:
    if not cfg.train.init_checkpoint:
        raise UserError("--eval-only needs weights; write train.init_checkpoint=FILE")
    file = checkpoint.read(cfg.train.init_checkpoint)
    classes = file.require_classes()
    wanted = class_names(cfg.dataloader.test)
    if classes != wanted:
        raise UserError(
            f"{file.path} was trained for other classes ({preview(classes)}) than the data has ({preview(wanted)})"
        )
    folder, about = cfg.train.output_dir, {}
    if comm.is_main_process():
        about = describe_results(cfg, sets, file.about.get("iterations"), file.path)
    raise_together(lambda: refuse_to_replace_results(folder, about))
    setup(cfg)
    model = instantiate(cfg.model).to(cfg.train.device)
    checkpoint.load(model, file, classes)
    if comm.is_main_process():
        if not os.path.exists(f"{folder}/evaluation.json"):  # an earlier one is of the same
            save_evaluation(
                folder, None, about
            )  # so that what a stopped evaluation leaves is known to be of this one
        save_configs(cfg, sets)
    evaluate(cfg, sets, model, about)
    return model


def _split_sets(cfg: DictConfig) -> tuple[DictConfig, dict[str, DictConfig]]:
    """The config, and that of each validation set; a list of one name is as this name."""
    sets = validation_sets(cfg)
    if len(sets) == 1:
        (cfg,) = sets.values()
    return cfg, sets


class Test(NamedTuple):
    """An evaluation on one validation set.

    results: as Detectron2's evaluators give them, in rank 0.
    images: how many were evaluated.
    seconds: of all processes together, from the first image to the last.
    unwritten: why the evaluator could not write its files; "" if it could.
    max_detections: of an image and class that AP counts, where the evaluator says so.
    """

    results: dict[str, Any]
    images: int
    seconds: float
    unwritten: str
    max_detections: int | None


def evaluate(
    cfg: DictConfig, sets: Mapping[str, DictConfig], model: nn.Module, about: dict[str, Any]
) -> dict[str, Any]:
    """Evaluates a model on each validation set; rank 0 gets the results, of several sets by their names.

    Args:
        cfg: the config of the run.
        sets: its :func:`.validation_sets`.
        about: what evaluation.json says the results are of, in rank 0.

    Raises:
        UserError: an image cannot be read; or, outside of a training run, the results cannot be written.
    """
    tests: dict[str, Test] = {}
    unwritten = []
    for number, (name, alone) in enumerate(sets.items()):
        if len(sets) > 1:
            logger.info(f"evaluation on {name}, validation set {number + 1} of {len(sets)}")
        tests[name] = test = test_on(alone, model)
        unwritten.append(test.unwritten)
        if len(sets) > 1 and comm.is_main_process():
            of_set = about | {"data": about["data"][number]}
            unwritten.append(write_down(alone, [test], test.results, of_set))
    if not comm.is_main_process():
        return {}
    results = {name: test.results for name, test in tests.items()}
    if len(sets) == 1:
        (results,) = results.values()
    unwritten.append(write_down(cfg, tests.values(), results, about))
    reason = next(filter(None, unwritten), "")
    if reason and about["weights"] is not None:
        raise ProcessError(
            reason
        )  # not before all sets are evaluated, which the other processes take part in
    if reason:
        logger.error(f"{reason}; the training goes on")
    return results


def test_on(cfg: DictConfig, model: nn.Module) -> Test:
    """Evaluates a model on ``cfg.dataloader.test`` by ``cfg.dataloader.evaluator``."""
    loader = share_batches(instantiate(cfg.dataloader.test))
    evaluator = instantiate(cfg.dataloader.evaluator)
    times: list[float] = []
    clock = {event: lambda: times.append(time.perf_counter()) for event in ("on_start", "on_end")}
    try:
        with evaluation_bar(loader) as batches:
            results = inference_on_dataset(model, batches, evaluator, clock)
    except UserError as error:  # an image of this process's part
        raise ProcessError(str(error)) from None
    except (RuntimeError, OSError) as error:
        if reason := loading_failure(error):
            raise ProcessError(f"evaluation: {reason}") from error
        raise
    if comm.is_main_process():
        print_csv_format(results)
    seconds = (times[1] - times[0]) * comm.get_world_size()
    dataset: Any = loader.dataset  # not every one of PyTorch's has a length
    return Test(
        results,
        len(dataset),
        seconds,
        getattr(evaluator, "unwritten", ""),
        getattr(evaluator, "max_detections", None),
    )


def write_down(
    cfg: DictConfig, tests: Collection[Test], results: dict[str, Any], about: dict[str, Any]
) -> str:
    """Writes evaluation.json. Returns: why that cannot be done; "" if it is done."""
    images = sum(test.images for test in tests)
    try:
        save_evaluation(
            cfg.train.output_dir,
            results,
            about,
            images=images,
            seconds_per_image=sum(test.seconds for test in tests) / images,
            device=device_name(cfg.train.device),
            max_detections=next(iter(tests)).max_detections,  # the same of all
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
    """What evaluation.json says the results are of.

    Args:
        cfg: the config of the run.
        sets: its :func:`.validation_sets`.
        iteration: iterations that the model was trained for, where they are known.
        weights: the file that it comes from, if that is no training run.
    """
    masks = "segm" in (OmegaConf.select(cfg, "dataloader.evaluator.tasks") or ())
    names = [alone.dataloader.test.dataset.names for alone in sets.values()]
    data = [evaluated_data(name, masks=masks) for name in names]
    return {
        "weights": weights,
        "iteration": iteration,
        "settings": settings(cfg),
        "data": data if len(data) > 1 else data[0],
    }


def save_configs(cfg: DictConfig, sets: Mapping[str, DictConfig]) -> None:
    """Saves the config of a run, and next to the results of each validation set the one of its evaluation."""
    for config in [cfg, *sets.values()] if len(sets) > 1 else [cfg]:
        save_config(config, f"{config.train.output_dir}/config.yaml")


@contextlib.contextmanager
def alone_in(folder: str) -> Iterator[None]:
    """Keeps other runs out of the output folder, and this one, all of its processes, if there is another."""
    with contextlib.ExitStack() as stack:
        raise_together(lambda: stack.enter_context(lock_folder(folder)))
        yield


def raise_together(action: Callable[[], object]) -> None:
    """Does something in process 0; a UserError is raised in all."""
    error = ""
    if comm.is_main_process():
        try:
            action()
        except UserError as failure:
            error = str(failure)
    if error := next(filter(None, comm.all_gather(error)), ""):
        raise UserError(error)
