r"""Quick start: a small GPViT that classifies the objects of the synthetic dataset.

    python train_net.py --config-file configs/quickstart_classifier.py --data output/quickstart/data

About two minutes on two CPU cores, batches of 32 objects, from random weights.
"""

from detectron2.config import LazyCall as L
from detectron2.data import transforms as T
from gpvit.data import RandomResizedCrop

from .published.common.classifier import dataloader, lr_multiplier, model, optimizer, train

model.backbone.update(
    embed_dim=96,
    num_heads=3,
    group_tokens=[0, 16, 0, 8],
    drop_path_rate=0.0,
    pretrain_img_size=64,
)
model.update(num_classes=3, num_heads=3, mixup=0.0, cutmix=0.0)

dataloader.update(short_side=64, crop_size=64)
dataloader.train.update(total_batch_size=32, num_workers=1)
dataloader.train.mapper.augmentations = [
    L(RandomResizedCrop)(size="${dataloader.crop_size}", area=(0.5, 1.0)),
    L(T.RandomFlip)(prob=0.5, horizontal=True),
]
dataloader.test.update(batch_size=32, num_workers=1)

optimizer.lr = 1e-3
lr_multiplier.update(warmup_iters=50, warmup_factor=0.01)
train.update(
    output_dir="output/quickstart_classifier",
    max_iter=500,
    seed=0,
    eval_period=250,
    log_period=20,
    best_metric="classification/top1",
)
train.checkpointer.update(period=250, max_to_keep=1)
train.amp.dtype = "bfloat16"
