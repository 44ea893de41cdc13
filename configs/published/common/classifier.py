"""Common part of the official classifiers: ImageNet-1k, 300 epochs, batches of 2048 images.

Inference is numerically equivalent to the official implementation.
"""

import torch
from detectron2.config import LazyCall as L
from gpvit import SIZES, GPViT
from gpvit.modeling import ImageClassifier
from gpvit.solver import CosineSchedule, parameter_groups

from ...common.imagenet import dataloader
from ...common.mask_rcnn import images
from ...common.train import train

EPOCH = 625  # iterations: 1,281,167 images in batches of 2048

model = L(ImageClassifier)(
    backbone=L(GPViT)(**SIZES["L1"], drop_path_rate=0.2, norm="BN"),  # not synchronized
    num_classes=1000,
    pooling="attention",
    pixel_mean=images["pixel_mean"],
    pixel_std=images["pixel_std"],
    label_smoothing=0.1,
    mixup=0.8,
    cutmix=1.0,
)

optimizer = L(torch.optim.AdamW)(
    params=L(parameter_groups)(
        base_lr="${..lr}", weight_decay="${..weight_decay}", no_decay="norms_and_biases"
    ),
    lr=2e-3,  # for a batch of 2048 images
    betas=(0.9, 0.999),
    weight_decay=0.05,
)
lr_multiplier = L(CosineSchedule)(
    max_iter="${train.max_iter}", warmup_iters=15 * EPOCH, warmup_factor=1e-3
)

train.update(max_iter=300 * EPOCH, eval_period=5 * EPOCH, log_period=50, clip_norm=1.0)
train.checkpointer.period = 5 * EPOCH
train.amp.dtype = "float16"
