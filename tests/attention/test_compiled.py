"""The compiled attention of the CPU: every instruction set, tiles of 64 x 128, chunks, bins, any number of threads."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.attention.cases import CASES, Call, Case, build, draw
from tests.attention.test_definition import gradients
from wfkernels import BucketTable, attention, compiled, dispatch, env
from wfkernels.attention import ops, validate

REASON = compiled.why_not(compiled.CPP)
pytestmark = pytest.mark.skipif(REASON is not None, reason=str(REASON))
SETS = [name for i, name in enumerate(env.CPU_ISA.choices) if i > 0]
# Around the borders of vectors, tiles of 64 rows and 128 columns, and 512 cached rows.
SIZES = (1, 15, 16, 17, 63, 64, 65, 127, 128, 129, 200)


@pytest.fixture(params=SETS)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    number = env.CPU_ISA.choices.index(request.param)
    if not torch.ops.wfkernels_cpp.runs_isa(number, torch.empty(0)):
        pytest.skip(f"this processor does not run {request.param} code")
    with env.CPU_ISA.holding(request.param):
        yield request.param


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def draw_large(seed: int) -> tuple[Case, torch.dtype]:
    """A random case whose sequences reach over several tiles."""
    pick = random.Random(seed)
    case = draw(seed)
    queries = tuple(pick.choice((0, *SIZES)) if case.lead is None else pick.choice(SIZES) for _ in case.queries[:3])
    keys = None if case.keys is None else tuple(pick.choice(SIZES) for _ in queries)
    start = case.start
    if start is not None:
        start = tuple(pick.choice((0, 1, 70)) for _ in start[: len(queries)]) if case.lead is None else start
        keys = tuple(n + 70 for n in queries)
    case = replace(case, queries=queries, keys=keys, start=start, width=pick.choice((3, 16, 40)))
    dtype = pick.choice((torch.float32, torch.float32, torch.float64, torch.bfloat16))
    return case, dtype


def check(call: Call, seed: int = 0) -> list[torch.Tensor]:
    """Hold forward and backward against the float64 reference, as WFKERNELS_CHECK=1 does; return all results."""
    g = torch.Generator().manual_seed(seed)
    options = call.options
    if "offsets" in options:
        lengths = (options["offsets"], options.get("key_offsets"), options.get("query_start"), None)
        options["max_length"] = validate.lengths(call.query, call.key, *lengths)
    with torch.no_grad(), env.CHECK.holding("1"):
        args = (*call.arguments()[:-1], "cpp")
        out, lse = ops.attention_forward(*args)
        grads = (torch.randn(x.shape, generator=g).to(x.dtype) for x in (out, lse))
        needs = [True, True, True, call.bias is not None, call.gate is not None]
        found = ops.attention_backward(*grads, needs, *args[:3], out, lse, *args[3:])
    return [out, lse, *found]


def agrees(call: Call) -> None:
    """float64 has nothing more exact to be judged by: outputs and gradients are close to the reference's."""
    results = []
    for impl in ("reference", "cpp"):
        outputs = call.run(attention, return_lse=True, impl=impl)
        results.append([*outputs, *gradients(outputs, call).values()])
    for wanted, found in zip(*results, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)


def run(seed: int) -> None:
    case, dtype = draw_large(seed)
    call = build(case, seed, dtype)
    agrees(call) if dtype == torch.float64 else check(call, seed)


@pytest.mark.parametrize("seed", range(100))
def test_random_calls_are_no_worse_than_eager(seed: int, isa: str) -> None:
    try:
        run(seed)
    except Exception as error:
        repro = "from tests.attention import test_compiled as t"
        line = f'WFKERNELS_CPU_ISA={isa} python -c "{repro}; t.run({seed})"'
        raise AssertionError(f"{draw_large(seed)}\nrepeat with: {line}") from error


