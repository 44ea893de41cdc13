"""Official Mask R-CNN, GPViT-L1 with adapter, COCO 3x. AP as published: 50.2 box, 44.3 mask.

    python train_net.py --config-file configs/published/mask_rcnn_gpvit_l1_3x.py --num-gpus 8

8 GPUs, 4 images each. Everything that is not set here is as in mask_rcnn_gpvit_l1_1x.py.
"""

from .common.base import three_times
from .mask_rcnn_gpvit_l1_1x import dataloader, lr_multiplier, model, optimizer, train

three_times(dataloader, lr_multiplier, train)
train.output_dir = "output/published/mask_rcnn_gpvit_l1_3x"
