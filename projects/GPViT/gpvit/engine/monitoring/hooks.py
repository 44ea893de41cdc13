"""Monitors of a run, which process 0 calls: logs, metrics, drawings and README.md."""

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

from ...data.classification_mapper import read_classified
from ...data.datasets.coco_rules import MAX_DETECTIONS
from ...data.image_io import read_image
from ...data.label_maps import labels_of
from ...evaluation.metrics import main_metrics
from ...modeling.segmentation import predicting_class_maps
from ...utils.errors import UserError
from ...utils.files import atomic_write, make_folder
from ...utils.logger import has_terminal
from ...utils.paths import utf8_path
from ...utils.seed import seeded
from ...utils.text import LINE_LIMIT, PATH_LIMIT, one_line
from ...visualization.classification_drawing import draw_label
from ...visualization.curves import save_curves
from ...visualization.drawing import draw_annotations, draw_predictions, reduced, save_sheet
from ...visualization.label_drawing import draw_labels
from ..checkpointer import Checkpointer
from ..ddp import unwrap_ddp
from ..hooks import MonitorHook, best_effort
from ..setup import open_log
from .progress_bar import ProgressBar
from .run_readme import RunReadme

logger = logging.getLogger(__name__)

METRICS = "metrics.json"
DRAWN_SCORE = 0.5  # and more: detections that are always drawn
LARGEST_SIDE = 1000  # pixels of a drawing, since larger ones would fill the event files


def build_monitors(
    cfg: DictConfig,
    sets: Mapping[str, DictConfig],
    model: nn.Module,
    checkpointer: Checkpointer,
    seed: int,
    records: Sequence[dict[str, Any]],
    *,
    config_file: str,
    resume: bool,
) -> list[MonitorHook]:
    """Return the monitors of a run, in the order in which they are called.

    Args:
        cfg: the config of the run.
        sets: its :func:`.validation_sets`; images of the first one are drawn.
        model: the detector.
        checkpointer: of the run, restored to the iteration that training starts from.
        seed: of the run.
        records: the training data.
        config_file: path of the config file.
        resume: whether earlier starts in the folder belong to the same run.

    Raises:
        UserError: Weights & Biases is requested and unavailable, or metrics.json cannot be opened.
    """
    folder, test = Path(cfg.train.output_dir), cfg.dataloader.test
    validation = {}  # records, by validation set
    for name, set_cfg in sets.items():
        validation[name] = instantiate(set_cfg.dataloader.test.dataset)
    monitors: list[MonitorHook] = []
    if cfg.train.get("pictures"):  # older configs do not have it, nor wandb
        mapper, first = instantiate(test.mapper), next(iter(validation.values()))
        monitors.append(
            ValidationImages(
                first,
                mapper,
                checkpointer.classes,
                checkpointer.palette,
                count=cfg.train.pictures,
                folder=folder,
            )
        )
    printer = CommonMetricPrinter(cfg.train.max_iter)
    try:
        writers = file_writers(folder)
    except OSError as error:
        path = one_line(folder / METRICS, PATH_LIMIT)
        raise UserError(f"cannot write {path}: {error.strerror}") from None
    if cfg.train.get("wandb"):
        from .wandb_writer import WandbWriter  # imports an optional dependency

        # Before TensorBoard's writer, which removes the images from the storage.
        writers.insert(0, WandbWriter(cfg.train.wandb, folder, checkpointer.config, resume=resume))
    # They write the drawings of ValidationImages. CurvesHook reads their metrics.
    monitors.append(PeriodicWriters(printer, writers, cfg.train.log_period, folder))
    monitors.append(CurvesHook(folder))
    data = [("train", cfg.dataloader.train.dataset.names, records)]
    for name, set_cfg in sets.items():
        split = f"val: {name}" if len(sets) > 1 else "val"
        data.append((split, set_cfg.dataloader.test.dataset.names, validation[name]))
    _warn_about_many_objects(cfg, data)
    # Last, since it refers to the files of the others.
    monitors.append(
        RunReadme(cfg, sets, config_file, model, seed, data, checkpointer, resume=resume)
    )
    if has_terminal():
        done, max_iter = checkpointer.trainer.done, cfg.train.max_iter
        monitors.append(ProgressBar(done, max_iter, main_metrics(cfg)))
    return monitors


