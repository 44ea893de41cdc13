"""Repeat an iteration whose loss or gradient was not finite, and print where that began.

    gpvit replay --input output/mask_rcnn_gpvit_l1/not_finite_0000123.json

The folder of --input must contain the run's config.yaml and the checkpoint that it saved when it
stopped. The exit code is 1 if all losses and gradients are finite this time.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from detectron2.config import instantiate
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from .. import checkpoint
from ..config import load_config
from ..data.datasets.register import folder_of, require_files, use_folder
from ..data.loader import MappedDataset
from ..engine import Trainer
from ..engine.trainer import load_unsaved_buffers
from ..utils.errors import UserError, preview
from ..utils.seed import seed_everything
from ..utils.text import LINE_LIMIT, PATH_LIMIT, one_line
from .options import add_device, command_parser


def main(arguments: Sequence[str]) -> int:
    parser = command_parser("replay", __doc__)
    parser.add_argument(
        "--input",
        required=True,
        type=Path,
        metavar="FILE",
        help="not_finite_*.json in the folder of a training run",
    )
    parser.add_argument(
        "--data",
        metavar="PATH",
        help="custom dataset, if it was moved (default: the path that the training run used)",
    )
    add_device(parser)
    args = parser.parse_args(arguments)
    processes, iteration, seed = read_report(args.input)
    try:
        trainer, dataset = prepared(args, iteration, seed)
    except UserError:
        raise
    # Values in the config or the checkpoint may cause any error where they are used.
    except Exception as error:
        reason = one_line(f"{type(error).__name__}: {error}", LINE_LIMIT)
        raise UserError(
            f"{args.input.parent} is not the folder of a run that can be repeated ({reason})"
        ) from error
    for process in processes:
        for image in process["images"]:
            if image["index"] >= len(dataset):
                raise UserError(
                    f"{args.input} does not match the dataset, which has {len(dataset)} training "
                    "images; give the dataset of the run by --data"
                )
    found = [repeat(trainer, dataset, process, iteration) for process in processes]
    if any(found):
        return 0
    print(
        "all losses and gradients are finite: the result depends on something that differs from "
        "the training run, such as the device"
    )
    return 1


def read_report(path: Path) -> tuple[list[dict[str, Any]], int, int]:
    """Return the processes of a report, the iteration and the seed.

    Each process has its "rank" and its "images"; of these, "index" is the index in the dataset and
    "position" the position in the order of the training run.

    Raises:
        UserError: the file is not such a report.
    """
    try:
        report = json.loads(path.read_bytes())
        processes, iteration, seed = report["processes"], report["iteration"], report["seed"]
        _require_indices(iteration, seed)
        for process in processes:
            _require_indices(process["rank"])
            for image in process["images"]:
                _require_indices(image["index"], image["position"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        reason = f"{type(error).__name__}: {one_line(error)}"
        raise UserError(
            f"{path} is not a report of a training run that stopped ({reason})"
        ) from None
    return processes, iteration, seed


def _require_indices(*values: object) -> None:
    # type() rather than isinstance(): bool is a subclass of int. Below 2**53, JSON is exact.
    if not all(type(value) is int and 0 <= value < 2**53 for value in values):
        raise ValueError("a number in it is not a non-negative integer")


def prepared(args: argparse.Namespace, iteration: int, seed: int) -> tuple[Trainer, MappedDataset]:
    """Return the trainer and the dataset of the run in their state before the iteration."""
    cfg = load_config(str(args.input.parent / "config.yaml"))
    folder = args.data or folder_of(cfg, cfg.dataloader.train.dataset.names)
    if folder:
        use_folder(cfg, folder, train=True)
    require_files(cfg.dataloader.train)
    state = checkpoint.read_content(str(args.input.parent / f"model_{iteration:07}.pth"))
    with torch.device("meta"):  # allocates no memory, whatever sizes are in the config
        checkpoint.require_same(instantiate(cfg.model), state["model"], "the checkpoint")
    cfg.optimizer.params.model = model = instantiate(cfg.model).to(args.device)
    checkpoint.load_strictly(model, state["model"], "the checkpoint")
    options = dict(seed=seed, output_dir="", amp=cfg.train.amp, accumulate=cfg.train.accumulate)
    trainer = Trainer(model, instantiate(cfg.optimizer), **options)
    load_unsaved_buffers(model, state["trainer"])
    trainer.grad_scaler.load_state_dict(state["trainer"]["grad_scaler"])
    records = instantiate(cfg.dataloader.train.dataset)
    mapper = instantiate(cfg.dataloader.train.mapper)
    return trainer, MappedDataset(records, mapper, seed, False)


def repeat(trainer: Trainer, dataset: MappedDataset, process: dict, iteration: int) -> bool:
    """Run one process's part of the iteration and print its losses, images and findings.

    Returns:
        Whether a loss, a gradient or the output of a module is not finite.
    """
    model, rank = trainer.model, process["rank"]
    batch = [dataset[image["index"], image["position"]] for image in process["images"]]
    seed_everything(trainer.seed, iteration, rank)
    with EventStorage(iteration), first_non_finite_output(model) as module_names:
        try:
            losses = {
                name: float(loss) for name, loss in trainer.forward_and_backward(batch).items()
            }
        except FloatingPointError as error:  # raised by Detectron2's RPN
            print(one_line(f"process {rank}: {error}", PATH_LIMIT))
            losses = {"proposals": float("nan")}
    losses_are_finite = bool(torch.tensor(list(losses.values())).isfinite().all())
    bad_gradients = []
    for name, parameter in model.named_parameters():
        if parameter.grad is not None and not parameter.grad.isfinite().all():
            bad_gradients.append(name)
    trainer.optimizer.zero_grad()
    print(f"process {rank}: {', '.join(f'{name} {loss:.4g}' for name, loss in losses.items())}")
    for image in process["images"]:
        path = one_line(image.get("file_name"), PATH_LIMIT)
        print(f"  image {one_line(image.get('image_id'))}: {path}")
    if module_names:
        print(f"  first output that is not finite: {module_names[0]}")
    if bad_gradients:
        print(f"  gradients that are not finite: {preview(bad_gradients)}")
    return not losses_are_finite or bool(module_names or bad_gradients)


@contextmanager
def first_non_finite_output(model: nn.Module) -> Iterator[list[str]]:
    """Yield a list that receives the name of the first module whose output is not finite."""
    names: list[str] = []

    def check(name: str, module: nn.Module, args: object, output: object) -> None:
        if not names and not _is_finite(output):
            names.append(name)

    handles = []
    for name, module in model.named_modules():
        if name:  # not the model itself
            handles.append(module.register_forward_hook(partial(check, name)))
    yield names
    for handle in handles:
        handle.remove()


def _is_finite(output: object) -> bool:
    """Return whether all tensors directly in a module's output are finite."""
    if isinstance(output, dict):
        values = list(output.values())
    elif isinstance(output, list | tuple):
        values = list(output)
    else:
        values = [output]
    tensors = [value for value in values if isinstance(value, Tensor)]
    return all(tensor.detach().isfinite().all() for tensor in tensors)
