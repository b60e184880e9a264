"""linear is act(x) W^T + b, whatever the strides, and keeps all that the rooms promise."""

from __future__ import annotations

import pytest
import torch

from tests import properties
from tests.linear.cases import CASES, build
from wfkernels.linear import ops


@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients(name: str) -> None:
    properties.agrees_with_definition(build(CASES[name], 1))


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
