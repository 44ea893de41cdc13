"""COCO 2017, in $DETECTRON2_DATASETS/coco (default: datasets/coco)."""

from detectron2.config import LazyCall as L
from detectron2.data import build_detection_test_loader, get_detection_dataset_dicts
from detectron2.data import transforms as T
from gpvit.data import InstanceMapper, build_train_loader, train_augmentations
from gpvit.evaluation import COCOEvaluator
from omegaconf import OmegaConf

dataloader = OmegaConf.create(
    dict(
        short_side=800,  # pixels
        max_size=1333,
        max_detections=100,  # per image: returned by the detector, and counted by AP
    )
)

dataloader.train = L(build_train_loader)(
    dataset=L(get_detection_dataset_dicts)(names="coco_2017_train"),
    mapper=L(InstanceMapper)(
        is_train=True,
        augmentations=L(train_augmentations)(
            recipe="resize",
            short_side="${dataloader.short_side}",
            max_size="${dataloader.max_size}",
            lsj_size=1024,
            flip=0.5,
        ),
        image_format="RGB",
        use_instance_mask=True,
        instance_mask_format="bitmask",  # accepts polygons and RLE
        recompute_boxes=True,
    ),
    total_batch_size=32,
    num_workers=4,  # data-loading processes per GPU
    timeout=300,  # seconds to wait for a batch before a data-loading process is considered dead
    pin_memory=False,
    prefetch_factor=2,  # batches that each of them loads in advance
)

dataloader.test = L(build_detection_test_loader)(
    dataset=L(get_detection_dataset_dicts)(names="coco_2017_val", filter_empty=False),
    mapper=L(InstanceMapper)(
        is_train=False,
        augmentations=[
            L(T.ResizeShortestEdge)(
                short_edge_length="${dataloader.short_side}", max_size="${dataloader.max_size}"
            )
        ],
        image_format="RGB",
    ),
    num_workers=4,
)

dataloader.evaluator = L(COCOEvaluator)(
    dataset_name="${..test.dataset.names}",
    tasks=("bbox", "segm"),
    output_dir="${train.output_dir}",
    max_dets_per_image="${dataloader.max_detections}",
)
