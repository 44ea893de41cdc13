"""How fast GPViT is, how much memory it takes, and how near it comes to what the machine can do.

    python tests/benchmarks/backbone.py --image 800x1216                          the backbone in inference
    python tests/benchmarks/backbone.py --image 512x512 --mode training           its forward and backward
    python tests/benchmarks/backbone.py --against swin --part detector            Mask R-CNN, part by part
    python tests/benchmarks/backbone.py --against none --growth growth.svg        larger images, more images

Both models run in turns in one process, on the same images and with the same weights where they have the same
parameters. The literal form is tests/literal.py, which must give the same maps; swin (Swin-T with an FPN) and vitdet
(ViT-B with its pyramid) are Detectron2's. The ratio is the median of (their time / our time) over the pairs of runs,
the memory ratio (our peak / their peak); peaks are above what a fresh process holds after an image of 64x64. What the
limit counts is said in roofline.py; a training step's is three times the forward's.
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
from omegaconf import DictConfig
from torch import Tensor, nn

sys.path.append(str(Path(__file__).resolve().parents[1]))
import literal
import official
from benchmarks.roofline import Operation, Operations, Rates

DETECTORS = {"detector": "mask_rcnn_gpvit_{}.py", "published": "published/mask_rcnn_gpvit_{}_1x.py"}
# Relative L2 distance allowed of maps, and of gradients: these jump where rounding changes the sign of a ReLU's input.
TOLERANCE = {"float32": (1e-5, 1e-2), "bfloat16": (5e-2, 0.5)}
GROWTH_SIDES = (512, 768, 1024, 1536, 2048)  # pixels of one image
GROWTH_IMAGES = (2, 4, 8)  # of the smallest of these


@dataclass(frozen=True)
class Task:
    """What is run. Its fields are options of the command line."""

    size: str
    image: tuple[int, int]  # height, width
    images: int  # in a batch
    mode: str  # "inference", or "training": forward and backward
    part: str  # "backbone", or Mask R-CNN: "detector" with the simple pyramid, "published" with the adapter
    dtype: str  # bfloat16 is by autocast
    compile: bool

    device = "cuda" if torch.cuda.is_available() else "cpu"

    @property
    def training(self) -> bool:
        return self.mode == "training"

    @contextmanager
    def context(self) -> Iterator[None]:
        """What a forward pass runs in."""
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
    parser.add_argument("--compile", action="store_true", help="torch.compile for our backbone")
    parser.add_argument(
        "--runs", default=10, type=COUNT, metavar="N", help="timed runs of each model"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="the record")
    parser.add_argument(
        "--growth",
        type=Path,
        metavar="PICTURE",
        help="time and memory over image size and batch size",
    )
    args = parser.parse_args()
    if args.part != "backbone" and (args.compile or args.growth):
        parser.error("--compile and --growth are for --part backbone")
    task = Task(**{field.name: getattr(args, field.name) for field in fields(Task)})
    names = ["gpvit"] if args.against == "none" else ["gpvit", args.against]
    record = (
        growth(task, names, args.runs, args.growth)
        if args.growth
        else comparison(task, names, args.runs)
    )
    if args.json:
        save(args.json, {"machine": machine(), "task": asdict(task), **record})


def save(path: Path, record: dict[str, Any]) -> None:
    with atomic_write(path) as partial:
        partial.write_text(json.dumps(record, indent=1))


def comparison(task: Task, names: list[str], runs: int) -> dict[str, Any]:
    """Runs the models in turns, prints the table and returns the record."""
    with tempfile.TemporaryDirectory() as folder:
        steps = {name: Step(name, task, folder) for name in names}
        if "literal" in names:
            check_equal(steps["gpvit"], steps["literal"])
        for step in steps.values():
            step()
            step.watch_parts()
        rates = rates_for(task)  # measured between the runs, in the same conditions
        seconds = in_turns(
            {**steps, "rates": rates.measure} if task.part == "backbone" else steps, runs
        )
        parts = {name: step.part_seconds() for name, step in steps.items()}
        detections = {name: step.detections for name, step in steps.items()}
    seconds.pop("rates", None)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    peaks = {name: in_a_process(peak, name, task, environment=RETURN_MEMORY) for name in names}
    record = {"seconds": medians, "all_seconds": seconds, "peak_mib": peaks}
    print(
        f"{task.size}, {task.images} of {'x'.join(map(str, task.image))}, {task.part}, {task.mode}, {task.dtype}"
    )
    for name in names:
        print(f"{name:8} {quartiles(seconds[name])} s, peak {peaks[name]:.0f} MiB")
    if len(names) > 1:
        ratios = [theirs / ours for ours, theirs in zip(*seconds.values())]
        record |= {"ratio": statistics.median(ratios), "ratios": ratios}
        record["memory_ratio"] = peaks["gpvit"] / peaks[names[1]]
        print(f"ratio    {quartiles(ratios)}, of memory {record['memory_ratio']:.2f}")
    if task.part == "backbone":
        record |= limit(task, rates)
        record["fraction_of_limit"] = record["limit_seconds"] / medians["gpvit"]
        print(
            f"limit    {record['limit_seconds']:.3f} s, fraction of it {record['fraction_of_limit']:.3f}"
        )
    else:
        record |= {"parts": parts, "detections": detections}
        print(f"\n| seconds | {' | '.join(parts)} |\n|---{'|---:' * len(parts)}|")
        for part in parts["gpvit"]:
            print(
                f"| {part} | {' | '.join(f'{of_model[part]:.3f}' for of_model in parts.values())} |"
            )
        print(f"| (detections) | {' | '.join(map(str, detections.values()))} |")
    return record


def in_turns(steps: dict[str, Callable[[], None]], runs: int) -> dict[str, list[float]]:
    """Seconds of each run of each step: A, B, A, B, ..."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(runs):
        for name, step in steps.items():
            start = now()
            step()
            seconds[name].append(now() - start)
    return seconds


