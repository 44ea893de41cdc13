"""Scenes of any size, such as 20,000 x 20,000 pixels, with the objects of the synthetic dataset.

    make_large_scene("val", 0, height=3000, width=4000).read(slice(0, 512), slice(512, 1024))

A scene shows fields with wavy borders and paths, seen from above, under drifting shade. Small
objects and distractors form clusters: some areas are full of them, others empty. A few objects are
larger than a window of a detector and lie below the small ones.

A scene is a part of an endless plane. Each pixel and each object depends only on (seed, split,
index) and on its position in the plane, by integer arithmetic as in synthetic.py, so that any
region can be computed alone, in memory that depends on the size of the region only:

    noise, shade, borders   a hash of the position, interpolated between grid points
    the look of a field     one random stream per field
    objects                 one random stream per cell of a grid; the objects of a cell may reach
                            into its neighbors, and depend on these only
"""

import functools
import itertools
import json
import math
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from ..cropped_masks import Crop, compress, run_lengths_of
from .synthetic import (
    CATEGORY_IDS,
    CLASSES,
    COLOUR,
    DISTRACTOR_SHAPES,
    MAX_ASPECT,
    MIN_CONTRAST,
    MIN_VISIBLE,
    NOISE,
    SAMPLES,
    SHAPE_TEXTURE,
    SPLITS,
    SUBPIXEL,
    TEXTURES,
    UNIT,
    VERSION,
    Draw,
    Shape,
    read_info,
    rotate,
    shade,
    write_annotations,
)

IMPORTED = set(globals())
# The settings of the scenes. Ranges are inclusive. Lengths are in pixels. Names and values are
# recorded in `info` of the annotation files.
LARGE_SCENES_VERSION = 1
SMALL_SIZE = (8, 40)  # diameter of the circle around a small object, log-uniform
SMALL_CANDIDATES = 110  # per cell where clusters are densest, before overlapping ones are left out
MAX_SIZE = 1500  # of an object
DISTRACTOR_SHARE = 0.15  # of the small shapes
DISTRACTOR_SIZE = (14, 60)  # log-uniform
MAX_DEPTH_PERCENT = 40  # how far objects may reach into one another, of the smaller radius
CLUSTER_PITCH = (900, 260)  # distances of grid points of the density of objects, coarse and fine
FIELD_PITCH = 500  # mean distance of the centers of fields
FIELD_COLORS = ((98, 116, 74), (132, 114, 86), (84, 100, 84), (146, 134, 106), (112, 122, 124))
FIELD_JITTER = 16  # maximum change of each channel of them, in gray levels
FIELD_TEXTURE = 12  # amplitude of the texture of a field, in gray levels
WAVINESS = 40  # maximum shift of the border of a field
PATH_WIDTH = 6  # approximate
PATH_LIGHT = 22  # how much lighter than the fields a path is, in gray levels
SHADE_PITCH = (3100, 800, 190)  # distances of grid points of the shade
SHADE = (20, 12, 8)  # and their amplitudes, in gray levels
SETTINGS = [
    name for name in list(globals()) if name.isupper() and name not in IMPORTED | {"IMPORTED"}
]

# What can be chosen for each scene: diameter of the circle around a large object, log-uniform, and
# large objects per million pixels, before overlapping ones are left out.
LARGE_SIZE = (100, 1500)
LARGE_PER_MEGAPIXEL = 1.0
MAX_PNG_PIXELS = 100_000_000  # larger scenes are written as tiled BigTIFF
MAX_PIXELS = 2**32  # of an image; pycocotools counts them in 32 bits
BLOCK = 512  # side of the regions that are computed at once
SURFACE = 256  # side of the texture of an object, which is mirrored beyond
# Row and column of the plane where scenes start: neighbors of cells never have negative indices.
ORIGIN = 8192

# Random streams and hashes of a plane
FIELD, SURFACE_OF, COLORS = 1, 2, 3
CLUSTERS, SHADES, GRAIN, WAVES, CENTERS = 11, 21, 31, 41, 51


