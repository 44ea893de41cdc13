"""train_net.py with faults patched into its processes.

The environment variable FAULTS names them, "kind:iteration:rank" each, with commas between; "kind:iteration" is for all
ranks. What a data-loading process suffers happens at the image of that position in the stream instead. Where torchrun
starts the processes anew, nothing happens any more. With ORDER, each process writes the images of its iterations to
ORDER.RANK, one JSON a line; with GRADIENTS, it fails where a parameter has none.
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


def faults() -> list[tuple[str, int, int]]:
    """Kind, iteration and rank; -1 for all ranks."""
    if os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0":
        return []
    parts = [fault.split(":") for fault in os.environ.get("FAULTS", "").split(",") if fault]
    return [(part[0], int(part[1]), int(part[2]) if len(part) > 2 else -1) for part in parts]


def strikes(kind: str, now: int) -> bool:
    return any((k, i) == (kind, now) and rank in (-1, comm.get_rank()) for k, i, rank in faults())


class Sabotage:
    """The faults of the training loop, as a mixin of Trainer."""

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
            if strikes(name, self.iter):
                os.kill(os.getpid(), signal.Signals[name])
            if strikes(f"{name}_parent", self.iter):
                os.kill(os.getppid(), signal.Signals[name])
            if strikes(
                f"{name}_group", self.iter
            ):  # as Ctrl-C in a terminal: to data-loading processes, too
                os.killpg(0, signal.Signals[name])
            if strikes(f"{name}_soon", self.iter):  # when it waits for data
                threading.Timer(0.5, os.kill, (os.getpid(), signal.Signals[name])).start()
            if strikes(f"{name}_parent_soon", self.iter):
                threading.Timer(0.5, os.kill, (os.getppid(), signal.Signals[name])).start()
        if strikes("disk_full", self.iter):
            resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, resource.RLIM_INFINITY))
        if strikes("disk_emptied", self.iter):
            resource.setrlimit(
                resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
            )
        if strikes("folder_removed", self.iter):
            shutil.rmtree(self.output_dir)
        super().run_step(batches)

    def _write_metrics(self, values: dict[str, torch.Tensor]) -> None:
        super()._write_metrics(values)
        if strikes(
            "late_error", self.iter
        ):  # PyTorch's, of a dead data-loading process, may come at any time
            raise RuntimeError("DataLoader worker (pid 1) is killed")

    def _next_batch(self, batches: Any) -> list[dict[str, Any]]:
        batch = super()._next_batch(batches)
        if path := os.environ.get("ORDER"):
            images = [
                [image["position"], image["index"], os.path.basename(image["file_name"])]
                for image in batch
            ]
            pixels = [int(image["image"].long().sum()) for image in batch]
            with open(f"{path}.{comm.get_rank()}", "a") as file:
                file.write(json.dumps([self.iter, images, pixels]) + "\n")
        return batch

    def _averaged(self, values: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        if strikes("kill_late", self.iter):  # all gradients are there
            os.kill(os.getpid(), signal.SIGKILL)
        if "GRADIENTS" in os.environ:
            without = [
                name for name, parameter in self.model.named_parameters() if parameter.grad is None
            ]
            assert not without, without
        return super()._averaged(values)

    def train(self, *args: Any) -> None:
        # Behind the whole forward, when batch norm has counted the batch already.
        self.model.register_forward_hook(lambda module, args, output: self._fail())
        super().train(*args)

    def _fail(self) -> None:
        if not self.model.training:
            return
        if strikes("out_of_memory", self.iter):
            raise torch.OutOfMemoryError("CUDA out of memory.")
        if strikes("diverged", self.iter):  # as Detectron2's proposal generator says it
            raise FloatingPointError(
                "Predicted boxes or scores contain Inf/NaN. Training has diverged."
            )
        if strikes("bug", self.iter):
            raise ValueError("a bug")


def fail_in_loading(dataset: MappedDataset, item: tuple[int, int]) -> None:
    if strikes("worker_killed", item[1]):
        os.kill(os.getpid(), signal.SIGKILL)
    if strikes("worker_hangs", item[1]):
        time.sleep(1000)
    record = dataset.records[item[0]]
    if record["file_name"].endswith(os.environ.get("UNREADABLE", "nothing")):
        raise UserError(f"{record['file_name']}: cannot be read (image id {record['image_id']})")


def main(args: Any) -> None:
    if strikes(
        "disk_full_from_the_start", 0
    ):  # too full for a config, with room for what is printed
        resource.setrlimit(resource.RLIMIT_FSIZE, (6000, resource.RLIM_INFINITY))
    np.random.seed()  # forked processes would all choose the same "random" seed
    original = MappedDataset.__getitem__

    def getitem(dataset: MappedDataset, item: tuple[int, int]) -> dict[str, Any]:
        fail_in_loading(dataset, item)
        return original(dataset, item)

    MappedDataset.__getitem__ = getitem
    engine_run.Trainer = type("Trainer", (Sabotage, Trainer), {})
    if metrics := os.environ.get("METRICS"):  # iteration -> what the evaluation finds

        def evaluate(*args: Any) -> dict:
            return {
                "segm": {
                    os.environ.get("METRIC", "AP"): json.loads(metrics)[
                        str(Checkpointer.current.trainer.done)
                    ]
                }
            }

        def remember(checkpoints: Checkpointer, *args: Any, **kwargs: Any) -> None:
            create(checkpoints, *args, **kwargs)
            Checkpointer.current = checkpoints

        create = Checkpointer.__init__
        Checkpointer.__init__ = remember
        engine_run.evaluate = evaluate
    elif os.environ.get("EVALUATION") == "off":
        engine_run.evaluate = lambda *args: {}
    elif os.environ.get("EVALUATION") == "SIGTERM":

        def evaluate(*args: Any) -> dict:
            if comm.is_main_process():
                os.kill(os.getppid() if comm.get_world_size() > 1 else os.getpid(), signal.SIGTERM)
            time.sleep(1000)

        engine_run.evaluate = evaluate
    after_evaluation = Checkpointer.after_evaluation

    def kill_at_best(checkpoints: Checkpointer, metrics: dict[str, float]) -> None:
        after_evaluation(checkpoints, metrics)
        if strikes(
            "kill_at_best", checkpoints.trainer.done
        ):  # nothing else has heard of the evaluation yet
            os.kill(os.getpid(), signal.SIGKILL)

    Checkpointer.after_evaluation = kill_at_best
    if strikes("SIGTERM_before", 0):

        def build_ddp(model: torch.nn.Module, **options: Any) -> None:
            os.kill(os.getppid() if comm.get_world_size() > 1 else os.getpid(), signal.SIGTERM)
            time.sleep(1000)

        engine_run.build_ddp = build_ddp
    if strikes("blind", 0):  # to what the other processes see
        resume._latest_checkpoint = lambda folder: None
    train_net.main(args)


def step_of_two_processes(rank: int, folder: str, values: list[list[float]], dtype: str) -> None:
    """One step in two parts of each process, on images of which each has a value; writes the weight, or the error."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(model.weight)
    model.forward = lambda batch: {
        "loss": sum(image["value"] for image in batch) / len(batch) * model.weight.sum()
    }
    amp = OmegaConf.create(dict(enabled=bool(dtype), dtype=dtype or "bfloat16"))
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    trainer = Trainer(build_ddp(model), optimizer, seed=0, output_dir=folder, amp=amp, accumulate=2)
    try:
        trainer.train(
            [
                [
                    {"image": torch.zeros(3, 1, 1), "value": value, "skipped": []}
                    for value in values[rank]
                ]
            ],
            1,
        )
        result = str(model.weight.item())
    except UserError as error:
        result = str(error)
    Path(folder, str(rank)).write_text(result)


def run(command: list[str], environment: dict[str, str], output: str) -> None:
    """What a process that a test forks does: the command, in a session of its own, with forked ranks, since importing
    everything takes longer than training.
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
    """Gives this process, which must be root's, a /dev/shm of its own."""
    new_mount_namespace = 0x20000
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
