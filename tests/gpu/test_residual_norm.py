"""The cases of residual_norm on a GPU."""

from __future__ import annotations

import pytest
import torch

from tests.gpu import device
from tests.residual_norm import cases
from tests.residual_norm.cases import SHAPES, Case, build
from tests.residual_norm.interpreted import LARGE

pytestmark = device.needed
ALL = {name: Case(size) for name, size in SHAPES.items()}
ALL |= {f"dropout, {name}": Case(size, 0.3) for name, size in SHAPES.items()} | LARGE


@pytest.fixture(autouse=True)
def _seed_on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cases, "SEED", cases.SEED.to(device.DEVICE))


@device.every_dtype
@pytest.mark.parametrize("name", ALL)
def test_as_exact_as_eager_and_the_same_in_every_run(name: str, dtype: torch.dtype) -> None:
    device.hold(device.of(build(ALL[name], 1), dtype))


@device.device_only
@pytest.mark.parametrize("name", ["dropout, 17 x 127", "wider than a tile"])
def test_a_graph_captures_it(name: str) -> None:
    device.hold_captured(device.of(build(ALL[name], 1), torch.bfloat16))
