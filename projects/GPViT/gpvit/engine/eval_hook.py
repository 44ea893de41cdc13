"""Evaluation during training."""

from collections.abc import Callable, Sequence

import torch.distributed as dist
from detectron2.engine import HookBase
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.utils import comm
from torch import nn

from ..evaluation.metrics import of_average
from ..utils.errors import ProcessError, UserError
from .checkpointer import Checkpointer
from .ddp import unwrap_ddp
from .hooks import MonitorHook


class EvalHook(HookBase):
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
        checkpoints: Checkpointer,
        followers: Sequence[MonitorHook] = (),
    ) -> None:
        self.period, self.evaluate, self.checkpoints, self.followers = (
            period,
            evaluate,
            checkpoints,
            followers,
        )
        self.evaluated = -1  # iterations that were done at the last evaluation

    def before_train(self) -> None:
        """What was due when the checkpoint was written, which comes first, is made up for."""
        done = self.trainer.done
        if self.period and 0 < done < self.trainer.max_iter and done % self.period == 0:
            self.run()

    def after_step(self) -> None:
        if (
            self.period
            and self.trainer.done % self.period == 0
            and self.trainer.done < self.trainer.max_iter
        ):
            self.run()

    def after_train(self) -> None:
        if self.evaluated == self.trainer.done:
            return
        try:
            self.run()
        except BaseException:  # nothing else comes after it, and the files lack the last iteration
            for follower in self.followers:
                follower.on_stop()
            raise

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
            for statistics in unwrap_ddp(trainer.model).buffers():  # those that a checkpoint has
                dist.broadcast(statistics, 0)
        with trainer.interruptible():
            metrics = flatten_results_dict(self.evaluate(trainer.model) or {})
            if trainer.ema is not None:
                metrics |= flatten_results_dict(of_average(self.evaluate(trainer.ema.module) or {}))
        trainer.storage.put_scalars(
            **{name: float(value) for name, value in metrics.items()}, smoothing_hint=False
        )
        try:
            self.checkpoints.after_evaluation(metrics)
        except UserError as error:
            raise ProcessError(str(error)) from None
        for follower in self.followers:
            follower.after_evaluation()
        comm.synchronize()