def _warn_about_many_objects(
    cfg: DictConfig, data: Sequence[tuple[str, Any, Sequence[dict[str, Any]]]]
) -> None:
    """Log which splits have images with more objects than the detector returns or AP counts."""
    counted = cfg.dataloader.evaluator.get("max_dets_per_image") or MAX_DETECTIONS
    limit = min(counted, _detections_per_image(cfg.model) or counted)
    for split, _, records in data:
        most = max(map(_number_of_objects, records), default=0)
        if most > limit:
            logger.warning(
                f"{split}: images have up to {most} objects, of which a detector returns and "
                f"AP counts {limit}; raise dataloader.max_detections, which sets both"
            )


def _number_of_objects(record: dict[str, Any]) -> int:
    """Return the number of objects of an image without crowds."""
    return sum(not item.get("iscrowd") for item in record.get("annotations", ()))


def _detections_per_image(model: DictConfig) -> int | None:
    """Return how many detections a detector returns at most; None if its config has no limit."""
    if "roi_heads" not in model:
        return model.get("max_detections_per_image")
    predictors = model.roi_heads.get("box_predictors")  # of a cascade; the last one applies
    predictor = predictors[-1] if predictors else model.roi_heads.get("box_predictor") or {}
    return predictor.get("test_topk_per_image")


def file_writers(folder: Path) -> list[EventWriter]:
    """Return Detectron2's writers of metrics.json and of TensorBoard's events.

    Raises:
        OSError: they cannot write.
    """
    # TensorBoard's writer opens files until the process exits, and so needs the path until then.
    until_exit = contextlib.ExitStack()
    atexit.register(until_exit.close)
    events = until_exit.enter_context(utf8_path(folder))
    return [JSONWriter(str(folder / METRICS)), TensorboardXWriter(events)]


class PeriodicWriters(MonitorHook):
    """Calls Detectron2's event writers.

    Args:
        printer: writes to the log; called every ``period`` iterations and at the end.
        writers: write to files; also called after each evaluation.
        period: iterations.
        folder: of the run.
    """

    def __init__(
        self, printer: EventWriter, writers: Sequence[EventWriter], period: int, folder: Path
    ) -> None:
        self.printer, self.writers = printer, list(writers)
        self.period, self.folder = period, folder
        self.failing: set[object] = set()  # writers whose failure has been logged
        self._previous_excepthook = threading.excepthook

    def before_train(self) -> None:
        threading.excepthook = self._ignore_tensorboard

    def after_step(self) -> None:
        is_last = self.trainer.done == self.trainer.max_iter
        if self.trainer.done % self.period == 0 or is_last:
            # JSONWriter writes each iteration once only: the last one after its evaluation.
            self._write(log=True, files=not is_last)

    def after_evaluation(self) -> None:
        self._write(log=False)

    def after_train(self) -> None:
        self._write(log=True)
        for writer in self.writers:
            self._try(writer, writer.close)
        threading.excepthook = self._previous_excepthook

    def on_stop(self) -> None:
        self.after_train()

    def _write(self, *, log: bool, files: bool = True) -> None:
        if not os.path.exists(self.folder / METRICS):
            self._try(self, self._reopen_files)
        if log:
            self._try(self.printer, self.printer.write)
        if files:
            for writer in self.writers:
                self._try(writer, writer.write)
        # TensorBoard's writer does this, too, but not if it fails.
        self.trainer.storage.clear_images()

    def _reopen_files(self) -> None:
        """Create the output folder and its files again after they were removed.

        What is written to the open files would be lost, since they have no names any more.
        """
        make_folder(self.folder)
        open_log(str(self.folder))
        path = one_line(self.folder / METRICS, PATH_LIMIT)
        logger.error(f"{path} was removed: metrics and log start again, and the run continues")
        reopened = file_writers(self.folder)
        kinds = tuple(map(type, reopened))
        kept = []  # WandbWriter
        for writer in self.writers:
            if type(writer) in kinds:
                self._try(writer, writer.close)
            else:
                kept.append(writer)
        self.writers = kept + reopened

    def _ignore_tensorboard(self, args: threading.ExceptHookArgs) -> None:
        """Hide the traceback of TensorBoard's thread: its writer raises the same error again."""
        is_tensorboard = "tensorboard" in type(args.thread).__module__
        if not (isinstance(args.exc_value, OSError) and is_tensorboard):
            self._previous_excepthook(args)

    def _try(self, writer: object, action: Callable[[], None]) -> None:
        """Log a failure of a writer once, until it has succeeded again."""
        try:
            action()
            self.failing.discard(writer)
        except Exception as error:
            if writer not in self.failing:
                name, reason = type(writer).__name__, one_line(error, LINE_LIMIT)
                logger.error(f"{name} failed, metrics may be missing ({reason}); the run continues")
            self.failing.add(writer)


