"""What a value must be, of a config or of an option on the command line, and what was meant by one that is not."""

import argparse
import difflib
import math
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from numbers import Integral, Real
from typing import Any

from .text import PATH_LIMIT, one_line

FLAGS = {"true": True, "yes": True, "on": True, "1": True}
FLAGS |= {"false": False, "no": False, "off": False, "0": False}
NOTHING = ("none", "null")
SYNONYMS = {"gpu": "cuda", "bf16": "bfloat16", "fp16": "float16", "half": "float16"}
THOUSANDS = re.compile(r"[+-]?\d{1,3}([ ,]\d{3})+")


@dataclass(frozen=True)
class Kind:
    """What a value must be.

    Attributes:
        what: in words, behind "must be".
        fits: whether a value is that.
        options: all that it may be, if these are a few.
        noun: what a text names ("a folder"), if it may be any text.
        may_change: whether a training run that is resumed may have another value than it began with.
    """

    what: str
    fits: Callable[[Any], bool]
    options: tuple[Any, ...] = ()
    noun: str = ""
    may_change: bool = False

    def fault(self, value: Any) -> str:
        """What is wrong with a value that does not fit."""
        number = (
            "the number "
            if self.noun and isinstance(value, Real) and not isinstance(value, bool)
            else ""
        )
        return f"must be {self.what}, got {number}{_shown(value)}"

    def meant(self, value: Any, text: str | None = None) -> list[Any]:
        """The value that is evidently meant by one that does not fit, alone in a list, which else is empty.

        Args:
            value: the one that does not fit.
            text: how it was written, if that is known: 1e4, which is 10000.0.
        """
        return [reading for reading in self._readings(value, text) if self.fits(reading)][:1]

    def _readings(self, value: Any, text: str | None) -> Iterator[Any]:
        """What may be meant, likely ones first."""
        if isinstance(value, list):
            yield [_number_or_text(str(item)) for item in value]
            if len(value) == 1:
                yield from self._readings(value[0], None)
        if isinstance(value, os.PathLike):
            yield os.fspath(value)
        if not isinstance(value, str | int | float):
            return
        text = (str(value) if text is None else text).strip()
        if text[:1] in ("'", '"'):  # quotes in quotes, or one that is not closed
            text = text[1:].removesuffix(text[0])
        yield from _numbers(text)
        word = text.lower()
        if word in FLAGS:
            yield FLAGS[word]
        options = {str(option).lower(): option for option in self.options}
        for match in difflib.get_close_matches(SYNONYMS.get(word, word), options, n=1, cutoff=0.75):
            yield options[match]
        if word in NOTHING:
            yield from ("", None)
        yield [_number_or_text(item.strip()) for item in text.strip("[](){} ").split(",")]
        yield os.path.expanduser(text)


def _shown(value: Any) -> str:
    if isinstance(value, str):
        return f'"{one_line(value, PATH_LIMIT)}"'
    return "null" if value is None else one_line(value)


def _numbers(text: str) -> Iterator[int | float]:
    if THOUSANDS.fullmatch(text):  # 10,000
        yield int(re.sub("[ ,]", "", text))
    try:
        number = float(text.replace(",", ".", 1))  # 1,5e-4
    except ValueError:
        return
    if number.is_integer():  # 1e4
        yield int(number)
    yield number


def _number_or_text(text: str) -> int | float | str:
    return next(_numbers(text), text.strip("'\" "))


def _limits(
    least: float | None, most: float | None, above: float | None, below: float | None
) -> str:
    """For example " from 0 to below 1"; "" for none."""
    lower = f"above {above}" if above is not None else "" if least is None else f"{least}"
    upper = f"below {below}" if below is not None else "" if most is None else f"{most}"
    if lower and upper:
        return f" from {lower} to {upper}"
    if least is not None:
        return f", at least {lower}"
    return f", at most {upper}" if most is not None else f" {lower or upper}".rstrip()


