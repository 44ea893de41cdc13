"""What a command does when it is told to stop."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn


def interrupt(number: int, frame: object) -> NoReturn:
    """Handles Ctrl-C: raises KeyboardInterrupt, so that things are left in order, and ends the process at the next one.

    A terminal interrupts all processes of a command, and one that passes it on to another does so a second time.
    """
    signal.signal(number, lambda *_: os._exit(128 + number))
    raise KeyboardInterrupt


@contextmanager
def stop_signals_to(handler: Callable[[int, object], None]) -> Iterator[None]:
    """Lets ``handler`` have SIGTERM and SIGINT."""
    before = {number: signal.signal(number, handler) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)
