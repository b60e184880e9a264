"""Inputs as they come: NaN in pairs that nobody sees, any strides, untouched, and the same bits every time."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor

from tests.attention.cases import CASES, DENSE, RAGGED, Call, build, draw
from tests.attention.naive import naive
from tests.properties import gradients_of, outputs_of
from wfkernels import BucketTable, attention
from wfkernels.judge import Contract, examine, named


def results(call: Call) -> dict[str, Tensor]:
    """out, lse and all gradients of a call."""
    out, lse = call.run(attention, return_lse=True)
    leaves = call.leaves()
    total = out.square().sum() + lse[lse.isfinite()].sum()
    return {"out": out, "lse": lse} | dict(zip(leaves, torch.autograd.grad(total, [*leaves.values()]), strict=True))


def poisoned(x: Tensor, where: Tensor) -> Tensor:
    return x.detach().masked_fill(where, torch.nan).requires_grad_()


def check_nothing_spread(clean: Call, dirty: Call, spared: dict[str, Tensor]) -> None:
    """Equal results but for the gradient entries `spared` by name."""
    wanted = results(clean)
    for name, found in results(dirty).items():
        mask = torch.zeros_like(found, dtype=torch.bool) | spared.get(name, torch.tensor(False))
        assert torch.equal(found.masked_fill(mask, 0), wanted[name].masked_fill(mask, 0)), name


@pytest.mark.parametrize("lead", [(), None], ids=["dense", "ragged"])
def test_nan_in_bias_and_gate_behind_the_causal_mask(lead: tuple[int, ...] | None) -> None:
    call = build(replace(DENSE, lead=lead, queries=(6,), keys=None, bias="full", gate="full", is_causal=True))
    later = torch.ones(6, 6, dtype=torch.bool).triu(1)
    leaves = call.leaves()
    dirty = {**leaves, "bias": poisoned(leaves["bias"], later), "gate": poisoned(leaves["gate"], later)}
    check_nothing_spread(call, call.with_leaves(dirty), {})


def test_nan_in_the_gate_of_a_forbidden_pair() -> None:
    call = build(CASES["dense bias and gate"])
    assert isinstance(call.bias, Tensor) and isinstance(call.gate, Tensor)
    dirty = call.with_leaves({**call.leaves(), "gate": poisoned(call.gate, call.bias == -torch.inf)})
    check_nothing_spread(call, dirty, {})


def test_nan_in_the_bias_of_a_closed_pair_reaches_only_its_own_gate() -> None:
    call = build(CASES["dense bias and gate"])
    assert isinstance(call.bias, Tensor) and isinstance(call.gate, Tensor)
    call.options["is_causal"] = False
    call.gate = call.gate.detach().masked_fill(torch.eye(5, 7, dtype=torch.bool), 0.0).requires_grad_()
    closed = torch.eye(5, 7, dtype=torch.bool) & (call.bias != -torch.inf)
    dirty = call.with_leaves({**call.leaves(), "bias": poisoned(call.bias, closed)})
    check_nothing_spread(call, dirty, {"gate": closed})


def test_score_of_a_forbidden_pair_may_overflow() -> None:
    call = build(replace(DENSE, lead=(), heads=1, key_heads=1, queries=(3,), keys=(3,), width=2, is_causal=True))
    leaves = {n: t.detach().float() for n, t in call.leaves().items()}
    leaves["key"][:, 2] = 3e38 * torch.tensor([1.0, -1.0])
    leaves["query"][:, 0] = 1e10  # inf - inf for the pair (0, 2), which the causal mask forbids
    leaves["query"][:, 1:] = 0.0
    out = call.with_leaves(leaves).run(attention)
    assert not (leaves["query"] @ leaves["key"].mT)[0, 0, 2].isfinite() and out.isfinite().all()


def test_nan_that_is_seen_is_not_hidden() -> None:
    call = build(replace(DENSE, bias="full", gate="full"))
    leaves = call.leaves()
    for name in ("bias", "gate", "query", "value"):
        where = torch.zeros_like(leaves[name], dtype=torch.bool)
        where[0, 0, 0] = True
        out, lse = call.with_leaves({**leaves, name: poisoned(leaves[name], where)}).run(attention, return_lse=True)
        assert out[0, 0, 0].isnan().all(), name
        assert lse[0, 0, 0].isnan() == (name != "value")
        assert out[1].isfinite().all()


def test_tokens_beyond_the_corner_are_not_read() -> None:
    call = build(replace(RAGGED, queries=(2, 3), bias=(4, 9, 9), gate=(1, 9, 9)))
    leaves = call.leaves()
    beyond = torch.ones(9, 9, dtype=torch.bool)
    beyond[:3, :3] = False
    dirty = {**leaves, "bias": poisoned(leaves["bias"], beyond), "gate": poisoned(leaves["gate"], beyond)}
    check_nothing_spread(call, call.with_leaves(dirty), {})


@pytest.mark.parametrize("name", ["dense bias and gate", "ragged table and dense", "ragged pruned table"])
def test_inputs_stay_untouched_and_two_runs_agree_to_the_bit(name: str) -> None:
    call = build(CASES[name])
    tensors = [*call.leaves().values(), *(t for t in call.options.values() if isinstance(t, Tensor))]
    before = [t.detach().clone() for t in tensors]
    first, second = results(call), results(call)
    assert all(torch.equal(a, b) for a, b in zip(before, tensors, strict=True))
    assert all(torch.equal(first[n], second[n]) for n in first)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("name", CASES)
def test_every_element_is_written(name: str) -> None:
    for tensor in results(build(CASES[name])).values():
        assert not tensor.isnan().any()


def permuted(x: Tensor) -> Tensor:
    """The same values with dimensions stored in reverse order."""
    order = tuple(reversed(range(x.ndim)))
    return x.detach().permute(order).contiguous().permute(order).requires_grad_()


def strided(x: Tensor) -> Tensor:
    """The same values in every second element of a buffer of NaN."""
    buffer = x.new_full((*x.shape, 2), torch.nan)
    buffer[..., 0] = x.detach()
    return buffer[..., 0].requires_grad_()


@pytest.mark.parametrize("name", ["dense bias and gate", "ragged table and dense", "ragged pruned table", "evoformer"])
@pytest.mark.parametrize("layout", [permuted, strided])
def test_any_strides(name: str, layout: object) -> None:
    call = build(CASES[name])
    wanted = results(call)
    other = call.with_leaves({n: layout(t) for n, t in call.leaves().items()})
    for key, found in results(other).items():
        torch.testing.assert_close(found, wanted[key], msg=lambda m, key=key: f"{key}: {m}")
    out, lse = other.run(attention, return_lse=True)
    assert out.is_contiguous() and lse.is_contiguous()


@pytest.mark.parametrize("name", ["dense bias and gate", "ragged table and dense"])
def test_expanded_gradients(name: str) -> None:
    call = build(CASES[name])
    leaves = list(call.leaves().values())
    out, lse = call.run(attention, return_lse=True)
    ones = (torch.ones_like(out), torch.ones_like(lse))
    wanted = torch.autograd.grad((out, lse), leaves, ones, retain_graph=True)
    expanded = tuple(x.new_ones(()).expand(x.shape) for x in (out, lse))
    found = torch.autograd.grad((out, lse), leaves, expanded, retain_graph=True)
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
    assert all(
        torch.equal(a, b) for a, b in zip(torch.autograd.grad(out.sum() + lse.sum(), leaves), wanted, strict=True)
    )


def test_expanded_inputs() -> None:
    call = build(replace(DENSE, lead=(1,), bias=(1, 5, 7)))
    wide = call.with_leaves(
        {n: t.expand(3, *t.shape[1:]) if n in ("query", "key", "value") else t for n, t in call.leaves().items()}
    )
    out = wide.run(attention)
    torch.testing.assert_close(out, call.run(attention).expand_as(out))
    out.sum().backward()
    expected = torch.autograd.grad(3 * call.run(attention).sum(), [call.query, call.bias])
    torch.testing.assert_close((call.query.grad, call.bias.grad), expected)


def test_how_sequences_are_batched_does_not_matter() -> None:
    # Equal neighbours are computed side by side: the same sequences in an order without equal neighbours.
    call = build(replace(RAGGED, queries=(3, 3, 3, 6, 6, 6), gate="full", closed=0.2))
    order, lengths = [0, 3, 1, 4, 2, 5], (3, 3, 3, 6, 6, 6)
    starts = [0, 3, 6, 9, 15, 21]
    tokens = torch.cat([torch.arange(starts[i], starts[i] + lengths[i]) for i in order])
    mixed = call.with_leaves(
        {n: t if n == "gate" else t.detach()[tokens].requires_grad_() for n, t in call.leaves().items()}
    )
    mixed.options = {"offsets": torch.tensor([0, *(lengths[i] for i in order)]).cumsum(0)}
    wanted, found = results(call), results(mixed)
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, wanted[name] if name == "gate" else wanted[name][tokens])


def eager(query: Tensor, key: Tensor, value: Tensor, *, bias: Tensor, gate: Tensor) -> Tensor:
    """What a user would write, in the dtype of the inputs throughout."""
    scores = query @ key.mT * query.shape[-1] ** -0.5 + bias
    weights = gate * (scores - scores.detach().amax(-1, keepdim=True)).exp()
    return weights / weights.sum(-1, keepdim=True) @ value


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("seed", range(3))
def test_no_worse_than_eager_in_the_same_dtype(dtype: torch.dtype, seed: int) -> None:
    case = replace(
        DENSE, queries=(65,), keys=(65,), heads=2, width=16, value_width=16, bias="full", gate="full", closed=0.2
    )
    call = build(case, seed, dtype)
    names = list(call.leaves())
    tensors = [*(t.detach() for t in call.leaves().values()), torch.randn(call.query.shape).to(dtype)]
    parts = {"gate": {"open": call.leaves()["gate"] > 0, "closed": call.leaves()["gate"] == 0}}
    gradients = Contract(named(*names), gradient=True, parts=lambda *_: parts)
    for contract, results in ((Contract(named("out")), outputs_of), (gradients, gradients_of)):
        theirs, ours = (partial(results, lambda leaves, f=f: (f(**leaves),), names) for f in (eager, attention))
        verdicts = examine(contract, theirs, tensors, ours(*tensors))
        assert not [str(verdict) for verdict in verdicts if verdict.share > 1]


@pytest.mark.parametrize("seed", range(12))
def test_float32_follows_float64(seed: int) -> None:
    case = draw(1000 + seed)
    exact = build(case, seed)
    low = exact.to(torch.float32)
    out = low.run(attention)
    assert out.dtype == torch.float32
    wanted = low.to(torch.float64).run(naive)[0]
    torch.testing.assert_close(out, wanted.float())


def test_tables_keep_their_dtype_next_to_half_inputs() -> None:
    call = build(CASES["ragged tables"])
    half = call.with_leaves(
        {
            n: t.detach().to(torch.bfloat16 if n in ("query", "key", "value") else torch.float32).requires_grad_()
            for n, t in call.leaves().items()
        }
    )
    out, lse = half.run(attention, return_lse=True)
    assert out.dtype == torch.bfloat16 and lse.dtype == torch.float32
    out.sum().backward()
    assert isinstance(half.gate, BucketTable)
    assert half.gate.table.grad is not None and half.gate.table.grad.dtype == torch.float32
