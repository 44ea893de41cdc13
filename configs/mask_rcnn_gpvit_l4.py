"""Mask R-CNN, GPViT-L4; all else as in mask_rcnn_gpvit_l1.py. AP: not measured."""

from gpvit import SIZES
from gpvit.model_zoo import IMAGENET_WEIGHTS

from .mask_rcnn_gpvit_l1 import dataloader, lr_multiplier, model, optimizer, train

model.backbone.net.update(**SIZES["L4"], drop_path_rate=0.2)
train.update(init_checkpoint=IMAGENET_WEIGHTS["L4"], output_dir="output/mask_rcnn_gpvit_l4")
