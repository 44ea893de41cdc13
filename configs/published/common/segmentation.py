"""Common part of the official segmentation models: GPViT's four maps, ADE20K, 160k iterations.

Inference and losses are numerically equivalent to the official implementation.
"""

import torch
from detectron2.config import LazyCall as L
from detectron2.data import build_detection_test_loader, get_detection_dataset_dicts
from detectron2.data import transforms as T
from gpvit import SIZES, GPViT
from gpvit.data import (
    CropWithSeveralClasses,
    FitResize,
    PhotometricDistortion,
    SemanticMapper,
    StretchToMultiple,
    build_train_loader,
)
from gpvit.evaluation import SemanticEvaluator
from gpvit.modeling import SemanticSegmentor
from gpvit.solver import LinearSchedule, parameter_groups
from omegaconf import OmegaConf

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

dataloader = OmegaConf.create(dict(short_side=512, max_size=2048))  # pixels

dataloader.train = L(build_train_loader)(
    dataset=L(get_detection_dataset_dicts)(names="ade20k_train", filter_empty=False),
    mapper=L(SemanticMapper)(
        is_train=True,
        augmentations=[
            L(FitResize)(
                short_side="${dataloader.short_side}",
                long_side="${dataloader.max_size}",
                ratio_range=(0.5, 2.0),
            ),
            L(CropWithSeveralClasses)(size="${model.train_size}"),
            L(T.RandomFlip)(prob=0.5, horizontal=True),
            L(PhotometricDistortion)(),
        ],
        image_format="RGB",
    ),
    total_batch_size=32,
    num_workers=4,  # data-loading processes per GPU
    timeout=300,  # seconds to wait for a batch before a data-loading process is considered dead
    pin_memory=False,
    prefetch_factor=2,  # batches that each of them loads in advance
)

dataloader.test = L(build_detection_test_loader)(
    dataset=L(get_detection_dataset_dicts)(names="ade20k_val", filter_empty=False),
    mapper=L(SemanticMapper)(
        is_train=False,
        augmentations=[
            L(FitResize)(short_side="${dataloader.short_side}", long_side="${dataloader.max_size}"),
            L(StretchToMultiple)(multiple=32),
        ],
        image_format="RGB",
    ),
    num_workers=4,
)

dataloader.evaluator = L(SemanticEvaluator)(dataset_name="${..test.dataset.names}")

optimizer = L(torch.optim.AdamW)(
    params=L(parameter_groups)(base_lr="${..lr}", weight_decay="${..weight_decay}"),
    lr=1.2e-4,  # for a batch of 32 images
    betas=(0.9, 0.999),
    weight_decay=0.01,
)
lr_multiplier = L(LinearSchedule)(
    max_iter="${train.max_iter}", warmup_iters=1500, warmup_factor=1e-6
)

train.update(max_iter=160_000, eval_period=16_000, pictures=0)
train.checkpointer.period = 16_000
train.amp.enabled = False
