r"""Ablation, reference: the quick start's backbone with narrow heads, on small images.

    python train_net.py --config-file configs/ablation/mask_rcnn.py --data output/ablation/data

Five minutes on one CPU core, from random weights. The other files of this folder differ from this
one by their backbone; tools/ablation/variants.yaml lists all variants, and tools/ablate.py runs
them.
"""

from detectron2.config import LazyCall as L
from gpvit.solver import multistep_schedule

from ..quickstart import dataloader, model, optimizer, train

WIDTH = 32

model.backbone.net.pretrain_img_size = 128
model.backbone.out_channels = WIDTH
model.proposal_generator.head.in_channels = WIDTH
model.proposal_generator.anchor_generator.sizes = [[8], [16], [32], [64], [128]]
heads = model.roi_heads
heads.box_pooler.canonical_box_size = heads.mask_pooler.canonical_box_size = 64
heads.box_head.update(conv_dims=[WIDTH], fc_dims=[128])
heads.box_head.input_shape.channels = WIDTH
heads.box_predictor.input_shape.channels = 128
heads.mask_head.conv_dims = [WIDTH] * 3
heads.mask_head.input_shape.channels = WIDTH

dataloader.update(short_side=128, max_size=214)
# Decays later than the quick start's cosine, since so short a run is far from convergence.
lr_multiplier = L(multistep_schedule)(
    max_iter="${train.max_iter}", milestones=[0.8, 0.95], warmup_iters=50, warmup_factor=0.01
)
train.update(
    output_dir="output/ablation/run", max_iter=600, clip_norm=0.0, eval_period=0, pictures=0
)
train.checkpointer.period = 200
