r"""Official SegFormer head on GPViT-L1, ADE20K, 160k iterations. mIoU as published: 46.9.

    W=https://github.com/ChenhongyiYang/GPViT/releases/download/v0.0.1/gpvit_l1_segformer.pth
    python train_net.py --config-file configs/published/segformer_gpvit_l1.py --eval-only \
        train.init_checkpoint=$W train.output_dir=output/evaluation
    python train_net.py --config-file configs/published/segformer_gpvit_l1.py --num-gpus 8

The first command evaluates the official weights, the second trains from ImageNet weights: 8 GPUs,
4 images each (official: 16 GPUs, 2 images each), without mixed precision.
"""

from gpvit.model_zoo import IMAGENET_WEIGHTS

from .common.segformer import dataloader, lr_multiplier, model, optimizer, train

train.update(
    init_checkpoint=IMAGENET_WEIGHTS["L1"], output_dir="output/published/segformer_gpvit_l1"
)
