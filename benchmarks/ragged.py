"""Ragged attention as WeightFormer has it: a sequence per layer of a student, one small gate table for all pairs."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from benchmarks import peers, shapes
from benchmarks.case import FULL, Case, Contender, Draw, Problem, Run, Setting, Target, attention_flop, ours
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
) -> Case:
    """Return the attention of one block over all sequences of a layout; d = width."""
    build = partial(problem, setting, heads=heads, width=width, compile=compile)
    fewer = shapes.reduced(layout.layout, 16, 1).tokens(layout.teachers, layout.cross)
    return Case(
        f"{name}, d={width}, H={heads}",
        partial(build, layout),
        attention_flop(pairs(layout.lengths), width),
        modes=modes,
        judged=(f"{fewer.total} tokens instead of {layout.total}", partial(build, fewer)),
        targets=targets,
    )


def problem(setting: Setting, layout: TokenLayout, heads: int, width: int, compile: bool) -> Problem:
    draw = Draw(setting.device)
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
    found = ours(setting, run) | {"eager": _loop(sequence, layout, indices)}
    if compile:
        found["compile"] = _loop(peers.compiled(sequence), layout, indices)
    return Problem((query, key, value, table), (grad,), partial(run, impl="reference"), found)


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
