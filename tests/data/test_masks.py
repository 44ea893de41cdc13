"""Masks that are kept cropped are those that Detectron2 keeps whole."""

import gpvit.data.cropped_masks
import numpy as np
import pytest
import torch
from children import in_a_child
from detectron2.data import transforms as T
from detectron2.structures import BitMasks, BoxMode, polygons_to_bitmask
from gpvit.data import InstanceMapper, train_augmentations
from gpvit.data.cropped_masks import CroppedMasks, crop_of_polygons, transform_rles
from PIL import Image
from pycocotools import mask as mask_api

HEIGHT, WIDTH = 90, 130


def random_polygons(random: np.random.Generator, number: int) -> list[list[np.ndarray]]:
    """Objects of one to three polygons, from specks to larger than the image.

    Some cross its border, some are outside.
    """
    objects = []
    for _ in range(number):
        size = random.choice([2, 20, 80, 200])
        centers = random.uniform(-40, 170, (random.integers(1, 4), 1, 2))
        objects.append(
            [(center + random.uniform(-size, size, (5, 2))).ravel() for center in centers]
        )
    return objects


def both(objects: list[list[np.ndarray]]) -> tuple[CroppedMasks, BitMasks]:
    crops = [crop_of_polygons(polygons, HEIGHT, WIDTH) for polygons in objects]
    whole = [polygons_to_bitmask(polygons, HEIGHT, WIDTH) for polygons in objects]
    size = len(objects), HEIGHT, WIDTH
    return CroppedMasks.of(crops, size[1:]), BitMasks(np.reshape(np.array(whole, bool), size))


def same(ours: CroppedMasks, theirs: BitMasks) -> bool:
    return (
        torch.equal(ours.tensor, theirs.tensor)
        and torch.equal(ours.nonempty(), theirs.nonempty())
        and torch.equal(ours.get_bounding_boxes().tensor, theirs.get_bounding_boxes().tensor)
        and (len(ours), ours.image_size) == (len(theirs), theirs.image_size)
    )


def test_cropped_masks_behave_as_detectron2s() -> None:
    random = np.random.default_rng(0)
    ours, theirs = both([*random_polygons(random, 150), []])
    assert 20 < ours.nonempty().sum() < 140 and same(ours, theirs)
    numbers, some = torch.from_numpy(random.integers(0, 151, 60)), ours.nonempty()
    for item in (3, -1, slice(5, 70, 3), numbers, some, some[:0].long()):
        assert same(ours[item], theirs[item])
    assert same(
        CroppedMasks.cat([ours[some], ours[numbers]]), BitMasks.cat([theirs[some], theirs[numbers]])
    )
    assert all(map(torch.equal, ours, theirs.tensor)) and same(ours.to("cpu"), theirs)
    assert same(*both([]))
    with pytest.raises(IndexError):
        ours[151]


@pytest.mark.parametrize("canvas", [1, 7 * HEIGHT * WIDTH, 2**24])
@pytest.mark.parametrize("number", [0, 1, 40])
def test_targets_are_the_same_bit_for_bit(
    monkeypatch: pytest.MonkeyPatch, canvas: int, number: int
) -> None:
    monkeypatch.setattr(gpvit.data.cropped_masks, "CANVAS", canvas)
    random = np.random.default_rng(number)
    ours, theirs = both(random_polygons(random, number))
    tight = ours.get_bounding_boxes().tensor  # of which samples lie on the edges of pixels
    anywhere = (
        np.sort(random.uniform(-5, 135, (number, 2, 2)), axis=1)
        .reshape(number, 4)
        .astype(np.float32)
    )
    for boxes in (tight, tight + 0.5, torch.from_numpy(anywhere)):
        for side in (14, 28):
            expected = (
                theirs.crop_and_resize(boxes, side)
                if number
                else torch.zeros(0, side, side, dtype=torch.bool)
            )
            assert torch.equal(ours.crop_and_resize(boxes, side), expected)


@pytest.mark.parametrize("number", [0, 1, 60, 600])
@pytest.mark.parametrize(
    "transform",
    [
        T.TransformList(
            [T.ResizeTransform(HEIGHT, WIDTH, 200, 57), T.HFlipTransform(57), T.VFlipTransform(200)]
        ),
        T.TransformList([T.ResizeTransform(HEIGHT, WIDTH, 40, 50), T.CropTransform(3, 5, 30, 20)]),
        T.RotationTransform(HEIGHT, WIDTH, 33),
    ],
    ids=["resize", "crop", "rotate"],
)
def test_run_lengths_are_transformed_together_as_they_are_alone(
    transform: T.Transform, number: int
) -> None:
    random = np.random.default_rng(number)
    masks = np.zeros((number, HEIGHT, WIDTH), np.uint8)
    for index, mask in enumerate(masks):
        if number == 600:  # apart from each other, and more than a map of labels takes
            row, column = divmod(index, 30)
            mask[4 * row : 4 * row + 3, 4 * column : 4 * column + 3] = 1
        elif index % 4 == 1:
            mask[:] = random.random((HEIGHT, WIDTH)) > 0.99
        elif index % 4:
            row, column = random.integers(0, HEIGHT), random.integers(0, WIDTH)
            mask[row : row + 20, column : column + 15] = 1
    expected = [transform.apply_segmentation(mask) for mask in masks]
    size = transform.apply_segmentation(np.zeros((HEIGHT, WIDTH), np.uint8)).shape
    rles = [mask_api.encode(np.asfortranarray(mask)) for mask in masks]
    ours = CroppedMasks.of(list(transform_rles(rles, transform.apply_segmentation, size)), size)
    assert ours.tensor.shape == (number, *size)
    assert np.array_equal(ours.tensor, np.reshape(np.array(expected, bool), (number, *size)))


@pytest.mark.parametrize("kind", ["polygons", "run lengths"])
def test_2000_objects_take_less_than_a_gigabyte(tmp_path, kind: str) -> None:
    height, width, random = 520, 704, np.random.default_rng(0)
    path = tmp_path / "cells.png"
    Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path)
    objects = []
    for x, y in random.uniform(0, (width - 8, height - 8), (2000, 2)):
        mask = [[x, y, x + 8, y, x + 8, y + 8, x, y + 8]]
        if kind == "run lengths":
            mask = mask_api.merge(mask_api.frPyObjects(mask, height, width))
        box = {"bbox": [x, y, 8.0, 8.0], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0}
        objects.append(box | {"segmentation": mask})
    record = {"file_name": str(path), "image_id": 1, "annotations": objects}
    augmentations = train_augmentations("resize", short_side=800, max_size=1333, lsj_size=1024)
    options = dict(image_format="RGB", use_instance_mask=True, recompute_boxes=True)
    mapper = InstanceMapper(True, augmentations=augmentations, **options)
    # All masks at their full size, (2000, 800, 1083), would be 1.7 GB.
    number, pixels = in_a_child(lambda: counted(mapper(record)["instances"]), memory=1 << 30)
    assert number == 2000 and 100 < pixels / number < 200


def counted(instances) -> tuple[int, int]:
    return len(instances), len(instances.gt_masks.pixels)
