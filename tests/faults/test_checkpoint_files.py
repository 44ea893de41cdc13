"""Damaged, truncated and hostile checkpoints of a training run, and which of several is resumed."""

import io
import os
import pickle
import random
import signal
import sys
from pathlib import Path
from typing import Any

import gpvit.checkpoint.files
import pytest
import torch
from detectron2.config import instantiate
from gpvit.config import load_config
from gpvit.engine.resume import check_config_unchanged, latest_checkpoint
from gpvit.utils.errors import UserError

pytestmark = pytest.mark.long


def checkpoint_content(iteration: int) -> dict[str, Any]:
    weights = {"weight": torch.arange(500.0) + iteration}
    content = {"model": weights, "trainer": {"iteration": iteration}}
    return content | {"classes": [], "config": {}, "seed": 0}


def latest_iteration(folder: Path) -> int:
    return latest_checkpoint(str(folder))["trainer"]["iteration"]


def killed_while_saving(path: Path, when: int | str) -> None:
    """Save in a process that is killed after this many bytes or in place of a call of ``os``."""
    if (pid := os.fork()) == 0:

        class Killer(io.BufferedWriter):
            left = when if isinstance(when, int) else sys.maxsize

            def write(self, data: bytes) -> int:
                part = bytes(data)[: self.left]
                super().write(part)
                self.left -= len(part)
                if not self.left:
                    self.flush()
                    os.kill(os.getpid(), signal.SIGKILL)
                return len(part)

        if isinstance(when, str):
            setattr(os, when, lambda *args: os.kill(os.getpid(), signal.SIGKILL))
        gpvit.checkpoint.files.open = lambda name, mode: Killer(
            io.FileIO(name, mode.replace("b", ""))
        )
        gpvit.checkpoint.save(checkpoint_content(2), str(path))
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL


