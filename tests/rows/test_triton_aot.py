"""The Triton rows_pack compiled for GPUs that are not here: registers, spills, shared memory, wide accesses."""

from __future__ import annotations

import pytest
import torch

from tests import aot as compiler
from tests.rows import aot

pytest.importorskip("triton")

COVERING = [(90, torch.bfloat16, "pack"), (86, torch.float32, "pack_backward")]


@pytest.mark.parametrize(("capability", "dtype", "name"), COVERING)
def test_resources(capability: int, dtype: torch.dtype, name: str) -> None:
    launch = next(one for one in aot.launches(capability, dtype) if one.name == f"rows_{name}")
    resources = compiler.compiled(launch, capability)
    print(f"{compiler.HEADER}\n{compiler.row(capability, str(dtype), launch, resources)}")
    assert not compiler.faults(capability, launch, resources)
