"""Work that may end its process, or take all memory, in a process of its own."""

import os
import pickle
import resource
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

MEMORY = 4 << 30


def in_a_child(work: Callable[[], Any], memory: int = MEMORY) -> Any:
    """What a function gives, in a forked process; fails if a signal or an error ends that.

    Args:
        work: the function.
        memory: bytes that it may take beyond what the process starts with.
    """
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer"
        process = os.fork()
        if not process:
            _work_and_exit(work, answer, memory)
        status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        result = pickle.loads(answer.read_bytes()) if answer.exists() else None
    assert status == 0, f"the process ended with {status}: {result}"
    return result


def _work_and_exit(work: Callable[[], Any], answer: Path, memory: int) -> None:
    code = 1
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + memory
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        answer.write_bytes(pickle.dumps(work()))
        code = 0
    except BaseException as error:
        answer.write_bytes(pickle.dumps(f"{type(error).__name__}: {error}"))
    finally:
        os._exit(code)  # without what the parent would do at its end
