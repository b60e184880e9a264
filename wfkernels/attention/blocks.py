"""Blocks: the sequences that the reference computes side by side.

A dense call is one block. A ragged call is cut into runs of neighbouring sequences with equal lengths, which is what a
batch of like groups looks like, so that small sequences do not cost one Python loop each.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

# Pairs (times heads) in a ragged block of several sequences: its temporaries stay in a cache of a few MB.
BLOCK_PAIRS = 1 << 20


@dataclass(frozen=True)
class Block:
    """Sequences of equal lengths Sq, Sk. `batch` is their shape: the leading dimensions, or [n] in a ragged call."""

    batch: tuple[int, ...]
    rows: Tensor  # [Sq] or [batch, Sq], int64: which row of its sequence a query is
    columns: Tensor  # [Sk], int64
    sequence: Tensor  # [batch], int64: number of the sequence, the leading dimensions flattened
    first_query: int | None = None  # first token of a ragged block, None in a dense call
    first_key: int | None = None
    first_row: int = 0  # rows[0] of a ragged block

    @property
    def row_of_pair(self) -> Tensor:
        """`rows` as [..., 1, Sq, 1], to broadcast against [batch, H, Sq, Sk]."""
        return self.rows.unsqueeze(-2).unsqueeze(-1)

    @property
    def diagonal(self) -> Tensor:
        """The pairs of a token with itself, bool [..., 1, Sq, Sk]."""
        return torch.eq(self.row_of_pair, self.columns)

    def queries(self, tokens: Tensor) -> Tensor:
        """Return the view [batch, H, Sq, ...] of a tensor over the query tokens."""
        return tokens if self.first_query is None else self._view(tokens, self.first_query, self.rows.numel())

    def keys(self, tokens: Tensor) -> Tensor:
        """Return the view [batch, Hk, Sk, ...] of a tensor over the key tokens."""
        return tokens if self.first_key is None else self._view(tokens, self.first_key, self.columns.numel())

    def corner(self, table: Tensor) -> Tensor:
        """Return the view of a dense bias or gate that meets this block: all of it, or [H|1, Sq, Sk] of [H|1, M, M]."""
        if self.first_key is None:
            return table
        return table[:, self.first_row :, : self.columns.numel()].narrow(1, 0, self.rows.numel())

    def per_token(self, integers: Tensor | None) -> Tensor | None:
        """Return the integers [S] of a dense call, or a ragged one's as [n, Sk], [1, Sk] where the sequences agree."""
        if integers is None or self.first_key is None:
            return integers
        count, length = self.batch[0], self.columns.numel()
        integers = integers[self.first_key : self.first_key + count * length].view(count, length)
        # Meta tensors hold no values; sequences of equal lengths mostly agree.
        alike = count > 1 and (integers.is_meta or bool((integers == integers[:1]).all()))
        return integers[:1] if alike else integers

    def _view(self, tokens: Tensor, first: int, length: int) -> Tensor:
        tokens = tokens[first : first + self.batch[0] * length]
        return tokens.view(self.batch[0], length, *tokens.shape[1:]).transpose(1, 2)


def dense_blocks(query: Tensor, key: Tensor, query_start: Tensor | None) -> Iterator[Block]:
    """Yield the one block of a dense call, none where there is nothing to compute."""
    batch, device = query.shape[:-3], query.device
    if 0 in batch or query.shape[-2] == 0 or key.shape[-2] == 0:
        return
    rows = torch.arange(query.shape[-2], device=device)
    if query_start is not None:
        rows = rows + query_start.long().view(*(batch if query_start.numel() > 1 else ()), 1)
    sequence = torch.arange(batch.numel(), device=device).view(batch)
    yield Block(batch, rows, torch.arange(key.shape[-2], device=device), sequence)


def ragged_blocks(
    heads: int, offsets: Tensor, key_offsets: Tensor | None, query_start: Tensor | None, device: torch.device
) -> Iterator[Block]:
    """Yield runs of sequences that agree in (Sq, Sk, query_start), without those that have no query or no key."""
    query_starts = offsets.tolist()
    key_starts = query_starts if key_offsets is None else key_offsets.tolist()
    count = len(query_starts) - 1
    row_starts = [0] * count if query_start is None else query_start.tolist()
    lengths = ([end - start for start, end in pairwise(starts)] for starts in (query_starts, key_starts))
    shapes = list(zip(*lengths, row_starts, strict=True))
    first = 0
    while first < count:
        queries, keys, row = shapes[first]
        pairs = heads * queries * keys
        end = first + 1
        while end < count and shapes[end] == shapes[first] and pairs * (end - first + 1) <= BLOCK_PAIRS:
            end += 1
        if pairs:
            yield Block(
                (end - first,),
                torch.arange(row, row + queries, device=device),
                torch.arange(keys, device=device),
                torch.arange(first, end, device=device),
                query_starts[first],
                key_starts[first],
                row,
            )
        first = end
