"""Environment variables that libraries read once, when PyTorch is imported or computes for the first time.

docs/performance.md has what was measured.
"""

import os

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


def set_defaults() -> None:
    """Sets what the user has not set, for this process and those that it starts.

    Without effect on what has been read already: GNU OpenMP reads its variable when PyTorch is imported, oneDNN when it
    computes for the first time.
    """
    for name, (value, own) in DEFAULTS.items():
        if not any(variable in os.environ for variable in own):
            os.environ[name] = value
