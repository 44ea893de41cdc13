"""What the detectors cost.

    python tools/analyze.py complexity                     parameters and multiply-accumulates, as a Markdown table
    python tools/analyze.py memory --size L1 --image 512x512    a training step with and without activation checkpointing
"""

import argparse
import multiprocessing
import resource
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import gpvit
import torch
from detectron2.config import instantiate
from gpvit.engine import load_config
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
NAMES = [f"{head}_gpvit_l{i}" for head in ("mask_rcnn", "cascade_mask_rcnn") for i in (1, 2, 3, 4)]
PARTS = ("backbone", "pyramid", "rpn", "box head", "mask head")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    complexity = commands.add_parser("complexity")
    complexity.add_argument("--image", default="800x1280", type=image_size, help="HEIGHTxWIDTH")
    memory = commands.add_parser("memory")
    memory.add_argument("--size", default="L1", choices=gpvit.SIZES)
    memory.add_argument("--image", default="512x512", type=image_size, help="HEIGHTxWIDTH")
    args = parser.parse_args()
    if args.command == "complexity":
        print_complexity(*args.image)
    else:
        print_memory(args.size, *args.image)


def image_size(text: str) -> tuple[int, int]:
    height, width = text.split("x")
    return int(height), int(width)


def print_complexity(height: int, width: int) -> None:
    """One image of this size; 1000 boxes through each box head (without its last linear layers), 100 masks."""
    print(f"| config ({height}x{width}) | parameters (M) | GMACs | {' | '.join(PARTS)} |")
    print("|---" + "|---:" * (2 + len(PARTS)) + "|")
    for name in NAMES:
        parameters, macs = complexity(load_config(str(CONFIGS / f"{name}.py")).model, height, width)
        parts = " | ".join(f"{macs[part]:.1f}" for part in PARTS)
        print(f"| `{name}` | {parameters / 1e6:.1f} | {sum(macs.values()):.1f} | {parts} |")


@torch.no_grad()
def complexity(model_config: DictConfig, height: int, width: int) -> tuple[int, dict[str, float]]:
    """Number of parameters, and 1e9 multiply-accumulates of the matrix products and convolutions of each part."""
    with torch.device("meta"):  # shapes without numbers: nothing is computed
        model = instantiate(model_config).eval()
        heads = model.roi_heads
        image = torch.empty(1, 3, height, width)
        macs = {"backbone": count_macs(model.backbone.net, image)}
        macs["pyramid"] = count_macs(model.backbone, image) - macs["backbone"]
        levels = model.backbone(image)
        macs["rpn"] = count_macs(model.proposal_generator.rpn_head, list(levels.values()))
        channels = levels["p2"].shape[1]
        box_heads = heads.box_head if isinstance(heads.box_head, nn.ModuleList) else [heads.box_head]
        macs["box head"] = sum(count_macs(head, torch.empty(1000, channels, 7, 7)) for head in box_heads)
        macs["mask head"] = count_macs(heads.mask_head.layers, torch.empty(100, channels, 14, 14))
    return sum(parameter.numel() for parameter in model.parameters()), macs


def count_macs(module: nn.Module, inputs: Tensor | list[Tensor]) -> float:
    # The spelled-out attention, since the counter does not know every fused one.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        module(inputs)
    return counter.get_total_flops() / 2e9


def print_memory(size: str, height: int, width: int) -> None:
    peaks = {}
    for checkpointing in (False, True):
        # A process each: the peak of a process never falls.
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
            peaks[checkpointing] = process.submit(training_peak, size, height, width, checkpointing).result()
        print(f"{size}, {height}x{width}, {'with' if checkpointing else 'without'} checkpointing: {peaks[checkpointing]:.0f} MiB")
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


def peak_memory(device: str) -> float:
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


if __name__ == "__main__":
    main()
