"""The calls of projection in Triton's interpreter: python -m tests.projection.interpreted PART, or their names."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from tests import interpreted, properties
from tests.projection.cases import CASES, Case, call, draw, library_arguments
from wfkernels import judge
from wfkernels.projection import ops
from wfkernels.projection.reference import OUTPUTS

FULL, HALF = torch.float32, torch.float16
SEEDS = range(6)
# Over the borders of tiles of 64 x 64 and 16 x 128, of chunks of 2048 units, and of layers that share a weight.
WIDE: dict[str, Any] = {"layers": ((70, (130, 2)), (20, (67,))), "teachers": (2, 1), "d": 33}
LONG: dict[str, Any] = {"layers": ((1100, (2, 1)), (4, (10,)), (300, (3,))), "teachers": (1, 2), "d": 8}
LARGE = {
    **{f"{o}, wide": Case(o, "mean" if o == "gated" else "anchor", base=True, **WIDE) for o in OUTPUTS},
    "mean, wide": Case("mean", "mean", **WIDE),
    "prior, long": Case("prior", projections=(0, 1, 0), **LONG),
    "mean, deep": Case("mean", "mean", layers=((5, (9,)),), d=300),
    "no rows at all": Case("prior", layers=((0, (4,)),)),
    "tokens of no width": Case("gated", "mean", d=0, base=True),
}
HALVES = (*CASES, "gated, wide", "prior, wide")
# Numbers of other dtypes than the tokens' beside them.
MIXED: dict[str, Mapping[str, torch.dtype]] = {
    "students in float32": {"rest": FULL, "tokens": HALF},
    "strength in float16": {"rest": FULL, "strength": HALF, "blend": HALF, "rows": HALF},
    "scale in float32": {"rest": HALF, "scale": FULL},
}


def arguments(case: Case, dtypes: Mapping[str, torch.dtype], seed: int | None = None) -> tuple[Any, ...]:
    """The arguments of the library op. `rest` is the dtype of what is not named; weights and gates go with tokens."""
    leaves = {}
    for name, leaf in call(case, seed).leaves.items():
        own = name.split("[")[0]
        own = "tokens" if own in ("weights", "biases", "gate_weight", "gate_bias") else own
        leaves[name] = leaf.detach().to(dtypes.get(own, dtypes["rest"]))
    return library_arguments(case, leaves)


def calls() -> interpreted.Calls:
    cases = CASES | LARGE
    for name, case in cases.items():
        yield name, partial(wrongs, arguments(case, {"rest": FULL}))
    for name in HALVES:
        yield f"{name}, float16", partial(wrongs, arguments(cases[name], {"rest": HALF}))
    for name, dtypes in MIXED.items():
        for case in ("gated", "prior, mean, base"):
            yield f"{case}, {name}", partial(wrongs, arguments(CASES[case], dtypes))
    for seed in SEEDS:
        yield f"draw({seed})", partial(wrongs, arguments(draw(seed)[0], {"rest": FULL}, seed))
    yield "a weight that no layer takes", unused
    yield "every second element", strides
    for name in ("plain, anchor", "gated"):
        yield f"{name}, tokens that are NaN", partial(spoilt, CASES[name])
    yield "gradients beyond float16", overflows
    for output in OUTPUTS:
        case = Case(output, "mean", base=True, rows=True)
        yield f"{output}, two runs", partial(repeats, case)


def wrongs(args: tuple[Any, ...], size: float = 1.0) -> list[str]:
    """Return every disagreement of forward and backward with the reference."""
    students = ops.projection(*args, "triton")
    given = (*args[:12], ops._shape(*args[12:]))
    found = interpreted.wrongs("projection", given, students)
    grad = torch.randn(students.shape) * size
    for inputs in (True, False):
        grads = ops.projection_backward(grad.to(students.dtype), *args, inputs, "triton")
        found += interpreted.wrongs("projection_backward", (grad.to(students.dtype), *given, inputs), grads)
    return found


def unused() -> list[str]:
    args = list(arguments(CASES["shared projections"], {"rest": FULL}))
    args[1], args[2] = [torch.randn(6, 3), *args[1]], [torch.randn(3), *args[2]]
    args[15] = [g + 1 for g in args[15]]
    return wrongs(tuple(args))


def strides() -> list[str]:
    args = arguments(CASES["gated"], {"rest": FULL})
    return wrongs(tuple(judge.each(lambda t: properties.strided(t).detach(), args)))


def spoilt(case: Case) -> list[str]:
    """A token that is NaN spoils what is computed of it and nothing beside it: what is masked is not multiplied."""
    args = list(arguments(case, {"rest": FULL}))
    copies = sum(case.teachers) if case.read == "mean" else len(case.teachers)
    first, second, _ = case.layout.layout.rows
    tokens = args[0].clone()
    tokens[[0, 2, copies * (first + second)]] = torch.nan
    return wrongs((tokens, *args[1:]))


def overflows() -> list[str]:
    """Gradients of products that float16 does not hold, of tokens and weights that it does."""
    args = list(arguments(CASES["plain, anchor"], {"rest": FULL, "tokens": HALF}))
    args[1] = [w / 2**12 for w in args[1]]
    args[0] = args[0] / 2**12
    return wrongs(tuple(args), 1e6)


def repeats(case: Case) -> list[str]:
    """Two runs agree to the bit, and no element comes from memory that nobody wrote."""
    args = arguments(case, {"rest": FULL})

    def run() -> list[Tensor]:
        students = ops.projection(*args, "triton")
        return [students, *ops.projection_backward(students, *args, True, "triton")]

    first = run()
    torch.use_deterministic_algorithms(True)  # allocations begin as NaN
    second = run()
    torch.use_deterministic_algorithms(False)
    pairs = zip(first, second, strict=True)
    return [f"result {i} differs from one run to the next" for i, (a, b) in enumerate(pairs) if not torch.equal(a, b)]


if __name__ == "__main__":
    sys.exit(interpreted.main(calls(), sys.argv[1:]) > 0)
