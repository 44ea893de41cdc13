r"""Mask R-CNN, GPViT-L1, simple feature pyramid, COCO 1x. AP: not measured.

    python train_net.py --config-file configs/mask_rcnn_gpvit_l1.py --num-gpus 8

8 GPUs, 4 images each. This is the official recipe with bfloat16 instead of float16. Overrides for
3x (36 epochs; milestones after epochs 27 and 33) with large-scale jitter:

    train.max_iter=131_925 'lr_multiplier.milestones=[0.75, 0.9167]' \
        dataloader.train.mapper.augmentations.recipe=lsj
"""

from gpvit.model_zoo import IMAGENET_WEIGHTS

from .common.coco import dataloader
from .common.mask_rcnn import model
from .common.optim import lr_multiplier, optimizer
from .common.train import train

train.update(init_checkpoint=IMAGENET_WEIGHTS["L1"], output_dir="output/mask_rcnn_gpvit_l1")
