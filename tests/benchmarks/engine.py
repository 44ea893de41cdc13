"""Costs of training besides the model's computation, and of the published detectors' features.

# The training loop and checkpoints, compared with Detectron2's SimpleTrainer:
python tests/benchmarks/engine.py trainer
# Images per second by the number of data-loading processes:
python tests/benchmarks/engine.py loading --data DIR
# Memory of a training step with and without activation checkpointing:
python tests/benchmarks/engine.py memory --size L1 --image 512x512
# Time and memory of each part of backbone and adapter:
python tests/benchmarks/engine.py adapter --size L1 --image 800x1216
"""

from gpvit.utils.environment import prepare_command

if __name__ in ("__main__", "__mp_main__"):
    prepare_command()  # before PyTorch is imported

import argparse
import copy
import itertools
import os
import resource
import statistics
import sys
import tempfile
import time
from typing import Any

import gpvit
import torch
from detectron2.config import instantiate
from detectron2.engine import SimpleTrainer
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage
from gpvit.cli.main import run_command
from gpvit.config import CONFIGS, load_config
from gpvit.data import use_folder
from gpvit.engine import Trainer
from gpvit.utils.analysis import RUNS
from gpvit.utils.profiler import RETURN_MEMORY, Meter, image_size, in_a_process
from omegaconf import DictConfig
from torch import nn

ENGINE_STEPS = 30
LOADED_BATCHES = 20


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("trainer")
    for name, image in (("memory", "512x512"), ("adapter", "800x1216")):
        command = commands.add_parser(name)
        command.add_argument("--size", default="L1", choices=gpvit.SIZES)
        command.add_argument("--image", default=image, type=image_size, metavar="HEIGHTxWIDTH")
    loading = commands.add_parser("loading")
    loading.add_argument(
        "--config-file", default=str(CONFIGS / "mask_rcnn_gpvit_l1.py"), metavar="FILE"
    )
    loading.add_argument("--data", required=True, metavar="PATH", help="a custom dataset")
    loading.add_argument("overrides", nargs="*", metavar="key=value", help="config overrides")
    args = parser.parse_args()
    if args.command == "trainer":
        print_trainer()
    elif args.command == "memory":
        print_memory(args.size, *args.image)
    elif args.command == "adapter":
        print_adapter(args.size, *args.image)
    else:
        print_loading(load_config(args.config_file, args.overrides), args.data)


def print_memory(size: str, height: int, width: int) -> None:
    peaks = {}
    for checkpointing in (False, True):
        peaks[checkpointing] = in_a_process(training_peak, size, height, width, checkpointing)
        which = "with" if checkpointing else "without"
        print(f"{size}, {height}x{width}, {which} checkpointing: {peaks[checkpointing]:.0f} MiB")
    print(f"ratio: {peaks[True] / peaks[False]:.2f}")


def training_peak(size: str, height: int, width: int, checkpointing: bool) -> float:
    """Return the MiB of a training step, above the weights and gradients; one image, backbone."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    net = gpvit.GPViT(**gpvit.SIZES[size], use_act_checkpoint=checkpointing).train().to(device)

    def step(height: int, width: int) -> float:
        net(torch.randn(1, 3, height, width, device=device))["last_feat"].sum().backward()
        return peak_memory(device)

    before = step(32, 32)  # loads libraries and allocates the gradients
    return step(height, width) - before


def print_adapter(size: str, height: int, width: int) -> None:
    """Print time (median) and memory (above what was held) of inference, one image in float32."""
    seconds, _ = in_a_process(adapter_costs, size, height, width)
    _, peaks = in_a_process(adapter_costs, size, height, width, environment=RETURN_MEMORY)
    print(f"| {size}, {height}x{width} | seconds | fraction | peak MiB |\n|---|---:|---:|---:|")
    for part in seconds:
        fraction = seconds[part] / seconds["all"]
        print(f"| {part} | {seconds[part]:.2f} | {fraction:.0%} | {peaks[part]:.0f} |")


@torch.no_grad()
def adapter_costs(size: str, height: int, width: int) -> tuple[dict[str, float], dict[str, float]]:
    """Return seconds and peak MiB of each part of the published Mask R-CNN's features.

    The weights are randomly initialized, also those of the sampling offsets, which are constant
    after the usual initialization.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    cfg = load_config(str(CONFIGS / f"published/mask_rcnn_gpvit_{size.lower()}_1x.py"))
    fpn = instantiate(cfg.model.backbone).eval().to(device)
    adapter = fpn.bottom_up
    attentions = [layer.attn for layer in (*adapter.injectors, *adapter.extractors)]
    parts = {
        "patch embedding": [adapter.net.patch_embed],
        "blocks": list(adapter.net.blocks),
        "spatial prior": [adapter.spatial_prior],
        "injectors": list(adapter.injectors),
        "extractors": list(adapter.extractors),
        "(their deformable attention)": attentions,
        "adapter with backbone": [adapter],
        "all": [fpn],
    }
    for attention in attentions:
        nn.init.normal_(attention.offsets.weight, std=0.05)
        nn.init.normal_(attention.weights.weight, std=0.05)
    meters = {}
    for part, modules in parts.items():
        meters[part] = [Meter(module, device) for module in modules]
    image = torch.randn(1, 3, height, width, device=device)
    for _ in range(1 + RUNS):
        fpn(image)
    seconds, peaks = {}, {}
    for part, part_meters in meters.items():  # without the first run, the warm-up
        seconds[part] = sum(statistics.median(meter.seconds[1:]) for meter in part_meters)
        peaks[part] = max(max(meter.peaks[1:]) for meter in part_meters)
    return seconds, peaks


