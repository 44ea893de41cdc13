"""Configs and checkpoints from untrusted sources execute nothing, and each fault is one line.

Nothing in them is called, opened or written. Hypothesis generates them in child processes, so that
a crash by a signal is detected. There are two canaries: a file that calls from a config or a pickle
would create, and a folder next to the one that a command may write to.
"""

import io
import json
import os
import pickle
import shutil
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import gpvit.predictor
import numpy as np
import pytest
import torch
import yaml
from children import in_a_child
from detectors import write_detector
from gpvit import Predictor, checkpoint
from gpvit.config import saved
from gpvit.utils.errors import UserError
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from torch import nn

pytestmark = pytest.mark.long

PROCESSES = 4
NUMBERS = [2**31, 10**12, -1, 1e30, float("nan"), float("inf")]
WORDS = ["", "x", "BN", "LN", "RGB", "p2", "cpu", "cuda"]
LOCATIONS = ["../../x", "/etc/passwd", "http://127.0.0.1:9/x"]
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 300),
    st.sampled_from(NUMBERS),
    st.sampled_from(WORDS + LOCATIONS),
    st.text(max_size=8),
)
VALUES = st.recursive(
    SCALARS,
    lambda children: st.one_of(
        st.lists(children, max_size=4), st.dictionaries(st.text(max_size=6), children, max_size=3)
    ),
    max_leaves=6,
)


def calls(canary: Path) -> list[dict[str, Any]]:
    """Nodes of a config, each of which creates the canary if it is called."""
    command = f"touch {canary}"
    proposals = canary.parent / "proposals.pkl"
    lazily = "torch.nn.utils._deprecation_utils.lazy_deprecated_import"
    getter = {"_target_": lazily, "all": ["system"], "old_module": "x", "new_module": "os"}
    system = {"_target_": "detectron2.layers.get_norm", "norm": getter, "out_channels": "system"}
    load = "detectron2.data.build.load_proposals_into_dataset"
    evaluator = {"_target_": "detectron2.evaluation.COCOEvaluator", "dataset_name": "x"}
    path = {"_target_": "pathlib.Path", "args": str(canary)}
    located = {"_target_": "detectron2.utils.registry.locate", "name": "os.system"}
    return [
        {"_target_": "os.system", "command": command},
        {"_target_": "posix.system", "command": command},
        {"_target_": "gpvit.checkpoint.files.os.system", "command": command},
        {"_target_": "builtins.exec", "source": f"open({str(canary)!r}, 'w')"},
        {"_target_": "detectron2.layers.get_norm", "norm": system, "out_channels": command},
        {"_target_": load, "dataset_dicts": [], "proposal_file": str(proposals)},
        evaluator | {"output_dir": str(canary)},
        {"_target_": "gpvit.utils.files.atomic_write", "path": str(canary / "x")},
        {"_target_": "pathlib.Path.touch", "self": path},
        {"_target_": located, "command": command},
    ]


