"""The published RetinaNet, GPViT-L3 with adapter, COCO 3x. AP as published: 49.4 box."""

from .common.base import three_times
from .retinanet_gpvit_l3_1x import dataloader, lr_multiplier, model, optimizer, train

three_times(dataloader, lr_multiplier, train)
model.backbone.bottom_up.net.drop_path_rate = 0.2
train.output_dir = "output/published/retinanet_gpvit_l3_3x"
