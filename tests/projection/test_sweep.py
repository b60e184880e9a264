"""projection on random calls: every implementation is what the definition says."""

from __future__ import annotations

import pytest

from tests import properties
from tests.projection.cases import call, draw
from wfkernels import dispatch


@pytest.mark.parametrize("seed", range(100))
@pytest.mark.parametrize("impl", [i.name for i in dispatch.implementations("projection")])
def test_random_calls(impl: str, seed: int) -> None:
    properties.sweep(draw, call, seed, impl)
