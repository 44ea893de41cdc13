"""The augmentations of the segmentation models give the pixels of the official ones."""

import detectron2.data.transforms as T
import numpy as np
import official
import pytest
from gpvit.data.semantic_transforms import (
    CropWithSeveralClasses,
    FitResize,
    LabelResizeTransform,
    PhotometricDistortion,
    PhotometricTransform,
    StretchToMultiple,
)

REFERENCE = official.arrays("segmentation_data")
DRAWS = {
    "brightness_m20_5": dict(brightness=-20.5),
    "contrast_1_3": dict(contrast=1.3),
    "saturation_0_6": dict(saturation=0.6),
    "hue_plus_11": dict(hue=11),
    "all_contrast_first": dict(brightness=13.25, contrast=0.7, saturation=1.4, hue=-7),
}
DRAWS["all_contrast_last"] = DRAWS["all_contrast_first"] | dict(contrast_first=False)


def assert_same_pixels(actual: np.ndarray, expected: np.ndarray) -> None:
    """Another build of OpenCV may differ by 1 in 0.1 % of the values."""
    difference = np.abs(actual.astype(int) - expected)
    assert difference.max() <= 1 and (difference > 0).mean() <= 1e-3


@pytest.mark.parametrize("name", DRAWS)
def test_photometric_distortion_matches_official_implementation(name: str) -> None:
    transform = PhotometricTransform(**DRAWS[name])
    assert_same_pixels(transform.apply_image(REFERENCE["image_rgb"]), REFERENCE[name])


@pytest.mark.parametrize(("name", "ratio"), [("0_5", 0.5), ("0_87", 0.87)])
def test_resizing_matches_official_implementation(name: str, ratio: float) -> None:
    image, labels = REFERENCE["resize_source_rgb"], REFERENCE["resize_source_labels"]
    transform = FitResize(512, 2048, (ratio, ratio)).get_transform(image)
    resized = transform.apply_image(image)[::3, ::3]
    assert_same_pixels(resized, REFERENCE[f"resize_ratio_{name}_rgb__sub"])
    resized_labels = transform.apply_segmentation(labels)[::3, ::3]
    assert np.array_equal(resized_labels, REFERENCE[f"resize_ratio_{name}_labels__sub"])


def test_nearest_neighbor_is_opencvs() -> None:
    labels = np.arange(7, dtype=np.uint8)[None].repeat(2, axis=0)
    assert LabelResizeTransform(2, 7, 2, 5).apply_segmentation(labels)[0].tolist() == [
        0,
        1,
        2,
        4,
        5,
    ]


@pytest.mark.parametrize(
    ("size", "expected"),
    [((211, 333), (512, 832)), ((140, 700), (416, 2048)), ((1100, 700), (832, 512))],
)
def test_test_time_size_is_the_official_one(
    size: tuple[int, int], expected: tuple[int, int]
) -> None:
    image = np.zeros((*size, 3), np.uint8)
    augmented = T.AugInput(image)
    T.AugmentationList([FitResize(512, 2048), StretchToMultiple(32)])(augmented)
    assert augmented.image.shape == (*expected, 3)


def crop_of(labels: np.ndarray, size: int = 32) -> T.CropTransform:
    return CropWithSeveralClasses(size).get_transform(np.zeros((*labels.shape, 3)), labels)


def test_crop_is_drawn_again_if_one_class_covers_it() -> None:
    labels = np.full((64, 64), 3, np.uint8)
    labels[:, :16] = 255
    labels[32:, 32:] = 4  # a crop at the top left has a single class
    np.random.seed(0)
    accepted = 0
    for _ in range(200):
        part = crop_of(labels).apply_segmentation(labels)
        counts = np.unique(part[part != 255], return_counts=True)[1]
        accepted += len(counts) > 1 and counts.max() < 0.75 * counts.sum()
    assert accepted > 190


def test_small_image_is_not_cropped_and_uniform_one_is_accepted_at_last() -> None:
    labels = np.zeros((20, 64), np.uint8)
    transform = crop_of(labels)
    assert (transform.h, transform.w, transform.y0) == (20, 32, 0)


def test_10000_distortions_have_the_official_frequencies_and_ranges() -> None:
    np.random.seed(0)
    augmentation = PhotometricDistortion()
    draws = [augmentation.get_transform(np.zeros((1, 1, 3), np.uint8)) for _ in range(10_000)]
    ranges = {
        "brightness": (-32, 32),
        "contrast": (0.5, 1.5),
        "saturation": (0.5, 1.5),
        "hue": (-18, 17),
    }
    for name, (low, high) in ranges.items():
        drawn = [getattr(draw, name) for draw in draws]
        values = np.array([value for value in drawn if value is not None])
        assert len(values) / len(draws) == pytest.approx(0.5, abs=0.02)
        assert low <= values.min() < low + 0.01 * (high - low)
        assert high - 0.01 * (high - low) < values.max() <= high
        middle = (low + high) / 2
        assert values.mean() == pytest.approx(middle, abs=0.02 * (high - low))
    assert {draw.hue for draw in draws} == {None, *range(-18, 18)}
    assert np.mean([draw.contrast_first for draw in draws]) == pytest.approx(0.5, abs=0.02)


def test_10000_resizes_have_the_official_range() -> None:
    np.random.seed(0)
    augmentation = FitResize(512, 2048, (0.5, 2.0))
    image = np.zeros((512, 512, 3), np.uint8)
    sides = np.array([augmentation.get_transform(image).new_h for _ in range(10_000)])
    assert sides.min() in range(256, 260) and sides.max() in range(1020, 1024)
    assert sides.mean() == pytest.approx(640, rel=0.02)
