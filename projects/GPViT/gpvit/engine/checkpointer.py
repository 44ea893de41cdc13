"""Checkpoints of a training: written so that one is always whole, found again, kept in bounds."""

import logging
import time
from pathlib import Path
from typing import Any

from detectron2.utils import comm
from omegaconf import DictConfig

from .. import checkpoint
from ..config import flattened, inference_config, renamed
from ..evaluation.metrics import check_best_metric
from ..utils.errors import UserError, preview
from ..utils.events import lines_of
from ..utils.files import atomic_write
from ..utils.text import LINE_LIMIT, PATH_LIMIT, one_line
from .ddp import unwrap_ddp
from .hooks import StopHook
from .resume import DATA, numbered
from .trainer import STOP_EARLY

logger = logging.getLogger(__name__)


class Checkpointer(StopHook):
    """Saves the state of a training, and brings it back.

    Args:
        cfg: the training's config, saved with the state.
        classes: names of the classes, saved with the state.
        data: :func:`.dataset_fingerprint` of the training data, saved with the state.
        period: iterations between two checkpoints, model_0001000.pth and so on by the iterations that are done.
        max_to_keep: checkpoints to keep, the newest ones; also those of earlier runs in the folder count.
        best_metric: as in metrics.json ("bbox/AP", "segm/AP"; with several validation sets "NAME/segm/AP"): the
            checkpoint where it was highest is kept as model_best.pth; "" for none.
        patience: evaluations in a row without a better ``best_metric`` that end the training; 0 for no end.
    """

    def __init__(
        self,
        cfg: DictConfig,
        classes: list[str],
        data: str,
        *,
        period: int,
        max_to_keep: int,
        best_metric: str = "",
        patience: int = 0,
    ) -> None:
        if period < 1 or max_to_keep < 1:
            raise UserError(
                f"train.checkpointer.period={period} and max_to_keep={max_to_keep} must be at least 1"
            )
        if patience and not best_metric:
            raise UserError(f"train.patience={patience} needs train.best_metric")
        check_best_metric(best_metric, cfg, classes)
        self.folder, self.classes = Path(cfg.train.output_dir), classes
        self.period, self.max_to_keep = period, max_to_keep
        self.best_metric, self.patience = best_metric, patience
        self.inference_config = inference_config(cfg)
        self.config = flattened(cfg) | {DATA: data}
        self.saved = -1  # iterations that were done at the last save
        self.ended = -1  # at the end that the training is resumed from
        self.best, self.without_better, self.evaluated = (
            float("-inf"),
            0,
            -1,
        )  # iterations done then

    def before_train(self) -> None:
        if (
            self.patience and self.without_better >= self.patience
        ):  # a training that had ended is resumed
            self._end_early()

    def after_step(self) -> None:
        self.trainer.is_whole = True
        if self.trainer.done % self.period == 0 and self.trainer.done < self.trainer.max_iter:
            self.try_to_save(
                f"model_{self.trainer.done:07}",
                f"training goes on, next checkpoint in {self.period} iterations",
            )

    def on_stop(self) -> None:
        if not self.trainer.is_whole:
            logger.error(
                f"iteration {self.trainer.iter} was cut short; resume from the checkpoint before it"
            )
        elif self.saved != self.trainer.done:
            self.try_to_save(
                f"model_{self.trainer.done:07}", "what happened behind the last one is lost"
            )

    def save(self, name: str) -> None:
        """Writes the state between two iterations; process 0 does. Raises a UserError if that fails."""
        if not comm.is_main_process():
            return
        start = time.perf_counter()
        checkpoint.save(self.content(), str(self.folder / f"{name}.pth"))
        if name != "model_best":
            self.saved = self.trainer.done
        # What has more iterations was damaged, or the training would have been resumed from there.
        earlier = [
            path
            for path in numbered(self.folder)
            if int(path.stem.removeprefix("model_")) <= self.trainer.done
        ]
        for path in earlier[: -self.max_to_keep]:
            path.unlink(missing_ok=True)
        saved = one_line(self.folder / f"{name}.pth", PATH_LIMIT)
        logger.info(f"saved {saved} in {time.perf_counter() - start:.1f} seconds")

    def try_to_save(self, name: str, consequence: str) -> None:
        """As :meth:`save`, but a full disk, which may be emptied before the next one is due, only says so."""
        try:
            self.save(name)
        except UserError as error:
            logger.error(f"{error}; {consequence}")

    def content(self) -> dict[str, Any]:
        ema = {"ema": self.trainer.ema.module.state_dict()} if self.trainer.ema is not None else {}
        return {
            "model": unwrap_ddp(self.trainer.model).state_dict(),
            **ema,
            "classes": self.classes,
            "inference_config": self.inference_config,
            "versions": checkpoint.versions(),
            "trainer": self.trainer.state_dict(),
            "config": self.config,
            "seed": self.trainer.seed,
        }

    def after_train(self) -> None:
        if self.trainer.done >= self.trainer.max_iter and self.trainer.done != self.ended:
            self.save("model_final")

    def after_evaluation(self, metrics: dict[str, float]) -> None:
        """Keeps the best checkpoint, and asks for the end of the training if it gets no better."""
        if not self.best_metric or not comm.is_main_process():
            return
        if self.best_metric not in metrics:
            known = preview(sorted(metrics)) or "which found none"
            raise UserError(
                f"train.best_metric={self.best_metric} is none of the evaluation's metrics, {known}"
            )
        if self.evaluated == self.trainer.done:
            return
        self.evaluated = self.trainer.done
        better = metrics[self.best_metric] > self.best
        self.best = max(self.best, metrics[self.best_metric])
        self.without_better = 0 if better else self.without_better + 1
        if better:
            self.try_to_save("model_best", "training goes on")
        if self.patience and self.without_better >= self.patience:
            self._end_early()

    def _end_early(self) -> None:
        metric, number = one_line(self.best_metric), self.without_better
        logger.info(f"{metric} got no better in {number} evaluations: the training ends")
        self.trainer.request = max(self.trainer.request, STOP_EARLY)

    def restore(self, state: dict[str, Any]) -> None:
        """Brings trainer, weights and hooks to the state that :func:`latest_checkpoint` found.

        Raises:
            UserError: it does not fit this run.
        """
        try:
            self._restore(state)
        except UserError:
            raise
        except (
            Exception
        ) as error:  # whatever a state of another shape causes in optimizer, schedule or hooks
            reason = one_line(f"{type(error).__name__}: {error}", LINE_LIMIT)
            raise UserError(f"{state['path']} does not fit this training run ({reason})") from error

    def _restore(self, state: dict[str, Any]) -> None:
        trainer = self.trainer
        checkpoint.load_strictly(unwrap_ddp(trainer.model), state["model"], state["path"])
        if trainer.ema is not None:
            checkpoint.load_strictly(trainer.ema.module, state["ema"], state["path"])
        trainer.load_state_dict(state["trainer"])
        self.saved = trainer.done
        if Path(state["path"]).name == "model_final.pth":
            self.ended = trainer.done
        metric = renamed(state["config"]).get("train.best_metric", self.best_metric)
        if metric != str(self.best_metric):  # the saved config is text
            logger.warning(
                f"the best checkpoint so far was that by {metric or 'no metric'}, now {self.best_metric} counts"
            )
            self.best, self.without_better = float("-inf"), 0

    def forget_metrics(self) -> None:
        """Removes from metrics.json what will be written again, and a line that was cut short.

        Raises:
            UserError: it cannot be written; it is as it was.
        """
        path = self.folder / "metrics.json"
        kept = [line + "\n" for line, row in lines_of(path) if row["iteration"] < self.trainer.done]
        with atomic_write(path) as partial:
            partial.write_text("".join(kept), encoding="utf-8")

    def state_dict(self) -> dict[str, Any]:
        return {
            "best": self.best,
            "without_better": self.without_better,
            "evaluated": self.evaluated,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best, self.without_better, self.evaluated = (
            state["best"],
            state["without_better"],
            state["evaluated"],
        )
