"""Checkpoints of a training: written so that one is always whole, found again, kept in bounds."""

import hashlib
import logging
import os
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch.distributed as dist
from detectron2.engine import HookBase
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.utils import comm
from omegaconf import DictConfig
from torch import nn

from .. import checkpoint
from ..config import flattened, inference_config, renamed
from ..config.saved import RENAMED
from ..evaluation.metrics import known_metrics, metric_prefixes, of_average
from ..utils.errors import ProcessError, UserError, listed
from ..utils.events import lines_of, read_evaluation
from ..utils.files import atomic_write
from ..utils.text import LINE_LIMIT, PATH_LIMIT, one_line
from .trainer import STOP_EARLY, Follower, StopHook, unwrapped

logger = logging.getLogger(__name__)

# What a resumed training may change: nothing that its weights depend on. The data must be the same, wherever they are.
FREE = re.compile(
    r"train\.(output_dir|init_checkpoint|device|log_period|eval_period|pictures|wandb|checkpointer\..*|ddp\..*"
    r"|skip_budget|accumulate)"
    r"|.*\.(use_act_checkpoint|test_score_thresh|test_nms_thresh|test_topk_per_image|max_detections(_per_image)?)"
    r"|dataloader\.train\.dataset\.names(\.\d+)?"
    r"|dataloader\.(test|evaluator)\..*|dataloader\.train\.(num_workers|timeout|pin_memory|prefetch_factor)"
    r"|dataloader\.train\.(seed|start_iter|skip)"  # which train_net.py sets
)
DATA = "content of the training data"  # a key beside those of the config

OF_TRAINING = ("model_*.pth", "metrics.json", "run.json")
OF_EVALUATION = ("evaluation.json", "coco_instances_results.json", "instances_predictions.pth")


