"""The calls of projection that `make aot` compiles for GPUs that are not here."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from itertools import product
from typing import Any

import torch

from tests.aot import Launch, recording
from tests.projection.cases import Case
from tests.projection.interpreted import arguments
from wfkernels.projection import ops, triton_launch

LAYERS: Any = {"layers": ((80, (147, 1)), (64, (769,))), "teachers": (2, 2), "d": 512}
FORMS = {
    "plain": Case("plain", **LAYERS),
    "anchor": Case("anchor", **LAYERS),
    "mean": Case("mean", "mean", **LAYERS),
    "prior": Case("prior", "mean", base=True, **LAYERS),
    "gated": Case("gated", "mean", base=True, **LAYERS),
}
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
PRODUCTS = ("forward", "delta", "tokens", "weights")


@cache
def _arguments(dtype: torch.dtype, form: str) -> tuple[Any, ...]:
    # As under autocast: only what is multiplied has 16 bits.
    args = arguments(FORMS[form], {"rest": torch.float32, "tokens": dtype})
    return (*args[:12], ops._shape(*args[12:]))


def launches(capability: int, dtype: torch.dtype, form: str) -> list[Launch]:
    """Return the launches of a forward and a backward pass."""
    args = _arguments(dtype, form)
    with torch.no_grad(), recording(capability) as found:
        students = triton_launch.forward(*args)
        triton_launch.backward(students, *args, True)
    return found


def name(dtype: torch.dtype, form: str) -> str:
    return f"{form}, {str(dtype).removeprefix('torch.')}"


def known(dtype: torch.dtype, launch: Launch) -> dict[str, bool]:
    """Return what tests.aot.faults should know of a launch."""
    return {"wgmma": dtype.itemsize == 2 and launch.name.split("_")[-1] in PRODUCTS}


def matrix(capability: int) -> Iterator[tuple[str, Launch, dict[str, bool]]]:
    for dtype, form in product(DTYPES, FORMS):
        for launch in launches(capability, dtype, form):
            yield name(dtype, form), launch, known(dtype, launch)
