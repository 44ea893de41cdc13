"""What a run shows on a terminal: a bar in the last line, and the log above it. Elsewhere there are lines alone."""

import contextlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from tqdm import tqdm

from ...utils.logger import AboveBars, has_terminal
from ..hooks import MonitorHook


class ProgressBar(MonitorHook):
    """How far the training is, when it will be done, and the numbers that say how it goes.

    Args:
        done, max_iter: iterations, at the beginning and in all.
        metrics: the first of these that is known is shown.
    """

    def __init__(self, done: int, max_iter: int, metrics: Sequence[str]) -> None:
        self.metrics = metrics
        self.bar = tqdm(
            initial=done,
            total=max_iter,
            file=sys.stdout,
            dynamic_ncols=True,
            miniters=1,
            bar_format="{percentage:3.0f}% {bar} {n_fmt}/{total_fmt}{postfix}",
        )

    def after_step(self) -> None:
        self.bar.set_postfix_str(self._numbers(), refresh=False)
        self.bar.update()

    def after_evaluation(self) -> None:
        self.bar.set_postfix_str(self._numbers())

    def after_train(self) -> None:
        self.bar.close()

    def on_stop(self) -> None:
        self.bar.close()

    def _numbers(self) -> str:
        storage = self.trainer.storage
        histories, latest = storage.histories(), storage.latest()
        parts = []
        if "time" in histories:  # seconds of an iteration, as Detectron2 estimates in the log
            seconds = histories["time"].median(1000) * (self.trainer.max_iter - self.trainer.done)
            parts.append(f"ETA {tqdm.format_interval(seconds)}")
        if "total_loss" in histories:
            parts.append(f"loss {histories['total_loss'].median(20):.3g}")
        if "lr" in latest:
            parts.append(f"lr {latest['lr'][0]:.2g}")
        for name in self.metrics:
            if name in latest:
                parts.append(f"{name} {latest[name][0]:.1f}")
                break
        return ", ".join(parts)


@contextlib.contextmanager
def evaluation_bar(batches: Any) -> Iterator[Any]:
    """Batches to evaluate that, on a terminal, move a bar; what is printed meanwhile comes above it."""
    if not has_terminal():
        yield batches
        return
    terminal = sys.stdout
    with (
        tqdm(
            batches, desc="evaluation", unit="batch", file=terminal, leave=False, dynamic_ncols=True
        ) as bar,
        contextlib.redirect_stdout(AboveBars(terminal)),
    ):
        yield bar
