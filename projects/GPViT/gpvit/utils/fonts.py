"""Characters in drawings that matplotlib's own font lacks, such as names of classes in Chinese."""

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

_families: dict[
    str, str | None
] = {}  # character -> the font family that it is drawn with; None if there is none


def draw_all_characters(artist: Artist) -> None:
    """Lets the texts of a figure be drawn with fonts of the system which have their characters.

    A character that no font has becomes a box, and a line in the log says so, once.

    Args:
        artist: a figure or a part of it whose texts are complete, before it is drawn.
    """
    texts = {text: _lacking(text) for text in artist.findobj(Text)}
    lacking = set().union(*texts.values())
    _look_for(lacking)
    for text, characters in texts.items():
        if found := [family for family in map(_families.get, characters) if family]:
            # matplotlib takes each character from the first of the fonts that has it.
            text.set_fontfamily(list(dict.fromkeys([*text.get_fontfamily(), *found])))
            text.set_fontweight("normal")  # in which a font was looked for
        for character in characters:
            if _families[character] is None:
                box = "" if _is_invisible(character) else BOX
                text.set_text(text.get_text().replace(character, box))
    if missing := sorted(c for c in lacking if _families[c] is None and not _is_invisible(c)):
        message = (
            f"no font here has the characters {one_line(' '.join(missing), 40)}, for which boxes are "
            "drawn; install one that has them, such as the package fonts-noto-cjk or fonts-noto"
        )
        log_first_n(logging.WARNING, message, name=__name__)


def _lacking(text: Text) -> list[str]:
    """The characters of a text that its own font lacks."""
    characters = dict.fromkeys(text.get_text())
    if all(character.isascii() for character in characters):
        return []
    known = _characters(findfont(text.get_fontproperties()))
    return [
        character for character in characters if character != "\n" and ord(character) not in known
    ]


@functools.lru_cache(maxsize=8)
def _characters(path: str) -> frozenset[int]:
    return frozenset(get_font(path).get_charmap())


def _look_for(characters: Iterable[str]) -> None:
    """Notes the font families of characters, those without serifs first."""
    wanted = {character for character in characters if character not in _families}
    if not wanted:
        return
    fonts = {entry.name: entry.fname for entry in fontManager.ttflist if _is_usual(entry)}
    for name in sorted(fonts, key=lambda name: ("Sans" not in name, name)):
        found = _drawable(fonts[name], wanted)
        _families.update(dict.fromkeys(found, name))
        wanted -= found
        if not wanted:
            return
    _families.update(dict.fromkeys(wanted))


def _is_usual(entry: FontEntry) -> bool:
    """Whether a font is upright, neither bold nor light, and for use."""
    # A font of last resort has a box for every character. macOS keeps those with a dot to itself.
    reserved = entry.name.startswith((".", "Last Resort", "LastResort"))
    return (entry.style, entry.weight) == ("normal", 400) and not reserved


def _drawable(path: str, characters: set[str]) -> set[str]:
    """Which characters a font can draw; none if it cannot be used, such as one of colored bitmaps."""
    try:
        font = get_font(path)
        known = font.get_charmap()
        there = {character for character in characters if ord(character) in known}
        if there:
            font.set_size(12, 72)
        # Colored layers have outlines elsewhere, and would be drawn as nothing.
        return {c for c in there if font.load_char(ord(c)).width > 0 or _is_invisible(c)}
    except (OSError, RuntimeError, ValueError):
        return set()


def _is_invisible(character: str) -> bool:
    """Whether a character only joins others or chooses how they look."""
    return unicodedata.category(character) == "Cf" or "\ufe00" <= character <= "\ufe0f"
