"""Calls of `attention` to test, named ones and random ones."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from wfkernels import BucketTable
from wfkernels.attention.arguments import Arguments


@dataclass(frozen=True)
class Case:
    """One kind of call. `lead` None means ragged; then `queries` and `keys` hold a length per sequence, else one each.

    bias, gate: None, "full", "table" (positions only), "rich" (groups, segments, positions, diagonal open), or the
    shape of a dense tensor. closed: share of the gate's entries that are 0; forbidden: of the bias's that are -inf.
    """

    lead: tuple[int, ...] | None = ()
    queries: tuple[int, ...] = (5,)
    keys: tuple[int, ...] | None = None
    heads: int = 2
    key_heads: int = 2
    width: int = 4
    value_width: int = 4
    bias: str | tuple[int, ...] | None = None
    gate: str | tuple[int, ...] | None = None
    closed: float = 0.0
    forbidden: float = 0.0
    start: tuple[int, ...] | None = None
    is_causal: bool = False
    scale: float | None = None
    dropout_p: float = 0.0
    index_dtype: torch.dtype = torch.int64


@dataclass
class Call:
    """The tensors of a case. `options` are the keyword arguments of `attention` besides bias and gate."""

    query: Tensor
    key: Tensor
    value: Tensor
    bias: Tensor | BucketTable | None
    gate: Tensor | BucketTable | None
    options: dict[str, Any] = field(default_factory=dict)

    def leaves(self) -> dict[str, Tensor]:
        """Every float tensor by name."""
        found = {"query": self.query, "key": self.key, "value": self.value}
        for name, term in (("bias", self.bias), ("gate", self.gate)):
            if term is not None:
                found[name] = term.table if isinstance(term, BucketTable) else term
        return found

    def with_leaves(self, leaves: dict[str, Tensor]) -> Call:
        """This call with other float tensors."""
        bias, gate = (
            term._replace(table=leaves[name]) if isinstance(term, BucketTable) else leaves.get(name)
            for name, term in (("bias", self.bias), ("gate", self.gate))
        )
        return Call(leaves["query"], leaves["key"], leaves["value"], bias, gate, self.options)

    def to(self, dtype: torch.dtype, requires_grad: bool = True) -> Call:
        """This call with fresh leaves in another dtype."""
        return self.with_leaves(
            {n: t.detach().to(dtype).requires_grad_(requires_grad) for n, t in self.leaves().items()}
        )

    def run(self, function: Any, **more: Any) -> Any:
        return function(self.query, self.key, self.value, bias=self.bias, gate=self.gate, **self.options, **more)

    def arguments(self) -> tuple[Any, ...]:
        """The positional arguments of the library op."""
        longest = 0
        if "offsets" in self.options:
            longest = max(1, self.query.shape[0], self.key.shape[0])
        arguments = Arguments(self.bias, self.gate, **{"max_length": longest, **self.options})
        return self.query, self.key, self.value, *arguments.flatten()


def build(case: Case, seed: int = 0, dtype: torch.dtype = torch.float64) -> Call:
    """Random tensors for a case, all requiring grad."""
    g = torch.Generator().manual_seed(seed)
    keys = case.queries if case.keys is None else case.keys
    options: dict[str, Any] = {}
    if case.lead is None:
        shapes = [(sum(n), h, w) for n, h, w in _heads(case, keys)]
        options["offsets"] = _offsets(case.queries, case.index_dtype)
        if case.keys is not None:
            options["key_offsets"] = _offsets(keys, case.index_dtype)
    else:
        shapes = [(*case.lead, h, n[0], w) for n, h, w in _heads(case, keys)]
    query, key, value = (torch.randn(shape, generator=g, dtype=torch.float64) for shape in shapes)
    if case.start is not None:
        options["query_start"] = torch.tensor(case.start, dtype=case.index_dtype)
    if case.dropout_p:
        options |= {"dropout_p": case.dropout_p, "seed": torch.tensor([-(2**61) + 12345 + seed])}
    if case.is_causal:
        options["is_causal"] = True
    if case.scale is not None:
        options["scale"] = case.scale
    bias = _term(case, case.bias, keys, g)
    gate = _term(case, case.gate, keys, g)
    if bias is not None:
        bias = _mapped(bias, lambda x: _sprinkled(x * 2 - 1, case.forbidden, -torch.inf, g))
    if gate is not None:
        gate = _mapped(gate, lambda x: _sprinkled(x, case.closed, 0.0, g))
    return Call(query, key, value, bias, gate, options).to(dtype)


def _heads(case: Case, keys: tuple[int, ...]) -> list[tuple[tuple[int, ...], int, int]]:
    return [
        (case.queries, case.heads, case.width),
        (keys, case.key_heads, case.width),
        (keys, case.key_heads, case.value_width),
    ]


def _offsets(lengths: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.tensor([0, *lengths], dtype=dtype).cumsum(0, dtype=dtype)


def _mapped(term: Tensor | BucketTable, function: Any) -> Tensor | BucketTable:
    return term._replace(table=function(term.table)) if isinstance(term, BucketTable) else function(term)


def _sprinkled(x: Tensor, share: float, value: float, g: torch.Generator) -> Tensor:
    return x.masked_fill(torch.rand(x.shape, generator=g) < share, value)


def _term(
    case: Case, kind: str | tuple[int, ...] | None, keys: tuple[int, ...], g: torch.Generator
) -> Tensor | BucketTable | None:
    """A term with entries in [0, 1)."""
    if kind is None:
        return None
    starts = case.start or (0,)
    longest = max((*keys, *(start + n for start in starts for n in case.queries)))
    if isinstance(kind, tuple) or kind == "full":
        shape: tuple[int, ...] = (case.heads, longest, longest)
        if case.lead is not None:
            shape = (*case.lead, case.heads, case.queries[0], keys[0])
        return torch.rand(shape if kind == "full" else kind, generator=g, dtype=torch.float64)
    if kind == "table":
        return BucketTable(torch.rand(1, 1, 1, 1, 4, generator=g, dtype=torch.float64), torch.tensor([3, 0, 0, 1, 2]))
    tokens = longest if case.lead is not None else sum(keys)
    integers = [torch.randint(high, (tokens,), generator=g) for high in (2, 3, 9)]
    table = torch.rand(case.heads, 2, 2, 2, 3, generator=g, dtype=torch.float64)
    return BucketTable(table, torch.tensor([2, 1, 0, 0, 1], dtype=torch.int32), *integers, diagonal_open=True)


DENSE = Case(lead=(2,), queries=(5,), keys=(7,), heads=4, key_heads=2, width=3, value_width=5)
RAGGED = Case(lead=None, queries=(3, 3, 0, 1, 6, 6), heads=4, key_heads=2, width=3, value_width=5)
CROSS = replace(RAGGED, keys=(4, 4, 2, 0, 7, 7))
PRUNED = replace(RAGGED, queries=(2, 2, 0, 1, 3, 4), keys=(4, 4, 2, 1, 7, 7), start=(1, 2, 0, 0, 2, 2))

CASES: dict[str, Case] = {
    "dense": DENSE,
    "dense no batch": replace(DENSE, lead=()),
    "dense many leading dimensions": replace(DENSE, lead=(2, 1, 3), scale=0.7),
    "dense causal": replace(DENSE, is_causal=True),
    "dense causal, more queries than keys": replace(DENSE, queries=(7,), keys=(5,), is_causal=True),
    "dense bias": replace(DENSE, bias="full", forbidden=0.3),
    "dense bias of one head": replace(DENSE, bias=(1, 5, 7)),
    "dense bias per key": replace(DENSE, bias=(7,), is_causal=True),
    "dense bias per query": replace(DENSE, bias=(2, 1, 5, 1)),
    "dense bias, one number": replace(DENSE, bias=()),
    "evoformer": replace(DENSE, lead=(2, 3), keys=None, bias=(2, 1, 4, 5, 5)),
    "dense gate": replace(DENSE, gate="full", closed=0.3),
    "dense gate of one batch": replace(DENSE, gate=(4, 1, 7), closed=0.3),
    "dense bias and gate": replace(DENSE, bias=(5, 7), gate="full", forbidden=0.2, closed=0.3, is_causal=True),
    "dense table bias": replace(DENSE, bias="table"),
    "dense table gate": replace(DENSE, gate="table"),
    "dense rich tables": replace(DENSE, queries=(7,), keys=(5,), bias="rich", gate="rich", closed=0.3, forbidden=0.2),
    "dense rows from 2 on": replace(DENSE, start=(2,), bias="rich", is_causal=True, dropout_p=0.2),
    "dense rows per batch": replace(DENSE, start=(2, 1), gate="rich", bias="full", is_causal=True),
    "dense dropout": replace(DENSE, lead=(2, 2), dropout_p=0.4, gate=(5, 7), closed=0.2),
    "ragged": RAGGED,
    "ragged causal": replace(RAGGED, is_causal=True, index_dtype=torch.int32),
    "ragged bias": replace(RAGGED, bias="full", forbidden=0.3),
    "ragged gate of one head": replace(RAGGED, gate=(1, 8, 9), closed=0.3),
    "ragged bias and gate": replace(CROSS, bias=(1, 7, 7), gate="full", forbidden=0.2, closed=0.2, is_causal=True),
    "ragged tables": replace(RAGGED, bias="table", gate="rich", closed=0.3),
    "ragged table and dense": replace(RAGGED, bias="rich", gate="full", closed=0.3, forbidden=0.2),
    "ragged keys of their own": replace(CROSS, gate="table"),
    "ragged pruned": replace(PRUNED, bias="full", is_causal=True, index_dtype=torch.int32),
    "ragged pruned table": replace(PRUNED, gate="rich", closed=0.2, dropout_p=0.3),
    "ragged dropout": replace(RAGGED, dropout_p=0.3, bias="table"),
    "one sequence": replace(RAGGED, queries=(9,), gate="rich", closed=0.3),
    "only empty sequences": replace(RAGGED, queries=(0, 0)),
    "no key at all": replace(RAGGED, queries=(2, 3), keys=(0, 0), gate="full"),
}


def draw(seed: int) -> Case:
    """A random case."""
    pick = random.Random(seed)
    key_heads = pick.choice((1, 2, 3))
    ragged, pruned, own_keys = pick.random() < 0.6, pick.random() < 0.3, pick.random() < 0.4
    sizes = (0, 1, 2, 3, 8, 17) if ragged else (1, 3, 8, 17)
    queries = tuple(pick.choice(sizes) for _ in range(pick.choice((1, 2, 5)) if ragged else 1))
    if pick.random() < 0.5:
        queries = tuple(sorted(queries))
    keys = tuple(pick.choice(sizes) for _ in queries) if own_keys else None
    start = None
    lead = None if ragged else pick.choice(((), (3,), (2, 2)))
    if pruned:
        start = tuple(pick.choice((0, 1, 4)) for _ in range(len(queries) if ragged else math.prod(lead or ())))
        keys = tuple(n + pick.choice((4, 7)) for n in queries)
    kinds: list[str | None] = [None, "full", "table", "rich"]
    if ragged and keys is not None and not pruned:
        kinds.remove("rich")  # it needs a token for the row of every query
    return Case(
        lead=lead,
        queries=queries,
        keys=keys,
        heads=key_heads * pick.choice((1, 2)),
        key_heads=key_heads,
        width=pick.choice((1, 3, 16)),
        value_width=pick.choice((1, 5, 16)),
        bias=pick.choice(kinds),
        gate=pick.choice(kinds),
        closed=pick.choice((0.0, 0.3, 0.9)),
        forbidden=pick.choice((0.0, 0.3, 0.9)),
        start=start,
        is_causal=pick.random() < 0.4,
        scale=pick.choice((None, 0.5)),
        dropout_p=pick.choice((0.0, 0.0, 0.4)),
        index_dtype=pick.choice((torch.int32, torch.int64)),
    )
