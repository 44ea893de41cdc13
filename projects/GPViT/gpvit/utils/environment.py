"""What is settled before libraries are imported: environment variables, warnings, and how Ctrl-C ends a command.

docs/performance.md has what was measured of the variables.
"""

import logging
import os
import signal
import sys
import warnings

from tqdm import tqdm

# For each variable that is set here: its value, and the variables by which users set the same themselves.
DEFAULTS = {
    # Threads of OpenMP spin while they wait for each other, 300,000 turns by default, and take the core from whoever
    # else would run on it: beside other processes, an iteration takes many times as long.
    "GOMP_SPINCOUNT": ("3000", ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")),
    # oneDNN keeps the last 1024 operations that it compiled, each for one size of its inputs: with images of many sizes
    # some hundred MiB that are never used again.
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": (
        "128",
        ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "DNNL_PRIMITIVE_CACHE_CAPACITY"),
    ),
}

# Warnings about functions that Detectron2 and older PyTorch need.
OF_LIBRARIES = (
    "`torch.jit",
    "Grad strides do not match bucket view strides",
    "`broadcast_buffers` is deprecated",
    "torch.meshgrid: in an upcoming release",
)


def set_defaults() -> None:
    """Sets what the user has not set, for this process and those that it starts.

    Without effect on what has been read already: GNU OpenMP reads its variable when PyTorch is imported, oneDNN when it
    computes for the first time.
    """
    for name, (value, own) in DEFAULTS.items():
        if not any(variable in os.environ for variable in own):
            os.environ[name] = value


def is_spawned() -> bool:
    """Whether this is a process that a command spawned: it imports the command's script again, under this name."""
    return "__mp_main__" in sys.modules


def prepare_command() -> None:
    """What a command does before it imports PyTorch or Detectron2, whose imports take seconds.

    Ctrl-C ends it quietly from here on; libraries find the defaults above, and do not tell of what users cannot change.
    """
    if is_spawned():  # also while it waits for the other processes, in PyTorch's code
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    else:
        signal.signal(signal.SIGINT, lambda *_: os._exit(128 + signal.SIGINT))
    set_defaults()
    tqdm.monitor_interval = (
        0  # no thread of its own, whose lock data-loading processes might be forked with
    )
    # A notebook names its backend for its children too; importing matplotlib where there is no such backend is an
    # error, and no command opens a window of matplotlib's.
    os.environ.pop("MPLBACKEND", None)
    for message in OF_LIBRARIES:
        warnings.filterwarnings("ignore", message=message)
    for name in ("torch.fx._symbolic_trace", "torch.utils.cpp_extension"):
        logging.getLogger(name).setLevel(logging.ERROR)
