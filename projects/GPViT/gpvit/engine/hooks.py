"""Base classes of hooks."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from detectron2.engine import HookBase

from ..utils.errors import UserError
from ..utils.text import LINE_LIMIT, one_line

logger = logging.getLogger(__name__)


class StopHook(HookBase):
    """A hook that is called when training stops before its end."""

    def on_stop(self) -> None:
        """Run after an error or a signal, in place of ``after_train``."""
        raise NotImplementedError


class MonitorHook(StopHook):
    """A hook of process 0 that does not influence training, and only logs its failures."""

    def after_evaluation(self) -> None:
        """Run when the metrics are stored and the best checkpoint is saved."""

    def on_stop(self) -> None:
        pass


@contextmanager
def best_effort(consequence: str) -> Iterator[None]:
    """Log an exception in the block, such as a full disk, instead of raising it.

    Args:
        consequence: of the failure, for the log.
    """
    try:
        yield
    except Exception as error:
        kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
        first_line = next(iter(str(error).splitlines()), "")
        reason = one_line(first_line, LINE_LIMIT)
        logger.error(f"{consequence} ({kind}{reason}); the run continues")