class Checkpoints(StopHook):
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
            raise UserError(f"train.checkpointer.period={period} and max_to_keep={max_to_keep} must be at least 1")
        if patience and not best_metric:
            raise UserError(f"train.checkpointer.patience={patience} needs train.checkpointer.best_metric")
        check_best_metric(best_metric, cfg, classes)
        self.folder, self.classes = Path(cfg.train.output_dir), classes
        self.period, self.max_to_keep = period, max_to_keep
        self.best_metric, self.patience = best_metric, patience
        self.inference_config = inference_config(cfg)
        self.config = flattened(cfg) | {DATA: data}
        self.saved = -1  # iterations that were done at the last save
        self.ended = -1  # at the end that the training is resumed from
        self.best, self.without_better, self.evaluated = float("-inf"), 0, -1  # iterations done then

    def before_train(self) -> None:
        if self.patience and self.without_better >= self.patience:  # a training that had ended is resumed
            self._end_early()

    def after_step(self) -> None:
        self.trainer.is_whole = True
        if self.trainer.done % self.period == 0 and self.trainer.done < self.trainer.max_iter:
            self.try_to_save(
                f"model_{self.trainer.done:07}", f"training goes on, next checkpoint in {self.period} iterations"
            )

    def on_stop(self) -> None:
        if not self.trainer.is_whole:
            logger.error(f"iteration {self.trainer.iter} was cut short; resume from the checkpoint before it")
        elif self.saved != self.trainer.done:
            self.try_to_save(f"model_{self.trainer.done:07}", "what happened behind the last one is lost")

    def save(self, name: str) -> None:
        """Writes the state between two iterations; process 0 does. Raises a UserError if that fails."""
        if not comm.is_main_process():
            return
        start = time.perf_counter()
        checkpoint.save(self.content(), str(self.folder / f"{name}.pth"))
        if name != "model_best":
            self.saved = self.trainer.done
        # What has more iterations was damaged, or the training would have been resumed from there.
        earlier = [path for path in numbered(self.folder) if int(path.stem.removeprefix("model_")) <= self.trainer.done]
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
            "model": unwrapped(self.trainer.model).state_dict(),
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
            known = listed(sorted(metrics)) or "which found none"
            raise UserError(
                f"train.checkpointer.best_metric={self.best_metric} is none of the evaluation's metrics, {known}"
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
        """Brings trainer, weights and hooks to the state that :func:`newest` found.

        Raises:
            UserError: it does not fit this run.
        """
        try:
            self._restore(state)
        except UserError:
            raise
        except Exception as error:  # whatever a state of another shape causes in optimizer, schedule or hooks
            reason = one_line(f"{type(error).__name__}: {error}", LINE_LIMIT)
            raise UserError(f"{state['path']} does not fit this training run ({reason})") from error

    def _restore(self, state: dict[str, Any]) -> None:
        trainer = self.trainer
        checkpoint.load_strictly(unwrapped(trainer.model), state["model"], state["path"])
        if trainer.ema is not None:
            checkpoint.load_strictly(trainer.ema.module, state["ema"], state["path"])
        trainer.load_state_dict(state["trainer"])
        self.saved = trainer.done
        if Path(state["path"]).name == "model_final.pth":
            self.ended = trainer.done
        metric = state["config"].get("train.checkpointer.best_metric", self.best_metric)
        if metric != str(self.best_metric):  # the saved config is text
            logger.warning(f"the best checkpoint so far was that by {metric or 'no metric'}, now {self.best_metric} counts")
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
        return {"best": self.best, "without_better": self.without_better, "evaluated": self.evaluated}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best, self.without_better, self.evaluated = state["best"], state["without_better"], state["evaluated"]


def check_best_metric(name: str | None, cfg: DictConfig, classes: list[str]) -> None:
    """Raises a UserError if no evaluation will have a metric of this name; "" or None, for none, is fine.

    Where the evaluator is not known here, that can be said of the validation set alone.
    """
    known, prefixes = known_metrics(cfg, classes), metric_prefixes(cfg)
    if not name or name in known or (not known and name.startswith(tuple(prefixes))):
        return
    choices = [f"{prefix}{name}" for prefix in prefixes]
    if len(prefixes) > 1 and (not known or choices[0] in known):
        raise UserError(
            f"train.checkpointer.best_metric={name} does not say of which validation set: name one of {listed(choices)}"
        )
    raise UserError(f"train.checkpointer.best_metric={name} is none of {', '.join(known)}")


class Evaluation(HookBase):
    """Evaluates the model, and its average if there is one, every ``period`` iterations and at the end.

    Args:
        period: iterations; 0 for only at the end.
        evaluate: a model -> results as Detectron2's evaluators give them, in process 0.
        checkpoints: is told the metrics.
        followers: are called when all this is done.
    """

    def __init__(
        self,
        period: int,
        evaluate: Callable[[nn.Module], dict],
        checkpoints: Checkpoints,
        followers: Sequence[Follower] = (),
    ) -> None:
        self.period, self.evaluate, self.checkpoints, self.followers = period, evaluate, checkpoints, followers
        self.evaluated = -1  # iterations that were done at the last evaluation

    def before_train(self) -> None:
        """What was due when the checkpoint was written, which comes first, is made up for."""
        done = self.trainer.done
        if self.period and 0 < done < self.trainer.max_iter and done % self.period == 0:
            self.run()

    def after_step(self) -> None:
        if self.period and self.trainer.done % self.period == 0 and self.trainer.done < self.trainer.max_iter:
            self.run()

    def after_train(self) -> None:
        if self.evaluated != self.trainer.done:
            self.run()

    def run(self) -> None:
        """Evaluates; metrics and followers have it under the iteration behind which it is, wherever that was asked for."""
        storage = self.trainer.storage
        now, storage.iter = storage.iter, max(self.trainer.done - 1, 0)
        try:
            self._run()
        finally:
            storage.iter = now

    def _run(self) -> None:
        trainer = self.trainer
        self.evaluated = trainer.done
        if comm.get_world_size() > 1:
            for statistics in unwrapped(trainer.model).buffers():  # those that a checkpoint has
                dist.broadcast(statistics, 0)
        with trainer.interruptible():
            metrics = flatten_results_dict(self.evaluate(trainer.model) or {})
            if trainer.ema is not None:
                metrics |= flatten_results_dict(of_average(self.evaluate(trainer.ema.module) or {}))
        trainer.storage.put_scalars(**{name: float(value) for name, value in metrics.items()}, smoothing_hint=False)
        try:
            self.checkpoints.after_evaluation(metrics)
        except UserError as error:
            raise ProcessError(str(error)) from None
        for follower in self.followers:
            follower.after_evaluation()
        comm.synchronize()


def numbered(folder: Path) -> list[Path]:
    """The checkpoints on the way, the oldest first."""
    return sorted(path for path in folder.glob("model_[0-9]*.pth") if re.fullmatch(r"model_\d+", path.stem))


def newest(folder: str) -> dict[str, Any] | None:
    """The state in the good checkpoint of a folder with most iterations; None if there is no checkpoint at all.

    Raises:
        UserError: there are checkpoints, and none is good; or other processes see others.
    """
    state, error = None, ""
    try:
        state = _newest(Path(folder))
    except UserError as failure:
        error = str(failure)
    seen = comm.all_gather((state and state["path"], state and state["trainer"]["iteration"], error))
    if len(set(seen)) > 1:
        raise UserError(
            f"the processes do not see the same checkpoints in {folder}, which must be on a disk that they share"
        )
    if error:
        raise UserError(error)
    if state is not None:
        logger.info(f"resuming from {one_line(state['path'], PATH_LIMIT)}")
    return state


def _newest(folder: Path) -> dict[str, Any] | None:
    # An earlier end may have been gone beyond, and the best may be the only one. It comes before a numbered one of the same
    # iterations, which was written before the evaluation that it was the best of, and so knows of no such metric.
    final, best = ([path] if (path := folder / f"model_{name}.pth").exists() else [] for name in ("final", "best"))
    paths = numbered(folder)[::-1]
    if not (final or best or paths):
        return None
    newest = None
    for candidates in (final, best, paths):
        state = _first_good(candidates)
        if newest is None or (state and state["trainer"]["iteration"] > newest["trainer"]["iteration"]):
            newest = state
    if newest is None:
        count = len(final + best + paths)
        raise UserError(f"{folder} has {count} checkpoints, and none of them can be read; give another train.output_dir")
    return newest


def _first_good(paths: list[Path]) -> dict[str, Any] | None:
    for path in paths:
        try:
            if not checkpoint.digest_is_right(str(path)):
                raise UserError(f"{path} is damaged: its digest is missing or wrong")
            content = checkpoint.read_content(str(path))
            if fault := _state_fault(content):
                raise UserError(f"{path} is not the state of a training run: {fault}")
        except (UserError, OSError) as error:
            logger.warning(f"{one_line(error, LINE_LIMIT)}; looking for another checkpoint")
        else:
            return content | {"path": str(path)}
    return None


def _state_fault(content: dict[str, Any]) -> str:
    """Why a training run cannot be resumed from what a file holds; "" if it has all entries, each of its type."""
    types = {"model": dict, "classes": list, "trainer": dict, "config": dict, "seed": int}
    if missing := types.keys() - content.keys():
        return f"it has no {listed(sorted(missing))}"
    if wrong := [key for key, kind in types.items() if not isinstance(content[key], kind)]:
        return f"{listed(wrong)} is of another type"
    if isinstance(content["seed"], bool) or not 0 <= content["seed"] < 2**63:
        return "its seed is none"
    iteration = content["trainer"].get("iteration")
    if type(iteration) is not int or not 0 <= iteration < 2**53:
        return "it does not say its iteration"
    texts = [*content["classes"], *content["config"].keys(), *content["config"].values()]
    return "" if all(isinstance(text, str) for text in texts) else "its classes or config are not text"


def refuse_used(folder: str) -> None:
    """Raises a UserError if a folder has checkpoints, among which those of another training would be lost."""
    if found := sorted(Path(folder).glob("model_*.pth")):
        raise UserError(
            f"{folder} has checkpoints of a training ({found[-1].name}): add --resume, or give another train.output_dir"
        )


def refuse_evaluated(folder: str) -> None:
    """Raises a UserError if a folder has the results of ``--eval-only``, which those of a training run would replace."""
    if any(Path(folder).glob("evaluation.json")) and not any(map(any, map(Path(folder).glob, OF_TRAINING))):
        raise UserError(f"{folder} has the results of an evaluation: give the training another train.output_dir")


def settings(cfg: DictConfig) -> str:
    """A hash of what results depend on beside weights and data."""
    text = inference_config(cfg)  # with the detections of an image that the detector gives, which AP counts, too
    for old, new in RENAMED.items():  # so that results of before a name changed stay comparable
        text = text.replace(f"_target_: {new}\n", f"_target_: {old}\n")
    counted, given = cfg.dataloader.evaluator.get("max_dets_per_image"), cfg.dataloader.get("max_detections")
    if counted != given:
        text += str(counted)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def refuse_to_replace_results(folder: str, about: dict[str, Any]) -> None:
    """Raises a UserError if an evaluation would replace what a training run, or an evaluation of something else, wrote.

    Args:
        folder: where its results would go.
        about: what evaluation.json will say of "weights", "iteration", "settings" and "data".
    """
    there = {pattern: sorted(Path(folder).glob(pattern)) for pattern in (*OF_TRAINING, *OF_EVALUATION)}
    parent = Path(folder) if any(there[pattern] for pattern in OF_TRAINING) else Path(folder).parent
    names = ("evaluation", *(f"evaluation-{number}" for number in range(2, 100)))
    free = next((name for name in names if not (parent / name).exists()), "...")
    suggestion = f"give the evaluation a folder of its own, for example train.output_dir={parent / free}"
    if found := [path.name for pattern in OF_TRAINING for path in there[pattern]]:
        raise UserError(f"{folder} is the folder of a training ({found[0]}), whose results stay as they are: {suggestion}")
    if any(there[pattern] for pattern in OF_EVALUATION):
        earlier = read_evaluation(Path(folder, "evaluation.json"))
        unknown = [key for key in about if key not in earlier]
        if unknown:  # of an older version
            raise UserError(f"{folder} has results of which {listed(unknown)} are not known: {suggestion}")
        others = [key for key, value in about.items() if _comparable(earlier[key]) != _comparable(value)]
        if others:
            raise UserError(f"{folder} has the results of an evaluation with other {listed(others)}: {suggestion}")


def _comparable(value: Any) -> Any:
    """A path as an absolute one; data by their content, wherever they are, or by their name if it is not known."""
    if isinstance(value, list):  # of several validation sets
        return [_comparable(item) for item in value]
    if isinstance(value, dict):
        return value.get("fingerprint") or value.get("name")
    return os.path.abspath(value) if isinstance(value, str) and os.path.exists(value) else value


def check_unchanged(saved: dict[str, str], present: dict[str, str], path: str) -> None:
    """Raises a UserError if a training would go on with another config than it began with, where that matters."""
    saved = renamed(saved)
    keys = sorted(key for key in saved.keys() | present.keys() if not FREE.fullmatch(key))
    changed = [f"{key}: {saved.get(key)} -> {present.get(key)}" for key in keys if saved.get(key) != present.get(key)]
    if changed:
        raise UserError(
            f"{path} was written with another config or other data ({listed(changed)}): give the old ones to resume, or "
            f"begin anew from its weights with train.init_checkpoint={path} and another train.output_dir"
        )
