"""Mask R-CNN, GPViT-L3, simple feature pyramid, COCO 1x. AP: not measured.

    python train_net.py --config-file configs/mask_rcnn_gpvit_l3.py --num-gpus 8

8 GPUs, 4 images each. Everything that is not set here is as in mask_rcnn_gpvit_l1.py.
"""

from gpvit import SIZES
from gpvit.model_zoo import IMAGENET_WEIGHTS

from .mask_rcnn_gpvit_l1 import dataloader, lr_multiplier, model, optimizer, train

model.backbone.net.update(**SIZES["L3"])
train.update(init_checkpoint=IMAGENET_WEIGHTS["L3"], output_dir="output/mask_rcnn_gpvit_l3")
