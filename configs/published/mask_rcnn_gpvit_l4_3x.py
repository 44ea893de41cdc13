"""The published Mask R-CNN, GPViT-L4 with adapter, COCO 3x. AP as published: 52.1 box, 45.7 mask."""

from gpvit import SIZES
from gpvit.published import IMAGENET_WEIGHTS

from .common.mask_rcnn import dataloader, lr_multiplier, model, optimizer, three_times, train

three_times(dataloader, lr_multiplier, train)
model.backbone.bottom_up.net.update(**SIZES["L4"], drop_path_rate=0.2)
train.update(init_checkpoint=IMAGENET_WEIGHTS["L4"], output_dir="output/published/mask_rcnn_gpvit_l4_3x")
