"""Damaged, half-written and hostile files of a training, and which of several it goes on from."""

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


def tensors(iteration: int) -> dict[str, Any]:
    content = {
        "model": {"weight": torch.arange(500.0) + iteration},
        "trainer": {"iteration": iteration},
    }
    return content | {"classes": [], "config": {}, "seed": 0}


def killed_while_saving(path: Path, when: int | str) -> None:
    """Saves in a process that is killed after so many bytes, or before a function of ``os`` is done."""
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
        gpvit.checkpoint.save(tensors(2), str(path))
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL


def test_a_kill_at_any_byte_of_a_checkpoint_leaves_the_one_before_it(tmp_path: Path) -> None:
    gpvit.checkpoint.save(tensors(1), str(tmp_path / "model_0000001.pth"))
    size = (tmp_path / "model_0000001.pth").stat().st_size
    places = [*range(1, size, size // 60), size - 1, "fsync", "replace"]
    for place in places:
        killed_while_saving(tmp_path / "model_0000002.pth", place)
        assert latest_checkpoint(str(tmp_path))["trainer"]["iteration"] == 1
        killed_while_saving(tmp_path / "model_0000001.pth", place)
        assert latest_checkpoint(str(tmp_path))["trainer"]["iteration"] == 1
    gpvit.checkpoint.save(
        tensors(2), str(tmp_path / "model_0000002.pth")
    )  # over what the killed ones left
    assert latest_checkpoint(str(tmp_path))["trainer"]["iteration"] == 2


def test_a_full_device_is_one_line_and_leaves_the_old_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "model_0000001.pth"
    gpvit.checkpoint.save(tensors(1), str(path))
    with (
        monkeypatch.context() as patch,
        pytest.raises(
            UserError, match="cannot write .*No space left on device; the old one is intact"
        ) as caught,
    ):
        patch.setattr(
            gpvit.checkpoint.files,
            "open",
            lambda name, mode: open("/dev/full", mode),
            raising=False,
        )  # noqa: SIM115
        gpvit.checkpoint.save(tensors(2), str(path))
    assert "\n" not in str(caught.value)
    assert latest_checkpoint(str(tmp_path))["trainer"]["iteration"] == 1


def test_a_flipped_bit_is_found_and_the_checkpoint_before_is_used_or_it_does_no_harm(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for iteration in (1, 2):
        gpvit.checkpoint.save(tensors(iteration), str(tmp_path / f"model_{iteration:07}.pth"))
    path = tmp_path / "model_0000002.pth"
    content = path.read_bytes()
    directory = range(len(content) - 100, len(content))
    places = [*directory, *random.Random(0).sample(range(len(content) - 100), 300)]
    harmless = 0  # such as in a date, or in what is between the entries
    for place in places:
        damaged = bytearray(content)
        damaged[place] ^= 1 << (place % 8)
        path.write_bytes(damaged)
        caplog.clear()
        found = latest_checkpoint(str(tmp_path))
        if found["trainer"]["iteration"] == 2:
            assert str(found | {"path": ""}) == str(tensors(2) | {"path": ""}), place
            harmless += 1
            continue
        assert "cannot read" in caplog.text
        with pytest.raises(UserError):
            gpvit.checkpoint.read(str(path))
    assert harmless < len(places) / 3  # more in a small file, where much of it aligns the entries
    for length in range(0, len(content), 37):
        path.write_bytes(content[:length])
        assert latest_checkpoint(str(tmp_path))["trainer"]["iteration"] == 1, length
        with pytest.raises(UserError):
            gpvit.checkpoint.read(str(path))
    (tmp_path / "model_0000001.pth").write_bytes(content[:-1])
    with pytest.raises(UserError, match="2 checkpoints, and none of them can be read"):
        latest_checkpoint(str(tmp_path))


@pytest.mark.parametrize(
    ("entry", "fault"),
    [
        ({"trainer": None}, "trainer is of another type"),
        ({"trainer": {"iteration": "9"}}, "does not say its iteration"),
        ({"trainer": {}}, "does not say its iteration"),
        ({"seed": "0"}, "seed is of another type"),
        ({"config": {"a": [1]}}, "classes or config are not text"),
        ({"classes": [None]}, "classes or config are not text"),
        ({"model": [1]}, "model is of another type"),
    ],
)
def test_a_whole_file_with_another_state_is_passed_over_and_said(
    tmp_path: Path, entry: dict[str, Any], fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    gpvit.checkpoint.save(tensors(1), str(tmp_path / "model_0000001.pth"))
    gpvit.checkpoint.save(tensors(2) | entry, str(tmp_path / "model_0000002.pth"))
    assert latest_checkpoint(str(tmp_path))["trainer"]["iteration"] == 1
    assert fault in caplog.text


@pytest.mark.parametrize("text", ["", "model_0000009.pth", None])
def test_a_last_checkpoint_file_of_detectron2_does_not_matter(
    tmp_path: Path, text: str | None
) -> None:
    gpvit.checkpoint.save(tensors(1), str(tmp_path / "model_0000001.pth"))
    if text is not None:
        (tmp_path / "last_checkpoint").write_text(text)
    assert latest_checkpoint(str(tmp_path))["trainer"]["iteration"] == 1


class Canary:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {self.path}",)


def test_code_in_a_checkpoint_is_refused_and_not_run(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    paths = [tmp_path / name for name in ("model_0000001.pth", "bare.pth", "old.pth", "pickle.pkl")]
    gpvit.checkpoint.save(
        {"model": {"weight": torch.zeros(1)}, "trainer": Canary(canary)}, str(paths[0])
    )
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
def test_code_in_a_yaml_config_is_refused_and_not_run(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config.yaml"
    (tmp_path / "evil.py").write_text(f"import os\nos.system('touch {tmp_path / 'canary'}')\n")
    path.write_text(
        text.replace("CANARY", str(tmp_path / "canary")).replace("EVIL", str(tmp_path / "evil.py"))
    )
    with pytest.raises(UserError):
        instantiate(load_config(str(path)).model)
    assert not (tmp_path / "canary").exists()


def test_a_thousand_damaged_checkpoints_are_refused_or_read(tmp_path: Path) -> None:
    chance = random.Random(0)
    good = []
    for name in ("good.pth", "bare.pth", "good.safetensors"):
        if name == "bare.pth":
            torch.save(
                {"model": {"weight": torch.arange(4.0)}, "classes": ["cat"]}, tmp_path / name
            )
        else:
            gpvit.checkpoint.write(
                str(tmp_path / name), {"weight": torch.arange(4.0)}, classes=["cat"]
            )
        good.append(((tmp_path / name).read_bytes(), Path(name).suffix))
    folder = tmp_path / "damaged"
    folder.mkdir()
    refused = 0
    for number in range(1000):
        content, suffix = good[number % 3]
        content = bytearray(content)
        kind = chance.randrange(4)
        if kind == 0:
            content = content[: chance.randrange(len(content))]
        elif kind == 1:
            for _ in range(chance.randrange(1, 20)):
                content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        elif kind == 2:
            content = bytearray(chance.randbytes(chance.randrange(300)))
        else:
            place = chance.randrange(len(content))
            content[place : place + 8] = chance.randbytes(chance.randrange(16))
        path = folder / f"damaged{suffix}"
        path.write_bytes(content)
        try:
            assert isinstance(gpvit.checkpoint.read(str(path)), gpvit.checkpoint.File)
        except UserError:
            refused += 1
        assert path.read_bytes() == content and len(list(folder.iterdir())) == 1
        path.unlink()
    assert refused > 600


def test_a_flipped_bit_at_the_end_of_a_large_checkpoint_is_found(tmp_path: Path) -> None:
    path = tmp_path / "model_0000001.pth"
    gpvit.checkpoint.save(tensors(1) | {"model": {"weight": torch.arange(1_000_000.0)}}, str(path))
    assert latest_checkpoint(str(tmp_path))["trainer"]["iteration"] == 1
    content = bytearray(path.read_bytes())
    content[3_000_000] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="the file is damaged, its checksums are wrong"):
        gpvit.checkpoint.read(str(path))
    with pytest.raises(UserError, match="none of them can be read"):
        latest_checkpoint(str(tmp_path))


def test_a_training_is_resumed_from_its_end(tmp_path: Path) -> None:
    gpvit.checkpoint.save(tensors(1), str(tmp_path / "model_0000001.pth"))
    gpvit.checkpoint.save(tensors(3), str(tmp_path / "model_final.pth"))
    assert latest_checkpoint(str(tmp_path))["trainer"]["iteration"] == 3


def test_the_checkpoint_with_most_iterations_is_the_newest(tmp_path: Path) -> None:
    for name, iteration in (("model_final", 5), ("model_0000010", 10)):
        gpvit.checkpoint.save(tensors(iteration), str(tmp_path / f"{name}.pth"))
    assert latest_checkpoint(str(tmp_path))["trainer"]["iteration"] == 10


@pytest.mark.parametrize(
    "key",
    ["model.a", "optimizer.lr", "lr_multiplier.a", "dataloader.train.mapper.a", "dataloader.train.total_batch_size",
     "dataloader.short_side", "train.seed", "train.max_iter", "train.amp.enabled", "train.amp.dtype", "train.clip_norm",
     "train.ema_decay", "train.init_checkpoint_of_mine", "dataloader.train.num_workers_of_mine"],
)  # fmt: skip
def test_no_key_that_the_weights_depend_on_may_change_appear_or_vanish(key: str) -> None:
    for saved, present in (({key: "1"}, {key: "2"}), ({}, {key: "2"}), ({key: "1"}, {})):
        with pytest.raises(UserError, match=f"{key}: {saved.get(key)} -> {present.get(key)}"):
            check_config_unchanged(saved, present, "model.pth")
