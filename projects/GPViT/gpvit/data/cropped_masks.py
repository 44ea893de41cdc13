"""Instance masks in memory proportional to the objects, not to the number of full images."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from detectron2.layers import ROIAlign
from detectron2.structures import BitMasks, Boxes
from pycocotools import mask as mask_api
from torch import Tensor

from .masks import run_lengths

CANVAS = 2**24  # pixels sampled at once by crop_and_resize, as float32: 64 MiB
LABELS = 254  # objects in a label map; 255 is the label of Detectron2's padding
RLE_PIXELS = 2**32 - 1  # of the largest image with RLEs: pycocotools has run lengths of 32 bits


class Crop(NamedTuple):
    """The part of a mask inside its tight bounding box.

    left, top: column and row of the first pixel in the image.
    pixels: (h, w), bool; (0, 0) for an empty mask.
    """

    left: int
    top: int
    pixels: np.ndarray


def empty_crop() -> Crop:
    return Crop(0, 0, np.zeros((0, 0), bool))


def crop(mask: np.ndarray, left: int = 0, top: int = 0) -> Crop:
    """Crop a mask to its bounding box.

    Args:
        mask: (H, W), bool.
        left, top: image column and row of the first pixel of ``mask``.
    """
    rows = np.flatnonzero(mask.any(axis=1))
    columns = np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return empty_crop()
    pixels = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return Crop(left + int(columns[0]), top + int(rows[0]), pixels)


def crop_of_polygons(polygons: Sequence[np.ndarray], height: int, width: int) -> Crop:
    """Rasterize polygons to the same pixels as Detectron2's ``polygons_to_bitmask``.

    Args:
        polygons: of one object, each (x, y, x, y, ...) in pixels; they may extend beyond the image.
        height, width: of the image.
    """
    if not len(polygons):
        return empty_crop()
    return crop_of_rle(mask_api.merge(mask_api.frPyObjects(polygons, height, width)))


def crop_of_rle(rle: dict[str, Any]) -> Crop:
    """Crop a compressed RLE without decoding the full image."""
    height, lengths = rle["size"][0], run_lengths(rle["counts"])
    assert lengths is not None, "no run lengths"
    # Runs go down the columns and alternate between background (even) and object (odd).
    # ends[i] is the column-major index behind run i, so ends[0] is the first object pixel.
    ends = np.cumsum(lengths)
    if len(ends) < 2:
        return empty_crop()
    # Decode only the columns from the first to the last one with object pixels.
    last_odd = len(ends) // 2 * 2 - 1
    left = ends[0] // height
    right = (ends[last_odd] - 1) // height + 1
    ends = ends.clip(left * height, right * height)
    lengths = np.diff(ends, prepend=left * height)
    is_object = np.arange(len(lengths)) % 2 == 1
    columns = np.repeat(is_object, lengths).reshape(-1, height)  # (right - left, H)
    return crop(columns.T, int(left))


def run_lengths_of(part: Crop, height: int, width: int) -> np.ndarray:
    """Return the run lengths of an RLE in an image of this size without decoding the full image.

    They are those of ``pycocotools.mask.encode``: column by column, background first.
    """
    # Padded with background above and below, every column changes at the start and at the end of
    # each of its runs.
    columns = np.pad(part.pixels.T, ((0, 0), (1, 1))).view(np.int8)  # (w, 1 + h + 1)
    x, y = np.nonzero(columns[:, 1:] != columns[:, :-1])
    # Column-major indices in the image: start, end, start, end, ...
    changes = (part.left + x) * height + part.top + y
    if len(part.pixels) == height:
        # A run that ends at the bottom may continue at the top of the next column.
        continues = np.flatnonzero(changes[1:] == changes[:-1])
        changes = np.delete(changes, [continues, continues + 1])
    if len(changes) and changes[-1] == height * width:
        changes = changes[:-1]
    return np.diff(changes, prepend=0, append=height * width)


def compress(lengths: np.ndarray) -> bytes:
    """Encode run lengths as a compressed RLE; :func:`gpvit.data.masks.run_lengths` decodes it.

    pycocotools writes beyond the end of its buffer if a run has 2**29 pixels or more.
    """
    numbers = lengths.copy()
    numbers[3:] -= lengths[1:-2]
    # Split into digits in base 32, least significant first; the sign is that of the last digit.
    digits = numbers[:, None] >> 5 * np.arange(7)  # (n, 7)
    # Another digit follows unless the rest is only the sign, which is bit 4 of this digit.
    follows = digits >> 5 != -(digits >> 4 & 1)
    codes = ((digits & 31) | follows << 5) + 48
    used = np.logical_and.accumulate(follows[:, :-1], axis=1)
    used = np.pad(used, ((0, 0), (1, 0)), constant_values=True)
    return codes[used].astype(np.uint8).tobytes()


def transform_rles(
    rles: Sequence[dict[str, Any]], apply: Callable[[np.ndarray], np.ndarray], size: tuple[int, int]
) -> Iterator[Crop]:
    """Transform the masks of one image and yield their crops.

    Consecutive objects that do not overlap are transformed together as one label map, because
    transforming a single mask takes as long as transforming the complete image.

    Args:
        rles: compressed RLEs.
        apply: (H, W), uint8 -> (h, w), a transform of label maps, such as the method
            ``apply_segmentation`` of a Detectron2 transform.
        size: h and w, the expected output size.
    """
    count = 0
    labels = np.zeros(rles[0]["size"] if rles else (0, 0), np.uint8)
    for left, top, pixels in map(crop_of_rle, rles):
        height, width = pixels.shape
        region = labels[top : top + height, left : left + width]
        if count == LABELS or region[pixels].any():
            yield from _separated(apply(labels), count, size)
            count = 0
            labels = np.zeros_like(labels)
            region = labels[top : top + height, left : left + width]
        count += 1
        region[pixels] = count
    if count:
        yield from _separated(apply(labels), count, size)


def _separated(labels: np.ndarray, count: int, size: tuple[int, int]) -> Iterator[Crop]:
    """Yield the crops of the labels 1 to ``count`` in a label map of this size."""
    assert labels.shape == size, f"{labels.shape} != {size}"
    if count == 1:
        yield crop(labels == 1)
        return
    # Sort the labeled pixels by label: those of label k are order[ends[k - 1] : ends[k]].
    rows, columns = np.nonzero(labels)
    values = labels[rows, columns]
    order = np.argsort(values, kind="stable")
    ends = np.searchsorted(values[order], np.arange(count + 1), side="right")
    for start, end in itertools.pairwise(ends):
        if start == end:  # the transform removed the object
            yield empty_crop()
            continue
        y, x = rows[order[start:end]], columns[order[start:end]]
        left, top = int(x.min()), int(y.min())
        pixels = np.zeros((np.ptp(y) + 1, np.ptp(x) + 1), bool)
        pixels[y - top, x - left] = True
        yield Crop(left, top, pixels)


class CroppedMasks(BitMasks):
    """Detectron2's BitMasks with each mask stored inside its bounding box only.

    2,000 cells in an image of 800 x 1083 pixels take 0.3 MB instead of 1.7 GB. Indexing returns
    masks that share their pixels with the original.

    Args:
        image_size: height and width.
        boxes: (N, 4), integers, x0, y0, x1, y1 with exclusive ends; zeros for an empty mask.
        starts: (N,), offset of each mask in ``pixels``.
        pixels: 1-D, bool, the pixels of all boxes, each box row by row.
    """

    def __init__(
        self, image_size: Sequence[int], boxes: np.ndarray, starts: np.ndarray, pixels: Tensor
    ) -> None:
        self.image_size = torch.Size(image_size)
        self.boxes, self.starts, self.pixels = boxes, starts, pixels

    @classmethod
    def of(cls, crops: Sequence[Crop], image_size: tuple[int, int]) -> "CroppedMasks":
        """Pack crops of masks of one image of this height and width."""
        boxes = np.zeros((len(crops), 4), np.int64)
        flat = [np.zeros(0, bool)]  # np.concatenate needs at least one array
        for box, (left, top, pixels) in zip(boxes, crops):
            height, width = pixels.shape
            box[:] = left, top, left + width, top + height
            flat.append(pixels.ravel())
        # The placeholder at the beginning makes the sums start at 0; the last sum is the end.
        starts = np.cumsum(list(map(len, flat)))[:-1]
        return cls(image_size, boxes, starts, torch.from_numpy(np.concatenate(flat)))

    @property
    def tensor(self) -> Tensor:
        """(N, H, W), bool: all masks at full size, allocated on each access."""
        masks = self.pixels.new_zeros(len(self), *self.image_size)
        for number, mask in enumerate(masks):
            self._paint(mask, number)
        return masks

    @property
    def device(self) -> torch.device:
        return self.pixels.device

    def to(self, *args: Any, **kwargs: Any) -> "CroppedMasks":
        return CroppedMasks(
            self.image_size, self.boxes, self.starts, self.pixels.to(*args, **kwargs)
        )

    def __len__(self) -> int:
        return len(self.boxes)

    def __getitem__(self, item: Any) -> "CroppedMasks":
        """Select masks by an integer, a slice, or a tensor of indices or booleans."""
        if isinstance(item, Tensor):
            item = item.cpu().numpy()
        elif isinstance(item, int):
            item = [item]
        return CroppedMasks(self.image_size, self.boxes[item], self.starts[item], self.pixels)

    def __iter__(self) -> Iterator[Tensor]:
        """Yield the masks at full size, (H, W), one by one."""
        for number in range(len(self)):
            yield self[number].tensor[0]

    def __repr__(self) -> str:
        return f"{type(self).__name__}(num_instances={len(self)})"

    def crops(self) -> Iterator[Crop]:
        """Yield the masks inside their boxes one by one."""
        flat = self.pixels.cpu().numpy()
        for start, (left, top, right, bottom) in zip(self.starts.tolist(), self.boxes.tolist()):
            height, width = bottom - top, right - left
            pixels = flat[start : start + height * width]
            yield Crop(left, top, pixels.reshape(height, width))

    def rles(self) -> list[dict[str, Any]]:
        """Encode the masks as compressed RLEs of the full image, equal to those of pycocotools.

        The image must not have more than :data:`RLE_PIXELS` pixels.
        """
        height, width = self.image_size
        assert height * width <= RLE_PIXELS, f"too many pixels for RLE: {height} x {width}"
        rles = []
        for part in self.crops():
            counts = compress(run_lengths_of(part, height, width))
            rles.append({"size": [height, width], "counts": counts})
        return rles

    def cut(self, left: int, top: int, right: int, bottom: int) -> "CroppedMasks":
        """Cut the masks to a window of the image, which becomes their image."""
        cut = []
        for x, y, pixels in self.crops():
            x, y = x - left, y - top  # in the window
            rows = slice(max(-y, 0), max(bottom - top - y, 0))
            columns = slice(max(-x, 0), max(right - left - x, 0))
            cut.append(crop(pixels[rows, columns], max(x, 0), max(y, 0)))
        return CroppedMasks.of(cut, (bottom - top, right - left))

    def nonempty(self) -> Tensor:
        return torch.from_numpy(self.boxes[:, 2] > self.boxes[:, 0]).to(self.device)

    def get_bounding_boxes(self) -> Boxes:
        return Boxes(torch.from_numpy(self.boxes).float())

    @staticmethod
    def cat(masks: Sequence["CroppedMasks"]) -> "CroppedMasks":
        """Concatenate masks of images of the same size."""
        image_size = masks[0].image_size
        offset = 0  # of each part in the joint pixels
        boxes, starts, pixels = [], [], []
        for part in masks:
            assert part.image_size == image_size, f"{part.image_size} != {image_size}"
            boxes.append(part.boxes)
            starts.append(part.starts + offset)
            pixels.append(part.pixels)
            offset += len(part.pixels)
        return CroppedMasks(
            image_size, np.concatenate(boxes), np.concatenate(starts), torch.cat(pixels)
        )

    def crop_and_resize(self, boxes: Tensor, mask_size: int) -> Tensor:
        """Crop and resize the masks with results bitwise equal to those of BitMasks.

        A few masks at a time are sampled at their positions in the full image. Relative to the
        crops, the same positions would be other floating-point numbers with other rounding.

        Args:
            boxes: (N, 4), in pixels.
            mask_size: side of the result.

        Returns:
            (N, mask_size, mask_size), bool.
        """
        assert len(boxes) == len(self), f"{len(boxes)} != {len(self)}"
        height, width = self.image_size
        step = max(1, CANVAS // max(1, height * width))
        canvas = torch.zeros(min(step, len(self)), 1, height, width, device=self.device)
        align = ROIAlign((mask_size, mask_size), 1.0, 0, aligned=True)
        sampled = [torch.zeros(0, mask_size, mask_size, dtype=torch.bool, device=self.device)]
        for start in range(0, len(self), step):
            part = boxes[start : start + step].to(self.device)
            images = canvas[: len(part)]  # (n, 1, H, W)
            painted = []
            for place, image in enumerate(images):
                painted.append(self._paint(image[0], start + place))
            # ROIAlign takes (n, 5): the index of the image, then its box.
            indices = torch.arange(len(part), device=self.device).to(part.dtype)[:, None]
            rois = torch.cat([indices, part], dim=1)
            sampled.append(align(images, rois).squeeze(1) >= 0.5)
            # Clear only what was painted; clearing the complete canvas takes longer.
            for region in painted:
                region.zero_()
        return torch.cat(sampled)

    def _paint(self, image: Tensor, number: int) -> Tensor:
        """Copy the pixels of a mask into an empty (H, W) image and return the region written to."""
        left, top, right, bottom = self.boxes[number].tolist()
        height, width = bottom - top, right - left
        start = int(self.starts[number])
        pixels = self.pixels[start : start + height * width]
        return image[top:bottom, left:right].copy_(pixels.view(height, width))
