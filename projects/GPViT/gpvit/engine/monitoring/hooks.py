"""What process 0 shows and writes down of a training, beside its checkpoints, for people to follow it."""

import atexit
import contextlib
import logging
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import instantiate
from detectron2.structures import Instances
from detectron2.utils.events import CommonMetricPrinter, EventWriter, JSONWriter, TensorboardXWriter
from omegaconf import DictConfig
from torch import nn

from ...data.datasets.coco_rules import MAX_DETECTIONS
from ...data.image_io import read_image
from ...evaluation.metrics import main_metrics
from ...utils.errors import UserError
from ...utils.files import atomic_write, make_folder
from ...utils.logger import has_terminal
from ...utils.paths import utf8_path
from ...utils.seed import seeded
from ...utils.text import LINE_LIMIT, PATH_LIMIT, one_line
from ...visualization.curves import save_curves
from ...visualization.drawing import draw_annotations, draw_predictions, reduced, save_sheet
from ..checkpointer import Checkpointer
from ..ddp import unwrap_ddp
from ..hooks import MonitorHook, best_effort
from ..setup import open_log
from .progress_bar import ProgressBar
from .run_readme import RunReadme

logger = logging.getLogger(__name__)

METRICS = "metrics.json"
SURE = 0.5  # score
LARGEST_SIDE = 1000  # pixels of a drawn picture; larger ones would fill the event files


def build_monitors(
    cfg: DictConfig,
    sets: Mapping[str, DictConfig],
    model: nn.Module,
    checkpoints: Checkpointer,
    seed: int,
    records: Sequence[dict[str, Any]],
    *,
    config_file: str,
    resume: bool,
) -> list[MonitorHook]:
    """What process 0 shows and writes down of a training, in the order in which it does.

    Args:
        cfg: the training's config.
        sets: its :func:`.validation_sets`; images of the first one are drawn.
        model: the detector.
        checkpoints: of the training, already at the iteration that it begins with.
        seed: of the training.
        records: the training data.
        config_file: where the config came from.
        resume: whether earlier starts in the folder are of the same training.

    Raises:
        UserError: Weights & Biases is asked for and cannot be used, or metrics.json cannot be opened.
    """
    folder, test = Path(cfg.train.output_dir), cfg.dataloader.test
    validation = {name: instantiate(alone.dataloader.test.dataset) for name, alone in sets.items()}
    followers: list[MonitorHook] = []
    if cfg.train.get("pictures"):  # which older configs lack, and wandb
        mapper, classes = instantiate(test.mapper), checkpoints.classes
        first = next(iter(validation.values()))
        followers.append(
            ValidationImages(first, mapper, classes, count=cfg.train.pictures, folder=folder)
        )
    printer = CommonMetricPrinter(cfg.train.max_iter)
    try:
        files = file_writers(folder)
    except OSError as error:
        path = one_line(folder / METRICS, PATH_LIMIT)
        raise UserError(f"cannot write {path}: {error.strerror}") from None
    if cfg.train.get("wandb"):
        from .wandb_writer import WandbWriter  # needs a package that others do not

        files.insert(0, WandbWriter(cfg.train.wandb, folder, checkpoints.config, resume=resume))
    followers += [PeriodicWriters(printer, files, cfg.train.log_period, folder), CurvesHook(folder)]
    data = [("train", cfg.dataloader.train.dataset.names, records)]
    for name, alone in sets.items():
        split = f"val: {name}" if len(sets) > 1 else "val"
        data.append((split, alone.dataloader.test.dataset.names, validation[name]))
    _note_many_objects(cfg, data)
    followers.append(
        RunReadme(cfg, sets, config_file, model, seed, data, checkpoints, resume=resume)
    )
    if has_terminal():
        followers.append(
            ProgressBar(checkpoints.trainer.done, cfg.train.max_iter, main_metrics(cfg))
        )
    return followers


def _note_many_objects(
    cfg: DictConfig, data: Sequence[tuple[str, Any, Sequence[dict[str, Any]]]]
) -> None:
    """Logs of which data images have more objects than the detector gives or AP counts; crowds are none."""
    counted = cfg.dataloader.evaluator.get("max_dets_per_image") or MAX_DETECTIONS
    limit = min(counted, _given(cfg.model) or counted)
    for split, _, records in data:
        counts = (
            sum(not item.get("iscrowd") for item in record.get("annotations", ()))
            for record in records
        )
        if (most := max(counts, default=0)) > limit:
            logger.warning(
                f"{split}: images have up to {most} objects, of which a detector gives and AP counts {limit}; "
                f"dataloader.max_detections raises both"
            )


def _given(model: DictConfig) -> int | None:
    """How many detections of an image a detector gives; None if its config does not say."""
    if "roi_heads" not in model:
        return model.get("max_detections_per_image")
    predictors = model.roi_heads.get("box_predictors") or [
        model.roi_heads.get("box_predictor") or {}
    ]
    return predictors[-1].get("test_topk_per_image")


def file_writers(folder: Path) -> list[EventWriter]:
    """Detectron2's writers of metrics.json and for TensorBoard. Raises an OSError if they cannot write."""
    until_exit = contextlib.ExitStack()  # TensorBoard opens files as long as the process runs
    atexit.register(until_exit.close)
    events = until_exit.enter_context(utf8_path(folder))
    return [JSONWriter(str(folder / METRICS)), TensorboardXWriter(events)]


