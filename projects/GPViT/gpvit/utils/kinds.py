"""Kinds of values of config keys and command-line options: their checks and their messages."""

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
THOUSANDS = re.compile(r"[+-]?\d{1,3}([ ,]\d{3})+")  # 10,000 or 10 000


@dataclass(frozen=True)
class Kind:
    """A kind of value.

    Attributes:
        what: its description, which follows "must be" in messages.
        fits: returns whether a value is of this kind.
        options: all allowed values, if there are only a few.
        noun: what a text names ("a folder"), if any text is allowed.
        may_change: whether a resumed run may have another value than it started with.
    """

    what: str
    fits: Callable[[Any], bool]
    options: tuple[Any, ...] = ()
    noun: str = ""
    may_change: bool = False

    def fault(self, value: Any) -> str:
        """Return the message for a value that is not of this kind."""
        # Where text is expected, such as a folder called 2026, YAML reads a number without quotes.
        is_number = isinstance(value, Real) and not isinstance(value, bool)
        prefix = "the number " if self.noun and is_number else ""
        return f"must be {self.what}, got {prefix}{_shown(value)}"

    def meant(self, value: Any, text: str | None = None) -> list[Any]:
        """Guess which valid value an invalid one stands for.

        Args:
            value: the invalid value.
            text: its source text, if known: "1e4" for 10000.0.

        Returns:
            A list of the most likely value, or an empty list.
        """
        return list(filter(self.fits, self._readings(value, text)))[:1]

    def _readings(self, value: Any, text: str | None) -> Iterator[Any]:
        """Yield the values that may be meant, the most likely ones first."""
        if isinstance(value, list):
            yield list(map(_number_or_text, map(str, value)))
            if len(value) == 1:
                yield from self._readings(value[0], None)
        if isinstance(value, os.PathLike):
            yield os.fspath(value)
        if not isinstance(value, str | int | float):
            return
        text = (str(value) if text is None else text).strip()
        if text[:1] in ("'", '"'):  # quotes inside quotes, or a quote that is not closed
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
        items = text.strip("[](){} ").split(",")
        yield [_number_or_text(item.strip()) for item in items]
        yield os.path.expanduser(text)


def _shown(value: Any) -> str:
    if isinstance(value, str):
        return f'"{one_line(value, PATH_LIMIT)}"'
    return "null" if value is None else one_line(value)


def _numbers(text: str) -> Iterator[int | float]:
    """Yield the numbers that a text may stand for."""
    if THOUSANDS.fullmatch(text):
        yield int(re.sub("[ ,]", "", text))
    try:
        number = float(text.replace(",", ".", 1))  # 1,5e-4 with a decimal comma
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
    """Describe a range, such as " from 0 to below 1"; "" if there are no limits."""
    lower = "" if least is None else f"{least}"
    if above is not None:
        lower = f"above {above}"
    upper = "" if most is None else f"{most}"
    if below is not None:
        upper = f"below {below}"
    if lower and upper:
        return f" from {lower} to {upper}"
    if least is not None:
        return f", at least {lower}"
    return f", at most {upper}" if most is not None else f" {lower or upper}".rstrip()


def _is_finite(value: Any) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer that is too large for a float
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


def integer(
    least: int | None = None, most: int | None = None, of: str = "", note: str = ""
) -> Kind:
    """A whole number, of what ``of`` names; ``note`` explains a special value."""
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
    """A finite number; ``note`` explains a special value."""
    what = f"a number{_limits(least, most, above, below)}"
    return Kind(what + (f" ({note})" if note else ""), _within(Real, least, most, above, below))


def choice(*options: Any) -> Kind:
    """One of a few values. Types must match too: True is not 1."""
    *first, last = map(str, options)

    def fits(value: Any) -> bool:
        return any(type(value) is type(option) and value == option for option in options)

    return Kind(f"{', '.join(first)} or {last}" if first else last, fits, options)


def text(what: str, noun: str, empty: str = "") -> Kind:
    """A text that names something.

    Args:
        what: its description.
        noun: what it names ("a folder"), for the message that the text must be quoted.
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
    """The path of a file or folder; the arguments are those of :func:`text`.

    A leading ``~`` is refused, since it is never expanded.
    """
    named = text(what, noun, empty)

    def fits(value: Any) -> bool:
        return named.fits(value) and os.path.expanduser(value or "") == (value or "")

    return replace(named, fits=fits)


def several(
    kind: Kind, what: str, length: int | None = None, least: int = 1, ordered: bool = False
) -> Kind:
    """A list.

    Args:
        kind: of its items.
        what: description of the list.
        length: exact number of items, if it is fixed.
        least: minimum number of items, if ``length`` is not given.
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
    """A value of any of the given kinds."""

    def fits(value: Any) -> bool:
        return any(kind.fits(value) for kind in kinds)

    descriptions: list[str] = []
    options: list[Any] = []
    noun = ""  # the first one
    for kind in kinds:
        descriptions.append(kind.what)
        options += kind.options
        noun = noun or kind.noun
    return Kind(" or ".join(descriptions), fits, tuple(options), noun)


FLAG = choice(True, False)
NULL = Kind("null", lambda value: value is None)


def argument(kind: Kind) -> Callable[[str], Any]:
    """Return a function that parses a numeric kind, for the ``type`` of an argparse option."""

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
