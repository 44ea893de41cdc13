"""The published RetinaNet, GPViT-L1 with adapter, COCO 3x. AP as published: 48.1 box."""

from .common.base import three_times
from .retinanet_gpvit_l1_1x import dataloader, lr_multiplier, model, optimizer, train

three_times(dataloader, lr_multiplier, train)
train.output_dir = "output/published/retinanet_gpvit_l1_3x"
