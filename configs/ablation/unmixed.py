"""Ablation: group tokens gather from the map and propagate back to it, but do not exchange."""

from gpvit import GPViT
from gpvit.modeling.backbone.gpvit import GroupPropagationBlock
from torch import nn

from .mask_rcnn import dataloader, lr_multiplier, model, optimizer, train


def unmixed_gpvit(**options):
    net = GPViT(**options)
    for block in net.blocks:
        if isinstance(block, GroupPropagationBlock):
            block.mixer = nn.Identity()
    return net


model.backbone.net._target_ = unmixed_gpvit
