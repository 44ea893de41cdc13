"""Official classifier GPViT-L4, ImageNet-1k, 300 epochs. Top-1 / top-5 as published: 84.3 / 96.9.

    python train_net.py --config-file configs/published/classifier_gpvit_l4.py --num-gpus 16

16 GPUs, 128 images each. Everything that is not set here is as in classifier_gpvit_l1.py.
"""

from gpvit import SIZES

from .common.classifier import dataloader, lr_multiplier, model, optimizer, train

model.backbone.update(**SIZES["L4"], drop_path_rate=0.3)
model.pooling = "mean"
train.output_dir = "output/published/classifier_gpvit_l4"