LONG = {
    "bias of all": Case(lead=(2,), queries=(700,), bias=(700, 700), heads=4, key_heads=2),
    "bias per head": Case(lead=(2,), queries=(700,), bias=(4, 700, 700), heads=4, key_heads=2),
    "bias of some": Case(lead=(2, 2), queries=(300,), bias=(2, 1, 1, 300, 300), gate=(2, 4, 1, 300), heads=4),
    "causal tables": Case(lead=None, queries=(600, 1, 200, 0, 200), bias="table", gate="rich", is_causal=True),
    "dropout": Case(lead=None, queries=(150, 300), bias=(1, 300, 300), dropout_p=0.3, forbidden=0.2),
}


@pytest.mark.parametrize("name", LONG)
def test_the_number_of_threads_changes_no_bit(name: str) -> None:
    call = build(LONG[name], dtype=torch.float32)
    results = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        results.append(check(call))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("name", LONG)
def test_gradients_that_nobody_needs_change_no_other(name: str) -> None:
    call = build(LONG[name], dtype=torch.float32)
    args = (*call.arguments()[:-1], "cpp")
    with torch.no_grad():
        out, lse = ops.attention_forward(*args)
        present = [True, True, True, call.bias is not None, call.gate is not None]
        whole = ops.attention_backward(out, None, present, *args[:3], out, lse, *args[3:])
        for i in range(5):
            needs = [j == i and present[i] for j in range(5)]
            found = ops.attention_backward(out, None, needs, *args[:3], out, lse, *args[3:])
            assert [x.numel() > 0 for x in found] == needs
            # How work is cut, and so the order of sums, follows from the gradients that are wanted.
            torch.testing.assert_close(found[i], whole[i] if needs[i] else found[i])


@pytest.mark.parametrize("term", ["bias", "gate"])
def test_closed_tiles_are_not_looked_at(term: str) -> None:
    """NaN in keys and values is harmless where every pair of a tile is forbidden or, without its gradient, closed."""
    q, k, v = (torch.randn(1, 2, 256, 8) for _ in range(3))
    k[..., 128:, :] = torch.nan
    v[..., 128:, :] = torch.nan
    table = torch.zeros(256, 256) if term == "bias" else torch.ones(256, 256)
    table[:, 128:] = -torch.inf if term == "bias" else 0.0
    q.requires_grad_()
    out = attention(q, k, v, **{term: table}, impl="cpp")
    expected = attention(q.detach(), k[..., :128, :], v[..., :128, :], impl="cpp")
    torch.testing.assert_close(out, expected)
    out.sum().backward()
    assert q.grad is not None and q.grad.isfinite().all()


def test_positions_far_apart() -> None:
    """Differences of positions beyond any table that could be written out."""
    positions = torch.tensor([0, 1, 2, 10**9, 10**9 + 1, 5 * 10**12])
    table = torch.rand(2, 1, 1, 1, 7)
    bucket = BucketTable(table, torch.tensor([0, 1, 2, 3, 4, 5, 6]), position=positions)
    q, k, v = (torch.randn(1, 2, 6, 4) for _ in range(3))
    check(Call(q, k, v, bucket, bucket._replace(table=table.clone()), {}))


def test_an_instruction_set_that_is_missing_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "_runs", lambda number: False)
    call = build(CASES["dense"], dtype=torch.float32)
    with pytest.raises(RuntimeError, match="WFKERNELS_CPU_ISA=best: this processor does not run best code"):
        call.run(attention, impl="cpp")


@pytest.mark.parametrize("dtype", [torch.float16, torch.complex64])
def test_dtypes_that_it_does_not_know(dtype: torch.dtype) -> None:
    q, k, v = (torch.randn(1, 2, 6, 4).to(dtype) for _ in range(3))
    args: Any = (q, k, v, *build(CASES["dense"]).arguments()[3:])
    reason = dispatch.verdicts("attention", *args)["cpp"]
    assert reason is not None and "cast to float32 first" in reason
