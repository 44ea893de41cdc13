"""Run time and memory of GPViT, compared with another model and with the limit of the machine.

    # Inference of the backbone; forward and backward pass:
    python tests/benchmarks/backbone.py --image 800x1216
    python tests/benchmarks/backbone.py --image 512x512 --mode training
    # Mask R-CNN, part by part:
    python tests/benchmarks/backbone.py --against swin --part detector
    # Larger images, larger batches:
    python tests/benchmarks/backbone.py --against none --growth growth.svg

Both models run alternately in one process, on the same images, and parameters of the same name
have the same values. "literal" is tests/literal.py, whose maps must be equal; "swin" (Swin-T with
an FPN) and "vitdet" (ViT-B with its pyramid) are Detectron2's. The ratio is the median of (their
time / our time) over the pairs of runs; the memory ratio is (our peak / their peak). Peaks are
above what a new process holds after an image of 64x64. roofline.py defines the limit; that of a
training step is three times that of the forward pass.
"""

from gpvit.utils.environment import prepare_command

if __name__ in ("__main__", "__mp_main__"):
    prepare_command()  # before PyTorch is imported

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from importlib.util import find_spec
from itertools import repeat
from pathlib import Path
from typing import Any
from unittest.mock import patch

import cv2
import gpvit
import matplotlib.figure
import numpy as np
import torch
import torch.nn.functional as F
from detectron2.config import LazyCall as L
from detectron2.config import instantiate
from detectron2.modeling import FPN, GeneralizedRCNN, SwinTransformer
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from detectron2.structures import BoxMode
from detectron2.utils.events import EventStorage
from gpvit.cli.main import run_command
from gpvit.cli.options import COUNT
from gpvit.config import CONFIGS, detectron2_config, load_config
from gpvit.utils.errors import UserError
from gpvit.utils.files import atomic_write
from gpvit.utils.profiler import (
    RETURN_MEMORY,
    Meter,
    image_size,
    in_a_process,
    machine,
    memory_since_reset,
)
from gpvit.visualization import style
from matplotlib.axes import Axes
from omegaconf import DictConfig
from torch import Tensor, nn

sys.path.append(str(Path(__file__).resolve().parents[1]))
import literal
import official
from benchmarks.roofline import Operation, Operations, Rates

DETECTORS = {"detector": "mask_rcnn_gpvit_{}.py", "published": "published/mask_rcnn_gpvit_{}_1x.py"}
# Maximum relative L2 distance of maps, and of gradients, which jump where rounding changes the sign
# of a ReLU's input.
TOLERANCE = {"float32": (1e-5, 1e-2), "bfloat16": (5e-2, 0.5)}
GROWTH_SIDES = (512, 768, 1024, 1536, 2048)  # pixels of one image
GROWTH_IMAGES = (2, 4, 8)  # images in a batch, of the smallest of these sizes


