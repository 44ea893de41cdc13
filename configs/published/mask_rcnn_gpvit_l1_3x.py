"""The published Mask R-CNN, GPViT-L1 with adapter, COCO 3x. AP as published: 50.2 box, 44.3 mask."""

from gpvit.published import IMAGENET_WEIGHTS

from .common.mask_rcnn import dataloader, lr_multiplier, model, optimizer, three_times, train

three_times(dataloader, lr_multiplier, train)
train.update(init_checkpoint=IMAGENET_WEIGHTS["L1"], output_dir="output/published/mask_rcnn_gpvit_l1_3x")
