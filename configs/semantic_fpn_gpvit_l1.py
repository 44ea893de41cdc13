r"""Detectron2's semantic FPN head, GPViT-L1, simple feature pyramid, ADE20K. mIoU: not measured.

    python train_net.py --config-file configs/semantic_fpn_gpvit_l1.py --num-gpus 8

8 GPUs, 4 images each. Data, augmentation and schedule are those of the official segmentation
models. The pyramid has strides 8, 16 and 32, whose sum at stride 8 is the head's input.
"""

from detectron2.config import LazyCall as L
from detectron2.layers import ShapeSpec
from detectron2.modeling.meta_arch.semantic_seg import SemSegFPNHead
from gpvit.model_zoo import IMAGENET_WEIGHTS
from gpvit.modeling import SemanticSegmentor

from .common.mask_rcnn import base, images
from .published.common.segmentation import dataloader, lr_multiplier, optimizer, train

LEVELS = {"p3": 8, "p4": 16, "p5": 32}  # name: stride

model = L(SemanticSegmentor)(
    backbone=base["backbone"],
    sem_seg_head=L(SemSegFPNHead)(
        input_shape={name: L(ShapeSpec)(channels=256, stride=s) for name, s in LEVELS.items()},
        num_classes=150,
        conv_dims=128,
        common_stride=8,
        norm="SyncBN",
        ignore_value=255,
    ),
    pixel_mean=images["pixel_mean"],
    pixel_std=images["pixel_std"],
    train_size=512,  # pixels
)
model.backbone.update(scale_factors=[1.0, 0.5, 0.25], top_block=None)
optimizer.params.no_decay = "norms_and_biases"
train.update(init_checkpoint=IMAGENET_WEIGHTS["L1"], output_dir="output/semantic_fpn_gpvit_l1")
