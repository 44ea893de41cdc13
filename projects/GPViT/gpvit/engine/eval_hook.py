"""Evaluation during training."""

from collections.abc import Callable, Sequence

import torch.distributed as dist
from detectron2.engine import HookBase
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.utils import comm
from torch import nn

from ..evaluation.metrics import rename_averaged
from ..utils.errors import ProcessError, UserError
from .checkpointer import Checkpointer
from .ddp import unwrap_ddp
from .hooks import MonitorHook


class EvalHook(HookBase):
    """Evaluates the model every ``period`` iterations and at the end of training.

    If there is a moving average of the weights, it is evaluated, too.

    Args:
        period: iterations; 0 evaluates only at the end.
        evaluate: takes a model, returns results in the format of Detectron2's evaluators, in
            process 0.
        checkpointer: receives the metrics.
        monitors: are called after the checkpointer.
    """

    def __init__(
        self,
        period: int,
        evaluate: Callable[[nn.Module], dict],
        checkpointer: Checkpointer,
        monitors: Sequence[MonitorHook] = (),
    ) -> None:
        self.period, self.evaluate = period, evaluate
        self.checkpointer, self.monitors = checkpointer, monitors
        self.evaluated_at = -1  # completed iterations at the last evaluation

    def before_train(self) -> None:
        """Evaluate if that was due at the checkpoint: it is saved before the evaluation."""
        if self.trainer.done > 0 and self._is_due():
            self.run()

    def after_step(self) -> None:
        if self._is_due():
            self.run()

    def _is_due(self) -> bool:
        """Return whether to evaluate now. After the last iteration, :meth:`after_train` does."""
        done = self.trainer.done
        return bool(self.period) and done % self.period == 0 and done < self.trainer.max_iter

    def after_train(self) -> None:
        if self.evaluated_at == self.trainer.done:
            return
        try:
            self.run()
        except BaseException:
            # Trainer calls no more hooks, and the last iteration is not in the monitors' files yet.
            for monitor in self.monitors:
                monitor.on_stop()
            raise

    def run(self) -> None:
        """Evaluate, and record the metrics under the last completed iteration.

        The storage's own iteration depends on the hook method that this is called from.
        """
        storage = self.trainer.storage
        current, storage.iter = storage.iter, max(self.trainer.done - 1, 0)
        try:
            self._run()
        finally:
            storage.iter = current

    def _run(self) -> None:
        trainer = self.trainer
        self.evaluated_at = trainer.done
        if comm.get_world_size() > 1:
            # Evaluate with the batch norm statistics of process 0, which are those in checkpoints.
            for buffer in unwrap_ddp(trainer.model).buffers():
                dist.broadcast(buffer, 0)
        with trainer.interruptible():
            metrics = flatten_results_dict(self.evaluate(trainer.model) or {})
            if trainer.ema is not None:
                metrics |= flatten_results_dict(
                    rename_averaged(self.evaluate(trainer.ema.module) or {})
                )
        values = dict(zip(metrics, map(float, metrics.values())))
        trainer.storage.put_scalars(**values, smoothing_hint=False)
        try:
            self.checkpointer.after_evaluation(metrics)
        except UserError as error:
            raise ProcessError(str(error)) from None
        for monitor in self.monitors:
            monitor.after_evaluation()
        comm.synchronize()
