"""train_net.py with faults injected into its processes.

Environment variables:
    FAULTS: comma-separated ``kind:iteration:rank`` or, for all ranks, ``kind:iteration``. Faults of
        data-loading processes are injected at the image at that position in the stream instead of
        at an iteration. Processes that torchrun has restarted inject nothing.
    ORDER: each process appends the images of its iterations to ``ORDER.RANK``, one JSON per line.
    GRADIENTS: fails if a parameter has no gradient.
"""

import ctypes
import functools
import json
import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import train_net
from detectron2.utils import comm
from gpvit.cli.train import argument_parser
from gpvit.data.loader import MappedDataset
from gpvit.engine import Checkpointer, resume
from gpvit.engine import run as engine_run
from gpvit.engine.ddp import build_ddp
from gpvit.engine.launch import launch
from gpvit.engine.trainer import Trainer
from gpvit.utils.errors import UserError
from omegaconf import OmegaConf

ALL_RANKS = -1


def faults() -> list[tuple[str, int, int]]:
    """Kind, iteration and rank of each fault."""
    if os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0":
        return []
    found = []
    for fault in filter(None, os.environ.get("FAULTS", "").split(",")):
        kind, iteration, *rank = fault.split(":")
        found.append((kind, int(iteration), int(rank[0]) if rank else ALL_RANKS))
    return found


def strikes(kind: str, iteration: int) -> bool:
    """Whether this process has such a fault at this iteration."""
    current = faults()
    return any((kind, iteration, rank) in current for rank in (ALL_RANKS, comm.get_rank()))