class ValidationImages(MonitorHook):
    """Draws ground truth and predictions for a few validation images at each evaluation.

    Of a classifier, the class is written into the image. Of a detector, all detections with a score
    of at least :data:`DRAWN_SCORE` are drawn. Since there are few of them in the beginning, the
    best others are drawn as well, up to the number of objects. The drawings are written to
    TensorBoard, and together to ``pictures/ITERATIONS.png``.

    Args:
        records: the validation images; ``count`` of them are drawn, always the same.
        mapper: turns a record into an input of the model.
        classes: names of the classes.
        palette: color of each class of label maps.
        count: number of images.
        folder: of the run.
    """

    def __init__(
        self,
        records: Sequence[dict[str, Any]],
        mapper: Callable[[dict[str, Any]], dict[str, Any]],
        classes: Sequence[str],
        palette: Sequence[Sequence[int]] = (),
        *,
        count: int,
        folder: Path,
    ) -> None:
        with_objects = [record for record in records if record.get("annotations")]
        candidates = with_objects or list(records)
        step = max(1, len(candidates) // count)  # spread evenly over the dataset
        self.records = candidates[::step][:count]
        self.mapper, self.classes, self.palette = mapper, classes, palette
        self.folder = folder / "pictures"

    def after_evaluation(self) -> None:
        averaged = self.trainer.ema
        model = unwrap_ddp(self.trainer.model) if averaged is None else averaged.module
        with best_effort("predictions were not drawn"):
            names, drawings = [], []
            # Random numbers and training modes are restored, so that training is not influenced.
            with seeded(0), evaluating(model), torch.no_grad():
                for record in self.records:
                    try:
                        drawings.append(self._draw(model, record))
                        names.append(Path(record["file_name"]).name)
                    except UserError as error:
                        logger.warning(f"a validation image was not drawn: {error}")
            self._save(names, drawings)

    def _draw(self, model: Any, record: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        """Draw ground truth and prediction: (H, W, 3), RGB, both of the same size."""
        with predicting_class_maps(model):
            (output,) = model([self.mapper(record)])
        if "scores" in output:
            classified = read_classified(record)
            score, index = output["scores"].max(0)
            texts = self.classes[record["label"]], f"{self.classes[int(index)]} {score:.0%}"
            drawings = [draw_label(classified, text) for text in texts]
            scale = LARGEST_SIDE / max(drawings[0].shape[:2])
            return reduced(drawings[0], scale), reduced(drawings[1], scale)
        image = read_image(record["file_name"])
        if "sem_seg" in output:
            truth = labels_of(record, model.sem_seg_head.ignore_value)
            drawings = []
            for labels in (truth, output["sem_seg"].cpu().numpy()):
                drawing = draw_labels(image, labels, self.classes, self.palette)
                drawings.append(reduced(drawing, LARGEST_SIDE / max(drawing.shape[:2])))
            return drawings[0], drawings[1]
        detections: Instances = output["instances"].to("cpu")  # in descending order of scores
        confident = int((detections.scores >= DRAWN_SCORE).sum())
        number = max(confident, len(record.get("annotations", ())))
        prediction = draw_predictions(image, detections[:number], self.classes)
        ground_truth = draw_annotations(image, record, self.classes)
        scale = LARGEST_SIDE / max(prediction.shape[:2])
        return reduced(ground_truth, scale), reduced(prediction, scale)

    def _save(self, names: list[str], drawings: list[tuple[np.ndarray, np.ndarray]]) -> None:
        """Save the drawings of ground truth and prediction; ``names`` are of the image files."""
        if not drawings:
            return
        for number, (name, pair) in enumerate(zip(names, drawings)):
            side_by_side = np.hstack(pair).transpose(2, 0, 1)  # (H, 2W, 3) -> (3, H, 2W)
            # With a number, since files in different folders may have the same name.
            self.trainer.storage.put_image(f"pictures/{number} {one_line(name)}", side_by_side)
        with atomic_write(self.folder / f"{self.trainer.done:07}.png") as path:
            save_sheet(drawings, path)


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Set a model to evaluation mode, and restore the mode of each of its modules at the end."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


class CurvesHook(MonitorHook):
    """Plots ``curves.png`` at each evaluation."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def after_evaluation(self) -> None:
        with (
            best_effort("curves.png was not written"),
            atomic_write(self.folder / "curves.png") as path,
        ):
            save_curves(self.folder / METRICS, path)