def test_kill_at_any_byte_keeps_previous_checkpoint(tmp_path: Path) -> None:
    first, second = tmp_path / "model_0000001.pth", tmp_path / "model_0000002.pth"
    gpvit.checkpoint.save(checkpoint_content(1), str(first))
    size = first.stat().st_size
    for when in [*range(1, size, size // 60), size - 1, "fsync", "replace"]:
        killed_while_saving(second, when)
        assert latest_iteration(tmp_path) == 1
        killed_while_saving(first, when)
        assert latest_iteration(tmp_path) == 1
    gpvit.checkpoint.save(checkpoint_content(2), str(second))  # partial files are in the way
    assert latest_iteration(tmp_path) == 2


def test_full_device_raises_and_keeps_old_checkpoint(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "model_0000001.pth"
    gpvit.checkpoint.save(checkpoint_content(1), str(path))

    def open_full_device(name: str, mode: str) -> Any:
        return open("/dev/full", mode)

    message = "cannot write .*No space left on device; the old one is intact"
    with monkeypatch.context() as patch, pytest.raises(UserError, match=message) as caught:
        patch.setattr(gpvit.checkpoint.files, "open", open_full_device, raising=False)
        gpvit.checkpoint.save(checkpoint_content(2), str(path))
    assert "\n" not in str(caught.value)
    assert latest_iteration(tmp_path) == 1


def test_checkpoint_with_flipped_bit_is_rejected_unless_content_is_unchanged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for iteration in (1, 2):
        content = checkpoint_content(iteration)
        gpvit.checkpoint.save(content, str(tmp_path / f"model_{iteration:07}.pth"))
    path = tmp_path / "model_0000002.pth"
    data = path.read_bytes()
    end_of_directory = range(len(data) - 100, len(data))  # of the zip file
    places = [*end_of_directory, *random.Random(0).sample(range(len(data) - 100), 300)]
    harmless = 0  # such as in a date or in the padding between entries
    for place in places:
        damaged = bytearray(data)
        damaged[place] ^= 1 << (place % 8)
        path.write_bytes(damaged)
        caplog.clear()
        latest = latest_checkpoint(str(tmp_path))
        if latest["trainer"]["iteration"] == 2:
            assert str(latest | {"path": ""}) == str(checkpoint_content(2) | {"path": ""}), place
            harmless += 1
            continue
        assert "cannot read" in caplog.text
        with pytest.raises(UserError):
            gpvit.checkpoint.read(str(path))
    assert harmless < len(places) / 3  # much of a small file is padding


def test_truncated_checkpoints_are_rejected(tmp_path: Path) -> None:
    for iteration in (1, 2):
        content = checkpoint_content(iteration)
        gpvit.checkpoint.save(content, str(tmp_path / f"model_{iteration:07}.pth"))
    path = tmp_path / "model_0000002.pth"
    data = path.read_bytes()
    for length in range(0, len(data), 37):
        path.write_bytes(data[:length])
        assert latest_iteration(tmp_path) == 1, length
        with pytest.raises(UserError):
            gpvit.checkpoint.read(str(path))
    (tmp_path / "model_0000001.pth").write_bytes(data[:-1])
    with pytest.raises(UserError, match="2 checkpoints, and none of them can be read"):
        latest_checkpoint(str(tmp_path))


@pytest.mark.parametrize(
    ("entry", "fault"),
    [
        ({"trainer": None}, "wrong type of trainer"),
        ({"trainer": {"iteration": "9"}}, "its iteration is missing or invalid"),
        ({"trainer": {}}, "its iteration is missing or invalid"),
        ({"seed": "0"}, "wrong type of seed"),
        ({"config": {"a": [1]}}, "classes or config are not text"),
        ({"classes": [None]}, "classes or config are not text"),
        ({"model": [1]}, "wrong type of model"),
    ],
)
def test_readable_checkpoint_with_invalid_state_is_skipped_with_warning(
    tmp_path: Path, entry: dict[str, Any], fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    gpvit.checkpoint.save(checkpoint_content(1), str(tmp_path / "model_0000001.pth"))
    gpvit.checkpoint.save(checkpoint_content(2) | entry, str(tmp_path / "model_0000002.pth"))
    assert latest_iteration(tmp_path) == 1
    assert fault in caplog.text


@pytest.mark.parametrize("text", ["", "model_0000009.pth", None])
def test_last_checkpoint_file_of_detectron2_is_ignored(tmp_path: Path, text: str | None) -> None:
    gpvit.checkpoint.save(checkpoint_content(1), str(tmp_path / "model_0000001.pth"))
    if text is not None:
        (tmp_path / "last_checkpoint").write_text(text)
    assert latest_iteration(tmp_path) == 1


class Canary:
    """An object that creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {self.path}",)


def test_code_in_checkpoint_is_rejected_and_not_executed(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    paths = [tmp_path / name for name in ("model_0000001.pth", "bare.pth", "old.pth", "pickle.pkl")]
    content = {"model": {"weight": torch.zeros(1)}, "trainer": Canary(canary)}
    gpvit.checkpoint.save(content, str(paths[0]))
    torch.save({"model": Canary(canary)}, paths[1])
    torch.save({"model": Canary(canary)}, paths[2], _use_new_zipfile_serialization=False)
    paths[3].write_bytes(pickle.dumps({"model": Canary(canary)}))
    for path in paths:
        with pytest.raises(UserError, match="is code and not data|plain pickle"):
            gpvit.checkpoint.read(str(path))
    with pytest.raises(UserError, match="none of them can be read"):
        latest_checkpoint(str(tmp_path))
    assert not canary.exists()
    os.system(f"touch {canary}")
    assert canary.exists()


@pytest.mark.parametrize(
    "text",
    [
        "train: !!python/object/apply:os.system ['touch CANARY']",
        "model: {_target_: os.system, command: touch CANARY}",
        "model: {_target_: gpvit.engine.launch.os.system, command: touch CANARY}",
        "model: {_target_: detectron2.config.LazyConfig.load, filename: CANARY}",
        "model: [{a: {_target_: builtins.eval}}]",
        "model: ${oc.decode:'{_target_: os.system, command: touch CANARY}'}",
        "target: os.system\nmodel: {_target_: '${target}', command: touch CANARY}",
        "model: {_target_: gpvit.checkpoint.files.os.system, command: touch CANARY}",
        """model: "${oc.decode:'{_target_: os.system, command: touch CANARY}'}" """,
        """model: "${oc.create:{_target_: os.system, command: touch CANARY}}" """,
        """model: "\\x24{oc.decode:'{_target_: os.system, command: touch CANARY}'}" """,
        """x: oc.decode\nmodel: "${${x}:'{_target_: os.system, command: touch CANARY}'}" """,
        "model: {_target_: gpvit.engine.load_config, path: EVIL}",
        "model: {_target_: gpvit.checkpoint.save, content: {a: 1}, path: CANARY}",
    ],
)
def test_code_in_yaml_config_is_rejected_and_not_executed(tmp_path: Path, text: str) -> None:
    canary, evil, path = (tmp_path / name for name in ("canary", "evil.py", "config.yaml"))
    evil.write_text(f"import os\nos.system('touch {canary}')\n")
    path.write_text(text.replace("CANARY", str(canary)).replace("EVIL", str(evil)))
    with pytest.raises(UserError):
        instantiate(load_config(str(path)).model)
    assert not canary.exists()


def damage(content: bytes, chance: random.Random) -> bytes:
    """Truncate, flip bits, replace everything, or replaces eight bytes by up to 15 others."""
    data = bytearray(content)
    kind = chance.randrange(4)
    if kind == 0:
        data = data[: chance.randrange(len(data))]
    elif kind == 1:
        for _ in range(chance.randrange(1, 20)):
            data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    elif kind == 2:
        data = bytearray(chance.randbytes(chance.randrange(300)))
    else:
        place = chance.randrange(len(data))
        data[place : place + 8] = chance.randbytes(chance.randrange(16))
    return bytes(data)


def test_thousand_damaged_checkpoints_are_read_or_rejected(tmp_path: Path) -> None:
    chance = random.Random(0)
    weights = {"weight": torch.arange(4.0)}
    intact = []
    for name in ("good.pth", "bare.pth", "good.safetensors"):
        path = tmp_path / name
        if name == "bare.pth":
            torch.save({"model": weights, "classes": ["cat"]}, path)
        else:
            gpvit.checkpoint.write(str(path), weights, classes=["cat"])
        intact.append((path.read_bytes(), path.suffix))
    folder = tmp_path / "damaged"
    folder.mkdir()
    rejected = 0
    for number in range(1000):
        content, suffix = intact[number % 3]
        damaged = damage(content, chance)
        path = folder / f"damaged{suffix}"
        path.write_bytes(damaged)
        try:
            assert isinstance(gpvit.checkpoint.read(str(path)), gpvit.checkpoint.File)
        except UserError:
            rejected += 1
        # Reading neither changes the file nor creates others.
        assert path.read_bytes() == damaged and len(list(folder.iterdir())) == 1
        path.unlink()
    assert rejected > 600


def test_flipped_bit_in_large_checkpoint_is_detected(tmp_path: Path) -> None:
    path = tmp_path / "model_0000001.pth"
    large = {"model": {"weight": torch.arange(1_000_000.0)}}
    gpvit.checkpoint.save(checkpoint_content(1) | large, str(path))
    assert latest_iteration(tmp_path) == 1
    content = bytearray(path.read_bytes())
    content[3_000_000] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="the file is damaged, its checksums are wrong"):
        gpvit.checkpoint.read(str(path))
    with pytest.raises(UserError, match="none of them can be read"):
        latest_checkpoint(str(tmp_path))


def test_final_checkpoint_is_resumed(tmp_path: Path) -> None:
    gpvit.checkpoint.save(checkpoint_content(1), str(tmp_path / "model_0000001.pth"))
    gpvit.checkpoint.save(checkpoint_content(3), str(tmp_path / "model_final.pth"))
    assert latest_iteration(tmp_path) == 3


def test_latest_checkpoint_has_most_iterations(tmp_path: Path) -> None:
    for name, iteration in (("model_final", 5), ("model_0000010", 10)):
        gpvit.checkpoint.save(checkpoint_content(iteration), str(tmp_path / f"{name}.pth"))
    assert latest_iteration(tmp_path) == 10


@pytest.mark.parametrize(
    "key",
    ["model.a", "optimizer.lr", "lr_multiplier.a", "dataloader.train.mapper.a",
     "dataloader.train.total_batch_size", "dataloader.short_side", "train.seed", "train.max_iter",
     "train.amp.enabled", "train.amp.dtype", "train.clip_norm", "train.ema_decay",
     "train.init_checkpoint_of_mine", "dataloader.train.num_workers_of_mine"],
)  # fmt: skip
def test_changed_added_or_removed_training_key_raises(key: str) -> None:
    for saved, current in (({key: "1"}, {key: "2"}), ({}, {key: "2"}), ({key: "1"}, {})):
        with pytest.raises(UserError, match=f"{key}: {saved.get(key)} -> {current.get(key)}"):
            check_config_unchanged(saved, current, "model.pth")