class PeriodicWriters(MonitorHook):
    """Gives what is measured to Detectron2's writers.

    Args:
        printer: of lines in the log; every ``period`` iterations and at the end.
        writers: of files; also at each evaluation.
        period: iterations.
        folder: of the run.
    """

    def __init__(
        self, printer: EventWriter, writers: Sequence[EventWriter], period: int, folder: Path
    ) -> None:
        self.printer, self.writers, self.period, self.folder = (
            printer,
            list(writers),
            period,
            folder,
        )
        self.failing: set[object] = set()
        self._hook_before = threading.excepthook

    def before_train(self) -> None:
        threading.excepthook = self._on_error_of_a_thread

    def after_step(self) -> None:
        is_last = self.trainer.done == self.trainer.max_iter
        if self.trainer.done % self.period == 0 or is_last:
            # Detectron2's writer of metrics.json takes each iteration once, and the last evaluation is still to come.
            self._write(log=True, files=not is_last)

    def after_evaluation(self) -> None:
        self._write(log=False)

    def after_train(self) -> None:
        self._write(log=True)
        for writer in self.writers:
            self._try(writer, writer.close)
        threading.excepthook = self._hook_before

    def on_stop(self) -> None:
        self.after_train()

    def _write(self, *, log: bool, files: bool = True) -> None:
        if not os.path.exists(self.folder / METRICS):
            self._try(self, self._begin_anew)
        for writer in [*([self.printer] if log else []), *(self.writers if files else [])]:
            self._try(writer, writer.write)
        self.trainer.storage.clear_images()  # TensorBoard's writer does, if it comes so far

    def _begin_anew(self) -> None:
        """Somebody has removed the folder, or what is in it: what is open would be written to files that nobody sees."""
        make_folder(self.folder)
        open_log(str(self.folder))
        path = one_line(self.folder / METRICS, PATH_LIMIT)
        logger.error(f"{path} was removed: metrics and log begin again, and the run goes on")
        files = file_writers(self.folder)
        kinds = {type(file) for file in files}
        for writer in self.writers:
            if type(writer) in kinds:
                self._try(writer, writer.close)
        self.writers = [writer for writer in self.writers if type(writer) not in kinds] + files

    def _on_error_of_a_thread(self, args: threading.ExceptHookArgs) -> None:
        """TensorBoard's raises what :meth:`_try` is told too, and Python would show a traceback of it."""
        if not (
            isinstance(args.exc_value, OSError) and "tensorboard" in type(args.thread).__module__
        ):
            self._hook_before(args)

    def _try(self, writer: object, action: Callable[[], None]) -> None:
        """A failure is told once, until the writer has worked again."""
        try:
            action()
            self.failing.discard(writer)
        except Exception as error:
            if writer not in self.failing:
                reason = one_line(error, LINE_LIMIT)
                logger.error(
                    f"{type(writer).__name__} failed, metrics may be missing ({reason}); the run goes on"
                )
            self.failing.add(writer)


class ValidationImages(MonitorHook):
    """Draws what the model finds in some validation pictures, beside the truth, at each evaluation.

    What it is sure of is drawn and, since it is of nothing in the beginning, what it finds most likely, up to as many as
    there are objects. The pictures go to TensorBoard, and on a sheet to ``pictures/ITERATIONS.png``.

    Args:
        records: the validation pictures, of which ``count`` are taken, the same each time.
        mapper: makes of a record what the model takes.
        classes: their names.
        count: pictures.
        folder: of the run.
    """

    def __init__(
        self,
        records: Sequence[dict[str, Any]],
        mapper: Callable[[dict[str, Any]], dict[str, Any]],
        classes: Sequence[str],
        *,
        count: int,
        folder: Path,
    ) -> None:
        candidates = [record for record in records if record.get("annotations")] or list(records)
        self.records = candidates[:: max(1, len(candidates) // count)][:count]
        self.mapper, self.classes, self.folder = mapper, classes, folder / "pictures"

    def after_evaluation(self) -> None:
        averaged = self.trainer.ema
        model = unwrap_ddp(self.trainer.model) if averaged is None else averaged.module
        with best_effort("no pictures of predictions this time"):
            drawn = []
            with seeded(0), evaluating(model), torch.no_grad():
                for record in self.records:
                    try:
                        drawn.append((Path(record["file_name"]).name, self._draw(model, record)))
                    except UserError as error:
                        logger.warning(f"a picture is not drawn: {error}")
            self._keep(drawn)

    def _draw(self, model: nn.Module, record: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        """Truth and prediction on the picture, (H, W, 3), RGB, both of the same size."""
        image = read_image(record["file_name"])
        (output,) = model([self.mapper(record)])
        found: Instances = output["instances"].to("cpu")  # the best first
        shown = max(int((found.scores >= SURE).sum()), len(record.get("annotations", ())))
        prediction = draw_predictions(image, found[:shown], self.classes)
        scale = LARGEST_SIDE / max(prediction.shape[:2])
        return reduced(draw_annotations(image, record, self.classes), scale), reduced(
            prediction, scale
        )

    def _keep(self, drawn: list[tuple[str, tuple[np.ndarray, np.ndarray]]]) -> None:
        """Args: drawn: names with truth and prediction."""
        if not drawn:
            return
        for number, (name, pair) in enumerate(drawn):  # names from two folders may be the same
            self.trainer.storage.put_image(
                f"pictures/{number} {one_line(name)}", np.hstack(pair).transpose(2, 0, 1)
            )
        with atomic_write(self.folder / f"{self.trainer.done:07}.png") as path:
            save_sheet([pair for _, pair in drawn], path)


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode; afterwards each part of it is in the mode that it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


class CurvesHook(MonitorHook):
    """Draws ``curves.png`` at each evaluation."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def after_evaluation(self) -> None:
        with (
            best_effort("no curves.png this time"),
            atomic_write(self.folder / "curves.png") as path,
        ):
            save_curves(self.folder / METRICS, path)