class Canary:
    """An object that creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable, tuple]:
        return os.system, (f"touch {self.path}",)


def places(node: Any, path: tuple = ()) -> list[tuple]:
    """The path of every value in nested dicts and lists."""
    children: Iterable[tuple[Any, Any]] = ()
    if isinstance(node, dict):
        children = node.items()
    elif isinstance(node, list):
        children = enumerate(node)
    found = []
    for key, value in children:
        found += [(*path, key), *places(value, (*path, key))]
    return found


def replaced(node: Any, path: tuple, value: Any) -> Any:
    """A copy with another value at a path, or without that entry if the value is ``...``."""
    if not path:
        return value
    copy = dict(node) if isinstance(node, dict) else list(node)
    if len(path) == 1 and value is ...:
        del copy[path[0]]
    else:
        copy[path[0]] = replaced(node[path[0]], path[1:], value)
    return copy


@st.composite
def configs(draw: st.DrawFn, valid: dict[str, Any], nodes: list[dict[str, Any]]) -> str:
    """Texts of configs in which up to three values are replaced, removed or turned into calls."""
    content: Any = valid
    for _ in range(draw(st.integers(0, 3))):
        place = draw(st.sampled_from(places(content)))
        kind = draw(st.sampled_from(["value", "missing", "same kind", "call", "reference"]))
        old = content
        for key in place:
            old = old[key]
        if kind == "value":
            new = draw(VALUES)
        elif kind == "missing":
            new = ...
        elif kind == "same kind" and type(old) in (int, float):
            new = old + draw(st.integers(-1, 3))
        elif kind == "call":
            new = draw(st.sampled_from(nodes))
        elif kind == "reference":
            targets = [".".join(map(str, path)) for path in places(content)]
            template = draw(st.sampled_from(["${%s}", "${.%s}", "${oc.env:%s}", "${%s}${%s}"]))
            new = template.replace("%s", draw(st.sampled_from(targets)))
        else:
            new = old
        content = replaced(content, place, new)
        if not content:
            break
    text = yaml.safe_dump(content, allow_unicode=True)
    if draw(st.integers(0, 30)) == 0:
        anchor, tag = "a: &a [1]\nb: *a\n", "!!python/object/apply:os.system ['x']"
        text = draw(st.sampled_from([anchor, tag, "[" * 999, "\0"])) + text
    return text


def try_configs(number: int, examples: int, folder: Path, *, checked: bool = True) -> Counter:
    """Build and run detectors from generated configs; return how many reached each stage."""
    torch.set_num_threads(1)
    canary, inside = folder / "canary", folder / "inside"
    inside.mkdir(parents=True)
    (folder / "proposals.pkl").write_bytes(pickle.dumps(Canary(canary)))
    write_detector(folder / "good.pth")
    good = checkpoint.read_content(str(folder / "good.pth"))
    valid = yaml.safe_load(good["inference_config"])
    valid["dataloader"] |= {"short_side": 32, "max_size": 64}
    path = inside / "model.pth"
    reached: Counter = Counter()
    instantiate = gpvit.predictor.instantiate

    def counted(node: Any) -> Any:
        # A config counts once, however many of its nodes are instantiated.
        reached["instantiated"] += not reached["now"]
        reached["now"] = 1
        return instantiate(node)

    gpvit.predictor.instantiate = counted
    if not checked:
        saved._check_calls = lambda *_: None
        reached["canaries"] = 0

    @seed(number)
    @settings(
        max_examples=examples, database=None, deadline=None, suppress_health_check=list(HealthCheck)
    )
    @given(configs(valid, calls(canary)))
    def run(text: str) -> None:
        reached["tried"] += 1
        reached["now"] = 0
        torch.save(good | {"inference_config": text}, path)
        try:
            Predictor.from_checkpoint(path, "cpu")(np.zeros((24, 32, 3), np.uint8))
            reached["predicted"] += 1
        except UserError as error:
            assert "\n" not in str(error)
        except Exception:
            if checked:
                raise
        if checked:
            assert not canary.exists()
        elif canary.exists():
            reached["canaries"] += 1
            canary.unlink() if canary.is_file() else shutil.rmtree(canary)
        assert sorted(os.listdir(folder)) == ["good.pth", "inside", "proposals.pkl"]
        assert os.listdir(inside) == ["model.pth"]

    run()
    return reached


TENSORS: list[Callable[[], Any]] = [
    lambda: torch.ones(2, 3).to_sparse(),
    lambda: torch.ones(2, 3).to_sparse_csr(),
    lambda: torch.quantize_per_tensor(torch.ones(2, 3), 1.0, 0, torch.qint8),
    lambda: torch.ones(2, 3, dtype=torch.complex64),
    lambda: torch.ones(2, 3, device="meta"),
    lambda: torch.ones(1).expand(2, 3),
    lambda: torch.ones(1).expand(10**6, 10**6),
    lambda: torch.full((2, 3), float("nan")),
    lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
    lambda: torch.ones(2, 3).to(torch.float8_e4m3fn),
    lambda: torch.ones(2, 3, dtype=torch.float64),
    lambda: nn.Parameter(torch.ones(2, 3)),
    lambda: torch.ones(3, 2),
    lambda: torch.ones(()),
    lambda: [torch.ones(2)],
]
KEYS = ["model", "ema", "state_dict", "classes", "inference_config", "trainer", "versions", "meta"]
OTHER_KEYS = ["versions", "iterations", "trainer", "meta", "license", "x"]  # do not affect weights


@st.composite
def checkpoints(draw: st.DrawFn, canary: Path) -> bytes:
    """Checkpoint files, most of them valid, in PyTorch's current and legacy formats."""
    weights: dict[Any, Any] = {"weight": torch.ones(2, 3), "bias": torch.zeros(2)}
    content: dict[Any, Any] = {"model": weights, "classes": ["a"], "versions": {"torch": "2"}}
    kinds = ["good", "other entry", "array"] * 4
    kinds += ["entry", "tensor", "name", "pickle", "bytes", "bytes"]
    kind = draw(st.sampled_from(kinds))
    if kind == "entry":
        content[draw(st.sampled_from([*KEYS, 1, None]))] = draw(VALUES)
    elif kind == "other entry":
        content[draw(st.sampled_from(OTHER_KEYS))] = draw(VALUES)
    elif kind == "tensor":
        weights[draw(st.sampled_from(["weight", "more"]))] = draw(st.sampled_from(TENSORS))()
    elif kind == "name":
        weights[draw(st.one_of(st.integers(), st.none(), st.text(max_size=5)))] = torch.ones(1)
    elif kind == "pickle":
        content[draw(st.sampled_from(["model", "meta", "trainer"]))] = Canary(canary)
    elif kind == "array":
        arrays = [np.ones(2), np.float64(1), np.dtype("f8")]
        arrays += [np.array([{}], object), np.array(["a"]), np.zeros(1, "i4,f8")]
        content["meta"] = {"seed": draw(st.sampled_from(arrays))}
    file = io.BytesIO()
    zipped = draw(st.booleans()) or kind == "tensor"
    torch.save(content, file, _use_new_zipfile_serialization=zipped)
    data = bytearray(file.getvalue())
    if kind == "bytes":
        for _ in range(draw(st.integers(1, 3))):
            # A fraction of the length, which differs between runs: pickle may or may not memoize
            # equal strings.
            place = draw(st.floats(0, 1, exclude_max=True))
            data[int(place * len(data))] = draw(st.integers(0, 255))
    return bytes(data)


