"""Quick start: a small GPViT Mask R-CNN on the synthetic dataset. Mask AP there: 38.6 % (measured).

    make quickstart

7 to 20 minutes on two CPU cores, batches of 4 images. To be fast, it has narrow layers and few
proposals.
"""

from detectron2.config import LazyCall as L
from detectron2.solver import WarmupParamScheduler
from fvcore.common.param_scheduler import CosineParamScheduler

from .common.coco import dataloader
from .common.mask_rcnn import model
from .common.optim import optimizer
from .common.train import train

WIDTH = 64

model.backbone.net.update(
    embed_dim=96,
    num_heads=3,
    group_tokens=[0, 32, 0, 16],
    drop_path_rate=0.0,
    norm="BN",
    pretrain_img_size=192,
)
model.backbone.out_channels = WIDTH
model.proposal_generator.update(
    batch_size_per_image=64, pre_nms_topk=(300, 300), post_nms_topk=(150, 100)
)
model.proposal_generator.head.in_channels = WIDTH
model.proposal_generator.anchor_generator.sizes = [[12], [24], [48], [96], [192]]
heads = model.roi_heads
heads.update(batch_size_per_image=32, positive_fraction=0.5)
heads.box_pooler.update(sampling_ratio=2, canonical_box_size=96)
heads.box_head.update(conv_dims=[WIDTH], conv_norm="BN", fc_dims=[256])
heads.box_head.input_shape.channels = WIDTH
heads.box_predictor.cls_agnostic_bbox_reg = True
heads.box_predictor.input_shape.channels = 256
heads.mask_pooler.update(sampling_ratio=2, canonical_box_size=96)
heads.mask_head.update(conv_dims=[WIDTH] * 3, conv_norm="BN")
heads.mask_head.input_shape.channels = WIDTH

dataloader.update(short_side=192, max_size=320)
dataloader.train.update(total_batch_size=4, num_workers=1)
dataloader.test.num_workers = 1

optimizer.lr = 1e-3
optimizer.params.lr_factor_func.num_layers = 4
lr_multiplier = L(WarmupParamScheduler)(
    scheduler=L(CosineParamScheduler)(start_value=1.0, end_value=0.01),
    warmup_factor=0.01,
    warmup_length=0.05,
)
train.update(
    output_dir="output/quickstart",
    max_iter=1_050,
    seed=0,
    clip_norm=1.0,
    eval_period=350,
)
train.checkpointer.update(period=200, max_to_keep=1)
