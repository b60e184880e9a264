"""Every test compiles from scratch: what another one compiled must not count against torch's limit."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True)
def _compile_from_scratch() -> None:
    torch.compiler.reset()
