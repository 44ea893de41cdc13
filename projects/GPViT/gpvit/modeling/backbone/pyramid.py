"""The simple feature pyramid: p2 to p6 from a single stride-8 map, without lateral connections.

As in ViTDet (Li et al., ECCV 2022). Detectron2's implementation expects a stride-16 map and has no
scale 0.25; names and options are the same here.
"""

import math
from collections.abc import Sequence

from detectron2.layers import Conv2d, get_norm
from detectron2.modeling import Backbone
from torch import Tensor, nn


class ChannelLayerNorm(nn.LayerNorm):
    """LayerNorm over the channels of a (B, C, H, W) map.

    Detectron2's own ("LN") computes the same in five passes over the map, and is no norm for
    Detectron2's optimizer builder.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x.permute(0, 2, 3, 1))  # (B, C, H, W) -> (B, H, W, C)
        return x.permute(0, 3, 1, 2)  # views where x is channels-last


class SimpleFeaturePyramid(Backbone):
    """Resamples a map of ``net`` to several strides, each followed by a 1x1 and a 3x3 convolution.

    Args:
        net: the backbone; its ``in_feature`` map is (B, C, H/s, W/s) at stride s.
        in_feature: name of that map.
        out_channels: channels of every level.
        scale_factors: powers of two, descending; each gives the level "p{log2(s / factor)}".
        top_block: computes further levels from the last one, for example ``LastLevelMaxPool``.
        norm: norm after each convolution: "LN", a name that :func:`detectron2.layers.get_norm`
            accepts, or "" for none.
        square_pad: if positive, images are padded to squares of this side in pixels.

    Raises:
        ValueError: the scale factors are not descending powers of two.
    """

    def __init__(
        self,
        net: Backbone,
        in_feature: str,
        out_channels: int,
        scale_factors: Sequence[float],
        top_block: nn.Module | None = None,
        norm: str = "LN",
        square_pad: int = 0,
    ) -> None:
        super().__init__()
        source = net.output_shape()[in_feature]
        strides = [source.stride / scale for scale in scale_factors]
        levels = [math.log2(stride) for stride in strides]
        if not all(level.is_integer() for level in levels) or levels != sorted(levels):
            raise ValueError(
                f"scale_factors must be descending powers of two, got {tuple(scale_factors)}"
            )

        self.net = net
        self.in_feature = in_feature
        self.top_block = top_block
        self._stages = [f"simfp_{level:.0f}" for level in levels]
        for name, scale in zip(self._stages, scale_factors):
            self.add_module(name, self._make_stage(source.channels, out_channels, scale, norm))

        if top_block is not None:
            for _ in range(top_block.num_levels):  # type: ignore[arg-type]  # typed as a Module
                strides.append(strides[-1] * 2)
        self._out_features = [f"p{math.log2(stride):.0f}" for stride in strides]
        self._out_feature_strides = dict(zip(self._out_features, map(int, strides)))
        self._out_feature_channels = dict.fromkeys(self._out_features, out_channels)
        self._size_divisibility = math.lcm(
            net.size_divisibility or 1, int(source.stride / scale_factors[-1])
        )
        self._square_pad = square_pad

    @staticmethod
    def _make_stage(channels: int, out_channels: int, scale: float, norm: str) -> nn.Sequential:
        """(B, channels, H, W) -> (B, out_channels, scale * H, scale * W)."""

        def make_norm(channels: int) -> nn.Module | None:
            return ChannelLayerNorm(channels) if norm == "LN" else get_norm(norm, channels)

        layers: list[nn.Module] = []
        for i in range(round(math.log2(max(scale, 1)))):
            if i:
                layers += [make_norm(channels) or nn.Identity(), nn.GELU()]
            layers.append(nn.ConvTranspose2d(channels, channels // 2, kernel_size=2, stride=2))
            channels //= 2
        if scale < 1:
            layers.append(nn.MaxPool2d(kernel_size=round(1 / scale)))
        for kernel in (1, 3):
            conv_norm = make_norm(out_channels)
            options = dict(padding=kernel // 2, bias=conv_norm is None, norm=conv_norm)
            layers.append(Conv2d(channels, out_channels, kernel, **options))
            channels = out_channels
        return nn.Sequential(*layers)

    @property
    def size_divisibility(self) -> int:
        return self._size_divisibility

    @property
    def padding_constraints(self) -> dict[str, int]:
        return {"size_divisibility": self._size_divisibility, "square_size": self._square_pad}

    def stages(self) -> list[nn.Module]:
        """The layers of each level but those of ``top_block``: map (B, C, H, W) to level."""
        return [self.get_submodule(name) for name in self._stages]

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Compute the levels.

        Args:
            image: (B, 3, H, W), sides multiples of ``size_divisibility``.

        Returns:
            "p2", "p3", ... in this order, each (B, out_channels, H / stride, W / stride).
        """
        features = self.net(image)
        source = features[self.in_feature]
        outputs = [stage(source) for stage in self.stages()]
        if self.top_block is not None:
            top = dict(zip(self._out_features, outputs)) | features
            outputs += self.top_block(top[self.top_block.in_feature])
        return dict(zip(self._out_features, outputs))
