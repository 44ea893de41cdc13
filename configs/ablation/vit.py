"""Ablation, peer: a plain ViT with the pyramid of ViTDet, of as many GFLOPs as the reference.

Patches of 16x16 pixels, global attention with relative positions in every block.
"""

from detectron2.config import LazyCall as L
from detectron2.modeling import ViT

from .mask_rcnn import dataloader, lr_multiplier, model, optimizer, train

model.backbone.net = L(ViT)(
    img_size=128,
    embed_dim=162,
    depth=8,
    num_heads=3,
    use_rel_pos=True,
    pretrain_img_size=128,
    pretrain_use_cls_token=False,
)
# Not Detectron2's pyramid, which does not pad images to multiples of the patches.
model.backbone.scale_factors = [4.0, 2.0, 1.0, 0.5]
