"""The compiled implementation of projection on the CPU: csrc/projection."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from wfkernels import compiled, cpu
from wfkernels.precision import accumulator
from wfkernels.projection.reference import OUTPUTS, Shape

_ARGUMENTS = (
    "Tensor tokens, Tensor[] weights, Tensor biases, Tensor strength, Tensor shift, Tensor scale, Tensor? rows,"
    " Tensor? base, Tensor? prior, Tensor? blend, Tensor? gate_weight, Tensor? gate_bias, int[] row_counts,"
    " int[] parameter_widths, int[] parameter_counts, int[] projections, int[] teachers, bool read_mean, int output,"
    " int isa"
)
torch.library.define("wfkernels_cpp::projection", f"({_ARGUMENTS}, ScalarType dtype) -> Tensor")
torch.library.define("wfkernels_cpp::projection_backward", f"(Tensor grad, {_ARGUMENTS}, bool inputs) -> Tensor[]")


def why_not(tokens: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], *rest: Any) -> str | None:
    """Return why the call cannot run compiled, None where it can."""
    return cpu.why_not(tokens, *weights, *biases, *rest[:9])


def why_not_backward(grad: Tensor, *inputs: Any) -> str | None:
    return cpu.why_not(grad) or why_not(*inputs)


def _given(
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
    shape: Shape,
) -> tuple[Any, ...]:
    wide = accumulator(tokens, strength)
    return (
        tokens.contiguous(),
        weights,
        torch.cat([strength.new_empty(0, dtype=wide), *(b.to(wide) for b in biases)]),
        *(t.to(wide).contiguous() for t in (strength, shift, scale)),
        *(None if network is None else network.contiguous() for network in (rows, base, prior)),
        None if blend is None else blend.to(wide).contiguous(),
        cpu.padded_optional(gate_weight, wide),
        None if gate_bias is None else gate_bias.to(wide).contiguous(),
        shape.rows,
        [width for widths in shape.parameters for width in widths],
        [len(widths) for widths in shape.parameters],
        shape.projections,
        shape.teachers,
        shape.read == "mean",
        OUTPUTS.index(shape.output),
        compiled.isa(),
    )


def forward(*inputs: Any) -> Tensor:
    """Return the students as wfkernels.projection.reference does."""
    strength = inputs[3]
    students: Tensor = torch.ops.wfkernels_cpp.projection(*_given(*inputs), strength.dtype)
    return students


def backward(grad: Tensor, *inputs: Any) -> list[Tensor]:
    """Return the gradients as wfkernels.projection.reference does."""
    *inputs_, wanted = inputs
    _, weights, biases, strength, shift, scale, _, _, _, blend, gate_weight, gate_bias, _ = inputs_
    found = torch.ops.wfkernels_cpp.projection_backward(grad.contiguous(), *_given(*inputs_), wanted)
    given = {1: strength, 3: blend, 4: gate_weight, 5: gate_bias, 6: shift, 7: scale}
    named = [g if given.get(i) is None else cpu.trimmed(g, given[i]) for i, g in enumerate(found[:10])]
    rest = found[10].split([b.shape[0] for b in biases])
    return [*named, *found[11:], *(g.to(b.dtype, copy=True) for g, b in zip(rest, biases, strict=True))]
