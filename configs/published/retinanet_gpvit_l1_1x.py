r"""Official RetinaNet, GPViT-L1 with adapter, COCO 1x. AP as published: 45.8 box.

    W=https://github.com/ChenhongyiYang/GPViT/releases/download/v0.0.1/gpvit_l1_retinanet_1x.pth
    python train_net.py --config-file configs/published/retinanet_gpvit_l1_1x.py --eval-only \
        train.init_checkpoint=$W train.output_dir=output/evaluation
    python train_net.py --config-file configs/published/retinanet_gpvit_l1_1x.py --num-gpus 8

The first command evaluates the official weights, the second trains from ImageNet weights: 8 GPUs,
4 images each, in bfloat16 (official: float16). See common/base.py for other differences.
"""

from gpvit.model_zoo import IMAGENET_WEIGHTS

from .common.retinanet import dataloader, lr_multiplier, model, optimizer, train

train.update(
    init_checkpoint=IMAGENET_WEIGHTS["L1"], output_dir="output/published/retinanet_gpvit_l1_1x"
)
