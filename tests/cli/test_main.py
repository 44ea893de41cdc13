"""`gpvit COMMAND`, `python -m gpvit COMMAND` and the tools: help, errors and exit codes."""

import os
import runpy
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
from conftest import REPOSITORY
from gpvit.cli import main as cli
from gpvit.version import __version__

TOOLS = [
    path
    for path in sorted((REPOSITORY / "tools").glob("*.py"))
    if "ArgumentParser(" in path.read_text()
]


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_help_is_there_for_every_command(capsys: pytest.CaptureFixture, name: str) -> None:
    with pytest.raises(SystemExit) as end:
        import_module(f"gpvit.cli.{name.replace('-', '_')}").main(["--help"])
    assert end.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: gpvit {name} ")


@pytest.mark.parametrize("tool", TOOLS, ids=lambda tool: tool.name)
def test_help_is_there_for_every_tool(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, tool: Path
) -> None:
    monkeypatch.setattr(sys, "argv", [str(tool), "-h"])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(tool))["main"]()
    assert end.value.code == 0
    assert capsys.readouterr().out.startswith("usage: ")


def gpvit(*arguments: str) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY / "projects" / "GPViT")}
    command = [sys.executable, "-X", "importtime", "-m", "gpvit", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def test_the_commands_are_listed_without_importing_them() -> None:
    """That takes seconds, of which PyTorch takes most."""
    shown = gpvit("--help")
    assert shown.returncode == 0 and shown.stdout.startswith("usage: gpvit ")
    assert all(f"  {name} " in shown.stdout for name in cli.COMMANDS)
    for package in ("torch", "detectron2", "numpy", "cv2", "matplotlib"):
        assert f" {package}\n" not in shown.stderr
    assert gpvit("--version").stdout == f"gpvit {__version__}\n"


def test_a_wrong_command_is_argparses_error(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli, "prepare_command", lambda: None)  # which changes the process
    for arguments, message in (
        ([], "required: COMMAND"),
        (["demo"], "invalid choice: 'demo' (choose from 'train',"),
    ):
        with pytest.raises(SystemExit) as end:
            cli.main(arguments)
        assert end.value.code == 2 and message in capsys.readouterr().err


def test_a_users_error_is_one_line() -> None:
    result = gpvit("check-data", "--data", "nowhere")
    lines = [line for line in result.stderr.splitlines() if not line.startswith("import time:")]
    assert (result.returncode, result.stdout, lines) == (1, "", ["error: nowhere does not exist"])
