"""Environment variables that are set before PyTorch is imported, in processes of their own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY

NAMES = ("GOMP_SPINCOUNT", "ONEDNN_PRIMITIVE_CACHE_CAPACITY")
OWN = (*NAMES, "OMP_WAIT_POLICY", "DNNL_PRIMITIVE_CACHE_CAPACITY")
# Ends where PyTorch would be imported, and says what it would find.
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
    """What PyTorch finds in the environment of a command that is started with these variables."""
    environment = {name: value for name, value in os.environ.items() if name not in OWN} | variables
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
def test_a_command_sets_how_threads_wait_before_pytorch_is_imported(command: str) -> None:
    assert all(seen_by_torch(REPOSITORY / command).values())


@pytest.mark.parametrize(
    ("name", "given", "seen"),
    [
        ("GOMP_SPINCOUNT", {"GOMP_SPINCOUNT": "7"}, "7"),
        ("GOMP_SPINCOUNT", {"OMP_WAIT_POLICY": "active"}, None),
        ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "1024"}, "1024"),
        ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", {"DNNL_PRIMITIVE_CACHE_CAPACITY": "1024"}, None),
    ],
)
def test_what_the_user_has_set_stays(name: str, given: dict[str, str], seen: str | None) -> None:
    assert seen_by_torch(REPOSITORY / "train_net.py", **given)[name] == seen
