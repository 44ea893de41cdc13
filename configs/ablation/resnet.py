"""Ablation, peer: a narrow ResNet-18 with FPN, of as many GFLOPs as the reference."""

from detectron2.config import LazyCall as L
from detectron2.modeling import FPN
from detectron2.modeling.backbone.resnet import BasicBlock, BasicStem, ResNet

from .mask_rcnn import dataloader, lr_multiplier, model, optimizer, train

WIDTHS = [36, 72, 144, 288]  # channels of the stages

stages = []
for stage, width in enumerate(WIDTHS):
    stages.append(
        L(ResNet.make_stage)(
            block_class=BasicBlock,
            num_blocks=2,
            stride_per_block=[2 if stage else 1, 1],
            in_channels=WIDTHS[max(stage - 1, 0)],
            out_channels=width,
            norm="BN",
        )
    )
pyramid = model.backbone
model.backbone = L(FPN)(
    bottom_up=L(ResNet)(
        stem=L(BasicStem)(in_channels=3, out_channels=WIDTHS[0], norm="BN"),
        stages=stages,
        out_features=["res2", "res3", "res4", "res5"],
    ),
    in_features=["res2", "res3", "res4", "res5"],
    out_channels=pyramid.out_channels,
    norm="BN",
    top_block=pyramid.top_block,
)
