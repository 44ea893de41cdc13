"""Cascade Mask R-CNN, GPViT-L1; all else as in mask_rcnn_gpvit_l1.py. AP: not measured."""

from .common.cascade_mask_rcnn import model
from .mask_rcnn_gpvit_l1 import dataloader, lr_multiplier, optimizer, train

train.update(output_dir="output/cascade_mask_rcnn_gpvit_l1")
