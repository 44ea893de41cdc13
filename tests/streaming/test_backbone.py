"""The network over an image in parts computes what it does in one pass."""

import errno
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gpvit
import numpy as np
import pytest
import torch
from conftest import REPOSITORY
from gpvit.streaming import backbone, stream
from gpvit.streaming.storage import mapped_arrays, release_pages
from simulated_gpu import simulated_gpu
from torch import Tensor, nn

PYTHONPATH = str(REPOSITORY / "projects" / "GPViT")


def build(size: str = "L1", **options: Any) -> gpvit.GPViT:
    """A network with random weights and statistics."""
    torch.manual_seed(0)
    net = gpvit.GPViT(**(gpvit.SIZES[size] | options)).eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.5, 0.5)
            module.running_var.uniform_(0.5, 2)
    return net


def narrow(**options: Any) -> gpvit.GPViT:
    return build(embed_dim=24, **options)


@torch.no_grad()
def in_one_pass(net: nn.Module, image: Tensor) -> Tensor:
    return net(image)["last_feat"].permute(0, 2, 3, 1)


def relative_distance(found: Tensor, expected: Tensor) -> float:
    return ((found - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("size", gpvit.SIZES)
def test_all_sizes_equal_one_pass(size: str) -> None:
    """With six strips of rows and of columns, the last ones of two tokens, and 12 regions."""
    net, image = build(size), torch.randn(1, 3, 8 * 22, 8 * 18)
    assert relative_distance(stream(net, image, tokens=88), in_one_pass(net, image)) < 1e-5


OPTIONS: list[dict[str, Any]] = [
    dict(group_tokens=(0, 0, 0)),
    dict(group_tokens=(4,)),
    dict(final_norm=False, norm="FrozenBN"),
    dict(stem_convs=4),  # a halo of more than one token
    dict(pretrain_img_size=64, num_heads=2),
    dict(out_features=("block0", "last_feat")),
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("grid", [(2, 2), (2, 40), (40, 2), (14, 18)])
def test_other_networks_and_sizes_equal_one_pass(
    options: dict[str, Any], grid: tuple[int, int]
) -> None:
    net = narrow(**options)
    image = torch.randn(1, 3, 8 * grid[0], 8 * grid[1])
    for tokens in (8, 60):
        features = stream(net, image, tokens=tokens)
        assert relative_distance(features, in_one_pass(net, image)) < 1e-5, tokens


def test_every_parameter_changes_both_forms_alike() -> None:
    net, image = narrow(group_tokens=(0, 4), stem_convs=1), torch.randn(1, 3, 48, 64)
    before = in_one_pass(net, image)
    for name, parameter in net.named_parameters():
        with torch.no_grad():
            parameter += torch.randn_like(parameter)
        after = in_one_pass(net, image)
        # Adds the same to all scores, or to all channels, of a group token.
        has_no_effect = name.endswith(("group.key.bias", "token_mlp.fc2.bias"))
        assert has_no_effect or not torch.equal(after, before), name
        assert relative_distance(stream(net, image, tokens=12), after) < 1e-5, name
        before = after


@pytest.mark.parametrize("part", ["norm1", "norm2", "attn.proj", "mlp.fc1", "conv"])
def test_replaced_parts_change_both_forms_alike(part: str) -> None:
    net, image = narrow(group_tokens=(0, 4)), torch.randn(1, 3, 48, 64)
    before = in_one_pass(net, image)
    net.blocks[0].get_submodule(part).register_forward_hook(lambda *args: args[-1] * 2)
    after = in_one_pass(net, image)
    assert not torch.allclose(after, before)
    assert relative_distance(stream(net, image, tokens=12), after) < 1e-5


class Regions:
    """An image that gives regions, and notes their sizes."""

    def __init__(self, pixels: np.ndarray) -> None:
        self.pixels, self.shape = pixels, pixels.shape
        self.sides: list[tuple[int, ...]] = []

    def __getitem__(self, index: tuple[slice, ...]) -> np.ndarray:
        self.sides.append(self.pixels[index].shape[2:])
        region = self.pixels[index]
        region.flags.writeable = False  # as of a file that is mapped for reading
        return region


@pytest.mark.parametrize("grid", [(4, 400), (400, 4), (40, 40)])
def test_regions_have_as_many_tokens_in_images_of_all_shapes(grid: tuple[int, int]) -> None:
    net, pixels = narrow(group_tokens=(0, 4)), np.zeros((1, 3, 8 * grid[0], 8 * grid[1]), "f4")
    image = Regions(pixels)
    sizes = []
    net.blocks[0].norm2.register_forward_hook(lambda norm, args, output: sizes.append(output))
    features = stream(net, image, tokens=64)
    assert relative_distance(features, in_one_pass(net, torch.from_numpy(pixels))) < 1e-5
    # 64 tokens, and one around them
    assert len(image.sides) >= 25 and max(h * w for h, w in image.sides) <= 64 * 10 * 10
    assert all(output.shape[1:3].numel() <= max(64, 2 * grid[1]) for output in sizes[:-1])


def test_map_is_on_disk_in_the_folder_without_a_name(tmp_path: Path) -> None:
    net, image = narrow(), torch.randn(1, 3, 64, 64)
    features = stream(net, image, folder=tmp_path)
    assert features.shape == (1, 8, 8, 24) and features.dtype == torch.float32
    assert list(tmp_path.iterdir()) == []
    mapped = Path("/proc/self/maps").read_text()
    assert f"{tmp_path}/" in mapped
    del features
    assert f"{tmp_path}/" not in Path("/proc/self/maps").read_text()


def test_pages_of_the_maps_are_given_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only those of the last parts are in memory, and the content stays."""
    (array,) = mapped_arrays(tmp_path, [(1000, 1000)], np.dtype(np.float32))
    array[:] = 1
    assert resident_kib(tmp_path) >= 3900
    release_pages([array])
    assert resident_kib(tmp_path) == 0 and (array == 1).all()
    net, image = narrow(), torch.randn(1, 3, 256, 256)
    monkeypatch.setattr(backbone, "RELEASED_PARTS", 1)
    assert relative_distance(stream(net, image, tokens=64), in_one_pass(net, image)) < 1e-5


def resident_kib(folder: Path) -> int:
    """The memory of all files in a folder that are mapped into this process."""
    total, is_inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if re.match("[0-9a-f]+-", line):
            is_inside = f"{folder}/" in line
        elif is_inside and line.startswith("Rss:"):
            total += int(line.split()[1])
    return total


def test_too_little_space_is_reported_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=10**5))
    image = Regions(np.zeros((1, 3, 640, 800), "f4"))
    with pytest.raises(OSError, match="needs 0.0 GB in .*, where 0.0 GB are free; give") as e:
        stream(narrow(), image, folder=tmp_path)
    assert e.value.errno == errno.ENOSPC and not image.sides


def test_file_that_cannot_grow_is_an_error_and_not_the_end_of_the_process(tmp_path: Path) -> None:
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limit[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            stream(narrow(), torch.randn(1, 3, 640, 800), folder=tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGINT])
def test_nothing_is_left_of_a_process_that_is_stopped(tmp_path: Path, number: int) -> None:
    code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    code += "import gpvit, torch; net = gpvit.GPViT(embed_dim=24).eval(); print(1, flush=True)\n"
    code += "gpvit.streaming.stream(net, torch.zeros(1, 3, 4096, 4096), folder='.')"
    with subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": PYTHONPATH},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as process:
        process.stdout.readline()
        maps = Path(f"/proc/{process.pid}/maps")
        while f"{tmp_path}/" not in maps.read_text() and process.poll() is None:
            time.sleep(0.02)
        process.send_signal(number)
    assert process.returncode and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda net: (net.train(), torch.zeros(1, 3, 32, 32)), "is in training mode"),
        (lambda net: (net.double(), torch.zeros(1, 3, 32, 32)), "must be in float32, got torch.fl"),
        (lambda net: (build(embed_dim=192, norm="GN"), torch.zeros(1, 3, 32, 32)), "group norms"),
        (lambda net: (narrow(out_features=("block0",)), torch.zeros(1, 3, 32, 32)), "block0"),
        (lambda net: (net, torch.zeros(2, 3, 32, 32)), r"got \(2, 3, 32, 32\)"),
        (lambda net: (net, torch.zeros(1, 3, 32, 40)), r"multiples of 16, got \(1, 3, 32, 40\)"),
        (lambda net: (net, torch.zeros(3, 32, 32)), r"got \(3, 32, 32\)"),
        (lambda net: (net, torch.zeros(1, 3, 0, 16)), r"got \(1, 3, 0, 16\)"),
    ],
)
def test_other_arguments_raise_an_error(change: Callable[..., Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        stream(*change(narrow()))


def test_number_of_tokens_must_be_positive() -> None:
    with pytest.raises(ValueError, match="^tokens must be at least 1, got 0$"):
        stream(narrow(), torch.zeros(1, 3, 32, 32), tokens=0)


def test_progress_is_complete(capsys: pytest.CaptureFixture) -> None:
    stream(narrow(), torch.randn(1, 3, 128, 160), tokens=64, progress=True)
    last = capsys.readouterr().err.rstrip().rpartition("\r")[2]
    assert "backbone: 100%" in last
    stream(narrow(), torch.randn(1, 3, 128, 160))
    assert capsys.readouterr().err == ""


def test_map_stays_in_host_memory_when_the_network_is_on_a_gpu() -> None:
    net, image = narrow(), torch.randn(1, 3, 64, 96)
    expected = in_one_pass(net, image)
    with simulated_gpu():
        features = stream(net.to("cuda"), image, tokens=24)
    assert features.device.type == "cpu"
    assert relative_distance(features, expected) < 1e-5
