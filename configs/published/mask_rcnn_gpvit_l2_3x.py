"""The published Mask R-CNN, GPViT-L2 with adapter, COCO 3x. AP as published: 51.4 box, 45.1 mask."""

from gpvit import SIZES
from gpvit.published import IMAGENET_WEIGHTS

from .common.mask_rcnn import dataloader, lr_multiplier, model, optimizer, three_times, train

three_times(dataloader, lr_multiplier, train)
model.backbone.bottom_up.net.update(**SIZES["L2"])
train.update(init_checkpoint=IMAGENET_WEIGHTS["L2"], output_dir="output/published/mask_rcnn_gpvit_l2_3x")
