"""Start the processes of a job, on GPUs (NCCL) or the CPU (gloo).

They are started by Detectron2's launcher, or have been started by torchrun.
"""

import argparse
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import NoReturn
from urllib.parse import urlsplit

import detectron2.engine
import torch
import torch.distributed as dist
from detectron2.utils import comm
from torch.multiprocessing import ProcessExitedException, ProcessRaisedException
from tqdm import tqdm

from ..utils.errors import ProcessError, UserError
from ..utils.signals import stop_signals_to

# Seconds that a process waits for the launcher to stop it, so that another one can print an error.
PATIENCE = 30


def processes_of(args: argparse.Namespace) -> int:
    """Return the number of processes of a job.

    Raises:
        UserError: ``--machine-rank`` is out of range.
    """
    if _by_torchrun():
        return int(os.environ["WORLD_SIZE"])
    if args.machine_rank >= args.num_machines:
        raise UserError(
            f"--machine-rank {args.machine_rank} must be below "
            f"--num-machines {args.num_machines}: ranks start at 0"
        )
    return args.num_gpus * args.num_machines


def choose_device(device: str, num_gpus: int) -> str:
    """Return the device to run on, "cuda" or "cpu".

    Args:
        device: of the config: "cuda", "cpu", or "auto" for a GPU if there is one.
        num_gpus: processes on this machine; ignored if torchrun started them.

    Raises:
        UserError: the device is unknown, or there are fewer GPUs than processes.
    """
    if device not in ("auto", "cuda", "cpu"):
        raise UserError(f"train.device must be auto, cuda or cpu, got {device}")
    available = torch.cuda.device_count()
    by_torchrun = "LOCAL_WORLD_SIZE" in os.environ
    if device == "auto":
        # --num-gpus asks for GPUs; without any, that is an error below. torchrun's option does not.
        device = "cuda" if available or (num_gpus > 1 and not by_torchrun) else "cpu"
    wanted = int(os.environ["LOCAL_WORLD_SIZE"]) if by_torchrun else num_gpus
    if device == "cuda" and wanted > available:
        option = "--nproc-per-node" if by_torchrun else "--num-gpus"
        raise UserError(
            f"{option} {wanted}, but this machine has {available} GPUs that PyTorch can use: "
            "request fewer, or add train.device=cpu"
        )
    return device


def launch(main: Callable, args: argparse.Namespace, device: str) -> None:
    """Run ``main(args)`` in every process of the job, with the process group initialized.

    Raises:
        UserError: the processes cannot connect to each other, or one of them ended.
    """
    if _by_torchrun():
        _join_torchrun(device)
        try:
            _run(main, args)
        finally:
            dist.destroy_process_group()
        return

    if spawns_processes(args):
        _check_address(args)
    if device == "cpu":
        # Otherwise Detectron2 assigns a GPU to each process, and uses NCCL.
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    forwarded: list[int] = []  # signals

    def forward(number: int, frame: object) -> None:
        """Handle a signal: send it to the processes of the job, which stop together."""
        forwarded.append(number)
        children = multiprocessing.active_children()
        pids = [child.pid for child in children if child.pid is not None]
        if not pids:
            raise _Stopped(number)
        for pid in pids:
            os.kill(pid, number)

    try:
        with stop_signals_to(forward if spawns_processes(args) else _stop):
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
        # The last line of the traceback of the process: "torch.distributed.DistStoreError: ...".
        reason = str(error).strip().splitlines()[-1].partition("Error: ")[2]
        raise UserError(
            f"the processes cannot connect at --dist-url {args.dist_url} ({reason})"
        ) from None
    except ProcessExitedException as error:
        _exit_as(error, forwarded)


def _exit_as(error: ProcessExitedException, forwarded: list[int]) -> NoReturn:
    """Exit as a process of the job did.

    Args:
        error: of the first process that ended with an exit code other than 0.
        forwarded: signals that were sent to the processes.
    """
    # A process killed by signal n has the exit code -n. One that stopped because of it exits with
    # -n in _run, of which the operating system keeps the low byte, 256 - n. This is n for both.
    number = -error.exit_code % 256
    exited_itself = error.exit_code > 0
    if number in forwarded or (number in (signal.SIGTERM, signal.SIGINT) and exited_itself):
        stopped = _Stopped(number)
        stopped.print()
        raise stopped from None
    if error.exit_code in (1, 128 + signal.SIGINT, 128 + signal.SIGTERM):
        sys.exit(error.exit_code)  # the process has printed the reason
    end = (
        f"ended with exit code {error.exit_code}"
        if exited_itself
        else f"was killed ({error.signal_name})"
    )
    raise UserError(
        f"process {error.error_index} {end}, the others were stopped; continue with --resume"
    ) from None


