"""Ablation: the adapter and the FPN of the published detectors instead of the simple pyramid.

Two interactions for the four blocks (published: four for twelve), and a stem as narrow relative to
the backbone as in L1.
"""

from detectron2.config import LazyCall as L
from detectron2.modeling import FPN
from gpvit import GPViTAdapter

from .mask_rcnn import dataloader, lr_multiplier, model, optimizer, train

pyramid = model.backbone
pyramid.net.final_norm = False
model.backbone = L(FPN)(
    bottom_up=L(GPViTAdapter)(net=pyramid.net, num_interactions=2, stem_width=32, norm="BN"),
    in_features=["f2", "f3", "f4", "f5"],
    out_channels=pyramid.out_channels,
    norm="BN",
    top_block=pyramid.top_block,
)
