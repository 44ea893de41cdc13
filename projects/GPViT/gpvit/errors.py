from collections.abc import Sequence


class UserError(RuntimeError):
    """Something that was given is wrong. The message is one line: what, where, and what to do."""


def listed(names: Sequence[str]) -> str:
    """The first names of a long list, for a message."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
