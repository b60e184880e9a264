"""predict as one torch.autograd.Function: what is kept, and what backward computes again."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from wfkernels import autocast
from wfkernels.embedding import ops as embedding_ops
from wfkernels.predict import chain
from wfkernels.predict.attend import Attention
from wfkernels.predict.chain import Inner, Norm, Stream
from wfkernels.predict.parameters import Parameters, refill, skeleton, spread
from wfkernels.predict.plan import Indices, Plan
from wfkernels.projection import ops as projection_ops

# Parameters of which the teachers' rows are normalised and built on: their gradients cost a pass over all rows.
OF_ROWS = ("shift", "scale", "base", "center", "built_on")


class Kept(NamedTuple):
    """What is kept of one block for backward; `inner` only with recompute="none"."""

    stream: Stream
    attention: Attention
    inner: Inner | None


def _embedding_arguments(plan: Plan, rows: Tensor, p: Parameters) -> tuple[Any, ...]:
    student, s = plan.layout.layout, plan.settings
    base = p.base if p.center is None else p.center
    tensors = (rows, list(p.embedding_weights), p.embedding_biases, base, p.shift, p.scale)
    codes = (p.position, p.teacher, p.layer, p.cross, p.gamma, p.beta)
    integers = (student.rows, student.widths, plan.projections, plan.positions, plan.layout.teachers)
    return (*tensors, *codes, *integers, s.activation, s.eps)


def _projection_arguments(plan: Plan, rows: Tensor, z: Tensor, p: Parameters) -> tuple[Any, ...]:
    student, s = plan.layout.layout, plan.settings
    own = None if s.output == "plain" else rows
    tensors = (z, list(p.projection_weights), list(p.projection_biases), p.strength, p.shift, p.scale)
    optional = (own if p.built_on is None else p.built_on, p.base, p.prior, p.blend, p.gate_weight, p.gate_bias)
    widths = [q.width for q in student.parameters]
    integers = (student.rows, widths, [len(layer.parameters) for layer in student.layers], plan.projections)
    return (*tensors, *optional, *integers, plan.layout.teachers, s.read, s.output)


def forward(
    plan: Plan, at: Indices, rows: Tensor, seed: Tensor | None, lookup: Tensor | None, p: Parameters, keep: bool
) -> tuple[Tensor, Tensor, list[Kept], Stream | None]:
    """Return the student buffers [groups, numel], the cross tokens [groups, c, d] and, to keep, what backward needs."""
    norms, keep_all = chain.boundaries(plan, p), keep and plan.settings.recompute == "none"
    tokens = embedding_ops.embedding(*_embedding_arguments(plan, rows, p), plan.impl)
    stream = chain.opened(tokens, norms[0], plan.settings.eps, plan.impl)
    kept: list[Kept] = []
    for i, block in enumerate(p.blocks):
        inner = chain.block_forward(plan, at, i, p, stream, seed, lookup)
        if keep:
            opening = stream if keep_all and i > 0 else Stream(stream.h)
            kept.append(Kept(opening, inner.attention, inner if keep_all else None))
        stream = chain.boundary_forward(plan, i, norms[i + 1], block, inner, seed)
        del inner  # before the next block makes its own
    y = stream.y
    assert y is not None
    z = y[at.rows] if plan.return_cross else y
    students = projection_ops.projection(*_projection_arguments(plan, rows, z, p), plan.impl)
    heads = y[at.heads].view(plan.layout.groups if plan.return_cross else 0, plan.layout.cross, y.shape[1])
    return students, heads, kept, stream if keep_all else None


def backward(
    plan: Plan,
    at: Indices,
    rows: Tensor,
    seed: Tensor | None,
    lookup: Tensor | None,
    p: Parameters,
    kept: list[Kept],
    closing: Stream | None,
    grad_students: Tensor,  # [groups, numel]
    grad_cross: Tensor,  # [groups, c, d]
    inputs: bool,
    gate_gradient: bool,
) -> tuple[Tensor, Parameters]:
    """Return the gradient of the rows and of every parameter (0 elements where it was not asked for)."""
    norms, eps = chain.boundaries(plan, p), plan.settings.eps
    at_boundary: list[Norm | None] = [None] * len(norms)
    gradients: list[chain.BlockGradients] = []
    grad_h: Tensor | None = None
    gate: Tensor | None = None
    for i in reversed(range(len(kept))):
        stream, attention, inner = kept[i]
        if stream.y is None:
            stream = chain.opened(stream.h, norms[i], eps, plan.impl)
        if inner is None:
            inner = chain.block_forward(plan, at, i, p, stream, seed, lookup, attention)
        if i == len(kept) - 1:
            # The last block once more, up to the tokens that the projection reads.
            closing = closing or chain.boundary_forward(plan, i, norms[i + 1], p.blocks[i], inner, seed)
            projected, grad_y = _projection_backward(plan, at, rows, p, closing, grad_students, grad_cross, inputs)
        assert closing is not None
        branch, residual, at_boundary[i + 1] = chain.boundary_backward(
            plan, i, norms[i + 1], closing, grad_h, grad_y, seed
        )
        g = chain.block_backward(plan, at, i, p, stream, inner, branch, residual, seed, lookup, gate_gradient)
        gradients.insert(0, g)
        grad_h, grad_y, closing = g.h, g.y, stream
        if g.gate is not None:
            gate = g.gate if gate is None else gate + g.gate
    assert closing is not None
    grad_tokens, at_boundary[0] = chain.opened_backward(norms[0], closing, grad_h, grad_y, plan.impl)
    embedded = embedding_ops.embedding_backward(grad_tokens, *_embedding_arguments(plan, rows, p), inputs, plan.impl)

    strength, prior, blend, gate_weight, gate_bias, shift, scale, built_on, base, *lists = projected
    drows, center, embedded_shift, embedded_scale, biases, position, teacher, layer, cross, gamma, beta, *weights = (
        embedded
    )
    if p.built_on is None and plan.settings.output != "plain":
        drows = drows + built_on
    final = at_boundary[-1] if plan.settings.norm == "pre" else None
    return drows, Parameters(
        embedding_weights=weights,
        embedding_biases=biases,
        shift=embedded_shift + shift,
        scale=embedded_scale + scale,
        position=position,
        gamma=gamma,
        beta=beta,
        blocks=[g.of_block(*at_boundary[i : i + 2]) for i, g in enumerate(gradients)],
        projection_weights=lists[: len(weights)],
        projection_biases=lists[len(weights) :],
        strength=strength,
        teacher=teacher,
        layer=layer,
        cross=cross,
        gate=gate,
        final_weight=None if final is None else final.weight,
        final_bias=None if final is None else final.bias,
        base=base if p.center is not None else center + base,
        center=center,
        prior=prior,
        blend=blend,
        gate_weight=gate_weight,
        gate_bias=gate_bias,
        built_on=built_on,
    )


def _projection_backward(
    plan: Plan,
    at: Indices,
    rows: Tensor,
    p: Parameters,
    closing: Stream,
    grad_students: Tensor,
    grad_cross: Tensor,
    inputs: bool,
) -> tuple[list[Tensor], Tensor]:
    """Return the gradients of the projection's parameters and of the last block's normalised output."""
    y = closing.y
    assert y is not None
    z = y[at.rows] if plan.return_cross else y
    arguments = _projection_arguments(plan, rows, z, p)
    grad_z, *rest = projection_ops.projection_backward(grad_students, *arguments, inputs, plan.impl)
    if not plan.return_cross:
        return rest, grad_z
    grad_y = torch.zeros_like(y).index_copy(0, at.rows, grad_z)
    return rest, grad_y.index_copy(0, at.heads, grad_cross.reshape(-1, y.shape[1]))


class Predict(torch.autograd.Function):
    """The chain with its exact gradient. Apply it as (plan, structure, rows, seed, lookup, *indices, *tensors)."""

    @staticmethod
    def forward(
        ctx: Any,
        plan: Plan,
        structure: Parameters,
        rows: Tensor,
        seed: Tensor | None,
        lookup: Tensor | None,
        *tensors: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        count = len(Indices._fields)
        at, given = Indices(*tensors[:count]), tensors[count:]  # type: ignore[arg-type]
        students, cross, kept, closing = forward(plan, at, rows, seed, lookup, structure.unflatten(given), True)
        ctx.plan, ctx.structure, ctx.given = plan, structure, len(given)
        ctx.kept = skeleton((kept, closing))
        ctx.save_for_backward(rows, seed, lookup, *tensors, *spread((kept, closing)))
        return students, cross

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_students: Tensor, grad_cross: Tensor) -> tuple[Tensor | None, ...]:
        count = len(Indices._fields)
        rows, seed, lookup, *saved = ctx.saved_tensors
        at, given, rest = Indices(*saved[:count]), saved[count : count + ctx.given], saved[count + ctx.given :]
        kept, closing = refill(ctx.kept, iter(rest))
        needs = ctx.needs_input_grad[-ctx.given :]
        wanted = [name for name, need in zip(ctx.structure.names(), needs, strict=True) if need]
        inputs = ctx.needs_input_grad[2] or any(name in OF_ROWS for name in wanted)
        p = ctx.structure.unflatten(given)
        with autocast.off(rows.device):
            grad_rows, grads = backward(
                ctx.plan,
                at,
                rows,
                seed,
                lookup,
                p,
                kept,
                closing,
                grad_students,
                grad_cross,
                inputs,
                "gate" in wanted,
            )
        flat = [g if need else None for g, need in zip(grads.flatten(), needs, strict=True)]
        return (
            None,
            None,
            grad_rows if ctx.needs_input_grad[2] else None,
            None,
            None,
            *[None] * count,
            *flat,
        )
