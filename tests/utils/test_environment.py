"""Commands set environment variables before PyTorch is imported; each runs in a new process."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY

NAMES = ("GOMP_SPINCOUNT", "ONEDNN_PRIMITIVE_CACHE_CAPACITY")
USER_VARIABLES = (*NAMES, "OMP_WAIT_POLICY", "DNNL_PRIMITIVE_CACHE_CAPACITY")
# Runs a command up to the import of PyTorch, and prints the variables that PyTorch would see.
AT_TORCH = """
import json, os, runpy, sys

class Watch:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            print(json.dumps({name: os.environ.get(name) for name in %r}))
            sys.stdout.flush()
            os._exit(0)

sys.meta_path.insert(0, Watch())
sys.argv = sys.argv[1:]
sys.path.insert(0, os.path.dirname(sys.argv[0]))
if sys.argv[0].endswith("__main__.py"):
    runpy.run_module("gpvit", run_name="__main__")
else:
    runpy.run_path(sys.argv[0], run_name="__main__")
"""


def seen_by_torch(command: Path, **variables: str) -> dict[str, str | None]:
    """Return the variables that PyTorch sees in a command that is started with ``variables``."""
    environment = dict(os.environ)
    for name in USER_VARIABLES:
        environment.pop(name, None)
    environment |= variables
    environment["PYTHONPATH"] = str(REPOSITORY / "projects" / "GPViT")
    code = AT_TORCH % (NAMES,)
    arguments = [str(command), *(["predict"] if command.name == "__main__.py" else []), "--help"]
    run = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(run.stdout)


@pytest.mark.parametrize(
    "command", ["train_net.py", "tools/quickstart.py", "projects/GPViT/gpvit/__main__.py"]
)
def test_commands_set_the_variables_before_pytorch_is_imported(command: str) -> None:
    assert all(seen_by_torch(REPOSITORY / command).values())


@pytest.mark.parametrize(
    ("name", "variables", "expected"),
    [
        ("GOMP_SPINCOUNT", {"GOMP_SPINCOUNT": "7"}, "7"),
        ("GOMP_SPINCOUNT", {"OMP_WAIT_POLICY": "active"}, None),
        ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "1024"}, "1024"),
        ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", {"DNNL_PRIMITIVE_CACHE_CAPACITY": "1024"}, None),
    ],
)
def test_variables_of_the_user_take_precedence(
    name: str, variables: dict[str, str], expected: str | None
) -> None:
    assert seen_by_torch(REPOSITORY / "train_net.py", **variables)[name] == expected
