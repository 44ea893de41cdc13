"""Characters that the default font lacks are drawn with system fonts, or as boxes and a warning."""

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
    """Restore the state of a new process on a system where only the DejaVu fonts are installed."""
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
    """The log of the module, also after training runs of other tests disabled propagation."""
    logger = logging.getLogger(fonts.__name__)
    monkeypatch.setattr(logger, "propagate", False)
    logger.addHandler(caplog.handler)
    yield caplog
    logger.removeHandler(caplog.handler)


def install(path: Path, family: str, characters: str, *, empty: bool = False) -> None:
    """Install a font in which these characters are triangles, or empty."""
    pen = TTGlyphPen(None)
    pen.moveTo((100, 0))
    pen.lineTo((900, 0))
    pen.lineTo((500, 900))
    pen.closePath()
    blank = TTGlyphPen(None).glyph()
    names = [f"u{ord(character):x}" for character in characters]
    builder = FontBuilder(1000)
    builder.setupGlyphOrder([".notdef", *names])
    builder.setupCharacterMap(dict(zip(map(ord, characters), names)))
    builder.setupGlyf({".notdef": blank} | dict.fromkeys(names, blank if empty else pen.glyph()))
    builder.setupHorizontalMetrics(dict.fromkeys([".notdef", *names], (1000, 0)))
    builder.setupHorizontalHeader(ascent=900, descent=-100)
    builder.setupOS2()
    builder.setupNameTable({"familyName": family, "styleName": "Regular"})
    builder.setupPost()
    builder.save(path)
    fontManager.addfont(path)


def drawn(text: str, **style: str) -> tuple[str, np.ndarray]:
    """Return a figure's final text and its red channel (H, W); matplotlib's warnings are errors."""
    figure = Figure(figsize=(2, 1))
    artist = figure.text(0.1, 0.4, text, fontsize=20, parse_math=False, **style)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        draw_all_characters(figure)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
    return artist.get_text(), np.asarray(canvas.buffer_rgba())[..., 0]


def test_system_font_draws_what_the_default_font_lacks(
    tmp_path: Path, log: pytest.LogCaptureFixture
) -> None:
    install(tmp_path / "tiny.ttf", "Tiny", UP)
    for style in ({}, {"weight": "bold"}):
        text, image = drawn(f"a{UP}", **style)
        assert text == f"a{UP}"
        assert np.abs(image.astype(int) - drawn(f"a{BOX}", **style)[1]).sum() > 1000
    assert not log.records


def test_one_text_is_drawn_with_several_fonts(
    tmp_path: Path, log: pytest.LogCaptureFixture
) -> None:
    install(tmp_path / "up.ttf", "Up", UP)
    install(tmp_path / "down.ttf", "Down", DOWN)
    assert drawn(f"{UP} and {DOWN}")[0] == f"{UP} and {DOWN}"
    assert not log.records


def test_characters_without_a_font_become_boxes_with_one_warning(
    log: pytest.LogCaptureFixture,
) -> None:
    assert [drawn(text)[0] for text in (UP, f"x{DOWN}\n{UP}")] == [BOX, f"x{BOX}\n{BOX}"]
    (record,) = log.records
    assert UP in record.getMessage() and "install" in record.getMessage()


def test_invisible_characters_without_a_font_leave_no_box(
    log: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fonts, "_characters", lambda path: frozenset(map(ord, "ab" + BOX)))
    monkeypatch.setattr(fonts, "_drawable", lambda path, characters: set())
    assert drawn("a\u200d\ufe0fb")[0] == "ab"
    assert not log.records


def test_unusable_fonts_are_skipped(tmp_path: Path, log: pytest.LogCaptureFixture) -> None:
    (tmp_path / "broken.ttf").write_bytes(b"not a font")
    install(tmp_path / "layers.ttf", "B Sans with colored layers", UP, empty=True)
    for name, file in (("A Sans", "broken.ttf"), ("C Sans", "missing.ttf")):
        entry = FontEntry(
            str(tmp_path / file), name=name, style="normal", weight=400, size="scalable"
        )
        fontManager.ttflist.append(entry)
    assert drawn(UP)[0] == BOX and len(log.records) == 1
    install(tmp_path / "tiny.ttf", "Tiny", UP)
    fonts._families.clear()
    assert drawn(UP)[0] == UP