def now() -> float:
    if Task.device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def quartiles(values: list[float]) -> str:
    low, median, high = np.quantile(values, [0.25, 0.5, 0.75])
    return f"{median:.3f} ({low:.3f} to {high:.3f})"


def peak(name: str, task: Task) -> float:
    """Peak memory in MiB of a step above what is held before it; for a fresh process."""
    with tempfile.TemporaryDirectory() as folder:
        step = Step(name, replace(task, image=(64, 64)), folder)
        step()  # libraries are loaded
        step.load = step.loader(task, folder)
        before, _ = memory_since_reset(task.device)
        step()
        _, highest = memory_since_reset(task.device)
    return highest - before


class Step:
    """A model and its data; a call is one inference or training step, gradients are dropped at its end.

    A backbone gets a ready image and its loss is a made-up one. A detector starts from picture files in ``folder``.
    """

    def __init__(self, name: str, task: Task, folder: str) -> None:
        self.task = task
        torch.manual_seed(0)
        if task.part == "backbone":
            self.model = self.features = build_backbone(name, task.size)
        else:
            self.config = detector_config(name, task)
            self.model = build_detector(name, self.config, task.size)
            self.features = self.model.backbone  # image -> maps
        fill_weights(self.model)
        self.model.train(task.training).to(task.device)
        if task.compile and name == "gpvit":
            self.model.compile()
        self.load = self.loader(task, folder)
        self.seconds: dict[str, list[float]] = defaultdict(list)
        self.meters: dict[str, list[Meter]] = {}
        self.detections = 0  # of the last batch

    def loader(self, task: Task, folder: str) -> Callable[[], Any]:
        """What gives the model's input: an image (B, 3, H, W), or a batch as a detector takes it."""
        if task.part == "backbone":
            image = official.image(0, (task.images, 3, *task.image)).to(task.device)
            return lambda: image
        self.config.dataloader.update(short_side=min(task.image), max_size=max(task.image))
        mapper = instantiate(self.config.dataloader["train" if task.training else "test"].mapper)
        records = [picture(Path(folder), i, *task.image) for i in range(task.images)]
        return lambda: [mapper(record) for record in records]

    def __call__(self) -> None:
        with self.timed("data"):
            batch = self.load()
        with self.task.context():
            if self.task.part == "backbone":
                loss = made_up_loss(self.model(batch)) if self.task.training else self.model(batch)
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

    def watch_parts(self) -> None:
        """From here on, a detector's parts are timed."""
        self.seconds.clear()
        if self.task.part != "backbone":
            features = self.model.backbone
            inner = features.net if hasattr(features, "net") else features.bottom_up
            adapted = isinstance(inner, gpvit.GPViTAdapter)
            modules = {
                "backbone": [inner.net.patch_embed, *inner.net.blocks] if adapted else [inner],
                "features": [features],
                "proposals": [self.model.proposal_generator],
                "heads": [self.model.roi_heads],
            }
            device = self.task.device
            self.meters = {
                part: [Meter(module, device) for module in group] for part, group in modules.items()
            }

    def part_seconds(self) -> dict[str, float]:
        """The median of each part; parts of a detector's forward add up to it but for scaling and padding the image."""
        timed = {part: statistics.median(times) for part, times in self.seconds.items()}
        if not self.meters:
            return timed
        metered = {
            part: sum(statistics.median(meter.seconds) for meter in group)
            for part, group in self.meters.items()
        }
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
            "--against vitdet: Detectron2's ViT needs timm, which is not installed; pip install timm"
        )
    config = detectron2_config("common/models/mask_rcnn_vitdet.py").model.backbone
    config.net.drop_path_rate = 0.0
    config.square_pad = 0
    return config


