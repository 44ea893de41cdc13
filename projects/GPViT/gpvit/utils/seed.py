"""Seeding the global random number generators."""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def seeded(*seed: int) -> Iterator[None]:
    """Seed the global generators of Python, NumPy and PyTorch (CPU), and restore them at exit."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    words = _words(seed)
    random.seed(words[0])
    np.random.seed(words[1])
    torch.default_generator.manual_seed(words[2])
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


def seed_everything(*seed: int) -> None:
    """Seed the global generators of Python, NumPy and PyTorch, the latter on all devices."""
    words = _words(seed)
    random.seed(words[0])
    np.random.seed(words[1])
    torch.manual_seed(words[2])


def _words(seed: Sequence[int]) -> list[int]:
    """Derive a 32-bit seed for each of the three generators."""
    return list(map(int, np.random.SeedSequence(seed).generate_state(3)))
