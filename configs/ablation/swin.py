"""Ablation, peer: a small Swin Transformer with FPN, of as many GFLOPs as the reference."""

from detectron2.config import LazyCall as L
from detectron2.modeling import FPN, SwinTransformer

from .mask_rcnn import dataloader, lr_multiplier, model, optimizer, train

pyramid = model.backbone
model.backbone = L(FPN)(
    bottom_up=L(SwinTransformer)(
        embed_dim=42,
        depths=[2, 2, 2, 2],
        num_heads=[1, 2, 4, 8],
        window_size=4,
        drop_path_rate=0.0,
    ),
    in_features=["p0", "p1", "p2", "p3"],
    out_channels=pyramid.out_channels,
    norm="BN",
    top_block=pyramid.top_block,
)
