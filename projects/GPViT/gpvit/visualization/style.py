"""The common style of all charts and sheets: font, colors, text sizes, gaps.

Figures are 12 to 14 inches wide, so that text is legible at the width of a README: at 800 pixels,
TEXT is about 10 pixels high. A figure with more detail has more dots per inch, not more inches.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import matplotlib
import numpy as np
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.transforms import ScaledTranslation

FONT = "DejaVu Sans"  # part of matplotlib, so drawings look alike everywhere
WIDTH = 13  # inches, the usual width of a figure
SMALL, TEXT, HEADING, TITLE = 9, 11, 13, 18  # points
LINE = 1.5 * TEXT / 72  # inches, the height of a line of text
GAP = 0.08  # inches between panels
DPI = 130

# Colors of light mode. The HTML report replaces them by those of dark mode.
INK, MUTED, BACKGROUND = "#1f2328", "#59636e", "#ffffff"
SERIES = ("#0969da", "#bc4c00", "#1a7f37", "#8250df", "#1b7c83", "#9a6700")
TRUE_POSITIVE, FALSE_POSITIVE, FALSE_NEGATIVE = "#15803d", "#dc2626", "#1d4ed8"
IGNORED = "#6b7280"
# In the same order, for a dark background.
DARK_INK, DARK_MUTED, DARK_BACKGROUND = "#e6edf3", "#9198a1", "#0d1117"
DARK_SERIES = ("#58a6ff", "#f0883e", "#3fb950", "#bc8cff", "#39c5cf", "#d29922")
DARK_TRUE_POSITIVE, DARK_FALSE_POSITIVE, DARK_FALSE_NEGATIVE = "#3fb950", "#f85149", "#58a6ff"

LINE_STYLES = ("-", "--", ":", "-.")
CLASS_COLORS = matplotlib.colormaps["tab10"](np.arange(10))[:, :3]  # (10, 3), 0 to 1


def _series_cycle() -> Any:
    """24 different lines, of which neighbors differ in color and in line style."""
    colors, lines = [], []
    for number in range(len(SERIES) * len(LINE_STYLES)):
        cycles, color = divmod(number, len(SERIES))
        colors.append(SERIES[color])
        lines.append(LINE_STYLES[(number + cycles) % len(LINE_STYLES)])
    return cycler(color=colors, linestyle=lines)


_SETTINGS: Any = {  # matplotlib declares a type for each of its settings
    "font.family": FONT,
    "font.size": TEXT,
    "figure.facecolor": BACKGROUND,
    "savefig.facecolor": BACKGROUND,
    "text.color": INK,
    "axes.facecolor": "none",
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlesize": HEADING,
    "axes.grid": True,
    "axes.prop_cycle": _series_cycle(),
    "axes.spines.right": False,
    "axes.spines.top": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": INK,
    "grid.alpha": 0.15,
    "legend.frameon": False,
    "legend.borderpad": 0,
    "legend.borderaxespad": 0,
    "legend.handlelength": 2.2,
    "legend.columnspacing": 1.2,
}
# Width of a legend entry without its text, in font sizes: handle, gap to the text, gap to the next.
_ENTRY = 2.2 + 0.8 + 1.2
_CHARACTER = 0.6  # mean width of a character, in font sizes


def figure_style(**changes: Any) -> AbstractContextManager[None]:
    """Context in which matplotlib draws in this style, with changes to its settings."""
    return matplotlib.rc_context(_SETTINGS | changes)


def legend_columns(labels: Sequence[str], width: float, size: float) -> int:
    """Number of columns of a legend that has as few rows as its width allows.

    Args:
        labels: texts of the legend.
        width: points that the legend may be wide; one column may be wider.
        size: of the font, in points.
    """
    columns = len(labels)
    for rows in range(1, len(labels)):
        columns = -(-len(labels) // rows)
        # matplotlib fills a legend column by column; a column is as wide as its longest label.
        characters = 0
        for start in range(0, len(labels), rows):
            characters += max(map(len, labels[start : start + rows]))
        if (characters * _CHARACTER + columns * _ENTRY) * size <= width:
            return columns
    return 1


def legend_below(axes: Axes, width: float, size: float = TEXT) -> int:
    """Draw a legend below the axis label, outside of the axes; return the number of its rows.

    Args:
        axes: with labeled lines or bars.
        width: points that the legend may be wide.
        size: of the font, in points.
    """
    handles, labels = axes.get_legend_handles_labels()
    columns = legend_columns(labels, width, size)
    # From the lower edge of the axes down past tick labels and axis label.
    figure = axes.get_figure(root=True)
    assert figure is not None
    offset = ScaledTranslation(0, -3.9 * size / 72, figure.dpi_scale_trans)
    legend = axes.legend(
        handles,
        labels,
        loc="upper center",
        bbox_to_anchor=(0.5, 0),
        bbox_transform=axes.transAxes + offset,
        ncols=columns,
        fontsize=size,
    )
    for text in legend.get_texts():
        text.set_parse_math(False)  # a name may contain $
    return -(-len(labels) // columns)
