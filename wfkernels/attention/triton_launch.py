"""The Triton implementation of attention on NVIDIA GPUs: when it can run, and its launches.

Nothing here imports triton before a call asks for it, and nothing waits for the device: grids follow from shapes.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from wfkernels import env
from wfkernels.attention import triton_schedule as work
from wfkernels.attention import triton_sums_launch as sums
from wfkernels.attention.arguments import Arguments
from wfkernels.attention.bucket import BucketTable
from wfkernels.attention.triton_arguments import Problem, problem, statistic, tokens
from wfkernels.attention.triton_configs import Config, Configs, configs

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
WIDEST = 256
OLDEST = 80  # compute capability
# Rows of a program that only adds up a row.
DELTA_ROWS = 32


def interpreted() -> bool:
    """True where Triton runs its kernels in Python, on CPU tensors: for tests."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def why_not(query: Tensor, key: Tensor, value: Tensor, *rest: Any) -> str | None:
    """Return why the call cannot run in Triton, None where it can."""
    arguments = Arguments.unflatten(rest)
    if query.device.type == "cpu" and interpreted():
        if arguments.impl != "triton" and env.IMPL.read() != "triton":
            return "TRITON_INTERPRET=1 runs it in Python, slowly: only where impl names it"
    elif query.device.type != "cuda" or torch.version.hip is not None:
        return f"it needs an NVIDIA GPU (sm_80 or newer) and these tensors lie on {query.device}"
    elif capability(query.device) < OLDEST:
        return f"it needs an NVIDIA GPU (sm_80 or newer) and {query.device} is sm_{capability(query.device)}"
    reason = _no_triton()
    if reason is not None:
        return reason
    if query.dtype not in DTYPES:
        return f"it knows float32, float16 and bfloat16, not {query.dtype}"
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


def _no_triton() -> str | None:
    try:
        import triton  # noqa: F401
    except ImportError as error:
        return f"triton cannot be imported ({error}); install the triton that your torch names"
    return None


def capability(device: torch.device) -> int:
    """Return the compute capability as a number such as 90; 0 in the interpreter."""
    if device.type != "cuda":
        return 0
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def _prepare(query: Tensor, key: Tensor, value: Tensor, arguments: Arguments) -> tuple[Problem, Configs]:
    precision = "tf32" if env.TF32.read() == "1" else "ieee"
    widest = max(query.shape[-1], value.shape[-1])
    heavy = arguments.dropout_p > 0 or any(isinstance(t, BucketTable) for t in (arguments.bias, arguments.gate))
    chosen = configs(capability(query.device), widest, 8 * query.element_size(), heavy)
    return problem(query, key, value, arguments, precision), chosen


def forward(query: Tensor, key: Tensor, value: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    """Return out and lse as wfkernels.attention.reference does."""
    arguments = Arguments.unflatten(rest)
    shape = (*query.shape[:-1], value.shape[-1])
    if 0 in (query.numel(), key.numel()):
        return query.new_zeros(shape), query.new_full(shape[:-1], -math.inf, dtype=torch.float32)
    from wfkernels.attention.triton_forward import _attention_forward_kernel

    p, chosen = _prepare(query, key, value, arguments)
    config = chosen.forward
    ragged = p.form.is_ragged
    out, lse = query.new_empty(shape), query.new_empty(shape[:-1], dtype=torch.float32)
    tiles, programs = work.schedule(p, arguments.offsets, p.queries, config.block_m, p.heads)
    work.launch(
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
        **p.scalars(),
        **work.blocks(config, p),
    )
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
    p, chosen = _prepare(query, key, value, arguments)
    ragged = p.form.is_ragged
    # What all kernels of the backward pass read.
    read = {"query": p.query, "key": p.key, "value": p.value, "grad_out": tokens(grad_out, ragged)}
    read |= _statistics(p, arguments, read["grad_out"], grad_lse, out, lse, query.device)
    grad_query, grad_key, grad_value = _of_tokens(p, chosen, arguments, needs, (query, key, value), read)
    grads = []
    for name, term, need in zip(("bias", "gate"), arguments[:2], needs[3:], strict=True):
        if term is None or not need:
            grads.append(query.new_empty(0))
        elif isinstance(term, BucketTable):
            grads.append(sums.of_table(p, chosen.tables, arguments, term, name == "gate", read))
        else:
            grads.append(sums.of_dense(p, chosen.terms, arguments, term, query, name == "gate", read))
    return grad_query, grad_key, grad_value, grads[0], grads[1]


def _statistics(
    p: Problem,
    arguments: Arguments,
    grad_out: Any,
    grad_lse: Tensor | None,
    out: Tensor,
    lse: Tensor,
    device: torch.device,
) -> dict[str, Any]:
    """Return norm and delta of every query and head."""
    from wfkernels.attention.triton_backward import _attention_backward_delta_kernel

    ragged = p.form.is_ragged
    config = Config(DELTA_ROWS, 0, 4, 1)
    norm, delta = (statistic(torch.empty_like(lse, memory_format=torch.contiguous_format), ragged) for _ in range(2))
    tiles, programs = work.schedule(p, arguments.offsets, p.queries, DELTA_ROWS, p.heads)
    work.launch(
        _attention_backward_delta_kernel,
        programs,
        config,
        device,
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
        BLOCK_M=DELTA_ROWS,
        BLOCK_V=work.blocks(config, p)["BLOCK_V"],
    )
    return {"norm": norm, "delta": delta}


def _of_tokens(
    p: Problem,
    chosen: Configs,
    arguments: Arguments,
    needs: Sequence[bool],
    given: tuple[Tensor, Tensor, Tensor],
    read: dict[str, Any],
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of query, key and value."""
    from wfkernels.attention import triton_backward as kernels

    device = given[0].device
    ragged = p.form.is_ragged
    # Keys and values come from one kernel: both are written where one is needed.
    wanted = (needs[0], needs[1] or needs[2], needs[1] or needs[2])
    grads = [x.new_empty(x.shape if want else 0) for x, want in zip(given, wanted, strict=True)]
    if wanted[0]:
        config = chosen.queries
        tiles, programs = work.schedule(p, arguments.offsets, p.queries, config.block_m, p.heads)
        work.launch(
            kernels._attention_backward_queries_kernel,
            programs,
            config,
            device,
            **read,
            grad_query=tokens(grads[0], ragged),
            tiles=tiles,
            **p.scalars(),
            **work.blocks(config, p),
        )
    if wanted[1]:
        config = chosen.keys
        tiles, programs = work.schedule(p, p.sequences.key_offsets, p.keys, config.block_n, p.key_heads)
        work.launch(
            kernels._attention_backward_keys_kernel,
            programs,
            config,
            device,
            **read,
            grad_key=tokens(grads[1], ragged),
            grad_value=tokens(grads[2], ragged),
            tiles=tiles,
            **p.scalars(),
            **work.blocks(config, p),
        )
    grad_query, grad_key, grad_value = (x if need else x.new_empty(0) for x, need in zip(grads, needs[:3], strict=True))
    return grad_query, grad_key, grad_value
