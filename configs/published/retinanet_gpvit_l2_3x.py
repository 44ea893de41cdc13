"""Official RetinaNet, GPViT-L2 with adapter, COCO 3x. AP as published: 49.0 box.

    python train_net.py --config-file configs/published/retinanet_gpvit_l2_3x.py --num-gpus 8

8 GPUs, 4 images each. Everything that is not set here is as in retinanet_gpvit_l2_1x.py.
"""

from .common.base import three_times
from .retinanet_gpvit_l2_1x import dataloader, lr_multiplier, model, optimizer, train

three_times(dataloader, lr_multiplier, train)
train.output_dir = "output/published/retinanet_gpvit_l2_3x"
