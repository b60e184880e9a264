"""The Triton attention compiled for GPUs that are not here: registers, spills, shared memory, tensor cores.

A set that covers the kernels, families of GPUs, widths, dtypes and forms; `make aot` compiles and prints them all.
"""

from __future__ import annotations

import pytest
import torch

from tests import aot as compiler
from tests.attention import aot

pytest.importorskip("triton")

HALF, BRAIN, FULL = torch.float16, torch.bfloat16, torch.float32
COVERING = {
    (90, 64, BRAIN, "bias"): ("forward", "backward_queries", "backward_keys", "backward_dense_term"),
    (90, 128, BRAIN, "bias"): ("forward", "backward_queries", "backward_keys"),
    (90, 64, BRAIN, "tables"): ("backward_table",),
    (90, 128, HALF, "dropout"): ("backward_keys",),
    (80, 128, HALF, "bias"): ("forward", "backward_keys", "backward_dense_term"),
    (80, 64, BRAIN, "ragged"): ("backward_queries", "backward_table"),
    (90, 64, BRAIN, "closed"): ("open_tiles", "forward", "backward_keys"),
    (86, 128, BRAIN, "closed"): ("open_tiles", "forward", "backward_queries"),
    (86, 64, FULL, "bias"): ("backward_keys",),
    (120, 64, BRAIN, "ragged"): ("tiles", "forward", "backward_delta"),
    (120, 128, HALF, "causal"): ("backward_keys",),
}


@pytest.mark.parametrize(
    ("capability", "width", "dtype", "form", "name"),
    [(*key, name) for key, names in COVERING.items() for name in names],
)
def test_resources(capability: int, width: int, dtype: torch.dtype, form: str, name: str) -> None:
    found = aot.launches(capability, width, dtype, form)
    launch = next(one for one in found if one.name == f"attention_{name}")
    resources = compiler.compiled(launch, capability)
    print(f"{compiler.HEADER}\n{compiler.row(capability, aot.name(width, dtype, form), launch, resources)}")
    assert not compiler.faults(capability, launch, resources, **aot.known(width, dtype, launch))
