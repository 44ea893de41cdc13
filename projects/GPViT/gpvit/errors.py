from collections.abc import Sequence


class UserError(RuntimeError):
    """Something that was given is wrong. The message is one line: what, where, and what to do."""

    def __init__(self, message: str) -> None:
        # When it comes out of a data-loading process, PyTorch puts the traceback in front.
        super().__init__(message.rpartition("UserError: ")[2].strip())


class ProcessError(UserError):
    """A UserError that one process of a job alone has, so that this one must tell it."""


def listed(names: Sequence[str]) -> str:
    """The first names of a long list, for a message."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
