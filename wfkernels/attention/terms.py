"""Bias and gate as the reference sees them: what they add to the scores of a block, and their gradient."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from wfkernels.attention.blocks import Block
from wfkernels.attention.bucket import BucketTable, pair_index


class Term(ABC):
    """A bias, or the logarithm of a gate."""

    @abstractmethod
    def values(self, block: Block) -> Tensor:
        """Return the entries of a block, broadcastable against [batch, H, Sq, Sk], in the precision of the sums."""

    @abstractmethod
    def accumulate(self, block: Block, pairs: Tensor) -> None:
        """Add a block's gradients [batch, H, Sq, Sk], one per pair, to the gradient of the entries."""

    @abstractmethod
    def gradient(self) -> Tensor:
        """Return the gradient, of the shape and dtype of the tensor that was given."""


def make_term(given: Tensor | BucketTable, precision: torch.dtype, log: bool) -> Term:
    """Return the term of a bias, or with `log` of a gate, whose entries are computed in `precision`."""
    return Bucketed(given, precision, log) if isinstance(given, BucketTable) else Dense(given, precision, log)


class Dense(Term):
    """One entry per pair: broadcast against [..., H, Sq, Sk], or [H|1, M, M] in a ragged call."""

    def __init__(self, tensor: Tensor, precision: torch.dtype, log: bool) -> None:
        self.dtype = tensor.dtype
        entries = tensor.to(precision)
        self.entries = entries.log() if log else entries
        self.sums: Tensor | None = None

    def values(self, block: Block) -> Tensor:
        return block.corner(self.entries)

    def accumulate(self, block: Block, pairs: Tensor) -> None:
        corner = block.corner(self._sums())
        corner += pairs.sum_to_size(corner.shape)

    def gradient(self) -> Tensor:
        return self._sums().to(self.dtype)

    def _sums(self) -> Tensor:
        if self.sums is None:  # the forward needs none
            self.sums = self.entries.new_zeros(self.entries.shape)
        return self.sums


class Bucketed(Term):
    """One entry per bucket; see BucketTable. Its gradient is summed in float64: one bucket may hold every pair."""

    def __init__(self, bucket: BucketTable, precision: torch.dtype, log: bool) -> None:
        self.bucket = bucket
        entries = bucket.table.to(precision).flatten(1)  # [H|1, G * G * 2|1 * E]
        self.entries = entries.log() if log else entries
        self.sums = torch.zeros(entries.shape, dtype=torch.float64, device=entries.device)
        self.latest: tuple[Block, Tensor] | None = None

    def values(self, block: Block) -> Tensor:
        index = self._index(block)
        values = self.entries.index_select(1, index.flatten()).view(-1, *index.shape).movedim(0, -3)
        # Bias 0 and the logarithm of gate 1 are the same number.
        return values.masked_fill(block.diagonal, 0.0) if self.bucket.diagonal_open else values

    def accumulate(self, block: Block, pairs: Tensor) -> None:
        index = self._index(block)
        heads = self.sums.shape[0]
        pairs = pairs.sum_to_size((*index.shape[:-2], heads, *index.shape[-2:]))
        if self.bucket.diagonal_open:
            pairs = pairs.masked_fill(block.diagonal, 0.0)
        pairs = pairs.movedim(-3, 0).reshape(heads, -1).double()
        entry = index.reshape(1, -1).expand(heads, -1)
        # Both add in a fixed order: scatter_add_ on the CPU walks along a row, index_put_ on a GPU sorts first.
        if pairs.is_cuda:
            head = torch.arange(heads, device=pairs.device).unsqueeze(1)
            self.sums.index_put_((head, entry), pairs, accumulate=True)
        else:
            self.sums.scatter_add_(1, entry, pairs)

    def gradient(self) -> Tensor:
        return self.sums.view(self.bucket.table.shape).to(self.bucket.table.dtype)

    def _index(self, block: Block) -> Tensor:
        """Return the place of every pair in the flattened table, [..., Sq, Sk]; values and accumulate share it."""
        if self.latest is None or self.latest[0] is not block:
            table, lookup, *tokens, diagonal_open = self.bucket
            group, segment, position = (block.per_token(integers) for integers in tokens)
            here = BucketTable(table, lookup, group, segment, position, diagonal_open)
            self.latest = block, pair_index(here, block.rows, block.columns)
        return self.latest[1]
