"""Ctrl-C, signals and kills outside of a training run end a command with at most one line."""

import ast
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY
from gpvit.cli.main import run_command
from gpvit.utils.errors import UserError
from gpvit.utils.signals import interrupt

pytestmark = pytest.mark.long

SCRIPTS = ["train_net.py", "tools/quickstart.py", "tools/make_synthetic_data.py"]
BENCHMARKS = sorted((REPOSITORY / "tests" / "benchmarks").glob("*.py"))
COMMANDS = [
    *(REPOSITORY / name for name in SCRIPTS),
    *(path for path in BENCHMARKS if path.name != "roofline.py"),
]

# Runs a command and interrupts it when it starts to import MODULE.
INTERRUPTED = """
import os, runpy, signal, sys

MODULE = sys.argv[1]

class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == MODULE:
            print("importing", name, flush=True)
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupt())
sys.argv = sys.argv[2:]
if sys.argv[0] == "gpvit":
    runpy.run_module("gpvit", run_name="__main__")
else:
    sys.path.insert(0, os.path.dirname(sys.argv[0]))
    runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize(
    ("command", "module"),
    [
        ("train_net.py", "torch"),
        ("gpvit predict --help", "cv2"),
        pytest.param("train_net.py", "gpvit.engine.run", marks=pytest.mark.slow),
        pytest.param("tools/quickstart.py", "detectron2.data", marks=pytest.mark.slow),
    ],
)
def test_interrupt_during_imports_prints_nothing(command: str, module: str) -> None:
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY / "projects" / "GPViT")}
    result = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, module, *command.split()],
        cwd=REPOSITORY, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert result.returncode == 130
    assert (result.stdout, result.stderr) == (f"importing {module}\n", "")


@pytest.mark.parametrize("path", COMMANDS, ids=lambda path: path.name)
def test_script_calls_prepare_command_before_other_imports(path: Path) -> None:
    _, first, second, *rest = ast.parse(path.read_text()).body  # the first node is the docstring
    assert ast.unparse(first) == "from gpvit.utils.environment import prepare_command"
    condition, _, action = ast.unparse(second).partition(":\n    ")
    assert condition in ("if __name__ == '__main__'", "if __name__ in ('__main__', '__mp_main__')")
    assert action == "prepare_command()"
    assert ast.unparse(rest[-1]).startswith("if __name__ == '__main__':\n    run_command(")


@pytest.mark.parametrize(
    ("error", "code", "printed"),
    [(None, 0, ""), (KeyboardInterrupt(), 130, ""), (UserError("wrong"), 1, "error: wrong\n")],
)
def test_command_exits_with_code_and_at_most_one_line(
    error: BaseException | None, code: int, printed: str
) -> None:
    def main() -> int:
        assert signal.getsignal(signal.SIGINT) is interrupt
        if error is not None:
            raise error
        return 0

    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        with pytest.raises(SystemExit) as ended:
            run_command(main)
    finally:
        signal.signal(signal.SIGINT, before)
    assert ended.value.code == (printed.strip() or code)


def test_second_interrupt_exits_immediately_without_traceback(tmp_path: Path) -> None:
    """The terminal sends Ctrl-C to a process and to its parent, which forwards it."""
    script = tmp_path / "command.py"
    script.write_text(
        "import atexit, os, signal, time\nfrom gpvit.cli.main import run_command\n"
        "def interrupt():\n    os.kill(os.getpid(), signal.SIGINT)\n    time.sleep(60)\n"
        "atexit.register(interrupt)  # where Python would print a traceback\n"
        "run_command(interrupt)\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.run(
        [sys.executable, str(script)], env=environment, capture_output=True, text=True, timeout=50
    )
    assert (run.returncode, run.stderr) == (130, "")


def run_with_backend(arguments: list[str], backend: str, path: Path) -> subprocess.CompletedProcess:
    environment = os.environ | {
        "MPLBACKEND": backend,
        "PYTHONPATH": f"{REPOSITORY / 'projects' / 'GPViT'}:{path}",
    }
    return subprocess.run(
        [sys.executable, *arguments], env=environment, capture_output=True, text=True
    )


@pytest.mark.parametrize("backend", ["module://matplotlib_inline.backend_inline", "nonsense"])
def test_invalid_matplotlib_backend_does_not_break_commands(tmp_path: Path, backend: str) -> None:
    result = run_with_backend(["-m", "gpvit", "view-attention", "--help"], backend, tmp_path)
    assert result.returncode == 0 and "Traceback" not in result.stderr, result.stderr


def test_importing_package_has_no_side_effects() -> None:
    code = (
        "import os, signal, sys, warnings\n"
        "before = dict(os.environ), list(warnings.filters), signal.getsignal(signal.SIGINT)\n"
        "import gpvit\n"
        "after = dict(os.environ), list(warnings.filters), signal.getsignal(signal.SIGINT)\n"
        "assert before == after\n"
        "assert not {'torch', 'detectron2', 'matplotlib', 'numpy'} & set(sys.modules)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY / "projects" / "GPViT")}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