def print_trainer() -> None:
    """Time alternate iterations of both trainers, and the writing of checkpoints.

    The model is that of the quick start; the batch has four images of 192x256.
    """
    cfg = load_config(str(CONFIGS / "quickstart.py"), ["train.amp.enabled=False"])
    batch = [random_image(192, 256) for _ in range(4)]
    seconds: dict[str, list[float]] = {"plain": [], "engine": []}
    with tempfile.TemporaryDirectory() as folder, EventStorage():
        model, optimizer = model_and_optimizer(cfg)
        engine = Trainer(model, optimizer, seed=0, output_dir=folder, amp=cfg.train.amp)
        engine.storage = EventStorage()
        model, optimizer = model_and_optimizer(cfg)
        plain = SimpleTrainer(model, itertools.repeat(batch), optimizer)
        steps = {
            "plain": plain.run_step,
            "engine": lambda: engine.run_step(itertools.repeat(batch)),
        }
        for number in range(2 + ENGINE_STEPS):
            for name in sorted(steps, reverse=bool(number % 2)):  # each one first in turns
                start = time.perf_counter()
                steps[name]()
                seconds[name].append(time.perf_counter() - start)
    engine_seconds, plain_seconds = seconds["engine"][2:], seconds["plain"][2:]
    ratio = statistics.median(a / b for a, b in zip(engine_seconds, plain_seconds))
    print(
        f"plain {statistics.median(plain_seconds):.3f} s, engine "
        f"{statistics.median(engine_seconds):.3f} s per iteration; median of the ratios {ratio:.3f}"
    )
    print_checkpoints()


def print_checkpoints() -> None:
    """Time the writing of checkpoints as large as those of training runs."""
    for name in ("quickstart", "cascade_mask_rcnn_gpvit_l4"):
        weights = instantiate(load_config(str(CONFIGS / f"{name}.py")).model).state_dict()
        # The weights, AdamW's two moments, and the averaged weights.
        state = {part: copy.deepcopy(weights) for part in ("model", "m", "v", "ema")}
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            path = os.path.join(folder, "model.pth")
            gpvit.checkpoint.save(state, path)
            seconds = time.perf_counter() - start
            size = os.path.getsize(path) / 2**20
            print(f"{name}: training waits {seconds:.2f} s for a checkpoint of {size:.0f} MiB")


def print_loading(cfg: DictConfig, data: str) -> None:
    """Time a config's training data loader without a model, in batches of four images."""
    use_folder(cfg, data, train=True)
    cfg.dataloader.train.update(seed=0, total_batch_size=4)
    print("| data-loading processes | images per second | per process |\n|---:|---:|---:|")
    max_exponent = (os.cpu_count() or 1).bit_length()
    for workers in (0, *(2**i for i in range(max_exponent))):  # 0, 1, 2, 4, ...
        cfg.dataloader.train.num_workers = workers
        batches = iter(instantiate(cfg.dataloader.train))
        for _ in range(2 * max(workers, 1)):  # until all processes run and their queues are full
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
    """Return an image with one object in the format of the dataset mapper."""
    mask = torch.zeros(1, height, width, dtype=torch.bool)
    mask[:, 20:80, 30:100] = True
    instances = Instances(
        (height, width), gt_boxes=Boxes(torch.tensor([[30.0, 20.0, 100.0, 80.0]]))
    )
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
