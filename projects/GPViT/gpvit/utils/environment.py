"""Process setup that must precede the import of libraries.

It covers environment variables, warnings, and how Ctrl-C ends a command. docs/performance.md has
the measurements behind the variables.
"""

import logging
import os
import signal
import sys
import warnings

from tqdm import tqdm

# Variable -> its default here, and the variables with which users may have set the same thing.
DEFAULTS = {
    # Waiting OpenMP threads spin, by default for 300,000 rounds, and block the core for other
    # threads: with other processes on the machine, an iteration takes many times as long.
    "GOMP_SPINCOUNT": ("3000", ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")),
    # oneDNN caches the last 1024 operations that it compiled, each for one input size: with images
    # of many sizes, that is some hundred MiB which are never used again.
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": (
        "128",
        ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "DNNL_PRIMITIVE_CACHE_CAPACITY"),
    ),
}

# Warnings about functions that Detectron2 and older PyTorch versions need.
LIBRARY_WARNINGS = (
    "`torch.jit",
    "Grad strides do not match bucket view strides",
    "`broadcast_buffers` is deprecated",
    "torch.meshgrid: in an upcoming release",
    "Importing from timm.models.layers is deprecated",
)


def set_defaults() -> None:
    """Set the variables that the user has not set, for this process and its children.

    A variable that was already read stays without effect: GNU OpenMP reads its variable when
    PyTorch is imported, oneDNN at its first computation.
    """
    for name, (value, user_variables) in DEFAULTS.items():
        if os.environ.keys().isdisjoint(user_variables):
            os.environ[name] = value


def is_spawned() -> bool:
    """Return whether a command spawned this process.

    The ``multiprocessing`` module imports the command's script again under this name.
    """
    return "__mp_main__" in sys.modules


def prepare_command() -> None:
    """Set up a command before it imports PyTorch or Detectron2, whose imports take seconds.

    Ctrl-C ends it without a traceback from here on, libraries see the defaults above, and warnings
    that users can do nothing about are hidden.
    """
    if is_spawned():  # also while it waits for the other processes in PyTorch's C++ code
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    else:
        signal.signal(signal.SIGINT, lambda *_: os._exit(128 + signal.SIGINT))
    set_defaults()
    # No monitor thread: a data-loading process could be forked while that thread holds a lock.
    tqdm.monitor_interval = 0
    # A notebook sets its matplotlib backend for child processes too. Importing matplotlib where
    # that backend is not installed raises an error, and no command opens a matplotlib window.
    os.environ.pop("MPLBACKEND", None)
    for message in LIBRARY_WARNINGS:
        warnings.filterwarnings("ignore", message=message)
    for name in ("torch.fx._symbolic_trace", "torch.utils.cpp_extension"):
        logging.getLogger(name).setLevel(logging.ERROR)
