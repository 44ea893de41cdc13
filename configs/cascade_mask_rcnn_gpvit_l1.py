"""Cascade Mask R-CNN, GPViT-L1, simple feature pyramid, COCO 1x. AP: not measured.

    python train_net.py --config-file configs/cascade_mask_rcnn_gpvit_l1.py --num-gpus 8

8 GPUs, 4 images each. Everything that is not set here is as in mask_rcnn_gpvit_l1.py.
"""

from .common.cascade_mask_rcnn import model
from .mask_rcnn_gpvit_l1 import dataloader, lr_multiplier, optimizer, train

train.update(output_dir="output/cascade_mask_rcnn_gpvit_l1")