def detector_config(name: str, task: Task) -> DictConfig:
    """Our detector's config, without drop path; for swin and vitdet with their backbone and pyramid."""
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
        around = getattr(model.backbone, "bottom_up", model.backbone)  # the adapter or the pyramid
        around.net = literal.LiteralGPViT(
            **gpvit.SIZES[size], final_norm=len(around.net.out_norms) > 0
        )
    return model


@torch.no_grad()
def fill_weights(model: nn.Module) -> None:
    """Sets every weight by its name, so that weights of the same name are the same."""
    for key, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            tensor.copy_(torch.from_numpy(np.asarray(official.fill(key, tensor.shape))))
        if key == "roi_heads.box_predictor.cls_score.weight":
            tensor.mul_(
                100
            )  # sure of what it sees, so that there are as many detections as in a full picture


def made_up_loss(maps: dict[str, Tensor]) -> Tensor:
    """How much neighbours differ. (The squares of a LayerNorm's output would have a gradient of almost nothing.)"""
    return sum(out.diff(dim=-1).square().mean() for out in maps.values())


def check_equal(ours: "Step", theirs: "Step") -> None:
    """Raises a UserError unless two models give the same maps and, in training, gradients."""
    task = ours.task
    image = official.image(0, (task.images, 3, *task.image)).to(task.device)
    results = []
    for step in (ours, theirs):
        with task.context():
            maps = step.features(image)
        if task.training:
            made_up_loss(maps).backward()
            maps["gradient"] = torch.cat(
                [weight.grad.flatten() for weight in step.features.parameters()]
            )
            step.model.zero_grad()
        results.append(maps)
    for name, expected in results[1].items():
        distance = ((results[0][name] - expected).norm() / expected.norm()).item()
        allowed = TOLERANCE[task.dtype][name == "gradient"]
        if not distance <= allowed:
            raise UserError(
                f"the models to compare do not compute the same: relative L2 distance {distance:.1e} in {name}, "
                f"allowed is {allowed:.0e}; nothing was timed"
            )


def picture(folder: Path, number: int, height: int, width: int) -> dict[str, Any]:
    """Writes a picture that is enlarged to this size when it is read, with a few objects; returns its record."""
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
    """What the architecture computes in a forward pass of the backbone, from its literal form with fused attention."""
    with torch.device("meta"):  # shapes without numbers: nothing is computed
        net = literal.LiteralGPViT(**gpvit.SIZES[task.size]).eval().to(getattr(torch, task.dtype))
        image = torch.empty(task.images, 3, *task.image, dtype=getattr(torch, task.dtype))
    fused = patch.object(literal, "attention", F.scaled_dot_product_attention)
    with torch.no_grad(), fused, Operations() as found:
        net(image)
    return found.list


