"""Gradients: exact by finite differences, one-sided where a gate is closed, and none where nothing is open."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.attention.cases import CASES, DENSE, RAGGED, Call, build
from wfkernels import BucketTable, attention

CHECKED = [
    "dense bias and gate",
    "evoformer",
    "dense rich tables",
    "dense rows per batch",
    "ragged keys of their own",
    "ragged pruned table",
    "ragged bias and gate",
    "ragged tables",
    "one sequence",
]


def outputs_of(call: Call) -> Any:
    """A function of all leaves that returns out and the finite part of lse."""

    def function(*leaves: Tensor) -> tuple[Tensor, Tensor]:
        out, lse = call.with_leaves(dict(zip(call.leaves(), leaves, strict=True))).run(attention, return_lse=True)
        return out, lse[lse.isfinite()]

    return function


@pytest.mark.parametrize("name", CHECKED)
def test_gradcheck(name: str) -> None:
    # Without closed pairs, where two-sided differences do not exist, and without -inf, where there are none at all.
    call = build(replace(CASES[name], closed=0.0, forbidden=0.0))
    leaves = call.leaves()
    if "gate" in leaves:  # room on both sides
        leaves["gate"] = (leaves["gate"].detach() * 0.8 + 0.1).requires_grad_()
    torch.autograd.gradcheck(outputs_of(call), tuple(leaves.values()), fast_mode=True)


@pytest.mark.parametrize("name", ["dense gate", "ragged gate of one head", "one sequence", "ragged tables"])
def test_gradient_of_a_closed_gate_is_the_forward_difference(name: str) -> None:
    call = build(CASES[name])
    leaves = call.leaves()
    gate = leaves["gate"].detach()
    closed = (gate == 0).nonzero()
    out = call.run(attention)
    weights = torch.randn(out.shape, dtype=torch.float64)
    (gradient,) = torch.autograd.grad((out * weights).sum(), [leaves["gate"]])
    assert (gradient[gate == 0] != 0).any()
    step = 1e-6
    for place in closed:
        ahead = []
        for distance in (step, 2 * step):
            moved = gate.clone()
            moved[tuple(place)] += distance
            with torch.no_grad():
                ahead.append((call.with_leaves({**leaves, "gate": moved}).run(attention) - out).mul(weights).sum())
        # One-sided and of second order: off by about step^2 times the cube of exp(s - lse), which is below 1e3 here.
        expected = (4 * ahead[0] - ahead[1]) / (2 * step)
        torch.testing.assert_close(gradient[tuple(place)], expected, rtol=step, atol=step)


def test_exponent_of_a_closed_pair_is_cut_at_30() -> None:
    query = torch.ones(1, 1, 1, dtype=torch.float64)
    key = torch.tensor([0.0, 29.0, 31.0, 1000.0], dtype=torch.float64).view(1, 4, 1)
    value = torch.tensor([1.0, 2.0, 2.0, 2.0], dtype=torch.float64).view(1, 4, 1)
    gate = torch.tensor([[[1.0, 0.0, 0.0, 0.0]]], dtype=torch.float64, requires_grad=True)
    attention(query, key, value, gate=gate, scale=1.0).sum().backward()
    assert gate.grad is not None
    # lse = 0, dP - delta = 2 - 1
    expected = torch.tensor([0.0, 29.0, 30.0, 30.0], dtype=torch.float64).exp() * torch.tensor([0.0, 1.0, 1.0, 1.0])
    torch.testing.assert_close(gate.grad.flatten(), expected)


@pytest.mark.parametrize("name", ["dense bias and gate", "ragged table and dense", "ragged"])
def test_every_subset_of_requires_grad(name: str) -> None:
    call = build(CASES[name])
    leaves = call.leaves()
    whole = dict(zip(leaves, torch.autograd.grad(call.run(attention).square().sum(), [*leaves.values()]), strict=True))
    for count in range(len(leaves)):
        for chosen in itertools.combinations(leaves, count):
            part = {n: t.detach().requires_grad_(n in chosen) for n, t in leaves.items()}
            out = call.with_leaves(part).run(attention)
            assert out.requires_grad == bool(chosen)
            if chosen:
                out.square().sum().backward()
            for name_, leaf in part.items():
                if name_ in chosen:
                    assert leaf.grad is not None
                    assert torch.equal(leaf.grad, whole[name_]), (chosen, name_)
                else:
                    assert leaf.grad is None


@pytest.mark.parametrize("used", [0, 1], ids=["out", "lse"])
def test_one_output_may_be_used_alone(used: int) -> None:
    call = build(CASES["ragged gate of one head"])
    leaves = list(call.leaves().values())
    outputs = call.run(attention, return_lse=True)
    weights = [torch.randn_like(x) for x in outputs]
    alone = torch.autograd.grad(
        (outputs[used] * weights[used]).sum(), leaves, retain_graph=True, materialize_grads=True
    )
    weights[1 - used].zero_()
    both = torch.autograd.grad(sum((x * w).sum() for x, w in zip(outputs, weights, strict=True)), leaves)
    torch.testing.assert_close(alone, both)


def test_halves_of_the_keys_merge_through_their_lse() -> None:
    # What ring attention and paged caches do: two calls over half the keys each, joined by their log-sum-exp.
    call = build(replace(DENSE, keys=(8,)))
    whole = call.run(attention)
    halves = [
        attention(call.query, call.key[..., part, :], call.value[..., part, :], return_lse=True)
        for part in (slice(0, 3), slice(3, 8))
    ]
    outs, lses = (torch.stack(x) for x in zip(*halves, strict=True))
    merged = (outs * lses.softmax(0).unsqueeze(-1)).sum(0)
    torch.testing.assert_close(merged, whole)
    leaves = list(call.leaves().values())
    weights = torch.randn_like(whole)
    torch.testing.assert_close(
        torch.autograd.grad((merged * weights).sum(), leaves), torch.autograd.grad((whole * weights).sum(), leaves)
    )


@pytest.mark.parametrize("how", ["bias", "gate", "causal gate", "table"])
@pytest.mark.parametrize("upstream", [1.0, torch.nan])
def test_a_row_with_nothing_open_gives_zero_and_no_gradient(how: str, upstream: float) -> None:
    call = build(replace(RAGGED, queries=(4, 4), gate="full"))
    row, is_table = 1, how == "table"
    if how == "bias":
        bias = torch.zeros(4, 4, 4, dtype=torch.float64)
        bias[:, row] = -torch.inf
        call.bias, call.gate = bias.requires_grad_(), None
    elif is_table:  # the group of row 1 sees nobody
        table = torch.ones(1, 2, 2, 1, 1, dtype=torch.float64)
        table[:, 1] = 0
        group = torch.tensor([0, 1, 0, 0] * 2)
        call.gate = BucketTable(table.requires_grad_(), torch.zeros(1, dtype=torch.int64), group)
    else:
        gate = torch.rand(4, 4, 4, dtype=torch.float64)
        gate[:, row, : row + 1 if how == "causal gate" else None] = 0
        call.gate = gate.requires_grad_()
        call.options["is_causal"] = how == "causal gate"
    out, lse = call.run(attention, return_lse=True)
    dead = torch.tensor([row, row + 4])
    assert (out[dead] == 0).all() and (lse[dead] == -torch.inf).all()
    alive = torch.ones(8, dtype=torch.bool).index_fill(0, dead, False)
    assert lse[alive].isfinite().all()
    # Only the dead rows get a gradient, whatever it is: nothing may arrive anywhere.
    grad_out, grad_lse = torch.zeros_like(out), torch.zeros_like(lse)
    grad_out[dead], grad_lse[dead] = upstream, upstream
    leaves = call.leaves()
    for name, g in zip(leaves, torch.autograd.grad((out, lse), [*leaves.values()], (grad_out, grad_lse)), strict=True):
        assert (g == 0).all(), name


def test_a_pair_that_is_forbidden_gives_its_bias_and_gate_no_gradient() -> None:
    call = build(CASES["dense bias and gate"])
    assert isinstance(call.bias, Tensor) and isinstance(call.gate, Tensor)
    out, lse = call.run(attention, return_lse=True)
    out.sum().backward()
    assert call.bias.grad is not None and call.gate.grad is not None
    never = torch.ones(5, 7, dtype=torch.bool).triu(1) | (call.bias == -torch.inf)
    assert (call.bias.grad[never] == 0).all() and (call.bias.grad[~never] != 0).any()
    assert (call.gate.grad[..., never] == 0).all()
    closed = (call.gate == 0) & ~never & lse.isfinite().unsqueeze(-1)
    assert (call.gate.grad[closed] != 0).all()


def test_own_token_is_open_and_gives_no_gradient() -> None:
    table = torch.zeros(1, 1, 1, 1, 1, dtype=torch.float64, requires_grad=True)
    value = torch.randn(1, 3, 2, dtype=torch.float64, requires_grad=True)
    gate = BucketTable(table, torch.zeros(1, dtype=torch.int64), diagonal_open=True)
    out = attention(torch.zeros_like(value), torch.zeros_like(value), value, gate=gate)
    assert torch.equal(out, value)
    out[:, 0].sum().backward()
    # score - lse = 0 for every pair: the table gets the two closed pairs of row 0 and not the open one.
    expected = value[0, 1:].sum() - 2 * value[0, 0].sum()
    torch.testing.assert_close(table.grad.flatten()[0], expected.detach())


def test_second_derivative_raises() -> None:
    call = build(DENSE)
    (gradient,) = torch.autograd.grad(call.run(attention).square().sum(), [call.query], create_graph=True)
    with pytest.raises(RuntimeError, match="no autograd formula"):
        gradient.sum().backward()
