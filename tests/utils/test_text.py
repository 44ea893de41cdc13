"""Text of strangers as it is shown."""

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
def test_what_is_shown_is_one_line_of_printable_characters(text: object, shown: str) -> None:
    assert one_line(text) == shown
    one_line(text).encode()  # no surrogates


def test_a_long_text_is_cut_where_the_limit_says() -> None:
    assert one_line("a" * 10, limit=10) == "a" * 10
    assert one_line("a" * 11, limit=10) == "a" * 9 + "…"
    assert len(one_line("\x1b" * 10**7)) == 120  # escapes count, too


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
def test_nothing_in_a_name_is_markup(text: str) -> None:
    html = render(
        f"# Title\n\n- classes: {markdown(text, 500)}\n\n| name |\n|---|\n| {markdown(text, 500)} |\n"
    )
    visible = escape(text.replace("\n", r"\n"), quote=False)
    assert f"<li>classes: {visible}</li>" in html
    assert f"<td>{visible}</td>" in html
    assert "http" not in markdown(text).lower() and "www" not in markdown(text).lower()


@pytest.mark.parametrize(
    "text", ["a`b", "|", "<b>x", "&lt;", "plain_name*", "`", "a\nb`", "``` `` `"]
)
def test_code_in_markdown_is_code_alone(text: str) -> None:
    html = render(
        f"# Title\n\n- config: {markdown_code(text)}\n\n| name |\n|---|\n| {markdown_code(text)} |\n"
    )
    visible = escape(text.replace("\n", r"\n"), quote=False)
    assert f"<li>config: <code>{visible}</code></li>" in html
    assert f"<td><code>{visible}</code></td>" in html


def test_text_of_several_lines_keeps_these_alone() -> None:
    assert several_lines("a\tb\nc\r\x1b[1m\ud800") == "a\tb\nc\\r\\x1b[1m\\ud800"
    assert several_lines("a\n" * 10, limit=4) == "a\na…"


def test_a_log_shows_control_characters_and_keeps_tables() -> None:
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


def test_a_terminal_that_lacks_characters_gets_escapes(monkeypatch: pytest.MonkeyPatch) -> None:
    content = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(content, encoding="ascii"))
    print_anything()
    print("上…\ud800")
    sys.stdout.flush()
    assert content.getvalue() == b"\\u4e0a\\u2026\\ud800\n"


def test_an_error_is_one_line_of_limited_length() -> None:
    assert str(UserError("a\nb\x1b[31m: \udce9 \n")) == r"a\nb\x1b[31m: \xe9"
    assert len(str(UserError("x" * 10_000))) == 2000
    assert preview(["a\nb", 3, "x" * 10_000])[:20] == r"a\nb, 3, xxxxxxxxxxx"
    assert len(preview(["x" * 10_000] * 9)) < 2100


def test_an_error_of_a_data_loading_process_is_its_last_line() -> None:
    message = "UserError: a.png"  # a name may begin so
    traceback = f'Traceback (most recent call last):\n  File "x.py"\ngpvit.utils.errors.UserError: {message}\n'
    passed_on = f"Caught UserError in DataLoader worker process 0.\nOriginal {traceback}"
    assert str(UserError(passed_on)) == str(UserError(message)) == message


def render(text: str) -> str:
    """Markdown as HTML, with entities of plain letters and signs resolved."""
    html = markdown_library.markdown(text, extensions=["tables"], output_format="html")
    return re.sub(r"&#(\d+);", lambda match: escape(chr(int(match[1])), quote=False), html)
