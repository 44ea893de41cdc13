"""Random numbers that follow from a seed."""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def seeded(*seed: int) -> Iterator[None]:
    """Seeds the global generators of Python, NumPy and PyTorch (CPU), and afterwards leaves them as they were."""
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
    """Seeds the global generators of Python, NumPy and PyTorch, on all devices."""
    words = _words(seed)
    random.seed(words[0])
    np.random.seed(words[1])
    torch.manual_seed(words[2])


def _words(seed: Sequence[int]) -> list[int]:
    return [int(word) for word in np.random.SeedSequence(seed).generate_state(3)]
