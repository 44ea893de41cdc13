"""Sheets of the group tokens and of the pyramid features of an image."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize, hsv_to_rgb
from matplotlib.figure import Figure

from ..utils.errors import UserError
from ..utils.fonts import draw_all_characters
from ..utils.text import cut_in_the_middle, one_line
from . import style
from .attention import TOKEN_STRIDE, GroupMaps, Inspection, principal_colors, strongest
from .style import GAP

COLUMNS = 8  # default number of tokens
# In inches. PANEL is the width of a small panel, wide enough for its title.
PANEL, FEATURES_PANEL = 1.2, 3.6
MARGIN, TITLE, LABEL, SCALE, TEXT = 0.2, 0.8, 0.4, 0.75, 6.6
SWATCH = 0.07  # height of the strip in the color of a token
NAME_LENGTH = 32  # characters of the file name in a title
HOW_TO_READ = """\
Large panel: color of the token that each cell attends to most;
below the number of a token: the fraction of these cells.
Grouping: attention of the token to each cell.
Ungrouping: attention of each cell to the token.
Scale: attention relative to uniform attention (1x), mean over
heads; each row has its own scale."""
RAMP = np.linspace(0, 1, 256)
# The least attention of a row is transparent, so that the image is visible there. (256, RGBA)
HEAT = ListedColormap(np.column_stack([colormaps["inferno"](RAMP)[:, :3], RAMP]))


def draw_groups(
    image: np.ndarray, inspection: Inspection, name: str, tokens: Sequence[int] | None
) -> Figure:
    """Draw the sheet of the group tokens.

    Args:
        image: (H, W, 3), RGB, uint8.
        inspection: its attention maps.
        name: file name for the title.
        tokens: tokens to draw; None for the ones that most cells attend to.

    Raises:
        UserError: no block has any of ``tokens``.
    """
    chosen = {block: chosen_tokens(maps, tokens) for block, maps in inspection.groups.items()}
    columns = max(map(len, chosen.values()))
    if not columns:
        counts = []
        for block, maps in inspection.groups.items():
            counts.append(f"{len(maps.ungrouping)} in block {block}")
        raise UserError(
            "--tokens: no block has any of these; tokens are counted from 0, and there are "
            f"{', '.join(counts)}"
        )
    with style.figure_style():
        sheet = Sheet(image, inspection.size, len(chosen), columns)
        sheet.draw_head(name)
        for row, (block, maps) in enumerate(inspection.groups.items()):
            sheet.draw_block(row, block, maps, chosen[block])
    draw_all_characters(sheet.figure)
    return sheet.figure


def chosen_tokens(maps: GroupMaps, tokens: Sequence[int] | None) -> list[int]:
    """The tokens of ``tokens`` that the block has; for None, the strongest ones."""
    if tokens is None:
        return strongest(maps)[:COLUMNS]
    return [token for token in tokens if 0 <= token < len(maps.ungrouping)]


def relative_to_uniform(maps: GroupMaps) -> GroupMaps:
    """Divide attention by uniform attention: 1 / (number of cells) or 1 / (number of tokens)."""
    return GroupMaps(
        maps.grouping / maps.grouping.mean((1, 2), keepdim=True),
        maps.ungrouping * len(maps.ungrouping),
    )


class Sheet:
    """A figure of panels, placed in inches from the upper left corner.

    The head is on top. Below, each block has a strip: on the left a large panel, on the right two
    rows of small ones, and a scale at the end of each row. All panels show the image or maps on it.

    Args:
        image: (H, W, 3), RGB, uint8.
        size: height and width of the image in the model.
        blocks: number of blocks.
        columns: number of tokens.
    """

    def __init__(self, image: np.ndarray, size: tuple[int, int], blocks: int, columns: int) -> None:
        self.image, self.size = image, size
        self.width, self.height = panel_size(size, PANEL)
        self.large = (2 * self.width + GAP, 2 * self.height + GAP)
        self.strip = TITLE + self.large[1]
        self.right = MARGIN + self.large[0] + LABEL  # left edge of the small panels
        width = self.right + max(columns * (self.width + GAP) + SCALE, TEXT) + MARGIN
        head = max(self.large[1], 0.5 + style.LINE * (HOW_TO_READ.count("\n") + 1))
        self.top = MARGIN + head  # of the first strip
        self.figure = Figure(figsize=(width, self.top + blocks * self.strip + MARGIN))

    def text(self, left: float, top: float, text: str, **options: Any) -> None:
        """Write text whose lower left corner (by default) is at a position in inches."""
        width, height = self.figure.get_size_inches()
        # Figure coordinates are fractions from the lower left. A file name may contain two $.
        options = {"va": "bottom", "parse_math": False, **options}
        self.figure.text(left / width, 1 - top / height, text, **options)

    def panel(self, left: float, top: float, width: float, height: float) -> Axes:
        """Add axes; all arguments are in inches."""
        figure_width, figure_height = self.figure.get_size_inches()
        bottom = figure_height - top - height
        # left, bottom, width, height in fractions of the figure
        return self.figure.add_axes(
            (
                left / figure_width,
                bottom / figure_height,
                width / figure_width,
                height / figure_height,
            )
        )

    def draw_head(self, name: str) -> None:
        """Draw the image, the title and how to read the sheet."""
        panel = self.panel(MARGIN, MARGIN, *self.large)
        show(panel, self.image, self.size, interpolation="antialiased")
        title = f"Group tokens in {cut_in_the_middle(one_line(name), NAME_LENGTH)}"
        self.text(self.right, MARGIN, title, va="top", fontsize=style.TITLE, weight="bold")
        self.text(self.right, MARGIN + 0.45, HOW_TO_READ, va="top", linespacing=1.4)

    def draw_block(self, row: int, block: int, maps: GroupMaps, tokens: Sequence[int]) -> None:
        """Draw one block: the tokens that cells attend to most, then two rows for ``tokens``."""
        top = self.top + row * self.strip + TITLE
        title = f"Block {block}: {len(maps.ungrouping)} tokens"
        self.text(MARGIN, top - 0.07, title, fontsize=style.HEADING, weight="bold")
        winners = maps.ungrouping.argmax(0)  # (H, W)
        colors = np.empty((len(maps.ungrouping), 3))
        # Consecutive ranks have very different colors.
        colors[strongest(maps)] = token_colors(len(maps.ungrouping))
        panel = self.panel(MARGIN, top, *self.large)
        show(panel, in_gray(self.image, 1.0), self.size)
        show(panel, colors[winners.numpy()], self.size, TOKEN_STRIDE, alpha=0.6)
        for column, token in enumerate(tokens):
            left = self.right + column * (self.width + GAP)
            fraction = (winners == token).float().mean()
            self.text(left, top - SWATCH - 0.04, f"token {token}\n{fraction:.0%}", linespacing=1.1)
            swatch = self.panel(left, top - SWATCH, self.width, SWATCH)
            swatch.set(facecolor=colors[token], xticks=[], yticks=[])
            swatch.spines[:].set_visible(False)
        relative = relative_to_uniform(maps)
        self.draw_row(top, "grouping", relative.grouping[tokens].numpy())
        self.draw_row(top + self.height + GAP, "ungrouping", relative.ungrouping[tokens].numpy())

    def draw_row(self, top: float, label: str, maps: np.ndarray) -> None:
        """Draw a row of heat maps (N, H, W) and their common scale, without outliers."""
        middle = top + self.height / 2
        self.text(self.right - 0.08, middle, label, rotation=90, ha="right", va="center")
        if not len(maps):
            return
        low, high = map(float, np.quantile(maps, [0.01, 0.995]))
        norm = Normalize(low, high)
        for column, values in enumerate(maps):
            left = self.right + column * (self.width + GAP)
            panel = self.panel(left, top, self.width, self.height)
            show(panel, in_gray(self.image, 0.6), self.size)
            show(panel, values, self.size, TOKEN_STRIDE, cmap=HEAT, norm=norm)
        panel = self.panel(self.right + len(maps) * (self.width + GAP), top, 0.14, self.height)
        panel.set_facecolor("black")  # behind the transparent end of the color map
        bar = self.figure.colorbar(ScalarMappable(norm, HEAT), cax=panel)
        bar.set_ticks([low, high], labels=limits(low, high))
        # Keep the labels at the ends of the scale between its edges.
        lowest, highest = panel.get_yticklabels()
        lowest.set_verticalalignment("bottom")
        highest.set_verticalalignment("top")


def limits(low: float, high: float) -> list[str]:
    """Format the ends of a scale with as many decimals as needed to distinguish them."""
    decimals = max(0, 1 + math.ceil(-math.log10(max(high - low, 1e-6))))
    return [f"{low:.{decimals}f}x", f"{high:.{decimals}f}x"]


def panel_size(size: tuple[int, int], width: float) -> tuple[float, float]:
    """Width and height in inches of a panel for images of this size (height, width).

    Images that are narrower or wider than the limits get bars.
    """
    aspect = min(max(size[1] / size[0], 0.6), 1.4)
    return width, width / aspect


def in_gray(image: np.ndarray, brightness: float) -> np.ndarray:
    """Convert to gray: (H, W, 3), RGB, uint8 -> (H, W, 3), 0 to 1."""
    gray = image @ np.array([0.299, 0.587, 0.114]) / 255 * brightness  # ITU-R BT.601 luma
    return np.repeat(gray[:, :, None], 3, axis=2)


def token_colors(count: int) -> np.ndarray:
    """Colors (count, 3) of which consecutive ones are very different."""
    ranks = np.arange(count)
    # Steps of the golden ratio spread the hues evenly for any count.
    hue = ranks * 0.618034 % 1
    saturation = 1 - 0.35 * (ranks % 2)
    value = 1 - 0.3 * (ranks % 3 == 1)
    return hsv_to_rgb(np.stack([hue, saturation, value], axis=1))


def show(
    axes: Axes, image: np.ndarray, size: tuple[int, int], stride: int = 0, **options: Any
) -> None:
    """Show an image, or a map on top of it.

    Args:
        axes: of the panel.
        image: image of any resolution, or map.
        size: height and width of the image in the model.
        stride: pixels per cell of a map, whose last cells may extend beyond the image; 0 for an
            image.
        options: of ``imshow``.
    """
    height, width = size
    if stride:
        height, width = stride * image.shape[0], stride * image.shape[1]
    # extent: left, right, bottom, top; y points down
    axes.imshow(image, extent=(0, width, height, 0), **{"interpolation": "nearest", **options})
    axes.set(xlim=(0, size[1]), ylim=(size[0], 0), xticks=[], yticks=[])
    axes.spines[:].set_visible(True)


def draw_features(image: np.ndarray, inspection: Inspection, name: str) -> Figure:
    """Draw the sheet of the pyramid: the image (H, W, 3), RGB, uint8, then each level."""
    rows, columns = -(-(1 + len(inspection.levels)) // 3), 3
    width, height = panel_size(inspection.size, FEATURES_PANEL)
    size = columns * width, rows * (height + 0.55) + 0.8
    with style.figure_style():
        figure = Figure(figsize=size, layout="constrained")
        figure.suptitle(
            f"Pyramid features in {cut_in_the_middle(one_line(name), NAME_LENGTH)}\n"
            "red, green, blue: the first three principal components of each level",
            fontsize=style.HEADING,
            parse_math=False,
        )
        axes = figure.subplots(rows, columns).flat
        for panel in axes[1 + len(inspection.levels) :]:
            panel.axis("off")
        show(axes[0], image, inspection.size, interpolation="antialiased")
        title = f"image\n{inspection.size[1]} x {inspection.size[0]} pixels"
        axes[0].set_title(title, fontsize=style.TEXT)
        for panel, (level, values) in zip(axes[1:], inspection.levels.items()):
            colors, explained = principal_colors(values)
            stride = inspection.strides[level]
            show(panel, colors.numpy(), inspection.size, stride)
            cells = f"{values.shape[2]} x {values.shape[1]} cells"
            title = f"{level}, stride {stride}\n{cells}, {explained:.0%} of variance"
            panel.set_title(title, fontsize=style.TEXT)
    draw_all_characters(figure)
    return figure
