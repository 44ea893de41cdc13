"""Official recipe: AdamW, 12 epochs, the learning rate is divided by 10 after epochs 8 and 11."""

import torch
from detectron2.config import LazyCall as L
from detectron2.solver import get_default_optimizer_params
from gpvit.solver import layer_decay, multistep_schedule

no_decay = dict(weight_decay=0.0)

optimizer = L(torch.optim.AdamW)(
    params=L(get_default_optimizer_params)(
        base_lr="${..lr}",
        weight_decay_norm=0.0,
        overrides=dict(
            bias=no_decay, pos_embed=no_decay, level_embed=no_decay, group_token=no_decay
        ),
        lr_factor_func=L(layer_decay)(rate=1.0, num_layers=12),  # 1.0: no decay
    ),
    lr=2e-4,  # for a batch of 32 images
    betas=(0.9, 0.999),
    weight_decay=0.05,
)

lr_multiplier = L(multistep_schedule)(
    max_iter="${train.max_iter}",
    milestones=[8 / 12, 11 / 12],  # fractions of max_iter
    warmup_iters=500,  # linear, from warmup_factor times the learning rate
    warmup_factor=0.001,
)
