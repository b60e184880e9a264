"""The Triton embedding compiled for GPUs that are not here: registers, spills, shared memory, tensor cores.

A few; `make aot` compiles and prints them all.
"""

from __future__ import annotations

import pytest
import torch

from tests import aot as compiler
from tests.embedding import aot

pytest.importorskip("triton")

COVERING = [
    (90, torch.bfloat16, "gelu, base", "forward"),
    (90, torch.bfloat16, "gelu, base", "backward"),
    (90, torch.bfloat16, "codes", "backward_weights"),
    (80, torch.bfloat16, "codes", "backward_inputs"),
    (86, torch.float32, "gelu, base", "backward"),
    (120, torch.bfloat16, "codes", "sums"),
]


@pytest.mark.parametrize(("capability", "dtype", "form", "name"), COVERING)
def test_resources(capability: int, dtype: torch.dtype, form: str, name: str) -> None:
    found = aot.launches(capability, 512, dtype, form)
    launch = next(one for one in found if one.name == f"embedding_{name}")
    resources = compiler.compiled(launch, capability)
    print(f"{compiler.HEADER}\n{compiler.row(capability, aot.name(512, dtype, form), launch, resources)}")
    assert not compiler.faults(capability, launch, resources, **aot.known(512, dtype, launch))
