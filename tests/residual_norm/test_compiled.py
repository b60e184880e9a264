"""The compiled residual_norm: vectors of every width, panels of 64 rows, any number of threads."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests import compiled
from tests.residual_norm.cases import SEED, Case, build
from wfkernels.residual_norm import ops

pytestmark = compiled.needed
# Around the borders of vectors, of their padding and of panels.
CASES = {
    "short": Case((3, 4)),
    "one padding": Case((5, 15), dropout_p=0.3),
    "whole vectors": Case((64, 32)),
    "a panel and one": Case((65, 33), dropout_p=0.3),
    "three panels": Case((190, 48), dropout_p=0.5, eps=0.1),
}


@compiled.every_set
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_every_instruction_set(name: str, dtype: torch.dtype, isa: str) -> None:
    compiled.agrees(build(CASES[name], 1), isa, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_number_of_threads_changes_no_bit(dtype: torch.dtype) -> None:
    compiled.repeats(build(Case((1000, 65), dropout_p=0.3), 1), dtype)


def arguments(x: torch.dtype, weight: torch.dtype) -> tuple[Any, ...]:
    leaves = build(Case((70, 33)), 1).leaves.values()
    tensors = [t.detach().to(dtype) for t, dtype in zip(leaves, (x, x, weight, weight), strict=True)]
    return (*tensors, 1e-5, 0.3, SEED, 2)


def backward(grads: list[Tensor], outputs: list[Tensor], inputs: Any, impl: str) -> list[Tensor]:
    h, _, mean, rstd = outputs
    rest = (h, mean, rstd, inputs[2], *inputs[5:], impl)
    given = (grads[:2], [grads[0], None], [None, grads[1]])
    return [g for pair in given for g in ops.residual_norm_backward(*pair, *rest)]


MIXED = [
    (torch.bfloat16, torch.float32),
    (torch.float32, torch.bfloat16),
    (torch.float32, torch.float64),
    (torch.bfloat16, torch.float64),
]


@pytest.mark.parametrize(("x", "weight"), MIXED, ids=str)
def test_mixed_dtypes(x: torch.dtype, weight: torch.dtype) -> None:
    compiled.takes_mixed_dtypes(ops.residual_norm, backward, arguments(x, weight))


def test_dtypes_that_it_does_not_know() -> None:
    compiled.refuses("residual_norm", arguments(torch.float32, torch.float32))
