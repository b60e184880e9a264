"""The compiled implementation of embedding on the CPU: csrc/embedding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from wfkernels import compiled, cpu
from wfkernels.activation import ACTIVATIONS
from wfkernels.embedding.reference import Shape
from wfkernels.precision import accumulator

_ARGUMENTS = (
    "Tensor rows, Tensor[] weights, Tensor biases, Tensor? base, Tensor shift, Tensor scale, Tensor position,"
    " Tensor? teacher, Tensor? layer, Tensor? cross, Tensor gamma, Tensor beta, int[] row_counts, int[] widths,"
    " int[] projections, int[] positions, int[] teachers, int activation, float eps, int width, int isa"
)
torch.library.define("wfkernels_cpp::embedding", f"({_ARGUMENTS}, ScalarType dtype) -> Tensor")
torch.library.define("wfkernels_cpp::embedding_backward", f"(Tensor grad, {_ARGUMENTS}, bool inputs) -> Tensor[]")


def why_not(rows: Tensor, weights: Sequence[Tensor], *rest: Any) -> str | None:
    """Return why the call cannot run compiled, None where it can."""
    return cpu.why_not(rows, *weights, *rest[:10])


def why_not_backward(grad: Tensor, *inputs: Any) -> str | None:
    return cpu.why_not(grad) or why_not(*inputs)


def _given(
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
    shape: Shape,
    activation: str,
    eps: float,
) -> tuple[Any, ...]:
    wide = accumulator(rows, gamma)
    return (
        rows.contiguous(),
        weights,
        cpu.padded(biases, wide),
        None if base is None else base.contiguous(),
        *(columns.to(wide).contiguous() for columns in (shift, scale)),
        cpu.padded(position, wide),
        *(cpu.padded_optional(codes, wide) for codes in (teacher, layer, cross)),
        cpu.padded(gamma, wide),
        cpu.padded(beta, wide),
        shape.rows,
        shape.widths,
        shape.projections,
        shape.positions,
        shape.teachers,
        ACTIVATIONS.index(activation),
        eps,
        gamma.shape[0],
        compiled.isa(),
    )


def forward(*inputs: Any) -> Tensor:
    """Return the tokens as wfkernels.embedding.reference does."""
    gamma = inputs[10]
    tokens: Tensor = torch.ops.wfkernels_cpp.embedding(*_given(*inputs), gamma.dtype)
    return tokens


def backward(grad: Tensor, *inputs: Any) -> list[Tensor]:
    """Return the gradients as wfkernels.embedding.reference does."""
    *inputs_, wanted = inputs
    rows, weights, biases, base, shift, scale, *codes = inputs_[:12]
    found = torch.ops.wfkernels_cpp.embedding_backward(grad.contiguous(), *_given(*inputs_), wanted)
    given = (shift, scale, biases, *codes)
    sums = [g if t is None else cpu.trimmed(g, t) for g, t in zip(found[2:11], given, strict=True)]
    return [*found[:2], *sums, *found[11:]]
