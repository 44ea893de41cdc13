"""Official UPerNet head on GPViT-L2, ADE20K, 160k iterations. mIoU as published: 50.2.

    python train_net.py --config-file configs/published/upernet_gpvit_l2.py --num-gpus 8

8 GPUs, 4 images each. Everything that is not set here is as in upernet_gpvit_l1.py.
"""

from gpvit import SIZES
from gpvit.model_zoo import IMAGENET_WEIGHTS

from .common.upernet import dataloader, lr_multiplier, model, optimizer, train

model.backbone.update(**SIZES["L2"])
train.update(init_checkpoint=IMAGENET_WEIGHTS["L2"], output_dir="output/published/upernet_gpvit_l2")
