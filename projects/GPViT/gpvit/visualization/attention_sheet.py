"""Sheets of a picture's group tokens and of the maps of its pyramid."""

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
from .attention import TOKEN_STRIDE, GroupMaps, Inspection, principal_colours, strongest

COLUMNS = 8  # tokens that are shown unless others are asked for
PANEL_AREA = 2.8  # square inches
MARGIN, GAP, TITLE, LABEL, SCALE, TEXT = 0.3, 0.08, 0.7, 0.45, 0.8, 8.0  # inches
TOKEN_TITLE = 1.5  # inches, the least width of a panel
DPI = 100
HOW_TO_READ = """\
Large: each place in the colour of the token of which it gets most;
the percentages are these shares of the picture.
Gathers from: how much a token takes of each place.
Gives back to: how much each place gets of the token.
Brightness: in times of an even share of attention, mean of all heads;
each row has its scale, and 1x is even."""
RAMP = np.linspace(0, 1, 256)
# Where a row has its least attention, the picture shows through.
HEAT = ListedColormap(np.column_stack([colormaps["inferno"](RAMP)[:, :3], RAMP]))


def draw_groups(
    picture: np.ndarray, inspection: Inspection, name: str, tokens: Sequence[int] | None
) -> Figure:
    """The sheet of the group tokens. Raises a UserError if no block has any of ``tokens``."""
    shown = {block: chosen_tokens(maps, tokens) for block, maps in inspection.groups.items()}
    if not any(shown.values()):
        numbers = ", ".join(
            f"{len(maps.given)} in block {block}" for block, maps in inspection.groups.items()
        )
        raise UserError(
            f"--tokens: no block has any of these; they count from 0, and there are {numbers}"
        )
    sheet = Sheet(picture, inspection.size, len(shown), max(map(len, shown.values())))
    sheet.draw_head(name)
    for row, (block, maps) in enumerate(inspection.groups.items()):
        sheet.draw_block(row, block, maps, shown[block])
    draw_all_characters(sheet.figure)
    return sheet.figure


def chosen_tokens(maps: GroupMaps, tokens: Sequence[int] | None) -> list[int]:
    if tokens is None:
        return strongest(maps)[:COLUMNS]
    return [token for token in tokens if 0 <= token < len(maps.given)]


def evened(maps: GroupMaps) -> GroupMaps:
    """The maps in times of what they would be if attention were spread evenly."""
    return GroupMaps(
        maps.gathered / maps.gathered.mean((1, 2), keepdim=True), maps.given * len(maps.given)
    )


class Sheet:
    """A figure of panels that are placed by inches from the upper left corner; all show one picture, or maps over it."""

    def __init__(
        self, picture: np.ndarray, size: tuple[int, int], blocks: int, columns: int
    ) -> None:
        self.picture, self.size = picture, size
        self.width, self.height = panel_size(size, PANEL_AREA)
        self.large = (2 * self.width + GAP, 2 * self.height + GAP)
        self.strip = TITLE + self.large[1]
        self.right = MARGIN + self.large[0] + LABEL  # where the tokens' columns begin
        width = self.right + max(columns * (self.width + GAP) + SCALE, TEXT) + MARGIN
        self.figure = Figure(figsize=(width, MARGIN + self.large[1] + blocks * self.strip + MARGIN))

    def text(self, left: float, top: float, text: str, **style: Any) -> None:
        width, height = self.figure.get_size_inches()
        style = {
            "va": "bottom",
            "fontsize": 13,
            "parse_math": False,
            **style,
        }  # the name of a picture may have two $
        self.figure.text(left / width, 1 - top / height, text, **style)

    def panel(self, left: float, top: float, width: float, height: float) -> Axes:
        whole_width, whole_height = self.figure.get_size_inches()
        place = (
            left / whole_width,
            1 - (top + height) / whole_height,
            width / whole_width,
            height / whole_height,
        )
        return self.figure.add_axes(place)

    def draw_head(self, name: str) -> None:
        """The picture, and how to read what is below."""
        show(
            self.panel(MARGIN, MARGIN, *self.large),
            self.picture,
            self.size,
            interpolation="antialiased",
        )
        self.text(
            self.right,
            MARGIN + 0.35,
            f"Group tokens in {cut_in_the_middle(one_line(name), 32)}",
            fontsize=22,
            weight="bold",
        )
        self.text(self.right, MARGIN + 0.55, HOW_TO_READ, va="top", fontsize=15, linespacing=1.35)

    def draw_block(self, row: int, block: int, maps: GroupMaps, tokens: Sequence[int]) -> None:
        """One block: on the left the picture divided among all its tokens, then two rows for those shown."""
        top = MARGIN + self.large[1] + row * self.strip + TITLE
        winners = maps.given.argmax(0)  # (H, W)
        colours = np.empty((len(maps.given), 3))
        colours[strongest(maps)] = token_colours(len(maps.given))
        self.text(
            MARGIN,
            top - 0.08,
            f"Block {block}: {len(maps.given)} group tokens",
            fontsize=16,
            weight="bold",
        )
        axis = self.panel(MARGIN, top, *self.large)
        show(axis, in_gray(self.picture, 1.0), self.size)
        show(axis, colours[winners.numpy()], self.size, TOKEN_STRIDE, alpha=0.6)
        for column, token in enumerate(tokens):
            title = f"token {token}: {(winners == token).float().mean():.0%}"
            left = self.right + column * (self.width + GAP)
            self.text(left, top - 0.08, title, color=tuple(0.8 * colours[token]), weight="bold")
        for line, (label, kind) in enumerate(zip(("gathers from", "gives back to"), evened(maps))):
            self.draw_row(top + line * (self.height + GAP), label, kind[tokens].numpy())

    def draw_row(self, top: float, label: str, maps: np.ndarray) -> None:
        """A row of heat maps (N, H, W) and their common scale, which leaves out the outermost cells."""
        self.text(
            self.right - 0.1,
            top + self.height / 2,
            label,
            rotation=90,
            ha="right",
            va="center",
            fontsize=11,
        )
        if not len(maps):
            return
        low, high = map(float, np.quantile(maps, [0.01, 0.995]))
        norm = Normalize(low, high)
        for column, values in enumerate(maps):
            axis = self.panel(
                self.right + column * (self.width + GAP), top, self.width, self.height
            )
            show(axis, in_gray(self.picture, 0.6), self.size)
            show(axis, values, self.size, TOKEN_STRIDE, cmap=HEAT, norm=norm)
        axis = self.panel(self.right + len(maps) * (self.width + GAP), top, 0.14, self.height)
        axis.set_facecolor("black")
        bar = self.figure.colorbar(ScalarMappable(norm, HEAT), cax=axis)
        bar.set_ticks([low, high], labels=limits(low, high))
        lowest, highest = axis.get_yticklabels()
        lowest.set_verticalalignment("bottom")
        highest.set_verticalalignment("top")


