"""The calls of residual_norm in Triton's interpreter: python -m tests.residual_norm.interpreted PART, or names."""

from __future__ import annotations

import sys
from functools import partial
from unittest import mock

import torch

from tests import interpreted
from tests.residual_norm.cases import SEED, SHAPES, Case, build
from wfkernels.residual_norm import ops, triton_launch

# Over the borders of tiles and of chunks, which are made few.
LARGE = {
    "a tile and one": Case((33, 40), dropout_p=0.3),
    "several tiles in a chunk": Case((200, 5), eps=0.1),
    "several tiles of wide rows in a chunk": Case((30, 300), dropout_p=0.5),
    "as wide as a tile": Case((3, 4096), dropout_p=0.3),
    "wider than a tile": Case((4, 4097), dropout_p=0.3),
    "three tiles wide": Case((3, 8200)),
}
HALVES = ("several tiles in a chunk", "wider than a tile")


def calls() -> interpreted.Calls:
    cases = {name: Case(size) for name, size in SHAPES.items()}
    cases |= {f"dropout, {name}": Case(size, 0.3) for name, size in SHAPES.items()} | LARGE
    for name, case in cases.items():
        yield name, partial(wrongs, case, torch.float32, torch.float32)
    for name in (name for name in cases if name in HALVES or name not in LARGE):
        yield f"{name}, float16", partial(wrongs, cases[name], torch.float16, torch.float16)
    yield "float16 by float32", partial(wrongs, cases["dropout, 17 x 127"], torch.float16, torch.float32)


def wrongs(case: Case, dtype: torch.dtype, weight_dtype: torch.dtype) -> list[str]:
    """Return every disagreement of forward and backward with the reference."""
    leaves = [t.detach() for t in build(case, 1).leaves.values()]
    x, residual = (t.to(dtype).reshape(-1, case.size[-1]) for t in leaves[:2])
    weight, bias = (t.to(weight_dtype) for t in leaves[2:])
    args = (x, residual, weight, bias, case.eps, case.dropout_p, SEED, 3)
    h, y, mean, rstd = ops.residual_norm(*args, "triton")
    found = interpreted.wrongs("residual_norm", args, (h, y, mean, rstd))
    grad_h, grad_y = (torch.randn_like(t) for t in (h, y))
    with mock.patch.object(triton_launch, "CHUNKS", 3):
        for grads in ((grad_h, grad_y), (None, grad_y), (grad_h, None)):
            args = (*grads, h, mean, rstd, weight, case.dropout_p, SEED, 3)
            results = ops.residual_norm_backward(*args, "triton")
            again = ops.residual_norm_backward(*args, "triton")
            found += interpreted.wrongs("residual_norm_backward", args, results)
            found += ["two runs differ"] * any(not torch.equal(a, b) for a, b in zip(results, again, strict=True))
    return found


if __name__ == "__main__":
    sys.exit(interpreted.main(calls(), sys.argv[1:]) > 0)
