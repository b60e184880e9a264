"""linear on random calls: every implementation is what the definition says."""

from __future__ import annotations

import pytest

from tests import properties
from tests.linear.cases import build, draw
from wfkernels import dispatch


@pytest.mark.parametrize("seed", range(60))
@pytest.mark.parametrize("impl", [i.name for i in dispatch.implementations("linear")])
def test_random_calls(impl: str, seed: int) -> None:
    properties.sweep(draw, build, seed, impl)
