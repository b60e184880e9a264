"""The tests of this folder can fail: without a GPU, on the reference in place of a kernel."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.gpu import device
from wfkernels import dispatch, residual_norm

Change = Callable[[str, list[Tensor]], list[Tensor]]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> device.OpCalls:
    monkeypatch.setattr(device, "HERE", False)
    x, residual = (torch.randn(5, 16, requires_grad=True) for _ in range(2))
    with dispatch.capturing() as found:
        _, y = residual_norm(x, residual, torch.ones(16), torch.zeros(16), impl="reference")
        y.sum().backward()
    return list(found)


def pretend(monkeypatch: pytest.MonkeyPatch, change: Change) -> None:
    """Let what `change` makes of the reference's results be those of a kernel."""

    def kernel(op: str, args: tuple[object, ...]) -> Callable[[], list[Tensor]]:
        run = dispatch.implementations(op)[-1].run
        return lambda: change(op, [x.clone() for x in run(*args)])

    monkeypatch.setattr(device, "_triton", kernel)


def test_what_is_right_passes(calls: device.OpCalls, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, lambda op, results: results)
    device.hold(calls)


@pytest.mark.parametrize("op", ["residual_norm", "residual_norm_backward"])
def test_a_wrong_result_is_found_and_named(op: str, calls: device.OpCalls, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, lambda name, results: [x * (1 + 1e-3 * (name == op)) for x in results])
    with pytest.raises(AssertionError, match=f"^{op}: "):
        device.hold(calls)


def test_runs_that_differ_are_found(calls: device.OpCalls, monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[str] = []

    def last_bit(op: str, results: list[Tensor]) -> list[Tensor]:
        runs.append(op)
        results[0].view(-1).view(torch.int32)[3] += len(runs) % 2
        return results

    pretend(monkeypatch, last_bit)
    with pytest.raises(AssertionError, match="two runs differ"):
        device.hold(calls)


def test_a_call_without_its_gradient_tests_nothing(calls: device.OpCalls) -> None:
    with pytest.raises(AssertionError):
        device.hold(calls[:1])


def test_nan_agrees_with_itself_and_zero_not_with_minus_zero() -> None:
    nan, zero = torch.full((2,), torch.nan), torch.zeros(2)
    assert device.same([nan, zero], [nan.clone(), zero.clone()])
    assert not device.same([zero], [-zero])
