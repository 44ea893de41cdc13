"""Progress bars on a terminal, in its last line and with the log above it."""

import contextlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from tqdm import tqdm

from ...utils.logger import AboveBars, has_terminal
from ..hooks import MonitorHook


class ProgressBar(MonitorHook):
    """Shows progress, the estimated remaining time, loss, learning rate and a metric.

    Args:
        done: number of iterations that are completed at the start.
        max_iter: total number of iterations.
        metrics: names; the value of the first one that has been evaluated is shown.
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
        if "time" in histories:  # seconds per iteration
            # The same estimate as that of Detectron2 in the log.
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
    """Add a progress bar to an iterable of batches, if the output is a terminal.

    In the block, printed text appears above the bar.
    """
    if not has_terminal():
        yield batches
        return
    terminal = sys.stdout
    bar = tqdm(
        batches, desc="evaluation", unit="batch", file=terminal, leave=False, dynamic_ncols=True
    )
    with bar, contextlib.redirect_stdout(AboveBars(terminal)):
        yield bar
