"""Characters that matplotlib's own font lacks are drawn with another one, or as boxes with one warning."""

import logging
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import detectron2.utils.logger
import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from gpvit.utils import fonts
from gpvit.utils.fonts import BOX, draw_all_characters
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontEntry, fontManager

UP, DOWN = "上", "下"


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As in a new process, on a system that has DejaVu's fonts alone."""
    monkeypatch.setattr(fonts, "_families", {})
    monkeypatch.setattr(detectron2.utils.logger, "_LOG_COUNTER", Counter())
    before = list(fontManager.ttflist)
    fontManager.ttflist = [
        entry for entry in before if entry.name.startswith(("DejaVu", "Last Resort"))
    ]
    yield
    fontManager.ttflist = before
    fontManager._findfont_cached.cache_clear()


@pytest.fixture
def log(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> Iterator[pytest.LogCaptureFixture]:
    """What is logged, also after training runs of other tests, which let nothing through to the root."""
    logger = logging.getLogger(fonts.__name__)
    monkeypatch.setattr(logger, "propagate", False)
    logger.addHandler(caplog.handler)
    yield caplog
    logger.removeHandler(caplog.handler)


def install(path: Path, family: str, characters: str, *, empty: bool = False) -> None:
    """A font in which these characters are triangles, or nothing at all."""
    pen = TTGlyphPen(None)
    for step, point in enumerate(((100, 0), (900, 0), (500, 900))):
        (pen.lineTo if step else pen.moveTo)(point)
    pen.closePath()
    blank = TTGlyphPen(None).glyph()
    names = [f"u{ord(character):x}" for character in characters]
    builder = FontBuilder(1000)
    builder.setupGlyphOrder([".notdef", *names])
    builder.setupCharacterMap(dict(zip(map(ord, characters), names)))
    builder.setupGlyf({".notdef": blank} | dict.fromkeys(names, blank if empty else pen.glyph()))
    builder.setupHorizontalMetrics({name: (1000, 0) for name in (".notdef", *names)})
    builder.setupHorizontalHeader(ascent=900, descent=-100)
    builder.setupOS2()
    builder.setupNameTable({"familyName": family, "styleName": "Regular"})
    builder.setupPost()
    builder.save(path)
    fontManager.addfont(path)


def drawn(text: str, **style: str) -> tuple[str, np.ndarray]:
    """What a figure's text is in the end, and the picture (H, W), where matplotlib warns of nothing."""
    figure = Figure(figsize=(2, 1))
    artist = figure.text(0.1, 0.4, text, fontsize=20, parse_math=False, **style)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        draw_all_characters(figure)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
    return artist.get_text(), np.asarray(canvas.buffer_rgba())[..., 0]


def test_a_font_of_the_system_draws_what_the_usual_one_lacks(
    tmp_path: Path, log: pytest.LogCaptureFixture
) -> None:
    install(tmp_path / "tiny.ttf", "Tiny", UP)
    for style in ({}, {"weight": "bold"}):
        text, picture = drawn(f"a{UP}", **style)
        assert text == f"a{UP}"
        assert np.abs(picture.astype(int) - drawn(f"a{BOX}", **style)[1]).sum() > 1000
    assert not log.records


def test_characters_of_several_fonts_stand_in_one_text(
    tmp_path: Path, log: pytest.LogCaptureFixture
) -> None:
    install(tmp_path / "up.ttf", "Up", UP)
    install(tmp_path / "down.ttf", "Down", DOWN)
    assert drawn(f"{UP} and {DOWN}")[0] == f"{UP} and {DOWN}"
    assert not log.records


def test_without_a_font_there_are_boxes_and_one_line_says_so(log: pytest.LogCaptureFixture) -> None:
    assert [drawn(text)[0] for text in (UP, f"x{DOWN}\n{UP}")] == [BOX, f"x{BOX}\n{BOX}"]
    assert [
        UP in record.getMessage() and "install" in record.getMessage() for record in log.records
    ] == [True]


def test_joiners_and_selectors_that_no_font_has_leave_no_box(
    log: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fonts, "_characters", lambda path: frozenset(map(ord, "ab" + BOX)))
    monkeypatch.setattr(fonts, "_drawable", lambda path, characters: set())
    assert drawn("a\u200d\ufe0fb")[0] == "ab"
    assert not log.records


def test_fonts_that_cannot_draw_are_passed_over(
    tmp_path: Path, log: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "broken.ttf").write_bytes(b"no font")
    install(tmp_path / "layers.ttf", "B Sans of colored layers", UP, empty=True)
    for name, file in (("A Sans", "broken.ttf"), ("C Sans", "missing.ttf")):
        entry = FontEntry(
            str(tmp_path / file), name=name, style="normal", weight=400, size="scalable"
        )
        fontManager.ttflist.append(entry)
    assert drawn(UP)[0] == BOX and len(log.records) == 1
    install(tmp_path / "tiny.ttf", "Tiny", UP)
    fonts._families.clear()
    assert drawn(UP)[0] == UP
