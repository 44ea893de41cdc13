"""Checkpoints of a run: written atomically, kept in limited number, and loaded to resume."""

import logging
import time
from collections.abc import Sequence
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
    """Saves the state of a run and restores it.

    Args:
        cfg: the config of the run, saved with the state.
        classes: names of the classes, saved with the state.
        data: :func:`.dataset_fingerprint` of the training data, saved with the state.
        period: iterations between two checkpoints, which are named by the number of completed
            iterations: model_0001000.pth and so on.
        max_to_keep: number of these checkpoints to keep, the newest ones; checkpoints of earlier
            starts in the folder count, too.
        best_metric: as in metrics.json ("bbox/AP", "segm/AP"; with several validation sets
            "NAME/segm/AP"): the checkpoint with the highest value is kept as model_best.pth;
            "" for none.
        palette: color of each class, saved with the state; empty if there is none.
        patience: number of evaluations in a row without a better ``best_metric`` after which the
            run ends; 0 disables early stopping.
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
        palette: Sequence[Sequence[int]] = (),
    ) -> None:
        if period < 1 or max_to_keep < 1:
            raise UserError(
                f"train.checkpointer.period={period} and max_to_keep={max_to_keep} "
                "must be at least 1"
            )
        if patience and not best_metric:
            raise UserError(f"train.patience={patience} needs train.best_metric")
        check_best_metric(best_metric, cfg, classes)
        self.folder, self.classes = Path(cfg.train.output_dir), classes
        self.palette = [list(color) for color in palette]
        self.period, self.max_to_keep = period, max_to_keep
        self.best_metric, self.patience = best_metric, patience
        self.inference_config = inference_config(cfg)
        self.config = flattened(cfg) | {DATA: data}
        # Completed iterations at the last save, and of the model_final.pth that a run resumes from.
        self.saved_at = self.final_at = -1
        self.best = float("-inf")
        self.without_better = 0  # evaluations in a row
        self.evaluated_at = -1

    def before_train(self) -> None:
        # True if a run is resumed that had ended early.
        if self.patience and self.without_better >= self.patience:
            self._stop_early()

    def after_step(self) -> None:
        self.trainer.is_consistent = True
        if self.trainer.done % self.period == 0 and self.trainer.done < self.trainer.max_iter:
            consequence = f"training continues, next checkpoint in {self.period} iterations"
            self.try_to_save(self._numbered_name(), consequence)

    def on_stop(self) -> None:
        if not self.trainer.is_consistent:
            logger.error(
                f"iteration {self.trainer.iter} was interrupted; resume from the last checkpoint"
            )
        elif self.saved_at != self.trainer.done:
            consequence = "the iterations since the last checkpoint are lost"
            self.try_to_save(self._numbered_name(), consequence)

    def _numbered_name(self) -> str:
        return f"model_{self.trainer.done:07}"

    def save(self, name: str) -> None:
        """Save the state between two iterations, in process 0; raise a UserError on failure."""
        if not comm.is_main_process():
            return
        start = time.perf_counter()
        path = self.folder / f"{name}.pth"
        checkpoint.save(self.content(), str(path))
        if name != "model_best":
            self.saved_at = self.trainer.done
        self._remove_old()
        seconds = time.perf_counter() - start
        logger.info(f"saved {one_line(path, PATH_LIMIT)} in {seconds:.1f} seconds")

    def _remove_old(self) -> None:
        """Keep the newest checkpoints up to the current iteration.

        Those with more iterations do not count: they must be damaged, since otherwise the run would
        have been resumed from one of them.
        """
        current = []
        for path in numbered(self.folder):
            if int(path.stem.removeprefix("model_")) <= self.trainer.done:
                current.append(path)
        for path in current[: -self.max_to_keep]:
            path.unlink(missing_ok=True)

    def try_to_save(self, name: str, consequence: str) -> None:
        """Call :meth:`save`, and log an error: a full disk may have space again for the next one.

        Args:
            name: of the checkpoint.
            consequence: of a failure, for the log.
        """
        try:
            self.save(name)
        except UserError as error:
            logger.error(f"{error}; {consequence}")

    def content(self) -> dict[str, Any]:
        """Return the content of a checkpoint."""
        ema = {"ema": self.trainer.ema.module.state_dict()} if self.trainer.ema is not None else {}
        return {
            "model": unwrap_ddp(self.trainer.model).state_dict(),
            **ema,
            "classes": self.classes,
            **({"palette": self.palette} if self.palette else {}),
            "inference_config": self.inference_config,
            "versions": checkpoint.versions(),
            "trainer": self.trainer.state_dict(),
            "config": self.config,
            "seed": self.trainer.seed,
        }

    def after_train(self) -> None:
        if self.trainer.done >= self.trainer.max_iter and self.trainer.done != self.final_at:
            self.save("model_final")

    def after_evaluation(self, metrics: dict[str, float]) -> None:
        """Keep the best checkpoint, and request early stopping if the metric does not improve."""
        if not self.best_metric or not comm.is_main_process():
            return
        if self.best_metric not in metrics:
            known = preview(sorted(metrics)) or "of which there are none"
            raise UserError(
                f"train.best_metric={self.best_metric} is none of the evaluation's metrics, {known}"
            )
        if self.evaluated_at == self.trainer.done:
            return
        self.evaluated_at = self.trainer.done
        value = metrics[self.best_metric]
        is_better = value > self.best
        self.best = max(self.best, value)
        self.without_better = 0 if is_better else self.without_better + 1
        if is_better:
            self.try_to_save("model_best", "training continues")
        if self.patience and self.without_better >= self.patience:
            self._stop_early()

    def _stop_early(self) -> None:
        metric, number = one_line(self.best_metric), self.without_better
        logger.info(f"{metric} did not improve in {number} evaluations: stopping early")
        # max: a signal that was requested before is not overwritten.
        self.trainer.request = max(self.trainer.request, STOP_EARLY)

    def restore(self, state: dict[str, Any]) -> None:
        """Restore trainer, weights and hooks from the result of :func:`latest_checkpoint`.

        Raises:
            UserError: the state does not fit this run.
        """
        try:
            self._restore(state)
        except UserError:
            raise
        # A malformed state may raise anything in optimizer, schedule or hooks.
        except Exception as error:
            reason = one_line(f"{type(error).__name__}: {error}", LINE_LIMIT)
            raise UserError(f"{state['path']} does not fit this training run ({reason})") from error

    def _restore(self, state: dict[str, Any]) -> None:
        trainer = self.trainer
        checkpoint.load_strictly(unwrap_ddp(trainer.model), state["model"], state["path"])
        if trainer.ema is not None:
            checkpoint.load_strictly(trainer.ema.module, state["ema"], state["path"])
        trainer.load_state_dict(state["trainer"])
        self.saved_at = trainer.done
        if Path(state["path"]).name == "model_final.pth":
            self.final_at = trainer.done
        metric = renamed(state["config"]).get("train.best_metric", self.best_metric)
        if metric != str(self.best_metric):  # the saved config is text
            logger.warning(
                f"the best checkpoint was selected by {metric or 'no metric'}; "
                f"{self.best_metric or 'no metric'} is used from now on"
            )
            self.best, self.without_better = float("-inf"), 0

    def forget_metrics(self) -> None:
        """Remove from metrics.json incomplete lines and those that will be written again.

        Raises:
            UserError: the file cannot be written; the old one is intact.
        """
        path = self.folder / "metrics.json"
        kept = []
        for line, row in lines_of(path):
            if row["iteration"] < self.trainer.done:
                kept.append(line + "\n")
        with atomic_write(path) as partial:
            partial.write_text("".join(kept), encoding="utf-8")

    def state_dict(self) -> dict[str, Any]:
        return {
            "best": self.best,
            "without_better": self.without_better,
            "evaluated": self.evaluated_at,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best = state["best"]
        self.without_better = state["without_better"]
        self.evaluated_at = state["evaluated"]
