"""Ablation: stride 16 on images twice as large, so that an object has as many tokens as usual.

Pyramid and heads see maps of the same size as in the reference: their strides, and the sizes of
anchors and boxes that belong to a level, are doubled.
"""

from detectron2.modeling.backbone.fpn import LastLevelMaxPool

from .stride16 import dataloader, lr_multiplier, model, optimizer, train


class LastLevelOfP6(LastLevelMaxPool):
    """The last level of the pyramid, from p6 instead of p5."""

    def __init__(self):
        super().__init__()
        self.in_feature = "p6"


LEVELS = ["p3", "p4", "p5", "p6", "p7"]

model.backbone.net.pretrain_img_size *= 2
model.backbone.scale_factors = [2.0, 1.0, 0.5, 0.25]
model.backbone.top_block._target_ = LastLevelOfP6
proposals, heads = model.proposal_generator, model.roi_heads
proposals.in_features = LEVELS
proposals.anchor_generator.sizes = [[16], [32], [64], [128], [256]]
proposals.anchor_generator.strides = [8, 16, 32, 64, 128]
heads.box_in_features = heads.mask_in_features = LEVELS[:-1]
for pooler in (heads.box_pooler, heads.mask_pooler):
    pooler.scales = [1 / 8, 1 / 16, 1 / 32, 1 / 64]
    pooler.canonical_box_size *= 2

dataloader.update(short_side=256, max_size=428)
