"""A folder that one process writes to is closed to others, for as long as that process lives."""

import errno
import logging
import multiprocessing
import os
import signal
import time
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
from gpvit.utils import files
from gpvit.utils.errors import UserError
from gpvit.utils.files import lock_folder


def hold(folder: Path, pipe: Connection) -> None:
    """Locks a folder, starts a process as a data loader does, sends its number, and waits."""
    with lock_folder(folder):
        worker = os.fork()
        if worker:
            pipe.send(worker)
        time.sleep(1000)


@pytest.fixture
def holder(tmp_path: Path):
    """The numbers of a process that has the folder locked, and of one that it forked."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=hold, args=(tmp_path, theirs))
    process.start()
    worker = ours.recv()
    yield process, worker
    process.kill()
    process.join()
    os.kill(worker, signal.SIGKILL)


def test_a_second_run_is_refused_by_one_line_that_names_the_first(tmp_path: Path, holder) -> None:
    process, _ = holder
    message = f"another run writes to .*process {process.pid} on .*another train.output_dir"
    with pytest.raises(UserError, match=message), lock_folder(tmp_path):
        pass


def test_a_killed_process_leaves_the_folder_free_though_its_workers_live(
    tmp_path: Path, holder
) -> None:
    process, worker = holder
    process.kill()
    process.join()
    os.kill(worker, 0)
    with lock_folder(tmp_path):
        pass


def test_a_folder_is_free_again_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError), lock_folder(tmp_path / "new"):
        raise ValueError
    with (
        lock_folder(tmp_path / "new"),
        pytest.raises(UserError, match="another run"),
        lock_folder(tmp_path / "new"),
    ):
        pass


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, number: int
) -> None:
    def flock(descriptor: int, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(files.fcntl, "flock", flock)
    with caplog.at_level(logging.WARNING), lock_folder(tmp_path):
        pass
    assert len(caplog.records) == 1 and "cannot be locked" in caplog.text


def test_what_cannot_be_a_folder_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    with pytest.raises(UserError, match="cannot write to .*file"), lock_folder(tmp_path / "file"):
        pass
    (tmp_path / "folder" / ".lock").mkdir(parents=True)
    with (
        pytest.raises(UserError, match="cannot write to .*folder"),
        lock_folder(tmp_path / "folder"),
    ):
        pass
