"""Mask R-CNN on GPViT with a simple feature pyramid and the heads of the official detectors."""

from detectron2.config import LazyCall as L
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from gpvit import SIZES, GPViT, SimpleFeaturePyramid
from gpvit.config import detectron2_config

images = dict(
    input_format="RGB", pixel_mean=[123.675, 116.28, 103.53], pixel_std=[58.395, 57.12, 57.375]
)
base = dict(
    **images,
    backbone=L(SimpleFeaturePyramid)(
        net=L(GPViT)(**SIZES["L1"], drop_path_rate=0.1, norm="SyncBN"),
        in_feature="last_feat",
        out_channels=256,
        scale_factors=[2.0, 1.0, 0.5, 0.25],  # p2 to p5
        top_block=L(LastLevelMaxPool)(),  # p6
        norm="LN",
    ),
)
box_head = dict(conv_dims=[256] * 4, conv_norm="SyncBN", fc_dims=[1024])

model = detectron2_config("common/models/mask_rcnn_fpn.py").model
model.update(base)
model.roi_heads.box_head.update(box_head)
model.roi_heads.box_predictor.test_topk_per_image = "${dataloader.max_detections}"
