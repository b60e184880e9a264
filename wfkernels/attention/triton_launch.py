"""The Triton implementation of attention on NVIDIA GPUs: when it can run, and its launches.

Nothing here imports triton before a call asks for it, and nothing waits for the device: grids follow from shapes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from wfkernels import gpu
from wfkernels.attention import triton_open_launch as opened
from wfkernels.attention import triton_schedule as work
from wfkernels.attention import triton_sums_launch as sums
from wfkernels.attention.arguments import Arguments
from wfkernels.attention.bucket import BucketTable
from wfkernels.attention.triton_arguments import Problem, Tokens, problem, statistic, tokens
from wfkernels.gpu import Config

WIDEST = 256
# A program that only adds up a row: rows, no columns, 4 warps, 1 stage.
DELTA = Config(32, 0, 0, 4, 1)


def why_not(query: Tensor, key: Tensor, value: Tensor, *rest: Any) -> str | None:
    """Return why the call cannot run in Triton, None where it can."""
    arguments = Arguments.unflatten(rest)
    reason = gpu.why_not(query, key, value, named=arguments.impl == "triton")
    if reason is not None:
        return reason
    widest = max(query.shape[-1], value.shape[-1])
    if widest > WIDEST:
        return f"heads are at most {WIDEST} wide and these are {widest}"
    for term in (arguments.bias, arguments.gate):
        if isinstance(term, BucketTable) and term.table[0, ..., 0].numel() * term.lookup.numel() >= 2**31:
            return "a table by difference of positions would have 2^31 entries or more; give a shorter lookup"
    return None


def why_not_backward(grad_out: Tensor, grad_lse: Tensor | None, needs: Sequence[bool], *inputs: Any) -> str | None:
    """Return why the gradients cannot be computed in Triton, None where they can."""
    query, key, value, _, _, *rest = inputs
    return why_not(query, key, value, *rest)


def _prepare(query: Tensor, key: Tensor, value: Tensor, arguments: Arguments) -> Problem:
    return problem(query, key, value, arguments, gpu.precision())


def forward(query: Tensor, key: Tensor, value: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    """Return out and lse as wfkernels.attention.reference does."""
    arguments = Arguments.unflatten(rest)
    shape = (*query.shape[:-1], value.shape[-1])
    if 0 in (query.numel(), key.numel()):
        return query.new_zeros(shape), query.new_full(shape[:-1], -math.inf, dtype=torch.float32)
    from wfkernels.attention.triton_forward import _attention_forward_kernel

    p = _prepare(query, key, value, arguments)
    ragged = p.form.is_ragged
    out, lse = query.new_empty(shape), query.new_empty(shape[:-1], dtype=torch.float32)

    def step(config: Config) -> None:
        tiles, programs = work.schedule(p, arguments.offsets, p.queries, config.block_m, p.heads)
        gpu.launch(
            _attention_forward_kernel,
            programs,
            config,
            query.device,
            query=p.query,
            key=p.key,
            value=p.value,
            out=tokens(out, ragged),
            lse=statistic(lse, ragged),
            tiles=tiles,
            walk=opened.walk(p, config),
            **p.scalars(),
            **work.blocks(config, p),
        )

    work.tuned("forward", p, step, heavy=p.form.is_heavy)
    return out, lse


def backward(
    grad_out: Tensor,
    grad_lse: Tensor | None,
    needs: Sequence[bool],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    lse: Tensor,
    *rest: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients as wfkernels.attention.reference does; empty where not needed."""
    arguments = Arguments.unflatten(rest)
    given = [query, key, value, *(t.table if isinstance(t, BucketTable) else t for t in arguments[:2])]
    if 0 in (query.numel(), key.numel()):
        zeros = (
            query.new_empty(0) if x is None or not need else x.new_zeros(x.shape)
            for x, need in zip(given, needs, strict=True)
        )
        grad_query, grad_key, grad_value, grad_bias, grad_gate = zeros
        return grad_query, grad_key, grad_value, grad_bias, grad_gate
    p = _prepare(query, key, value, arguments)
    # What all kernels of the backward pass read.
    read = {"query": p.query, "key": p.key, "value": p.value, "grad_out": tokens(grad_out, p.form.is_ragged)}
    read |= _statistics(p, arguments, read["grad_out"], grad_lse, out, lse)
    grad_query, grad_key, grad_value = _of_tokens(p, arguments, needs, (query, key, value), read)
    grads = []
    for name, term, need in zip(("bias", "gate"), arguments[:2], needs[3:], strict=True):
        if term is None or not need:
            grads.append(query.new_empty(0))
        elif isinstance(term, BucketTable):
            grads.append(sums.of_table(p, arguments, term, name == "gate", read))
        else:
            grads.append(sums.of_dense(p, arguments, term, query, name == "gate", read))
    return grad_query, grad_key, grad_value, grads[0], grads[1]


