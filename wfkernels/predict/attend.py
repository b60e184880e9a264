"""The attention of one block: inside every sequence, and for cross tokens to those of earlier layers."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from wfkernels.attention import ops
from wfkernels.attention.arguments import Arguments
from wfkernels.attention.bucket import BucketTable
from wfkernels.predict.plan import Indices, Plan


class Attention(NamedTuple):
    """Outputs and log-sum-exps, saved for backward: inside the sequences, and of cross tokens to earlier layers."""

    out: Tensor  # [computed, H, D]
    lse: Tensor  # [computed, H]
    cross_out: Tensor | None  # [G, H, L * c, D]
    cross_lse: Tensor | None  # [G, H, L * c]

    def joined(self, at: Indices) -> Tensor:
        """Return the output of every computed token [computed, H, D], the cross tokens' two parts added."""
        if self.cross_out is None:
            return self.out
        return _add_crossed(self.out, at, self.cross_out)


def _inside(
    plan: Plan, at: Indices, i: int, pruned: bool, gate: Tensor | None, lookup: Tensor | None, seed: Tensor | None
) -> Arguments:
    term: Tensor | BucketTable | None = gate
    if gate is not None and lookup is not None:
        term = BucketTable(gate, lookup, at.group, at.segment, at.position, diagonal_open=True)
    return Arguments(
        gate=term,
        offsets=at.read_offsets if pruned else at.offsets,
        key_offsets=at.offsets if pruned else None,
        query_start=at.query_start if pruned else None,
        max_length=plan.layout.max_length,
        seed=seed,
        dropout_p=plan.settings.dropout_p,
        site=3 * i,
        impl=plan.impl,
    )


def _across(plan: Plan, at: Indices, i: int, seed: Tensor | None, like: Tensor) -> Arguments:
    # Sites below zero keep this call's dropout apart from those of the sequences.
    return Arguments(
        bias=at.earlier.to(like.dtype), seed=seed, dropout_p=plan.settings.dropout_p, site=-1 - i, impl=plan.impl
    )


def _cross_tokens(x: Tensor, at: Indices) -> Tensor:
    """Gather the cross tokens of x [tokens, H, D] as [G, H, L * c, D]."""
    return x[at.cross].transpose(1, 2)


def _add_crossed(x: Tensor, at: Indices, crossed: Tensor) -> Tensor:
    """Add [G, H, L * c, D] to the cross tokens of x [tokens, H, D]; no token stands twice among them."""
    return x.index_add(0, at.cross.flatten(), crossed.transpose(1, 2).flatten(0, 1))


def attend(
    plan: Plan,
    at: Indices,
    i: int,
    pruned: bool,
    query: Tensor,  # [computed, H, D]
    key: Tensor,  # [tokens, H, D]
    value: Tensor,  # [tokens, H, D]
    gate: Tensor | None,
    lookup: Tensor | None,
    seed: Tensor | None,
) -> Attention:
    """Run the attention of block i; `pruned` says that only the tokens that are read have a query."""
    out, lse = ops.forward(query, key, value, _inside(plan, at, i, pruned, gate, lookup, seed))
    if pruned or not plan.parallel:
        return Attention(out, lse, None, None)
    q, k, v = (_cross_tokens(x, at) for x in (query, key, value))
    return Attention(out, lse, *ops.forward(q, k, v, _across(plan, at, i, seed, query)))


def attend_backward(
    plan: Plan,
    at: Indices,
    i: int,
    pruned: bool,
    grad: Tensor,  # [computed, H, D]
    query: Tensor,  # [computed, H, D]
    key: Tensor,  # [tokens, H, D]
    value: Tensor,  # [tokens, H, D]
    attention: Attention,
    gate: Tensor | None,
    lookup: Tensor | None,
    seed: Tensor | None,
    gate_gradient: bool,
) -> tuple[list[Tensor], Tensor | None]:
    """Return the gradients of query, key, value and, where asked for, of the gate."""
    inside = _inside(plan, at, i, pruned, gate, lookup, seed)
    tensors = (query, key, value, attention.out, attention.lse)
    *found, _, dgate = ops.backward(grad, None, (True, True, True, False, gate_gradient), *tensors, inside)
    triple = [g for g in found if g is not None]
    if attention.cross_out is None or attention.cross_lse is None:
        return triple, dgate
    q, k, v, dout = (_cross_tokens(x, at) for x in (query, key, value, grad))
    crossed = (q, k, v, attention.cross_out, attention.cross_lse)
    across = _across(plan, at, i, seed, grad)
    *found, _, _ = ops.backward(dout, None, (True, True, True, False, False), *crossed, across)
    parts = [g for g in found if g is not None]
    return [_add_crossed(whole, at, part) for whole, part in zip(triple, parts, strict=True)], dgate
