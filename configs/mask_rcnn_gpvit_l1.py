"""Mask R-CNN, GPViT-L1, simple feature pyramid, 1x.

    python train_net.py --config-file configs/mask_rcnn_gpvit_l1.py --num-gpus 8

Hardware: made for 8 GPUs, 4 images each. AP: not measured.
"""

from gpvit.checkpoint import IMAGENET_WEIGHTS

from .common.coco import dataloader
from .common.mask_rcnn import model
from .common.optim import lr_multiplier, optimizer
from .common.train import train

train.update(init_checkpoint=IMAGENET_WEIGHTS["L1"], output_dir="output/mask_rcnn_gpvit_l1")
