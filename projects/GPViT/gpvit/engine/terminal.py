"""What a run shows on a terminal: a bar in the last line, and the log above it. Elsewhere there are lines alone."""

import contextlib
import io
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any, TextIO

from detectron2.utils import comm
from tqdm import tqdm

from .trainer import Follower

tqdm.monitor_interval = 0  # no thread of its own, whose lock data-loading processes might be forked with


def has_terminal() -> bool:
    """Whether this is the process that prints, and it prints to a terminal, which has a size."""
    return comm.is_main_process() and sys.stdout.isatty() and os.get_terminal_size(sys.stdout.fileno()).lines > 0


class AboveBars(io.TextIOBase):
    """A terminal whose lines come above the bars on it.

    Args:
        terminal: where lines and bars go.
    """

    def __init__(self, terminal: TextIO) -> None:
        self.terminal = terminal
        self.begun = ""  # of a line whose end has not been written yet

    def write(self, text: str) -> int:
        lines, newline, self.begun = (self.begun + text).rpartition("\n")
        if newline:
            tqdm.write(lines, file=self.terminal)
        return len(text)

    def isatty(self) -> bool:
        return True

    def flush(self) -> None:
        self.terminal.flush()


def log_above_bars(handler: logging.StreamHandler) -> None:
    """Makes a handler of a log that goes to a terminal leave out what a bar shows, and write the rest above it."""
    handler.setStream(AboveBars(handler.stream))
    handler.addFilter(_is_news)


def _is_news(record: logging.LogRecord) -> bool:
    # Detectron2's formatter makes the name d2.utils.events, so that later handlers see this one.
    return not record.name.endswith(".utils.events") and not str(record.msg).startswith("Inference done ")


class ProgressBar(Follower):
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
        tqdm(batches, desc="evaluation", unit="batch", file=terminal, leave=False, dynamic_ncols=True) as bar,
        contextlib.redirect_stdout(AboveBars(terminal)),
    ):
        yield bar
