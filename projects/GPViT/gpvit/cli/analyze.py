"""Report the parameters, FLOPs, memory and inference time of each part of a model.

    gpvit analyze --config-file configs/mask_rcnn_gpvit_l1.py
    gpvit analyze --weights output/quickstart --image 480x640
    gpvit analyze --table models       parameters and FLOPs of all detectors of configs/
    gpvit analyze --table segmentation ... of all segmentation models
    gpvit analyze --table classification  ... of all classifiers
    gpvit analyze --table published    AP and checkpoints of the published detectors

All tables are in Markdown. gpvit/utils/analysis.py defines what is counted as a FLOP.
"""

from collections.abc import Sequence

import torch
from detectron2.config import instantiate
from omegaconf import DictConfig

from .. import checkpoint
from ..config import CONFIGS, load_config, with_overrides
from ..data.datasets.register import set_num_classes, task_of
from ..model_zoo import ADE20K_MIOU, COCO_AP, IMAGENET_ACCURACY, detector_address
from ..modeling import SIZES
from ..predictor import config_of
from ..utils.analysis import PARTS, build_on_meta, costs, flops, parameters
from ..utils.profiler import RETURN_MEMORY, image_size, in_a_process, machine
from .options import OVERRIDES_HELP, add_device, command_parser

# Configs of the table of all models, each available in every size.
MODEL_CONFIGS = (
    "mask_rcnn_gpvit_{}",
    "cascade_mask_rcnn_gpvit_{}",
    "published/mask_rcnn_gpvit_{}_1x",
    "published/retinanet_gpvit_{}_1x",
)
SEGMENTATION_CONFIGS = ("published/segformer_gpvit_{}", "published/upernet_gpvit_{}")
SEMANTIC_FPN = "semantic_fpn_gpvit_l1"
CLASSIFIER_CONFIG = "published/classifier_gpvit_{}"


def main(arguments: Sequence[str]) -> None:
    parser = command_parser("analyze", __doc__)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--config-file", metavar="FILE", help="config of the detector")
    source.add_argument(
        "--weights",
        metavar="PATH",
        help="checkpoint or folder of a training run; its config is used",
    )
    source.add_argument(
        "--table",
        choices=("models", "segmentation", "classification", "published"),
        help="table to print instead of one model",
    )
    parser.add_argument(
        "--image",
        type=image_size,
        metavar="HEIGHTxWIDTH",
        help="image size in pixels (default: 3:2 at the resolution of the config; 800x1280 with "
        "--table models, 512x512 with --table segmentation, 224x224 with --table classification)",
    )
    add_device(parser)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help=OVERRIDES_HELP)
    args = parser.parse_intermixed_args(arguments)
    if args.table == "models":
        print_models(*(args.image or (800, 1280)))
    elif args.table == "segmentation":
        print_segmentation_models(*(args.image or (512, 512)))
    elif args.table == "classification":
        print_classifiers(*(args.image or (224, 224)))
    elif args.table == "published":
        print_published()
    else:
        print_model(args.config_file, args.weights, args.overrides, args.image, args.device)


def print_model(
    config_file: str | None,
    weights: str | None,
    overrides: list[str],
    image: tuple[int, int] | None,
    device: str,
) -> None:
    """Print the costs of inference on one image, in float32 and with random weights."""
    source = (config_file, weights, overrides)
    cfg = detector_config(*source)
    height, width = image or default_size(cfg)
    model = build_on_meta(cfg.model)
    counts, gflops = parameters(model), flops(model, height, width)
    # Peak memory is measured in a second process: its allocator settings make it slower.
    seconds, _, detections = in_a_process(detector_costs, *source, height, width, device)
    _, peaks, _ = in_a_process(
        detector_costs, *source, height, width, device, environment=RETURN_MEMORY
    )
    total_seconds = sum(seconds.values())
    found = f"{detections} detections, " if task_of(cfg.model) == "detection" else ""
    print(
        f"{config_file or weights}, one image of {height}x{width}, random weights, {found}"
        f"{device_name(device)}\n"
    )
    print("| part | parameters (M) | GFLOPs | peak MiB | ms | % of time |")
    print("|---|---:|---:|---:|---:|---:|")
    for part in PARTS:
        if counts[part] or seconds[part]:
            fraction = seconds[part] / total_seconds
            print_row(part, counts[part], gflops[part], peaks[part], seconds[part], fraction)
    print_row(
        "total",
        sum(counts.values()),
        sum(gflops.values()),
        max(peaks.values()),
        total_seconds,
        fraction=1,
    )
    print(
        "\npeak: the most memory allocated while the part runs, in addition to what was allocated "
        "before inference; total: the maximum over the parts"
    )


def print_row(
    part: str, parameters: float, gflops: float, peak: float, seconds: float, fraction: float
) -> None:
    """Print a row of the table of one model; ``fraction`` is that of the total time."""
    print(
        f"| {part} | {parameters / 1e6:.2f} | {gflops:.2f} | {peak:.0f} | {1e3 * seconds:.1f} "
        f"| {fraction:.0%} |"
    )


