r"""Official classifier GPViT-L1, ImageNet-1k, 300 epochs. Top-1 / top-5 as published: 80.5 / 95.4.

    W=https://github.com/ChenhongyiYang/GPViT/releases/download/v0.0.1/gpvit_l1_in1k_300e.pth
    python train_net.py --config-file configs/published/classifier_gpvit_l1.py --eval-only \
        train.init_checkpoint=$W train.output_dir=output/evaluation
    python train_net.py --config-file configs/published/classifier_gpvit_l1.py --num-gpus 16

The first command evaluates the official weights, the second trains from random weights: 16 GPUs,
128 images each. Training needs timm, for RandAugment.
"""

from .common.classifier import dataloader, lr_multiplier, model, optimizer, train

train.output_dir = "output/published/classifier_gpvit_l1"
