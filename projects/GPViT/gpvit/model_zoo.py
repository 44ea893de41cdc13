"""Addresses of the official weights, classes and accuracy of the official models as published."""

from collections import Counter
from collections.abc import Sequence

from detectron2.data.datasets.builtin_meta import ADE20K_SEM_SEG_CATEGORIES
from torchvision.models import ResNet50_Weights

from .modeling import SIZES

RELEASE = "https://github.com/ChenhongyiYang/GPViT/releases/download/v0.0.1"
IMAGENET_WEIGHTS = {size: f"{RELEASE}/gpvit_{size.lower()}_in1k_300e.pth" for size in SIZES}

# AP on COCO val2017 as published, in percent, by the name of the config: (box, mask) of Mask R-CNN
# and (box,) of RetinaNet.
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

# mIoU on ADE20K's validation set as published, in percent, by the name of the config.
ADE20K_MIOU = {
    "segformer_gpvit_l1": 46.9,
    "segformer_gpvit_l2": 49.2,
    "segformer_gpvit_l3": 50.8,
    "segformer_gpvit_l4": 51.3,
    "upernet_gpvit_l1": 49.1,
    "upernet_gpvit_l2": 50.2,
    "upernet_gpvit_l3": 51.7,
    "upernet_gpvit_l4": 52.5,
}
ADE20K_CLASSES = [name.strip() for name in ADE20K_SEM_SEG_CATEGORIES]  # " toilet" in Detectron2

# Top-1 and top-5 accuracy on ImageNet-1k's validation set as published, in percent, by the name of
# the config.
IMAGENET_ACCURACY = {
    "classifier_gpvit_l1": (80.5, 95.4),
    "classifier_gpvit_l2": (83.4, 96.6),
    "classifier_gpvit_l3": (84.1, 96.9),
    "classifier_gpvit_l4": (84.3, 96.9),
}
# WordNet IDs of the classes whose names repeat in some versions of torchvision.
WORDNET_IDS = {134: "n02012849", 517: "n03126707", 638: "n03710637", 639: "n03710721"}


def unique_names(names: Sequence[str]) -> list[str]:
    """Return ImageNet's class names, those that repeat with their WordNet ID."""
    counts = Counter(names)
    unique = []
    for index, name in enumerate(names):
        unique.append(name if counts[name] == 1 else f"{name} ({WORDNET_IDS[index]})")
    return unique


# In the order of their WordNet IDs, which is the official one.
IMAGENET_CLASSES = unique_names(ResNet50_Weights.DEFAULT.meta["categories"])


def detector_address(config: str) -> str:
    """Return the address of an official detector's weights.

    Args:
        config: name of its config, such as "mask_rcnn_gpvit_l1_1x", whose weights are in the file
            gpvit_l1_maskrcnn_1x.pth.
    """
    detector, _, size_and_schedule = config.partition("_gpvit_")
    size, schedule = size_and_schedule.split("_")
    return f"{RELEASE}/gpvit_{size}_{detector.replace('_', '')}_{schedule}.pth"
