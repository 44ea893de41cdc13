"""Text from files, made fit to be shown: names of classes and files, versions, messages of libraries.

Whoever wrote the file chose the text. On a terminal it could move the cursor or forge a line, on a page it could be
markup. Everything that is shown goes through one of these functions; what is compared or looked up does not.
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
LINE_LIMIT = 2000  # characters of a line with names and paths in it
PAGE_LIMIT = 100_000  # characters of a text of many lines
JOINERS = "\u200c\u200d"  # part of words in Persian and in Indic scripts, and of emoji

shown = reprlib.repr  # of a value, cut


def decoded(content: bytes) -> str:
    """The text of a file in UTF-8, or in UTF-16 with its byte-order mark; the mark is no part of it.

    Other bytes stay as :func:`os.fsdecode` keeps those of a file name, so that they are still found and shown.
    """
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return content.decode("utf-16", errors="replace")
    return content.removeprefix(codecs.BOM_UTF8).decode(errors="surrogateescape")


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


def several_lines(text: str, limit: int = PAGE_LIMIT) -> str:
    """The text with its line breaks and tabs, and all else as :func:`one_line` shows it."""
    shown = "".join(c if c in "\n\t" else _visible(c) for c in text[: limit + 1])
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
    escaped = re.sub(
        r"^(\d*)([-+=.)])", r"\1\\\2", escaped
    )  # a list or a rule, at the start of a line
    # Readers differ in what else a backslash escapes. GitHub makes links of bare addresses and mentions.
    return re.sub(
        r"[<>&|~$@]|\b(?:https?|ftp|mailto|www)(?=[:.])", _entity, escaped, flags=re.IGNORECASE
    )


def markdown_code(text: object, limit: int = PATH_LIMIT) -> str:
    """The text as one line of code in Markdown, also in a table."""
    shown = one_line(text, limit)
    # Nothing can be escaped between backquotes, and tables end a cell there all the same.
    return f"<code>{markdown(text, limit)}</code>" if re.search("[`|<]", shown) else f"`{shown}`"


def _entity(match: re.Match[str]) -> str:
    """The first character by its number."""
    return f"&#{ord(match[0][0])};{match[0][1:]}"


def print_anything() -> None:
    """Lets a terminal without some characters show their escapes, where printing would raise an error."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def show_control_characters(record: logging.LogRecord) -> bool:
    """A filter for handlers of a log, after which a record is text of :func:`several_lines`."""
    record.msg, record.args = several_lines(record.getMessage()), None
    if record.exc_info and not record.exc_text:
        record.exc_text = several_lines(logging.Formatter().formatException(record.exc_info))
    return True


def cut_in_the_middle(text: str, length: int) -> str:
    """A text of at most so many letters."""
    return text if len(text) <= length else f"{text[: length // 2 - 1]}…{text[-(length // 2) :]}"
