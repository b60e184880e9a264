"""The calls of embedding that `make aot` compiles for GPUs that are not here."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import torch

from tests.aot import Launch, recording
from tests.embedding.cases import Case, call, library_arguments
from tests.embedding.interpreted import implementation_arguments
from wfkernels.embedding import triton_launch

FORMS = {
    "plain": Case(teacher=False, layer=False, cross=0),
    "codes": Case(cross=1, activation="relu"),
    "gelu, base": Case(cross=1, activation="gelu", base=True),
}
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
WIDTHS = (64, 256, 512, 1000)


def launches(
    capability: int, d: int, dtype: torch.dtype, form: str, inputs: torch.dtype | None = None, **options: object
) -> list[Launch]:
    """Return the launches of a forward and a backward pass. inputs: the dtype of rows, if another."""
    case = Case(**{**vars(FORMS[form]), "d": d, **options})
    leaves = {n: t.detach().to(dtype) for n, t in call(case).leaves.items()}
    leaves |= {n: leaves[n].to(inputs or dtype) for n in ("rows", "base", "shift", "scale") if n in leaves}
    args = implementation_arguments(library_arguments(case, leaves))
    with recording(capability) as found:
        out = triton_launch.forward(*args)
        triton_launch.backward(out, *args, True)
    return found


def name(d: int, dtype: torch.dtype, form: str) -> str:
    return f"{form}, {str(dtype).removeprefix('torch.')}, d={d}"


def known(d: int, dtype: torch.dtype, launch: Launch) -> dict[str, bool]:
    """Return what tests.aot.faults should know of a launch. Columns that are no multiple of 16 take more registers."""
    return {"spills": d % 16 > 0, "wgmma": dtype == torch.bfloat16 and "sums" not in launch.name}


def matrix(capability: int) -> Iterator[tuple[str, Launch, dict[str, bool]]]:
    for d, dtype, form in product(WIDTHS, DTYPES, FORMS):
        for launch in launches(capability, d, dtype, form):
            yield name(d, dtype, form), launch, known(d, dtype, launch)
