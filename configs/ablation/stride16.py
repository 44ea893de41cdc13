"""Ablation: the map has stride 16: the second convolution has patches of 8x8, not of 4x4."""

from gpvit import GPViT
from torch import nn

from .mask_rcnn import dataloader, lr_multiplier, model, optimizer, train


class CoarseGPViT(GPViT):
    """GPViT at stride 16: patches of the stem's map are 8x8 instead of 4x4."""

    def __init__(self, *, pretrain_img_size, **options):
        super().__init__(pretrain_img_size=pretrain_img_size // 2, **options)
        projection = self.patch_embed.projection
        self.patch_embed.projection = nn.Conv2d(
            projection.in_channels, projection.out_channels, 8, stride=8
        )
        self._out_feature_strides = dict.fromkeys(self._out_features, 16)

    @property
    def size_divisibility(self):
        return 32


model.backbone.net._target_ = CoarseGPViT
model.backbone.scale_factors = [4.0, 2.0, 1.0, 0.5]
