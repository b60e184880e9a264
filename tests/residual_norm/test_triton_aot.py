"""The Triton residual_norm compiled for GPUs that are not here: registers, spills, shared memory.

A few; `make aot` compiles and prints them all.
"""

from __future__ import annotations

import pytest
import torch

from tests import aot as compiler
from tests.residual_norm import aot

pytest.importorskip("triton")

COVERING = [
    (90, 512, torch.bfloat16, 0.1, "backward"),
    (86, 8192, torch.float32, 0.1, "forward"),
]


@pytest.mark.parametrize(("capability", "width", "dtype", "dropout_p", "name"), COVERING)
def test_resources(capability: int, width: int, dtype: torch.dtype, dropout_p: float, name: str) -> None:
    found = aot.launches(capability, width, dtype, dropout_p)
    launch = next(one for one in found if one.name == f"residual_norm_{name}")
    resources = compiler.compiled(launch, capability)
    print(f"{compiler.HEADER}\n{compiler.row(capability, aot.name(width, dtype, dropout_p), launch, resources)}")
    assert not compiler.faults(capability, launch, resources)