def limits(low: float, high: float) -> list[str]:
    """The ends of a scale, as exact as needed to tell them apart."""
    decimals = max(0, 1 + math.ceil(-math.log10(max(high - low, 1e-6))))
    return [f"{limit:.{decimals}f}x" for limit in (low, high)]


def panel_size(size: tuple[int, int], area: float) -> tuple[float, float]:
    """Width and height in inches of a panel for pictures of this size (height, width); long ones get bars."""
    aspect = min(max(size[1] / size[0], 0.5), 2)
    width = max(math.sqrt(area * aspect), TOKEN_TITLE)
    return width, width / aspect


def in_gray(picture: np.ndarray, brightness: float) -> np.ndarray:
    """(H, W, 3), RGB, uint8 -> (H, W, 3), 0 to 1."""
    gray = picture @ np.array([0.299, 0.587, 0.114]) / 255 * brightness
    return np.repeat(gray[:, :, None], 3, axis=2)


def token_colours(count: int) -> np.ndarray:
    """Colours (count, 3) of which any that follow each other are far apart."""
    ranks = np.arange(count)
    return hsv_to_rgb(
        np.stack([ranks * 0.618034 % 1, 1 - 0.35 * (ranks % 2), 1 - 0.3 * (ranks % 3 == 1)], axis=1)
    )


def show(axis: Axes, image: np.ndarray, size: tuple[int, int], stride: int = 0, **how: Any) -> None:
    """A picture of this size (height, width), or a map over it whose cells of ``stride`` pixels may reach over its edge."""
    height, width = (stride * cells for cells in image.shape[:2]) if stride else size
    axis.imshow(image, extent=(0, width, height, 0), **{"interpolation": "nearest", **how})
    axis.set(xlim=(0, size[1]), ylim=(size[0], 0), xticks=[], yticks=[])


def draw_features(picture: np.ndarray, inspection: Inspection, name: str) -> Figure:
    """The sheet of the pyramid: the picture, then each level."""
    rows, columns = -(-(1 + len(inspection.levels)) // 3), 3
    width, height = panel_size(inspection.size, 5 * PANEL_AREA)
    figure = Figure(figsize=(columns * width, rows * (height + 0.6) + 0.8), layout="constrained")
    title = f"Pyramid in {cut_in_the_middle(one_line(name), 32)}\nred, green, blue: the three main components of each level"
    figure.suptitle(title, fontsize=15, parse_math=False)
    axes = figure.subplots(rows, columns).flat
    for axis in axes[1 + len(inspection.levels) :]:
        axis.axis("off")
    show(axes[0], picture, inspection.size, interpolation="antialiased")
    axes[0].set_title(f"picture\n{inspection.size[1]} x {inspection.size[0]} pixels", fontsize=13)
    for axis, (level, values) in zip(axes[1:], inspection.levels.items()):
        colours, share = principal_colours(values)
        show(axis, colours.numpy(), inspection.size, inspection.strides[level])
        size = f"{values.shape[2]} x {values.shape[1]} cells"
        axis.set_title(
            f"{level}, stride {inspection.strides[level]}\n{size}, {share:.0%} of variance",
            fontsize=13,
        )
    draw_all_characters(figure)
    return figure
