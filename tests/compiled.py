"""What the rooms ask of their compiled kernels: every instruction set, any number of threads, mixed dtypes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from tests import properties
from tests.properties import Call
from wfkernels import compiled, dispatch, env

REASON = compiled.why_not(compiled.CPP)
needed = pytest.mark.skipif(REASON is not None, reason=str(REASON))
every_set = pytest.mark.parametrize("isa", env.CPU_ISA.choices[1:])


@contextmanager
def instruction_set(isa: str) -> Iterator[None]:
    """Let compiled kernels use one instruction set, or skip the test where this machine lacks it."""
    number = env.CPU_ISA.choices.index(isa)
    if not torch.ops.wfkernels_cpp.runs_isa(number, torch.empty(0)):
        pytest.skip(f"this processor does not run {isa} code")
    with env.CPU_ISA.holding(isa):
        yield


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def agrees(call: Call, isa: str, dtype: torch.dtype) -> None:
    """Outputs and gradients are those of the definition."""
    call = call.by("cpp")
    with instruction_set(isa):
        if dtype == torch.float64:
            properties.agrees_with_definition(call)
        else:
            properties.is_no_worse_than_eager([call], dtype)


def repeats(call: Call, dtype: torch.dtype) -> None:
    """Neither another run nor another number of threads changes a bit."""
    call = call.to(dtype).by("cpp")
    results = []
    for count in (1, 2, 2, 5):
        with threads(count):
            results.append(properties.results(call))
    for other in results[1:]:
        properties.assert_same(other, results[0], exact=True)


Backward = Callable[[list[Tensor], list[Tensor], Sequence[Any], str], list[Tensor]]


def results(forward: Callable[..., Any], backward: Backward, arguments: Sequence[Any], impl: str) -> list[Tensor]:
    """The outputs of a library op and the gradients of a random linear function of them.

    `backward` gets the outputs' gradients, the outputs, the arguments and the implementation.
    """
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        found = forward(*arguments, impl)
        outputs = [found] if isinstance(found, Tensor) else list(found)
        grads = [torch.randn(y.shape, generator=generator).to(y.dtype) for y in outputs]
        return [*outputs, *backward(grads, outputs, arguments, impl)]


def takes_mixed_dtypes(forward: Callable[..., Any], backward: Backward, arguments: Sequence[Any]) -> None:
    """A library op and its gradient agree with the reference, whatever dtypes meet in a call."""
    flat = [t for x in arguments for t in (x if isinstance(x, list) else [x]) if isinstance(t, Tensor)]
    if all(t.dtype != torch.float64 for t in flat):
        with env.CHECK.holding("1"):
            results(forward, backward, arguments, "cpp")
        return
    # The judge takes a float64 result for one that was computed in float64.
    found, wanted = (results(forward, backward, arguments, impl) for impl in ("cpp", "reference"))
    for x, y in zip(found, wanted, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-2 if x.dtype == torch.bfloat16 else 1e-5, atol=1e-4)


def refuses(op: str, arguments: Sequence[Any], dtype: torch.dtype = torch.float16) -> None:
    """Tensors of a dtype that the kernels do not know are left to the reference, with a reason."""

    def cast(x: Any) -> Any:
        if isinstance(x, Tensor):
            return x.to(dtype) if x.is_floating_point() else x
        return [cast(y) for y in x] if isinstance(x, list) else x

    reason = dispatch.verdicts(op, *map(cast, arguments))["cpp"]
    assert reason == f"it does not know {dtype}; cast to float32 first"
