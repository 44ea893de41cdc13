"""Official Mask R-CNN, GPViT-L3 with adapter, COCO 3x. AP as published: 51.6 box, 45.2 mask.

    python train_net.py --config-file configs/published/mask_rcnn_gpvit_l3_3x.py --num-gpus 8

8 GPUs, 4 images each. Everything that is not set here is as in mask_rcnn_gpvit_l3_1x.py.
"""

from .common.base import three_times
from .mask_rcnn_gpvit_l3_1x import dataloader, lr_multiplier, model, optimizer, train

three_times(dataloader, lr_multiplier, train)
model.backbone.bottom_up.net.drop_path_rate = 0.2
train.output_dir = "output/published/mask_rcnn_gpvit_l3_3x"
