"""The compiled implementation of attention on the CPU: csrc/attention."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from wfkernels import compiled
from wfkernels.attention.arguments import Arguments, Term
from wfkernels.attention.bucket import BucketTable

DTYPES = (torch.float32, torch.float64, torch.bfloat16)

_TERM = "Tensor? {0}, Tensor? {0}_lookup, Tensor? {0}_group, Tensor? {0}_segment, Tensor? {0}_position, bool {0}_open"
_REST = (
    f"{_TERM.format('bias')}, {_TERM.format('gate')}, Tensor? offsets, Tensor? key_offsets, Tensor? query_start, "
    "Tensor? seed, bool is_causal, float scale, float dropout_p, int site, int isa"
)
torch.library.define(
    "wfkernels_cpp::attention_forward",
    f"(Tensor query, Tensor key, Tensor value, {_REST}) -> (Tensor, Tensor)",
)
torch.library.define(
    "wfkernels_cpp::attention_backward",
    f"(Tensor grad_out, Tensor? grad_lse, int needs, Tensor query, Tensor key, Tensor value, Tensor out, Tensor lse, "
    f"{_REST}) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
)


def why_not(query: Tensor, key: Tensor, value: Tensor, *rest: Any) -> str | None:
    """Return why the call cannot run compiled, None where it can."""
    if query.device.type != "cpu":
        return f"it reads CPU tensors and these lie on {query.device}"
    arguments = Arguments.unflatten(rest)
    terms = [t.table if isinstance(t, BucketTable) else t for t in (arguments.bias, arguments.gate)]
    unknown = {t.dtype for t in (query, key, value, *terms) if t is not None}.difference(DTYPES)
    if unknown:
        return f"it does not know {', '.join(sorted(map(str, unknown)))}; cast to float32 first"
    return compiled.why_not(compiled.CPP)


def why_not_backward(grad_out: Any, grad_lse: Any, needs: Any, *inputs: Any) -> str | None:
    query, key, value, _, _, *rest = inputs
    return why_not(query, key, value, *rest)


def _integers(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.long().contiguous()


def _term(term: Term) -> tuple[Any, ...]:
    if isinstance(term, BucketTable):
        return term.table.contiguous(), *map(_integers, term[1:-1]), term.diagonal_open
    return term, None, None, None, None, False


def _rest(width: int, arguments: Arguments) -> tuple[Any, ...]:
    return (
        *_term(arguments.bias),
        *_term(arguments.gate),
        _integers(arguments.offsets),
        _integers(arguments.key_offsets),
        _integers(arguments.query_start),
        arguments.seed,
        arguments.is_causal,
        width**-0.5 if arguments.scale is None else arguments.scale,
        arguments.dropout_p,
        arguments.site,
        compiled.isa(),
    )


def forward(query: Tensor, key: Tensor, value: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    """Return out and lse as wfkernels.attention.reference does."""
    given = _rest(query.shape[-1], Arguments.unflatten(rest))
    out, lse = torch.ops.wfkernels_cpp.attention_forward(query, key, value, *given)
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
    """Return the gradients as wfkernels.attention.reference does."""
    arguments = Arguments.unflatten(rest)
    present = (True, True, True, arguments.bias is not None, arguments.gate is not None)
    wanted = sum((need and there) << i for i, (need, there) in enumerate(zip(needs, present, strict=True)))
    # Places in it are those of lse.
    grad_lse = None if grad_lse is None else grad_lse.to(lse.dtype).contiguous()
    given = _rest(query.shape[-1], arguments)
    found = torch.ops.wfkernels_cpp.attention_backward(
        grad_out, grad_lse, wanted, query, key, value, out, lse.contiguous(), *given
    )
    grad_query, grad_key, grad_value, grad_bias, grad_gate = found
    return grad_query, grad_key, grad_value, grad_bias, grad_gate
