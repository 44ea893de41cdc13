"""Reference results of the official implementation, with the weights and inputs they belong to.

Weights and inputs are generated, the weights from the names of the tensors. tests/reference/ has
the results that the official implementation computed with them.
"""

import json
import math
import zlib
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

FOLDER = Path(__file__).parent / "reference"

# Reference file -> largest relative L2 distance of a result; conftest.py prints it at the end.
deviations: dict[str, float] = defaultdict(float)

# Compared sets of boxes -> fraction of equal boxes; conftest.py prints it at the end.
matches: dict[str, float] = {}

# Tolerance for equal boxes: corners in pixels, score, label.
SAME_BOX = torch.tensor([0.05, 0.05, 0.05, 0.05, 1e-4, 0])


def keys(kind: str, size: str) -> dict[str, list[int]]:
    """Return the parameter names and shapes of a published model.

    Args:
        kind: "backbone", "classifier", "maskrcnn", "retinanet", "segformer" or "upernet".
        size: "L1" to "L4"; for "backbone" also "l1_multi".
    """
    return json.loads((FOLDER / f"keys_{kind}.json").read_text())["state_dict"][size.lower()]


def weights(kind: str, size: str) -> dict[str, Tensor]:
    """Return a state dict for a published model, with generated values."""
    state_dict = {}
    for key, shape in keys(kind, size).items():
        state_dict[key] = torch.from_numpy(np.asarray(fill(key, shape)))
    return state_dict


def save(path: Path, kind: str, size: str) -> str:
    """Write a checkpoint in the layout of the published detectors, with generated values."""
    meta = {
        "mmcv_version": "1.4.8",
        "time": "Mon Jan  1 00:00:00 2022",
        "env_info": "sys.platform: linux",
        "config": "model = dict()",
        "epoch": 12,
        "iter": 43_980,
        "CLASSES": tuple(f"class {i}" for i in range(80)),
        "seed": 0,
        "exp_name": f"gpvit_{size.lower()}_{kind}_1x.py",
        "hook_msgs": {},
        "fp16": {"loss_scaler": {"scale": 512.0}},
    }
    torch.save({"meta": meta, "state_dict": weights(kind, size)}, path)
    return str(path)


def fill(key: str, shape: list[int]) -> np.ndarray:
    """Generate the tensor called ``key`` with a generator seeded by the CRC-32 of that name."""
    rng = np.random.Generator(np.random.PCG64(zlib.crc32(key.encode())))
    last = key.split(".")[-1]
    if last == "num_batches_tracked":
        return np.zeros(shape, np.int64)
    if last == "running_var":
        return np.float32(0.75) + np.float32(0.5) * rng.random(shape).astype(np.float32)
    normal = rng.standard_normal(shape).astype(np.float32)
    if last in ("running_mean", "bias"):
        return np.float32(0.1) * normal
    if last in ("pos_embed", "group_token", "level_embed", "gamma"):
        return np.float32(0.5) * normal
    if last == "weight" and len(shape) == 1:
        return 1 + np.float32(0.1) * normal
    return normal * np.float32(1 / math.sqrt(math.prod(shape[1:])))


def feature(seed: int, shape: tuple[int, ...]) -> Tensor:
    """Generate standard normal noise."""
    rng = np.random.Generator(np.random.PCG64(seed))
    return torch.from_numpy(rng.standard_normal(shape).astype(np.float32))


def image(seed: int, shape: tuple[int, int, int, int]) -> Tensor:
    """Generate a normalized image batch (B, 3, H, W): half 32-pixel squares, half pixel noise."""
    rng = np.random.Generator(np.random.PCG64(seed))
    batch, channels, height, width = shape
    rows, columns = -(-height // 32), -(-width // 32)  # rounded up
    squares = rng.standard_normal((batch, channels, rows, columns)).astype(np.float32)
    noise = rng.standard_normal(shape).astype(np.float32)
    squares = squares.repeat(32, axis=2).repeat(32, axis=3)[:, :, :height, :width]
    return torch.from_numpy(np.float32(math.sqrt(0.5)) * (squares + noise))


def arrays(name: str) -> dict[str, np.ndarray]:
    """Return the arrays of a reference file."""
    return dict(np.load(FOLDER / f"{name}.npz"))


class Reference:
    """The arrays of one reference file."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.arrays = np.load(FOLDER / f"{name}.npz")
        self.manifest = json.loads((FOLDER / "manifest.json").read_text())[f"{name}.npz"]

    def check(self, array: str, actual: Tensor, tolerance: float = 1e-5) -> None:
        """Assert that a map (B, C, H, W), tokens (B, L, C) or another array is that of the file.

        Of large maps and tokens, the file has a strided subset (``__sub``), the mean of each
        channel (``__cmean``) and the mean of each position (``__pmean``).
        """
        entry = self.manifest["arrays"][array]
        assert list(actual.shape) == entry["shape"], array
        actual = actual.detach()
        if entry["stored"] == "whole":
            return self._compare(array, actual, entry["absmax"], tolerance)
        channels = 1 if actual.ndim == 4 else 2
        positions = tuple(dim for dim in range(1, actual.ndim) if dim != channels)
        subset = actual[tuple(slice(None, None, step) for step in entry["stride"])]
        self._compare(f"{array}__sub", subset, entry["absmax"], tolerance)
        self._compare(f"{array}__cmean", actual.mean(positions), entry["absmax"], tolerance)
        self._compare(f"{array}__pmean", actual.mean(channels), entry["absmax"], tolerance)

    def check_boxes(self, what: str, actual: Tensor, expected: Tensor) -> Tensor:
        """Assert that two sets of boxes agree but for 2 %, which rounding may exchange.

        Args:
            actual: (N, 5) or (N, 6): x1, y1, x2, y2, score, and in the latter case the label.
            expected: (M, 5) or (M, 6), likewise.

        Returns:
            A boolean matrix (N, M) of the equal boxes.
        """
        same = ((actual[:, None] - expected).abs() <= SAME_BOX[: actual.shape[1]]).all(-1)
        found = same.any(dim=0).float().mean().item()  # fraction of the expected boxes
        correct = same.any(dim=1).float().mean().item()  # fraction of the actual boxes
        fraction = min(found, correct)
        matches[f"{self.name} {what}"] = fraction
        assert fraction >= 0.98, (
            f"{self.name} {what}: {fraction:.1%} of {len(actual)} and {len(expected)} are equal"
        )
        return same

    def _compare(self, array: str, actual: Tensor, absmax: float, tolerance: float) -> None:
        expected = torch.from_numpy(self.arrays[array]).double()
        difference = actual.double() - expected
        distance = (difference.norm() / expected.norm()).item()
        deviations[self.name] = max(deviations[self.name], distance)
        assert distance <= tolerance, f"{self.name} {array}: relative L2 {distance:.1e}"
        assert difference.abs().max() <= 2 * tolerance * absmax, f"{self.name} {array}"
