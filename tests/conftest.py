"""Fixtures and options that all tests share."""

import os
import warnings
from pathlib import Path

import pytest
import torch

import published

REPOSITORY = Path(__file__).parent.parent


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "gpu: needs an NVIDIA GPU")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "gpu" in item.keywords and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="no GPU"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if published.deviations:
        terminalreporter.section("largest relative L2 distance to each reference file")
        for name, distance in sorted(published.deviations.items()):
            terminalreporter.write_line(f"{name:20} {distance:.1e}")
