"""The official Mask R-CNN with Detectron2's heads."""

from detectron2.config import LazyCall as L
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from gpvit.config import detectron2_config
from gpvit.modeling import ClampedBox2BoxTransform

from ...common.mask_rcnn import box_head
from .base import base, dataloader, lr_multiplier, optimizer, train

model = detectron2_config("common/models/mask_rcnn_fpn.py").model
model.update(base)
model.backbone.top_block = L(LastLevelMaxPool)()
model.roi_heads.box_head.update(box_head)
model.roi_heads.box_predictor.test_topk_per_image = "${dataloader.max_detections}"
for part in (model.proposal_generator, model.roi_heads.box_predictor):
    part.box2box_transform._target_ = ClampedBox2BoxTransform
