r"""Trains and evaluates the detectors of configs/.

python train_net.py --config-file configs/mask_rcnn_gpvit_l1.py --num-gpus 8
python train_net.py --config-file configs/mask_rcnn_gpvit_l1.py --eval-only \
    train.init_checkpoint=model.pth train.output_dir=output/evaluation
"""

import os
import signal

if __name__ == "__main__":  # Ctrl-C during the imports, which take seconds
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))
elif __name__ == "__mp_main__":  # a process that is spawned: also while it waits for the others
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import contextlib
import functools
import logging
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, NamedTuple

import gpvit.checkpoint
import gpvit.data
from detectron2.config import instantiate
from detectron2.engine import hooks
from detectron2.evaluation import inference_on_dataset, print_csv_format
from detectron2.solver import LRMultiplier
from detectron2.utils import comm
from gpvit.config import check_config, load_config, save_config
from gpvit.data.loader import check_batches, loading_failure, share_batches
from gpvit.engine import (
    DATA,
    Checkpoints,
    Evaluation,
    Trainer,
    argument_parser,
    build_ddp,
    build_followers,
    check_best_metric,
    check_unchanged,
    choose_device,
    device_name,
    evaluation_bar,
    launch,
    newest,
    processes_of,
    refuse_evaluated,
    refuse_to_replace_results,
    refuse_used,
    save_evaluation,
    settings,
    setup,
    shared_seed,
    spawns_processes,
    validation_names,
    validation_sets,
)
from gpvit.evaluation.coco_evaluation import evaluated_data
from gpvit.utils.errors import ProcessError, UserError, listed
from gpvit.utils.files import lock_folder
from gpvit.utils.fingerprint import dataset_fingerprint, like
from gpvit.utils.signals import interrupt
from gpvit.utils.text import print_anything
from omegaconf import DictConfig, OmegaConf
from torch import nn

logger = logging.getLogger("gpvit")


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


def do_test(cfg: DictConfig, sets: Mapping[str, DictConfig], model: nn.Module, about: dict[str, Any]) -> dict[str, Any]:
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
        raise ProcessError(reason)  # not before all sets are evaluated, which the other processes take part in
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
    return Test(
        results,
        len(loader.dataset),
        seconds,
        getattr(evaluator, "unwritten", ""),
        getattr(evaluator, "max_detections", None),
    )


def write_down(cfg: DictConfig, tests: Collection[Test], results: dict[str, Any], about: dict[str, Any]) -> str:
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


def do_train(args, cfg: DictConfig, sets: Mapping[str, DictConfig]) -> nn.Module:
    """Trains what the config says, with checkpoints, metrics and evaluation along the way.

    Args:
        cfg: a config with these attributes:
            model, optimizer, lr_multiplier: instantiated; ``optimizer.params.model`` is set here
            dataloader.{train, test, evaluator}: instantiated; ``dataloader.train.{seed, start_iter, skip}`` are set here
            train: see configs/common/train.py
        sets: its :func:`.validation_sets`.

    Returns:
        The trained model.
    """
    if not args.resume:
        refuse_used(cfg.train.output_dir)
    refuse_evaluated(cfg.train.output_dir)
    state = newest(cfg.train.output_dir) if args.resume else None
    seed = state["seed"] if state is not None else shared_seed(cfg.train.seed)
    start_iter = state["trainer"]["iteration"] if state is not None else 0
    cfg.dataloader.train.update(seed=seed, start_iter=start_iter, skip=cfg.train.skip_budget > 0)
    loader = instantiate(cfg.dataloader.train)
    classes = gpvit.data.class_names(cfg.dataloader.train)
    records = loader.dataset.records
    checkpoints = Checkpoints(cfg, classes, dataset_fingerprint(records, classes), **cfg.train.checkpointer)
    if state is not None:
        if state["classes"] != classes:
            raise UserError(
                f"{state['path']} is of a training for other classes ({listed(state['classes'])}) than the data has "
                f"({listed(classes)}): begin anew in another train.output_dir, from its weights if you like"
            )
        data = like(state["config"].get(DATA, ""), records, classes)
        check_unchanged(state["config"], checkpoints.config | {DATA: data}, state["path"])
    about = {}
    if comm.is_main_process():
        save_configs(cfg, sets)
        about = describe_results(cfg, sets, None)
    model = instantiate(cfg.model).to(cfg.train.device)
    if state is None and cfg.train.init_checkpoint:
        gpvit.checkpoint.load(model, cfg.train.init_checkpoint, classes, for_training=True)
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
        followers = build_followers(args, cfg, sets, model, checkpoints, seed, records)

    def evaluate(net: nn.Module) -> dict:
        return do_test(cfg, sets, net, about | {"iteration": trainer.done})

    evaluation = Evaluation(cfg.train.eval_period, evaluate, checkpoints, followers)
    trainer.register_hooks([evaluation, *followers])
    trainer.train(loader, cfg.train.max_iter)
    return model


