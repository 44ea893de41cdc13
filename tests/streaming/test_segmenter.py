"""Segmentation models predict tile by tile what they do in one pass."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone.fpn import LastLevelP6P7
from detectron2.modeling.meta_arch.semantic_seg import SemSegFPNHead
from gpvit import GPViT
from gpvit.modeling import (
    GPViTAdapter,
    SegFormerHead,
    SemanticSegmentor,
    SimpleFeaturePyramid,
    UPerNetHead,
)
from gpvit.modeling.segmentation import POOLED_SIDES, average_pool
from gpvit.streaming.backbone import split, stream_maps
from gpvit.streaming.segmenter import average_pool_parts, segment, streamed_head
from simulated_gpu import simulated_gpu
from torch import Tensor, nn

CLASSES = 7
FEATURES = ("block0", "block1", "last_feat")


def net(**options: Any) -> GPViT:
    return GPViT(**dict(embed_dim=24, group_tokens=(0, 4, 0), norm="BN") | options)


def on_maps(kind: type, **options: Any) -> tuple[nn.Module, nn.Module]:
    options = dict(in_channels=24, num_classes=CLASSES, channels=8, norm="BN") | options
    return net(out_features=FEATURES), kind(in_features=FEATURES, **options)


def on_pyramid(
    scales: tuple[float, ...] = (1.0, 0.5, 0.25), common_stride: int = 8, norm: str = "BN"
) -> tuple[nn.Module, nn.Module]:
    pyramid = SimpleFeaturePyramid(net(), "last_feat", 8, scales)
    shapes = {
        name: ShapeSpec(channels=8, stride=2 ** int(name[1:])) for name in pyramid.output_shape()
    }
    return pyramid, SemSegFPNHead(
        shapes, num_classes=CLASSES, conv_dims=8, common_stride=common_stride, norm=norm
    )


PARTS: dict[str, Callable[[], tuple[nn.Module, nn.Module]]] = {
    "segformer": lambda: on_maps(SegFormerHead),
    "upernet": lambda: on_maps(UPerNetHead, auxiliary_channels=8),
    "semantic_fpn": on_pyramid,
    "semantic_fpn_at_stride_4": lambda: on_pyramid((2.0, 1.0, 0.5, 0.25), 4, "LN"),
}


def segmentor(backbone: nn.Module, head: nn.Module) -> SemanticSegmentor:
    """A model with random statistics, whose classes differ from pixel to pixel."""
    model = SemanticSegmentor(
        backbone=backbone,
        sem_seg_head=head,
        pixel_mean=[120.0, 110.0, 100.0],
        pixel_std=[60.0, 50.0, 40.0],
        class_map=True,
    )
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    nn.init.normal_(head.predictor.weight)
    return model.eval()


@pytest.fixture(params=PARTS)
def model(request: pytest.FixtureRequest) -> SemanticSegmentor:
    torch.manual_seed(0)
    return segmentor(*PARTS[request.param]())


def random_pixels(height: int, width: int) -> np.ndarray:
    """An image of random colors, in squares of 8 x 8 pixels."""
    colors = np.random.default_rng(0).integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), "u1")
    return colors.repeat(8, axis=0).repeat(8, axis=1)[3 : height + 3, 3 : width + 3]


def item(pixels: np.ndarray) -> dict[str, Tensor]:
    return {"image": torch.from_numpy(pixels.transpose(2, 0, 1).copy())}


@torch.no_grad()
def classes_in_one_pass(model: SemanticSegmentor, pixels: np.ndarray) -> Tensor:
    return model([item(pixels)])[0]["sem_seg"]


def put_together(tiles: Any, pixels: np.ndarray) -> Tensor:
    """The class map that tiles make up, each pixel exactly once, row by row."""
    result = torch.full(pixels.shape[:2], -1)
    corners = []
    for rows, columns, classes in tiles:
        assert classes.dtype == torch.int64 and (result[rows, columns] == -1).all()
        result[rows, columns] = classes
        corners.append((rows.start, columns.start))
    assert (result >= 0).all() and corners == sorted(corners)
    return result


class Heads:
    """The head of a model in one pass and by regions, with the maps of an image."""

    @torch.no_grad()
    def __init__(self, model: SemanticSegmentor, size: tuple[int, int], folder: Path) -> None:
        self.model, self.folder = model, folder
        images = model.preprocess_image([item(random_pixels(*size))]).tensor
        backbone = model.backbone
        self.features = backbone(images)
        self.maps = stream_maps(getattr(backbone, "net", backbone), images, folder=folder)

    @torch.no_grad()
    def in_one_pass(self) -> Tensor:
        return self.model.sem_seg_head.layers(self.features)

    @torch.no_grad()
    def by_regions(self, side: int, tokens: int = 40) -> Tensor:
        head = streamed_head(self.model, self.maps, self.folder, tokens)
        height, width = self.in_one_pass().shape[2:]
        strips = []
        for rows in split(slice(0, height), side):
            regions = [head(rows, columns) for columns in split(slice(0, width), side)]
            strips.append(torch.cat(regions, dim=3))
        return torch.cat(strips, dim=2)

    def assert_equal(self, side: int = 7) -> Tensor:
        """Return the logits of one pass, which those of regions must equal everywhere."""
        expected = self.in_one_pass()
        difference = (self.by_regions(side) - expected).abs().max()
        assert difference < 1e-5 * expected.abs().max()
        return expected


@pytest.mark.parametrize("size", [(1, 1), (33, 100), (97, 47)])
def test_classes_equal_one_pass(model: SemanticSegmentor, size: tuple[int, int]) -> None:
    pixels = random_pixels(*size)
    expected = classes_in_one_pass(model, pixels)
    assert len(expected.unique()) > 1 or size == (1, 1)
    # Tiles that end inside of cells, or are one pixel high or wide at the border of the image.
    for tokens, tile in ((9, 48), (70, 23), (10_000, 512)):
        found = put_together(segment(model, pixels, tokens=tokens, tile=tile), pixels)
        assert (found == expected).float().mean() >= 0.999, (tokens, tile)


@pytest.mark.parametrize("side", [2, 3, 8])
def test_logits_of_regions_equal_one_pass(
    model: SemanticSegmentor, side: int, tmp_path: Path
) -> None:
    Heads(model, (120, 70), tmp_path).assert_equal(side)
    assert list(tmp_path.iterdir()) == []


def test_every_parameter_of_the_head_changes_both_forms_alike(
    model: SemanticSegmentor, tmp_path: Path
) -> None:
    heads = Heads(model, (64, 64), tmp_path)
    before = heads.in_one_pass()
    for name, values in model.sem_seg_head.named_parameters():
        with torch.no_grad():
            values += torch.rand_like(values) / 2
        after = heads.assert_equal()
        # The auxiliary head is for training.
        assert name.startswith("auxiliary") or not torch.equal(after, before), name
        before = after


def test_replaced_parts_of_the_head_change_both_forms_alike(
    model: SemanticSegmentor, tmp_path: Path
) -> None:
    heads = Heads(model, (64, 64), tmp_path)
    before = heads.in_one_pass()
    for name, part in model.sem_seg_head.named_modules():
        if isinstance(part, nn.Conv2d) and not name.startswith("auxiliary"):
            part.register_forward_hook(lambda *args: args[-1] * 2)
            after = heads.assert_equal()
            assert not torch.allclose(after, before), name
            before = after


@pytest.mark.parametrize("kind", [SegFormerHead, UPerNetHead])
def test_halo_follows_the_layers(kind: type, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = segmentor(*on_maps(kind))
    before = model.sem_seg_head.halo
    fusion = nn.Conv2d(model.sem_seg_head.fusion.in_channels, 8, 7, padding=3)
    model.sem_seg_head.fusion = nn.Sequential(fusion, nn.ReLU())
    assert model.sem_seg_head.halo == {0: 3, 3: 5}[before]
    Heads(model, (80, 96), tmp_path).assert_equal(3)


@pytest.mark.parametrize("shape", [(2, 2), (7, 40), (40, 7), (31, 33)])
def test_averages_of_strips_are_those_of_adaptive_pooling(shape: tuple[int, int]) -> None:
    values = torch.randn(1, *shape, 5) + 3
    maps = values.permute(0, 3, 1, 2).double()
    for tokens in (1, 70, 10_000):
        found = average_pool_parts(values, POOLED_SIDES, tokens)
        for side, average in zip(POOLED_SIDES, found):
            assert average.dtype == torch.float32
            expected = average_pool(maps, side)
            assert (average - expected).abs().max() < 1e-6 * expected.abs().min()


def test_channels_are_reordered(model: SemanticSegmentor) -> None:
    pixels = random_pixels(40, 50)
    expected = classes_in_one_pass(model, pixels[..., ::-1])
    tiles = segment(model, pixels, channels=[2, 1, 0], tile=20)
    assert (put_together(tiles, pixels) == expected).float().mean() >= 0.999


def test_only_one_tile_is_computed_at_a_time(model: SemanticSegmentor) -> None:
    sizes = []
    model.sem_seg_head.predictor.register_forward_hook(lambda *args: sizes.append(args[-1].shape))
    tiles = segment(model, random_pixels(300, 200), tile=64)
    for number, _ in enumerate(tiles, 1):
        assert len(sizes) == number
    # A tile, a cell for the resize and up to three for the head.
    longest = 64 // (4 if sizes[0][-1] > 16 else 8) + 2 * 4
    assert number == 20 and max(max(size[2:]) for size in sizes) <= longest


def test_progress_is_complete(model: SemanticSegmentor, capsys: pytest.CaptureFixture) -> None:
    for _ in segment(model, random_pixels(50, 70), tile=32, progress=True):
        pass
    assert "classes: 100%" in capsys.readouterr().err
    list(segment(model, random_pixels(50, 70), tile=32))
    assert capsys.readouterr().err == ""


def test_model_on_a_gpu(model: SemanticSegmentor) -> None:
    pixels = random_pixels(50, 70)
    expected = classes_in_one_pass(model, pixels)
    with simulated_gpu():
        found = put_together(segment(model.to("cuda"), pixels, tokens=40, tile=32), pixels)
    assert found.device.type == "cpu"
    assert (found == expected).float().mean() >= 0.999


def test_other_models_are_refused_in_one_line() -> None:
    use_windows = r"cannot be streamed; use sliding windows \(model.window=512\)$"
    adapter = GPViTAdapter(net(group_tokens=(0, 0, 4, 0), final_norm=False))
    head = on_maps(SegFormerHead)[1]
    top = LastLevelP6P7(8, 8, "p5")
    pyramid = SimpleFeaturePyramid(net(), "last_feat", 8, (1.0, 0.5, 0.25), top)
    with_group_norm = segmentor(net(), on_maps(SegFormerHead)[1])
    with_group_norm.sem_seg_head.fusion.norm = nn.GroupNorm(2, 8)
    in_windows, flipped, scaled = (segmentor(net(), head) for _ in range(3))
    in_windows.window, flipped.flip, scaled.scales = 64, True, (0.5, 1.0)
    cases: list[tuple[Any, str]] = [
        (nn.Linear(1, 1), "^a Linear cannot be streamed as a segmentation model$"),
        (segmentor(adapter, head), f"^a segmentation model with GPViTAdapter {use_windows}"),
        (segmentor(on_pyramid()[0], head), f"with SimpleFeaturePyramid {use_windows}"),
        (segmentor(net(), on_pyramid()[1]), f"with SemSegFPNHead on GPViT {use_windows}"),
        (with_group_norm, f"with group norms {use_windows}"),
        (segmentor(pyramid, on_pyramid()[1]), f"with LastLevelP6P7 {use_windows}"),
        (in_windows, "^sliding windows, scales and flips cannot be streamed; set model.window=0, "),
        (flipped, "^sliding windows, scales and flips cannot be streamed"),
        (scaled, "^sliding windows, scales and flips cannot be streamed"),
        (segmentor(net(), head).train(), r"^the model is in training mode; call model.eval\(\)$"),
    ]
    for model, message in cases:
        with pytest.raises(ValueError, match=message):
            next(segment(model, random_pixels(32, 32)))
    with pytest.raises(ValueError, match="^tile must be at least 1 pixel, got 0$"):
        next(segment(segmentor(*on_maps(SegFormerHead)), random_pixels(32, 32), tile=0))
