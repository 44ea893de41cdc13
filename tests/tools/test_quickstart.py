"""The quick start prints what to do, however its training run ends."""

import importlib.util
from pathlib import Path

import pytest
from conftest import REPOSITORY
from gpvit.utils.errors import UserError

spec = importlib.util.spec_from_file_location("quickstart", REPOSITORY / "tools" / "quickstart.py")
quickstart = importlib.util.module_from_spec(spec)
spec.loader.exec_module(quickstart)


SIGNAL_HANDLERS = """
import os, signal, sys, time

def stop(number, frame):
    time.sleep(0.5)  # saving takes longer than Python waits for a child process after Ctrl-C
    open("saved", "w").close()
    sys.exit(128 + number)

signal.signal(signal.SIGINT, stop)
signal.signal(signal.SIGTERM, stop)
"""


@pytest.mark.parametrize(
    ("script", "code", "message"),
    [
        (
            "os.kill(os.getpid(), signal.SIGKILL)",
            137,
            "killed (SIGKILL), possibly because the system ran out of memory; run make quickstart",
        ),
        (
            "os.kill(os.getpid(), signal.SIGSEGV)",
            139,
            "killed (SIGSEGV); run make quickstart again to resume",
        ),
        (
            "os.kill(os.getppid(), signal.SIGINT); time.sleep(60)",
            130,
            "interrupted; run the same command again",
        ),
        ("os.kill(os.getpid(), signal.SIGINT)", 130, "interrupted; run the same command again"),
        (
            "os.kill(os.getppid(), signal.SIGTERM); time.sleep(60)",
            143,
            "interrupted; run the same command again",
        ),
        ("sys.exit('error: reported by the training run itself')", 1, ""),
        ("", 0, ""),
    ],
)
def test_early_end_of_the_training_run_prints_what_to_do(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capfd: pytest.CaptureFixture,
    script: str,
    code: int,
    message: str,
) -> None:
    (tmp_path / "train_net.py").write_text(SIGNAL_HANDLERS + script)
    monkeypatch.setattr(quickstart, "REPOSITORY", tmp_path)
    assert quickstart.train(tmp_path, []) == code
    printed = capfd.readouterr().err
    assert message in printed and "Traceback" not in printed
    assert len(printed.strip().splitlines()) == (code != 0)
    assert (tmp_path / "saved").exists() == (code in (130, 143))


@pytest.mark.parametrize(
    ("ap", "overrides", "error"), [(35.0, [], ""), (10.0, [], "is below 20"), (0.0, ["a=b"], "")]
)
def test_quick_start_fails_if_ap_is_low_without_overrides(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    ap: float,
    overrides: list[str],
    error: str,
) -> None:
    for name in ("make_dataset", "draw"):
        monkeypatch.setattr(quickstart, name, lambda *_: None)
    monkeypatch.setattr(quickstart, "train", lambda *_: 0)
    monkeypatch.setattr(quickstart, "read_evaluation", lambda _: {"results": {"segm": {"AP": ap}}})
    if error:
        with pytest.raises(UserError, match=error):
            quickstart.main(overrides)
    else:
        assert quickstart.main(overrides) == 0
    assert f"mask AP {ap:.1f} %" in capsys.readouterr().out