def configure(args):
    """The config that the command line asks for."""
    cfg, train = load_config(args.config_file, args.overrides), not args.eval_only
    check_config(cfg, train=train)
    cfg.train.device = choose_device(cfg.train.device, args.num_gpus)
    processes = processes_of(args)
    if train:
        check_batches(cfg, processes)
    if cfg.train.amp.enabled == "auto":
        cfg.train.amp.enabled = cfg.train.device == "cuda"
    if args.data:
        gpvit.data.use_folder(cfg, args.data, train=train)
    gpvit.data.require_files(cfg.dataloader.test)
    if train:
        gpvit.data.require_files(cfg.dataloader.train)
    classes = gpvit.data.check_classes(cfg, train=train)
    if train:
        check_best_metric(cfg.train.checkpointer.get("best_metric"), cfg, classes)
        if cfg.train.get("wandb"):
            from gpvit.engine import weights_and_biases  # noqa: F401 (says before anything begins if it is missing)
    return cfg


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


def evaluate_only(cfg: DictConfig, sets: Mapping[str, DictConfig]) -> nn.Module:
    """Evaluates ``train.init_checkpoint``."""
    if not cfg.train.init_checkpoint:
        raise UserError("--eval-only needs weights; write train.init_checkpoint=FILE")
    file = gpvit.checkpoint.read(cfg.train.init_checkpoint)
    classes = file.require_classes()
    wanted = gpvit.data.class_names(cfg.dataloader.test)
    if classes != wanted:
        raise UserError(
            f"{file.path} was trained for other classes ({listed(classes)}) than the data has ({listed(wanted)})"
        )
    folder, about = cfg.train.output_dir, {}
    if comm.is_main_process():
        about = describe_results(cfg, sets, file.about.get("iterations"), file.path)
    raise_together(lambda: refuse_to_replace_results(folder, about))
    setup(cfg)
    model = instantiate(cfg.model).to(cfg.train.device)
    gpvit.checkpoint.load(model, file, classes)
    if comm.is_main_process():
        if not os.path.exists(f"{folder}/evaluation.json"):  # an earlier one is of the same
            save_evaluation(folder, None, about)  # so that what a stopped evaluation leaves is known to be of this one
        save_configs(cfg, sets)
    do_test(cfg, sets, model, about)
    return model


def main(args, cfg: DictConfig | None = None) -> nn.Module:
    """What each process runs; returns the trained or evaluated model.

    Args:
        args: the command line.
        cfg: what :func:`configure` made of it, if this process has called it already: a config may register
            datasets, which Detectron2 lets a process do once.
    """
    cfg = configure(args) if cfg is None else cfg
    sets = validation_sets(cfg)
    if len(sets) == 1:  # a list of one name is as this name
        (cfg,) = sets.values()
    with alone_in(cfg.train.output_dir):
        if args.eval_only:
            return evaluate_only(cfg, sets)
        setup(cfg)
        return do_train(args, cfg, sets)


if __name__ == "__main__":
    try:
        signal.signal(signal.SIGINT, interrupt)  # the imports are done
        args = argument_parser().parse_intermixed_args()
        print_anything()
        cfg = configure(args)
        validation_names(cfg)  # so that an error comes before the processes, as do those of the weights
        if cfg.train.init_checkpoint and not args.resume:
            gpvit.checkpoint.fetch(cfg.train.init_checkpoint)
        here = main if spawns_processes(args) else functools.partial(main, cfg=cfg)
        launch(here, args, cfg.train.device)
    except UserError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
