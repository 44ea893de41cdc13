"""How commands handle SIGINT (Ctrl-C) and SIGTERM."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn


def interrupt(number: int, frame: object) -> NoReturn:
    """Raise KeyboardInterrupt, so that the command cleans up; exit at once on the next signal.

    A second signal is usual: a terminal interrupts all processes of a command, and a process that
    forwards the signal to its children interrupts them again.
    """
    signal.signal(number, lambda *_: os._exit(128 + number))
    raise KeyboardInterrupt


@contextmanager
def stop_signals_to(handler: Callable[[int, object], None], *others: int) -> Iterator[None]:
    """Handle SIGTERM, SIGINT and ``others`` with ``handler``; restore the handlers at exit."""
    numbers = (signal.SIGTERM, signal.SIGINT, *others)
    previous = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, previous_handler in previous.items():
            signal.signal(number, previous_handler)