def detector_config(
    config_file: str | None, weights: str | None, overrides: list[str]
) -> DictConfig:
    """Return the config in a file, or the one in a checkpoint, for the checkpoint's classes."""
    if config_file:
        return load_config(config_file, overrides)
    file = checkpoint.read(str(weights))
    cfg = with_overrides(config_of(file), overrides)
    set_num_classes(cfg.model, len(file.require_classes()))
    return cfg


def default_size(cfg: DictConfig) -> tuple[int, int]:
    """Return height and width of what the model sees.

    That is the crop of a classifier; for other models, a 3:2 image after resizing and padding to
    multiples of 32.
    """
    if "crop_size" in cfg.dataloader:
        return cfg.dataloader.crop_size, cfg.dataloader.crop_size
    height = cfg.dataloader.short_side
    width = min(round(1.5 * height), cfg.dataloader.max_size)
    # -(-n // 32) is n / 32 rounded up.
    return -(-height // 32) * 32, -(-width // 32) * 32


def detector_costs(
    config_file: str | None,
    weights: str | None,
    overrides: list[str],
    height: int,
    width: int,
    device: str,
) -> tuple[dict[str, float], dict[str, float], int]:
    """Return seconds and peak MiB of each part, and the number of detections."""
    torch.manual_seed(0)
    model = instantiate(detector_config(config_file, weights, overrides).model).eval().to(device)
    return costs(model, height, width)


def device_name(device: str) -> str:
    """Return the name of the GPU, or the number of threads and the name of the CPU."""
    facts = machine()
    if torch.device(device).type == "cuda":
        return str(facts["gpu"])
    return f"{facts['threads']} thread{'s' if facts['threads'] > 1 else ''} of {facts['cpu']}"


def print_models(height: int, width: int) -> None:
    """Print the cost of each model for one image, and its AP as published, in italics.

    The 3x models are the 1x models after more training, so they cost the same.
    """
    print(
        f"| config | parameters (M) | GFLOPs at {height}x{width} | of these, backbone "
        "| box / mask AP, 1x | box / mask AP, 3x |"
    )
    print("|---|---:|---:|---:|---:|---:|")
    for template in MODEL_CONFIGS:
        for size in SIZES:
            name = template.format(size.lower())
            model = build_on_meta(load_config(str(CONFIGS / f"{name}.py")).model)
            gflops = flops(model, height, width)
            detector = name.removeprefix("published/")
            print(
                f"| `{name}` | {sum(parameters(model).values()) / 1e6:.1f} "
                f"| {sum(gflops.values()):.0f} | {gflops['backbone']:.0f} "
                f"| {published_ap(detector)} | {published_ap(detector.replace('1x', '3x'))} |"
            )


def print_segmentation_models(height: int, width: int) -> None:
    """Print the cost of each segmentation model, and its mIoU as published, in italics."""
    print(
        f"| config | parameters (M) | GFLOPs at {height}x{width} | of these, backbone "
        "| mIoU on ADE20K |"
    )
    print("|---|---:|---:|---:|---:|")
    names = [SEMANTIC_FPN]
    for template in SEGMENTATION_CONFIGS:
        names += [template.format(size.lower()) for size in SIZES]
    for name in names:
        model = build_on_meta(load_config(str(CONFIGS / f"{name}.py")).model)
        gflops = flops(model, height, width)
        miou = ADE20K_MIOU.get(name.removeprefix("published/"))
        print(
            f"| `{name}` | {sum(parameters(model).values()) / 1e6:.1f} "
            f"| {sum(gflops.values()):.0f} | {gflops['backbone']:.0f} "
            f"| {'—' if miou is None else f'*{miou}*'} |"
        )


def print_classifiers(height: int, width: int) -> None:
    """Print the cost of each classifier, and its accuracy as published, in italics."""
    print(
        f"| config | parameters (M) | of these, backbone | GFLOPs at {height}x{width} "
        "| top-1 / top-5 on ImageNet |"
    )
    print("|---|---:|---:|---:|---:|")
    for size in SIZES:
        name = CLASSIFIER_CONFIG.format(size.lower())
        model = build_on_meta(load_config(str(CONFIGS / f"{name}.py")).model)
        counts = parameters(model)
        accuracy = " / ".join(map(str, IMAGENET_ACCURACY[name.removeprefix("published/")]))
        print(
            f"| `{name}` | {sum(counts.values()) / 1e6:.2f} | {counts['backbone'] / 1e6:.2f} "
            f"| {sum(flops(model, height, width).values()):.1f} | *{accuracy}* |"
        )


def published_ap(name: str) -> str:
    """Return box and mask AP, or box AP, of a config of configs/published; a dash for others."""
    return f"*{' / '.join(map(str, COCO_AP[name]))}*" if name in COCO_AP else "—"


def print_published() -> None:
    """Print the AP of the published detectors, each with a link to its checkpoint."""
    print("| size | Mask R-CNN 1x: box / mask AP | 3x | RetinaNet 1x: box AP | 3x |")
    print("|---|---:|---:|---:|---:|")
    for size in SIZES:
        cells = [size]
        for architecture in ("mask_rcnn", "retinanet"):
            for schedule in ("1x", "3x"):
                name = f"{architecture}_gpvit_{size.lower()}_{schedule}"
                cells.append(f"[{published_ap(name)}]({detector_address(name)})")
        print(f"| {' | '.join(cells)} |")
