"""The "synthetic" dataset: instance segmentation of three shapes on textured backgrounds.

    FOLDER/images/train_00000.png ...     RGB, 256 to 320 pixels a side
    FOLDER/annotations/{train,val}.json   COCO; file names are relative to images/

Classes differ by shape alone: colors, textures and backgrounds are independent of them. Shapes
occlude one another and are cut by the border; masks contain what is visible. Unlabeled distractors,
images without objects and crowd regions occur in both splits, and the background textures of the
validation split do not occur in the training split.

Pixels and JSON depend only on the arguments, not on the machine: integer arithmetic, no drawing
library, and one random stream per (seed, split, index), so that a larger dataset starts with the
images of a smaller one.
"""

import json
import math
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

# The settings of the dataset. Ranges are inclusive. Names and values are recorded in `info` of the
# annotation files, so that renaming one changes the files.
VERSION = 1
IMAGE_SIDE = (256, 320)  # pixels, height and width drawn independently
OBJECTS = (1, 12)  # labeled objects per image
OBJECT_SIZE = (20, 200)  # diameter of the circle around a shape in pixels, log-uniform
MAX_ASPECT = 1.15  # length over width of a shape is at most the square of this
DISTRACTORS = (0, 3)  # unlabeled shapes per image
DISTRACTOR_SIZE = (20, 100)  # pixels, log-uniform
OVERLAP_CHANCE = 0.25  # probability that a shape is placed next to or on top of an earlier one
MIN_VISIBLE = 0.35  # minimum visible fraction of the full area of an object ...
MIN_PIXELS = 30  # ... and minimum visible area
COLOUR = (20, 235)  # range of each channel, for both shapes and backgrounds
MIN_CONTRAST = 150  # sum over channels of the difference between a fill and the pixels around it
SHAPE_TEXTURE = 14  # maximum amplitude of the texture of a shape, in gray levels
BACKGROUND_TEXTURE = 24  # the same for backgrounds
NOISE = 6  # maximum change of a pixel, in gray levels, drawn twice and summed
EMPTY_EVERY = 25  # one image in this number has no object (4 %)
CROWD_EVERY = 25  # one image in this number has a crowd region (4 %)
CROWD_MEMBERS = (9, 16)
CROWD_SIZE = (11, 17)  # pixels
SETTINGS = [name for name in list(globals()) if name.isupper()]  # all of the above

CATEGORY_IDS = {"disc": 2, "triangle": 3, "cross": 12}  # with gaps, as in COCO
SPLITS = ("train", "val")

SUBPIXEL = 64  # positions and lengths are integers in units of 1/64 pixel
UNIT = 4096  # radius of the circle around a shape in its own coordinates; also the scale of sines
SAMPLES = 4  # 4 x 4 samples per pixel
TRIES = 12  # placements tried before a shape is left out


# Masks to polygons


def mask_to_polygons(mask: np.ndarray) -> list[list[float]]:
    """Trace a (H, W) mask along its pixel edges into COCO polygons [x0, y0, x1, y1, ...].

    Filling the polygons with pycocotools gives the same mask. Pixels that touch only at a corner
    become separate polygons. COCO polygons have no holes, so a mask with a hole is cut in two along
    a column through the hole.
    """
    loops = _trace_loops(mask.astype(bool))
    for loop in loops:
        if _signed_area(loop) < 0:  # counterclockwise: the edge of a hole
            columns = [x for x, _ in loop]
            cut = (min(columns) + max(columns) + 1) // 2
            left, right = mask.copy(), mask.copy()
            left[:, cut:] = 0
            right[:, :cut] = 0
            return mask_to_polygons(left) + mask_to_polygons(right)
    return [np.array(loop, dtype=float).ravel().tolist() for loop in loops]


