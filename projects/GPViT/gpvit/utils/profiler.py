"""Run time and memory of models and their parts."""

import argparse
import math
import multiprocessing
import os
import platform
import re
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, ClassVar
from unittest.mock import patch

import torch
from torch import nn

from ..version import __version__
from .text import one_line

# Environment of processes whose peak memory is measured: glibc then returns freed memory to the
# system at once (which is slow), so that it does not count as held.
RETURN_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "65536"}


def image_size(text: str) -> tuple[int, int]:
    """Parse HEIGHTxWIDTH, for the ``type`` of an argparse option."""
    if not re.fullmatch(r"[1-9]\d{0,4}x[1-9]\d{0,4}", text):  # 1 to 99999 each
        raise argparse.ArgumentTypeError(
            f"must be HEIGHTxWIDTH in pixels, such as 512x512, got {one_line(text)}"
        )
    height, width = text.split("x")
    return int(height), int(width)


def machine() -> dict[str, Any]:
    """Return the hardware and the versions of a measurement."""
    cpuinfo = Path("/proc/cpuinfo")
    content = cpuinfo.read_text() if cpuinfo.exists() else ""
    cpu = re.search(r"model name\s*: (.*)", content)
    return {
        "cpu": cpu[1] if cpu else platform.machine(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "gpvit": __version__,
    }


def in_a_process(function: Callable, *args: Any, environment: dict[str, str] | None = None) -> Any:
    """Return the result of a function that is called in a new process.

    The peak memory of a process never decreases, so each measurement needs a process of its own.
    """
    context = multiprocessing.get_context("spawn")
    with (
        patch.dict(os.environ, environment or {}),
        ProcessPoolExecutor(1, mp_context=context) as process,
    ):
        return process.submit(function, *args).result()


class Meter:
    """Measures each call of a module: seconds, and peak memory in MiB above what was held before.

    Meters may be nested. ``own_seconds`` and ``own_peaks`` cover only the time in which no inner
    meter was running; these peaks are above what was held when the outermost meter started.
    """

    running: ClassVar[list["Meter"]] = []  # the innermost one is last

    def __init__(self, module: nn.Module, device: str) -> None:
        self.device = device
        self.seconds: list[float] = []
        self.peaks: list[float] = []
        self.own_seconds: list[float] = []
        self.own_peaks: list[float] = []
        module.register_forward_pre_hook(lambda *_: self.start())
        module.register_forward_hook(lambda *_: self.stop())

    def start(self) -> None:
        # Reading the peak resets it. What it was until now belongs to the enclosing meter.
        self.held, peak = memory_since_reset(self.device)
        self.peak = self.own_peak = self.held
        self.inner_seconds = 0.0
        for outer in self.running[-1:]:
            outer.own_peak = max(outer.own_peak, peak)
        self.running.append(self)
        self.started = time.perf_counter()

    def stop(self) -> None:
        _, peak = memory_since_reset(self.device)
        seconds = time.perf_counter() - self.started
        self.own_peak = max(self.own_peak, peak)
        self.peak = max(self.peak, self.own_peak)
        self.seconds.append(seconds)
        self.peaks.append(self.peak - self.held)
        self.own_seconds.append(seconds - self.inner_seconds)
        self.own_peaks.append(self.own_peak - self.running[0].held)
        self.running.pop()
        for outer in self.running[-1:]:
            outer.peak = max(outer.peak, self.peak)
            outer.inner_seconds += seconds


def memory_since_reset(device: str) -> tuple[float, float]:
    """Return the MiB held now and the peak since the last call; NaN where it is not available."""
    if device == "cuda":
        torch.cuda.synchronize()
        now, peak = torch.cuda.memory_allocated() / 2**20, torch.cuda.max_memory_allocated() / 2**20
        torch.cuda.reset_peak_memory_stats()
        return now, peak
    status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if not os.access(reset, os.W_OK):
        return math.nan, math.nan
    # Lines such as "VmHWM:     123456 kB"; HWM, the high-water mark, is the peak of RSS.
    values = dict(re.findall(r"^(VmRSS|VmHWM):\s*(\d+)", status.read_text(), re.MULTILINE))
    reset.write_text("5")  # resets the high-water mark
    return int(values["VmRSS"]) / 1024, int(values["VmHWM"]) / 1024
