"""ADE20K, in $DETECTRON2_DATASETS/ADEChallengeData2016 (default: datasets/ADEChallengeData2016)."""

from detectron2.config import LazyCall as L
from detectron2.data import build_detection_test_loader, get_detection_dataset_dicts
from detectron2.data import transforms as T
from gpvit.data import (
    CropWithSeveralClasses,
    FitResize,
    PhotometricDistortion,
    SemanticMapper,
    StretchToMultiple,
    build_train_loader,
)
from gpvit.evaluation import SemanticEvaluator
from omegaconf import OmegaConf

dataloader = OmegaConf.create(dict(short_side=512, max_size=2048))  # pixels

dataloader.train = L(build_train_loader)(
    dataset=L(get_detection_dataset_dicts)(names="ade20k_train", filter_empty=False),
    mapper=L(SemanticMapper)(
        is_train=True,
        augmentations=[
            L(FitResize)(
                short_side="${dataloader.short_side}",
                long_side="${dataloader.max_size}",
                ratio_range=(0.5, 2.0),
            ),
            L(CropWithSeveralClasses)(size="${model.train_size}"),
            L(T.RandomFlip)(prob=0.5, horizontal=True),
            L(PhotometricDistortion)(),
        ],
        image_format="RGB",
        ignore_value="${model.sem_seg_head.ignore_value}",
        num_classes="${model.sem_seg_head.num_classes}",
    ),
    total_batch_size=32,
    num_workers=4,  # data-loading processes per GPU
    timeout=300,  # seconds to wait for a batch before a data-loading process is considered dead
    pin_memory=False,
    prefetch_factor=2,  # batches that each of them loads in advance
)

dataloader.test = L(build_detection_test_loader)(
    dataset=L(get_detection_dataset_dicts)(names="ade20k_val", filter_empty=False),
    mapper=L(SemanticMapper)(
        is_train=False,
        augmentations=[
            L(FitResize)(short_side="${dataloader.short_side}", long_side="${dataloader.max_size}"),
            L(StretchToMultiple)(multiple=32),
        ],
        image_format="RGB",
    ),
    num_workers=4,
)

dataloader.evaluator = L(SemanticEvaluator)(
    dataset_name="${..test.dataset.names}",
    output_dir=None,  # "${train.output_dir}" also writes the predicted label maps
)
