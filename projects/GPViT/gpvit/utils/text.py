"""Text from files, made fit to be shown: names of classes and files, versions, messages of libraries.

Whoever wrote the file chose the text. On a terminal it could move the cursor or forge a line, on a page it could be
markup. Everything that is shown goes through one of these functions; what is compared or looked up does not.
"""

import os
import re
import unicodedata

LIMIT = 120  # characters of a name
JOINERS = "\u200c\u200d"  # part of words in Persian and in Indic scripts, and of emoji


def one_line(text: object, limit: int = LIMIT) -> str:
    """The text as one line of printable characters.

    Control characters, line breaks and marks that change the direction of writing become escapes (``\\n``, ``\\x1b``,
    ``\\u202e``), and so do the bytes of a file name that is not UTF-8 (``\\xe9``).

    Args:
        text: a string, or an object whose ``str`` is shown; of a path, the path.
        limit: characters of the result; what is longer ends in an ellipsis.
    """
    string = os.fsdecode(text) if isinstance(text, bytes | os.PathLike) else str(text)
    # Only so many characters can be seen, however long the text is.
    shown = "".join(map(_visible, string[: limit + 1]))
    return shown if len(shown) <= limit else shown[: limit - 1] + "…"


def _visible(character: str) -> str:
    if character.isprintable() or character in JOINERS:
        return character
    if unicodedata.category(character) == "Zs":
        return " "
    if "\udc80" <= character <= "\udcff":  # how Python keeps a byte that is not UTF-8
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode()


def markdown(text: object, limit: int = LIMIT) -> str:
    """The text as one line in which nothing is Markdown, HTML or an address that becomes a link.

    Args:
        text, limit: as of :func:`one_line`; escapes are added after the text is cut.
    """
    escaped = re.sub(r"[\\`*_\[\]#!]", r"\\\g<0>", one_line(text, limit))
    # Readers differ in what else a backslash escapes. GitHub makes links of bare addresses and mentions.
    return re.sub(r"[<>&|~$@]|\b(?:https?|ftp|mailto|www)(?=[:.])", _entity, escaped, flags=re.IGNORECASE)


def _entity(match: re.Match[str]) -> str:
    """The first character by its number."""
    return f"&#{ord(match[0][0])};{match[0][1:]}"
