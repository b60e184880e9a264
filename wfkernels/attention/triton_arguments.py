"""What the Triton kernels of attention are given: tensors with their strides, in the order of the mathematics.

All strides count elements. A leading dimension that was broadcast has stride 0; nothing is ever expanded in memory.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from wfkernels.attention.arguments import Arguments
from wfkernels.attention.bucket import BucketTable


class Tokens(NamedTuple):
    """A tensor over tokens whose last dimension is dense."""

    data: Tensor  # [..., H, S, X] or [total, H, X]
    batch: int
    head: int
    token: int


class DenseTerm(NamedTuple):
    """A bias or gate with an entry per pair."""

    data: Tensor
    places: (
        Tensor | None
    )  # [N * H] int64: where the entries of a pair of batch and head begin; None: the strides say it
    batch: int
    head: int
    row: int
    column: int


class TableTerm(NamedTuple):
    """A bias or gate of buckets."""

    data: Tensor  # [H|1, cells, 2R + 1] float32: the entry of every signed difference of positions
    lookup: Tensor  # [2R + 1]
    group: Tensor | None  # per token
    segment: Tensor | None
    position: Tensor | None
    head: int  # stride of data, 0 for one table of all heads
    groups: int
    segments: int  # 2 with `segment`, else 1
    reach: int  # R
    entries: int


class Sequences(NamedTuple):
    """Where sequences begin and end."""

    offsets: Tensor | None  # [N + 1]
    key_offsets: Tensor | None  # [N + 1]
    query_start: Tensor | None  # [N], or one entry for all
    start_stride: int


class Form(NamedTuple):
    """What a kernel is compiled for; no length is in it."""

    bias: str  # none, dense or table
    gate: str
    bias_diagonal_open: bool
    gate_diagonal_open: bool
    is_ragged: bool
    is_causal: bool
    has_dropout: bool
    precision: str  # of float32 products: ieee or tf32

    @property
    def is_heavy(self) -> bool:
        """Do integers, of dropout or of a table, take registers from the tile?"""
        return self.has_dropout or "table" in (self.bias, self.gate)


@dataclass(frozen=True)
class Problem:
    """A call in the words of the kernels."""

    query: Tokens
    key: Tokens
    value: Tokens
    bias: DenseTerm | TableTerm | None
    gate: DenseTerm | TableTerm | None
    sequences: Sequences
    form: Form
    count: int  # N: sequences, or the leading dimensions flattened
    queries: int  # Sq, or all tokens of a ragged call
    keys: int
    heads: int
    key_heads: int
    width: int
    value_width: int
    scale: float
    seed: Tensor | None
    site: int
    threshold: int  # dropout keeps words from here on
    kept: float  # 1 / (1 - p)

    @property
    def device(self) -> torch.device:
        return self.query.data.device

    @property
    def bits(self) -> int:
        """Of an element that is multiplied."""
        return 8 * self.query.data.element_size()

    def scalars(self) -> dict[str, Any]:
        """Return the arguments that every kernel takes under these names."""
        return {
            "bias": self.bias,
            "gate": self.gate,
            "sequences": self.sequences,
            "count": self.count,
            "queries": self.queries,
            "keys": self.keys,
            "heads": self.heads,
            "sharing": self.heads // self.key_heads,
            "width": self.width,
            "value_width": self.value_width,
            "scale": self.scale,
            "seed": self.seed,
            "site": self.site,
            "threshold": self.threshold,
            "kept": self.kept,
            "FORM": self.form,
        }


def problem(query: Tensor, key: Tensor, value: Tensor, arguments: Arguments, precision: str) -> Problem:
    """Return the call in the words of the kernels. Queries and keys are not empty."""
    ragged = arguments.offsets is not None
    head, token = (1, 0) if ragged else (-3, -2)
    start = arguments.query_start
    offsets = arguments.offsets
    pairs = (*query.shape[:-3], query.shape[head])
    bias, gate = (
        _term(t, pairs, query.shape[token], key.shape[token], ragged) for t in (arguments.bias, arguments.gate)
    )
    return Problem(
        query=tokens(query, ragged),
        key=tokens(key, ragged),
        value=tokens(value, ragged),
        bias=bias,
        gate=gate,
        sequences=Sequences(
            offsets,
            offsets if arguments.key_offsets is None else arguments.key_offsets,
            start,
            int(start is not None and start.numel() > 1),
        ),
        form=Form(
            bias=_kind(bias),
            gate=_kind(gate),
            bias_diagonal_open=isinstance(arguments.bias, BucketTable) and arguments.bias.diagonal_open,
            gate_diagonal_open=isinstance(arguments.gate, BucketTable) and arguments.gate.diagonal_open,
            is_ragged=ragged,
            is_causal=arguments.is_causal,
            has_dropout=arguments.dropout_p > 0,
            precision=precision,
        ),
        count=math.prod(query.shape[:-3]) if offsets is None else offsets.numel() - 1,
        queries=query.shape[token],
        keys=key.shape[token],
        heads=query.shape[head],
        key_heads=key.shape[head],
        width=query.shape[-1],
        value_width=value.shape[-1],
        scale=query.shape[-1] ** -0.5 if arguments.scale is None else arguments.scale,
        seed=arguments.seed if arguments.dropout_p > 0 else None,
        site=arguments.site,
        # A word: only a probability within 2^-33 of 1 is moved by that.
        threshold=min(round(arguments.dropout_p * 2**32), 2**32 - 1),
        kept=1 / (1 - arguments.dropout_p),
    )


def _kind(term: DenseTerm | TableTerm | None) -> str:
    return "none" if term is None else "dense" if isinstance(term, DenseTerm) else "table"


def tokens(x: Tensor, ragged: bool) -> Tokens:
    """Return a tensor over tokens; it is copied only where its last or its leading dimensions do not lie evenly."""
    if x.stride(-1) != 1:
        x = x.contiguous()
    if ragged:
        return Tokens(x, 0, x.stride(1), x.stride(0))
    x = x.reshape(-1, *x.shape[-3:])
    return Tokens(x, x.stride(0), x.stride(1), x.stride(2))


def statistic(x: Tensor, ragged: bool) -> Tokens:
    """Return a tensor with one number per query and head, [..., H, Sq] or [total, H]."""
    return tokens(x.contiguous().unsqueeze(-1), ragged)


def _term(
    given: Tensor | BucketTable | None, pairs: Sequence[int], rows: int, columns: int, ragged: bool
) -> DenseTerm | TableTerm | None:
    """`pairs` are the leading dimensions and the heads of the query."""
    if given is None:
        return None
    if isinstance(given, BucketTable):
        return _table(given)
    if ragged:
        head = given.stride(0) if given.shape[0] > 1 else 0
        return DenseTerm(given, None, 0, head, given.stride(1), given.stride(2))
    *outer, head, row, column = given.expand(*pairs, rows, columns).stride()
    batch = _merged(pairs[:-1], outer)
    places = None if batch is not None else _places(pairs, (*outer, head), given.device)
    return DenseTerm(given, places, batch or 0, head, row, column)


def _merged(sizes: Sequence[int], strides: Sequence[int]) -> int | None:
    """Return the one stride of all these dimensions flattened, None where there is none."""
    merged, size = 0, 1
    for n, stride in zip(reversed(sizes), reversed(strides), strict=True):
        if n == 1:
            continue
        if size == 1:
            merged = stride
        elif stride != merged * size:
            return None
        size *= n
    return merged


def _places(sizes: Sequence[int], strides: Sequence[int], device: torch.device) -> Tensor:
    places = torch.zeros((), dtype=torch.int64, device=device)
    for n, stride in zip(sizes, strides, strict=True):
        places = places.unsqueeze(-1) + torch.arange(n, device=device) * stride
    return places.flatten()


def _table(bucket: BucketTable) -> TableTerm:
    heads, groups, _, segments, entries = bucket.table.shape
    # By difference, so that neighbouring keys find neighbouring entries and a kernel gathers once, not twice.
    data = bucket.table.float().flatten(1, 3).index_select(-1, bucket.lookup.long())
    lookup = bucket.lookup.contiguous()
    group, segment, position = (
        None if x is None else x.contiguous() for x in (bucket.group, bucket.segment, bucket.position)
    )
    head = data.stride(0) if heads > 1 else 0
    return TableTerm(data, lookup, group, segment, position, head, groups, segments, lookup.numel() // 2, entries)
