"""Base classes of hooks."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from detectron2.engine import HookBase

from ..utils.errors import UserError
from ..utils.text import LINE_LIMIT, one_line

logger = logging.getLogger(__name__)


class StopHook(HookBase):
    """A hook with something to do when the training ends before its time."""

    def on_stop(self) -> None:
        raise NotImplementedError


class MonitorHook(StopHook):
    """A hook of process 0 alone, which changes nothing of the training, and without which it goes on."""

    def after_evaluation(self) -> None:
        """Is called when the metrics of an evaluation, and the best checkpoint, are there."""

    def on_stop(self) -> None:
        pass


@contextmanager
def best_effort(what: str) -> Iterator[None]:
    """A full disk or another failure in here is told, as ``what`` that it leads to, and goes no further."""
    try:
        yield
    except Exception as error:
        kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
        reason = one_line(next(iter(str(error).splitlines()), ""), LINE_LIMIT)
        logger.error(f"{what} ({kind}{reason}); the run goes on")
