"""Repeats an iteration whose loss was not finite, and says where the first such number came from.

    gpvit replay --input output/mask_rcnn_gpvit_l1/not_finite_0000123.json

Needs the folder that the training left: config.yaml, and the checkpoint saved when it stopped.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from detectron2.config import instantiate
from detectron2.utils.events import EventStorage

from .. import checkpoint
from ..config import load_config
from ..data.datasets.register import folder_of, require_files, use_folder
from ..data.loader import MappedDataset
from ..engine import Trainer
from ..utils.errors import UserError, preview
from ..utils.seed import seed_everything
from ..utils.text import LINE_LIMIT, PATH_LIMIT, one_line
from .options import add_device, command_parser


def main(arguments: Sequence[str]) -> int:
    parser = command_parser("replay", __doc__)
    parser.add_argument(
        "--input", required=True, type=Path, metavar="FILE", help="not_finite_*.json"
    )
    what = "the custom dataset, if it is no longer where the training run had it"
    parser.add_argument("--data", metavar="PATH", help=what)
    add_device(parser)
    args = parser.parse_args(arguments)
    try:
        report = json.loads(args.input.read_bytes())
        processes, iteration, seed = report["processes"], report["iteration"], report["seed"]
        _require_whole(iteration, seed)
        for process in processes:
            numbers = [
                process["rank"],
                *(image[key] for image in process["images"] for key in ("index", "position")),
            ]
            _require_whole(*numbers)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        reason = f"{type(error).__name__}: {one_line(error)}"
        raise UserError(
            f"{args.input} is no report of a training that stopped ({reason})"
        ) from None
    try:
        trainer, dataset = prepared(args, iteration, seed)
    except UserError:
        raise
    except (
        Exception
    ) as error:  # whatever the values in config and checkpoint cause where they are used
        reason = one_line(f"{type(error).__name__}: {error}", LINE_LIMIT)
        raise UserError(
            f"{args.input.parent} is not the folder of a run that can be repeated ({reason})"
        ) from error
    if any(image["index"] >= len(dataset) for process in processes for image in process["images"]):
        raise UserError(
            f"{args.input} is of other data: this has {len(dataset)} images to train on"
        )
    found = [repeat(trainer, dataset, process, iteration) for process in processes]
    if not any(found):
        print(
            "all losses and gradients are finite here: the numbers depend on what differs, such as the device"
        )
    return 0 if any(found) else 1


def prepared(args: argparse.Namespace, iteration: int, seed: int) -> tuple[Trainer, MappedDataset]:
    """Trainer and data of the run as they were before the iteration."""
    cfg = load_config(str(args.input.parent / "config.yaml"))
    if folder := args.data or folder_of(cfg, cfg.dataloader.train.dataset.names):
        use_folder(cfg, folder, train=True)
    require_files(cfg.dataloader.train)
    state = checkpoint.read_content(str(args.input.parent / f"model_{iteration:07}.pth"))
    with torch.device("meta"):  # takes no memory, whatever sizes the config names
        checkpoint.require_same(instantiate(cfg.model), state["model"], "the checkpoint")
    cfg.optimizer.params.model = model = instantiate(cfg.model).to(args.device)
    checkpoint.load_strictly(model, state["model"], "the checkpoint")
    options = dict(seed=seed, output_dir="", amp=cfg.train.amp, accumulate=cfg.train.accumulate)
    trainer = Trainer(model, instantiate(cfg.optimizer), **options)
    trainer.loss_normalizer = state["trainer"]["loss_normalizer"]
    trainer.grad_scaler.load_state_dict(state["trainer"]["grad_scaler"])
    records, mapper = (
        instantiate(cfg.dataloader.train.dataset),
        instantiate(cfg.dataloader.train.mapper),
    )
    return trainer, MappedDataset(records, mapper, seed, False)


def _require_whole(*values: object) -> None:
    if not all(type(value) is int and 0 <= value < 2**53 for value in values):
        raise ValueError("a number in it is not whole")


def repeat(trainer: Trainer, dataset: MappedDataset, process: dict, iteration: int) -> bool:
    """Runs one process's part of the iteration; whether a number in it was not finite."""
    model, rank = trainer.model, process["rank"]
    first: list[str] = []

    def check(name: str, output: object) -> None:
        tensors = (
            output.values()
            if isinstance(output, dict)
            else output
            if isinstance(output, (list, tuple))
            else [output]
        )
        if not first and any(
            isinstance(t, torch.Tensor) and not t.detach().isfinite().all() for t in tensors
        ):
            first.append(name)

    handles = [
        module.register_forward_hook(lambda module, args, output, name=name: check(name, output))
        for name, module in model.named_modules()
        if name
    ]
    batch = [dataset[image["index"], image["position"]] for image in process["images"]]
    seed_everything(trainer.seed, iteration, rank)
    with EventStorage(iteration):
        try:
            losses = {
                name: float(loss) for name, loss in trainer.forward_and_backward(batch).items()
            }
        except FloatingPointError as error:  # Detectron2's, of proposals
            print(one_line(f"process {rank}: {error}", PATH_LIMIT))
            losses = {"proposals": float("nan")}
    for handle in handles:
        handle.remove()
    bad = not all(torch.tensor(list(losses.values())).isfinite())
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    bad_gradients = [name for name, gradient in gradients.items() if not gradient.isfinite().all()]
    trainer.optimizer.zero_grad()
    print(f"process {rank}: {', '.join(f'{name} {loss:.4g}' for name, loss in losses.items())}")
    for image in process["images"]:
        print(
            f"  image {one_line(image.get('image_id'))}: {one_line(image.get('file_name'), PATH_LIMIT)}"
        )
    if first:
        print(f"  the first output that is not finite is of {first[0]}")
    if bad_gradients:
        print(f"  gradients that are not finite: {preview(bad_gradients)}")
    return bad or bool(first or bad_gradients)
