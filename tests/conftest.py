"""Fixtures and settings of all tests."""

import os
from pathlib import Path

# Set before PyTorch is imported: several test processes would compete for the cores otherwise.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import official
import pytest
import torch
from gpvit.data.datasets.synthetic import make_dataset
from tqdm import tqdm

tqdm.monitor_interval = 0  # no monitor thread, as in commands, since tests fork
REPOSITORY = Path(__file__).parent.parent

# Overrides that make configs/quickstart.py train in a second or two.
TINY = [
    "model.backbone.net.embed_dim=24",
    "model.backbone.net.group_tokens=[0,4]",
    "model.proposal_generator.post_nms_topk=[20,10]",
    "model.roi_heads.batch_size_per_image=8",
    "dataloader.short_side=64",
    "dataloader.train.total_batch_size=2",
    "dataloader.train.num_workers=0",
    "dataloader.test.num_workers=0",
    "train.max_iter=4",
    "train.log_period=1",
    "train.pictures=0",
    "train.checkpointer.max_to_keep=9",
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "gpu" in item.keywords and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="no GPU"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if official.deviations:
        terminalreporter.section("largest relative L2 distance to each reference file")
        for name, distance in sorted(official.deviations.items()):
            terminalreporter.write_line(f"{name:20} {distance:.1e}")
    if official.matches:
        terminalreporter.section("fraction of boxes that match the reference")
        for name, fraction in sorted(official.matches.items()):
            terminalreporter.write_line(f"{name:36} {fraction:.1%}")


@pytest.fixture(scope="session")
def synthetic_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small synthetic dataset, shared by all tests: read-only."""
    folder = tmp_path_factory.mktemp("synthetic") / "data"
    make_dataset(folder, train=8, val=4)
    return folder


@pytest.fixture
def real_data() -> Path:
    """The folder of real data in the environment variable GPVIT_TEST_DATA."""
    folder = os.environ.get("GPVIT_TEST_DATA", "")
    if not folder:
        pytest.skip("GPVIT_TEST_DATA is not set to the folder of real data")
    return Path(folder)
