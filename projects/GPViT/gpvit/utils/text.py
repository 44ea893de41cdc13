"""Showing untrusted text: names of classes and files, versions, messages of libraries.

The text was chosen by whoever wrote the file. On a terminal it could move the cursor or forge a
line, and on a page it could be markup. Everything that is shown goes through one of these
functions; text that is compared or looked up does not.
"""

import codecs
import io
import logging
import os
import re
import reprlib
import sys
import unicodedata

LIMIT = 120  # characters of a name
PATH_LIMIT = 500  # characters of a path
LINE_LIMIT = 2000  # characters of a line that contains names and paths
PAGE_LIMIT = 100_000  # characters of a text of many lines
# Zero-width (non-)joiner: part of words in Persian and in Indic scripts, and of emoji.
JOINERS = "\u200c\u200d"

short_repr = reprlib.repr  # the repr of a value, truncated


def decoded(content: bytes) -> str:
    """Decode a file in UTF-8, or in UTF-16 with a byte-order mark; the mark is removed.

    Bytes that are not valid UTF-8 become surrogates, as in file names decoded by
    :func:`os.fsdecode`, so that such names can still be looked up and shown.
    """
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return content.decode("utf-16", errors="replace")
    return content.removeprefix(codecs.BOM_UTF8).decode(errors="surrogateescape")


def one_line(text: object, limit: int = LIMIT) -> str:
    """Return the text as one line of printable characters.

    Control characters, line breaks and bidirectional control characters become escapes (``\\n``,
    ``\\x1b``, ``\\u202e``), and so do the bytes of a file name that is not UTF-8 (``\\xe9``).

    Args:
        text: a string, a path, or any object, which is converted by ``str``.
        limit: maximum number of characters of the result; longer text ends with an ellipsis.
    """
    string = os.fsdecode(text) if isinstance(text, bytes | os.PathLike) else str(text)
    # Truncated first, since a text may be arbitrarily long; one more character shows that it is.
    shown = "".join(map(_visible, string[: limit + 1]))
    return shown if len(shown) <= limit else shown[: limit - 1] + "…"


def several_lines(text: str, limit: int = PAGE_LIMIT) -> str:
    """Return the text with its line breaks and tabs, and everything else as in :func:`one_line`."""
    shown = "".join(c if c in "\n\t" else _visible(c) for c in text[: limit + 1])
    return shown if len(shown) <= limit else shown[: limit - 1] + "…"


def _visible(character: str) -> str:
    if character.isprintable() or character in JOINERS:
        return character
    if unicodedata.category(character) == "Zs":  # a space other than " "
        return " "
    if "\udc80" <= character <= "\udcff":  # Python's surrogate for a byte that is not UTF-8
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode()


def markdown(text: object, limit: int = LIMIT) -> str:
    """Return the text as one line in which nothing is Markdown, HTML or an automatic link.

    Args:
        text, limit: as in :func:`one_line`; escapes are added after truncation.
    """
    escaped = re.sub(r"[\\`*_\[\]#!]", r"\\\g<0>", one_line(text, limit))
    # At the start of a line: a list item ("-", "+", "1.", "1)") or an underline of a heading ("=").
    escaped = re.sub(r"^(\d*)([-+=.)])", r"\1\\\2", escaped)
    # Renderers differ in which other characters a backslash escapes, so these become entities.
    # GitHub makes links of bare addresses and mentions: their first character becomes an entity.
    special = r"[<>&|~$@]|\b(?:https?|ftp|mailto|www)(?=[:.])"
    return re.sub(special, _entity, escaped, flags=re.IGNORECASE)


def markdown_code(text: object, limit: int = PATH_LIMIT) -> str:
    """Return the text as inline code in Markdown, also for a cell of a table."""
    shown = one_line(text, limit)
    # There are no escapes between backquotes, and "|" ends a cell of a table even there.
    return f"<code>{markdown(text, limit)}</code>" if re.search("[`|<]", shown) else f"`{shown}`"


def _entity(match: re.Match[str]) -> str:
    """Replace the first character of a match by its numeric HTML entity."""
    return f"&#{ord(match[0][0])};{match[0][1:]}"


def print_anything() -> None:
    """Print characters that the terminal's encoding lacks as escapes instead of raising."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def show_control_characters(record: logging.LogRecord) -> bool:
    """Filter of log handlers: escape control characters in a record by :func:`several_lines`."""
    record.msg, record.args = several_lines(record.getMessage()), None
    if record.exc_info and not record.exc_text:
        record.exc_text = several_lines(logging.Formatter().formatException(record.exc_info))
    return True


def cut_in_the_middle(text: str, length: int) -> str:
    """Shorten a text to at most ``length`` characters, with an ellipsis in the middle."""
    return text if len(text) <= length else f"{text[: length // 2 - 1]}…{text[-(length // 2) :]}"
