"""ImageNet-1k, in $DETECTRON2_DATASETS/imagenet (default: datasets/imagenet)."""

from detectron2.config import LazyCall as L
from detectron2.data import build_detection_test_loader, get_detection_dataset_dicts
from detectron2.data import transforms as T
from gpvit.data import (
    CenterCrop,
    ClassificationMapper,
    RandAugment,
    RandomErasing,
    RandomResizedCrop,
    ResizeShorterSide,
    build_train_loader,
)
from gpvit.evaluation import ClassificationEvaluator
from omegaconf import OmegaConf

dataloader = OmegaConf.create(dict(short_side=256, crop_size=224))  # pixels

dataloader.train = L(build_train_loader)(
    dataset=L(get_detection_dataset_dicts)(names="imagenet_1k_train", filter_empty=False),
    mapper=L(ClassificationMapper)(
        is_train=True,
        augmentations=[
            L(RandomResizedCrop)(
                size="${dataloader.crop_size}", area=(0.08, 1.0), ratio=(3 / 4, 4 / 3)
            ),
            L(T.RandomFlip)(prob=0.5, horizontal=True),
            L(RandAugment)(magnitude=9, deviation=0.5),  # needs timm
            L(RandomErasing)(prob=0.25, area=(0.02, 1 / 3), ratio=(0.3, 3.3)),
        ],
        image_format="RGB",
    ),
    total_batch_size=2048,
    num_workers=8,  # data-loading processes per GPU
    timeout=300,  # seconds to wait for a batch before a data-loading process is considered dead
    pin_memory=False,
    prefetch_factor=2,  # batches that each of them loads in advance
)

dataloader.test = L(build_detection_test_loader)(
    dataset=L(get_detection_dataset_dicts)(names="imagenet_1k_val", filter_empty=False),
    mapper=L(ClassificationMapper)(
        is_train=False,
        augmentations=[
            L(ResizeShorterSide)(size="${dataloader.short_side}"),
            L(CenterCrop)(size="${dataloader.crop_size}"),
        ],
        image_format="RGB",
    ),
    batch_size=64,
    num_workers=8,
)

dataloader.evaluator = L(ClassificationEvaluator)(
    dataset_name="${..test.dataset.names}", output_dir="${train.output_dir}"
)
