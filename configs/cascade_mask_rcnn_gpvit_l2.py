"""Cascade Mask R-CNN, GPViT-L2; all else as in cascade_mask_rcnn_gpvit_l1.py. AP: not measured."""

from gpvit import SIZES
from gpvit.model_zoo import IMAGENET_WEIGHTS

from .cascade_mask_rcnn_gpvit_l1 import dataloader, lr_multiplier, model, optimizer, train

model.backbone.net.update(**SIZES["L2"])
train.update(init_checkpoint=IMAGENET_WEIGHTS["L2"], output_dir="output/cascade_mask_rcnn_gpvit_l2")
