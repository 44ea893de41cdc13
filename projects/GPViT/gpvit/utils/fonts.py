"""System fonts for characters that matplotlib's default font lacks, such as Chinese class names."""

import functools
import logging
import unicodedata
from collections.abc import Iterable

from detectron2.utils.logger import log_first_n
from matplotlib.artist import Artist
from matplotlib.font_manager import FontEntry, findfont, fontManager, get_font
from matplotlib.text import Text

from .text import one_line

BOX = "\N{WHITE SQUARE}"

# Character -> the font family that it is drawn with, or None if no installed font has it.
_families: dict[str, str | None] = {}


def draw_all_characters(artist: Artist) -> None:
    """Add system fonts to the texts of a figure for the characters that its own fonts lack.

    A character that no installed font has is replaced by a box, and a warning is logged once.

    Args:
        artist: a figure, or a part of it, whose texts are complete; before it is drawn.
    """
    lacking = {text: _lacking(text) for text in artist.findobj(Text)}
    _look_for(set().union(*lacking.values()))
    missing = set()
    for text, characters in lacking.items():
        families = list(filter(None, map(_families.get, characters)))
        if families:
            # matplotlib draws each character with the first of the fonts that has it.
            text.set_fontfamily(list(dict.fromkeys([*text.get_fontfamily(), *families])))
            text.set_fontweight("normal")  # only fonts of normal weight were searched
        for character in characters:
            if _families[character] is not None:
                continue
            if not _is_invisible(character):
                missing.add(character)
            box = "" if _is_invisible(character) else BOX
            text.set_text(text.get_text().replace(character, box))
    if missing:
        message = (
            f"no installed font has the characters {one_line(' '.join(sorted(missing)), 40)}, "
            "which are drawn as boxes; install a font that has them, such as the package "
            "fonts-noto-cjk or fonts-noto"
        )
        log_first_n(logging.WARNING, message, name=__name__)


def _lacking(text: Text) -> list[str]:
    """Return the characters of a text that its own font lacks."""
    if text.get_text().isascii():
        return []
    supported = _characters(findfont(text.get_fontproperties()))
    characters = dict.fromkeys(text.get_text())  # a set that keeps the order
    characters.pop("\n", None)
    return [character for character in characters if ord(character) not in supported]


@functools.lru_cache(maxsize=8)
def _characters(path: str) -> frozenset[int]:
    return frozenset(get_font(path).get_charmap())


def _look_for(characters: Iterable[str]) -> None:
    """Find font families for characters and record them in ``_families``.

    Sans-serif fonts are preferred.
    """
    remaining = set(characters).difference(_families)
    if not remaining:
        return
    fonts = {entry.name: entry.fname for entry in filter(_is_usual, fontManager.ttflist)}
    for name in sorted(fonts, key=lambda name: ("Sans" not in name, name)):
        found = _drawable(fonts[name], remaining)
        _families.update(dict.fromkeys(found, name))
        remaining -= found
        if not remaining:
            return
    _families.update(dict.fromkeys(remaining))


def _is_usual(entry: FontEntry) -> bool:
    """Return whether a font is upright, of normal weight, and meant for text."""
    # A last-resort font has a box for every character. macOS reserves names that begin with a dot.
    reserved = entry.name.startswith((".", "Last Resort", "LastResort"))
    return (entry.style, entry.weight) == ("normal", 400) and not reserved


def _drawable(path: str, characters: set[str]) -> set[str]:
    """Return the characters that a font can draw; an unusable font can draw none."""
    drawable = set()
    try:
        font = get_font(path)
        font.set_size(12, 72)
        supported = font.get_charmap()
        for character in characters:
            if ord(character) not in supported:
                continue
            # A font of colored layers or bitmaps has empty outlines, which would draw nothing.
            if font.load_char(ord(character)).width > 0 or _is_invisible(character):
                drawable.add(character)
    except (OSError, RuntimeError, ValueError):
        return set()
    return drawable


def _is_invisible(character: str) -> bool:
    """Return whether a character only joins others or selects their form (variation selectors)."""
    return unicodedata.category(character) == "Cf" or "\ufe00" <= character <= "\ufe0f"
