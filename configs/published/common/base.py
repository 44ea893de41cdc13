"""Common part of the official Mask R-CNN and RetinaNet: GPViT with its adapter, OpenCV, 1x recipe.

Inference is numerically equivalent to the official implementation. Training differs where
Detectron2's heads do:

- RPN: the best anchor of an object is positive at any IoU (official: from an IoU of 0.3).
- RetinaNet: losses are divided by a running mean of the number of positive anchors (official: by
  their number in the batch).
"""

from detectron2.config import LazyCall as L
from detectron2.data import transforms as T
from detectron2.modeling import FPN
from gpvit import SIZES, GPViT, GPViTAdapter
from gpvit.data import OpenCVResize, multi_scale_crop
from gpvit.solver import parameter_groups

from ...common.coco import dataloader
from ...common.mask_rcnn import images
from ...common.optim import lr_multiplier, optimizer
from ...common.train import train

base = dict(
    **images,
    backbone=L(FPN)(
        bottom_up=L(GPViTAdapter)(
            net=L(GPViT)(**SIZES["L1"], drop_path_rate=0.1, norm="SyncBN", final_norm=False),
            out_features=["f2", "f3", "f4", "f5"],
            drop_path_rate="${.net.drop_path_rate}",
            norm="SyncBN",
        ),
        in_features="${.bottom_up.out_features}",
        out_channels=256,
        norm="SyncBN",
    ),
)

optimizer.params = L(parameter_groups)(
    base_lr="${..lr}",
    weight_decay="${..weight_decay}",
    no_decay="named_norms_and_biases",
    lr_factor_func=optimizer.params.lr_factor_func,
)

resize = L(OpenCVResize)(
    short_edge_length="${dataloader.short_side}", max_size="${dataloader.max_size}"
)
dataloader.train.mapper.augmentations = [resize, L(T.RandomFlip)(prob=0.5, horizontal=True)]
dataloader.train.mapper.recompute_boxes = False
dataloader.test.mapper.augmentations = [resize]


def three_times(dataloader, lr_multiplier, train):
    """Turn the 1x recipe into the 3x recipe: 36 epochs, multi-scale training and random crops.

    The scales do not depend on ``dataloader.short_side``.
    """
    dataloader.train.mapper.augmentations = L(multi_scale_crop)(
        short_sides=list(range(480, 801, 32)), max_size="${dataloader.max_size}"
    )
    lr_multiplier.milestones = [27 / 36, 33 / 36]
    train.max_iter *= 3
