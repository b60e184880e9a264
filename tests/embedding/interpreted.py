"""The calls of embedding in Triton's interpreter: python -m tests.embedding.interpreted PART, or their names."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from tests import interpreted
from tests.embedding.cases import CASES, Case, call, draw, library_arguments
from wfkernels.embedding import ops, triton_schedule
from wfkernels.embedding.reference import Shape

SEEDS = range(4)
# Over the borders of tiles, of chunks of columns, and of parts of sums, which are made short.
LARGE = {
    "no columns": Case(layers=((3, (0,)), (2, (4,))), cross=1),
    "several tiles": Case(layers=((40, (33,)), (1, (70,)), (0, (7,))), teachers=(1, 2), d=33, cross=2, base=True),
    "several chunks of columns": Case(layers=((5, (40,)), (33, (3,))), teachers=(2,), d=130, cross=1),
    "sums that are split": Case(layers=((70, (9,)), (3, (65,)), (30, (9,))), teachers=(2,), projections=(0, 1, 0)),
}
MIXED = ("cross tokens", "gelu", "several chunks of columns")


def calls() -> interpreted.Calls:
    cases = CASES | LARGE
    for name, case in cases.items():
        yield name, partial(wrongs, case)
    for name in (*CASES, "several chunks of columns"):
        yield f"{name}, float16", partial(wrongs, cases[name], rest=torch.float16)
    for name in MIXED:
        yield f"{name}, float32 rows", partial(wrongs, cases[name], rest=torch.float16, **dict.fromkeys(INPUTS, FULL))
        yield f"{name}, float16 rows", partial(wrongs, cases[name], rest=FULL, rows=torch.float16, base=torch.float16)
    for seed in SEEDS:
        yield f"draw({seed})", partial(wrongs, draw(seed)[0])


FULL = torch.float32
INPUTS = ("rows", "base", "shift", "scale")


def wrongs(case: Case, rest: torch.dtype = FULL, **dtypes: torch.dtype) -> list[str]:
    """Return every disagreement of forward and backward with the reference. rest: the dtype of what is not named."""
    leaves = {n: t.detach().to(dtypes.get(n, rest)) for n, t in call(case, 1).leaves.items()}
    given = library_arguments(case, poisoned(case, leaves))
    args = implementation_arguments(given)
    out = ops.embedding(*given, "triton")
    found = interpreted.wrongs("embedding", args, out)
    grad = torch.randn_like(out)
    with mock.patch.multiple(triton_schedule, PIECE=40, SHORTEST=32, PROGRAMS=8):
        for wanted in (True, False):
            results = ops.embedding_backward(grad, *given, wanted, "triton")
            found += interpreted.wrongs("embedding_backward", (grad, *args, wanted), results)
        again = ops.embedding_backward(grad, *given, wanted, "triton")
        found += ["two runs differ"] * any(not torch.equal(a, b) for a, b in zip(results, again, strict=True))
    return found


def poisoned(case: Case, leaves: dict[str, Tensor]) -> dict[str, Tensor]:
    """The leaves with NaN in the padding of every buffer."""
    layout = case.layout.layout
    found = dict(leaves)
    for name in leaves.keys() & set(INPUTS):
        found[name] = torch.full_like(leaves[name], torch.nan)
        pair = (found[name], leaves[name])
        copies = sum(case.teachers) if name == "rows" else 1
        of_rows = name in ("rows", "base")
        blocks = [layout.row_blocks(t, copies) if of_rows else layout.column_blocks(t) for t in pair]
        for to, block in zip(*blocks, strict=True):
            to.copy_(block)
    return found


def implementation_arguments(given: Sequence[Any]) -> tuple[Any, ...]:
    """The arguments of an implementation for those of the library op."""
    cross: Tensor | None = given[9]
    shape = Shape(*given[12:17], 0 if cross is None else cross.shape[1])
    return (*given[:12], shape, *given[17:])


if __name__ == "__main__":
    sys.exit(interpreted.main(calls(), sys.argv[1:]) > 0)
