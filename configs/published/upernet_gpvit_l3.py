"""Official UPerNet head on GPViT-L3, ADE20K, 160k iterations. mIoU as published: 51.7.

    python train_net.py --config-file configs/published/upernet_gpvit_l3.py --num-gpus 8

8 GPUs, 4 images each. Everything that is not set here is as in upernet_gpvit_l1.py.
"""

from gpvit import SIZES
from gpvit.model_zoo import IMAGENET_WEIGHTS

from .common.upernet import dataloader, lr_multiplier, model, optimizer, train

model.backbone.update(**SIZES["L3"], drop_path_rate=0.2)
train.update(init_checkpoint=IMAGENET_WEIGHTS["L3"], output_dir="output/published/upernet_gpvit_l3")
