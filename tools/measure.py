"""What the tools measure with."""

import math
import multiprocessing
import os
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, ClassVar
from unittest.mock import patch

import torch
from torch import nn

# For processes whose peak memory is looked at: what is freed goes back to the system at once, which is slow.
RETURN_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "65536"}


def image_size(text: str) -> tuple[int, int]:
    height, width = text.split("x")
    return int(height), int(width)


def in_a_process(function: Callable, *args: Any, environment: dict[str, str] | None = None) -> Any:
    """The function's result in a process of its own: the peak of a process never falls."""
    context = multiprocessing.get_context("spawn")
    with patch.dict(os.environ, environment or {}), ProcessPoolExecutor(1, mp_context=context) as process:
        return process.submit(function, *args).result()


class Meter:
    """Seconds, and peak memory in MiB above what was held at the start, of each call of a module; meters may nest."""

    running: ClassVar[list[list[float]]] = []  # of each module that runs: memory at its start, and its peak so far

    def __init__(self, module: nn.Module, device: str) -> None:
        self.device = device
        self.seconds: list[float] = []
        self.peaks: list[float] = []
        module.register_forward_pre_hook(lambda *_: self.start())
        module.register_forward_hook(lambda *_: self.stop())

    def start(self) -> None:
        now, peak = memory_since_reset(self.device)
        if self.running:
            self.running[-1][1] = max(self.running[-1][1], peak)
        self.running.append([now, now])
        self.started = time.perf_counter()

    def stop(self) -> None:
        _, peak = memory_since_reset(self.device)
        self.seconds.append(time.perf_counter() - self.started)
        start, earlier_peak = self.running.pop()
        peak = max(peak, earlier_peak)
        self.peaks.append(peak - start)
        if self.running:
            self.running[-1][1] = max(self.running[-1][1], peak)


def memory_since_reset(device: str) -> tuple[float, float]:
    """MiB held now, and the most since the last call; not a number where the system does not tell."""
    if device == "cuda":
        torch.cuda.synchronize()
        now, peak = torch.cuda.memory_allocated() / 2**20, torch.cuda.max_memory_allocated() / 2**20
        torch.cuda.reset_peak_memory_stats()
        return now, peak
    status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if not os.access(reset, os.W_OK):
        return math.nan, math.nan
    values = dict(line.split(":", 1) for line in status.read_text().splitlines())
    now, peak = (int(values[key].split()[0]) / 1024 for key in ("VmRSS", "VmHWM"))
    reset.write_text("5")  # makes the peak start anew
    return now, peak
