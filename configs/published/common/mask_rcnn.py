"""The published Mask R-CNN on Detectron2's heads."""

from detectron2.config import LazyCall as L
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from gpvit.detectors import ClampedBox2BoxTransform
from gpvit.engine import detectron2_config

from .base import base, dataloader, lr_multiplier, optimizer, three_times, train

model = detectron2_config("common/models/mask_rcnn_fpn.py").model
model.update(base)
model.backbone.top_block = L(LastLevelMaxPool)()
model.proposal_generator.box2box_transform = L(ClampedBox2BoxTransform)(weights=[1.0, 1.0, 1.0, 1.0])
model.roi_heads.box_head.update(conv_dims=[256] * 4, conv_norm="SyncBN", fc_dims=[1024])
model.roi_heads.box_predictor.box2box_transform = L(ClampedBox2BoxTransform)(weights=(10, 10, 5, 5))
