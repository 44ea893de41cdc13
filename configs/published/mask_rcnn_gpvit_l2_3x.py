"""Official Mask R-CNN, GPViT-L2 with adapter, COCO 3x. AP as published: 51.4 box, 45.1 mask.

    python train_net.py --config-file configs/published/mask_rcnn_gpvit_l2_3x.py --num-gpus 8

8 GPUs, 4 images each. Everything that is not set here is as in mask_rcnn_gpvit_l2_1x.py.
"""

from .common.base import three_times
from .mask_rcnn_gpvit_l2_1x import dataloader, lr_multiplier, model, optimizer, train

three_times(dataloader, lr_multiplier, train)
train.output_dir = "output/published/mask_rcnn_gpvit_l2_3x"
