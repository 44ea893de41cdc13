"""The published RetinaNet, GPViT-L1 with adapter, COCO 3x. AP as published: 48.1 box."""

from gpvit.published import IMAGENET_WEIGHTS

from .common.retinanet import dataloader, lr_multiplier, model, optimizer, three_times, train

three_times(dataloader, lr_multiplier, train)
train.update(init_checkpoint=IMAGENET_WEIGHTS["L1"], output_dir="output/published/retinanet_gpvit_l1_3x")
