"""Cascade Mask R-CNN with three box heads, each like that of common/mask_rcnn.py."""

from gpvit.config import detectron2_config

from .mask_rcnn import base, box_head

model = detectron2_config("common/models/cascade_rcnn.py").model
model.update(base)
for head in model.roi_heads.box_heads:
    head.update(box_head)
for predictor in model.roi_heads.box_predictors:
    predictor.test_topk_per_image = "${dataloader.max_detections}"