def _trace_loops(mask: np.ndarray) -> list[list[tuple[int, int]]]:
    """Return the corners (x, y) of every closed edge of a boolean (H, W) mask.

    The mask is on the right-hand side of each edge.
    """
    # Directions 0 to 3: right, down, left, up; each is a right turn from the one before.
    steps = ((1, 0), (0, 1), (-1, 0), (0, -1))
    # The edge of a pixel in direction d is on its top, right, bottom and left, respectively. It
    # exists where the neighbor on that side is outside of the mask, and starts at this corner of
    # the pixel:
    corners = ((0, 0), (1, 0), (1, 1), (0, 1))
    padded = np.pad(mask, 1)
    neighbors = (padded[:-2, 1:-1], padded[1:-1, 2:], padded[2:, 1:-1], padded[1:-1, :-2])
    edges: dict[tuple[int, int, int], None] = {}  # (x, y, direction) of unit edges, ordered
    for direction in range(4):
        rows, columns = np.nonzero(mask & ~neighbors[direction])
        dx, dy = corners[direction]
        for x, y in zip(columns.tolist(), rows.tolist(), strict=True):
            edges[x + dx, y + dy, direction] = None
    loops = []
    while edges:
        x, y, direction = next(iter(edges))
        loop = []
        while (x, y, direction) in edges:
            del edges[x, y, direction]
            x, y = x + steps[direction][0], y + steps[direction][1]
            following = _next_direction(edges, x, y, direction)
            if following != direction:  # a corner, or the end of the loop (None)
                loop.append((x, y))
            if following is not None:
                direction = following
        loops.append(loop)
    return loops


def _next_direction(
    edges: dict[tuple[int, int, int], None], x: int, y: int, direction: int
) -> int | None:
    """Return the direction of the edge that continues a loop at a corner, or None at its end."""
    # Right, straight on, left. Where two pixels touch at a corner, there are two edges to continue
    # with, and the right turn stays with the same pixel.
    for turn in (1, 0, 3):
        candidate = (direction + turn) % 4
        if (x, y, candidate) in edges:
            return candidate
    return None


def _signed_area(loop: list[tuple[int, int]]) -> int:
    """Return twice the area of a loop of (x, y), positive if it is clockwise in the image."""
    area = 0
    for (x0, y0), (x1, y1) in zip(loop, loop[1:] + loop[:1], strict=True):
        area += x0 * y1 - x1 * y0
    return area


def mask_to_rle(mask: np.ndarray) -> dict:
    """Return the uncompressed COCO RLE of a (H, W) mask: column by column, zeros first."""
    # Padded with zeros, the mask changes at the end of every run of zeros and of ones.
    flat = np.concatenate([[0], mask.astype(np.int8).ravel(order="F"), [0]])
    changes = np.flatnonzero(np.diff(flat)).tolist()
    ends = changes if changes and changes[-1] == mask.size else [*changes, mask.size]
    return {"size": list(mask.shape), "counts": np.diff([0, *ends]).tolist()}


# Integer arithmetic and random numbers


class Draw:
    """Random integers from the raw output of PCG64, which is the same in all versions of NumPy."""

    def __init__(self, *key: int) -> None:
        self.bits = np.random.PCG64(np.random.SeedSequence(key))

    def between(self, low: int, high: int) -> int:
        """Return an integer from low to high, both included."""
        return low + self.bits.random_raw() % (high - low + 1)

    def array(self, low: int, high: int, *shape: int) -> np.ndarray:
        """Return an int64 array of integers from low to high, both included."""
        raw = self.bits.random_raw(math.prod(shape)) % np.uint64(high - low + 1)
        return low + raw.astype(np.int64).reshape(shape)

    def chance(self, probability: float) -> bool:
        return self.between(0, 999_999) < probability * 1_000_000

    def pick(self, items: Sequence[Any]) -> Any:
        return items[self.between(0, len(items) - 1)]

    def size(self, low: int, high: int) -> int:
        """Return a log-uniform length from low to high pixels, in 1/64 pixel."""
        return round(SUBPIXEL * low * (high / low) ** (self.between(0, 1000) / 1000))


def rotate(x: np.ndarray, y: np.ndarray, angle: int) -> tuple[np.ndarray, np.ndarray]:
    """Return coordinates in axes rotated by `angle` (1024 for a full turn), times UNIT."""
    cos, sin = on_circle(angle / 1024)
    return x * cos + y * sin, y * cos - x * sin


