"""The "synthetic" dataset: COCO-format instance segmentation of three shapes on textured backgrounds.

    FOLDER/images/train_00000.png ...     RGB, 256 to 320 pixels a side
    FOLDER/annotations/{train,val}.json   COCO; file names are relative to images/

Classes differ by shape alone; colours, textures and backgrounds say nothing about them. Shapes hide one another and
are cut by the border; masks hold what is visible. Unlabelled distractors, images without objects and crowd regions
occur in both splits, and validation has background textures that training never shows.

Pixels and JSON depend on the arguments only, not on the machine: whole-number arithmetic, no library drawing, and one
random stream per (seed, split, index), so that a larger set starts with the images of a smaller one.
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

# What makes the set easy or hard. Ranges are inclusive; every number here is recorded in the files' `info`.
VERSION = 1
IMAGE_SIDE = (256, 320)  # pixels, each side drawn by itself
OBJECTS = (1, 12)  # labelled objects per image
OBJECT_SIZE = (20, 200)  # diameter of the circle around a shape in pixels, log-uniform
MAX_ASPECT = 1.15  # length over width of a shape is at most the square of this
DISTRACTORS = (0, 3)  # unlabelled shapes per image
DISTRACTOR_SIZE = (20, 100)  # pixels, log-uniform
OVERLAP_CHANCE = 0.25  # chance that a shape is put next to or on top of an earlier one
MIN_VISIBLE = 0.35  # no object shows less than this part of its whole area ...
MIN_PIXELS = 30  # ... or fewer pixels
COLOUR = (20, 235)  # range of each channel, for shapes and backgrounds alike
MIN_CONTRAST = 150  # sum of the three channel differences between a fill and the pixels around it
SHAPE_TEXTURE = 14  # half the swing of the pattern on a shape, in grey levels
BACKGROUND_TEXTURE = 24  # the same for backgrounds, at most
NOISE = 6  # largest change of a single pixel, in grey levels, drawn twice and summed
EMPTY_EVERY = 25  # one image in so many has no object (4 %)
CROWD_EVERY = 25  # one image in so many has a crowd region (4 %)
CROWD_MEMBERS = (9, 16)
CROWD_SIZE = (11, 17)  # pixels
SETTINGS = [name for name in list(globals()) if name.isupper()]  # all of the above

CATEGORY_IDS = {"disc": 2, "triangle": 3, "cross": 12}  # with gaps, as in COCO
SPLITS = ("train", "val")

SUBPIXEL = 64  # positions and lengths are whole numbers of 1/64 pixel
UNIT = 4096  # a shape's own coordinates: its circle has this radius; also the scale of sines
SAMPLES = 4  # 4 x 4 samples per pixel
TRIES = 12  # placements tried before a shape is left out


# ---------------------------------------------------------------------------------------------- masks to polygons


def mask_to_polygons(mask: np.ndarray) -> list[list[float]]:
    """Trace a (H, W) mask along its pixel edges into COCO polygons [x0, y0, x1, y1, ...], in pixels.

    Filling the polygons with pycocotools gives back the same mask. Pixels that touch by a corner only are separate
    polygons. COCO polygons have no holes, so a mask with a hole is cut in two along a column through it.
    """
    loops = _trace_loops(mask.astype(bool))
    for loop in loops:
        if _signed_area(loop) < 0:  # runs anticlockwise: the edge of a hole
            columns = [x for x, _ in loop]
            cut = (min(columns) + max(columns) + 1) // 2
            left, right = mask.copy(), mask.copy()
            left[:, cut:] = 0
            right[:, :cut] = 0
            return mask_to_polygons(left) + mask_to_polygons(right)
    return [[float(value) for vertex in loop for value in vertex] for loop in loops]


def _trace_loops(mask: np.ndarray) -> list[list[tuple[int, int]]]:
    """Corners (x, y) of every closed edge of a boolean (H, W) mask, with the mask on the right-hand side."""
    steps = (
        (1, 0),
        (0, 1),
        (-1, 0),
        (0, -1),
    )  # right, down, left, up; each the right turn of the one before
    padded = np.pad(mask, 1)
    edges: dict[tuple[int, int, int], None] = {}  # (x, y, direction) of unit edges, ordered
    neighbours = (
        padded[:-2, 1:-1],
        padded[1:-1, 2:],
        padded[2:, 1:-1],
        padded[1:-1, :-2],
    )  # above, right, below, left
    for direction, (neighbour, (dx, dy)) in enumerate(
        zip(neighbours, ((0, 0), (1, 0), (1, 1), (0, 1)), strict=True)
    ):
        rows, columns = np.nonzero(mask & ~neighbour)
        edges.update(
            ((x + dx, y + dy, direction), None)
            for x, y in zip(columns.tolist(), rows.tolist(), strict=True)
        )
    loops = []
    while edges:
        x, y, direction = next(iter(edges))
        loop = []
        while (x, y, direction) in edges:
            del edges[x, y, direction]
            x, y = x + steps[direction][0], y + steps[direction][1]
            # Where two pixels touch by a corner, turning right first stays with the same pixel.
            turns = ((direction + turn) % 4 for turn in (1, 0, 3))
            following = next((turn for turn in turns if (x, y, turn) in edges), None)
            if following != direction:
                loop.append((x, y))
            direction = direction if following is None else following
        loops.append(loop)
    return loops


def _signed_area(loop: list[tuple[int, int]]) -> int:
    """Twice the area within a loop of (x, y), positive where it runs clockwise as seen in the image."""
    return sum(
        x0 * y1 - x1 * y0 for (x0, y0), (x1, y1) in zip(loop, loop[1:] + loop[:1], strict=True)
    )


def mask_to_rle(mask: np.ndarray) -> dict:
    """Uncompressed COCO run lengths of a (H, W) mask: column by column, zeros first."""
    flat = np.concatenate([[0], mask.astype(np.int8).ravel(order="F"), [0]])
    changes = np.flatnonzero(np.diff(flat)).tolist()
    ends = changes if changes and changes[-1] == mask.size else [*changes, mask.size]
    return {"size": list(mask.shape), "counts": np.diff([0, *ends]).tolist()}


# ---------------------------------------------------------------------------------------------- whole-number tools


class Draw:
    """Random whole numbers from the raw output of PCG64, which numpy keeps the same in all versions."""

    def __init__(self, *key: int) -> None:
        self.bits = np.random.PCG64(np.random.SeedSequence(key))

    def between(self, low: int, high: int) -> int:
        """A whole number from low to high, both included."""
        return low + self.bits.random_raw() % (high - low + 1)

    def array(self, low: int, high: int, *shape: int) -> np.ndarray:
        """An int64 array of such numbers."""
        raw = self.bits.random_raw(math.prod(shape)) % np.uint64(high - low + 1)
        return low + raw.astype(np.int64).reshape(shape)

    def chance(self, probability: float) -> bool:
        return self.between(0, 999_999) < probability * 1_000_000

    def pick(self, items: Sequence[Any]) -> Any:
        return items[self.between(0, len(items) - 1)]

    def size(self, low: int, high: int) -> int:
        """A log-uniform length from low to high pixels, in 1/64 pixel."""
        return round(SUBPIXEL * low * (high / low) ** (self.between(0, 1000) / 1000))


def rotate(x: np.ndarray, y: np.ndarray, angle: int) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates in axes turned by `angle` (1024 to a full turn), times UNIT."""
    cos, sin = on_circle(angle / 1024)
    return x * cos + y * sin, y * cos - x * sin


