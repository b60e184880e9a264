"""The library ops wfkernels::attention_forward and wfkernels::attention_backward.

Called from Python by `forward` and `backward` below, which nothing checks: `api.attention` is the door. Both are
functional; outputs are contiguous. `lse` and `grad_lse` are float32, float64 for float64 inputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from wfkernels import autocast, dispatch
from wfkernels.attention import cpp, reference, triton_launch, validate
from wfkernels.attention.arguments import Arguments
from wfkernels.attention.bucket import BucketTable
from wfkernels.judge import Contract, named

INPUTS = "Tensor query, Tensor key, Tensor value"
TERM = (
    "Tensor? {0}, Tensor? {0}_lookup, Tensor? {0}_group, Tensor? {0}_segment, Tensor? {0}_position, "
    "bool {0}_diagonal_open"
)
REST = (
    f"{TERM.format('bias')}, {TERM.format('gate')}, "
    "Tensor? offsets, Tensor? key_offsets, Tensor? query_start, Tensor? seed, SymInt max_length, bool is_causal, "
    "float? scale, float dropout_p, int site, str impl"
)
FORWARD = f"({INPUTS}, {REST}) -> (Tensor out, Tensor lse)"
BACKWARD = (
    f"(Tensor grad_out, Tensor? grad_lse, bool[] needs, {INPUTS}, Tensor out, Tensor lse, {REST}) -> "
    "(Tensor grad_query, Tensor grad_key, Tensor grad_value, Tensor grad_bias, Tensor grad_gate)"
)
# Where the inputs that may have a gradient stand among the inputs of attention_forward.
DIFFERENTIABLE = (0, 1, 2, 3, 9)


def _values(query: Tensor, key: Tensor, value: Tensor, *rest: Any) -> None:
    validate.values(query, key, Arguments.unflatten(rest))


def _values_of_backward(grad_out: Any, grad_lse: Any, needs: Any, *inputs: Any) -> None:
    query, key, value, _, _, *rest = inputs
    _values(query, key, value, *rest)


def _parts(*inputs: Any) -> Mapping[str, Mapping[str, Tensor]]:
    """Open and closed gates have gradients of different size."""
    term, need = Arguments.unflatten(inputs[8:]).gate, inputs[2][4]
    if term is None or not need:
        return {}
    gate = term.table if isinstance(term, BucketTable) else term
    return {"dgate": {"open": gate != 0, "closed": gate == 0}}


dispatch.register(
    "attention",
    dispatch.Implementation("triton", triton_launch.forward, triton_launch.why_not),
    dispatch.Implementation("cpp", cpp.forward, cpp.why_not),
    dispatch.Implementation("reference", reference.forward, dispatch.always),
    contract=Contract(named("out", "lse"), values=_values),
)
dispatch.register(
    "attention_backward",
    dispatch.Implementation("triton", triton_launch.backward, triton_launch.why_not_backward),
    dispatch.Implementation("cpp", cpp.backward, cpp.why_not_backward),
    dispatch.Implementation("reference", reference.backward, dispatch.always),
    contract=Contract(
        named("dquery", "dkey", "dvalue", "dbias", "dgate"), gradient=True, values=_values_of_backward, parts=_parts
    ),
)


def forward(query: Tensor, key: Tensor, value: Tensor, arguments: Arguments) -> tuple[Tensor, Tensor]:
    """Return (out, lse): [..., H, Sq, Dv], [..., H, Sq], or ragged [total_q, H, Dv], [total_q, H]."""
    out, lse = attention_forward(query, key, value, *arguments.flatten())
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
    arguments: Arguments,
) -> tuple[Tensor | None, ...]:
    """Return the gradients of (query, key, value, bias or its table, gate or its table), None where not needed.

    needs: five flags, in that order (that of an absent bias or gate means nothing); work for a gradient that nobody
    needs is skipped. grad_lse None means zero. `out` and `lse` are those of `forward` with the same arguments.
    A gradient has the shape and dtype of its input.
    """
    present = (True, True, True, arguments.bias is not None, arguments.gate is not None)
    needs = [need and there for need, there in zip(needs, present, strict=True)]
    gradients = attention_backward(grad_out, grad_lse, needs, query, key, value, out, lse, *arguments.flatten())
    return tuple(gradient if need else None for gradient, need in zip(gradients, needs, strict=True))


@torch.library.custom_op("wfkernels::attention_forward", mutates_args=(), schema=FORWARD)
def attention_forward(*inputs: Any) -> tuple[Tensor, Tensor]:
    out, lse = _run("attention", inputs)
    return out, lse


@torch.library.custom_op("wfkernels::attention_backward", mutates_args=(), schema=BACKWARD)
def attention_backward(*inputs: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    grad_query, grad_key, grad_value, grad_bias, grad_gate = _run("attention_backward", inputs)
    return grad_query, grad_key, grad_value, grad_bias, grad_gate


def _run(op: str, inputs: tuple[Any, ...]) -> tuple[Tensor, ...]:
    # The caller's autocast is still on in here, and would turn the float32 products of a reference into half ones.
    with autocast.off(inputs[0].device):
        result: tuple[Tensor, ...] = dispatch.choose(op, inputs[-1], *inputs).run(*inputs)
    return result


@attention_forward.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    out = query.new_empty((*query.shape[:-1], value.shape[-1]))
    return out, query.new_empty(query.shape[:-1], dtype=reference.precision(query.dtype))


@attention_backward.register_fake
def _(
    grad_out: Tensor,
    grad_lse: Tensor | None,
    needs: Sequence[bool],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    lse: Tensor,
    bias: Tensor | None,
    *rest: Any,
) -> tuple[Tensor, ...]:
    gate = rest[DIFFERENTIABLE[-1] - DIFFERENTIABLE[-2] - 1]
    return tuple(
        x.new_empty(x.shape) if need and x is not None else query.new_empty(0)
        for x, need in zip((query, key, value, bias, gate), needs, strict=True)
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*(x if isinstance(x, Tensor) else None for x in inputs), *output)
    ctx.plain = tuple(None if isinstance(x, Tensor) else x for x in inputs)
    ctx.set_materialize_grads(False)


def _gradients(ctx: Any, grad_out: Tensor | None, grad_lse: Tensor | None) -> tuple[Tensor | None, ...]:
    *tensors, out, lse = ctx.saved_tensors
    inputs = [plain if tensor is None else tensor for tensor, plain in zip(tensors, ctx.plain, strict=True)]
    if grad_out is None:
        grad_out = torch.zeros_like(out)
    needs = [ctx.needs_input_grad[i] for i in DIFFERENTIABLE]
    found = attention_backward(grad_out, grad_lse, needs, *inputs[:3], out, lse, *inputs[3:])
    gradients: list[Tensor | None] = [None] * len(inputs)
    for place, need, gradient in zip(DIFFERENTIABLE, needs, found, strict=True):
        gradients[place] = gradient if need else None
    return tuple(gradients)


attention_forward.register_autograd(_gradients, setup_context=_setup_context)
