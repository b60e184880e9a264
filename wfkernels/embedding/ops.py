"""Library ops of embedding: schemas, fakes, gradient."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from wfkernels import autocast
from wfkernels.dispatch import Implementation, always, choose, register
from wfkernels.embedding import cpp, reference, triton_launch
from wfkernels.embedding.reference import Shape
from wfkernels.judge import Contract, named
from wfkernels.precision import accumulator

# What the backward returns first, in this order.
_GRADIENTS = ["rows", "base", "shift", "scale", "biases", "position", "teacher", "layer", "cross", "gamma", "beta"]


def _gradient_names(grad: Any, rows: Any, weights: Sequence[Tensor], *_: Any) -> list[str]:
    return [f"d{name}" for name in (*_GRADIENTS, *(f"weights[{i}]" for i in range(len(weights))))]


register(
    "embedding",
    Implementation("triton", triton_launch.forward, triton_launch.why_not),
    Implementation("cpp", cpp.forward, cpp.why_not),
    Implementation("reference", reference.forward, always),
    contract=Contract(named("tokens")),
)
register(
    "embedding_backward",
    Implementation("triton", triton_launch.backward, triton_launch.why_not_backward),
    Implementation("cpp", cpp.backward, cpp.why_not_backward),
    Implementation("reference", reference.backward, always),
    contract=Contract(_gradient_names, gradient=True),
)

_ARGUMENTS = (
    "Tensor rows, Tensor[] weights, Tensor biases, Tensor? base, Tensor shift, Tensor scale, Tensor position,"
    " Tensor? teacher, Tensor? layer, Tensor? cross, Tensor gamma, Tensor beta, SymInt[] row_counts, SymInt[] widths,"
    " SymInt[] projections, SymInt[] positions, SymInt[] teachers, str activation, float eps"
)


def _shape(
    rows: Sequence[int],
    widths: Sequence[int],
    projections: Sequence[int],
    positions: Sequence[int],
    teachers: Sequence[int],
    cross: Tensor | None,
) -> Shape:
    return Shape(rows, widths, projections, positions, teachers, 0 if cross is None else cross.shape[1])


@torch.library.custom_op("wfkernels::embedding", mutates_args=(), schema=f"({_ARGUMENTS}, str impl) -> Tensor")
def embedding(
    rows: Tensor,  # [sum(teachers) * row_numel]
    weights: Sequence[Tensor],  # one [r, d] per projection group
    biases: Tensor,  # [projection groups, d]
    base: Tensor | None,  # [row_numel]
    shift: Tensor,  # [column_numel]
    scale: Tensor,  # [column_numel]
    position: Tensor,  # [positions, d]
    teacher: Tensor | None,  # [teacher ids, d]
    layer: Tensor | None,  # [layers, d]
    cross: Tensor | None,  # [sequences, c, d]
    gamma: Tensor,  # [d]
    beta: Tensor,  # [d]
    row_counts: Sequence[int],
    widths: Sequence[int],
    projections: Sequence[int],
    positions: Sequence[int],
    teachers: Sequence[int],
    activation: str,
    eps: float,
    impl: str,
) -> Tensor:  # [tokens, d]
    shape = _shape(row_counts, widths, projections, positions, teachers, cross)
    args = (rows, weights, biases, base, shift, scale, position, teacher, layer, cross, gamma, beta)
    with autocast.off(rows.device):
        result: Tensor = choose("embedding", impl, *args, shape, activation, eps).run(*args, shape, activation, eps)
    return result


@embedding.register_fake
def _(
    rows: Tensor,
    weights: Any,
    biases: Any,
    base: Any,
    shift: Any,
    scale: Any,
    position: Any,
    teacher: Any,
    layer: Any,
    cross: Tensor | None,
    gamma: Tensor,
    beta: Any,
    row_counts: Sequence[int],
    widths: Any,
    projections: Any,
    positions: Any,
    teachers: Sequence[int],
    *_: Any,
) -> Tensor:
    heads = 0 if cross is None else cross.shape[1]
    total = sum(row_counts) * sum(teachers) + heads * len(row_counts) * len(teachers)
    return gamma.new_empty(total, gamma.shape[0])


@torch.library.custom_op(
    "wfkernels::embedding_backward",
    mutates_args=(),
    schema=f"(Tensor grad, {_ARGUMENTS}, bool inputs, str impl) -> Tensor[]",
)
def embedding_backward(
    grad: Tensor,  # [tokens, d]
    rows: Tensor,
    weights: Sequence[Tensor],
    biases: Tensor,
    base: Tensor | None,
    shift: Tensor,
    scale: Tensor,
    position: Tensor,
    teacher: Tensor | None,
    layer: Tensor | None,
    cross: Tensor | None,
    gamma: Tensor,
    beta: Tensor,
    row_counts: Sequence[int],
    widths: Sequence[int],
    projections: Sequence[int],
    positions: Sequence[int],
    teachers: Sequence[int],
    activation: str,
    eps: float,
    inputs: bool,
    impl: str,
) -> list[Tensor]:  # rows, base, shift, scale, biases, position, teacher, layer, cross, gamma, beta, *weights
    shape = _shape(row_counts, widths, projections, positions, teachers, cross)
    args = (rows, weights, biases, base, shift, scale, position, teacher, layer, cross, gamma, beta)
    rest = (shape, activation, eps, inputs)
    with autocast.off(rows.device):
        result: list[Tensor] = choose("embedding_backward", impl, grad, *args, *rest).run(grad, *args, *rest)
    return result


@embedding_backward.register_fake
def _(
    grad: Tensor,
    rows: Tensor,
    weights: Sequence[Tensor],
    biases: Tensor,
    base: Tensor | None,
    shift: Tensor,
    scale: Tensor,
    position: Tensor,
    teacher: Tensor | None,
    layer: Tensor | None,
    cross: Tensor | None,
    gamma: Tensor,
    beta: Tensor,
    row_counts: Any,
    widths: Any,
    projections: Any,
    positions: Any,
    teachers: Any,
    activation: Any,
    eps: Any,
    inputs: bool,
    impl: Any,
) -> list[Tensor]:
    def empty(like: Tensor | None, wanted: bool = True) -> Tensor:
        if like is None:
            return grad.new_empty(0, dtype=accumulator(rows, gamma))
        return like.new_empty(like.shape if wanted else 0)

    return [
        *(empty(t, inputs) for t in (rows, base, shift, scale)),
        *(empty(t) for t in (biases, position, teacher, layer, cross, gamma, beta, *weights)),
    ]


_INPUTS = (0, 3, 4, 5)  # rows, base, shift, scale
_NAMED = (2, 6, 7, 8, 9, 10, 11)  # biases, position, teacher, layer, cross, gamma, beta


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.rest = inputs[12:]
    ctx.groups = len(inputs[1])
    ctx.save_for_backward(*(t for i, t in enumerate(inputs[:12]) if i != 1), *inputs[1])


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    rows, *named = ctx.saved_tensors[:11]
    weights = list(ctx.saved_tensors[11:])
    needs = ctx.needs_input_grad
    *rest, impl = ctx.rest
    grads = embedding_backward(grad, rows, weights, *named, *rest, any(needs[i] for i in _INPUTS), impl)
    out: list[Any] = [None] * 20
    for i, g in zip((*_INPUTS, *_NAMED), grads, strict=False):
        out[i] = g if needs[i] else None
    out[1] = grads[11:]
    return tuple(out)


embedding.register_autograd(_backward, setup_context=_setup_context)