def spawns_processes(args: argparse.Namespace) -> bool:
    """Return whether :func:`launch` starts other processes than this one."""
    return args.num_gpus * args.num_machines > 1 and not _by_torchrun()


def _by_torchrun() -> bool:
    return "TORCHELASTIC_RUN_ID" in os.environ


def _check_address(args: argparse.Namespace) -> None:
    """Raise a UserError if ``--dist-url`` cannot work, as far as this machine can check it.

    PyTorch would detect it in one of the processes, while the others wait up to half an hour.
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
    if parts.scheme != "tcp":  # file:// or env://, which PyTorch accepts as well
        return
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as error:
        raise UserError(
            f"--dist-url {url}: cannot resolve {host} ({_reason(error)}); correct it"
        ) from None
    if args.num_machines == 1:
        with socket.socket(family) as probe:
            try:
                probe.bind((address[0], 0))
            except OSError:
                raise UserError(
                    f"--dist-url {url}: {host} is not an address of this machine; use auto"
                ) from None
    if args.machine_rank == 0:
        _check_port(url, port)
    if args.num_machines > 1:
        minutes = detectron2.engine.DEFAULT_TIMEOUT / timedelta(minutes=1)
        print(
            f"machine {args.machine_rank} of {args.num_machines}: waiting for the others at {url}, "
            f"for up to {minutes:.0f} minutes",
            file=sys.stderr,
        )


def _check_port(url: str, port: int | None) -> None:
    """Raise a UserError if this machine cannot listen on the port, as PyTorch will."""
    with socket.socket() as probe:
        # The port of a job that has just ended can be used again.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))  # on all addresses
        except OSError as error:
            raise UserError(
                f"--dist-url {url}: port {port} cannot be used ({_reason(error)}); "
                "give another port, on all machines"
            ) from None


def _reason(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error)


class _Stopped(SystemExit):
    """A signal outside of the training loop, which would save the state of the run."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.signal = signal.Signals(number)

    def print(self) -> None:
        where = "outside of the training loop, where there is nothing to save"
        print(f"error: stopped by {self.signal.name} {where}", file=sys.stderr)


def _stop(number: int, frame: object) -> None:
    """Handle a signal: stop this process."""
    for further in (signal.SIGTERM, signal.SIGINT):
        signal.signal(further, _ignore_once)
    raise _Stopped(number)


def _ignore_once(number: int, frame: object) -> None:
    """Handle a signal: ignore it once; the next one ends the process.

    Ctrl-C may reach a process twice, and the launcher sends SIGTERM when another process has ended.
    """
    signal.signal(number, signal.SIG_DFL)


def _run(main: Callable, args: argparse.Namespace) -> None:
    """Run ``main(args)`` in a process of the job; print errors, and exit with their code."""
    if parent := multiprocessing.parent_process():
        threading.Thread(target=_stop_without_parent, args=(parent,), daemon=True).start()
    try:
        with stop_signals_to(_stop):
            try:
                main(args)
                if spawns_processes(args):
                    _leave_process_group()
            except _Stopped as stop:
                # The parent prints the reason once, whichever process ends first: see _exit_as.
                if spawns_processes(args):
                    sys.exit(-stop.signal)
                if comm.get_local_rank() == 0:
                    stop.print()
                sys.exit(stop.code)
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    except UserError as error:
        # All processes raise the same UserError; a ProcessError is that of one process.
        if comm.get_local_rank() == 0 or isinstance(error, ProcessError):
            tqdm.write(f"error: {error}", file=sys.stderr)  # above a progress bar, if there is one
        else:
            # The launcher stops all processes when the first one ends, which must not be this one:
            # the process that prints might not have come to it.
            time.sleep(PATIENCE)
        sys.exit(1)


def _leave_process_group() -> None:
    """End the communication of a job that has succeeded.

    Threads of the process group that still run when the interpreter ends may abort the process.
    """
    comm.synchronize()
    dist.destroy_process_group()


def _stop_without_parent(parent: multiprocessing.process.BaseProcess) -> None:
    """Stop this process when its parent is killed, since nothing else would."""
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)


def _join_torchrun(device: str) -> None:
    """Initialize the process group of a job that torchrun started."""
    if device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    backend = "nccl" if device == "cuda" else "gloo"
    try:
        dist.init_process_group(backend, timeout=timedelta(minutes=30))
    except dist.DistError as error:
        raise UserError(f"the processes of torchrun cannot connect ({error})") from None
    comm.create_local_process_group(int(os.environ["LOCAL_WORLD_SIZE"]))


def share_cores(device: str) -> None:
    """Divide the cores among CPU processes, which are slow with more threads than cores."""
    if device == "cpu" and comm.get_world_size() > 1:
        torch.set_num_threads(max(1, available_cores() // comm.get_local_size()))


def available_cores() -> int:
    """Return the number of CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
