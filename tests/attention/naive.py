"""Attention written out a second time, sequence by sequence and head by head, with autograd for the gradients."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from wfkernels import BucketTable

MULTIPLIERS, STEPS, WORD = (0xD2511F53, 0xCD9E8D57), (0x9E3779B9, 0xBB67AE85), 0xFFFFFFFF


def philox_word(counter: tuple[int, int, int, int], key: tuple[int, int]) -> int:
    """First word of Philox-4x32-10, in Python's own integers."""
    (a, b, c, d), (k0, k1) = counter, key
    for _ in range(10):
        left, right = MULTIPLIERS[0] * a, MULTIPLIERS[1] * c
        a, b, c, d = (right >> 32) ^ b ^ k0, right & WORD, (left >> 32) ^ d ^ k1, left & WORD
        k0, k1 = (k0 + STEPS[0]) & WORD, (k1 + STEPS[1]) & WORD
    return a


def kept(seed: int, site: int, sequence: int, head: int, rows: list[int], columns: int, p: float) -> Tensor:
    """The dropout mask of one head of one sequence: bool [Sq, Sk]."""
    key = (seed & WORD, ((seed >> 32) + site) & WORD)
    words = [[philox_word((j, i, head, sequence), key) for j in range(columns)] for i in rows]
    return torch.tensor([[word >= round(p * 2**32) for word in line] for line in words]).view(len(rows), columns)


def bucket_matrices(bucket: BucketTable, heads: int, rows: list[int], first: int, columns: int) -> Tensor:
    """A table's entries [heads, Sq, Sk] for the sequence whose tokens start at `first`; forced ones are NaN."""
    group, segment, position = (
        None if tokens is None else tokens[first:].tolist()
        for tokens in (bucket.group, bucket.segment, bucket.position)
    )
    lookup = bucket.lookup.tolist()
    reach = len(lookup) // 2
    places = []
    for i in rows:
        for j in range(columns):
            g = (0, 0) if group is None else (group[i], group[j])
            same = 0 if segment is None else int(segment[i] == segment[j])
            distance = i - j if position is None else position[i] - position[j]
            places.append((*g, same, lookup[max(-reach, min(reach, distance)) + reach]))
    matrices = [
        bucket.table[h if bucket.table.shape[0] > 1 else 0][
            tuple(torch.tensor(places, dtype=torch.int64).view(-1, 4).T)
        ].view(len(rows), columns)
        for h in range(heads)
    ]
    return torch.stack(matrices)


def term_matrices(
    term: Tensor | BucketTable | None,
    neutral: float,
    sequence: int,
    shape: tuple[int, ...],
    rows: list[int],
    first_key: int | None,
    like: Tensor,
) -> Tensor:
    """Bias or gate of one sequence as [H, Sq, Sk]; `shape` is the full one of a dense call."""
    heads, queries, keys = shape[-3:]
    if term is None:
        return torch.full((heads, queries, keys), neutral, dtype=like.dtype)
    if isinstance(term, BucketTable):
        matrices = bucket_matrices(term, heads, rows, first_key or 0, keys)
        if term.diagonal_open:
            own = torch.tensor(rows)[:, None] == torch.arange(keys)
            matrices = torch.where(own, torch.tensor(neutral, dtype=matrices.dtype), matrices)
        return matrices.to(like.dtype)
    if first_key is not None:
        return term[:, rows, :][:, :, :keys].expand(heads, -1, -1).to(like.dtype)
    return term.expand(shape).reshape(-1, heads, queries, keys)[sequence].to(like.dtype)


def one_head(
    query: Tensor,  # [Sq, D]
    key: Tensor,  # [Sk, D]
    value: Tensor,  # [Sk, Dv]
    bias: Tensor,  # [Sq, Sk]
    gate: Tensor,  # [Sq, Sk]
    forbidden: Tensor,  # [Sq, Sk]
    scale: float,
    factor: Tensor | None,  # [Sq, Sk], the dropout
) -> tuple[Tensor, Tensor]:
    """out [Sq, Dv], lse [Sq] by the definition; rows with nothing open are cut off from everything."""
    score = query @ key.T * scale + bias.masked_fill(forbidden, 0.0)
    is_open = ~forbidden & (gate.detach() > 0)
    dead = ~is_open.any(-1, keepdim=True)
    largest = score.detach().masked_fill(~is_open, -torch.inf).max(-1, keepdim=True).values.masked_fill(dead, 0.0)
    weight = (gate * (score - largest).exp()).masked_fill(forbidden | dead, 0.0)
    total = weight.sum(-1, keepdim=True)
    p = weight / total.masked_fill(dead, 1.0)
    lse = (largest + total.masked_fill(dead, 1.0).log()).masked_fill(dead, -torch.inf)
    return (p if factor is None else p * factor) @ value, lse.squeeze(-1)


def naive(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    bias: Tensor | BucketTable | None = None,
    gate: Tensor | BucketTable | None = None,
    offsets: Tensor | None = None,
    key_offsets: Tensor | None = None,
    max_length: int | None = None,
    query_start: Tensor | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    dropout_p: float = 0.0,
    seed: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """(out, lse) of `attention` with the same arguments."""
    if offsets is None:
        sequences = math.prod(query.shape[:-3])
        q, k, v = ([*x.reshape(sequences, *x.shape[-3:])] for x in (query, key, value))
        firsts: list[int | None] = [None] * sequences
    else:
        cuts = offsets.tolist()
        key_cuts = cuts if key_offsets is None else key_offsets.tolist()
        sequences, firsts = len(cuts) - 1, key_cuts[:-1]
        q = [query[a:b].transpose(0, 1) for a, b in zip(cuts, cuts[1:], strict=False)]
        k, v = ([x[a:b].transpose(0, 1) for a, b in zip(key_cuts, key_cuts[1:], strict=False)] for x in (key, value))
    starts = [0] * sequences if query_start is None else query_start.expand(sequences).tolist()
    heads, width = q[0].shape[0], query.shape[-1]
    outs, lses = [], []
    for n in range(sequences):
        queries, keys = q[n].shape[1], k[n].shape[1]
        rows = [starts[n] + i for i in range(queries)]
        shape = (*query.shape[:-1], keys) if offsets is None else (heads, queries, keys)
        b = term_matrices(bias, 0.0, n, shape, rows, firsts[n], query)
        g = term_matrices(gate, 1.0, n, shape, rows, firsts[n], query)
        forbidden = b.detach() == -torch.inf
        if is_causal:
            forbidden = forbidden | (torch.arange(keys) > torch.tensor(rows, dtype=torch.int64)[:, None])
        results = []
        for h in range(heads):
            source = h // (heads // k[n].shape[0])
            factor = None
            if dropout_p:
                factor = kept(int(seed), 0, n, h, rows, keys, dropout_p).to(query.dtype) / (1 - dropout_p)
            if keys == 0:
                results.append((query.new_zeros(queries, value.shape[-1]), query.new_full((queries,), -torch.inf)))
                continue
            scale_ = width**-0.5 if scale is None else scale
            results.append(one_head(q[n][h], k[n][source], v[n][source], b[h], g[h], forbidden[h], scale_, factor))
        outs.append(torch.stack([out for out, _ in results]))
        lses.append(torch.stack([lse for _, lse in results]))
    if offsets is None:
        return torch.stack(outs).view(*query.shape[:-1], -1), torch.stack(lses).view(query.shape[:-1])
    return torch.cat([x.transpose(0, 1) for x in outs]), torch.cat([x.transpose(0, 1) for x in lses])