def on_circle(turn: float, radius: float = 1.0) -> tuple[int, int]:
    """The point at an angle given in full turns, rounded so that the last digit of a sine never matters."""
    angle = 2 * math.pi * turn
    return round(UNIT * radius * math.cos(angle)), round(UNIT * radius * math.sin(angle))


# ---------------------------------------------------------------------------------------------- shapes
# A shape tells which of the points (u, v), int64 arrays of its own coordinates, lie inside it.

Shape = Callable[[np.ndarray, np.ndarray], np.ndarray]


def polygon(vertices: list[tuple[int, int]]) -> Shape:
    """The shape inside a polygon, by counting the edges crossed on the way out."""

    def inside(u: np.ndarray, v: np.ndarray) -> np.ndarray:
        odd = np.zeros(np.broadcast_shapes(u.shape, v.shape), dtype=bool)
        for (u0, v0), (u1, v1) in zip(vertices, vertices[1:] + vertices[:1], strict=True):
            left = (u - u0) * (v1 - v0) < (v - v0) * (u1 - u0)
            odd ^= ((v0 <= v) != (v1 <= v)) & (left == (v1 > v0))
        return odd

    return inside


def disc(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return u * u + v * v <= UNIT * UNIT


def horseshoe(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """A ring with a gap. A whole ring would look like a disc that another disc hides."""
    return disc(u, v) & ~disc(u * 8 // 5, v * 8 // 5) & ((u < 0) | (abs(v) > UNIT // 3))


def crescent(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return disc(u, v) & ~disc(u - UNIT // 2, v)


def wave(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """A zigzag line of two periods."""
    height = abs(u % UNIT - UNIT // 2) - UNIT // 4
    return (abs(u) <= 3500) & (abs(v - height) <= UNIT // 6)


_ARM, _WIDTH = 3900, 1200  # of the cross, from its centre
_CORNERS = [(_ARM, -_WIDTH), (_ARM, _WIDTH), (_WIDTH, _WIDTH)]  # of its first arm
_QUARTERS = ((1, 0), (0, 1), (-1, 0), (0, -1))
CLASSES: dict[str, Shape] = {
    "disc": disc,
    "triangle": polygon([on_circle(i / 3) for i in range(3)]),
    "cross": polygon([(x * c - y * s, x * s + y * c) for c, s in _QUARTERS for x, y in _CORNERS]),
}
bar = polygon([(-4000, -800), (4000, -800), (4000, 800), (-4000, 800)])
DISTRACTOR_SHAPES: tuple[Shape, ...] = (horseshoe, crescent, wave, bar)


class Stamp(NamedTuple):
    """A shape laid on the image: the part within the image, and what it would be without the border."""

    x: int  # left column
    y: int  # top row
    coverage: np.ndarray  # (h, w) int64, samples inside the shape, 0 to SAMPLES squared
    whole: int  # area in pixels, with what lies beyond the border
    centre: tuple[int, int]  # (x, y) in 1/64 pixel

    @property
    def box(self) -> tuple[slice, slice]:
        height, width = self.coverage.shape
        return slice(self.y, self.y + height), slice(self.x, self.x + width)

    @property
    def mask(self) -> np.ndarray:
        return 2 * self.coverage >= SAMPLES**2


def make_stamp(
    draw: Draw, shape: Shape, size: int, centre: tuple[int, int], image: tuple[int, int]
) -> Stamp:
    """Rasterise a shape of a size at a centre (x, y), in 1/64 pixel, turned and stretched at random."""
    stretch = draw.between(UNIT, round(MAX_ASPECT * UNIT))
    length, breadth = size * stretch // (2 * UNIT), size * UNIT // (2 * stretch)
    angle, (cx, cy), (height, width) = draw.between(0, 1023), centre, image
    x0, x1 = (cx - length) // SUBPIXEL - 1, (cx + length) // SUBPIXEL + 2
    y0, y1 = (cy - length) // SUBPIXEL - 1, (cy + length) // SUBPIXEL + 2
    step = SUBPIXEL // SAMPLES
    x = np.arange(x0 * SUBPIXEL + step // 2, x1 * SUBPIXEL, step)
    y = np.arange(y0 * SUBPIXEL + step // 2, y1 * SUBPIXEL, step)
    along, across = rotate(x[None, :] - cx, y[:, None] - cy, angle)
    samples = shape(along // length, across // breadth)
    coverage = samples.reshape(y1 - y0, SAMPLES, x1 - x0, SAMPLES).sum((1, 3))
    whole = int((2 * coverage >= SAMPLES**2).sum())
    left, top = max(x0, 0), max(y0, 0)
    return Stamp(left, top, coverage[top - y0 : height - y0, left - x0 : width - x0], whole, centre)


# ---------------------------------------------------------------------------------------------- textures
# A texture is a (height, width) int64 array from 0 to 256.


def clouds(draw: Draw, height: int, width: int) -> np.ndarray:
    """Random values on a coarse grid, blended between its points."""
    cell = draw.between(12, 60)
    grid = draw.array(0, 256, height // cell + 2, width // cell + 2)
    y, x = np.arange(height), np.arange(width)
    fx = (x % cell)[None, :]
    rows = grid[y // cell], grid[y // cell + 1]
    top, bottom = (row[:, x // cell] * (cell - fx) + row[:, x // cell + 1] * fx for row in rows)
    fy = (y % cell)[:, None]
    return (top * (cell - fy) + bottom * fy) // (cell * cell)


def stripes(draw: Draw, height: int, width: int) -> np.ndarray:
    along, _ = _turned_grid(draw, height, width)
    return along // draw.between(5, 16) % 2 * 256


def gradient(draw: Draw, height: int, width: int) -> np.ndarray:
    along, _ = _turned_grid(draw, height, width)
    return (along - along.min()) * 256 // max(int(along.max() - along.min()), 1)


def speckle(draw: Draw, height: int, width: int) -> np.ndarray:
    """Square dots, one to three pixels wide."""
    return (_blocks(draw, height, width, draw.between(1, 3)) < draw.between(40, 90)) * 256


def checks(draw: Draw, height: int, width: int) -> np.ndarray:
    along, across = _turned_grid(draw, height, width)
    side = draw.between(7, 20)
    return (along // side + across // side) % 2 * 256


def zigzags(draw: Draw, height: int, width: int) -> np.ndarray:
    along, across = _turned_grid(draw, height, width)
    period = draw.between(12, 32)
    return (across + abs(along % period - period // 2)) // draw.between(5, 14) % 2 * 256


def mosaic(draw: Draw, height: int, width: int) -> np.ndarray:
    return _blocks(draw, height, width, draw.between(6, 20))


def _turned_grid(draw: Draw, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Pixel coordinates along and across a random direction."""
    along, across = rotate(
        np.arange(width)[None, :], np.arange(height)[:, None], draw.between(0, 1023)
    )
    return along // UNIT, across // UNIT


def _blocks(draw: Draw, height: int, width: int, side: int) -> np.ndarray:
    """A random value for each square block of pixels."""
    values = draw.array(0, 256, -(-height // side), -(-width // side))
    return values.repeat(side, 0).repeat(side, 1)[:height, :width]


TEXTURES = {"train": (clouds, stripes, gradient, speckle), "val": (checks, zigzags, mosaic)}


def shade(
    draw: Draw, split: str, colour: np.ndarray, swing: np.ndarray, height: int, width: int
) -> np.ndarray:
    """A (height, width, 3) surface: the colour, moved by up to +-swing per channel by a texture of the split."""
    texture = draw.pick(TEXTURES[split])(draw, height, width)
    return colour + (texture[..., None] - 128) * swing // 128


# ---------------------------------------------------------------------------------------------- one image


class Scene:
    """An image under construction, and which labelled object each of its pixels shows."""

    DISTRACTOR = -1

    def __init__(self, draw: Draw, split: str) -> None:
        self.draw, self.split = draw, split
        self.height, self.width = draw.between(*IMAGE_SIDE), draw.between(*IMAGE_SIDE)
        swing = draw.array(-BACKGROUND_TEXTURE, BACKGROUND_TEXTURE, 3)
        self.canvas = shade(
            draw, split, draw.array(*COLOUR, 3), swing, self.height, self.width
        )  # (H, W, 3)
        self.owner = np.zeros(
            (self.height, self.width), dtype=np.int64
        )  # 0: background, n: n-th object
        self.whole = [
            0
        ]  # area of each object without occlusion and border, in pixels; entry 0 is the background
        self.centres: list[tuple[int, int]] = []  # of all shapes, in 1/64 pixel
        self.labels: list[tuple[str, bool]] = []  # class and crowd flag of each object

    def add_object(self) -> None:
        name = self.draw.pick(list(CLASSES))
        for _ in range(TRIES):
            stamp = self.stamp(CLASSES[name], self.draw.size(*OBJECT_SIZE))
            if self.place(stamp, len(self.whole), [*self.whole, stamp.whole]):
                self.whole.append(stamp.whole)
                self.labels.append((name, False))
                return

    def add_distractor(self) -> None:
        shape = self.draw.pick(DISTRACTOR_SHAPES)
        for _ in range(TRIES):
            stamp = self.stamp(shape, self.draw.size(*DISTRACTOR_SIZE))
            # Two bars laid across each other would be an unlabelled cross.
            meets_another = (self.owner[stamp.box] == self.DISTRACTOR).any()
            if not meets_another and self.place(stamp, self.DISTRACTOR, self.whole):
                return

    def add_crowd(self) -> None:
        """A tight cluster of small shapes of one class, labelled as one region."""
        name = self.draw.pick(list(CLASSES))
        members, columns = self.draw.between(*CROWD_MEMBERS), 4
        pitch = SUBPIXEL * CROWD_SIZE[1]
        left = self.draw.between(pitch, self.width * SUBPIXEL - columns * pitch)
        top = self.draw.between(pitch, self.height * SUBPIXEL - columns * pitch)
        for member in range(members):
            dx, dy = self.draw.array(-pitch // 4, pitch // 4, 2).tolist()
            centre = left + member % columns * pitch + dx, top + member // columns * pitch + dy
            stamp = make_stamp(
                self.draw, CLASSES[name], self.draw.size(*CROWD_SIZE), centre, self.owner.shape
            )
            self.paint(stamp)
            self.owner[stamp.box][stamp.mask] = len(self.whole)
        self.whole.append(int((self.owner == len(self.whole)).sum()))
        self.labels.append((name, True))

    def stamp(self, shape: Shape, size: int) -> Stamp:
        """The shape at a random place, now and then touching an earlier one."""
        centre = (
            self.draw.between(0, self.width * SUBPIXEL - 1),
            self.draw.between(0, self.height * SUBPIXEL - 1),
        )
        if self.centres and self.draw.chance(OVERLAP_CHANCE):
            shift = self.draw.array(-size * 3 // 4, size * 3 // 4, 2)
            x, y = (np.array(self.draw.pick(self.centres)) + shift).tolist()
            centre = (
                min(max(x, 0), self.width * SUBPIXEL - 1),
                min(max(y, 0), self.height * SUBPIXEL - 1),
            )
        return make_stamp(self.draw, shape, size, centre, self.owner.shape)

    def place(self, stamp: Stamp, number: int, whole: list[int]) -> bool:
        """Paint the stamp if every object, itself among them, stays visible enough to be labelled."""
        owner = self.owner.copy()
        owner[stamp.box][stamp.mask] = number
        visible = np.bincount(owner[owner > 0], minlength=len(whole))[1:]
        if (visible < np.maximum(np.array(whole[1:]) * MIN_VISIBLE, MIN_PIXELS)).any():
            return False
        self.paint(stamp)
        self.owner = owner
        self.centres.append(stamp.centre)
        return True

    def paint(self, stamp: Stamp) -> None:
        """Lay a filled stamp on the canvas, blending the pixels that its edge cuts."""
        fill = shade(
            self.draw,
            self.split,
            self.contrasting_colour(stamp),
            self.draw.array(-SHAPE_TEXTURE, SHAPE_TEXTURE, 3),
            *stamp.coverage.shape,
        )
        part = stamp.coverage[..., None]
        self.canvas[stamp.box] = (
            self.canvas[stamp.box] * (SAMPLES**2 - part) + fill * part
        ) // SAMPLES**2

    def contrasting_colour(self, stamp: Stamp) -> np.ndarray:
        """A random colour that differs from nearly all pixels around the stamp."""
        hidden = np.zeros(self.owner.shape, dtype=bool)
        hidden[stamp.box] = stamp.mask
        around = tuple(slice(max(side.start - 3, 0), side.stop + 3) for side in stamp.box)
        nearby = self.canvas[around][~hidden[around]]  # (n, 3)
        candidates = self.draw.array(*COLOUR, 24, 3)
        alike = [int((abs(nearby - colour).sum(1) < MIN_CONTRAST).sum()) for colour in candidates]
        good_enough = (i for i, count in enumerate(alike) if count <= len(nearby) // 25)
        return candidates[next(good_enough, alike.index(min(alike)))]

    def pixels(self) -> np.ndarray:
        """The finished (H, W, 3) uint8 RGB image."""
        noise = self.draw.array(-NOISE, NOISE, 2, *self.canvas.shape).sum(0)
        return (self.canvas + noise).clip(0, 255).astype(np.uint8)

    def annotations(self) -> list[dict]:
        """COCO annotations of the visible parts, without ids."""
        found = []
        for number, (name, crowd) in enumerate(self.labels, start=1):
            mask = self.owner == number
            rows, columns = (
                np.flatnonzero(mask.any(1)).tolist(),
                np.flatnonzero(mask.any(0)).tolist(),
            )
            found.append(
                {
                    "category_id": CATEGORY_IDS[name],
                    "bbox": [
                        columns[0],
                        rows[0],
                        columns[-1] + 1 - columns[0],
                        rows[-1] + 1 - rows[0],
                    ],
                    "area": int(mask.sum()),
                    "iscrowd": int(crowd),
                    "segmentation": mask_to_rle(mask) if crowd else mask_to_polygons(mask),
                }
            )
        return found


def make_scene(split: str, index: int, seed: int = 0) -> Scene:
    """The index-th image of a split, with objects and distractors painted in random order."""
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


# ---------------------------------------------------------------------------------------------- the data set


def make_data_set(out: str | Path, train: int = 200, val: int = 50, seed: int = 0) -> None:
    """Write the data set to the folder `out`; keep it as it is if the same arguments made it before.

    Raises ValueError for counts below 1 or a negative seed, FileExistsError if `out` holds anything else.
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
                f"{out} exists and is not a synthetic data set made with these arguments"
            )
        print(f"{out} is already made")
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    # Made next to its place and moved there when complete: a set that exists is whole.
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as scratch:
        whole = Path(scratch) / out.name
        (whole / "images").mkdir(parents=True)
        (whole / "annotations").mkdir()
        for split, count in zip(SPLITS, (train, val), strict=True):
            write_split(whole, split, count, seed, infos[split])
        os.replace(whole, out)
    print(f"{train} training and {val} validation images are in {out}")


def make_info(split: str, train: int, val: int, seed: int) -> dict:
    """The `info` of an annotation file: what decides the content."""
    settings = {name.lower(): globals()[name] for name in SETTINGS}
    info = {
        "description": f"synthetic: generated shapes for quick starts and tests, {split} split",
        "version": str(VERSION),
        "seed": seed,
        "images": {"train": train, "val": val},
        "settings": settings,
    }
    return json.loads(json.dumps(info))  # tuples become lists, as they read back


def read_info(out: Path, split: str) -> dict | None:
    """The `info` of an existing annotation file, None if there is none to be read."""
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
    content = {
        "info": info,
        "licenses": [
            {
                "id": 1,
                "name": "CC0 1.0",
                "url": "https://creativecommons.org/publicdomain/zero/1.0/",
            }
        ],
        "categories": [
            {"id": id_, "name": name, "supercategory": "shape"}
            for name, id_ in CATEGORY_IDS.items()
        ],
        "images": images,
        "annotations": annotations,
    }
    (out / "annotations" / f"{split}.json").write_text(json.dumps(content))
