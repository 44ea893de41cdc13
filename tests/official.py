"""What the tests compare with: weights and inputs made by rule, and numbers computed with the published code."""

import json
import math
import zlib
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

FOLDER = Path(__file__).parent / "reference"

# Largest relative L2 distance seen in each file; conftest.py prints it at the end.
deviations: dict[str, float] = defaultdict(float)

# Share of the boxes that are the same in both sets, of each pair of sets compared; conftest.py prints it, too.
matches: dict[str, float] = {}

# How far the same box may be off: corners in pixels, score, label.
SAME_BOX = torch.tensor([0.05, 0.05, 0.05, 0.05, 1e-4, 0])


def keys(kind: str, size: str) -> dict[str, list[int]]:
    """Names and shapes of a published model.

    Args:
        kind: "backbone", "classifier", "maskrcnn", "retinanet", "segformer" or "upernet".
        size: "L1" ... "L4", of "backbone" also "l1_multi".
    """
    return json.loads((FOLDER / f"keys_{kind}.json").read_text())["state_dict"][size.lower()]


def weights(kind: str, size: str) -> dict[str, Tensor]:
    """A published model's state dict, filled by the rule."""
    return {
        key: torch.from_numpy(np.asarray(fill(key, shape)))
        for key, shape in keys(kind, size).items()
    }


def save(path: Path, kind: str, size: str) -> str:
    """Writes a stand-in for the published detector, filled by the rule, in the layout of the published files."""
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
    """The value of the tensor called ``key``: one draw from a generator seeded with the CRC-32 of that name."""
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
    """Standard normal noise."""
    return torch.from_numpy(
        np.random.Generator(np.random.PCG64(seed)).standard_normal(shape).astype(np.float32)
    )


def image(seed: int, shape: tuple[int, int, int, int]) -> Tensor:
    """A normalised image batch (B, 3, H, W): half 32-pixel squares, half pixel noise."""
    rng = np.random.Generator(np.random.PCG64(seed))
    batch, channels, height, width = shape
    squares = rng.standard_normal((batch, channels, -(-height // 32), -(-width // 32))).astype(
        np.float32
    )
    noise = rng.standard_normal(shape).astype(np.float32)
    squares = squares.repeat(32, axis=2).repeat(32, axis=3)[:, :, :height, :width]
    return torch.from_numpy(np.float32(math.sqrt(0.5)) * (squares + noise))


class Reference:
    """The arrays of one reference file."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.arrays = np.load(FOLDER / f"{name}.npz")
        self.manifest = json.loads((FOLDER / "manifest.json").read_text())[f"{name}.npz"]

    def check(self, array: str, actual: Tensor, tolerance: float = 1e-5) -> None:
        """Asserts that a map (B, C, H, W), tokens (B, L, C) or a plain array is the one in the file."""
        entry = self.manifest["arrays"][array]
        assert list(actual.shape) == entry["shape"], array
        actual = actual.detach()
        if entry["stored"] == "whole":
            return self._compare(array, actual, entry["absmax"], tolerance)
        channels = 1 if actual.ndim == 4 else 2
        positions = tuple(dim for dim in range(1, actual.ndim) if dim != channels)
        self._compare(
            f"{array}__sub",
            actual[tuple(slice(None, None, s) for s in entry["stride"])],
            entry["absmax"],
            tolerance,
        )
        self._compare(f"{array}__cmean", actual.mean(positions), entry["absmax"], tolerance)
        self._compare(f"{array}__pmean", actual.mean(channels), entry["absmax"], tolerance)

    def check_boxes(self, what: str, actual: Tensor, expected: Tensor) -> Tensor:
        """Asserts that two sets of boxes are the same but for 2 %, which rounding may exchange.

        Args:
            actual: (N, 5) or (N, 6): x1, y1, x2, y2, score, and the label where there is one.
            expected: (M, 5) or (M, 6), likewise.

        Returns:
            Which are the same, (N, M).
        """
        same = ((actual[:, None] - expected).abs() <= SAME_BOX[: actual.shape[1]]).all(-1)
        share = min(same.any(dim).float().mean().item() for dim in (0, 1))
        matches[f"{self.name} {what}"] = share
        assert share >= 0.98, (
            f"{self.name} {what}: {share:.1%} of {len(actual)} and {len(expected)} are the same"
        )
        return same

    def _compare(self, array: str, actual: Tensor, absmax: float, tolerance: float) -> None:
        expected = torch.from_numpy(self.arrays[array]).double()
        difference = actual.double() - expected
        distance = (difference.norm() / expected.norm()).item()
        deviations[self.name] = max(deviations[self.name], distance)
        assert distance <= tolerance, f"{self.name} {array}: relative L2 {distance:.1e}"
        assert difference.abs().max() <= 2 * tolerance * absmax, f"{self.name} {array}"
