"""Official RetinaNet, GPViT-L4 with adapter, COCO 3x. AP as published: 49.8 box.

    python train_net.py --config-file configs/published/retinanet_gpvit_l4_3x.py --num-gpus 8

8 GPUs, 4 images each. Everything that is not set here is as in retinanet_gpvit_l4_1x.py.
"""

from .common.base import three_times
from .retinanet_gpvit_l4_1x import dataloader, lr_multiplier, model, optimizer, train

three_times(dataloader, lr_multiplier, train)
model.backbone.bottom_up.net.drop_path_rate = 0.2
train.output_dir = "output/published/retinanet_gpvit_l4_3x"
