"""Common part of the official segmentation models: GPViT's four maps, ADE20K, 160k iterations.

Inference and losses are numerically equivalent to the official implementation.
"""

import torch
from detectron2.config import LazyCall as L
from gpvit import SIZES, GPViT
from gpvit.modeling import SemanticSegmentor
from gpvit.solver import LinearSchedule, parameter_groups

from ...common.ade20k import dataloader
from ...common.mask_rcnn import images
from ...common.train import train

model = L(SemanticSegmentor)(
    backbone=L(GPViT)(
        **SIZES["L1"],
        drop_path_rate=0.1,
        norm="SyncBN",
        out_features=["block2", "block5", "block8", "last_feat"],
    ),
    pixel_mean=images["pixel_mean"],
    pixel_std=images["pixel_std"],
    train_size=512,  # pixels
)

optimizer = L(torch.optim.AdamW)(
    params=L(parameter_groups)(base_lr="${..lr}", weight_decay="${..weight_decay}"),
    lr=1.2e-4,  # for a batch of 32 images
    betas=(0.9, 0.999),
    weight_decay=0.01,
)
lr_multiplier = L(LinearSchedule)(
    max_iter="${train.max_iter}", warmup_iters=1500, warmup_factor=1e-6
)

train.update(max_iter=160_000, eval_period=16_000)
train.checkpointer.period = 16_000
train.amp.enabled = False
