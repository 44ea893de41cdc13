from collections.abc import Sequence

from .text import LINE_LIMIT, one_line

NAME_LIMIT = 400  # characters of one of several names; they may be paths


class UserError(RuntimeError):
    """Something that was given is wrong. The message is one line: what, where, and what to do."""

    def __init__(self, message: str) -> None:
        # When it comes out of a data-loading process, PyTorch puts the traceback in front.
        if message.startswith("Caught "):
            message = message.rstrip().rpartition("\n")[2].partition("UserError: ")[2] or message
        super().__init__(one_line(message.strip(), LINE_LIMIT))


class ProcessError(UserError):
    """A UserError that one process of a job alone has, so that this one must tell it."""


def preview(names: Sequence[object]) -> str:
    """The first names of a long list, for a message."""
    shown = ", ".join(one_line(name, NAME_LIMIT) for name in names[:5])
    return shown + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def reason_of(error: Exception, limit: int = 300) -> str:
    """The type of an error and its message, in one line of so many characters."""
    return one_line(
        f"{type(error).__name__}: {' '.join(str(error).split())}".removesuffix(": "), limit
    )
