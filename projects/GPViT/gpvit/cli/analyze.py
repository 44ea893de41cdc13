"""What a detector costs: parameters, FLOPs, memory and time of inference on this machine, part by part.

    gpvit analyze --config-file configs/mask_rcnn_gpvit_l1.py
    gpvit analyze --weights output/quickstart --image 480x640
    gpvit analyze --table models       parameters and FLOPs of all models of configs/, in Markdown
    gpvit analyze --table published    AP and files of the published detectors, in Markdown

What a FLOP is, and what is counted, is said in gpvit/utils/analysis.py.
"""

from collections.abc import Sequence

import torch
from detectron2.config import instantiate
from omegaconf import DictConfig

from .. import checkpoint
from ..config import CONFIGS, load_config, with_overrides
from ..data.datasets.register import set_num_classes
from ..model_zoo import COCO_AP, detector_address
from ..modeling import SIZES
from ..predictor import config_of
from ..utils.analysis import PARTS, built_on_meta, costs, flops, parameters
from ..utils.profiler import RETURN_MEMORY, image_size, in_a_process, machine
from .options import add_device, command_parser

MODELS = [
    template.format(size)
    for template in (
        "mask_rcnn_gpvit_l{}",
        "cascade_mask_rcnn_gpvit_l{}",
        "published/mask_rcnn_gpvit_l{}_1x",
        "published/retinanet_gpvit_l{}_1x",
    )
    for size in (1, 2, 3, 4)
]


def main(arguments: Sequence[str]) -> None:
    parser = command_parser("analyze", __doc__)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--config-file", metavar="FILE", help="config of the detector")
    source.add_argument(
        "--weights",
        metavar="PATH",
        help="checkpoint or folder of a run, for the config that it carries",
    )
    source.add_argument(
        "--table", choices=("models", "published"), help="print this table, and nothing else"
    )
    what = "default: as the config has it, 3:2; of the tables 800x1280"
    parser.add_argument("--image", type=image_size, metavar="HEIGHTxWIDTH", help=what)
    add_device(parser)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes to the config")
    args = parser.parse_intermixed_args(arguments)
    if args.table == "models":
        print_models(*(args.image or (800, 1280)))
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
    """Inference of one image in float32, with random weights."""
    source = (config_file, weights, overrides)
    cfg = detector_config(*source)
    height, width = image or usual_size(cfg)
    model = built_on_meta(cfg.model)
    counts, computed = parameters(model), flops(model, height, width)
    seconds, _, found = in_a_process(detector_costs, *source, height, width, device)
    _, peaks, _ = in_a_process(
        detector_costs, *source, height, width, device, environment=RETURN_MEMORY
    )
    total = sum(seconds.values())
    print(
        f"{config_file or weights}, one image of {height}x{width}, random weights, {found} objects found, {on(device)}\n"
    )
    print(
        "| part | parameters (M) | GFLOPs | peak MiB | ms | share of time |\n|---|---:|---:|---:|---:|---:|"
    )
    for part in PARTS:
        if counts[part] or seconds[part]:
            numbers = (counts[part] / 1e6, computed[part], peaks[part], 1e3 * seconds[part])
            print_row(part, *numbers, seconds[part] / total)
    print_row(
        "total",
        sum(counts.values()) / 1e6,
        sum(computed.values()),
        max(peaks.values()),
        1e3 * total,
        1,
    )
    print(
        "\npeak: the most that was held while the part ran, above what was held before the image came; total: the largest"
    )


def print_row(
    part: str, millions: float, gflops: float, peak: float, milliseconds: float, share: float
) -> None:
    print(
        f"| {part} | {millions:.2f} | {gflops:.2f} | {peak:.0f} | {milliseconds:.1f} | {share:.0%} |"
    )


def detector_config(
    config_file: str | None, weights: str | None, overrides: list[str]
) -> DictConfig:
    """A config from its file, or from the checkpoint that carries it, for the checkpoint's classes."""
    if config_file:
        return load_config(config_file, overrides)
    file = checkpoint.read(str(weights))
    cfg = with_overrides(config_of(file), overrides)
    set_num_classes(cfg.model, len(file.require_classes()))
    return cfg


def usual_size(cfg: DictConfig) -> tuple[int, int]:
    """Height and width of a 3:2 image as the config has it in inference, padded to multiples of 32."""
    height, width = (
        cfg.dataloader.short_side,
        min(round(1.5 * cfg.dataloader.short_side), cfg.dataloader.max_size),
    )
    return -(-height // 32) * 32, -(-width // 32) * 32


def detector_costs(
    config_file: str | None,
    weights: str | None,
    overrides: list[str],
    height: int,
    width: int,
    device: str,
) -> tuple[dict[str, float], dict[str, float], int]:
    torch.manual_seed(0)
    model = instantiate(detector_config(config_file, weights, overrides).model).eval().to(device)
    return costs(model, height, width)


def on(device: str) -> str:
    """What it ran on, for a caption."""
    facts = machine()
    if torch.device(device).type == "cuda":
        return str(facts["gpu"])
    return f"{facts['threads']} thread{'s' if facts['threads'] > 1 else ''} of {facts['cpu']}"


def print_models(height: int, width: int) -> None:
    """Parameters and 1e9 FLOPs for one image, and what was published; 3x models cost what the 1x models do."""
    parts = [part for part in PARTS if part != "rest"]
    print(
        f"| config ({height}x{width}) | parameters (M) | GFLOPs | {' | '.join(parts)} | published AP, 1x | 3x |"
    )
    print("|---" + "|---:" * (4 + len(parts)) + "|")
    for name in MODELS:
        model = built_on_meta(load_config(str(CONFIGS / f"{name}.py")).model)
        computed = flops(model, height, width)
        cells = [f"{sum(parameters(model).values()) / 1e6:.1f}", f"{sum(computed.values()):.0f}"]
        cells += [f"{computed[part]:.0f}" if computed[part] else "" for part in parts]
        cells += [
            published_ap(name.removeprefix("published/").replace("1x", schedule))
            for schedule in ("1x", "3x")
        ]
        print(f"| `{name}` | {' | '.join(cells)} |")


def published_ap(name: str) -> str:
    """Box and mask AP of a config of configs/published, or box AP."""
    return " / ".join(map(str, COCO_AP[name])) if name in COCO_AP else "not measured"


def print_published() -> None:
    """AP of the published detectors, each with a link to its file."""
    print(
        "| size | Mask R-CNN 1x: box / mask AP | 3x | RetinaNet 1x: box AP | 3x |\n|---|---:|---:|---:|---:|"
    )
    for size in SIZES:
        names = [
            f"{kind}_gpvit_{size.lower()}_{when}"
            for kind in ("mask_rcnn", "retinanet")
            for when in ("1x", "3x")
        ]
        print(
            f"| {size} | "
            + " | ".join(f"[{published_ap(name)}]({detector_address(name)})" for name in names)
            + " |"
        )
