"""Class maps by strips, sliding windows, scales and flips equal plain computations."""

import pytest
import torch
import torch.nn.functional as F
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone
from gpvit.modeling import SemanticSegmentor
from gpvit.modeling.segmentation import predicting_class_maps
from gpvit.modeling.semantic_inference import Windows
from torch import Tensor, nn

CLASSES = 5


class Shrink(Backbone):
    """The mean of each 8x8 cell and of its surroundings, so that windows differ from the whole."""

    size_divisibility = 16

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        cells = F.avg_pool2d(image, 8)
        around = F.avg_pool2d(cells, 3, stride=1, padding=1)
        return {"out": torch.cat([cells, around], dim=1)}

    def output_shape(self) -> dict[str, ShapeSpec]:
        return {"out": ShapeSpec(channels=6, stride=8)}


class Head(nn.Module):
    ignore_value = 255

    def __init__(self) -> None:
        super().__init__()
        self.predictor = nn.Conv2d(6, CLASSES, 1)

    def layers(self, features: dict[str, Tensor]) -> Tensor:
        return self.predictor(features["out"])


def segmentor(**options: object) -> SemanticSegmentor:
    torch.manual_seed(0)
    model = SemanticSegmentor(
        backbone=Shrink(), sem_seg_head=Head(), pixel_mean=[100.0] * 3, pixel_std=[20.0] * 3
    )
    for name, value in options.items():
        setattr(model, name, value)
    return model.eval()


def image(height: int, width: int) -> Tensor:
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8)


@torch.no_grad()
def predict(model: SemanticSegmentor, *items: dict) -> list[Tensor]:
    return [output["sem_seg"] for output in model(list(items))]


SIZES = [
    ((64, 96), (64, 96)),
    ((50, 70), (131, 97)),  # padded, enlarged
    ((160, 112), (33, 201)),  # reduced in one direction
    ((48, 48), (1, 1)),
    ((16, 16), (300, 2)),
]


@pytest.mark.parametrize("network_size, size", SIZES)
def test_class_map_is_the_largest_of_the_logits(
    network_size: tuple[int, int], size: tuple[int, int]
) -> None:
    model = segmentor()
    item = {"image": image(*network_size), "height": size[0], "width": size[1]}
    [logits] = predict(model, item)
    assert logits.shape == (CLASSES, *size)
    with predicting_class_maps(model):
        [classes] = predict(model, item)
    assert not model.class_map
    assert classes.shape == size and classes.dtype == torch.int64
    # Where both differ, the two largest logits are equal but for rounding.
    largest = logits.topk(2, dim=0).values
    differs = classes != logits.argmax(0)
    assert ((largest[0] - largest[1])[differs] < 1e-4).all() and differs.float().mean() < 0.005


def test_class_maps_of_a_batch_with_padding() -> None:
    model = segmentor()
    small, large = {"image": image(30, 40)}, {"image": image(64, 50), "height": 20, "width": 77}
    expected = [logits.argmax(0) for logits in predict(model, small, large)]
    with predicting_class_maps(model):
        for found, wanted in zip(predict(model, small, large), expected):
            assert found.shape == wanted.shape
            assert (found == wanted).float().mean() > 0.995


def test_equal_logits_are_the_first_class_and_nan_is_none_but_a_class() -> None:
    model = segmentor(class_map=True)
    nn.init.zeros_(model.sem_seg_head.predictor.weight)
    nn.init.zeros_(model.sem_seg_head.predictor.bias)
    assert not predict(model, {"image": image(32, 32)})[0].any()
    nn.init.constant_(model.sem_seg_head.predictor.bias, float("nan"))
    assert (predict(model, {"image": image(32, 32)})[0] < CLASSES).all()


@pytest.mark.parametrize("length, expected", [(512, [0]), (300, [0]), (853, [0, 341]), (900, None)])
def test_windows_cover_a_side_and_end_at_its_border(
    length: int, expected: list[int] | None
) -> None:
    starts = Windows.over(length, 512, 512, 341).tops
    assert starts == (expected or [0, 341, 388])


def literal_sliding(model: SemanticSegmentor, x: Tensor, side: int, stride: int) -> Tensor:
    """Average the logits of all windows, pixel by pixel."""
    height, width = x.shape[1:]
    windows = Windows.over(height, width, side, stride)
    total, counts = torch.zeros(CLASSES, height, width), torch.zeros(height, width)
    for top in windows.tops:
        for left in windows.lefts:
            part = x[:, top : top + side, left : left + side]
            [logits] = predict(model, {"image": part})
            total[:, top : top + side, left : left + side] += logits
            counts[top : top + side, left : left + side] += 1
    return total / counts


@pytest.mark.parametrize("size", [(150, 200), (75, 333), (40, 30)])
def test_sliding_window_averages_logits(size: tuple[int, int]) -> None:
    x = image(150, 200)
    expected = literal_sliding(segmentor(), x, 64, 40)
    item = {"image": x, "height": size[0], "width": size[1]}
    [logits] = predict(segmentor(window=64, stride=40), item)
    resized = F.interpolate(expected[None], size, mode="bilinear")[0]
    torch.testing.assert_close(logits, resized, atol=1e-4, rtol=1e-4)
    [classes] = predict(segmentor(window=64, stride=40, class_map=True), item)  # in bands
    assert (classes == resized.argmax(0)).float().mean() > 0.995


@pytest.mark.parametrize("stride", [7, 63, 64])
def test_any_stride_gives_the_bands_of_the_average(stride: int) -> None:
    x = image(130, 100)
    expected = literal_sliding(segmentor(), x, 64, stride).argmax(0)
    [classes] = predict(segmentor(window=64, stride=stride, class_map=True), {"image": x})
    assert (classes == expected).float().mean() > 0.995


def test_image_smaller_than_the_window_is_one_window() -> None:
    x = image(30, 50)
    [expected] = predict(segmentor(), {"image": x})
    [logits] = predict(segmentor(window=64, stride=32), {"image": x})
    torch.testing.assert_close(logits, expected)


@pytest.mark.parametrize("class_map", [False, True])
def test_scales_and_flips_average_probabilities(class_map: bool) -> None:
    x = image(64, 96)
    total = torch.zeros(CLASSES, 80, 100)
    for scaled_size in ((32, 48), (64, 96)):
        scaled = F.interpolate(x[None].float(), scaled_size, mode="bilinear")[0]
        for flipped in (False, True):
            [logits] = predict(segmentor(), {"image": scaled.flip(-1) if flipped else scaled})
            logits = logits.flip(-1) if flipped else logits
            total += F.interpolate(logits[None], (80, 100), mode="bilinear")[0].softmax(0) / 4
    model = segmentor(scales=(0.5, 1.0), flip=True, class_map=class_map)
    [found] = predict(model, {"image": x, "height": 80, "width": 100})
    if class_map:
        assert (found == total.argmax(0)).float().mean() > 0.995
    else:
        torch.testing.assert_close(found.softmax(0), total, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"window": 64, "stride": 65}, "stride=65 must be at most window=64"),
        ({"scales": ()}, "at least one of scales"),
    ],
)
def test_options_that_do_not_fit_raise(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SemanticSegmentor(
            backbone=Shrink(), sem_seg_head=Head(), pixel_mean=[0], pixel_std=[1], **options
        )