class Sabotage:
    """Mixin of Trainer that injects the faults of the training loop."""

    def run_step(self, batches: Any) -> None:
        if strikes("kill", self.iter):
            os.kill(os.getpid(), signal.SIGKILL)
        if strikes("exit", self.iter):
            os._exit(3)
        if strikes("kill_all", self.iter):
            os.killpg(0, signal.SIGKILL)
        if strikes("kill_parent", self.iter):
            os.kill(os.getppid(), signal.SIGKILL)
        for name in ("SIGTERM", "SIGINT"):
            self._send(name)
        unlimited = resource.RLIM_INFINITY
        if strikes("disk_full", self.iter):
            resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, unlimited))
        if strikes("disk_emptied", self.iter):
            resource.setrlimit(resource.RLIMIT_FSIZE, (unlimited, unlimited))
        if strikes("folder_removed", self.iter):
            # Renamed first: TensorBoard's thread may create a file while the folder is removed.
            os.rename(self.output_dir, f"{self.output_dir}-removed")
            shutil.rmtree(f"{self.output_dir}-removed", ignore_errors=True)
        super().run_step(batches)

    def _send(self, name: str) -> None:
        """Send a signal to this process, its parent or its group, at once or while data loads."""
        number = signal.Signals[name]
        if strikes(name, self.iter):
            os.kill(os.getpid(), number)
        if strikes(f"{name}_parent", self.iter):
            os.kill(os.getppid(), number)
        # As Ctrl-C in a terminal, which data-loading processes receive, too.
        if strikes(f"{name}_group", self.iter):
            os.killpg(0, number)
        # By then the process waits for data.
        if strikes(f"{name}_soon", self.iter):
            threading.Timer(0.5, os.kill, (os.getpid(), number)).start()
        if strikes(f"{name}_parent_soon", self.iter):
            threading.Timer(0.5, os.kill, (os.getppid(), number)).start()

    def _write_metrics(self, values: dict[str, torch.Tensor]) -> None:
        super()._write_metrics(values)
        # PyTorch may raise the error of a dead data-loading process at any time.
        if strikes("late_error", self.iter):
            raise RuntimeError("DataLoader worker (pid 1) is killed")

    def _next_batch(self, batches: Any) -> list[dict[str, Any]]:
        batch = super()._next_batch(batches)
        if path := os.environ.get("ORDER"):
            images, pixel_sums = [], []
            for image in batch:
                file_name = os.path.basename(image["file_name"])
                images.append([image["position"], image["index"], file_name])
                pixel_sums.append(int(image["image"].long().sum()))
            with open(f"{path}.{comm.get_rank()}", "a") as file:
                file.write(json.dumps([self.iter, images, pixel_sums]) + "\n")
        return batch

    def _averaged(self, values: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        if strikes("kill_late", self.iter):  # all gradients have been computed
            os.kill(os.getpid(), signal.SIGKILL)
        if "GRADIENTS" in os.environ:
            for name, parameter in self.model.named_parameters():
                assert parameter.grad is not None, name
        return super()._averaged(values)

    def train(self, *args: Any) -> None:
        # A hook runs after the complete forward pass, when batch norm has updated its statistics.
        self.model.register_forward_hook(lambda module, args, output: self._fail())
        super().train(*args)

    def _fail(self) -> None:
        if not self.model.training:
            return
        if strikes("out_of_memory", self.iter):
            raise torch.OutOfMemoryError("CUDA out of memory.")
        if strikes("diverged", self.iter):  # the message of Detectron2's proposal generator
            raise FloatingPointError(
                "Predicted boxes or scores contain Inf/NaN. Training has diverged."
            )
        if strikes("bug", self.iter):
            raise ValueError("a bug")


def fail_in_loading(position: int) -> None:
    """Inject the faults of a data-loading process at the image at this position."""
    if strikes("worker_killed", position):
        os.kill(os.getpid(), signal.SIGKILL)
    if strikes("worker_hangs", position):
        time.sleep(1000)


def main(args: Any) -> None:
    if strikes("disk_full_from_the_start", 0):  # room for the printed lines, but not for a config
        resource.setrlimit(resource.RLIMIT_FSIZE, (6000, resource.RLIM_INFINITY))
    np.random.seed()  # forked processes would all choose the same "random" seed
    original = MappedDataset.__getitem__

    def getitem(dataset: MappedDataset, item: tuple[int, int]) -> dict[str, Any]:
        fail_in_loading(position=item[1])  # item is (index, position)
        return original(dataset, item)

    MappedDataset.__getitem__ = getitem
    engine_run.Trainer = type("Trainer", (Sabotage, Trainer), {})
    patch_evaluation()
    patch_checkpointer()
    if strikes("SIGTERM_before", 0):
        engine_run.build_ddp = terminate_and_wait
    if strikes("blind", 0):  # this process sees no checkpoints, unlike the others
        resume._latest_checkpoint = lambda folder: None
    train_net.main(args)


def patch_evaluation() -> None:
    """Replace the evaluation by metrics from METRICS, or as EVALUATION (off, SIGTERM) requests."""
    if metrics := os.environ.get("METRICS"):  # JSON: iteration -> value of METRIC
        name, values = os.environ.get("METRIC", "AP"), json.loads(metrics)
        create = Checkpointer.__init__

        def remember(checkpointer: Checkpointer, *args: Any, **kwargs: Any) -> None:
            create(checkpointer, *args, **kwargs)
            Checkpointer.current = checkpointer

        Checkpointer.__init__ = remember
        engine_run.evaluate = lambda *args: {
            "segm": {name: values[str(Checkpointer.current.trainer.done)]}
        }
    elif os.environ.get("EVALUATION") == "off":
        engine_run.evaluate = lambda *args: {}
    elif os.environ.get("EVALUATION") == "SIGTERM":

        def evaluate(*args: Any) -> None:
            if comm.is_main_process():
                terminate()
            time.sleep(1000)

        engine_run.evaluate = evaluate


def patch_checkpointer() -> None:
    after_evaluation = Checkpointer.after_evaluation

    def kill_at_best(checkpointer: Checkpointer, metrics: dict[str, float]) -> None:
        after_evaluation(checkpointer, metrics)
        # No other hook has seen the evaluation yet.
        if strikes("kill_at_best", checkpointer.trainer.done):
            os.kill(os.getpid(), signal.SIGKILL)

    Checkpointer.after_evaluation = kill_at_best


def terminate() -> None:
    """Send SIGTERM to the process that a user would send it to: the launcher if there is one."""
    os.kill(os.getppid() if comm.get_world_size() > 1 else os.getpid(), signal.SIGTERM)


def terminate_and_wait(model: torch.nn.Module, **options: Any) -> None:
    terminate()
    time.sleep(1000)


def step_of_two_processes(rank: int, folder: str, values: list[list[float]], dtype: str) -> None:
    """One training step with two gradient accumulation steps on each of two processes.

    Each image has one value, on which the loss depends linearly. Writes the resulting weight, or
    the error, to a file named after the rank.
    """
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(model.weight)
    model.forward = lambda batch: {
        "loss": sum(image["value"] for image in batch) / len(batch) * model.weight.sum()
    }
    amp = OmegaConf.create(dict(enabled=bool(dtype), dtype=dtype or "bfloat16"))
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    trainer = Trainer(build_ddp(model), optimizer, seed=0, output_dir=folder, amp=amp, accumulate=2)
    pixels = torch.zeros(3, 1, 1)
    batch = [{"image": pixels, "value": value, "skipped": []} for value in values[rank]]
    try:
        trainer.train([batch], 1)
        result = str(model.weight.item())
    except UserError as error:
        result = str(error)
    Path(folder, str(rank)).write_text(result)


def run(command: list[str], environment: dict[str, str], output: str) -> None:
    """Run a command in a process forked by a test, in a session of its own.

    Its ranks are forked, too, since imports would take longer than the training run.
    """
    os.setsid()
    os.environ.update(environment)
    if size := environment.get("SHARED_MEMORY"):
        make_shared_memory(size)
    with open(output, "w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.argv = ["train_net.py", *command]
    torch.set_num_threads(1)
    multiprocessing.set_start_method("fork", force=True)
    mp = sys.modules["detectron2.engine.launch"].mp
    mp.start_processes = functools.partial(mp.start_processes, start_method="fork")
    start(command)


def make_shared_memory(size: str) -> None:
    """Mount a private /dev/shm of this size for this process, which requires root."""
    new_mount_namespace = 0x20000  # CLONE_NEWNS
    ctypes.CDLL(None).unshare(new_mount_namespace)
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", "/dev/shm"], check=True)


def start(command: list[str]) -> None:
    try:
        launch(main, argument_parser().parse_intermixed_args(command), device="cpu")
    except UserError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    start(sys.argv[1:])
