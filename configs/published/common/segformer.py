"""The official SegFormer head: its own learning rate, ten times that of the backbone."""

from detectron2.config import LazyCall as L
from gpvit.modeling import SegFormerHead

from .segmentation import dataloader, lr_multiplier, model, optimizer, train

model.sem_seg_head = L(SegFormerHead)(
    in_channels="${..backbone.embed_dim}", num_classes=150, norm="SyncBN", ignore_value=255
)
optimizer.params.update(no_decay="norms_and_biases", head_lr_factor=10.0)
