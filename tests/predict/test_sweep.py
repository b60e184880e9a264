"""predict on random calls: the chain of every implementation is what the definition says."""

from __future__ import annotations

import pytest

from tests import properties
from tests.predict.cases import call, draw
from wfkernels import dispatch

CHAIN = ("embedding", "attention", "residual_norm", "projection")
NAMES = [{i.name for i in dispatch.implementations(op + end)} for op in CHAIN for end in ("", "_backward")]
# One name runs every op of the chain; what only some of them have is reached by "auto".
SHARED = sorted(set.intersection(*NAMES))
IMPLS = SHARED if all(names == set(SHARED) for names in NAMES) else [*SHARED, "auto"]


@pytest.mark.parametrize("seed", range(35))
@pytest.mark.parametrize("impl", IMPLS)
def test_random_calls(impl: str, seed: int) -> None:
    properties.sweep(draw, call, seed, impl)
