"""What the variants cost: parameters, FLOPs, and seconds per training iteration."""

import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import torch
from ablation.plan import Run
from detectron2.config import instantiate
from detectron2.utils.events import EventStorage
from gpvit.cli.analyze import default_size
from gpvit.data.loader import start_loading, stop_workers
from gpvit.utils.analysis import build_on_meta, flops, parameters
from omegaconf import DictConfig

BODY = ("backbone", "adapter", "pyramid")
ROUNDS = 9


def measure(runs: Sequence[Run]) -> dict[str, dict[str, Any]]:
    """Measure the costs of one run of each variant of a table.

    Training iterations of all variants alternate, so that a slow moment of the machine affects all
    of them.

    Returns:
        For each variant, "parameters" and "gflops" of backbone and pyramid and of the "heads", for
        inference on one image of "image" (height x width), and "seconds", the median time of an
        iteration on the same batch with "threads".
    """
    costs, steps = {}, {}
    seconds: dict[str, list[float]] = {}
    for run in runs:
        cfg = run.load_config()
        costs[run.variant] = count(cfg)
        steps[run.variant] = build_step(cfg)
        seconds[run.variant] = []
    with EventStorage():
        for _ in range(1 + ROUNDS):
            for variant, step in steps.items():
                start = time.perf_counter()
                step()
                seconds[variant].append(time.perf_counter() - start)
    for variant, times in seconds.items():
        costs[variant]["seconds"] = median(times[1:])  # [0] is the warm-up
        costs[variant]["threads"] = torch.get_num_threads()
    return costs


def count(cfg: DictConfig) -> dict[str, Any]:
    """Count parameters and GFLOPs; see :func:`measure`."""
    height, width = default_size(cfg)
    model = build_on_meta(cfg.model)
    numbers, gflops = parameters(model), flops(model, height, width)
    body_parameters = sum(numbers[part] for part in BODY)
    body_gflops = sum(gflops[part] for part in BODY)
    return {
        "image": f"{height}x{width}",
        "parameters": body_parameters,
        "head_parameters": sum(numbers.values()) - body_parameters,
        "gflops": body_gflops,
        "head_gflops": sum(gflops.values()) - body_gflops,
    }


def build_step(cfg: DictConfig) -> Callable[[], None]:
    """Return a function that trains a new model for one iteration, always on the same batch."""
    device, amp = cfg.train.device, cfg.train.amp
    torch.manual_seed(0)
    model = instantiate(cfg.model).to(device).train()
    cfg.optimizer.params.model = model
    optimizer = instantiate(cfg.optimizer)
    cfg.dataloader.train.update(seed=0, start_iter=0, skip=False)
    batches = start_loading(instantiate(cfg.dataloader.train))
    batch = next(batches)
    stop_workers(batches)
    dtype = getattr(torch, amp.dtype)

    def step() -> None:
        with torch.autocast(device, dtype, enabled=amp.enabled):
            loss = sum(model(batch).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()

    return step
