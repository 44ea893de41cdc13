"""What the detectors cost.

python tools/analyze.py model --config-file configs/mask_rcnn_gpvit_l1.py   a detector, part by part: parameters, FLOPs,
                                                            memory and time of inference on this machine
python tools/analyze.py zoo                                 parameters and FLOPs of all models, as a Markdown table
python tools/analyze.py published                           the published detectors' AP and files, likewise
python tools/analyze.py memory --size L1 --image 512x512    a training step with and without activation checkpointing
python tools/analyze.py adapter --size L1 --image 800x1216  time and memory of the published detectors' features
python tools/analyze.py engine                              what the training engine adds to Detectron2's plain trainer
python tools/analyze.py loading --data DIR                  images a second from how many data-loading processes

What a FLOP is, and what is counted, is said in gpvit/utils/analysis.py.
"""

import os
import signal

if __name__ == "__main__":  # Ctrl-C during the imports, which take seconds
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))
elif __name__ == "__mp_main__":  # a process that is spawned, which ends at once whatever it is at
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import argparse
import itertools
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import gpvit
import torch
from common import run_command
from detectron2.config import instantiate
from detectron2.engine import SimpleTrainer
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage
from gpvit.config import load_config, with_overrides
from gpvit.data import set_num_classes
from gpvit.engine import Trainer
from gpvit.model_zoo import COCO_AP, detector_address
from gpvit.predictor import config_of
from gpvit.utils.analysis import PARTS, RUNS, built_on_meta, costs, flops, parameters
from gpvit.utils.profiler import RETURN_MEMORY, Meter, image_size, in_a_process, machine
from omegaconf import DictConfig
from torch import nn

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
ZOO = [
    template.format(i)
    for template in (
        "mask_rcnn_gpvit_l{}",
        "cascade_mask_rcnn_gpvit_l{}",
        "published/mask_rcnn_gpvit_l{}_1x",
        "published/retinanet_gpvit_l{}_1x",
    )
    for i in (1, 2, 3, 4)
]
ENGINE_STEPS = 30
LOADED_BATCHES = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    model = commands.add_parser("model")
    source = model.add_mutually_exclusive_group(required=True)
    source.add_argument("--config-file", metavar="FILE", help="LazyConfig file of the detector")
    source.add_argument("--weights", metavar="PATH", help="a checkpoint or a training's folder, for the config it carries")
    model.add_argument("--image", type=image_size, metavar="HEIGHTxWIDTH", help="default: the config's size, 3:2")
    model.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    model.add_argument("overrides", nargs="*", metavar="key=value", help="changes to the config")
    zoo = commands.add_parser("zoo")
    zoo.add_argument("--image", default="800x1280", type=image_size, metavar="HEIGHTxWIDTH")
    commands.add_parser("published")
    for name, image in (("memory", "512x512"), ("adapter", "800x1216")):
        command = commands.add_parser(name)
        command.add_argument("--size", default="L1", choices=gpvit.SIZES)
        command.add_argument("--image", default=image, type=image_size, metavar="HEIGHTxWIDTH")
    commands.add_parser("engine")
    loading = commands.add_parser("loading")
    loading.add_argument("--config-file", default=str(CONFIGS / "mask_rcnn_gpvit_l1.py"), metavar="FILE")
    loading.add_argument("--data", required=True, metavar="DIR", help="own data, as for train_net.py")
    loading.add_argument("overrides", nargs="*", metavar="key=value", help="changes to the config")
    args = parser.parse_args()
    if args.command == "model":
        print_model(args.config_file, args.weights, args.overrides, args.image, args.device)
    elif args.command == "zoo":
        print_zoo(*args.image)
    elif args.command == "published":
        print_published()
    elif args.command == "memory":
        print_memory(args.size, *args.image)
    elif args.command == "adapter":
        print_adapter(args.size, *args.image)
    elif args.command == "engine":
        print_engine()
    else:
        print_loading(load_config(args.config_file, args.overrides), args.data)


def print_model(
    config_file: str | None, weights: str | None, overrides: list[str], image: tuple[int, int] | None, device: str
) -> None:
    """Inference of one image in float32, with random weights."""
    source = (config_file, weights, overrides)
    cfg = detector_config(*source)
    height, width = image or usual_size(cfg)
    model = built_on_meta(cfg.model)
    counts, computed = parameters(model), flops(model, height, width)
    seconds, _, found = in_a_process(detector_costs, *source, height, width, device)
    _, peaks, _ = in_a_process(detector_costs, *source, height, width, device, environment=RETURN_MEMORY)
    total = sum(seconds.values())
    print(f"{config_file or weights}, one image of {height}x{width}, random weights, {found} objects found, {on(device)}\n")
    print("| part | parameters (M) | GFLOPs | peak MiB | ms | share of time |\n|---|---:|---:|---:|---:|---:|")
    for part in PARTS:
        if counts[part] or seconds[part]:
            numbers = (counts[part] / 1e6, computed[part], peaks[part], 1e3 * seconds[part])
            print_row(part, *numbers, seconds[part] / total)
    print_row("total", sum(counts.values()) / 1e6, sum(computed.values()), max(peaks.values()), 1e3 * total, 1)
    print("\npeak: the most that was held while the part ran, above what was held before the image came; total: the largest")


