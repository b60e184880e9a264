"""The compiled embedding: blocks of 128 rows, 128 and 256 columns, partial sums of weights, any number of threads."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
import torch
from torch import Tensor

from tests import compiled
from tests.embedding.cases import Case, call, draw, library_arguments, shared_by_width
from wfkernels.embedding import ops
from wfkernels.embedding.reference import Shape

pytestmark = compiled.needed
# Beyond 16 panels of 256 rows the gradient of a weight is a sum of partial sums, shared by several layers.
LONG = Case(layers=((2500, (3,)), (4, (130,)), (300, (3,))), teachers=(1, 1), d=8, projections=(0, 1, 0), cross=1)
CASES = {
    "long": LONG,
    "wide": Case(layers=((40, (257, 2)), (130, (128,))), teachers=(2, 1), d=33, cross=2, base=True, activation="gelu"),
    "many copies": Case(layers=((3, (20,)), (50, (9,))), teachers=(9, 30), d=16, base=True),
}


def draw_large(seed: int) -> tuple[Case, torch.dtype]:
    """A random case whose layers reach over the borders of blocks."""
    pick = Random(seed)
    case, dtype = draw(seed)
    layers = tuple((pick.choice((1, 60, 65, 129)), (pick.choice((15, 127, 129, 257)), 1)) for _ in range(2))
    options: dict[str, Any] = {"layers": layers, "positions": None, "d": pick.choice((15, 16, 33, 48))}
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


def test_sums_of_thousands_of_terms_are_as_exact_as_eager_ones() -> None:
    case = Case(layers=((600, (4000,)),), teachers=(2,), d=16)
    compiled.agrees(call(case), "best", torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_the_number_of_threads_changes_no_bit(name: str, dtype: torch.dtype) -> None:
    compiled.repeats(call(CASES[name]), dtype)


def arguments(case: Case, **dtypes: torch.dtype) -> tuple[Any, ...]:
    """`rest` is the dtype of what is not named."""
    leaves = {n: t.detach().to(dtypes.get(n, dtypes["rest"])) for n, t in call(case).leaves.items()}
    return library_arguments(case, leaves)


def backward(grads: list[Tensor], outputs: list[Tensor], inputs: Any, impl: str) -> list[Tensor]:
    return [g for wanted in (True, False) for g in ops.embedding_backward(grads[0], *inputs, wanted, impl)]


MIXED: dict[str, dict[str, torch.dtype]] = {
    "rows in bfloat16": {"rest": torch.float32, "rows": torch.bfloat16, "base": torch.bfloat16},
    "parameters in bfloat16": {
        "rest": torch.bfloat16,
        **dict.fromkeys(("rows", "base", "shift", "scale"), torch.float32),
    },
    "rows in float64": {"rest": torch.float32, "rows": torch.float64},
    "base in float64": {"rest": torch.bfloat16, "base": torch.float64, "shift": torch.float64},
    "parameters in float64": {"rest": torch.float64, "rows": torch.bfloat16, "base": torch.float32},
}


@pytest.mark.parametrize("dtypes", MIXED.values(), ids=MIXED.keys())
def test_mixed_dtypes(dtypes: dict[str, torch.dtype]) -> None:
    case = Case(layers=((20, (130,)), (9, (5,))), d=24, base=True, cross=1, activation="gelu")
    compiled.takes_mixed_dtypes(ops.embedding, backward, arguments(case, **dtypes))


def test_dtypes_that_it_does_not_know() -> None:
    given = arguments(Case(), rest=torch.float32)
    compiled.refuses("embedding", (*given[:12], Shape(*given[12:17], 0), *given[17:]))