@dataclass(frozen=True)
class Task:
    """What to run. The fields are command-line options."""

    size: str
    image: tuple[int, int]  # height, width
    images: int  # in a batch
    mode: str  # "inference", or "training": forward and backward pass
    # "backbone", or Mask R-CNN: "detector" with the simple feature pyramid, "published" with the
    # adapter.
    part: str
    dtype: str  # bfloat16 by autocast
    compile: bool

    device = "cuda" if torch.cuda.is_available() else "cpu"

    @property
    def training(self) -> bool:
        return self.mode == "training"

    @contextmanager
    def context(self) -> Iterator[None]:
        """The context of a forward pass."""
        autocast = torch.autocast(self.device, torch.bfloat16, enabled=self.dtype == "bfloat16")
        with autocast, torch.set_grad_enabled(self.training), EventStorage():
            yield


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", default="L1", choices=gpvit.SIZES)
    parser.add_argument("--image", default="512x512", type=image_size, metavar="HEIGHTxWIDTH")
    parser.add_argument("--images", default=1, type=COUNT, metavar="N", help="images in a batch")
    parser.add_argument(
        "--against", default="literal", choices=("literal", "swin", "vitdet", "none")
    )
    parser.add_argument("--mode", default="inference", choices=("inference", "training"))
    parser.add_argument("--part", default="backbone", choices=("backbone", *DETECTORS))
    parser.add_argument("--dtype", default="float32", choices=TOLERANCE)
    parser.add_argument(
        "--compile", action="store_true", help="compile our backbone by torch.compile"
    )
    parser.add_argument(
        "--runs", default=10, type=COUNT, metavar="N", help="timed runs of each model"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results to this file")
    parser.add_argument(
        "--growth",
        type=Path,
        metavar="FILE",
        help="plot time and memory over image size and batch size into this file",
    )
    args = parser.parse_args()
    if args.part != "backbone" and (args.compile or args.growth):
        parser.error("--compile and --growth are for --part backbone")
    task = Task(**{field.name: getattr(args, field.name) for field in fields(Task)})
    names = ["gpvit"] if args.against == "none" else ["gpvit", args.against]
    if args.growth:
        record = growth(task, names, args.runs, args.growth)
    else:
        record = comparison(task, names, args.runs)
    if args.json:
        save(args.json, {"machine": machine(), "task": asdict(task), **record})


def save(path: Path, record: dict[str, Any]) -> None:
    with atomic_write(path) as partial:
        partial.write_text(json.dumps(record, indent=1))


def comparison(task: Task, names: list[str], runs: int) -> dict[str, Any]:
    """Run the models alternately, print the results and return them."""
    with tempfile.TemporaryDirectory() as folder:
        steps = {name: Step(name, task, folder) for name in names}
        if "literal" in names:
            check_equal(steps["gpvit"], steps["literal"])
        for step in steps.values():
            step()
            step.meter_parts()
        rates = rates_for(task)
        timed: dict[str, Callable[[], None]] = dict(steps)
        if task.part == "backbone":  # between the runs, so that the conditions are the same
            timed["rates"] = rates.measure
        seconds = alternate(timed, runs)
        parts = {name: step.part_seconds() for name, step in steps.items()}
        detections = {name: step.detections for name, step in steps.items()}
    seconds.pop("rates", None)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    peaks = {name: in_a_process(peak, name, task, environment=RETURN_MEMORY) for name in names}
    record = {"seconds": medians, "all_seconds": seconds, "peak_mib": peaks}
    size = "x".join(map(str, task.image))
    print(f"{task.size}, {task.images} of {size}, {task.part}, {task.mode}, {task.dtype}")
    for name in names:
        print(f"{name:8} {quartiles(seconds[name])} s, peak {peaks[name]:.0f} MiB")
    if len(names) > 1:
        ratios = [theirs / ours for ours, theirs in zip(seconds["gpvit"], seconds[names[1]])]
        record |= {"ratio": statistics.median(ratios), "ratios": ratios}
        record["memory_ratio"] = peaks["gpvit"] / peaks[names[1]]
        print(f"ratio    {quartiles(ratios)}, of memory {record['memory_ratio']:.2f}")
    if task.part == "backbone":
        record |= limit(task, rates)
        fraction = record["fraction_of_limit"] = record["limit_seconds"] / medians["gpvit"]
        print(f"limit    {record['limit_seconds']:.3f} s, fraction of it {fraction:.3f}")
    else:
        record |= {"parts": parts, "detections": detections}
        print_parts(parts, detections)
    return record


def print_parts(parts: dict[str, dict[str, float]], detections: dict[str, int]) -> None:
    """Print a Markdown table of the seconds of each part, a column for each model."""
    print(f"\n| seconds | {' | '.join(parts)} |\n|---{'|---:' * len(parts)}|")
    for part in parts["gpvit"]:
        cells = [f"{model_parts[part]:.3f}" for model_parts in parts.values()]
        print(f"| {part} | {' | '.join(cells)} |")
    print(f"| (detections) | {' | '.join(map(str, detections.values()))} |")


def alternate(steps: dict[str, Callable[[], None]], runs: int) -> dict[str, list[float]]:
    """Run the steps alternately (A, B, A, B, ...) and return the seconds of each step's runs."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(runs):
        for name, step in steps.items():
            start = now()
            step()
            seconds[name].append(now() - start)
    return seconds


def now() -> float:
    """Return the time in seconds, after the work on the GPU has finished."""
    if Task.device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def quartiles(values: list[float]) -> str:
    low, median, high = np.quantile(values, [0.25, 0.5, 0.75])
    return f"{median:.3f} ({low:.3f} to {high:.3f})"


def peak(name: str, task: Task) -> float:
    """Return the peak memory in MiB of a step above what was held before it; for a new process."""
    with tempfile.TemporaryDirectory() as folder:
        step = Step(name, replace(task, image=(64, 64)), folder)
        step()  # loads libraries
        step.load = step.loader(task, folder)
        before, _ = memory_since_reset(task.device)
        step()
        _, highest = memory_since_reset(task.device)
    return highest - before


class Step:
    """A model and its data; a call is one inference or training step.

    Gradients are cleared at its end. A backbone gets an image tensor, and its loss is artificial. A
    detector starts from image files in ``folder``.
    """

    def __init__(self, name: str, task: Task, folder: str) -> None:
        self.task = task
        torch.manual_seed(0)
        if task.part == "backbone":
            self.model = self.features = build_backbone(name, task.size)
        else:
            self.config = detector_config(name, task)
            self.model = build_detector(name, self.config, task.size)
            self.features = self.model.backbone  # from images to maps
        fill_weights(self.model)
        self.model.train(task.training).to(task.device)
        if task.compile and name == "gpvit":
            self.model.compile()
        self.load = self.loader(task, folder)
        self.seconds: dict[str, list[float]] = defaultdict(list)
        self.meters: dict[str, list[Meter]] = {}
        self.detections = 0  # of the last batch

    def loader(self, task: Task, folder: str) -> Callable[[], Any]:
        """Return a function that loads the input: a tensor (B, 3, H, W), or a detector's batch."""
        if task.part == "backbone":
            image = official.image(0, (task.images, 3, *task.image)).to(task.device)
            return lambda: image
        self.config.dataloader.update(short_side=min(task.image), max_size=max(task.image))
        mapper = instantiate(self.config.dataloader["train" if task.training else "test"].mapper)
        records = [write_image(Path(folder), i, *task.image) for i in range(task.images)]
        return lambda: list(map(mapper, records))

    def __call__(self) -> None:
        with self.timed("data"):
            batch = self.load()
        with self.task.context():
            if self.task.part == "backbone":
                maps = self.model(batch)
                loss = artificial_loss(maps) if self.task.training else None
            elif self.task.training:
                loss = sum(self.model(batch).values())
            else:
                instances = self.model.inference(batch, do_postprocess=False)
                self.detections = sum(map(len, instances))
                with self.timed("post-processing"):
                    sizes = [image["image"].shape[-2:] for image in batch]
                    GeneralizedRCNN._postprocess(instances, batch, sizes)
        if self.task.training:
            with self.timed("backward"):
                loss.backward()
            self.model.zero_grad()

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        start = now()
        yield
        self.seconds[part].append(now() - start)

    def meter_parts(self) -> None:
        """Discard the times so far, and measure the parts of a detector from here on."""
        self.seconds.clear()
        if self.task.part == "backbone":
            return
        features = self.model.backbone
        inner = features.net if hasattr(features, "net") else features.bottom_up
        has_adapter = isinstance(inner, gpvit.GPViTAdapter)
        modules = {
            # An adapter calls the stem and the blocks, not the backbone itself.
            "backbone": [inner.net.patch_embed, *inner.net.blocks] if has_adapter else [inner],
            "features": [features],
            "proposals": [self.model.proposal_generator],
            "heads": [self.model.roi_heads],
        }
        for part, group in modules.items():
            self.meters[part] = [Meter(module, self.task.device) for module in group]

    def part_seconds(self) -> dict[str, float]:
        """Return the median of each part.

        The parts of a detector's forward pass add up to it, except for image normalization and
        padding.
        """
        timed = {part: statistics.median(times) for part, times in self.seconds.items()}
        if not self.meters:
            return timed
        metered = {}
        for part, group in self.meters.items():
            metered[part] = sum(statistics.median(meter.seconds) for meter in group)
        return {
            "data": timed.pop("data"),
            "backbone": metered["backbone"],
            "pyramid or adapter": metered["features"] - metered["backbone"],
            "proposals": metered["proposals"],
            "heads": metered["heads"],
            **timed,
        }


def build_backbone(name: str, size: str) -> nn.Module:
    if name == "vitdet":
        return instantiate(vitdet_config().net)
    if name == "swin":
        return SwinTransformer(drop_path_rate=0.0)  # its other defaults are Swin-T's
    return {"gpvit": gpvit.GPViT, "literal": literal.LiteralGPViT}[name](**gpvit.SIZES[size])


def vitdet_config() -> DictConfig:
    if find_spec("timm") is None:
        raise UserError(
            "--against vitdet: Detectron2's ViT needs timm, which is not installed; run: "
            "pip install timm"
        )
    config = detectron2_config("common/models/mask_rcnn_vitdet.py").model.backbone
    config.net.drop_path_rate = 0.0
    config.square_pad = 0
    return config


def detector_config(name: str, task: Task) -> DictConfig:
    """Return our detector's config without drop path, for swin and vitdet with their features."""
    config = load_config(str(CONFIGS / DETECTORS[task.part].format(task.size.lower())))
    if name == "vitdet":
        config.model.backbone = vitdet_config()
    elif name == "swin":
        config.model.backbone = L(FPN)(
            bottom_up=L(SwinTransformer)(drop_path_rate=0.0),
            in_features=["p0", "p1", "p2", "p3"],
            out_channels=256,
            top_block=L(LastLevelMaxPool)(),
        )
    else:
        config.model.backbone.get("bottom_up", config.model.backbone).net.drop_path_rate = 0.0
    return config


def build_detector(name: str, config: DictConfig, size: str) -> nn.Module:
    model = instantiate(config.model)
    if name == "literal":
        parent = getattr(model.backbone, "bottom_up", model.backbone)  # the adapter or the pyramid
        final_norm = len(parent.net.out_norms) > 0
        parent.net = literal.LiteralGPViT(**gpvit.SIZES[size], final_norm=final_norm)
    return model


@torch.no_grad()
def fill_weights(model: nn.Module) -> None:
    """Set every weight to values that depend on its name only."""
    for key, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            tensor.copy_(torch.from_numpy(np.asarray(official.fill(key, tensor.shape))))
        # Confident scores, so that the number of detections is the maximum.
        if key == "roi_heads.box_predictor.cls_score.weight":
            tensor.mul_(100)


def artificial_loss(maps: dict[str, Tensor]) -> Tensor:
    """Return the mean squared difference of horizontal neighbors.

    The mean square itself is almost constant after a LayerNorm, so its gradient would vanish.
    """
    return sum(out.diff(dim=-1).square().mean() for out in maps.values())


def check_equal(ours: "Step", theirs: "Step") -> None:
    """Raise a UserError unless two models return equal maps and, in training, equal gradients."""
    task = ours.task
    image = official.image(0, (task.images, 3, *task.image)).to(task.device)
    results = []
    for step in (ours, theirs):
        with task.context():
            maps = step.features(image)
        if task.training:
            artificial_loss(maps).backward()
            gradients = [weight.grad.flatten() for weight in step.features.parameters()]
            maps["gradient"] = torch.cat(gradients)
            step.model.zero_grad()
        results.append(maps)
    for name, expected in results[1].items():
        distance = ((results[0][name] - expected).norm() / expected.norm()).item()
        allowed = TOLERANCE[task.dtype][name == "gradient"]
        if not distance <= allowed:
            raise UserError(
                f"the models are not equivalent: relative L2 distance {distance:.1e} in {name}, "
                f"at most {allowed:.0e} is allowed; nothing was timed"
            )


def write_image(folder: Path, number: int, height: int, width: int) -> dict[str, Any]:
    """Write an image with a few objects, which is enlarged to this size when it is loaded.

    Returns:
        Its record in Detectron2's dataset format.
    """
    pixels = official.image(number, (1, 3, round(0.6 * height), round(0.6 * width)))[0]
    pixels = (128 + 40 * pixels).clamp(0, 255).byte().permute(1, 2, 0).numpy()
    path = folder / f"{number}_{height}x{width}.jpg"
    cv2.imwrite(str(path), pixels)
    height, width = pixels.shape[:2]
    objects = []
    for i in range(8):
        x, y, w, h = i * width / 10, i * height / 10, width / 5, height / 4
        outline = [x, y, x + w, y, x + w, y + h, x, y + h]
        box = dict(bbox=[x, y, w, h], bbox_mode=BoxMode.XYWH_ABS)
        objects.append(dict(**box, category_id=i, segmentation=[outline], iscrowd=0))
    return dict(
        file_name=str(path), image_id=number, height=height, width=width, annotations=objects
    )


def operations(task: Task) -> list[Operation]:
    """List the operations of a forward pass: the literal backbone with fused attention."""
    with torch.device("meta"):  # shapes only: nothing is computed
        net = literal.LiteralGPViT(**gpvit.SIZES[task.size]).eval().to(getattr(torch, task.dtype))
        image = torch.empty(task.images, 3, *task.image, dtype=getattr(torch, task.dtype))
    fused = patch.object(literal, "attention", F.scaled_dot_product_attention)
    with torch.no_grad(), fused, Operations() as found:
        net(image)
    return found.list


def gmacs(operations: list[Operation]) -> float:
    return sum(operation.flops for operation in operations) / 2e9


def rates_for(task: Task) -> Rates:
    products = {operation.product for operation in operations(task)} - {None}
    return Rates(products, task.device, getattr(torch, task.dtype))


def limit(task: Task, rates: Rates) -> dict[str, Any]:
    seconds = rates.seconds(operations(task))
    # Each product of the forward pass has two in the backward pass: the gradients of its factors.
    if task.training:
        seconds = {kind: 3 * value for kind, value in seconds.items()}
    matrix_rates = {}
    for product, rates_of_functions in rates.products.items():
        matrix_rates["x".join(map(str, product))] = rates_of_functions
    return {
        "limit_seconds": sum(seconds.values()),
        "limit_parts": seconds,
        "copy_rate": rates.copy,
        "matrix_rates": matrix_rates,
    }


def growth(task: Task, names: list[str], runs: int, path: Path) -> dict[str, Any]:
    """Measure and plot time and memory of single images of growing size, and of growing batches."""
    points = []
    print("| model | images | side | GMACs | seconds | peak MiB |\n|---|---:|---:|---:|---:|---:|")
    sizes = [*zip(GROWTH_SIDES, repeat(1)), *zip(repeat(GROWTH_SIDES[0]), GROWTH_IMAGES)]
    for side, images in sizes:
        size_task = replace(task, image=(side, side), images=images)
        size_gmacs = gmacs(operations(size_task))
        steps = {name: Step(name, size_task, "") for name in names}
        alternate(steps, 1)  # warm-up
        for name, seconds in alternate(steps, runs).items():
            peak_mib = in_a_process(peak, name, size_task, environment=RETURN_MEMORY)
            costs = dict(gmacs=size_gmacs, seconds=statistics.median(seconds), peak_mib=peak_mib)
            points.append(dict(model=name, images=images, side=side, **costs))
            cells = " | ".join(f"{cost:.4g}" for cost in costs.values())
            print(f"| {name} | {images} | {side} | {cells} |", flush=True)
    ratios = {}
    for name in names:
        by_side = {}
        for point in points:
            if point["model"] == name and point["images"] == 1:
                by_side[point["side"]] = point
        large, small = by_side[GROWTH_SIDES[-1]], by_side[GROWTH_SIDES[-1] // 2]
        costs = ("gmacs", "seconds", "peak_mib")
        ratios[name] = {cost: large[cost] / small[cost] for cost in costs}
        text = ", ".join(f"{cost} {ratio:.2f}" for cost, ratio in ratios[name].items())
        print(f"{name}, {large['side']} over {small['side']}: {text}")
    draw_growth(points, names, path)
    return {"growth": points, "growth_ratios": ratios}


def draw_growth(points: list[dict[str, Any]], names: list[str], path: Path) -> None:
    labels = {"seconds": "seconds", "peak_mib": "MiB above weights"}
    width, height = 12, 5.2  # inches
    with style.figure_style():
        figure = matplotlib.figure.Figure(figsize=(width, height), layout="constrained")
        for axis, (cost, label) in zip(figure.subplots(1, 2), labels.items()):
            for name in names:
                of_model = [point for point in points if point["model"] == name]
                single = [point for point in of_model if point["images"] == 1]
                batches = [point for point in of_model if point["side"] == GROWTH_SIDES[0]]
                plot_line(axis, single, cost, f"{name}, one image")
                plot_line(axis, batches, cost, f"{name}, images of {GROWTH_SIDES[0]}²")
            # Through the first point: cost proportional to the number of pixels.
            factor = (GROWTH_SIDES[-1] / GROWTH_SIDES[0]) ** 2
            ends = [GROWTH_SIDES[0] ** 2 / 1e6, GROWTH_SIDES[-1] ** 2 / 1e6]
            costs = [points[0][cost], factor * points[0][cost]]
            axis.plot(ends, costs, color=style.MUTED, linestyle=":", label="proportional")
            axis.set(xlabel="megapixels", ylabel=label)
            axis.set_xscale("log", base=2)
            axis.set_yscale("log", base=2)
            axis.xaxis.set_major_formatter("{x:.2g}")
            axis.yaxis.set_major_formatter("{x:g}")
            style.legend_below(axis, 72 * 0.45 * width)
        with atomic_write(path) as partial:
            figure.savefig(partial, dpi=style.DPI)


def plot_line(axis: Axes, points: list[dict[str, Any]], cost: str, label: str) -> None:
    megapixels = [point["images"] * point["side"] ** 2 / 1e6 for point in points]
    axis.plot(megapixels, [point[cost] for point in points], marker="o", label=label)


if __name__ == "__main__":
    run_command(main)
