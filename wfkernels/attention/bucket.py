"""Bucketed bias or gate: a small table instead of one entry per pair of tokens."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class BucketTable(NamedTuple):
    """A bias or gate whose entries are shared by all pairs of tokens that look alike.

    entry(h, i, j) = table[h, group[i], group[j], same, lookup[clamp(position[i] - position[j], -R, R) + R]],
    same = 1 where segment[i] == segment[j], else 0. Gradients reach `table` only; no S x S tensor is ever an argument.

    Attributes:
        table: [H or 1, G, G, 2 or 1, E], floating; 2 exactly where `segment` is given.
        lookup: [2R + 1], integer in [0, E): the bucket of every signed difference of positions.
        group: integer in [0, G), one per token; None means that there is one group (G = 1).
        segment: integer, one per token; None means that all tokens share one segment.
        position: integer, one per token; None means 0, 1, 2, ... in every sequence.
        diagonal_open: a token always sees itself: the pair (i, i) has bias 0 or gate 1 and gives no gradient.

    "Per token" is per row of the key side: [total_k] in a ragged call, [S] in a dense one (shared by the batch;
    S = max(Sq, Sk), or at least Sk with `query_start`). Query i of a sequence is its row query_start + i.

    T5 (Raffel et al., 2020) is a `lookup` alone: lookup[d + R] = bucket of key position minus query position = -d, with
    R the distance from which on all share the last bucket. The 2-D index of BEiT and Swin over a window of width W is
    position = y * (2W - 1) + x with lookup = 0, 1, 2, ...; a class token is a second group.
    """

    table: Tensor
    lookup: Tensor
    group: Tensor | None = None
    segment: Tensor | None = None
    position: Tensor | None = None
    diagonal_open: bool = False


def pair_index(
    bucket: BucketTable,  # with per-token integers [..., S]
    rows: Tensor,  # [..., Sq], int64
    columns: Tensor,  # [Sk], int64
) -> Tensor:
    """Return for every pair its place in the flattened table [G * G * 2|1 * E]: int64 [..., Sq, Sk]."""
    _, groups, _, segments, entries = bucket.table.shape
    reach = bucket.lookup.numel() // 2
    place = torch.zeros((), dtype=torch.int64, device=columns.device)
    if bucket.group is not None:
        query, key = _ends(bucket.group, rows, columns)
        place = query * groups + key
    if bucket.segment is not None:
        query, key = _ends(bucket.segment, rows, columns)
        place = place * segments + (query == key)
    if bucket.position is None:
        query, key = rows.unsqueeze(-1), columns
    else:
        query, key = _ends(bucket.position, rows, columns)
    difference = (query - key).clamp(-reach, reach) + reach
    found = bucket.lookup.long().index_select(0, difference.flatten()).view(difference.shape)
    return place * entries + found


def _ends(tokens: Tensor, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """Return the integers of the queries [..., Sq, 1] and of the keys [..., 1, Sk]."""
    tokens = tokens.long()
    return tokens[..., rows].unsqueeze(-1), tokens[..., : columns.numel()].unsqueeze(-2)
