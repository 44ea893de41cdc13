"""The processes of a job: Detectron2's launcher or torchrun, GPUs (NCCL) or CPU (gloo)."""

import argparse
import multiprocessing
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from datetime import timedelta
from urllib.parse import urlsplit

import detectron2.engine
import torch
import torch.distributed as dist
from detectron2.utils import comm
from torch.multiprocessing import ProcessExitedException, ProcessRaisedException
from tqdm import tqdm

from ..utils.errors import ProcessError, UserError
from ..utils.signals import stop_signals_to


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
        UserError: several machines, and no address at which they meet; or they do not meet there.
    """
    if _by_torchrun():
        _join_torchrun(device)
        try:
            _run(main, args)
        finally:
            dist.destroy_process_group()
    else:
        if spawns_processes(args):
            _check_address(args)
        if device == "cpu":
            os.environ["CUDA_VISIBLE_DEVICES"] = (
                ""  # else Detectron2 gives each process a GPU and takes NCCL
            )
        signals: list[int] = []  # that were passed on

        def pass_on(number: int, frame: object) -> None:
            """Gives a signal to the processes of the job, which stop together."""
            signals.append(number)
            started = [
                process.pid
                for process in multiprocessing.active_children()
                if process.pid is not None
            ]
            if not started:
                raise _Stopped(number)
            for pid in started:
                os.kill(pid, number)

        try:
            with stop_signals_to(pass_on if spawns_processes(args) else _stop):
                detectron2.engine.launch(
                    _run,
                    args.num_gpus,
                    args.num_machines,
                    args.machine_rank,
                    args.dist_url,
                    args=(main, args),
                )
        except _Stopped as stop:
            stop.print()
            raise
        except ProcessRaisedException as error:
            if "in init_process_group" not in str(error):
                raise
            reason = str(error).strip().splitlines()[-1].partition("Error: ")[2]
            raise UserError(
                f"the processes do not meet at --dist-url {args.dist_url} ({reason})"
            ) from None
        except ProcessExitedException as error:
            number = (
                -error.exit_code % 256
            )  # by which it was killed, or that it gives as its exit code, see _run
            if number in signals or (
                number in (signal.SIGTERM, signal.SIGINT) and error.exit_code > 0
            ):
                stopped = _Stopped(number)
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


def spawns_processes(args: argparse.Namespace) -> bool:
    """Whether :func:`launch` starts processes, other than this one, for what it runs."""
    return args.num_gpus * args.num_machines > 1 and not _by_torchrun()


def _by_torchrun() -> bool:
    return "TORCHELASTIC_RUN_ID" in os.environ


def _check_address(args: argparse.Namespace) -> None:
    """Raises a UserError for an address at which processes cannot meet, as far as this machine can tell.

    PyTorch would find out in one of the processes while the others wait for it, for half an hour.
    """
    url = args.dist_url
    if url == "auto":
        if args.num_machines > 1:
            raise UserError(
                "--num-machines needs --dist-url tcp://HOST:PORT, an address of the first machine"
            )
        return
    parts = urlsplit(url)
    host, port = parts.hostname, parts.port
    if parts.scheme != "tcp":  # one of PyTorch's other ways
        return
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as error:
        raise UserError(
            f"--dist-url {url}: {host} is not known here ({_reason(error)}); correct it"
        ) from None
    if args.num_machines == 1:
        with socket.socket(family) as here:
            try:
                here.bind((address[0], 0))
            except OSError:
                raise UserError(
                    f"--dist-url {url}: {host} is no address of this machine; give auto"
                ) from None
    if args.machine_rank == 0:
        with socket.socket() as listening:  # as PyTorch's will, on all addresses of this machine
            listening.setsockopt(
                socket.SOL_SOCKET, socket.SO_REUSEADDR, 1
            )  # of a job that ended a moment ago
            try:
                listening.bind(("", port))
            except OSError as error:
                raise UserError(
                    f"--dist-url {url}: port {port} cannot be used ({_reason(error)}); give another port, to all machines"
                ) from None
    if args.num_machines > 1:
        where = f"machine {args.machine_rank} of {args.num_machines}"
        minutes = detectron2.engine.DEFAULT_TIMEOUT / timedelta(minutes=1)
        print(
            f"{where}: waiting for the others at {url}, for up to {minutes:.0f} minutes",
            file=sys.stderr,
        )


def _reason(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error)


class _Stopped(SystemExit):
    """A signal while no training runs, which would save its state."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.signal = signal.Signals(number)

    def print(self) -> None:
        where = "outside of the training loop, where there is nothing to save"
        print(f"error: stopped by {self.signal.name} {where}", file=sys.stderr)


def _stop(number: int, frame: object) -> None:
    for further in (signal.SIGTERM, signal.SIGINT):
        signal.signal(further, _stop_is_under_way)
    raise _Stopped(number)


def _stop_is_under_way(number: int, frame: object) -> None:
    """Ignores one further signal: Ctrl-C may reach a process twice, and the launcher sends one when another has ended."""
    signal.signal(number, signal.SIG_DFL)


def _run(main: Callable, args: argparse.Namespace) -> None:
    if parent := multiprocessing.parent_process():
        threading.Thread(target=_stop_without_parent, args=(parent,), daemon=True).start()
    try:
        with stop_signals_to(_stop):
            try:
                main(args)
            except _Stopped as stop:
                if spawns_processes(args):
                    sys.exit(
                        -stop.signal
                    )  # which this process's parent prints, whichever process it hears of first
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
    try:
        dist.init_process_group(
            "nccl" if device == "cuda" else "gloo", timeout=timedelta(minutes=30)
        )
    except dist.DistError as error:
        raise UserError(f"the processes of torchrun do not meet ({error})") from None
    comm.create_local_process_group(int(os.environ["LOCAL_WORLD_SIZE"]))


def share_cores(device: str) -> None:
    """Gives each CPU process its share of the threads; processes that fight for them are many times slower."""
    if device == "cpu" and comm.get_world_size() > 1:
        cores = (
            len(os.sched_getaffinity(0))
            if hasattr(os, "sched_getaffinity")
            else os.cpu_count() or 1
        )
        torch.set_num_threads(max(1, cores // comm.get_local_size()))
