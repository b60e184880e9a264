"""What `attention` never builds, as tensors: the entries of a bucket table, and the weights of a call."""

from __future__ import annotations

import torch
from torch import Tensor

from wfkernels import autocast
from wfkernels.attention.bucket import BucketTable, pair_index
from wfkernels.attention.reference import LARGEST_EXPONENT
from wfkernels.philox import keep_mask

NEGATIVE_INFINITY = float("-inf")


def entries(bucket: BucketTable, queries: int, keys: int, *, start: int = 0, neutral: float = 0.0) -> Tensor:
    """Return the entries of a bucketed bias or gate in a dense call, [H or 1, Sq, Sk], with the gradient of the table.

    start: row of the first query. neutral: what a forced-open diagonal holds, 0 for a bias and 1 for a gate.
    """
    rows = torch.arange(start, start + queries, device=bucket.table.device)
    columns = torch.arange(keys, device=bucket.table.device)
    values: Tensor = bucket.table.flatten(1)[:, pair_index(bucket, rows, columns)]
    return values.masked_fill(rows.unsqueeze(1) == columns, neutral) if bucket.diagonal_open else values


def weights(
    query: Tensor,  # [..., H, Sq, D]
    key: Tensor,  # [..., H, Sk, D]
    lse: Tensor,  # [..., H, Sq]
    bias: Tensor | BucketTable | None,  # as `attention` takes it
    gate: Tensor | BucketTable | None,  # likewise
    *,
    is_causal: bool = False,
    dropout_p: float = 0.0,
    seed: Tensor | None = None,  # [1], int64
) -> Tensor:
    """Return the weights P o Z of a dense call, [..., H, Sq, Sk] in the dtype of query: out = weights @ value.

    lse: what the same call of `attention` returned; the gradient through it makes that of the weights complete. A query
    with no open pair has weights 0.
    """
    queries, keys = query.shape[-2], key.shape[-2]
    bias, gate = (
        entries(term, queries, keys, neutral=neutral) if isinstance(term, BucketTable) else autocast.cast_optional(term)
        for term, neutral in ((bias, 0.0), (gate, 1.0))
    )
    with autocast.off(query.device):
        found = _weights(query, key, lse, bias, gate, is_causal)
    if dropout_p > 0:
        assert seed is not None
        found = found * _kept(query, keys, dropout_p, seed) / (1 - dropout_p)
    return found.to(query.dtype)


def _weights(
    query: Tensor, key: Tensor, lse: Tensor, bias: Tensor | None, gate: Tensor | None, is_causal: bool
) -> Tensor:
    """Return P, [..., H, Sq, Sk] in the dtype of lse."""
    scores = (query.to(lse.dtype) * query.shape[-1] ** -0.5) @ key.to(lse.dtype).mT
    if bias is not None:
        # Not bias + scores alone: a NaN in the score of a forbidden pair must not spread.
        scores = torch.where(bias == NEGATIVE_INFINITY, NEGATIVE_INFINITY, scores + bias)
    if is_causal:
        behind = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        scores = scores.masked_fill(behind, NEGATIVE_INFINITY)
    exponent = scores - lse.masked_fill(lse == NEGATIVE_INFINITY, float("inf")).unsqueeze(-1)
    if gate is not None:
        # The cut of the gradient of closed pairs, as in `attention`.
        exponent = torch.where(gate == 0, exponent.clamp(max=LARGEST_EXPONENT), exponent)
    found: Tensor = exponent.exp() if gate is None else gate * exponent.exp()
    return found


def _kept(query: Tensor, keys: int, dropout_p: float, seed: Tensor) -> Tensor:
    """Return which weights of a dense call dropout keeps, bool [..., H, Sq, Sk]."""
    batch, heads, queries = query.shape[:-3], query.shape[-3], query.shape[-2]
    head, row, column = (torch.arange(n, device=query.device) for n in (heads, queries, keys))
    sequence = torch.arange(batch.numel(), device=query.device).view(*batch, 1, 1, 1)
    return keep_mask(seed, 0, sequence, head.view(-1, 1, 1), row.unsqueeze(1), column, dropout_p)
