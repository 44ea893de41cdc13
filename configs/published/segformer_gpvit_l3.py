"""Official SegFormer head on GPViT-L3, ADE20K, 160k iterations. mIoU as published: 50.8.

    python train_net.py --config-file configs/published/segformer_gpvit_l3.py --num-gpus 8

8 GPUs, 4 images each. Everything that is not set here is as in segformer_gpvit_l1.py.
"""

from gpvit import SIZES
from gpvit.model_zoo import IMAGENET_WEIGHTS

from .common.segformer import dataloader, lr_multiplier, model, optimizer, train

model.backbone.update(**SIZES["L3"], drop_path_rate=0.2)
train.update(
    init_checkpoint=IMAGENET_WEIGHTS["L3"], output_dir="output/published/segformer_gpvit_l3"
)
