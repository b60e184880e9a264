"""What all tests share: one thread, fixed seeds, and allocations poisoned with NaN on request."""

from __future__ import annotations

import os

# Before torch is imported: workers share the cores, and so do the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings

# Sweeps draw the same cases every time and print how to repeat the one that failed.
settings.register_profile("repeatable", derandomize=True, deadline=None, print_blob=True)
settings.load_profile("repeatable")


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def poisoned() -> Iterator[None]:
    """Fill what torch.empty returns with NaN, in Python and C++ alike, so that an element nobody writes shows."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)
