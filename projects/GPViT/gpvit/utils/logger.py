"""Logging to a terminal that also shows progress bars."""

import io
import logging
import os
import sys
from typing import TextIO

from detectron2.utils import comm
from tqdm import tqdm


def has_terminal() -> bool:
    """Return whether this is the main process and its output is a terminal of known size."""
    return (
        comm.is_main_process()
        and sys.stdout.isatty()
        and os.get_terminal_size(sys.stdout.fileno()).lines > 0
    )


class AboveBars(io.TextIOBase):
    """A stream that writes complete lines to a terminal, above the progress bars on it.

    Args:
        terminal: the stream that lines and bars go to.
    """

    def __init__(self, terminal: TextIO) -> None:
        self.terminal = terminal
        self.begun = ""  # a line whose end has not been written yet

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
    """Make a terminal's log handler write above progress bars and omit what the bars show."""
    handler.setStream(AboveBars(handler.stream))
    handler.addFilter(_is_not_in_bars)


def _is_not_in_bars(record: logging.LogRecord) -> bool:
    # The names are "detectron2.utils.events" and, after Detectron2's formatter abbreviated them in
    # place for an earlier handler, "d2.utils.events".
    is_metrics = record.name.endswith(".utils.events")
    return not is_metrics and not str(record.msg).startswith("Inference done ")