def _statistics(
    p: Problem, arguments: Arguments, grad_out: Tokens, grad_lse: Tensor | None, out: Tensor, lse: Tensor
) -> dict[str, Tokens]:
    """Return norm and delta of every query and head."""
    from wfkernels.attention.triton_backward import _attention_backward_delta_kernel

    ragged = p.form.is_ragged
    norm, delta = (statistic(torch.empty_like(lse, memory_format=torch.contiguous_format), ragged) for _ in range(2))
    tiles, programs = work.schedule(p, arguments.offsets, p.queries, DELTA.block_m, p.heads)
    gpu.launch(
        _attention_backward_delta_kernel,
        programs,
        DELTA,
        p.device,
        grad_out=grad_out,
        out=tokens(out, ragged),
        lse=statistic(lse, ragged),
        grad_lse=None if grad_lse is None else statistic(grad_lse.to(lse.dtype), ragged),
        norm=norm,
        delta=delta,
        sequences=p.sequences,
        tiles=tiles,
        count=p.count,
        queries=p.queries,
        keys=p.keys,
        heads=p.heads,
        value_width=p.value_width,
        FORM=p.form,
        BLOCK_M=DELTA.block_m,
        BLOCK_V=work.blocks(DELTA, p)["BLOCK_V"],
    )
    return {"norm": norm, "delta": delta}


def _of_tokens(
    p: Problem, arguments: Arguments, needs: Sequence[bool], given: tuple[Tensor, Tensor, Tensor], read: dict[str, Any]
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of query, key and value."""
    from wfkernels.attention import triton_backward as kernels

    # Keys and values come from one kernel: both are written where one is needed.
    wanted = (needs[0], needs[1] or needs[2], needs[1] or needs[2])
    grads = [x.new_empty(x.shape if want else 0) for x, want in zip(given, wanted, strict=True)]

    def of_queries(config: Config) -> None:
        tiles, programs = work.schedule(p, arguments.offsets, p.queries, config.block_m, p.heads)
        own = {"grad_query": tokens(grads[0], p.form.is_ragged), "walk": opened.walk(p, config)}
        launch(kernels._attention_backward_queries_kernel, programs, config, tiles, own)

    def of_keys(config: Config) -> None:
        tiles, programs = work.schedule(p, p.sequences.key_offsets, p.keys, config.block_n, p.key_heads)
        grad_key, grad_value = (tokens(x, p.form.is_ragged) for x in grads[1:])
        own = {"grad_key": grad_key, "grad_value": grad_value, "walk": opened.walk(p, config, of_keys=True)}
        launch(kernels._attention_backward_keys_kernel, programs, config, tiles, own)

    def launch(kernel: Any, programs: int, config: Config, tiles: work.Tiles | None, own: dict[str, Any]) -> None:
        rest = p.scalars() | work.blocks(config, p)
        gpu.launch(kernel, programs, config, p.device, **read, **own, tiles=tiles, **rest)

    if wanted[0]:
        work.tuned("queries", p, of_queries, heavy=p.form.is_heavy)
    if wanted[1]:
        work.tuned("keys", p, of_keys, heavy=p.form.is_heavy)
    grad_query, grad_key, grad_value = (x if need else x.new_empty(0) for x, need in zip(grads, needs[:3], strict=True))
    return grad_query, grad_key, grad_value
