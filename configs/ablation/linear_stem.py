"""Ablation: patches of 8x8 pixels become tokens by one linear layer, as in other transformers."""

import torch
from gpvit import GPViT
from torch import nn

from .mask_rcnn import dataloader, lr_multiplier, model, optimizer, train


class LinearStem(nn.Module):
    """Patches of pixels to tokens: (B, 3, 8H, 8W) -> (B, H, W, C)."""

    def __init__(self, dim):
        super().__init__()
        self.projection = nn.Conv2d(3, dim, 8, stride=8)

    def forward(self, image):
        image = image.contiguous(memory_format=torch.channels_last)  # as in GPViT's own stem
        return self.projection(image).permute(0, 2, 3, 1)


def gpvit_with_linear_stem(*, embed_dim, **options):
    net = GPViT(embed_dim=embed_dim, **options)
    net.patch_embed = LinearStem(embed_dim)
    return net


model.backbone.net._target_ = gpvit_with_linear_stem
