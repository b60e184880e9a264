"""The compiled projection: blocks of 128 rows, 128 and 256 columns, partial sums of weights, any number of threads."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
import torch
from torch import Tensor

from tests import compiled
from tests.embedding.cases import shared_by_width
from tests.projection.cases import Case, call, draw, library_arguments
from wfkernels.projection import ops
from wfkernels.projection.reference import OUTPUTS, Shape

pytestmark = compiled.needed
# Beyond 4096 rows the gradient of a weight is a sum of partial sums, shared by several layers.
LONG: dict[str, Any] = {
    "layers": ((2200, (2, 1)), (4, (130,)), (300, (3,))),
    "teachers": (1, 2),
    "projections": (0, 1, 0),
    "d": 8,
}
WIDE: dict[str, Any] = {"layers": ((140, (257, 2)), (30, (127,))), "teachers": (2, 1), "d": 33}
CASES = {
    "plain, long": Case("plain", **LONG),
    "prior, long": Case("prior", "mean", base=True, **LONG),
    "gated, long": Case("gated", "mean", base=True, **LONG),
    **{f"{o}, wide": Case(o, "mean" if o == "gated" else "anchor", base=True, **WIDE) for o in OUTPUTS},
    "mean, deep": Case("mean", "mean", layers=((70, (40,)),), d=300),
}


def draw_large(seed: int) -> tuple[Case, torch.dtype]:
    """A random case whose layers reach over the borders of blocks."""
    pick = Random(seed)
    case, dtype = draw(seed)
    layers = tuple((pick.choice((1, 60, 65, 129)), (pick.choice((15, 127, 129, 257)), 1)) for _ in range(2))
    options: dict[str, Any] = {"layers": layers, "d": pick.choice((15, 16, 33, 48))}
    options["projections"] = shared_by_width([sum(widths) for _, widths in layers], pick) if case.projections else None
    return Case(**{**vars(case), **options}), torch.float32 if dtype == torch.float16 else dtype


@compiled.every_set
@pytest.mark.parametrize("seed", range(8))
def test_random_calls(seed: int, isa: str) -> None:
    case, dtype = draw_large(seed)
    compiled.agrees(call(case, seed), isa, dtype)


@compiled.every_set
@pytest.mark.parametrize("name", CASES)
def test_every_instruction_set(name: str, isa: str) -> None:
    compiled.agrees(call(CASES[name]), isa, torch.float64)


@pytest.mark.parametrize("layer", [(20, (4000,)), (2000, (30,))], ids=["columns", "rows"])
def test_sums_of_thousands_of_terms_are_as_exact_as_eager_ones(layer: tuple[int, tuple[int]]) -> None:
    compiled.agrees(call(Case("plain", layers=(layer,), teachers=(1, 1), d=48)), "best", torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_the_number_of_threads_changes_no_bit(name: str, dtype: torch.dtype) -> None:
    compiled.repeats(call(CASES[name]), dtype)


def arguments(case: Case, **dtypes: torch.dtype) -> tuple[Any, ...]:
    """`rest` is the dtype of what is not named."""
    leaves = {n: t.detach().to(dtypes.get(n, dtypes["rest"])) for n, t in call(case).leaves.items()}
    return library_arguments(case, leaves)


def backward(grads: list[Tensor], outputs: list[Tensor], inputs: Any, impl: str) -> list[Tensor]:
    return [g for wanted in (True, False) for g in ops.projection_backward(grads[0], *inputs, wanted, impl)]


NETWORKS = ("rows", "base", "shift", "scale", "prior")
MIXED: dict[str, dict[str, torch.dtype]] = {
    "tokens in bfloat16": {"rest": torch.bfloat16, **dict.fromkeys((*NETWORKS, "strength", "blend"), torch.float32)},
    "networks in bfloat16": {"rest": torch.float32, **dict.fromkeys(NETWORKS, torch.bfloat16)},
    "rows in float64": {"rest": torch.float32, "rows": torch.float64, "scale": torch.float64},
    "strength in float64": {"rest": torch.bfloat16, "strength": torch.float64},
    "tokens in float64": {"rest": torch.float64, **dict.fromkeys((*NETWORKS, "strength"), torch.float32)},
}


@pytest.mark.parametrize("dtypes", MIXED.values(), ids=MIXED.keys())
@pytest.mark.parametrize("output", OUTPUTS)
def test_mixed_dtypes(output: str, dtypes: dict[str, torch.dtype]) -> None:
    case = Case(output, "mean" if output == "gated" else "anchor", layers=((20, (130,)), (9, (5,))), d=24, base=True)
    compiled.takes_mixed_dtypes(ops.projection, backward, arguments(case, **dtypes))


def test_dtypes_that_it_does_not_know() -> None:
    given = arguments(Case(), rest=torch.float32)
    parameters = [[9, 1], [5], [5]]
    compiled.refuses("projection", (*given[:12], Shape(given[12], parameters, *given[15:19])))
