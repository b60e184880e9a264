"""Ragged attention as WeightFormer has it: a sequence per layer of a student, one small gate table for all pairs."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks import peers, shapes
from benchmarks.case import (
    FULL,
    Case,
    Contender,
    Draw,
    Problem,
    Run,
    Setting,
    Target,
    attention_executed,
    attention_flop,
    ours,
)
from benchmarks.shapes import pairs
from weightformer.gates import log_buckets
from wfkernels import BucketTable, attention
from wfkernels.attention.bucket import pair_index
from wfkernels.layout import TokenLayout
from wfkernels.predict.ops import build as build_indices
from wfkernels.predict.plan import Indices

BUCKETS = 16  # of weightformer.Config
TEACHERS, CROSS = (2,), 1


def small() -> TokenLayout:
    return shapes.reduced(shapes.vgg11_bn(), 4, 16).tokens(TEACHERS, CROSS)


def vgg11() -> TokenLayout:
    return shapes.vgg11_bn().tokens(TEACHERS, CROSS)


def resnet50() -> TokenLayout:
    return shapes.resnet50().tokens(TEACHERS, CROSS)


def case(
    setting: Setting,
    name: str,
    layout: TokenLayout,
    width: int = 512,
    heads: int = 8,
    modes: Sequence[str] = (FULL,),
    targets: Sequence[Target] = (),
    compile: bool = False,
    dtype: torch.dtype = torch.float32,
) -> Case:
    """Return the attention of one block over all sequences of a layout; d = width."""
    build = partial(problem, setting, heads=heads, width=width, compile=compile, dtype=dtype)
    fewer = shapes.reduced(layout.layout, 16, 1).tokens(layout.teachers, layout.cross)
    return Case(
        f"{name}, d={width}, H={heads}",
        partial(build, layout),
        attention_flop(pairs(layout.lengths), width),
        modes=modes,
        judged=(f"{fewer.total} tokens instead of {layout.total}", partial(build, fewer)),
        targets=targets,
        dtype=dtype,
    )


def problem(
    setting: Setting, layout: TokenLayout, heads: int, width: int, compile: bool, dtype: torch.dtype
) -> Problem:
    draw = Draw(setting.device, dtype)
    size = (layout.total, heads, width // heads)
    query, key, value = (draw.normal(*size) for _ in range(3))
    grad = draw.normal(*size, learn=False)
    rows = layout.layout.rows
    at = Indices(*build_indices(rows, layout.teachers, layout.cross, True, False, setting.device))
    lookup = log_buckets(BUCKETS, max(rows) - 1).to(setting.device)
    table = draw.leaf(draw.uniform(1, 2, 2, 2, 2 * BUCKETS + 1))

    def run(query: Tensor, key: Tensor, value: Tensor, table: Tensor, impl: str) -> Tensor:
        gate = BucketTable(table, lookup, at.group, at.segment, at.position, diagonal_open=True)
        return attention(query, key, value, gate=gate, offsets=at.offsets, max_length=layout.max_length, impl=impl)

    sequence = _sequence()
    indices = _pair_indices(layout, at, lookup)
    executed = attention_executed(pairs(layout.lengths), width, True)
    found = ours(setting, run, executed=executed) | {"eager": _loop(sequence, layout, indices)}
    if compile:
        found["compile"] = _loop(peers.compiled(sequence), layout, indices)
    if setting.gpu:
        found |= _flex(setting, layout, at, lookup)
    return Problem((query, key, value, table), (grad,), partial(run, impl="reference"), found)


def _flex(setting: Setting, layout: TokenLayout, at: Indices, lookup: Tensor) -> dict[str, Contender]:
    """Return FlexAttention over all sequences behind each other, and over a batch padded to the longest.

    Both look the gate up by what they capture, and add its logarithm. FlexAttention names a token by its place among
    all, from which a padded batch has to find the one it copied.
    """
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    device, reach = setting.device, lookup.numel() // 2
    lengths = torch.tensor(layout.lengths, device=device)
    first = torch.tensor(layout.starts[:-1], device=device)
    document = torch.repeat_interleave(torch.arange(len(layout.lengths), device=device), lengths)
    columns = torch.arange(layout.max_length, device=device)
    inside = columns < lengths[:, None]  # [N, S]
    place = (first[:, None] + columns).where(inside, 0)
    wanted = inside.flatten().nonzero()[:, 0]
    group, segment, position = (x.long() for x in (at.group, at.segment, at.position))
    buckets = lookup.long()

    def entry(table: Tensor, i: Tensor, j: Tensor) -> Tensor:
        """The logarithm of the gate between two tokens by their places."""
        same = (segment[i] == segment[j]).long()
        found = table[0, group[i], group[j], same, buckets[(position[i] - position[j]).clamp(-reach, reach) + reach]]
        return torch.where(i == j, torch.zeros_like(found), found.log())

    def packed(query: Tensor, key: Tensor, value: Tensor, table: Tensor) -> Any:
        def score(s: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
            return s + entry(table, i, j)

        return flex_attention(query, key, value, score_mod=score, block_mask=documents)

    def padded(query: Tensor, key: Tensor, value: Tensor, table: Tensor) -> Any:
        def score(s: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
            return s + entry(table, place[b, i], place[b, j])

        return flex_attention(query, key, value, score_mod=score, block_mask=batch)

    total, longest, count = layout.total, layout.max_length, len(layout.lengths)
    # Compiled, or the mask of all pairs would be made first.
    mask = create_block_mask if not setting.cuda else peers.compiled(create_block_mask)
    documents = mask(lambda b, h, i, j: document[i] == document[j], None, None, total, total, device)
    # A row behind the end sees keys as well, or it would have none.
    batch = mask(lambda b, h, i, j: inside[b, j], count, None, longest, longest, device)
    eager = setting.quick and not setting.cuda
    both: list[Run] = [packed, padded]
    behind, beside = (run if eager else peers.compiled(run) for run in both)

    def of_documents(query: Tensor, key: Tensor, value: Tensor, table: Tensor) -> Tensor:
        out: Tensor = behind(*(x.transpose(0, 1)[None] for x in (query, key, value)), table)
        return out[0].transpose(0, 1)

    def of_batch(query: Tensor, key: Tensor, value: Tensor, table: Tensor) -> Tensor:
        out: Tensor = beside(*(x[place].transpose(1, 2) for x in (query, key, value)), table)
        return out.transpose(1, 2).flatten(0, 1)[wanted]

    return {"flex, document mask": Contender(of_documents), "flex, padded": Contender(of_batch)}


def _pair_indices(layout: TokenLayout, at: Indices, lookup: Tensor) -> dict[int, Tensor]:
    """Return for every length the entry of each of its pairs: what a careful user computes once and keeps."""
    found: dict[int, Tensor] = {}
    for start, length in zip(layout.starts, layout.lengths, strict=False):
        if length not in found:
            own = slice(start, start + length)
            tokens = (at.group[own], at.segment[own], at.position[own])
            empty = torch.empty(1, 2, 2, 2, 2 * BUCKETS + 1, device=lookup.device)
            places = torch.arange(length, device=lookup.device)
            found[length] = pair_index(BucketTable(empty, lookup, *tokens), places, places)
    return found


def _sequence() -> Run:
    """Return the attention of one sequence [S, H, D] as plain PyTorch."""

    def sequence(query: Tensor, key: Tensor, value: Tensor, table: Tensor, index: Tensor) -> Tensor:
        query, key, value = (x.transpose(0, 1) for x in (query, key, value))
        scores = query @ key.mT * query.shape[-1] ** -0.5
        gate = table.flatten().index_select(0, index.flatten()).view(index.shape)
        own = torch.eye(index.shape[0], dtype=torch.bool, device=index.device)
        weights = (scores - scores.amax(-1, keepdim=True)).exp() * gate.masked_fill(own, 1.0)
        out: Tensor = weights / weights.sum(-1, keepdim=True) @ value
        return out.transpose(0, 1)

    return sequence


def _loop(sequence: Run, layout: TokenLayout, indices: dict[int, Tensor]) -> Contender:
    """Return the loop over sequences. Its backward runs behind each sequence, or it would need all scores at once."""
    spans = [(slice(s, s + n), indices[n]) for s, n in zip(layout.starts, layout.lengths, strict=False)]

    def run(query: Tensor, key: Tensor, value: Tensor, table: Tensor) -> Tensor:
        return torch.cat([sequence(query[own], key[own], value[own], table, index) for own, index in spans])

    def full(tensors: Sequence[Tensor], grads: Sequence[Tensor]) -> list[Tensor]:
        *whole, table = (t.detach() for t in tensors)
        table.requires_grad_()
        (grad,) = grads
        out = torch.empty_like(grad)
        found = [torch.empty_like(x) for x in whole]
        sums = torch.zeros_like(table)
        for own, index in spans:
            parts = [x[own].requires_grad_() for x in whole]
            result = sequence(*parts, table, index)
            *of_parts, of_table = torch.autograd.grad(result, [*parts, table], grad[own])
            out[own] = result.detach()
            for target, part in zip(found, of_parts, strict=True):
                target[own] = part
            sums += of_table
        return [out, *found, sums]

    return Contender(run, full=full)
