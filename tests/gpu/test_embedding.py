"""The embedding's cases on a GPU."""

from __future__ import annotations

import pytest
import torch

from tests.embedding.cases import CASES, call
from tests.embedding.interpreted import LARGE
from tests.gpu import device

pytestmark = device.needed
ALL = CASES | LARGE


@device.every_dtype
@pytest.mark.parametrize("name", ALL)
def test_as_exact_as_eager_and_the_same_in_every_run(name: str, dtype: torch.dtype) -> None:
    device.hold(device.of(call(ALL[name], 1), dtype))


@device.device_only
@pytest.mark.parametrize("name", ["cross tokens", "gelu", "sums that are split"])
def test_a_graph_captures_it(name: str) -> None:
    device.hold_captured(device.of(call(ALL[name], 1), torch.bfloat16))
