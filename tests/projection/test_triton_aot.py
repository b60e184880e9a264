"""The Triton projection compiled for GPUs that are not here; `make aot` compiles and prints all of it."""

from __future__ import annotations

import pytest
import torch

from tests import aot as compiler
from tests.projection import aot

pytest.importorskip("triton")

HALF, BRAIN, FULL = torch.float16, torch.bfloat16, torch.float32
COVERING = {
    (90, BRAIN, "gated"): ("forward", "backward_delta", "backward_tokens", "backward_weights"),
    (90, HALF, "prior"): ("backward_rows",),
    (80, FULL, "prior"): ("backward_delta", "fold_columns"),
    (86, HALF, "mean"): ("forward", "backward_weights"),
    (120, BRAIN, "prior"): ("forward",),
}


@pytest.mark.parametrize(
    ("capability", "dtype", "form", "name"), [(*key, name) for key, names in COVERING.items() for name in names]
)
def test_resources(capability: int, dtype: torch.dtype, form: str, name: str) -> None:
    launch = next(one for one in aot.launches(capability, dtype, form) if one.name == f"projection_{name}")
    resources = compiler.compiled(launch, capability)
    print(f"{compiler.HEADER}\n{compiler.row(capability, aot.name(dtype, form), launch, resources)}")
    assert not compiler.faults(capability, launch, resources, **aot.known(dtype, launch))
