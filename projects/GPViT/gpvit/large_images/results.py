"""Write the objects of very large images as GeoJSON, chunk by chunk."""

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TextIO

import cv2
import numpy as np
from detectron2.structures import Instances

from ..data.cropped_masks import Crop, CroppedMasks, empty_crop
from ..utils.errors import UserError
from ..utils.files import atomic_write
from ..utils.text import PATH_LIMIT, one_line

# A closed outline: (n, 2), x and y of its corners, the first of which is not repeated at the end.
Ring = np.ndarray
# The rings of a polygon: its exterior, then its holes.
Polygon = list[Ring]


class GeoJsonWriter:
    """Write detections as an RFC 7946 FeatureCollection with one Feature per object.

    The geometry of an object is the exact outline of its mask with holes, along the edges of
    pixels: a Polygon, or a MultiPolygon if the mask has several parts; pixels that touch only at a
    corner are different parts. An object without mask has its box. Properties are id (from 1),
    class (its name) and score.

    Without ``to_coordinates``, coordinates are those of the image: x to the right and y down from
    its upper left corner, in pixels; the pixel in column 0 and row 0 covers 0 to 1. Exteriors are
    counterclockwise and holes clockwise for a y-axis that points up, as RFC 7946 requires of
    longitude and latitude, whatever the axes are.

    The file replaces an older one only when it is complete: by :meth:`close`, or at the end of a
    ``with`` block without an exception.

    Args:
        path: of the file.
        classes: class names.
        to_coordinates: (N, 2) pixels x, y -> (N, 2) coordinates in the file.
    """

    def __init__(
        self,
        path: Path,
        classes: Sequence[str],
        to_coordinates: Callable[[np.ndarray], np.ndarray] | None = None,
    ) -> None:
        self.path, self.classes, self.to_coordinates = path, classes, to_coordinates
        self.count = 0  # of written objects
        with contextlib.ExitStack() as files:
            partial = files.enter_context(atomic_write(path))
            self.file: TextIO = files.enter_context(partial.open("w", encoding="utf-8"))
            self.file.write('{"type": "FeatureCollection", "features": [')
            # Keep both contexts open; leaving them moves the file to its place.
            self.files = files.pop_all()

    def __enter__(self) -> "GeoJsonWriter":
        return self

    def __exit__(self, *exception: object) -> None:
        if exception[0] is None:
            self.close()
        else:
            self.files.__exit__(*exception)  # type: ignore[arg-type]

    def add(self, instances: Instances) -> None:
        """Write detections in image pixels; their masks, if any, are :class:`CroppedMasks`.

        Raises:
            UserError: ``to_coordinates`` returned NaN or infinity.
        """
        objects = list(outlines(instances))
        geometries = self._geometries(objects)
        scores, class_indices = instances.scores.tolist(), instances.pred_classes.tolist()
        for geometry, score, index in zip(geometries, scores, class_indices):
            separator = ",\n" if self.count else "\n"
            self.count += 1
            properties = {"id": self.count, "class": self.classes[index], "score": round(score, 4)}
            feature = {"type": "Feature", "geometry": geometry, "properties": properties}
            self.file.write(separator + json.dumps(feature))

    def close(self) -> None:
        with self.files:
            self.file.write("\n]}\n")

    def _geometries(self, objects: Sequence[Sequence[Polygon]]) -> Iterator[dict]:
        """Yield the geometries of objects, given by their polygons in pixels."""
        rings, is_hole = [], []
        for polygons in objects:
            for polygon in polygons:
                rings.extend(polygon)
                is_hole.extend([False] + [True] * (len(polygon) - 1))
        # All points at once, since a projection of few points takes about as long as of many.
        closed = iter(self._closed(rings, is_hole))
        for polygons in objects:
            coordinates = []
            for polygon in polygons:
                coordinates.append([next(closed) for _ in polygon])
            if len(coordinates) == 1:
                yield {"type": "Polygon", "coordinates": coordinates[0]}
            else:
                yield {"type": "MultiPolygon", "coordinates": coordinates}

    def _closed(self, rings: Sequence[Ring], is_hole: Sequence[bool]) -> Iterator[list]:
        """Yield closed rings in the coordinates and the direction of the file."""
        if not rings:
            return
        points = np.concatenate(rings)  # (n, 2)
        if self.to_coordinates:
            points = np.asarray(self.to_coordinates(points.astype(np.float64)))
            if not np.isfinite(points).all():
                raise UserError(
                    f"cannot write {one_line(self.path, PATH_LIMIT)}: objects have coordinates "
                    "that are not finite; check the georeference of the image"
                )
        for ring, hole in zip(np.split(points, np.cumsum(list(map(len, rings)))[:-1]), is_hole):
            corners = ring.tolist()
            if (signed_area(ring) < 0) != hole:
                corners.reverse()
            yield [*corners, corners[0]]