def _is_finite(value: Any) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number that no float can hold
        return False


def _within(
    kind: Any, least: float | None, most: float | None, above: float | None, below: float | None
) -> Callable[[Any], bool]:
    def fits(value: Any) -> bool:
        return (
            isinstance(value, kind)
            and not isinstance(value, bool)
            and _is_finite(value)
            and (least is None or value >= least)
            and (most is None or value <= most)
            and (above is None or value > above)
            and (below is None or value < below)
        )

    return fits


def whole(least: int | None = None, most: int | None = None, of: str = "", note: str = "") -> Kind:
    """A whole number of something; ``note`` says what one of its values stands for."""
    what = f"a whole number{f' of {of}' if of else ''}{_limits(least, most, None, None)}"
    return Kind(what + (f" ({note})" if note else ""), _within(Integral, least, most, None, None))


def number(
    least: float | None = None,
    most: float | None = None,
    *,
    above: float | None = None,
    below: float | None = None,
    note: str = "",
) -> Kind:
    """A finite number."""
    what = f"a number{_limits(least, most, above, below)}"
    return Kind(what + (f" ({note})" if note else ""), _within(Real, least, most, above, below))


def choice(*options: Any) -> Kind:
    """One of a few values; True is not 1 here."""
    *first, last = map(str, options)

    def fits(value: Any) -> bool:
        return any(type(value) is type(option) and value == option for option in options)

    return Kind(f"{', '.join(first)} or {last}" if first else last, fits, options)


def text(what: str, noun: str, empty: str = "") -> Kind:
    """A text that names something.

    Args:
        what: in words.
        noun: what it names, in a message that the text needs quotes ("a folder").
        empty: what "" and null stand for; "" if they are not allowed.
    """

    def fits(value: Any) -> bool:
        if not value:
            return bool(empty) and value in ("", None)
        return (
            isinstance(value, str)
            and value.strip() != ""
            and "\0" not in value
            and value.lower() not in NOTHING
        )

    return Kind(f'{what}, or "" for {empty}' if empty else what, fits, noun=noun)


def path(what: str, noun: str, empty: str = "") -> Kind:
    """As :func:`text`, of a file or a folder. Nothing would replace a ~."""
    named = text(what, noun, empty)
    return replace(
        named,
        fits=lambda value: named.fits(value) and os.path.expanduser(value or "") == (value or ""),
    )


def several(
    kind: Kind, what: str, length: int | None = None, least: int = 1, ordered: bool = False
) -> Kind:
    """A list.

    Args:
        kind: of its items.
        what: the list in words.
        length: how many items it has, if that is certain.
        least: how many it has at least.
        ordered: whether each item must be larger than the one before.
    """

    def fits(value: Any) -> bool:
        return (
            isinstance(value, list | tuple)
            and (len(value) == length if length else len(value) >= least)
            and all(map(kind.fits, value))
            and not (ordered and any(a >= b for a, b in pairwise(value)))
        )

    return Kind(what, fits, kind.options)


def either(*kinds: Kind) -> Kind:
    def fits(value: Any) -> bool:
        return any(kind.fits(value) for kind in kinds)

    options = tuple(option for kind in kinds for option in kind.options)
    nouns = [kind.noun for kind in kinds if kind.noun]
    return Kind(" or ".join(kind.what for kind in kinds), fits, options, nouns[0] if nouns else "")


FLAG = choice(True, False)
NULL = Kind("null", lambda value: value is None)


def argument(kind: Kind) -> Callable[[str], Any]:
    """A numeric kind as the ``type`` of an argparse option."""

    def read(text: str) -> int | float:
        value: int | float | str = text
        for convert in (int, float):
            try:
                value = convert(text)
                break
            except ValueError:
                continue
        if not kind.fits(value):
            raise argparse.ArgumentTypeError(f"must be {kind.what}, got {one_line(text)}")
        return value  # type: ignore[return-value]

    return read
