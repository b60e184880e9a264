"""linear is act(x) W^T + b: by every instruction set, any number of threads, whatever the strides."""

from __future__ import annotations

import pytest
import torch

from tests import compiled, properties
from tests.linear.cases import CASES, build, draw
from wfkernels import dispatch
from wfkernels.linear import ops

DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)


@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients(name: str) -> None:
    properties.agrees_with_definition(build(CASES[name], 1))


@compiled.needed
@compiled.every_set
@DTYPES
@pytest.mark.parametrize("name", CASES)
def test_every_instruction_set(name: str, dtype: torch.dtype, isa: str) -> None:
    compiled.agrees(build(CASES[name], 1), isa, dtype)


@compiled.needed
@DTYPES
def test_the_number_of_threads_changes_no_bit(dtype: torch.dtype) -> None:
    """Of the result; gradients are products of the library's."""
    call = build(CASES["one more"], 1).to(dtype).by("cpp")
    found = []
    for count in (1, 2, 5):
        with compiled.threads(count), torch.no_grad():
            found += call.run(call.leaves)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


@pytest.mark.parametrize("seed", range(60))
@pytest.mark.parametrize("impl", [i.name for i in dispatch.implementations("linear")])
def test_random_calls(impl: str, seed: int) -> None:
    properties.sweep(draw, build, seed, impl)


def test_any_strides() -> None:
    properties.takes_any_strides(build(CASES["odd"], 1))
    properties.takes_expanded_gradients(build(CASES["odd"], 1))


def test_inputs_untouched_and_runs_repeat() -> None:
    properties.leaves_inputs_alone_and_repeats(build(CASES["one more"], 1))


@pytest.mark.usefixtures("poisoned")
def test_every_element_is_written() -> None:
    properties.writes_every_element(build(CASES["one more"], 1))


@pytest.mark.parametrize("layout", [lambda x: x.requires_grad_(), properties.permuted], ids=["contiguous", "permuted"])
def test_opcheck(layout: object) -> None:
    assert callable(layout)
    tensors = [layout(t.detach()) for t in build(CASES["odd"], 1).leaves.values()]
    torch.library.opcheck(ops.linear, (*tensors, "gelu", "auto"))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_halves_are_left_to_the_library(dtype: torch.dtype) -> None:
    leaves = [t.detach().to(dtype) for t in build(CASES["small"], 1).leaves.values()]
    assert dispatch.verdicts("linear", *leaves, "none")["cpp"] is not None
