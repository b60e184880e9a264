"""Attention with bias and gate in plain PyTorch: the definition of correct. Any device, float64 included.

    s_ij = scale * q_i.k_j + b_ij      t_ij = s_ij + log g_ij      lse_i = log sum_j exp(t_ij)
    P_ij = exp(t_ij - lse_i)           O_i = sum_j P_ij Z_ij v_j

A pair is forbidden where the call is causal and j > row of i, or where b_ij = -inf: its score is never looked at. A
pair with g_ij = 0 is closed: P_ij = 0, but its gate has a gradient. On a GPU this implementation reads the offsets back
and so waits for the device; all S x S tensors of a block exist at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from wfkernels.attention.arguments import Arguments
from wfkernels.attention.blocks import Block, dense_blocks, ragged_blocks
from wfkernels.attention.terms import Term, make_term
from wfkernels.philox import keep_mask

NEGATIVE_INFINITY = float("-inf")
# dgate of a closed pair is exp(s - lse) times a difference; above this exponent it is cut, in every implementation.
LARGEST_EXPONENT = 30.0


def precision(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of scores, statistics and sums for inputs of `dtype`."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _blocks(query: Tensor, key: Tensor, arguments: Arguments) -> Iterator[Block]:
    start = arguments.query_start
    if arguments.offsets is None:
        return dense_blocks(query, key, start)
    return ragged_blocks(query.shape[1], arguments.offsets, arguments.key_offsets, start, query.device)


def _terms(arguments: Arguments, dtype: torch.dtype) -> tuple[Term | None, Term | None]:
    """Return the bias and the logarithm of the gate."""
    bias, gate = arguments.bias, arguments.gate
    return (
        None if bias is None else make_term(bias, dtype, log=False),
        None if gate is None else make_term(gate, dtype, log=True),
    )


def _fold(x: Tensor, heads: int) -> Tensor:
    """Return [..., H, S, X] as [..., heads, (H / heads) * S, X]: heads that share a key head, one below the other."""
    return x.reshape(*x.shape[:-3], heads, -1, x.shape[-1])


def _scores(
    query: Tensor,  # [batch, H, Sq, D], scaled
    key: Tensor,  # [batch, Hk, Sk, D]
    block: Block,
    bias: Term | None,
    gate: Term | None,
    is_causal: bool,
) -> tuple[Tensor, Tensor]:
    """Return s and t, both [batch, H, Sq, Sk]: -inf where forbidden, t also where closed. Without a gate t is s."""
    scores = (_fold(query, key.shape[-3]) @ key.mT).view(*query.shape[:-1], key.shape[-2])
    forbidden = block.columns > block.row_of_pair if is_causal else None
    if bias is not None:
        values = bias.values(block)
        scores += values
        never = values == NEGATIVE_INFINITY
        forbidden = never if forbidden is None else forbidden | never
    if forbidden is not None:
        scores.masked_fill_(forbidden, NEGATIVE_INFINITY)
    if gate is None:
        return scores, scores
    values = gate.values(block)
    shut = values == NEGATIVE_INFINITY
    if forbidden is not None:
        shut = shut | forbidden
    # Filled after the sum, so that a NaN in the score of a closed or the gate of a forbidden pair does not spread.
    return scores, (scores + values).masked_fill_(shut, NEGATIVE_INFINITY)


def _kept(block: Block, heads: int, arguments: Arguments) -> Tensor:
    """Return the dropout mask of a block, bool [batch, H, Sq, Sk]."""
    assert arguments.seed is not None
    return keep_mask(
        arguments.seed,
        arguments.site,
        sequence=block.sequence[..., None, None, None],
        head=torch.arange(heads, device=block.columns.device)[:, None, None],
        row=block.row_of_pair,
        column=block.columns,
        p=arguments.dropout_p,
    )


def forward(query: Tensor, key: Tensor, value: Tensor, *rest: object) -> tuple[Tensor, Tensor]:
    """Return out, shaped like query with the width of value, and lse, shaped like query without its last dimension."""
    arguments = Arguments.unflatten(rest)
    dtype = precision(query.dtype)
    scale = query.shape[-1] ** -0.5 if arguments.scale is None else arguments.scale
    bias, gate = _terms(arguments, dtype)
    out = query.new_zeros((*query.shape[:-1], value.shape[-1]))
    lse = query.new_full(query.shape[:-1], NEGATIVE_INFINITY, dtype=dtype)
    for block in _blocks(query, key, arguments):
        q = block.queries(query).to(dtype) * scale
        k, v = (block.keys(x).to(dtype) for x in (key, value))
        _, t = _scores(q, k, block, bias, gate, arguments.is_causal)
        largest = t.amax(-1, keepdim=True)
        p = (t - largest.masked_fill(largest == NEGATIVE_INFINITY, 0.0)).exp_()
        total = p.sum(-1, keepdim=True)
        block.queries(lse).copy_((largest + total.log()).squeeze(-1))
        if arguments.dropout_p > 0:
            p *= _kept(block, p.shape[-3], arguments)
            total = total * (1 - arguments.dropout_p)
        o = (_fold(p, k.shape[-3]) @ v).view(*q.shape[:-1], v.shape[-1])
        block.queries(out).copy_(o / total.masked_fill(total == 0, 1.0))
    return out, lse


def backward(
    grad_out: Tensor,
    grad_lse: Tensor | None,
    needs: Sequence[bool],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    lse: Tensor,
    *rest: object,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of query, key, value, bias (or its table), gate (or its table); empty where not needed.

    With Z the dropout factors: dP = Z o (dO V^T); delta = rowsum(dO o O) - dlse; dS = P o (dP - delta);
    dgate = exp(min(s - lse, 30)) * (dP - delta). A row with nothing open (lse = -inf) gives no gradient at all.
    """
    arguments = Arguments.unflatten(rest)
    dtype = precision(query.dtype)
    scale = query.shape[-1] ** -0.5 if arguments.scale is None else arguments.scale
    bias, gate = _terms(arguments, dtype)
    need_query, need_key, need_value, need_bias, need_gate = needs
    grad_query, grad_key, grad_value = (
        x.new_zeros(x.shape) if need else x.new_empty(0) for x, need in zip((query, key, value), needs[:3], strict=True)
    )
    for block in _blocks(query, key, arguments):
        q = block.queries(query).to(dtype) * scale
        k, v = (block.keys(x).to(dtype) for x in (key, value))
        heads = k.shape[-3]
        s, t = _scores(q, k, block, bias, gate, arguments.is_causal)
        norm = block.queries(lse).unsqueeze(-1)
        dead = norm == NEGATIVE_INFINITY
        norm = norm.masked_fill(dead, float("inf"))
        grad_o = block.queries(grad_out).to(dtype).masked_fill(dead, 0.0)
        p = (t - norm).exp_()
        kept = None
        if arguments.dropout_p > 0:
            kept = _kept(block, p.shape[-3], arguments).to(dtype) / (1 - arguments.dropout_p)
        if need_value:
            dropped = p if kept is None else p * kept
            block.keys(grad_value).copy_(_fold(dropped, heads).mT @ _fold(grad_o, heads))
        if not (need_query or need_key or need_bias or need_gate):
            continue
        delta = (grad_o * block.queries(out)).sum(-1, keepdim=True)
        if grad_lse is not None:
            delta -= block.queries(grad_lse).unsqueeze(-1).masked_fill(dead, 0.0)
        difference = (_fold(grad_o, heads) @ v.mT).view_as(p)
        if kept is not None:
            difference *= kept
        difference -= delta
        if gate is not None and need_gate:
            gate.accumulate(block, (s - norm).clamp_(max=LARGEST_EXPONENT).exp_().mul_(difference))
        if not (need_query or need_key or need_bias):
            continue
        grad_s = p.mul_(difference)
        if bias is not None and need_bias:
            bias.accumulate(block, grad_s)
        if need_query:
            grad_q = (_fold(grad_s, heads) @ k).view_as(q)
            block.queries(grad_query).copy_(grad_q.mul_(scale))
        if need_key:
            block.keys(grad_key).copy_(_fold(grad_s, heads).mT @ _fold(q, heads))
    grad_bias = bias.gradient() if bias is not None and need_bias else query.new_empty(0)
    grad_gate = gate.gradient() if gate is not None and need_gate else query.new_empty(0)
    return grad_query, grad_key, grad_value, grad_bias, grad_gate
