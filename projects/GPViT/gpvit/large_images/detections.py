"""Detections in images of any size: their masks are stored inside their boxes only."""

import math
from collections.abc import Sequence

import numpy as np
from detectron2.layers import paste_masks_in_image
from detectron2.structures import Boxes, Instances

from ..data.cropped_masks import Crop, CroppedMasks, crop, empty_crop

STRIP = 2**22  # pixels of a mask that are pasted at once, with 13 bytes for each


def with_cropped_masks(instances: Instances) -> Instances:
    """Return detections with masks at the size of the image, as Detectron2 pastes them.

    Args:
        instances: as the heads of a detector return them, with "pred_masks" (N, 1, M, M), if any.
    """
    if not instances.has("pred_masks"):
        return instances
    height, width = instances.image_size
    crops = []
    for box, mask in zip(instances.pred_boxes.tensor, instances.pred_masks):
        x0, y0, x1, y1 = box.tolist()
        # Detectron2 samples masks one pixel beyond their boxes, too.
        left, top = max(math.floor(x0) - 1, 0), max(math.floor(y0) - 1, 0)
        right, bottom = min(math.ceil(x1) + 1, width), min(math.ceil(y1) + 1, height)
        strips = []
        rows = max(STRIP // (right - left), 1)
        for start in range(top, bottom, rows):
            inside = box - box.new_tensor([left, start, left, start])
            size = min(rows, bottom - start), right - left
            strips.append(paste_masks_in_image(mask, inside[None], size)[0].numpy())
        crops.append(crop(np.concatenate(strips), left, top))
    return replaced(instances, pred_masks=CroppedMasks.of(crops, (height, width)))


def in_image(found: Instances, left: int, top: int, size: tuple[int, int]) -> Instances:
    """Move detections from a part of an image into the image.

    Args:
        found: what a detector returns for the part, on the CPU.
        left, top: of the part.
        size: height and width of the image.
    """
    fields = found.get_fields()
    boxes = found.pred_boxes.tensor
    fields["pred_boxes"] = Boxes(boxes + boxes.new_tensor([left, top, left, top]))
    if found.has("pred_masks"):
        crops = [crop(mask.numpy(), left, top) for mask in found.pred_masks]
        fields["pred_masks"] = CroppedMasks.of(crops, size)
    return Instances(size, **fields)


def enlarged(found: Instances, size: tuple[int, int]) -> Instances:
    """Enlarge detections in a reduced image to the image, of this height and width."""
    scale_y, scale_x = size[0] / found.image_size[0], size[1] / found.image_size[1]
    boxes = found.pred_boxes.clone()
    boxes.scale(scale_x, scale_y)
    fields = found.get_fields() | {"pred_boxes": boxes}
    if found.has("pred_masks"):
        crops = [_enlarged_crop(crop(mask.numpy()), scale_x, scale_y) for mask in found.pred_masks]
        fields["pred_masks"] = CroppedMasks.of(crops, size)
    return Instances(size, **fields)


def _enlarged_crop(mask: Crop, scale_x: float, scale_y: float) -> Crop:
    height, width = mask.pixels.shape
    if not mask.pixels.size:
        return mask
    # Each pixel of the image has the value of the reduced pixel that its center is in.
    left, top = round(mask.left * scale_x), round(mask.top * scale_y)
    right, bottom = round((mask.left + width) * scale_x), round((mask.top + height) * scale_y)
    columns = ((np.arange(left, right) + 0.5) / scale_x - mask.left).astype(int).clip(0, width - 1)
    rows = ((np.arange(top, bottom) + 0.5) / scale_y - mask.top).astype(int).clip(0, height - 1)
    return Crop(left, top, mask.pixels[rows[:, None], columns])


def united(masks: Sequence[Crop]) -> Crop:
    """Return the union of masks."""
    masks = [mask for mask in masks if mask.pixels.size]
    if not masks:
        return empty_crop()
    left, top = min(mask.left for mask in masks), min(mask.top for mask in masks)
    right = max(mask.left + mask.pixels.shape[1] for mask in masks)
    bottom = max(mask.top + mask.pixels.shape[0] for mask in masks)
    pixels = np.zeros((bottom - top, right - left), bool)
    for mask in masks:
        height, width = mask.pixels.shape
        x, y = mask.left - left, mask.top - top
        pixels[y : y + height, x : x + width] |= mask.pixels
    return Crop(left, top, pixels)


def replaced(instances: Instances, **fields: object) -> Instances:
    """Return instances with some fields replaced."""
    return Instances(instances.image_size, **instances.get_fields() | fields)
