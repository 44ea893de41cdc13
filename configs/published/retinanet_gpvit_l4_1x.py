"""The published RetinaNet, GPViT-L4 with adapter, COCO 1x. AP as published: 48.7 box."""

from gpvit import SIZES
from gpvit.model_zoo import IMAGENET_WEIGHTS

from .common.retinanet import dataloader, lr_multiplier, model, optimizer, train

model.backbone.bottom_up.net.update(**SIZES["L4"])
train.update(
    init_checkpoint=IMAGENET_WEIGHTS["L4"], output_dir="output/published/retinanet_gpvit_l4_1x"
)
