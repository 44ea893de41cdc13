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
def test_every_command_prints_help(capsys: pytest.CaptureFixture, name: str) -> None:
    with pytest.raises(SystemExit) as exit:
        import_module(f"gpvit.cli.{name.replace('-', '_')}").main(["--help"])
    assert exit.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: gpvit {name} ")


@pytest.mark.parametrize("tool", TOOLS, ids=lambda tool: tool.name)
def test_every_tool_prints_help(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, tool: Path
) -> None:
    monkeypatch.setattr(sys, "argv", [str(tool), "-h"])
    with pytest.raises(SystemExit) as exit:
        runpy.run_path(str(tool))["main"]()
    assert exit.value.code == 0
    assert capsys.readouterr().out.startswith("usage: ")


def gpvit(*arguments: str) -> subprocess.CompletedProcess:
    """Run the command in a process that logs its imports to stderr."""
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY / "projects" / "GPViT")}
    command = [sys.executable, "-X", "importtime", "-m", "gpvit", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def test_help_lists_commands_without_slow_imports() -> None:
    result = gpvit("--help")
    assert result.returncode == 0 and result.stdout.startswith("usage: gpvit ")
    for name in cli.COMMANDS:
        assert f"  {name} " in result.stdout
    for package in ("torch", "detectron2", "numpy", "cv2", "matplotlib"):
        assert f" {package}\n" not in result.stderr
    assert gpvit("--version").stdout == f"gpvit {__version__}\n"


def test_unknown_command_exits_with_usage_error(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli, "prepare_command", lambda: None)  # it would set up this process
    for arguments, message in (
        ([], "required: COMMAND"),
        (["demo"], "invalid choice: 'demo' (choose from 'train',"),
    ):
        with pytest.raises(SystemExit) as exit:
            cli.main(arguments)
        assert exit.value.code == 2 and message in capsys.readouterr().err


@pytest.mark.long
def test_user_error_prints_one_line() -> None:
    result = gpvit("check-data", "--data", "nowhere")
    lines = [line for line in result.stderr.splitlines() if not line.startswith("import time:")]
    assert (result.returncode, result.stdout, lines) == (1, "", ["error: nowhere does not exist"])