class Plane(NamedTuple):
    """What determines an endless plane, of which scenes are parts."""

    seed: int
    split: str
    scene: int
    large_size: tuple[int, int]
    large_per_megapixel: float

    def draw(self, *key: int) -> Draw:
        """Return the random stream of a part of the plane."""
        return Draw(self.seed, SPLITS.index(self.split), self.scene, 1, *key)


class Layer(NamedTuple):
    """Shapes of similar size, placed by the cells of a grid.

    number: of its random streams.
    cell: side of a cell in pixels, at least twice the reach: so items of a cell touch only those
        of the eight cells around it.
    reach: distance in pixels that a shape may have from its center.
    """

    number: int
    cell: int
    reach: int


def reach_of(*sizes: tuple[int, int]) -> int:
    """Return the longest semi-axis of shapes of these sizes, in pixels, rounded up."""
    return math.ceil(MAX_ASPECT * max(max(size) for size in sizes) / 2) + 1


LARGE = Layer(4, 2048, reach_of((MAX_SIZE, MAX_SIZE)))
SMALL = Layer(5, 512, reach_of(SMALL_SIZE, DISTRACTOR_SIZE))


class Box(NamedTuple):
    """A region of the plane in pixels, with exclusive ends."""

    top: int
    bottom: int
    left: int
    right: int

    @property
    def shape(self) -> tuple[int, int]:
        return self.bottom - self.top, self.right - self.left

    def rows(self) -> np.ndarray:
        return np.arange(self.top, self.bottom)[:, None]

    def columns(self) -> np.ndarray:
        return np.arange(self.left, self.right)[None, :]

    def intersect(self, other: "Box") -> "Box | None":
        box = Box(
            max(self.top, other.top),
            min(self.bottom, other.bottom),
            max(self.left, other.left),
            min(self.right, other.right),
        )
        return box if box.top < box.bottom and box.left < box.right else None

    def within(self, other: "Box") -> tuple[slice, slice]:
        """Return the rows and columns of this box in an array of the other one."""
        rows = slice(self.top - other.top, self.bottom - other.top)
        return rows, slice(self.left - other.left, self.right - other.left)

    def blocks(self) -> Iterator["Box"]:
        """Divide into parts of at most BLOCK x BLOCK pixels."""
        starts = itertools.product(
            range(self.top, self.bottom, BLOCK), range(self.left, self.right, BLOCK)
        )
        for top, left in starts:
            bottom, right = min(top + BLOCK, self.bottom), min(left + BLOCK, self.right)
            yield Box(top, bottom, left, right)

    def cells(self, side: int, margin: int) -> Iterator[tuple[int, int]]:
        """Yield row and column of the cells of a grid that this box meets with a margin."""
        rows = range((self.top - margin) // side, (self.bottom - 1 + margin) // side + 1)
        columns = range((self.left - margin) // side, (self.right - 1 + margin) // side + 1)
        yield from itertools.product(rows, columns)


# Functions of the position


@functools.lru_cache(256)
def hash_key(plane: Plane, number: int) -> int:
    return plane.draw(number).bits.random_raw()


def hashed(plane: Plane, number: int, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Return uniformly distributed uint64 for integer positions, by the mixer of SplitMix64.

    Args:
        number: tells hashes of one plane apart.
        y, x: of shapes that can be broadcast to that of the result.
    """
    # Products and sums wrap around. The multipliers are the odd numbers next to 2**64 times the
    # reciprocals of the plastic number and of its square.
    value = y.astype(np.uint64) * np.uint64(0xC13FA9A902A6328F)
    value = value + x.astype(np.uint64) * np.uint64(0x91E10DA5C79E7B1D)
    value = value + np.uint64(hash_key(plane, number))
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


def smooth_noise(plane: Plane, number: int, pitch: int, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Return int64 from 0 to 255 that vary smoothly: random at grid points, interpolated between.

    Args:
        pitch: distance of grid points.
        y, x: int64 positions, of shapes that can be broadcast to that of the result.
    """
    weights = []  # of the next grid point, 0 to 256: a smooth step, which hides the grid
    for position in (y, x):
        t = position % pitch * 256 // pitch
        weights.append(t * t * (768 - 2 * t) >> 16)
    below, right = weights
    rows, columns = y // pitch, x // pitch
    corners = []
    for down, along in itertools.product((0, 1), repeat=2):
        value = hashed(plane, number, rows + down, columns + along) & np.uint64(255)
        corners.append(value.astype(np.int64))
    upper = corners[0] * (256 - right) + corners[1] * right
    lower = corners[2] * (256 - right) + corners[3] * right
    return upper * (256 - below) + lower * below >> 16


def find_fields(
    plane: Plane, y: np.ndarray, x: np.ndarray
) -> tuple[np.ndarray, np.ndarray, list[tuple[int, int]]]:
    """Find the field at each position: the nearest of randomly shifted grid points.

    Returns:
        index of the field in the list, whether there is a path, and row and column of the grid
        point of each field.
    """
    # Shifted positions make the borders wavy.
    shifts = []
    for number in (WAVES, WAVES + 1):
        noise = smooth_noise(plane, number, 230, y, x)
        shifts.append((noise - 128) * WAVINESS // 128)
    y, x = y + shifts[0], x + shifts[1]
    # Grid points stay in the central half of their cell, so that the nearest one to a position is
    # that of its cell or of one of the eight cells around it.
    box = Box(int(y.min()), int(y.max()) + 1, int(x.min()), int(x.max()) + 1)
    grid = list(box.cells(FIELD_PITCH, FIELD_PITCH))
    nearest = np.full(y.shape, -1)
    first = second = np.full(y.shape, 2**60)  # squared distances of the two nearest
    for number, (row, column) in enumerate(grid):
        center_y, center_x = field_center(plane, row, column)
        distance = (y - center_y) ** 2 + (x - center_x) ** 2
        nearest = np.where(distance < first, number, nearest)
        second = np.minimum(second, np.maximum(first, distance))
        first = np.minimum(first, distance)
    # The difference is twice the distance from the border times that of the two centers.
    return nearest, second - first < PATH_WIDTH * FIELD_PITCH, grid


@functools.lru_cache(4096)
def field_center(plane: Plane, row: int, column: int) -> tuple[int, int]:
    """Return the position (y, x) of the center of a field."""
    draw = plane.draw(CENTERS, row, column)
    y, x = draw.array(FIELD_PITCH // 4, FIELD_PITCH * 3 // 4, 2).tolist()
    return row * FIELD_PITCH + y, column * FIELD_PITCH + x


def field_color(plane: Plane, row: int, column: int) -> np.ndarray:
    draw = plane.draw(COLORS, row, column)
    return draw.pick(FIELD_COLORS) + draw.array(-FIELD_JITTER, FIELD_JITTER, 3)


@functools.lru_cache(64)
def field_texture(plane: Plane, row: int, column: int) -> tuple[np.ndarray, int, int]:
    """Return the texture of a field, -128 to 127 as int8, and row and column of its first pixel."""
    # By the shifts of find_fields, positions and centers differ by less than 1.07 times the pitch.
    reach = FIELD_PITCH * 107 // 100 + WAVINESS
    y, x = field_center(plane, row, column)
    draw = plane.draw(FIELD, row, column)
    texture = draw.pick(TEXTURES[plane.split])(draw, 2 * reach, 2 * reach)
    return (texture.clip(0, 255) - 128).astype(np.int8), y - reach, x - reach


def background(plane: Plane, box: Box) -> np.ndarray:
    """Return what is below all shapes: (h, w, 3) int64, RGB."""
    y, x = box.rows(), box.columns()
    nearest, is_path, grid = find_fields(plane, y, x + 0 * y)
    canvas = np.zeros((*box.shape, 3), dtype=np.int64)
    for number in np.unique(nearest).tolist():
        color = field_color(plane, *grid[number])
        texture, top, left = field_texture(plane, *grid[number])
        rows, columns = np.nonzero(nearest == number)
        values = texture[rows + box.top - top, columns + box.left - left].astype(np.int64)
        canvas[rows, columns] = color + values[:, None] * FIELD_TEXTURE // 128
    light = is_path * PATH_LIGHT
    for number, (pitch, amplitude) in enumerate(zip(SHADE_PITCH, SHADE, strict=True)):
        noise = smooth_noise(plane, SHADES + number, pitch, y, x)
        light = light + (noise - 128) * amplitude // 128
    return canvas + light[..., None]


def grain(plane: Plane, box: Box) -> np.ndarray:
    """Return the noise of an image: (h, w, 3) int64, the sum of two draws from -NOISE to NOISE."""
    value = hashed(plane, GRAIN, box.rows(), box.columns())
    octets = value.astype("<u8").view(np.uint8).reshape(*box.shape, 8).astype(np.int64)
    return octets[..., :3] % (2 * NOISE + 1) + octets[..., 3:6] % (2 * NOISE + 1) - 2 * NOISE


# Shapes in the plane


class Item(NamedTuple):
    """A shape in the plane. Positions and lengths are in 1/64 pixel."""

    layer: Layer
    priority: int  # of two touching items, the higher one stays; of objects, it lies on top
    name: str  # of its class; "" for a distractor
    shape: Shape
    x: int  # of the center
    y: int
    length: int  # longer semi-axis
    breadth: int
    angle: int  # 1024 for a full turn

    @property
    def box(self) -> Box:
        """The pixels that may show it."""
        top, bottom = (self.y - self.length) // SUBPIXEL, (self.y + self.length) // SUBPIXEL + 1
        left, right = (self.x - self.length) // SUBPIXEL, (self.x + self.length) // SUBPIXEL + 1
        return Box(top, bottom, left, right)

    @property
    def full_area(self) -> int:
        """Area in pixels, without occlusion."""
        return int(unit_area(self.shape) * self.length * self.breadth) // SUBPIXEL**2

    def contains(self, y: np.ndarray, x: np.ndarray) -> np.ndarray:
        """Return whether positions, in 1/64 pixel, are inside."""
        along, across = rotate(x - self.x, y - self.y, self.angle)
        return self.shape(along // self.length, across // self.breadth)

    def coverage(self, box: Box) -> np.ndarray:
        """Return how many of the SAMPLES x SAMPLES samples of each pixel are inside: (h, w)."""
        y = np.arange(box.top, box.bottom + 1)[:, None] * SUBPIXEL
        x = np.arange(box.left, box.right + 1)[None, :] * SUBPIXEL
        inside = self.contains(y, x).astype(np.int64)  # the corners of pixels
        count = inside[:-1, :-1] + inside[:-1, 1:] + inside[1:, :-1] + inside[1:, 1:]
        coverage = count // 4 * SAMPLES**2
        # Only pixels on the outline need samples, at the centers of the cells of a grid.
        rows, columns = np.nonzero(count % 4)
        step = SUBPIXEL // SAMPLES
        offsets = np.arange(step // 2, SUBPIXEL, step)
        sample_y = (y[rows, 0, None, None] + offsets[:, None]) + 0 * offsets  # (n, 4, 4)
        sample_x = x[0, columns, None, None] + offsets + 0 * offsets[:, None]
        coverage[rows, columns] = self.contains(sample_y, sample_x).sum((1, 2))
        return coverage

    def mask(self, box: Box) -> np.ndarray:
        """Return the pixels that are at least half covered: (h, w) bool."""
        mask = np.zeros(box.shape, dtype=bool)
        for block in box.blocks():
            mask[block.within(box)] = 2 * self.coverage(block) >= SAMPLES**2
        return mask


@functools.cache
def unit_area(shape: Shape) -> float:
    """Return the area of a shape in units of its semi-axes."""
    grid = np.arange(-UNIT, UNIT, UNIT // 64)
    return float(shape(grid[None, :], grid[:, None]).mean()) * 4


@functools.lru_cache(1024)
def candidates(plane: Plane, layer: Layer, row: int, column: int) -> list[Item]:
    """Return the shapes with their center in a cell, before touching ones are left out."""
    draw = plane.draw(layer.number, row, column)
    if layer is LARGE:
        expected = plane.large_per_megapixel * layer.cell**2 / 1_000_000
        number = int(expected) + draw.chance(expected % 1)
    else:
        number = SMALL_CANDIDATES
    side = layer.cell * SUBPIXEL
    y = row * side + draw.array(0, side - 1, number)
    x = column * side + draw.array(0, side - 1, number)
    is_used = np.full(number, True)
    if layer is SMALL:
        is_used = draw.array(0, 255, number) < density(plane, y // SUBPIXEL, x // SUBPIXEL)
    found = []
    for center_y, center_x in zip(y[is_used].tolist(), x[is_used].tolist(), strict=True):
        found.append(draw_item(plane, draw, layer, center_y, center_x))
    return found


def density(plane: Plane, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Return how many of 256 small candidates are used at positions in pixels."""
    coarse, fine = CLUSTER_PITCH
    noise = 2 * smooth_noise(plane, CLUSTERS, coarse, y, x)
    noise += smooth_noise(plane, CLUSTERS + 1, fine, y, x)
    # Noise is from 0 to 765 and 380 on average: a third of the area is empty.
    return (noise - 330) * 256 // 250


def draw_item(plane: Plane, draw: Draw, layer: Layer, y: int, x: int) -> Item:
    priority, name, size = draw.between(0, 2**40), draw.pick(list(CLASSES)), plane.large_size
    shape = CLASSES[name]
    if layer is SMALL:
        size = SMALL_SIZE
        if draw.chance(DISTRACTOR_SHARE):
            name, shape, size = "", draw.pick(DISTRACTOR_SHAPES), DISTRACTOR_SIZE
    diameter = draw.size(*size)
    # The semi-axes are (diameter / 2) * s and (diameter / 2) / s, where stretch is s times UNIT.
    stretch = draw.between(UNIT, round(MAX_ASPECT * UNIT))
    length, breadth = diameter * stretch // (2 * UNIT), diameter * UNIT // (2 * stretch)
    return Item(layer, priority, name, shape, x, y, length, breadth, draw.between(0, 1023))


@functools.lru_cache(1024)
def items_of_cell(plane: Plane, layer: Layer, row: int, column: int) -> list[Item]:
    """Return the shapes with their center in a cell.

    A candidate is left out if it touches another one with a higher priority, even if that one is
    left out as well: so it depends on the eight cells around its cell, and not on those beyond.
    """
    around = []
    for dy, dx in itertools.product((-1, 0, 1), repeat=2):
        around += candidates(plane, layer, row + dy, column + dx)
    table = []
    for item in around:
        table.append((item.y, item.x, item.length, item.priority, item.name != ""))
    y, x, length, priority, is_object = np.array(table, dtype=np.int64).reshape(-1, 5).T
    kept = []
    for item in candidates(plane, layer, row, column):
        # How far the circles may overlap. Distractors do not touch anything: two crossing bars
        # would be an unlabeled cross.
        depth = np.minimum(length, item.length) * MAX_DEPTH_PERCENT // 100
        depth = depth * is_object * (item.name != "")
        distance_squared = (y - item.y) ** 2 + (x - item.x) ** 2
        touches = distance_squared < (length + item.length - depth) ** 2
        if not (touches & (priority > item.priority)).any():
            kept.append(item)
    return kept


def items_in(plane: Plane, box: Box, layers: tuple[Layer, ...] = (LARGE, SMALL)) -> list[Item]:
    """Return the shapes that a box may show, the lowest one first."""
    found = []
    for layer in layers:
        items = []
        for row, column in box.cells(layer.cell, layer.reach):
            items += items_of_cell(plane, layer, row, column)
        items.sort(key=lambda item: item.priority)
        found += [item for item in items if item.box.intersect(box)]
    return found


@functools.lru_cache(4096)
def item_color(plane: Plane, item: Item) -> np.ndarray:
    """Return a random color that differs from what is below an item at its center and around it."""
    # The center and eight points on a circle that is a little larger, in pixels.
    turns = np.arange(8) * 128
    circle = np.array([rotate(np.array(1), np.array(0), int(turn)) for turn in turns])
    points = np.concatenate([[[0, 0]], circle * (item.length + 2 * SUBPIXEL) // UNIT])
    y, x = (item.y + points[:, 1]) // SUBPIXEL, (item.x + points[:, 0]) // SUBPIXEL
    nearest, _, grid = find_fields(plane, y, x)
    below = np.array([field_color(plane, *grid[number]) for number in nearest.tolist()])
    if item.layer is SMALL:
        box = Box(int(y.min()), int(y.max()) + 1, int(x.min()), int(x.max()) + 1)
        for large in items_in(plane, box, (LARGE,)):
            below[large.contains(y * SUBPIXEL, x * SUBPIXEL)] = item_color(plane, large)
    draw = plane.draw(COLORS, item.layer.number, item.y, item.x)
    tried = draw.array(*COLOUR, 24, 3)
    contrast = abs(tried[:, None] - below).sum(2).min(1)  # (24,), of each color to what is closest
    enough = np.flatnonzero(contrast >= MIN_CONTRAST)
    return tried[enough[0] if len(enough) else contrast.argmax()]


@functools.lru_cache(256)
def item_surface(plane: Plane, item: Item) -> np.ndarray:
    """Return color and texture of an item as a square: (side, side, 3) int64."""
    draw = plane.draw(SURFACE_OF, item.layer.number, item.y, item.x)
    swing = draw.array(-SHAPE_TEXTURE, SHAPE_TEXTURE, 3)
    side = min(max(item.box.shape), SURFACE)
    return shade(draw, plane.split, item_color(plane, item), swing, side, side)


def paint(plane: Plane, canvas: np.ndarray, box: Box, item: Item) -> None:
    """Draw the part of an item in a box on the canvas (h, w, 3) of the box."""
    part = item.box.intersect(box)
    if part is None:
        return
    surface = item_surface(plane, item)
    side = len(surface)
    indices = []  # of the surface, mirrored at its end: 0, 1, ..., side - 1, side - 1, ..., 1, 0
    for start, stop, origin in (
        (part.top, part.bottom, item.box.top),
        (part.left, part.right, item.box.left),
    ):
        offset = np.arange(start - origin, stop - origin) % (2 * side)
        indices.append(np.minimum(offset, 2 * side - 1 - offset))
    fill = surface[np.ix_(*indices)]
    alpha = item.coverage(part)[..., None]  # 0 to SAMPLES**2
    below = canvas[part.within(box)]
    canvas[part.within(box)] = (below * (SAMPLES**2 - alpha) + fill * alpha) // SAMPLES**2


# Scenes


class SceneObject(NamedTuple):
    """A labeled object, as far as a region shows it.

    name: of its class.
    bbox: left, top, width and height in pixels of the scene; tight.
    mask: (height, width), bool, the pixels in the box that show it.
    is_fragment: whether too little is visible to be recognized: a region to be ignored.
    """

    name: str
    bbox: tuple[int, int, int, int]
    mask: np.ndarray
    is_fragment: bool


class LargeScene:
    """A scene, whose pixels and objects are computed when they are asked for.

    Use :func:`make_large_scene`.
    """

    def __init__(self, plane: Plane, height: int, width: int) -> None:
        self.plane, self.height, self.width = plane, height, width

    def read(self, rows: slice, columns: slice) -> np.ndarray:
        """Return the pixels of a region, (h, w, 3), uint8, RGB.

        Args:
            rows, columns: as for an array of the scene, without step.
        """
        box = self._box(rows, columns)
        pixels = np.empty((*box.shape, 3), dtype=np.uint8)
        for block in box.blocks():
            canvas = background(self.plane, block)
            for item in items_in(self.plane, block):
                paint(self.plane, canvas, block, item)
            canvas += grain(self.plane, block)
            pixels[block.within(box)] = canvas.clip(0, 255)
        return pixels

    def objects(
        self, rows: slice = slice(None), columns: slice = slice(None)
    ) -> Iterator[SceneObject]:
        """Yield the labeled objects that a region shows, cut at its border; large ones first.

        Args:
            rows, columns: as for an array of the scene, without step.
        """
        box = self._box(rows, columns)
        if 0 in box.shape:
            return
        for layer in (LARGE, SMALL):
            for row, column in box.cells(layer.cell, layer.reach):
                for item in items_of_cell(self.plane, layer, row, column):
                    part = item.box.intersect(box) if item.name else None
                    found = part and self._visible(item, part)
                    if found:
                        yield found

    def _box(self, rows: slice, columns: slice) -> Box:
        top, bottom, _ = rows.indices(self.height)
        left, right, _ = columns.indices(self.width)
        bottom, right = max(top, bottom), max(left, right)
        return Box(top + ORIGIN, bottom + ORIGIN, left + ORIGIN, right + ORIGIN)

    def _visible(self, item: Item, part: Box) -> SceneObject | None:
        mask = item.mask(part)
        items = items_in(self.plane, part)
        for other in items[items.index(item) + 1 :]:  # those on top of it
            hidden = other.box.intersect(part)
            assert hidden is not None, "a box of items_in"
            mask[hidden.within(part)] &= ~other.mask(hidden)
        ys, xs = np.flatnonzero(mask.any(1)).tolist(), np.flatnonzero(mask.any(0)).tolist()
        if not ys:
            return None
        mask = mask[ys[0] : ys[-1] + 1, xs[0] : xs[-1] + 1]
        is_fragment = bool(mask.sum() < MIN_VISIBLE * item.full_area)
        left, top = xs[0] + part.left - ORIGIN, ys[0] + part.top - ORIGIN
        return SceneObject(item.name, (left, top, mask.shape[1], mask.shape[0]), mask, is_fragment)


def make_large_scene(
    split: str,
    index: int,
    height: int,
    width: int,
    seed: int = 0,
    large_size: tuple[int, int] = LARGE_SIZE,
    large_per_megapixel: float = LARGE_PER_MEGAPIXEL,
) -> LargeScene:
    """Return the scene of a split at this index.

    A smaller scene is the upper left part of a larger one.

    Args:
        height, width: in pixels.
        large_size: smallest and largest diameter of the circle around a large object, in pixels.
        large_per_megapixel: number of large objects per million pixels, before overlapping ones are
            left out.

    Raises:
        ValueError: an argument is out of range.
    """
    if split not in SPLITS or min(index, seed, large_per_megapixel, height - 1, width - 1) < 0:
        raise ValueError(
            f"a scene needs one of the splits {', '.join(SPLITS)}, numbers >= 0 and at least one "
            f"pixel, not {split=}, {index=}, {seed=}, {height=}, {width=}, {large_per_megapixel=}"
        )
    low, high = large_size
    if not SMALL_SIZE[1] <= low <= high <= MAX_SIZE:
        raise ValueError(
            f"large objects need two sizes from {SMALL_SIZE[1]} to {MAX_SIZE} pixels, not "
            f"{low} to {high}"
        )
    return LargeScene(Plane(seed, split, index, (low, high), large_per_megapixel), height, width)


# Files


def make_large_dataset(
    out: str | Path,
    train: int,
    val: int,
    height: int,
    width: int,
    seed: int = 0,
    large_size: tuple[int, int] = LARGE_SIZE,
    large_per_megapixel: float = LARGE_PER_MEGAPIXEL,
) -> None:
    """Write scenes as a dataset to the folder `out`, unless the same arguments have created it.

    Scenes of 320 x 320 pixels serve to train a detector, large ones to evaluate it.

    Args:
        out: the folder, which is created: images/*.png, or tiled *.tif above MAX_PNG_PIXELS, and
            annotations/{train,val}.json, COCO. Fragments of objects are marked as crowds, which
            are ignored.
        train, val: number of scenes of each split.
        height, width: of the scenes, in pixels.
        seed, large_size, large_per_megapixel: as for :func:`make_large_scene`.

    Raises:
        ValueError: an argument is out of range.
        FileExistsError: `out` contains anything else.
    """
    if train < 1 or val < 1:
        raise ValueError(f"need at least one scene per split, not {train=}, {val=}")
    if height * width >= MAX_PIXELS:
        raise ValueError(f"COCO masks have less than {MAX_PIXELS} pixels, not {height} x {width}")
    large = large_size, large_per_megapixel
    make_large_scene("val", 0, height, width, seed, *large)  # checks the arguments
    out = Path(out).absolute()
    arguments = {
        "seed": seed,
        "images": {"train": train, "val": val},
        "size": [height, width],
        "large_size": large_size,
        "large_per_megapixel": large_per_megapixel,
    }
    infos = {split: make_info(split, arguments) for split in SPLITS}
    if (out.is_dir() and any(out.iterdir())) or out.is_file():
        if any(read_info(out, split) != info for split, info in infos.items()):
            raise FileExistsError(
                f"{out} exists and is not a dataset of large scenes created with these arguments"
            )
        print(f"{out} already exists")
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    # Written to a temporary folder and moved when complete: an existing dataset is complete.
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as scratch:
        temporary = Path(scratch) / out.name
        (temporary / "images").mkdir(parents=True)
        (temporary / "annotations").mkdir()
        for split, count in zip(SPLITS, (train, val), strict=True):
            scenes = []
            for index in range(count):
                scenes.append(make_large_scene(split, index, height, width, seed, *large))
            write_split(temporary, split, scenes, infos[split])
        os.replace(temporary, out)
    print(f"{train} training and {val} validation scenes are in {out}")


def make_info(split: str, arguments: dict[str, Any]) -> dict:
    """Return the `info` of an annotation file, which has everything that determines its content."""
    settings = {name.lower(): globals()[name] for name in SETTINGS}
    info = {
        "description": f"large_scenes: generated shapes in large images, {split} split",
        "version": f"{VERSION}.{LARGE_SCENES_VERSION}",  # of the shapes, and of the scenes
        **arguments,
        "settings": settings,
    }
    return json.loads(json.dumps(info))  # turns tuples into lists, to compare with files


def write_split(out: Path, split: str, scenes: list[LargeScene], info: dict) -> None:
    images: list[dict] = []
    annotations: list[dict] = []
    for index, scene in enumerate(scenes):
        is_large = scene.height * scene.width > MAX_PNG_PIXELS
        name = f"{split}_{index:05d}.{'tif' if is_large else 'png'}"
        write_scene(out / "images" / name, scene)
        size = {"width": scene.width, "height": scene.height}
        images.append({"id": index + 1, "file_name": name, **size, "license": 1})
        for found in scene.objects():
            annotation = annotate(found, scene.height, scene.width)
            annotations.append({"id": len(annotations) + 1, "image_id": index + 1, **annotation})
        if (index + 1) % 50 == 0:
            print(f"{split}: {index + 1} of {len(scenes)} scenes", flush=True)
    write_annotations(out / "annotations" / f"{split}.json", images, annotations, info)


def annotate(found: SceneObject, height: int, width: int) -> dict:
    """Return the COCO annotation of an object in a scene of this size, without ids."""
    lengths = run_lengths_of(Crop(*found.bbox[:2], found.mask), height, width)
    return {
        "category_id": CATEGORY_IDS[found.name],
        "bbox": list(found.bbox),
        "area": int(found.mask.sum()),
        "iscrowd": int(found.is_fragment),
        "segmentation": {"size": [height, width], "counts": compress(lengths).decode()},
    }


def write_scene(path: Path, scene: LargeScene) -> None:
    """Write a scene as PNG, or as tiled BigTIFF, which is computed tile by tile."""
    if path.suffix == ".png":
        pixels = scene.read(slice(None), slice(None))
        Image.fromarray(pixels).save(path, compress_level=1)
        return
    try:
        import tifffile
    except ImportError:
        raise ValueError(
            f"scenes of more than {MAX_PNG_PIXELS // 1_000_000} million pixels are written by "
            "tifffile: pip install tifffile imagecodecs"
        ) from None
    tifffile.imwrite(
        path,
        _tiles(scene),
        shape=(scene.height, scene.width, 3),
        dtype=np.uint8,
        tile=(BLOCK, BLOCK),
        photometric="rgb",
        compression="zlib",
        bigtiff=True,
    )


def _tiles(scene: LargeScene) -> Iterator[np.ndarray]:
    """Yield the tiles of a scene row by row, each filled up with zeros to BLOCK x BLOCK pixels."""
    for box in Box(0, scene.height, 0, scene.width).blocks():
        pixels = scene.read(slice(box.top, box.bottom), slice(box.left, box.right))
        bottom, right = BLOCK - pixels.shape[0], BLOCK - pixels.shape[1]
        yield np.pad(pixels, ((0, bottom), (0, right), (0, 0)))
