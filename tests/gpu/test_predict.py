"""Whole predictions on a GPU: each op of the chain, and the chain as one."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.gpu import device
from tests.predict.cases import CASES, SEED, Case, tensors
from tests.predict.interpreted import ROOMS
from wfkernels import dispatch, env, predict

pytestmark = device.needed
WHOLE = pytest.mark.parametrize("name", ["paper", "recipe", "specialists", "dropout", "odd rows, bucketed"])


def prediction(case: Case, dtype: torch.dtype) -> tuple[Callable[[], Tensor], list[Tensor]]:
    """Return a case on the device as a function without arguments, and its leaves."""
    rows, parameters, layout, lookup = tensors(case)
    rows, lookup, seed = device.placed((rows, lookup, SEED), dtype)
    flat = [device.placed(t, dtype) for t in parameters.flatten()]
    given = parameters.unflatten(flat)

    def run() -> Tensor:
        students = predict(rows, given, case.settings, layout=layout, gate_lookup=lookup, seed=seed, impl="triton")
        assert isinstance(students, Tensor)
        return students

    return run, [rows, *(t for t in flat if t is not None)]


def step(case: Case, dtype: torch.dtype) -> Callable[[], list[Tensor]]:
    """Return forward and backward as one function: the students, then the gradient of every leaf that has one."""
    run, leaves = prediction(case, dtype)

    def whole() -> list[Tensor]:
        students = run()
        grads = torch.autograd.grad(students, leaves, torch.ones_like(students), allow_unused=True)
        return [students.detach(), *(g for g in grads if g is not None)]

    return whole


@device.every_dtype
@pytest.mark.parametrize("name", CASES)
def test_every_op_of_the_chain_is_as_exact_as_eager(name: str, dtype: torch.dtype) -> None:
    device.hold(device.recorded(*prediction(CASES[name], dtype)))


@WHOLE
def test_every_op_runs_in_triton_and_all_runs_agree(name: str) -> None:
    whole = step(CASES[name], torch.float32)
    with env.IMPL.holding("triton"), dispatch.recording() as choices:
        first = whole()
    ran = {choice.op for choice in choices if choice.runs == "triton"}
    assert ran >= {f"{room}{part}" for room in ROOMS for part in ("", "_backward")}
    for _ in range(device.RUNS - 1 if device.HERE else 1):
        with device.no_waiting():
            again = whole()
        assert device.same(first, again)


@device.device_only
@WHOLE
def test_a_graph_captures_forward_and_backward(name: str) -> None:
    whole = step(CASES[name], torch.float32)
    assert device.same(whole(), device.captured(whole))
