"""What a command does when it is interrupted."""

import os
import signal
from typing import NoReturn


def interrupt(number: int, frame: object) -> NoReturn:
    """Handles Ctrl-C: raises KeyboardInterrupt, so that things are left in order, and ends the process at the next one.

    A terminal interrupts all processes of a command, and one that passes it on to another does so a second time.
    """
    signal.signal(number, lambda *_: os._exit(128 + number))
    raise KeyboardInterrupt
