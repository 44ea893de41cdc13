"""The official UPerNet head, with its auxiliary head; evaluated at the end only."""

from detectron2.config import LazyCall as L
from gpvit.modeling import UPerNetHead

from .segmentation import dataloader, lr_multiplier, model, optimizer, train

model.sem_seg_head = L(UPerNetHead)(
    in_channels="${..backbone.embed_dim}", num_classes=150, norm="SyncBN", ignore_value=255
)
optimizer.params.no_decay = "layer_norms"
train.eval_period = 0
