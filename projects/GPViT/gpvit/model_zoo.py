"""The released weights, and the AP of the detectors as published."""

from .modeling import SIZES

RELEASE = "https://github.com/ChenhongyiYang/GPViT/releases/download/v0.0.1"
IMAGENET_WEIGHTS = {size: f"{RELEASE}/gpvit_{size.lower()}_in1k_300e.pth" for size in SIZES}

# AP of the detectors on COCO val2017 as published, in %, by the names of their configs: of boxes and masks, or boxes alone.
COCO_AP: dict[str, tuple[float, ...]] = {
    "mask_rcnn_gpvit_l1_1x": (48.1, 42.7),
    "mask_rcnn_gpvit_l2_1x": (49.9, 43.9),
    "mask_rcnn_gpvit_l3_1x": (50.4, 44.4),
    "mask_rcnn_gpvit_l4_1x": (51.0, 45.0),
    "mask_rcnn_gpvit_l1_3x": (50.2, 44.3),
    "mask_rcnn_gpvit_l2_3x": (51.4, 45.1),
    "mask_rcnn_gpvit_l3_3x": (51.6, 45.2),
    "mask_rcnn_gpvit_l4_3x": (52.1, 45.7),
    "retinanet_gpvit_l1_1x": (45.8,),
    "retinanet_gpvit_l2_1x": (48.0,),
    "retinanet_gpvit_l3_1x": (48.3,),
    "retinanet_gpvit_l4_1x": (48.7,),
    "retinanet_gpvit_l1_3x": (48.1,),
    "retinanet_gpvit_l2_3x": (49.0,),
    "retinanet_gpvit_l3_3x": (49.4,),
    "retinanet_gpvit_l4_3x": (49.8,),
}


def detector_address(config: str) -> str:
    """Where a published detector's file is, by the name of its config, such as "mask_rcnn_gpvit_l1_1x"."""
    detector, _, size_and_schedule = config.partition("_gpvit_")
    size, schedule = size_and_schedule.split("_")
    return f"{RELEASE}/gpvit_{size}_{detector.replace('_', '')}_{schedule}.pth"
