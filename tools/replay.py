"""Repeats an iteration whose loss was not finite, and says where the first such number came from.

    python tools/replay.py output/mask_rcnn_gpvit_l1/not_finite_0000123.json

Needs the folder that the training left: config.yaml, and the checkpoint saved when it stopped.
"""

import argparse
import json
import sys
from pathlib import Path

import gpvit
import torch
from detectron2.config import instantiate
from detectron2.utils.events import EventStorage
from gpvit.engine import load_config
from gpvit.engine.loader import MappedDataset, seed_everything
from gpvit.errors import UserError
from torch import nn


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("report", type=Path, help="not_finite_*.json")
    parser.add_argument("--data", metavar="DIR", help="own data, as given to the training")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    try:
        report = json.loads(args.report.read_bytes())
        processes, iteration, seed = report["processes"], report["iteration"], report["seed"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{args.report} is no report of a training that stopped ({error})") from None
    cfg = load_config(str(args.report.parent / "config.yaml"))
    if args.data:
        gpvit.data.use_folder(cfg, args.data, train=True)
    model = instantiate(cfg.model).to(args.device).train()
    state = gpvit.checkpoint.read_content(str(args.report.parent / f"model_{iteration:07}.pth"))
    gpvit.checkpoint.load_strictly(model, state["model"], "the checkpoint")
    dataset = MappedDataset(instantiate(cfg.dataloader.train.dataset), instantiate(cfg.dataloader.train.mapper), seed, False)
    found = [repeat(model, dataset, process, seed, iteration, process["rank"]) for process in processes]
    if not any(found):
        print("all losses are finite here: the numbers depend on what differs, such as device or precision")
    return 0 if any(found) else 1


def repeat(model: nn.Module, dataset: MappedDataset, process: dict, seed: int, iteration: int, rank: int) -> bool:
    """Runs one process's part of the iteration; whether a number in it was not finite."""
    first: list[str] = []

    def check(name: str, output: object) -> None:
        tensors = output.values() if isinstance(output, dict) else output if isinstance(output, (list, tuple)) else [output]
        if not first and any(isinstance(t, torch.Tensor) and not t.isfinite().all() for t in tensors):
            first.append(name)

    handles = [
        module.register_forward_hook(lambda module, args, output, name=name: check(name, output))
        for name, module in model.named_modules()
        if name
    ]
    batch = [dataset[image["index"], image["position"]] for image in process["images"]]
    seed_everything(seed, iteration, rank)
    with EventStorage(iteration):
        try:
            losses = {name: loss.item() for name, loss in model(batch).items()}
        except FloatingPointError as error:  # Detectron2's, of proposals
            print(f"process {rank}: {error}")
            losses = {"proposals": float("nan")}
    for handle in handles:
        handle.remove()
    bad = not all(torch.tensor(list(losses.values())).isfinite())
    print(f"process {rank}: {', '.join(f'{name} {loss:.4g}' for name, loss in losses.items())}")
    for image in process["images"]:
        print(f"  image {image['image_id']}: {image['file_name']}")
    if first:
        print(f"  the first output that is not finite is of {first[0]}")
    return bad or bool(first)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        sys.exit(f"error: {error}")