def on_circle(turn: float, radius: float = 1.0) -> tuple[int, int]:
    """Return the point at an angle in full turns, times UNIT.

    Rounding removes differences in the last digit of sines between machines.
    """
    angle = 2 * math.pi * turn
    return round(UNIT * radius * math.cos(angle)), round(UNIT * radius * math.sin(angle))


# Shapes

# A shape maps int64 arrays (u, v) of points in its own coordinates to whether they lie inside it.
Shape = Callable[[np.ndarray, np.ndarray], np.ndarray]


def polygon(vertices: list[tuple[int, int]]) -> Shape:
    """Return the shape inside a polygon, by the even-odd rule."""

    def inside(u: np.ndarray, v: np.ndarray) -> np.ndarray:
        odd = np.zeros(np.broadcast_shapes(u.shape, v.shape), dtype=bool)
        for (u0, v0), (u1, v1) in zip(vertices, vertices[1:] + vertices[:1], strict=True):
            # A ray from the point along u crosses an edge if v is between the ends of the edge, and
            # the point has a smaller u than the edge at v. The sign of the cross product gives the
            # side relative to the direction of the edge, hence the comparison with v1 > v0.
            left = (u - u0) * (v1 - v0) < (v - v0) * (u1 - u0)
            odd ^= ((v0 <= v) != (v1 <= v)) & (left == (v1 > v0))
        return odd

    return inside


