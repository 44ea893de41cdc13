"""Command line and processes: Detectron2's launcher or torchrun, GPUs (NCCL) or CPU (gloo)."""

import argparse
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from urllib.parse import urlsplit

import detectron2.engine
import torch
import torch.distributed as dist
from detectron2.utils import comm
from torch.multiprocessing import ProcessExitedException
from tqdm import tqdm

from ..errors import ProcessError, UserError
from ..utils.kinds import argument, whole
from ..utils.text import one_line


def argument_parser() -> argparse.ArgumentParser:
    """Detectron2's flags, and ``--data``. Parse with ``parse_intermixed_args``: overrides may stand anywhere."""
    parser = argparse.ArgumentParser(
        description="Trains or evaluates a detector.",
        epilog="Several machines: start the same command on each with its --machine-rank and a common --dist-url, "
        "or use torchrun, which needs none of --num-gpus, --num-machines, --machine-rank and --dist-url.",
    )
    parser.add_argument("--config-file", required=True, metavar="FILE", help="LazyConfig file; it is run as code")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint in train.output_dir")
    parser.add_argument("--eval-only", action="store_true", help="evaluate train.init_checkpoint, without training")
    parser.add_argument(
        "--num-gpus", type=argument(whole(1)), default=1, help="GPUs per machine; processes with train.device=cpu"
    )
    parser.add_argument("--num-machines", type=argument(whole(1)), default=1)
    parser.add_argument("--machine-rank", type=argument(whole(0)), default=0, help="rank of this machine, from 0")
    parser.add_argument(
        "--dist-url", type=_meeting_point, default="auto", help="tcp://HOST:PORT of the first machine; one machine: auto"
    )
    parser.add_argument(
        "--data", metavar="PATH", help="own data: a folder or file in COCO format, of Roboflow, YOLO segmentation or labelme"
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes to the config")
    return parser


def _meeting_point(url: str) -> str:
    """The type of --dist-url."""
    try:
        parts = urlsplit(url)
        fits = bool(parts.scheme == "tcp" and parts.hostname and parts.port and not parts.path)
    except ValueError:  # a port that is none
        fits = False
    if not fits and url != "auto" and not url.startswith(("file://", "env://")):  # which PyTorch knows, too
        raise argparse.ArgumentTypeError(f"must be auto or tcp://HOST:PORT with a port up to 65535, got {one_line(url)}")
    return url


def processes_of(args: argparse.Namespace) -> int:
    """How many processes a job has.

    Raises:
        UserError: this machine is none of the job's.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return int(os.environ["WORLD_SIZE"])
    if args.machine_rank >= args.num_machines:
        raise UserError(
            f"--machine-rank {args.machine_rank} must be below --num-machines {args.num_machines}: machines count from 0"
        )
    return args.num_gpus * args.num_machines


def choose_device(device: str, num_gpus: int) -> str:
    """The device to run on: what the config says, or what there is if it says "auto".

    Raises:
        UserError: there is no such device, or fewer GPUs are there than asked for.
    """
    if device not in ("auto", "cuda", "cpu"):
        raise UserError(f"train.device must be auto, cuda or cpu, got {device}")
    available = torch.cuda.device_count()
    by_torchrun = "LOCAL_WORLD_SIZE" in os.environ
    if device == "auto":
        device = "cuda" if available or (num_gpus > 1 and not by_torchrun) else "cpu"
    wanted = int(os.environ["LOCAL_WORLD_SIZE"]) if by_torchrun else num_gpus
    if device == "cuda" and wanted > available:
        raise UserError(
            f"{'--nproc-per-node' if by_torchrun else '--num-gpus'} {wanted}, but this machine has {available} GPUs usable "
            "by PyTorch; ask for fewer, or add train.device=cpu"
        )
    return device


def launch(main: Callable, args: argparse.Namespace, device: str) -> None:
    """Runs ``main(args)`` in every process of the job; the process group is there when it starts.

    Raises:
        UserError: several machines, and no address at which they meet.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        _join_torchrun(device)
        try:
            _run(main, args)
        finally:
            dist.destroy_process_group()
    elif args.num_machines > 1 and args.dist_url == "auto":
        raise UserError("--num-machines needs --dist-url tcp://HOST:PORT, an address of the first machine")
    else:
        if device == "cpu":
            os.environ["CUDA_VISIBLE_DEVICES"] = ""  # else Detectron2 gives each process a GPU and takes NCCL
        signals: list[int] = []  # that were passed on

        def pass_on(number: int, frame: object) -> None:
            """Gives a signal to the processes of the job, which stop together."""
            signals.append(number)
            started = [process.pid for process in multiprocessing.active_children() if process.pid is not None]
            if not started:
                raise _Stopped(number)
            for pid in started:
                os.kill(pid, number)

        try:
            spawns = args.num_gpus * args.num_machines > 1
            with stop_signals_to(pass_on if spawns else _stop):
                detectron2.engine.launch(
                    _run, args.num_gpus, args.num_machines, args.machine_rank, args.dist_url, args=(main, args)
                )
        except _Stopped as stop:
            stop.print()
            raise
        except ProcessExitedException as error:
            if -error.exit_code in signals:  # it had not even begun
                stopped = _Stopped(-error.exit_code)
                stopped.print()
                raise stopped from None
            if error.exit_code in (1, 128 + signal.SIGINT, 128 + signal.SIGTERM):
                sys.exit(error.exit_code)  # the process has said why
            if error.exit_code > 0:
                raise UserError(
                    f"process {error.error_index} ended with exit code {error.exit_code}, the others were stopped; "
                    "go on with --resume"
                ) from None
            raise UserError(
                f"process {error.error_index} was killed ({error.signal_name}), the others were stopped; go on with --resume"
            ) from None


class _Stopped(SystemExit):
    """A signal while no training runs, which would save its state."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.signal = signal.Signals(number)

    def print(self) -> None:
        where = "outside of the training loop, where there is nothing to save"
        print(f"error: stopped by {self.signal.name} {where}", file=sys.stderr)


def _stop(number: int, frame: object) -> None:
    for further in (signal.SIGTERM, signal.SIGINT):  # the launcher may send one when another process has ended
        signal.signal(further, signal.SIG_IGN)
    raise _Stopped(number)


@contextmanager
def stop_signals_to(handler: Callable[[int, object], None]) -> Iterator[None]:
    """Lets ``handler`` have SIGTERM and SIGINT."""
    before = {number: signal.signal(number, handler) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


def _run(main: Callable, args: argparse.Namespace) -> None:
    if parent := multiprocessing.parent_process():
        threading.Thread(target=_stop_without_parent, args=(parent,), daemon=True).start()
    try:
        with stop_signals_to(_stop):
            try:
                main(args)
            except _Stopped as stop:
                if comm.get_local_rank() == 0:
                    stop.print()
                sys.exit(stop.code)
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    except UserError as error:
        if comm.get_local_rank() == 0 or isinstance(error, ProcessError):
            tqdm.write(f"error: {error}", file=sys.stderr)  # above a bar, if there is one
        sys.exit(1)


def _stop_without_parent(parent: multiprocessing.process.BaseProcess) -> None:
    """Nobody would see or stop a process of the job any more whose parent was killed."""
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)


def _join_torchrun(device: str) -> None:
    if device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if device == "cuda" else "gloo", timeout=timedelta(minutes=30))
    comm.create_local_process_group(int(os.environ["LOCAL_WORLD_SIZE"]))


def share_cores(device: str) -> None:
    """Gives each CPU process its share of the threads; processes that fight for them are many times slower."""
    if device == "cpu" and comm.get_world_size() > 1:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        torch.set_num_threads(max(1, cores // comm.get_local_size()))
