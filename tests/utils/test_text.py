"""Text of strangers as it is shown."""

import os
import re
from html import escape

import markdown as markdown_library  # TensorBoard brings it
import pytest
from gpvit.utils.text import markdown, one_line


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
    html = render(f"# Title\n\n- classes: {markdown(text, 500)}\n\n| name |\n|---|\n| {markdown(text, 500)} |\n")
    visible = escape(text.replace("\n", r"\n"), quote=False)
    assert f"<li>classes: {visible}</li>" in html
    assert f"<td>{visible}</td>" in html
    assert "http" not in markdown(text).lower() and "www" not in markdown(text).lower()


def render(text: str) -> str:
    """Markdown as HTML, with entities of plain letters and signs resolved."""
    html = markdown_library.markdown(text, extensions=["tables"], output_format="html")
    return re.sub(r"&#(\d+);", lambda match: escape(chr(int(match[1])), quote=False), html)
