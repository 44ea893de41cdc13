"""The lock on a folder excludes other processes for as long as its holder lives."""

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
    """Lock a folder, fork a worker as a data loader does, send its process id, and wait."""
    with lock_folder(folder):
        worker = os.fork()
        if worker:
            pipe.send(worker)
        time.sleep(1000)


@pytest.fixture
def holder(tmp_path: Path):
    """A process that holds the lock, and the process id of a worker that it forked."""
    receiver, sender = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=hold, args=(tmp_path, sender))
    process.start()
    worker = receiver.recv()
    yield process, worker
    process.kill()
    process.join()
    os.kill(worker, signal.SIGKILL)


def test_second_lock_raises_and_names_the_holder(tmp_path: Path, holder) -> None:
    process, _ = holder
    message = f"another run writes to .*process {process.pid} on .*another train.output_dir"
    with pytest.raises(UserError, match=message), lock_folder(tmp_path):
        pass


def test_lock_ends_with_its_process_even_if_a_worker_lives_on(tmp_path: Path, holder) -> None:
    process, worker = holder
    process.kill()
    process.join()
    os.kill(worker, 0)  # raises if the worker does not exist
    with lock_folder(tmp_path):
        pass


def test_lock_is_released_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError), lock_folder(tmp_path / "new"):
        raise ValueError
    with (
        lock_folder(tmp_path / "new"),
        pytest.raises(UserError, match="another run"),
        lock_folder(tmp_path / "new"),
    ):
        pass


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_file_system_without_locks_logs_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, number: int
) -> None:
    def flock(descriptor: int, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(files.fcntl, "flock", flock)
    with caplog.at_level(logging.WARNING), lock_folder(tmp_path):
        pass
    assert len(caplog.records) == 1 and "cannot be locked" in caplog.text


def test_unwritable_folder_raises(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    with pytest.raises(UserError, match="cannot write to .*file"), lock_folder(tmp_path / "file"):
        pass
    (tmp_path / "folder" / ".lock").mkdir(parents=True)
    with (
        pytest.raises(UserError, match="cannot write to .*folder"),
        lock_folder(tmp_path / "folder"),
    ):
        pass
