"""The compiled linear: vectors of every width, panels and blocks of every size, any number of threads."""

from __future__ import annotations

import pytest
import torch

from tests import compiled
from tests.linear.cases import CASES, build
from wfkernels import dispatch

pytestmark = compiled.needed
DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)


@compiled.every_set
@DTYPES
@pytest.mark.parametrize("name", CASES)
def test_every_instruction_set(name: str, dtype: torch.dtype, isa: str) -> None:
    compiled.agrees(build(CASES[name], 1), isa, dtype)


@DTYPES
def test_the_number_of_threads_changes_no_bit(dtype: torch.dtype) -> None:
    """Of the result; gradients are products of the library's."""
    call = build(CASES["one more"], 1).to(dtype).by("cpp")
    found = []
    for count in (1, 2, 5):
        with compiled.threads(count), torch.no_grad():
            found += call.run(call.leaves)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_halves_are_left_to_the_library(dtype: torch.dtype) -> None:
    leaves = [t.detach().to(dtype) for t in build(CASES["small"], 1).leaves.values()]
    assert dispatch.verdicts("linear", *leaves, "none")["cpp"] is not None
