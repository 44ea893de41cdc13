"""Untrusted text is shown without control characters and without markup."""

import io
import logging
import os
import re
import sys
from html import escape

import markdown as markdown_library  # TensorBoard brings it
import pytest
from gpvit.utils.errors import UserError, preview
from gpvit.utils.text import (
    markdown,
    markdown_code,
    one_line,
    print_anything,
    several_lines,
    show_control_characters,
)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("apple", "apple"),
        ("бокс 葡萄 🍇", "бокс 葡萄 🍇"),
        ("👨\u200d👩\u200d👧", "👨\u200d👩\u200d👧"),
        ("a\nb\r\tc", r"a\nb\r\tc"),
        ("\x1b[31mred\x1b]0;title\x07", r"\x1b[31mred\x1b]0;title\x07"),
        ("\x9b31m", r"\x9b31m"),
        ("a\u2028b\u202egnp.exe", r"a\u2028b\u202egnp.exe"),
        ("a\u3000b\xa0c", "a b c"),
        (os.fsdecode(b"caf\xe9.png"), r"caf\xe9.png"),
        (b"caf\xe9.png", r"caf\xe9.png"),
        ("\ud800x", r"\ud800x"),
        (3, "3"),
        ("", ""),
    ],
)
def test_one_line_has_printable_characters_only(text: object, shown: str) -> None:
    assert one_line(text) == shown
    one_line(text).encode()  # no surrogates


def test_long_text_is_truncated_at_the_limit() -> None:
    assert one_line("a" * 10, limit=10) == "a" * 10
    assert one_line("a" * 11, limit=10) == "a" * 9 + "…"
    assert len(one_line("\x1b" * 10**7)) == 120  # the characters of escapes count too


@pytest.mark.parametrize(
    "text",
    [
        "<script>alert(1)</script>",
        "x](javascript:alert(1))|`a`\n\n# Heading\n---\nlicense: mit",
        "![](https://example.org/a.png)",
        "**bold** _it_ ~~no~~ <!-- --> &lt; $x$",
        "www.example.org HTTPS://example.org @someone",
    ],
)
def test_markdown_escapes_all_markup(text: str) -> None:
    escaped = markdown(text, 500)
    html = render(f"# Title\n\n- classes: {escaped}\n\n| name |\n|---|\n| {escaped} |\n")
    visible = escape(text.replace("\n", r"\n"), quote=False)
    assert f"<li>classes: {visible}</li>" in html
    assert f"<td>{visible}</td>" in html
    assert "http" not in markdown(text).lower() and "www" not in markdown(text).lower()


@pytest.mark.parametrize(
    "text", ["a`b", "|", "<b>x", "&lt;", "plain_name*", "`", "a\nb`", "``` `` `"]
)
def test_markdown_code_escapes_all_markup(text: str) -> None:
    code = markdown_code(text)
    html = render(f"# Title\n\n- config: {code}\n\n| name |\n|---|\n| {code} |\n")
    visible = escape(text.replace("\n", r"\n"), quote=False)
    assert f"<li>config: <code>{visible}</code></li>" in html
    assert f"<td><code>{visible}</code></td>" in html


def test_several_lines_keeps_only_line_breaks_and_tabs() -> None:
    assert several_lines("a\tb\nc\r\x1b[1m\ud800") == "a\tb\nc\\r\\x1b[1m\\ud800"
    assert several_lines("a\n" * 10, limit=4) == "a\na…"


def test_log_filter_escapes_control_characters_and_keeps_lines() -> None:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.addFilter(show_control_characters)
    logger = logging.Logger("test")
    logger.addHandler(handler)
    logger.info("%s\n| a | b |", "\x1b[31m\udce9")
    try:
        raise ValueError("\x1b]0;title\x07")
    except ValueError:
        logger.exception("100%")  # no arguments, so no formatting
    lines = stream.getvalue().splitlines()
    assert lines[:3] == [r"\x1b[31m\xe9", "| a | b |", "100%"]
    assert lines[-1] == r"ValueError: \x1b]0;title\x07"


def test_characters_outside_the_terminal_encoding_are_printed_as_escapes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    content = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(content, encoding="ascii"))
    print_anything()
    print("上…\ud800")
    sys.stdout.flush()
    assert content.getvalue() == b"\\u4e0a\\u2026\\ud800\n"


def test_user_error_is_one_line_of_limited_length() -> None:
    assert str(UserError("a\nb\x1b[31m: \udce9 \n")) == r"a\nb\x1b[31m: \xe9"
    assert len(str(UserError("x" * 10_000))) == 2000
    assert preview(["a\nb", 3, "x" * 10_000])[:20] == r"a\nb, 3, xxxxxxxxxxx"
    assert len(preview(["x" * 10_000] * 9)) < 2100


def test_user_error_from_a_data_loading_process_drops_the_traceback() -> None:
    message = "UserError: a.png"  # the message itself may contain the type's name
    traceback = (
        'Traceback (most recent call last):\n  File "x.py"\n'
        f"gpvit.utils.errors.UserError: {message}\n"
    )
    forwarded = f"Caught UserError in DataLoader worker process 0.\nOriginal {traceback}"
    assert str(UserError(forwarded)) == str(UserError(message)) == message


def render(text: str) -> str:
    """Render Markdown as HTML, with the numeric entities of single characters resolved."""
    html = markdown_library.markdown(text, extensions=["tables"], output_format="html")
    return re.sub(r"&#(\d+);", lambda match: escape(chr(int(match[1])), quote=False), html)
