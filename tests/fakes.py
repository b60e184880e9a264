"""Implementations that do what the reference does, and then something to the results: kernels with a fault."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from wfkernels import dispatch, judge
from wfkernels.dispatch import Implementation, always

Change = Callable[[list[Tensor], tuple[Any, ...]], None]


def off(result: int, by: float = 1e-2) -> Change:
    """Add a share of a result's largest entry to its first finite entry."""

    def change(results: list[Tensor], args: tuple[Any, ...]) -> None:
        x = results[result]
        finite = x.isfinite().flatten().nonzero()
        if len(finite):
            x.view(-1)[finite[0, 0]] += by * x[x.isfinite()].abs().max()

    return change


def register(
    monkeypatch: pytest.MonkeyPatch,
    op: str,
    change: Change | None = None,
    why_not: Callable[..., str | None] = always,
) -> list[int]:
    """Register "cpp" in front of `op`'s other implementations. The list returned counts its runs."""
    monkeypatch.setattr(dispatch, "_registry", dict(dispatch._registry))
    others = [i for i in dispatch.implementations(op) if i.name != "cpp"]
    runs: list[int] = []

    def run(*args: Any) -> Any:
        runs.append(1)
        returned = others[-1].run(*args)
        results = judge.flat(returned)
        if change is not None:
            change(results, args)
        return results[0] if isinstance(returned, Tensor) else type(returned)(results)

    dispatch.register(op, Implementation("cpp", run, why_not), *others, contract=dispatch.contract(op))
    return runs


def reordered_attention(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, *rest: Any) -> Any:
    """An honest kernel for dense calls without a gate: keys in chunks of 8, softmax on the way, in float32.

    Milakov, Gimelshein, "Online normalizer calculation for softmax", arXiv 1805.02867.
    """
    dtype = torch.float64 if query.dtype == torch.float64 else torch.float32
    q, k, v = (x.to(dtype) for x in (query, key, value))
    heads = query.shape[-3] // key.shape[-3]
    k, v = (x.repeat_interleave(heads, -3) for x in (k, v))
    largest = q.new_full(q.shape[:-1], -torch.inf)
    total, out = torch.zeros_like(largest), q.new_zeros((*q.shape[:-1], v.shape[-1]))
    full = None if bias is None else bias.to(dtype).broadcast_to((*q.shape[:-1], k.shape[-2]))
    for first in reversed(range(0, k.shape[-2], 8)):
        part = slice(first, first + 8)
        scores = (q @ k[..., part, :].mT) * q.shape[-1] ** -0.5
        if full is not None:
            scores = scores + full[..., part]
        highest = torch.maximum(largest, scores.amax(-1))
        weights = (scores - highest[..., None]).exp()
        shrink = (largest - highest).exp()
        total = total * shrink + weights.sum(-1)
        out = out * shrink[..., None] + weights @ v[..., part, :]
        largest = highest
    return (out / total[..., None]).to(query.dtype), largest + total.log()
