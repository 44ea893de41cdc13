"""A log that goes with a progress bar."""

import io
import logging
import os
import sys
from typing import TextIO

from detectron2.utils import comm
from tqdm import tqdm


def has_terminal() -> bool:
    """Whether this is the process that prints, and it prints to a terminal, which has a size."""
    return (
        comm.is_main_process()
        and sys.stdout.isatty()
        and os.get_terminal_size(sys.stdout.fileno()).lines > 0
    )


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
    return not record.name.endswith(".utils.events") and not str(record.msg).startswith(
        "Inference done "
    )
