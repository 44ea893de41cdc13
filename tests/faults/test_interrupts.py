"""Ctrl-C, signals and kills outside of a training run end a command with at most one line."""

import ast
import os
import signal
import subprocess
import sys
from pathlib import Path

import common
import pytest
import quickstart
from conftest import REPOSITORY
from gpvit.utils.signals import interrupt

COMMANDS = [REPOSITORY / "train_net.py"]
COMMANDS += [
    path
    for path in sorted((REPOSITORY / "tools").glob("*.py"))
    if '"__main__"' in path.read_text() and path.name != "install.py"  # which imports the standard library alone
]

# Runs a command, and sends Ctrl-C when it comes to import a module.
INTERRUPTED = """
import os, runpy, signal, sys

class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == sys.argv[1]:
            print("importing", name, flush=True)
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupt())
sys.path.insert(0, os.path.dirname(sys.argv[2]))
runpy.run_path(sys.argv[2], run_name="__main__")
"""


@pytest.mark.parametrize(
    ("command", "module"),
    [
        ("train_net.py", "argparse"),
        ("train_net.py", "torch"),
        ("tools/demo.py", "cv2"),
        pytest.param("train_net.py", "gpvit.engine", marks=pytest.mark.slow),
        pytest.param("tools/quickstart.py", "detectron2.data", marks=pytest.mark.slow),
    ],
)
def test_an_interrupt_while_importing_is_quiet(command: str, module: str) -> None:
    result = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, module, str(REPOSITORY / command)], capture_output=True, text=True,
    )  # fmt: skip
    assert (result.returncode, result.stderr) == (130, "") and result.stdout == f"importing {module}\n"


@pytest.mark.parametrize("path", COMMANDS, ids=lambda path: path.name)
def test_each_command_sees_to_interrupts_before_it_imports_anything_else(path: Path) -> None:
    text = path.read_text()
    _, first, second, third, *rest = ast.parse(text).body  # behind the docstring
    assert [ast.unparse(part) for part in (first, second)] == ["import os", "import signal"]
    assert ast.unparse(third).startswith(
        "if __name__ == '__main__':\n    signal.signal(signal.SIGINT, lambda *_: os._exit(130))"
    )
    # Spawned processes import the command again.
    assert ("in_a_process" in text or path.name == "train_net.py") == ("__mp_main__" in ast.unparse(third))
    last = ast.unparse(rest[-1])
    assert any(end in last for end in ("run_command(main)", "signal.signal(signal.SIGINT, "))


@pytest.mark.parametrize(
    ("error", "code", "printed"),
    [(None, 0, ""), (KeyboardInterrupt(), 130, ""), (common.UserError("wrong"), 1, "error: wrong\n")],
)
def test_a_command_ends_with_at_most_one_line(error: BaseException | None, code: int, printed: str) -> None:
    def main() -> int:
        assert signal.getsignal(signal.SIGINT) is interrupt
        if error is not None:
            raise error
        return 0

    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        with pytest.raises(SystemExit) as ended:
            common.run_command(main)
    finally:
        signal.signal(signal.SIGINT, before)
    assert ended.value.code == (printed.strip() or code)


def test_a_second_interrupt_ends_a_command_at_once_and_quietly(tmp_path: Path) -> None:
    """As Ctrl-C does, which the terminal sends to a process and its parent passes on to it."""
    script = tmp_path / "command.py"
    script.write_text(
        "import atexit, os, signal, time\nfrom common import run_command\n"
        "def interrupt():\n    os.kill(os.getpid(), signal.SIGINT)\n    time.sleep(60)\n"
        "atexit.register(interrupt)  # where Python would show a traceback\n"
        "run_command(interrupt)\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.run([sys.executable, str(script)], env=environment, capture_output=True, text=True, timeout=50)
    assert (run.returncode, run.stderr) == (130, "")


STAGE = """
import os, signal, sys, time

def stop(number, frame):
    time.sleep(0.5)  # it saves its state, for longer than Python would wait for a child after Ctrl-C
    open("saved", "w").close()
    sys.exit(128 + number)

signal.signal(signal.SIGINT, stop)
signal.signal(signal.SIGTERM, stop)
"""


@pytest.mark.parametrize(
    ("script", "code", "message"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", 137, "killed (SIGKILL), perhaps for want of memory; call make quickstart"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", 139, "killed (SIGSEGV); call make quickstart again to go on"),
        ("os.kill(os.getppid(), signal.SIGINT); time.sleep(60)", 130, "interrupted; the next call goes on"),
        ("os.kill(os.getpid(), signal.SIGINT)", 130, "interrupted; the next call goes on"),
        ("os.kill(os.getppid(), signal.SIGTERM); time.sleep(60)", 143, "interrupted; the next call goes on"),
        ("sys.exit('error: what it says itself')", 1, ""),
        ("", 0, ""),
    ],
)
def test_a_quick_start_whose_training_run_ends_early_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture, script: str, code: int, message: str
) -> None:
    (tmp_path / "train_net.py").write_text(STAGE + script)
    monkeypatch.setattr(quickstart, "REPOSITORY", tmp_path)
    assert quickstart.train(tmp_path, []) == code
    printed = capfd.readouterr().err
    assert message in printed and "Traceback" not in printed
    assert len(printed.strip().splitlines()) == (code != 0)
    assert (tmp_path / "saved").exists() == (code in (130, 143))


def backend_of(arguments: list[str], backend: str, path: Path) -> subprocess.CompletedProcess:
    environment = os.environ | {"MPLBACKEND": backend, "PYTHONPATH": f"{REPOSITORY / 'projects' / 'GPViT'}:{path}"}
    return subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True)


ASK = "import gpvit, matplotlib, os; print(matplotlib.rcParams._get('backend'), os.environ.get('MPLBACKEND'))"
INLINE = "module://matplotlib_inline.backend_inline"


@pytest.mark.parametrize("backend", [INLINE, pytest.param("nonsense", marks=pytest.mark.slow)])
def test_a_backend_that_is_none_breaks_no_command(tmp_path: Path, backend: str) -> None:
    result = backend_of([str(REPOSITORY / "tools" / "view_groups.py"), "--help"], backend, tmp_path)
    assert result.returncode == 0 and "Traceback" not in result.stderr, result.stderr


def test_a_notebook_keeps_its_backend(tmp_path: Path) -> None:
    info = tmp_path / "matplotlib_inline-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: matplotlib-inline\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[matplotlib.backend]\ninline = matplotlib_inline.backend_inline\n")
    result = backend_of(["-c", ASK], INLINE, tmp_path)
    assert result.stdout == f"{INLINE} {INLINE}\n", result.stderr


@pytest.mark.parametrize("path", COMMANDS, ids=lambda path: path.name)
def test_no_command_imports_what_gpvit_makes_settings_for_before_it(path: Path) -> None:
    imported = []
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            imported += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            imported.append(node.module)
    tops = [name.partition(".")[0] for name in imported]
    bringing = [number for number, top in enumerate(tops) if top in ("common", "gpvit")]
    needing = [number for number, top in enumerate(tops) if top in ("detectron2", "matplotlib", "torch", "torchvision")]
    assert not needing or min(bringing) < min(needing)
