"""Errors that are shown to the user in one line, without a traceback."""

from collections.abc import Sequence

from .text import LINE_LIMIT, one_line

NAME_LIMIT = 400  # characters of each listed name; names may be paths


class UserError(RuntimeError):
    """An error in what the user gave.

    The message is one line: what is wrong, where, and what to do.
    """

    def __init__(self, message: str) -> None:
        # PyTorch re-raises an error of a data-loading process with the traceback as its message,
        # whose last line is "gpvit.utils.errors.UserError: <the original message>".
        if message.startswith("Caught "):
            message = message.rstrip().rpartition("\n")[2].partition("UserError: ")[2] or message
        super().__init__(one_line(message.strip(), LINE_LIMIT))


class ProcessError(UserError):
    """A UserError that occurs in one process of a job only, which therefore must report it."""


def preview(names: Sequence[object]) -> str:
    """Return the first five names of a list for a message, and how many more there are."""
    shown = ", ".join(one_line(name, NAME_LIMIT) for name in names[:5])
    return shown + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def reason_of(error: Exception, limit: int = 300) -> str:
    """Return the type and the message of an error as one line of at most ``limit`` characters."""
    message = " ".join(str(error).split())
    return one_line(f"{type(error).__name__}: {message}".removesuffix(": "), limit)
