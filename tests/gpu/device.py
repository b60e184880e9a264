"""The rooms' own calls on a GPU: judged, repeated, captured in a graph, and made without waiting.

A call of a room is made once and what reaches the library's ops is recorded, forward and backward alike. Each of these
op calls then runs alone, so that a disagreement names the op. With TRITON_INTERPRET=1 and no GPU the same code runs in
Triton's interpreter, all but graphs and bfloat16 (whose products are wrong there, upstream).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from tests import interpreted
from tests.properties import Call
from wfkernels import dispatch, env, gpu, judge

HERE = torch.cuda.is_available()
DEVICE = torch.device("cuda" if HERE else "cpu")
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
RUNS = 5
REASON = "needs a GPU that torch can use; without one TRITON_INTERPRET=1 runs it in the interpreter"
# The second is for what only a device has: streams, graphs, waiting.
needed = [pytest.mark.gpu, pytest.mark.skipif(not HERE and not gpu.interpreted(), reason=REASON)]
device_only = pytest.mark.skipif(not HERE, reason="needs a GPU that torch can use")
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))

OpCalls = list[tuple[str, tuple[Any, ...]]]


def placed(x: Any, dtype: torch.dtype) -> Any:
    """Return tensors as leaves on the device, floating ones in `dtype`; dicts, lists and tuples of them likewise."""
    if isinstance(x, Tensor):
        x = x.detach().to(DEVICE)
        return x.to(dtype).requires_grad_() if x.is_floating_point() else x
    if isinstance(x, dict):
        return {name: placed(value, dtype) for name, value in x.items()}
    if isinstance(x, tuple) and hasattr(x, "_fields"):
        return type(x)(*(placed(value, dtype) for value in x))
    return type(x)(placed(value, dtype) for value in x) if isinstance(x, (list, tuple)) else x


def random_like(outputs: Sequence[Tensor]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(7)
    return [torch.randn(y.shape, generator=generator).to(y) for y in outputs]


def recorded(run: Callable[[], Any], leaves: Sequence[Tensor]) -> OpCalls:
    """Return every call of a library op that `run` and its backward make."""
    if not HERE and any(t.dtype == torch.bfloat16 for t in leaves):
        pytest.skip("the interpreter's products of bfloat16 are wrong (upstream)")
    with env.IMPL.holding("triton"), dispatch.capturing() as calls:
        outputs = judge.flat(run())
        torch.autograd.grad(outputs, leaves, random_like(outputs), allow_unused=True)
    return list(calls)


def of(call: Call, dtype: torch.dtype) -> OpCalls:
    """Return the op calls of a room's call."""
    leaves = placed(call.leaves, dtype)
    return recorded(lambda: call.run(leaves, impl="triton"), list(leaves.values()))


def hold(calls: OpCalls) -> None:
    """Fail where a call disagrees with the reference, or one of RUNS runs with the first, or a later run waits.

    Ops and their gradients have to be among the calls, or nothing was tested.
    """
    assert {op.endswith("_backward") for op, _ in calls} == {False, True}
    found = []
    for op, args in calls:
        run = _triton(op, args)
        first = run()
        found += [f"{op}: {wrong}" for wrong in interpreted.wrongs(op, args, first)]
        for _ in range(RUNS - 1 if HERE else 1):
            with no_waiting():
                again = run()
            found += [f"{op}: two runs differ"] * (not same(first, again))
    assert not found, "\n".join(found)


def hold_captured(calls: OpCalls) -> None:
    """Fail where a graph of a call, captured after one call to warm up, computes other bits."""
    for op, args in calls:
        run = _triton(op, args)
        assert same(run(), captured(run)), op


def captured(run: Callable[[], list[Tensor]]) -> list[Tensor]:
    """Return what a CUDA graph of `run` computes when it is replayed."""
    torch.cuda.synchronize()
    beside = torch.cuda.Stream()
    with torch.cuda.stream(beside):
        run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = run()
    for x in results:
        x.zero_()  # so that only the replay can have written it
    graph.replay()
    torch.cuda.synchronize()
    return results


def same(first: Sequence[Tensor | None], second: Sequence[Tensor | None]) -> bool:
    """Return whether all bits agree; NaN agree with themselves."""
    pairs = list(zip(first, second, strict=True))
    return all(x is y or torch.equal(_bits(x), _bits(y)) for x, y in pairs if x is not None and y is not None)


def _bits(x: Tensor) -> Tensor:
    return x.detach().contiguous().flatten().view(torch.uint8)


@contextmanager
def no_waiting() -> Iterator[None]:
    """Make whatever waits for the device an error."""
    if not HERE:
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def _triton(op: str, args: tuple[Any, ...]) -> Callable[[], list[Tensor]]:
    with env.IMPL.holding("triton"):
        run = dispatch.choose(op, "triton", *args).run

    @torch.no_grad()
    def results() -> list[Tensor]:
        return judge.flat(run(*args))

    return results