def rates_for(task: Task) -> Rates:
    products = {operation.product for operation in operations(task)} - {None}
    return Rates(products, task.device, getattr(torch, task.dtype))


def limit(task: Task, rates: Rates) -> dict[str, Any]:
    seconds = rates.seconds(operations(task))
    if task.training:  # each product of the forward has two in the backward
        seconds = {kind: 3 * value for kind, value in seconds.items()}
    return {
        "limit_seconds": sum(seconds.values()),
        "limit_parts": seconds,
        "copy_rate": rates.copy,
        "matrix_rates": {
            "x".join(map(str, product)): by_way for product, by_way in rates.products.items()
        },
    }


def growth(task: Task, names: list[str], runs: int, path: Path) -> dict[str, Any]:
    """Time and memory of one image of more and more pixels, and of more and more images; draws them."""
    points = []
    print("| model | images | side | GMACs | seconds | peak MiB |\n|---|---:|---:|---:|---:|---:|")
    for side, images in [(side, 1) for side in GROWTH_SIDES] + [
        (GROWTH_SIDES[0], images) for images in GROWTH_IMAGES
    ]:
        there = replace(task, image=(side, side), images=images)
        gmacs = sum(operation.flops for operation in operations(there)) / 2e9
        steps = {name: Step(name, there, "") for name in names}
        in_turns(steps, 1)
        for name, seconds in in_turns(steps, runs).items():
            peak_mib = in_a_process(peak, name, there, environment=RETURN_MEMORY)
            costs = dict(gmacs=gmacs, seconds=statistics.median(seconds), peak_mib=peak_mib)
            points.append(dict(model=name, images=images, side=side, **costs))
            cells = " | ".join(f"{cost:.4g}" for cost in costs.values())
            print(f"| {name} | {images} | {side} | {cells} |", flush=True)
    ratios = {}
    for name in names:
        of_side = {
            point["side"]: point
            for point in points
            if point["model"] == name and point["images"] == 1
        }
        large, small = of_side[GROWTH_SIDES[-1]], of_side[GROWTH_SIDES[-1] // 2]
        ratios[name] = {
            cost: large[cost] / small[cost] for cost in ("gmacs", "seconds", "peak_mib")
        }
        text = ", ".join(f"{cost} {ratio:.2f}" for cost, ratio in ratios[name].items())
        print(f"{name}, {large['side']} over {small['side']}: {text}")
    draw_growth(points, names, path)
    return {"growth": points, "growth_ratios": ratios}


def draw_growth(points: list[dict[str, Any]], names: list[str], path: Path) -> None:
    figure = matplotlib.figure.Figure(figsize=(11, 4.5), layout="constrained")
    for axis, cost, label in zip(
        figure.subplots(1, 2), ("seconds", "peak_mib"), ("seconds", "MiB above weights")
    ):
        for name in names:
            ours = [point for point in points if point["model"] == name]
            for what, chosen in (
                ("one image", [point for point in ours if point["images"] == 1]),
                (
                    f"images of {GROWTH_SIDES[0]}²",
                    [point for point in ours if point["side"] == GROWTH_SIDES[0]],
                ),
            ):
                x = [point["images"] * point["side"] ** 2 / 1e6 for point in chosen]
                axis.plot(x, [point[cost] for point in chosen], marker="o", label=f"{name}, {what}")
        times = (GROWTH_SIDES[-1] / GROWTH_SIDES[0]) ** 2
        ends = [GROWTH_SIDES[0] ** 2 / 1e6, GROWTH_SIDES[-1] ** 2 / 1e6]
        axis.plot(ends, [points[0][cost], times * points[0][cost]], "k:", label="in proportion")
        axis.set(xlabel="megapixels", ylabel=label)
        axis.set_xscale("log", base=2)
        axis.set_yscale("log", base=2)
        axis.xaxis.set_major_formatter("{x:.2g}")
        axis.yaxis.set_major_formatter("{x:g}")
        axis.grid(alpha=0.3)
        axis.legend()
    with atomic_write(path) as partial:
        figure.savefig(partial, dpi=120)


if __name__ == "__main__":
    run_command(main)