def disc(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return u * u + v * v <= UNIT * UNIT


def horseshoe(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """A ring with a gap; a closed ring would look like a disc occluded by a smaller one."""
    return disc(u, v) & ~disc(u * 8 // 5, v * 8 // 5) & ((u < 0) | (abs(v) > UNIT // 3))


def crescent(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return disc(u, v) & ~disc(u - UNIT // 2, v)


def wave(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """A zigzag line of two periods."""
    height = abs(u % UNIT - UNIT // 2) - UNIT // 4
    return (abs(u) <= 3500) & (abs(v - height) <= UNIT // 6)


def _cross_vertices() -> list[tuple[int, int]]:
    """Return the vertices of a cross: three corners of an arm, rotated by 0 to 270 degrees."""
    length, half_width = 3900, 1200  # of an arm, from the center
    corners = ((length, -half_width), (length, half_width), (half_width, half_width))
    vertices = []
    for cos, sin in ((1, 0), (0, 1), (-1, 0), (0, -1)):
        for x, y in corners:
            vertices.append((x * cos - y * sin, x * sin + y * cos))
    return vertices


CLASSES: dict[str, Shape] = {
    "disc": disc,
    "triangle": polygon([on_circle(0), on_circle(1 / 3), on_circle(2 / 3)]),
    "cross": polygon(_cross_vertices()),
}
bar = polygon([(-4000, -800), (4000, -800), (4000, 800), (-4000, 800)])
DISTRACTOR_SHAPES: tuple[Shape, ...] = (horseshoe, crescent, wave, bar)


class Stamp(NamedTuple):
    """A rasterized shape: the part inside the image, and its full area."""

    x: int  # left column
    y: int  # top row
    coverage: np.ndarray  # (h, w) int64, number of samples inside the shape, 0 to SAMPLES squared
    full_area: int  # in pixels, including the part outside the image
    center: tuple[int, int]  # (x, y) in 1/64 pixel

    @property
    def box(self) -> tuple[slice, slice]:
        height, width = self.coverage.shape
        return slice(self.y, self.y + height), slice(self.x, self.x + width)

    @property
    def mask(self) -> np.ndarray:
        """(h, w) bool: the pixels that are at least half covered."""
        return 2 * self.coverage >= SAMPLES**2


def make_stamp(
    draw: Draw, shape: Shape, size: int, center: tuple[int, int], image: tuple[int, int]
) -> Stamp:
    """Rasterize a shape, rotated and stretched at random.

    Args:
        draw: the random numbers.
        shape: the shape.
        size: diameter of the circle around it, in 1/64 pixel.
        center: (x, y), in 1/64 pixel.
        image: height and width of the image, in pixels.
    """
    # Semi-axes in 1/64 pixel: (size / 2) * s and (size / 2) / s, where stretch is s times UNIT.
    stretch = draw.between(UNIT, round(MAX_ASPECT * UNIT))
    length, breadth = size * stretch // (2 * UNIT), size * UNIT // (2 * stretch)
    angle, (cx, cy), (height, width) = draw.between(0, 1023), center, image
    # The pixels around the longer semi-axis with a margin of one: x0 to x1 (exclusive), y0 to y1.
    x0, x1 = (cx - length) // SUBPIXEL - 1, (cx + length) // SUBPIXEL + 2
    y0, y1 = (cy - length) // SUBPIXEL - 1, (cy + length) // SUBPIXEL + 2
    # Sample positions in 1/64 pixel, (SAMPLES * number of pixels,): the centers of the cells of a
    # SAMPLES x SAMPLES grid in each pixel.
    step = SUBPIXEL // SAMPLES
    x = np.arange(x0 * SUBPIXEL + step // 2, x1 * SUBPIXEL, step)
    y = np.arange(y0 * SUBPIXEL + step // 2, y1 * SUBPIXEL, step)
    # Offsets from the center in rotated axes, times UNIT. Divided by the semi-axes, these are the
    # coordinates of the shape, in which its circle has the radius UNIT.
    along, across = rotate(x[None, :] - cx, y[:, None] - cy, angle)
    samples = shape(along // length, across // breadth)
    # (h * SAMPLES, w * SAMPLES) -> (h, w)
    coverage = samples.reshape(y1 - y0, SAMPLES, x1 - x0, SAMPLES).sum((1, 3))
    full_area = int((2 * coverage >= SAMPLES**2).sum())
    # Cut at the border of the image.
    left, top = max(x0, 0), max(y0, 0)
    visible = coverage[top - y0 : height - y0, left - x0 : width - x0]
    return Stamp(left, top, visible, full_area, center)


# Textures

# A texture is a (height, width) int64 array from 0 to 256.


def clouds(draw: Draw, height: int, width: int) -> np.ndarray:
    """Bilinear interpolation of random values on a coarse grid."""
    cell = draw.between(12, 60)
    grid = draw.array(0, 256, height // cell + 2, width // cell + 2)
    y, x = np.arange(height), np.arange(width)
    # Weights of the right and lower grid points, 0 to cell - 1, so that results are times cell**2.
    fx, fy = (x % cell)[None, :], (y % cell)[:, None]
    rows = grid[:, x // cell] * (cell - fx) + grid[:, x // cell + 1] * fx  # (grid rows, width)
    return (rows[y // cell] * (cell - fy) + rows[y // cell + 1] * fy) // (cell * cell)


def stripes(draw: Draw, height: int, width: int) -> np.ndarray:
    along, _ = _rotated_grid(draw, height, width)
    return along // draw.between(5, 16) % 2 * 256


def gradient(draw: Draw, height: int, width: int) -> np.ndarray:
    along, _ = _rotated_grid(draw, height, width)
    return (along - along.min()) * 256 // max(int(along.max() - along.min()), 1)


def speckle(draw: Draw, height: int, width: int) -> np.ndarray:
    """Square dots, one to three pixels wide."""
    return (_blocks(draw, height, width, draw.between(1, 3)) < draw.between(40, 90)) * 256


def checks(draw: Draw, height: int, width: int) -> np.ndarray:
    along, across = _rotated_grid(draw, height, width)
    side = draw.between(7, 20)
    return (along // side + across // side) % 2 * 256


def zigzags(draw: Draw, height: int, width: int) -> np.ndarray:
    along, across = _rotated_grid(draw, height, width)
    period = draw.between(12, 32)
    return (across + abs(along % period - period // 2)) // draw.between(5, 14) % 2 * 256


def mosaic(draw: Draw, height: int, width: int) -> np.ndarray:
    return _blocks(draw, height, width, draw.between(6, 20))


def _rotated_grid(draw: Draw, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Return pixel coordinates along and across a random direction."""
    x, y = np.arange(width)[None, :], np.arange(height)[:, None]
    along, across = rotate(x, y, draw.between(0, 1023))
    return along // UNIT, across // UNIT


def _blocks(draw: Draw, height: int, width: int, side: int) -> np.ndarray:
    """Return a random value for each square block of pixels."""
    # -(-a // b) rounds up.
    values = draw.array(0, 256, -(-height // side), -(-width // side))
    return values.repeat(side, 0).repeat(side, 1)[:height, :width]


TEXTURES = {"train": (clouds, stripes, gradient, speckle), "val": (checks, zigzags, mosaic)}


def shade(
    draw: Draw, split: str, color: np.ndarray, swing: np.ndarray, height: int, width: int
) -> np.ndarray:
    """Return a (height, width, 3) surface: a color plus a random texture of the split.

    The texture changes each channel by up to +-swing.
    """
    texture = draw.pick(TEXTURES[split])(draw, height, width)
    return color + (texture[..., None] - 128) * swing // 128


# Scenes


class Scene:
    """An image under construction, and the labeled object that each of its pixels shows.

    The order of random draws determines the image; keep it.

    Attributes:
        canvas: (H, W, 3), RGB.
        owner: (H, W): 0 for background, DISTRACTOR, or the number of an object, from 1.
        full_areas: area in pixels of each object without occlusion and border, by its number;
            entry 0 is the background.
        centers: (x, y) of all shapes, in 1/64 pixel.
        labels: class name and crowd flag of each object.
    """

    DISTRACTOR = -1

    def __init__(self, draw: Draw, split: str) -> None:
        self.draw, self.split = draw, split
        self.height, self.width = draw.between(*IMAGE_SIDE), draw.between(*IMAGE_SIDE)
        swing = draw.array(-BACKGROUND_TEXTURE, BACKGROUND_TEXTURE, 3)
        color = draw.array(*COLOUR, 3)
        self.canvas = shade(draw, split, color, swing, self.height, self.width)
        self.owner = np.zeros((self.height, self.width), dtype=np.int64)
        self.full_areas = [0]
        self.centers: list[tuple[int, int]] = []
        self.labels: list[tuple[str, bool]] = []

    def add_object(self) -> None:
        name = self.draw.pick(list(CLASSES))
        for _ in range(TRIES):
            stamp = self.stamp(CLASSES[name], self.draw.size(*OBJECT_SIZE))
            full_areas = [*self.full_areas, stamp.full_area]
            if self.place(stamp, len(self.full_areas), full_areas):
                self.full_areas = full_areas
                self.labels.append((name, False))
                return

    def add_distractor(self) -> None:
        shape = self.draw.pick(DISTRACTOR_SHAPES)
        for _ in range(TRIES):
            stamp = self.stamp(shape, self.draw.size(*DISTRACTOR_SIZE))
            # Two crossing bars would be an unlabeled cross.
            meets_another = (self.owner[stamp.box] == self.DISTRACTOR).any()
            if not meets_another and self.place(stamp, self.DISTRACTOR, self.full_areas):
                return

    def add_crowd(self) -> None:
        """Add a tight cluster of small shapes of one class, labeled as one region."""
        name = self.draw.pick(list(CLASSES))
        members, columns = self.draw.between(*CROWD_MEMBERS), 4
        # Members are on a grid with a random offset of up to a quarter of its pitch.
        pitch = SUBPIXEL * CROWD_SIZE[1]
        left = self.draw.between(pitch, self.width * SUBPIXEL - columns * pitch)
        top = self.draw.between(pitch, self.height * SUBPIXEL - columns * pitch)
        number = len(self.full_areas)
        for member in range(members):
            dx, dy = self.draw.array(-pitch // 4, pitch // 4, 2).tolist()
            center = left + member % columns * pitch + dx, top + member // columns * pitch + dy
            size = self.draw.size(*CROWD_SIZE)
            stamp = make_stamp(self.draw, CLASSES[name], size, center, self.owner.shape)
            self.paint(stamp)
            self.owner[stamp.box][stamp.mask] = number
        self.full_areas.append(int((self.owner == number).sum()))
        self.labels.append((name, True))

    def stamp(self, shape: Shape, size: int) -> Stamp:
        """Rasterize a shape at a random position, which may touch an earlier shape."""
        max_x, max_y = self.width * SUBPIXEL - 1, self.height * SUBPIXEL - 1
        center = self.draw.between(0, max_x), self.draw.between(0, max_y)
        if self.centers and self.draw.chance(OVERLAP_CHANCE):
            shift = self.draw.array(-size * 3 // 4, size * 3 // 4, 2)
            x, y = (np.array(self.draw.pick(self.centers)) + shift).tolist()
            center = min(max(x, 0), max_x), min(max(y, 0), max_y)
        return make_stamp(self.draw, shape, size, center, self.owner.shape)

    def place(self, stamp: Stamp, number: int, full_areas: list[int]) -> bool:
        """Paint a stamp if all objects, including itself, stay visible enough to be labeled.

        Args:
            stamp: the rasterized shape.
            number: value of its pixels in ``owner``.
            full_areas: of all objects with the new one, as in the attribute.

        Returns:
            Whether it was painted.
        """
        owner = self.owner.copy()
        owner[stamp.box][stamp.mask] = number
        visible = np.bincount(owner[owner > 0], minlength=len(full_areas))[1:]
        required = np.maximum(np.array(full_areas[1:]) * MIN_VISIBLE, MIN_PIXELS)
        if (visible < required).any():
            return False
        self.paint(stamp)
        self.owner = owner
        self.centers.append(stamp.center)
        return True

    def paint(self, stamp: Stamp) -> None:
        """Draw a filled stamp on the canvas with antialiased edges."""
        color = self.contrasting_color(stamp)
        swing = self.draw.array(-SHAPE_TEXTURE, SHAPE_TEXTURE, 3)
        fill = shade(self.draw, self.split, color, swing, *stamp.coverage.shape)
        alpha = stamp.coverage[..., None]  # 0 to SAMPLES**2
        background = self.canvas[stamp.box]
        blended = background * (SAMPLES**2 - alpha) + fill * alpha
        self.canvas[stamp.box] = blended // SAMPLES**2

    def contrasting_color(self, stamp: Stamp) -> np.ndarray:
        """Return a random color that differs from nearly all pixels around a stamp."""
        hidden = np.zeros(self.owner.shape, dtype=bool)
        hidden[stamp.box] = stamp.mask
        rows, columns = stamp.box
        around = (
            slice(max(rows.start - 3, 0), rows.stop + 3),
            slice(max(columns.start - 3, 0), columns.stop + 3),
        )
        nearby = self.canvas[around][~hidden[around]]  # (n, 3)
        candidates = self.draw.array(*COLOUR, 24, 3)
        similar = []  # number of nearby pixels that are too similar to each candidate
        for color in candidates:
            similar.append(int((abs(nearby - color).sum(1) < MIN_CONTRAST).sum()))
            if similar[-1] <= len(nearby) // 25:
                return color
        return candidates[similar.index(min(similar))]

    def pixels(self) -> np.ndarray:
        """Return the finished (H, W, 3) uint8 RGB image."""
        noise = self.draw.array(-NOISE, NOISE, 2, *self.canvas.shape).sum(0)
        return (self.canvas + noise).clip(0, 255).astype(np.uint8)

    def annotations(self) -> list[dict]:
        """Return COCO annotations of the visible parts, without ids."""
        found = []
        for number, (name, crowd) in enumerate(self.labels, start=1):
            mask = self.owner == number
            rows = np.flatnonzero(mask.any(1)).tolist()
            columns = np.flatnonzero(mask.any(0)).tolist()
            x, y = columns[0], rows[0]
            annotation = {
                "category_id": CATEGORY_IDS[name],
                "bbox": [x, y, columns[-1] + 1 - x, rows[-1] + 1 - y],
                "area": int(mask.sum()),
                "iscrowd": int(crowd),
                "segmentation": mask_to_rle(mask) if crowd else mask_to_polygons(mask),
            }
            found.append(annotation)
        return found


def make_scene(split: str, index: int, seed: int = 0) -> Scene:
    """Create the image of a split at this index.

    Objects and distractors are painted in random order.
    """
    draw = Draw(seed, SPLITS.index(split), index)
    scene = Scene(draw, split)
    if index % CROWD_EVERY == CROWD_EVERY // 4:
        scene.add_crowd()
    empty = index % EMPTY_EVERY == EMPTY_EVERY // 2
    objects = 0 if empty else draw.between(*OBJECTS)
    to_add = [scene.add_object] * objects + [scene.add_distractor] * draw.between(*DISTRACTORS)
    while to_add:
        to_add.pop(draw.between(0, len(to_add) - 1))()
    return scene


# Files


def make_dataset(out: str | Path, train: int = 200, val: int = 50, seed: int = 0) -> None:
    """Write the dataset to the folder `out`, unless the same arguments have already created it.

    Args:
        out: the folder, which is created.
        train, val: number of images of each split.
        seed: of the random numbers.

    Raises:
        ValueError: a count is below 1, or the seed is negative.
        FileExistsError: `out` contains anything else.
    """
    if train < 1 or val < 1 or seed < 0:
        raise ValueError(
            f"need at least one image per split and a seed >= 0, not {train=}, {val=}, {seed=}"
        )
    out = Path(out).absolute()
    infos = {split: make_info(split, train, val, seed) for split in SPLITS}
    if (out.is_dir() and any(out.iterdir())) or out.is_file():
        if any(read_info(out, split) != info for split, info in infos.items()):
            raise FileExistsError(
                f"{out} exists and is not a synthetic dataset created with these arguments"
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
            write_split(temporary, split, count, seed, infos[split])
        os.replace(temporary, out)
    print(f"{train} training and {val} validation images are in {out}")


def make_info(split: str, train: int, val: int, seed: int) -> dict:
    """Return the `info` of an annotation file, which has everything that determines its content."""
    settings = {name.lower(): globals()[name] for name in SETTINGS}
    info = {
        "description": f"synthetic: generated shapes for quick starts and tests, {split} split",
        "version": str(VERSION),
        "seed": seed,
        "images": {"train": train, "val": val},
        "settings": settings,
    }
    return json.loads(json.dumps(info))  # turns tuples into lists, to compare with files


def read_info(out: Path, split: str) -> dict | None:
    """Return the `info` of an existing annotation file, or None if it cannot be read."""
    try:
        return json.loads((out / "annotations" / f"{split}.json").read_text())["info"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write_split(out: Path, split: str, count: int, seed: int, info: dict) -> None:
    images: list[dict] = []
    annotations: list[dict] = []
    for index in range(count):
        scene = make_scene(split, index, seed)
        name = f"{split}_{index:05d}.png"
        Image.fromarray(scene.pixels()).save(out / "images" / name, compress_level=1)
        size = {"width": scene.width, "height": scene.height}
        images.append({"id": index + 1, "file_name": name, **size, "license": 1})
        for annotation in scene.annotations():
            annotations.append({"id": len(annotations) + 1, "image_id": index + 1, **annotation})
        if (index + 1) % 50 == 0:
            print(f"{split}: {index + 1} of {count} images", flush=True)
    write_annotations(out / "annotations" / f"{split}.json", images, annotations, info)


def write_annotations(path: Path, images: list[dict], annotations: list[dict], info: dict) -> None:
    """Write the COCO file of a split."""
    categories = []
    for name, id_ in CATEGORY_IDS.items():
        categories.append({"id": id_, "name": name, "supercategory": "shape"})
    cc0 = "https://creativecommons.org/publicdomain/zero/1.0/"
    content = {
        "info": info,
        "licenses": [{"id": 1, "name": "CC0 1.0", "url": cc0}],
        "categories": categories,
        "images": images,
        "annotations": annotations,
    }
    path.write_text(json.dumps(content))
