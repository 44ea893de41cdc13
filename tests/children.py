"""Running functions in child processes: one that may crash, or several that communicate."""

import multiprocessing as mp
import os
import pickle
import resource
import socket
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch.distributed as dist
from detectron2.utils import comm

MEMORY = 4 << 30  # bytes


def in_a_child(work: Callable[[], Any], memory: int = MEMORY) -> Any:
    """Return the result of a function that runs in a forked process.

    Args:
        work: the function.
        memory: bytes that it may allocate in addition to what the process has at its start.

    Raises:
        AssertionError: a signal or an exception ended the process.
    """
    with tempfile.TemporaryDirectory() as folder:
        result_file = Path(folder) / "result"
        process = os.fork()
        if not process:
            _work_and_exit(work, result_file, memory)
        status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        result = pickle.loads(result_file.read_bytes()) if result_file.exists() else None
    assert status == 0, f"the process ended with {status}: {result}"
    return result


def _work_and_exit(work: Callable[[], Any], result_file: Path, memory: int) -> None:
    code = 1
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[0])  # of virtual memory
        limit = pages * resource.getpagesize() + memory
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        result_file.write_bytes(pickle.dumps(work()))
        code = 0
    except BaseException as error:
        result_file.write_bytes(pickle.dumps(f"{type(error).__name__}: {error}"))
    finally:
        os._exit(code)  # without the exit handlers and finally blocks of the parent


def in_processes(work: Callable[[Any], Any], arguments: Sequence[Any]) -> list[Any]:
    """Call a function in forked processes of one process group; return the results by rank.

    Args:
        work: the function, which may use Detectron2's ``comm``.
        arguments: of each process.
    """
    context = mp.get_context("fork")
    queue = context.Queue()
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"tcp://localhost:{free.getsockname()[1]}"

    def run(rank: int) -> None:
        try:
            dist.init_process_group("gloo", address, rank=rank, world_size=len(arguments))
            comm.create_local_process_group(len(arguments))
            queue.put((rank, work(arguments[rank])))
            dist.destroy_process_group()
        except BaseException as error:
            queue.put((rank, error))
            raise

    workers = [context.Process(target=run, args=(rank,)) for rank in range(len(arguments))]
    results = {}
    try:
        for worker in workers:
            worker.start()
        for _ in workers:
            rank, result = queue.get(timeout=60)
            if isinstance(result, BaseException):
                raise result
            results[rank] = result
        for worker in workers:
            worker.join(60)
            assert worker.exitcode == 0
    finally:
        for worker in workers:
            worker.kill()
    return [results[rank] for rank in range(len(arguments))]
