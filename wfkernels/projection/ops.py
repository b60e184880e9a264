"""Library ops of projection: schemas, fakes, gradient."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from wfkernels import autocast
from wfkernels.dispatch import Implementation, always, choose, register
from wfkernels.judge import Contract, named
from wfkernels.layout import aligned, starts
from wfkernels.precision import accumulator
from wfkernels.projection import cpp, reference, triton_launch
from wfkernels.projection.reference import Shape

# What the backward returns first, in this order.
_GRADIENTS = ["tokens", "strength", "prior", "blend", "gate_weight", "gate_bias", "shift", "scale", "rows", "base"]


def _gradient_names(grad: Any, tokens: Any, weights: Sequence[Tensor], *_: Any) -> list[str]:
    lists = [f"{name}[{i}]" for name in ("weights", "biases") for i in range(len(weights))]
    return [f"d{name}" for name in (*_GRADIENTS, *lists)]


register(
    "projection",
    Implementation("triton", triton_launch.forward, triton_launch.why_not),
    Implementation("cpp", cpp.forward, cpp.why_not),
    Implementation("reference", reference.forward, always),
    contract=Contract(named("students")),
)
register(
    "projection_backward",
    Implementation("triton", triton_launch.backward, triton_launch.why_not_backward),
    Implementation("cpp", cpp.backward, cpp.why_not_backward),
    Implementation("reference", reference.backward, always),
    contract=Contract(_gradient_names, gradient=True),
)

_ARGUMENTS = (
    "Tensor tokens, Tensor[] weights, Tensor[] biases, Tensor strength, Tensor shift, Tensor scale, Tensor? rows,"
    " Tensor? base, Tensor? prior, Tensor? blend, Tensor? gate_weight, Tensor? gate_bias, SymInt[] row_counts,"
    " SymInt[] parameter_widths, SymInt[] parameter_counts, SymInt[] projections, SymInt[] teachers, str read,"
    " str output"
)


def _shape(
    row_counts: Sequence[int],
    parameter_widths: Sequence[int],
    parameter_counts: Sequence[int],
    projections: Sequence[int],
    teachers: Sequence[int],
    read: str,
    output: str,
) -> Shape:
    parameters = [parameter_widths[a:b] for a, b in pairwise(starts(parameter_counts))]
    return Shape(row_counts, parameters, projections, teachers, read, output)


@torch.library.custom_op("wfkernels::projection", mutates_args=(), schema=f"({_ARGUMENTS}, str impl) -> Tensor")
def projection(
    tokens: Tensor,  # [tokens read, d]
    weights: Sequence[Tensor],  # one [d, r] per projection group
    biases: Sequence[Tensor],  # one [r] per projection group
    strength: Tensor,  # [layers]
    shift: Tensor,  # [column_numel]
    scale: Tensor,  # [column_numel]
    rows: Tensor | None,  # [sum(teachers) * row_numel]
    base: Tensor | None,  # [row_numel]
    prior: Tensor | None,  # [row_numel]
    blend: Tensor | None,  # [layers]
    gate_weight: Tensor | None,  # [projection groups, d]
    gate_bias: Tensor | None,  # [projection groups]
    row_counts: Sequence[int],
    parameter_widths: Sequence[int],
    parameter_counts: Sequence[int],
    projections: Sequence[int],
    teachers: Sequence[int],
    read: str,
    output: str,
    impl: str,
) -> Tensor:  # [groups, numel]
    shape = _shape(row_counts, parameter_widths, parameter_counts, projections, teachers, read, output)
    args = (tokens, weights, biases, strength, shift, scale, rows, base, prior, blend, gate_weight, gate_bias, shape)
    with autocast.off(tokens.device):
        result: Tensor = choose("projection", impl, *args).run(*args)
    return result


@projection.register_fake
def _(tokens: Any, weights: Any, biases: Any, strength: Tensor, *rest: Any) -> Tensor:
    row_counts, parameter_widths, parameter_counts, _, teachers = rest[8:13]
    numel, k = 0, 0
    for n, count in zip(row_counts, parameter_counts, strict=True):
        for width in parameter_widths[k : k + count]:
            numel = numel + aligned(n * width)
        k += count
    return strength.new_empty(len(teachers), numel)


@torch.library.custom_op(
    "wfkernels::projection_backward",
    mutates_args=(),
    schema=f"(Tensor grad, {_ARGUMENTS}, bool inputs, str impl) -> Tensor[]",
)
def projection_backward(
    grad: Tensor,  # [groups, numel]
    tokens: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    strength: Tensor,
    shift: Tensor,
    scale: Tensor,
    rows: Tensor | None,
    base: Tensor | None,
    prior: Tensor | None,
    blend: Tensor | None,
    gate_weight: Tensor | None,
    gate_bias: Tensor | None,
    row_counts: Sequence[int],
    parameter_widths: Sequence[int],
    parameter_counts: Sequence[int],
    projections: Sequence[int],
    teachers: Sequence[int],
    read: str,
    output: str,
    inputs: bool,
    impl: str,
) -> list[
    Tensor
]:  # tokens, strength, prior, blend, gate_weight, gate_bias, shift, scale, rows, base, *weights, *biases
    shape = _shape(row_counts, parameter_widths, parameter_counts, projections, teachers, read, output)
    given = (tokens, weights, biases, strength, shift, scale, rows, base, prior, blend, gate_weight, gate_bias, shape)
    args = (grad, *given, inputs)
    with autocast.off(tokens.device):
        result: list[Tensor] = choose("projection_backward", impl, *args).run(*args)
    return result


@projection_backward.register_fake
def _(
    grad: Tensor,
    tokens: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    strength: Tensor,
    shift: Tensor,
    scale: Tensor,
    rows: Tensor | None,
    base: Tensor | None,
    prior: Tensor | None,
    blend: Tensor | None,
    gate_weight: Tensor | None,
    gate_bias: Tensor | None,
    *rest: Any,
) -> list[Tensor]:
    inputs = rest[-2]

    def empty(like: Tensor | None, wanted: bool = True) -> Tensor:
        if like is None:
            return tokens.new_empty(0, dtype=accumulator(tokens, strength))
        return like.new_empty(like.shape if wanted else 0)

    return [
        *(empty(t) for t in (tokens, strength, prior, blend, gate_weight, gate_bias)),
        *(empty(t, inputs) for t in (shift, scale, rows, base)),
        *(empty(t) for t in (*weights, *biases)),
    ]


# Positions of the arguments among the op's inputs, in the order in which the backward returns their gradients.
_NAMED = (0, 3, 8, 9, 10, 11)
_INPUTS = (4, 5, 6, 7)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.rest = inputs[12:]
    ctx.save_for_backward(*(t for i, t in enumerate(inputs[:12]) if i not in (1, 2)), *inputs[1], *inputs[2])


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    tokens, *named = ctx.saved_tensors[:10]
    lists = list(ctx.saved_tensors[10:])
    half = len(lists) // 2
    needs = ctx.needs_input_grad
    *rest, impl = ctx.rest
    inputs = any(needs[i] for i in _INPUTS)
    grads = projection_backward(grad, tokens, lists[:half], lists[half:], *named, *rest, inputs, impl)
    out: list[Any] = [None] * 20
    for i, g in zip((*_NAMED, *_INPUTS), grads, strict=False):
        out[i] = g if needs[i] else None
    out[1], out[2] = grads[10 : 10 + half], grads[10 + half :]
    return tuple(out)


projection.register_autograd(_backward, setup_context=_setup_context)
