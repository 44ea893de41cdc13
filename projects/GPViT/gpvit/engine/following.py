"""What process 0 shows and writes down of a training, beside its checkpoints, for people to follow it."""

import argparse
import contextlib
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from detectron2.config import instantiate
from detectron2.engine import default_writers
from detectron2.structures import Instances
from detectron2.utils.events import EventWriter
from omegaconf import DictConfig
from torch import nn

from ..errors import UserError
from ..images import read_image
from ..visualize import draw_annotations, draw_predictions, save_curves, save_sheet
from .checkpoints import Checkpoints, whole
from .loader import seeded
from .run_page import RunPage
from .terminal import ProgressBar, has_terminal
from .trainer import Follower, finite_or_text, going_on, unwrapped

logger = logging.getLogger(__name__)

SURE = 0.5  # score
LARGEST_SIDE = 1000  # pixels of a drawn picture; larger ones would fill the event files


def build_followers(
    args: argparse.Namespace,
    cfg: DictConfig,
    model: nn.Module,
    checkpoints: Checkpoints,
    seed: int,
    records: Sequence[dict[str, Any]],
) -> list[Follower]:
    """What process 0 shows and writes down of a training, in the order in which it does.

    Args:
        args: the command line; ``config_file`` and ``resume`` are used.
        cfg: the training's config.
        model: the detector.
        checkpoints: of the training, already at the iteration that it begins with.
        seed: of the training.
        records: the training data.

    Raises:
        UserError: Weights & Biases is asked for and cannot be used.
    """
    folder, test = Path(cfg.train.output_dir), cfg.dataloader.test
    validation = instantiate(test.dataset)
    followers: list[Follower] = []
    if cfg.train.get("pictures"):  # which older configs lack, and wandb
        mapper, classes = instantiate(test.mapper), checkpoints.classes
        followers.append(Pictures(validation, mapper, classes, count=cfg.train.pictures, folder=folder))
    printer, *files = default_writers(cfg.train.output_dir, cfg.train.max_iter)
    if cfg.train.get("wandb"):
        from .weights_and_biases import WandbWriter  # needs a package that others do not

        files.insert(0, WandbWriter(cfg.train.wandb, folder, checkpoints.config, resume=args.resume))
    followers += [Writers(printer, files, cfg.train.log_period), Curves(folder)]
    splits = {"train": (cfg.dataloader.train.dataset.names, records), "val": (test.dataset.names, validation)}
    followers.append(RunPage(cfg, args.config_file, model, seed, splits, checkpoints, resume=args.resume))
    if has_terminal():
        followers.append(ProgressBar(checkpoints.trainer.done, cfg.train.max_iter))
    return followers


class Writers(Follower):
    """Gives what is measured to Detectron2's writers.

    Args:
        printer: of lines in the log; every ``period`` iterations and at the end.
        writers: of files; also at each evaluation.
        period: iterations.
    """

    def __init__(self, printer: EventWriter, writers: Sequence[EventWriter], period: int) -> None:
        self.printer, self.writers, self.period = printer, writers, period
        self.failing: set[EventWriter] = set()

    def after_step(self) -> None:
        if self.trainer.done % self.period == 0 or self.trainer.done == self.trainer.max_iter:
            self._write([self.printer, *self.writers])

    def after_evaluation(self) -> None:
        self._write(self.writers)

    def after_train(self) -> None:
        self._write([self.printer, *self.writers])
        for writer in self.writers:
            self._try(writer, writer.close)

    def on_stop(self) -> None:
        self.after_train()

    def _write(self, writers: Sequence[EventWriter]) -> None:
        for writer in writers:
            self._try(writer, writer.write)
        self.trainer.storage.clear_images()  # TensorBoard's writer does, if it comes so far

    def _try(self, writer: EventWriter, action: Callable[[], None]) -> None:
        """A failure is told once, until the writer has worked again."""
        try:
            action()
            self.failing.discard(writer)
        except Exception as error:
            if writer not in self.failing:
                logger.error(f"{type(writer).__name__} failed, metrics may be missing ({error}); the run goes on")
            self.failing.add(writer)


class Pictures(Follower):
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
        model = unwrapped(self.trainer.model) if averaged is None else averaged.module
        with going_on("no pictures of predictions this time"):
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
        return reduced(draw_annotations(image, record, self.classes)), reduced(prediction)

    def _keep(self, drawn: list[tuple[str, tuple[np.ndarray, np.ndarray]]]) -> None:
        """Args: drawn: names with truth and prediction."""
        if not drawn:
            return
        for number, (name, pair) in enumerate(drawn):  # names from two folders may be the same
            self.trainer.storage.put_image(f"pictures/{number} {name}", np.hstack(pair).transpose(2, 0, 1))
        self.folder.mkdir(exist_ok=True)
        with whole(self.folder / f"{self.trainer.done:07}.png") as path:
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


def reduced(picture: np.ndarray) -> np.ndarray:
    """A picture (H, W, 3), whose sides are at most LARGEST_SIDE pixels."""
    scale = min(1, LARGEST_SIDE / max(picture.shape[:2]))
    return cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA) if scale < 1 else picture


class Curves(Follower):
    """Draws ``curves.png`` at each evaluation."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def after_evaluation(self) -> None:
        with going_on("no curves.png this time"), whole(self.folder / "curves.png") as path:
            save_curves(self.folder / "metrics.json", path)


def save_evaluation(
    folder: str,
    results: dict[str, Any] | None,
    about: dict[str, Any],
    *,
    images: int | None = None,
    seconds_per_image: float | None = None,
    device: str | None = None,
) -> None:
    """Writes ``evaluation.json``.

    Args:
        folder: of the run.
        results: as Detectron2's evaluators give them; None while there are none yet.
        about: what they are of: "weights", the file that the model comes from, or None in a training; "iteration",
            iterations that it was trained for, where they are known; "data", see :func:`gpvit.evaluation.evaluated_data`;
            "settings", see :func:`.settings`.
        images: how many were evaluated.
        seconds_per_image: of one process, from the first image to the last: reading, the model, collecting its results.
        device: of the model.
    """
    content = {
        "results": results,
        "images": images,
        "seconds_per_image": seconds_per_image,
        "device": device,
        **about,
    }
    with going_on("no evaluation.json this time"), whole(Path(folder, "evaluation.json")) as path:
        path.write_text(json.dumps(finite_or_text(content), indent=1))