def print_row(part: str, millions: float, gflops: float, peak: float, milliseconds: float, share: float) -> None:
    print(f"| {part} | {millions:.2f} | {gflops:.2f} | {peak:.0f} | {milliseconds:.1f} | {share:.0%} |")


def detector_config(config_file: str | None, weights: str | None, overrides: list[str]) -> DictConfig:
    """A config from its file, or from the checkpoint that carries it, for the checkpoint's classes."""
    if config_file:
        return load_config(config_file, overrides)
    file = gpvit.checkpoint.read(str(weights))
    cfg = with_overrides(config_of(file), overrides)
    set_num_classes(cfg.model, len(file.require_classes()))
    return cfg


def usual_size(cfg: DictConfig) -> tuple[int, int]:
    """Height and width of a 3:2 image as the config has it in inference, padded to multiples of 32."""
    height, width = cfg.dataloader.short_side, min(round(1.5 * cfg.dataloader.short_side), cfg.dataloader.max_size)
    return -(-height // 32) * 32, -(-width // 32) * 32


def detector_costs(
    config_file: str | None, weights: str | None, overrides: list[str], height: int, width: int, device: str
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


def print_zoo(height: int, width: int) -> None:
    """Parameters and 1e9 FLOPs for one image, and what was published; 3x models cost what the 1x models do."""
    parts = [part for part in PARTS if part != "rest"]
    print(f"| config ({height}x{width}) | parameters (M) | GFLOPs | {' | '.join(parts)} | published AP, 1x | 3x |")
    print("|---" + "|---:" * (4 + len(parts)) + "|")
    for name in ZOO:
        model = built_on_meta(load_config(str(CONFIGS / f"{name}.py")).model)
        computed = flops(model, height, width)
        cells = [f"{sum(parameters(model).values()) / 1e6:.1f}", f"{sum(computed.values()):.0f}"]
        cells += [f"{computed[part]:.0f}" if computed[part] else "" for part in parts]
        cells += [published_ap(name.removeprefix("published/").replace("1x", schedule)) for schedule in ("1x", "3x")]
        print(f"| `{name}` | {' | '.join(cells)} |")


def published_ap(name: str) -> str:
    """Box and mask AP of a config of configs/published, or box AP."""
    return " / ".join(map(str, COCO_AP[name])) if name in COCO_AP else "not measured"


def print_published() -> None:
    """AP of the published detectors, each with a link to its file."""
    print("| size | Mask R-CNN 1x: box / mask AP | 3x | RetinaNet 1x: box AP | 3x |\n|---|---:|---:|---:|---:|")
    for size in gpvit.SIZES:
        names = [f"{kind}_gpvit_{size.lower()}_{when}" for kind in ("mask_rcnn", "retinanet") for when in ("1x", "3x")]
        print(f"| {size} | " + " | ".join(f"[{published_ap(name)}]({detector_address(name)})" for name in names) + " |")


def print_memory(size: str, height: int, width: int) -> None:
    peaks = {}
    for checkpointing in (False, True):
        peaks[checkpointing] = in_a_process(training_peak, size, height, width, checkpointing)
        how = "with" if checkpointing else "without"
        print(f"{size}, {height}x{width}, {how} checkpointing: {peaks[checkpointing]:.0f} MiB")
    print(f"ratio: {peaks[True] / peaks[False]:.2f}")


def training_peak(size: str, height: int, width: int, checkpointing: bool) -> float:
    """Memory in MiB that forward and backward of the backbone need above its weights and gradients, one image."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    net = gpvit.GPViT(**gpvit.SIZES[size], use_act_checkpoint=checkpointing).train().to(device)

    def step(height: int, width: int) -> float:
        net(torch.randn(1, 3, height, width, device=device))["last_feat"].sum().backward()
        return peak_memory(device)

    before = step(32, 32)  # libraries are loaded and gradients allocated
    return step(height, width) - before


def print_adapter(size: str, height: int, width: int) -> None:
    """Inference of one image in float32: the median of a few runs, and the memory needed above what was held before."""
    seconds, _ = in_a_process(adapter_costs, size, height, width)
    _, peaks = in_a_process(adapter_costs, size, height, width, environment=RETURN_MEMORY)
    print(f"| {size}, {height}x{width} | seconds | share | peak MiB |\n|---|---:|---:|---:|")
    for part in seconds:
        print(f"| {part} | {seconds[part]:.2f} | {seconds[part] / seconds['all']:.0%} | {peaks[part]:.0f} |")


@torch.no_grad()
def adapter_costs(size: str, height: int, width: int) -> tuple[dict[str, float], dict[str, float]]:
    """Seconds and peak MiB of each part of the published Mask R-CNN's features; fresh weights but scattered offsets."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    fpn = instantiate(load_config(str(CONFIGS / f"published/mask_rcnn_gpvit_{size.lower()}_1x.py")).model.backbone)
    fpn = fpn.eval().to(device)
    adapter = fpn.bottom_up
    parts = {
        "patch embedding": [adapter.net.patch_embed],
        "blocks": list(adapter.net.blocks),
        "spatial prior": [adapter.spatial_prior],
        "injectors": list(adapter.injectors),
        "extractors": list(adapter.extractors),
        "(their deformable attention)": [layer.attn for layer in (*adapter.injectors, *adapter.extractors)],
        "adapter with backbone": [adapter],
        "all": [fpn],
    }
    for layer in parts["(their deformable attention)"]:
        nn.init.normal_(layer.offsets.weight, std=0.05)
        nn.init.normal_(layer.weights.weight, std=0.05)
    meters = {part: [Meter(module, device) for module in modules] for part, modules in parts.items()}
    image = torch.randn(1, 3, height, width, device=device)
    for _ in range(1 + RUNS):
        fpn(image)
    seconds = {part: sum(statistics.median(meter.seconds[1:]) for meter in of_part) for part, of_part in meters.items()}
    peaks = {part: max(max(meter.peaks[1:]) for meter in of_part) for part, of_part in meters.items()}
    return seconds, peaks


def print_engine() -> None:
    """Iterations of both trainers in turns, on the quick start's model and one batch of four images of 192x256."""
    cfg = load_config(str(CONFIGS / "quickstart.py"), ["train.amp.enabled=False"])
    batch = [random_image(192, 256) for _ in range(4)]
    seconds: dict[str, list[float]] = {"plain": [], "engine": []}
    with tempfile.TemporaryDirectory() as folder, EventStorage():
        model, optimizer = model_and_optimizer(cfg)
        engine = Trainer(model, optimizer, seed=0, output_dir=folder, amp=cfg.train.amp)
        engine.storage = EventStorage()
        model, optimizer = model_and_optimizer(cfg)
        plain = SimpleTrainer(model, itertools.repeat(batch), optimizer)
        steps = {"plain": plain.run_step, "engine": lambda: engine.run_step(itertools.repeat(batch))}
        for number in range(2 + ENGINE_STEPS):
            for name in sorted(steps, reverse=bool(number % 2)):
                start = time.perf_counter()
                steps[name]()
                seconds[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(values[2:]) for name, values in seconds.items()}
    ratio = statistics.median(a / b for a, b in zip(seconds["engine"][2:], seconds["plain"][2:]))
    print(f"plain {medians['plain']:.3f} s, engine {medians['engine']:.3f} s an iteration; median of the ratios {ratio:.3f}")
    for name in ("quickstart", "cascade_mask_rcnn_gpvit_l4"):
        weights = instantiate(load_config(str(CONFIGS / f"{name}.py")).model).state_dict()
        # As large as that of a training: the weights, AdamW's two moments, the averaged weights.
        state = {part: {key: tensor.clone() for key, tensor in weights.items()} for part in ("model", "m", "v", "ema")}
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            path = os.path.join(folder, "model.pth")
            gpvit.checkpoint.save(state, path)
            seconds = time.perf_counter() - start
            print(f"{name}: training waits {seconds:.2f} s for a checkpoint of {os.path.getsize(path) / 2**20:.0f} MiB")


def print_loading(cfg: DictConfig, data: str) -> None:
    """The training images of a config as they go into the model, batches of four, with no model behind them."""
    gpvit.data.use_folder(cfg, data, train=True)
    cfg.dataloader.train.update(seed=0, total_batch_size=4)
    print("| data-loading processes | images a second | of each process |\n|---:|---:|---:|")
    for workers in (0, *(2**i for i in range((os.cpu_count() or 1).bit_length()))):
        cfg.dataloader.train.num_workers = workers
        batches = iter(instantiate(cfg.dataloader.train))
        for _ in range(2 * max(workers, 1)):  # until all processes run and their queues are filled
            next(batches)
        start = time.perf_counter()
        for _ in range(LOADED_BATCHES):
            next(batches)
        rate = 4 * LOADED_BATCHES / (time.perf_counter() - start)
        print(f"| {workers} | {rate:.1f} | {rate / max(workers, 1):.1f} |", flush=True)


def model_and_optimizer(cfg: DictConfig) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    cfg.optimizer.params.model = instantiate(cfg.model)
    return cfg.optimizer.params.model, instantiate(cfg.optimizer)


def random_image(height: int, width: int) -> dict[str, Any]:
    """An image with one object, as a mapper gives it."""
    mask = torch.zeros(1, height, width, dtype=torch.bool)
    mask[:, 20:80, 30:100] = True
    instances = Instances((height, width), gt_boxes=Boxes(torch.tensor([[30.0, 20.0, 100.0, 80.0]])))
    instances.gt_classes, instances.gt_masks = torch.tensor([0]), BitMasks(mask)
    image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8)
    return {"image": image, "instances": instances, "file_name": "", "skipped": []}


def peak_memory(device: str) -> float:
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


if __name__ == "__main__":
    run_command(main)
