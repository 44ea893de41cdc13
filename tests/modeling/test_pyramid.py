"""The simple feature pyramid follows Detectron2's conventions, for a stride-8 map."""

import pytest
import torch
import torch.nn.functional as F
from detectron2.layers import ShapeSpec
from detectron2.layers.batch_norm import LayerNorm
from detectron2.modeling import Backbone
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from detectron2.modeling.backbone.vit import SimpleFeaturePyramid as Detectron2Pyramid
from detectron2.structures import ImageList
from gpvit import SimpleFeaturePyramid
from gpvit.modeling.backbone.pyramid import ChannelLayerNorm
from torch import Tensor, nn


class OneMap(Backbone):
    """A backbone that returns the image, resampled to a stride and repeated over the channels."""

    def __init__(self, stride: int = 8, channels: int = 12) -> None:
        super().__init__()
        self.stride, self.channels = stride, channels

    @property
    def size_divisibility(self) -> int:
        return 2 * self.stride

    def output_shape(self) -> dict[str, ShapeSpec]:
        return {"map": ShapeSpec(channels=self.channels, stride=self.stride)}

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"map": F.avg_pool2d(x, self.stride).repeat(1, self.channels // 3, 1, 1)}


def pyramid(
    net: Backbone | None = None, scale_factors=(2.0, 1.0, 0.5, 0.25), **options
) -> SimpleFeaturePyramid:
    torch.manual_seed(0)
    return SimpleFeaturePyramid(net or OneMap(), "map", 16, scale_factors, **options)


@torch.no_grad()
def test_default_factors_give_p2_to_p6() -> None:
    net = pyramid(top_block=LastLevelMaxPool())
    out = net(torch.randn(2, 3, 64, 128))
    assert list(out) == ["p2", "p3", "p4", "p5", "p6"]
    shapes = net.output_shape()
    for name, level in out.items():
        stride = 2 ** int(name[1:])
        assert level.shape == (2, 16, 64 // stride, 128 // stride)
        assert (shapes[name].channels, shapes[name].stride) == (16, stride)
    assert torch.equal(out["p6"], out["p5"][:, :, ::2, ::2])


@pytest.mark.parametrize(
    ("norm", "factors"),
    [("LN", (4.0, 2.0, 1.0, 0.5)), ("BN", (4.0, 2.0, 1.0, 0.5)), ("", (2.0, 1.0, 0.5))],
)
@torch.no_grad()
def test_pyramid_matches_detectron2_at_stride_16(norm: str, factors: tuple[float, ...]) -> None:
    ours = pyramid(OneMap(stride=16), factors, norm=norm, top_block=LastLevelMaxPool())
    options = dict(norm=norm, top_block=LastLevelMaxPool())
    theirs = Detectron2Pyramid(OneMap(stride=16), "map", 16, factors, **options)
    weights = ours.state_dict()
    for name, tensor in theirs.state_dict().items():
        assert weights[name].shape == tensor.shape
    theirs.load_state_dict(weights)
    x = torch.randn(1, 3, 64, 96)
    expected = theirs(x)
    for name, level in ours(x).items():
        torch.testing.assert_close(level, expected[name], rtol=1e-4, atol=1e-5)


def test_channel_norm_matches_detectron2() -> None:
    ours, theirs = ChannelLayerNorm(6), LayerNorm(6)
    for norm in (ours, theirs):
        nn.init.normal_(norm.weight, generator=torch.manual_seed(0))
    x = torch.randn(2, 6, 4, 5) * 1e-3  # small enough for the epsilon to matter
    torch.testing.assert_close(ours(x), theirs(x))


@pytest.mark.parametrize(
    ("factors", "names"), [((4.0, 1.0), ["p1", "p3"]), ((1.0,), ["p3"]), ((0.125,), ["p6"])]
)
@torch.no_grad()
def test_other_factors_give_other_levels(factors: tuple[float, ...], names: list[str]) -> None:
    out = pyramid(scale_factors=factors)(torch.randn(1, 3, 64, 64))
    assert list(out) == names
    assert [level.shape[-1] for level in out.values()] == [8 * factor for factor in factors]


@pytest.mark.parametrize("factors", [(3.0, 1.0), (1.0, 2.0)])
def test_invalid_scale_factors_raise(factors: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="descending powers of two"):
        pyramid(scale_factors=factors)


def test_images_are_padded_to_stride_of_coarsest_level() -> None:
    assert pyramid().size_divisibility == 32
    assert pyramid(scale_factors=(2.0, 1.0)).size_divisibility == 16  # the backbone's own
    for square_pad, expected in ((0, (64, 96)), (128, (128, 128))):
        net = pyramid(square_pad=square_pad)
        batch = ImageList.from_tensors(
            [torch.zeros(3, 50, 70)],
            net.size_divisibility,
            padding_constraints=net.padding_constraints,
        )
        assert batch.tensor.shape[-2:] == expected
