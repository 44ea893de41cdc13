"""The official RetinaNet with Detectron2's head: no features of stride 4, boxes only."""

from detectron2.config import LazyCall as L
from gpvit.config import detectron2_config
from gpvit.modeling import ClampedBox2BoxTransform, LastLevelNormP6P7, RetinaNet

from .base import base, dataloader, lr_multiplier, optimizer, train

model = detectron2_config("common/models/retinanet.py").model
model.update(base, _target_=RetinaNet, max_detections_per_image="${dataloader.max_detections}")
model.backbone.bottom_up.out_features = ["f3", "f4", "f5"]
model.backbone.top_block = L(LastLevelNormP6P7)(channels="${..out_channels}", norm="${..norm}")
model.box2box_transform._target_ = ClampedBox2BoxTransform

dataloader.train.mapper.update(use_instance_mask=False)
dataloader.evaluator.tasks = ("bbox",)
train.clip_norm = 35.0