def signed_area(ring: Ring) -> float:
    """Return the area of a ring, positive if it is counterclockwise for a y-axis upwards."""
    x, y = (ring - ring[0]).T  # relative to a corner, since map coordinates have many digits
    return float(x[:-1] @ y[1:] - x[1:] @ y[:-1]) / 2


def outlines(instances: Instances) -> Iterator[list[Polygon]]:
    """Yield the polygons of each object: of its mask, or of its box if it has no mask."""
    boxes = instances.pred_boxes.tensor.cpu().numpy().astype(np.float64).round(2)
    masks: Iterator[Crop] = iter([])
    if instances.has("pred_masks"):
        assert isinstance(instances.pred_masks, CroppedMasks)
        masks = instances.pred_masks.crops()
    for left, top, right, bottom in boxes:
        polygons = mask_polygons(next(masks, empty_crop()))
        corners = [(left, top), (right, top), (right, bottom), (left, bottom)]
        yield polygons or [[np.array(corners)]]


def mask_polygons(mask: Crop) -> list[Polygon]:
    """Return the polygons of a mask in image pixels; none if it is empty."""
    rings = trace(mask.pixels)
    offset = np.array([mask.left, mask.top])
    if len(rings) == 1:
        return [[rings[0] + offset]]
    # The component of pixels that a ring belongs to.
    _, components = cv2.connectedComponents(mask.pixels.astype(np.uint8), connectivity=4)
    polygons: dict[int, Polygon] = {}
    for ring in rings:
        # The first corner of a ring is the leftmost of the highest ones. The pixel to the lower
        # right of it belongs to the object, unless the ring is a hole, which is below the object.
        x, y = ring[0]
        if mask.pixels[y, x]:
            polygons.setdefault(components[y, x], []).insert(0, ring + offset)
        else:
            polygons.setdefault(components[y - 1, x], []).append(ring + offset)
    return list(polygons.values())


def trace(mask: np.ndarray) -> list[Ring]:
    """Trace a (H, W) mask along the edges of its pixels.

    Returns:
        rings of corners in pixels, which do not touch themselves, each from the leftmost of its
        highest corners. The mask is on the right-hand side in the image, so exteriors have a
        positive :func:`signed_area`, and holes a negative one.
    """
    padded = np.pad(mask, 1).view(np.int8)  # (H + 2, W + 2)
    # Horizontal edges: 1 above a pixel, to be followed to the right, and -1 below, to the left.
    edges = padded[1:] - padded[:-1]  # (H + 1, W + 2)
    # A corner is where the edge on the left differs from that on the right. Where pixels touch
    # only at a corner, both edges exist, and it counts twice: as the end of the left edge and as
    # the start of the right one.
    y, x = np.nonzero(edges[:, 1:] != edges[:, :-1])
    left, right = edges[y, x], edges[y, x + 1]
    times = 1 + (left * right != 0)
    is_second = np.diff(np.repeat(np.arange(len(x)), times), prepend=-1) == 0
    x, y = np.repeat(x, times), np.repeat(y, times)
    left, right = np.repeat(left, times), np.repeat(right, times)
    # In this order, corners 2k and 2k + 1 are the ends of a horizontal edge.
    corners = np.arange(len(x))
    goes_right = np.where(is_second | (left == 0), right, left) > 0
    # Sorted by columns, so are those of vertical edges. A double corner ends the edge from above
    # and starts that below; which of its horizontal edges is joined with that from above decides
    # that pixels are separate: the left one if the upper left pixel is in the mask (left is -1).
    is_below = is_second ^ ((left > 0) & (right != 0))
    order = np.lexsort((is_below, y, x))
    across = np.empty_like(order)  # the other end of the vertical edge
    across[order[0::2]], across[order[1::2]] = order[1::2], order[0::2]
    # The edge is left at its start for its other end, and at its end for the vertical edge.
    is_start = goes_right == (corners % 2 == 0)
    successor = np.where(is_start, corners ^ 1, across).tolist()
    points = np.column_stack([x, y])
    rings: list[Ring] = []
    is_traced = [False] * len(corners)
    for start in range(len(corners)):
        ring, corner = [], start
        while not is_traced[corner]:
            is_traced[corner] = True
            ring.append(corner)
            corner = successor[corner]
        if ring:
            rings.extend(split(points[ring]) if is_second.any() else [points[ring]])
    return rings


def split(ring: Ring) -> list[Ring]:
    """Split a ring where it touches itself."""
    rings = []
    path: dict[tuple, None] = {}  # corners that are in no ring yet, in order
    for corner in map(tuple, ring.tolist()):
        if corner in path:
            loop = list(path)[list(path).index(corner) :]
            for passed in loop:
                del path[passed]
            rings.append(loop)
        path[corner] = None
    rings.append(list(path))
    arrays = []
    for loop in rings:
        points = np.array(loop)
        arrays.append(np.roll(points, -np.lexsort(points.T)[0], axis=0))
    return arrays
