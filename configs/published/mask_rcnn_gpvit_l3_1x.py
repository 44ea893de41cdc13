"""Official Mask R-CNN, GPViT-L3 with adapter, COCO 1x. AP as published: 50.4 box, 44.4 mask.

    python train_net.py --config-file configs/published/mask_rcnn_gpvit_l3_1x.py --num-gpus 8

8 GPUs, 4 images each. Everything that is not set here is as in mask_rcnn_gpvit_l1_1x.py.
"""

from gpvit import SIZES
from gpvit.model_zoo import IMAGENET_WEIGHTS

from .common.mask_rcnn import dataloader, lr_multiplier, model, optimizer, train

model.backbone.bottom_up.net.update(**SIZES["L3"])
train.update(
    init_checkpoint=IMAGENET_WEIGHTS["L3"], output_dir="output/published/mask_rcnn_gpvit_l3_1x"
)