def try_checkpoints(number: int, examples: int, folder: Path) -> Counter:
    """Read and load generated checkpoints; return how many were loaded."""
    torch.set_num_threads(1)
    canary, inside = folder / "canary", folder / "inside"
    inside.mkdir(parents=True)
    path = inside / "model.pth"
    reached: Counter = Counter()

    @seed(number)
    @settings(
        max_examples=examples, database=None, deadline=None, suppress_health_check=list(HealthCheck)
    )
    @given(checkpoints(canary))
    def run(data: bytes) -> None:
        reached["tried"] += 1
        path.write_bytes(data)
        model = nn.Linear(3, 2)
        try:
            file = checkpoint.read(str(path))
            json.dumps(file.about)
            checkpoint.load(model, file)
            reached["loaded"] += 1
        except UserError as error:
            assert "\n" not in str(error)
        assert all(parameter.isfinite().all() for parameter in model.parameters())
        assert os.listdir(folder) == ["inside"]

    run()
    return reached


def in_children(
    work: Callable[..., Counter], examples: int, folder: Path, **options: Any
) -> Counter:
    """Distribute the work over child processes, each with its own seed, two at a time."""

    def part(number: int) -> Counter:
        part_folder = folder / str(number)
        return in_a_child(lambda: work(number, examples // PROCESSES, part_folder, **options))

    with ThreadPoolExecutor(2) as pool:
        return sum(pool.map(part, range(PROCESSES)), Counter())


COUNTS = [pytest.param(200, id="200"), pytest.param(0, id="slow", marks=pytest.mark.slow)]


@pytest.mark.parametrize("examples", COUNTS)
def test_config_in_checkpoint_executes_and_writes_nothing(tmp_path: Path, examples: int) -> None:
    reached = in_children(try_configs, examples or 2000, tmp_path)
    print(dict(reached))
    assert 3 * reached["instantiated"] >= reached["tried"] >= (examples or 2000)
    assert reached["predicted"] > 0


def test_canary_is_created_if_names_are_not_checked(tmp_path: Path) -> None:
    assert in_a_child(lambda: try_configs(0, 40, tmp_path / "0", checked=False))["canaries"] > 0


@pytest.mark.parametrize("examples", COUNTS)
def test_checkpoint_executes_nothing_and_loads_only_finite_weights(
    tmp_path: Path, examples: int
) -> None:
    reached = in_children(try_checkpoints, examples or 2000, tmp_path)
    print(dict(reached))
    assert 2 * reached["loaded"] >= reached["tried"] >= (examples or 2000)
