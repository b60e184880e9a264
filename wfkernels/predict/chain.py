"""The forward and the backward chain of predict, over the rooms' library ops.

Every block is `attention, residual_norm, feed-forward`, and blocks meet at a *boundary*, one more residual_norm whose
normalised output feeds the next block. LayerNorm before and after a sub-layer differ only in what the residual stream
carries (the sum h or the normalised y) and in whether there is a LayerNorm in front of the first block.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from wfkernels.activation import activate, activate_backward_
from wfkernels.predict.attend import Attention, attend, attend_backward
from wfkernels.predict.parameters import Block, Parameters
from wfkernels.predict.plan import Indices, Plan
from wfkernels.predict.products import linear, times
from wfkernels.residual_norm import ops as residual_norm_ops


class Norm(NamedTuple):
    weight: Tensor  # [d]
    bias: Tensor  # [d]


def boundaries(plan: Plan, parameters: Parameters) -> list[Norm | None]:
    """Return the LayerNorm at each boundary 0 ... L; None in front of the first block of a post-norm encoder."""
    blocks = parameters.blocks
    if plan.settings.norm == "post":
        return [None, *(Norm(b.norm2_weight, b.norm2_bias) for b in blocks)]
    assert parameters.final_weight is not None and parameters.final_bias is not None
    first = [Norm(b.norm1_weight, b.norm1_bias) for b in blocks]
    return [*first, Norm(parameters.final_weight, parameters.final_bias)]


def middle(plan: Plan, block: Block) -> Norm:
    """Return the LayerNorm between attention and feed-forward."""
    if plan.settings.norm == "post":
        return Norm(block.norm1_weight, block.norm1_bias)
    return Norm(block.norm2_weight, block.norm2_bias)


class Stream(NamedTuple):
    """What a boundary hands to the next block: the sum h, its LayerNorm y (h itself without one) and its statistics.

    Of the first boundary, and of every one that is computed again in backward, only h is kept.
    """

    h: Tensor  # [tokens, d]
    y: Tensor | None = None  # [tokens, d]
    mean: Tensor | None = None  # [tokens]
    rstd: Tensor | None = None  # [tokens]


def opened(h: Tensor, norm: Norm | None, eps: float, impl: str) -> Stream:
    """Return the stream of a sum h [tokens, d], with the bits that the op which closes a block gives."""
    if norm is None:
        return Stream(h, h)
    _, *rest = residual_norm_ops.residual_norm(torch.zeros_like(h), h, *norm, eps, 0.0, None, 0, impl)
    return Stream(h, *rest)


class Inner(NamedTuple):
    """What one block computes between its boundaries, as its backward needs it.

    No views: what a compiled autograd.Function keeps must not share memory.
    """

    products: tuple[Tensor, ...]  # query, key and value side by side [tokens, 3 d]; or [computed, d] and [tokens, 2 d]
    attention: Attention
    h: Tensor  # [computed, d]
    mean: Tensor  # [computed]
    rstd: Tensor  # [computed]
    y: Tensor  # [computed, d] input of the feed-forward
    up: Tensor  # [computed, ffn]


def _by_head(plan: Plan, products: tuple[Tensor, ...], d: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return query [computed, H, D], key and value [tokens, H, D] as views of their products."""
    heads = plan.settings.heads
    query, key, value = (
        part
        for product in products
        for part in product.view(product.shape[0], product.shape[1] // d, heads, d // heads).unbind(1)
    )
    return query, key, value


def block_forward(
    plan: Plan,
    at: Indices,
    i: int,
    parameters: Parameters,
    stream: Stream,
    seed: Tensor | None,
    lookup: Tensor | None,
    saved: Attention | None = None,
) -> Inner:
    """Run block i up to the first product of its feed-forward; `saved` spares the attention when recomputing."""
    block, s, y = parameters.blocks[i], plan.settings, stream.y
    assert y is not None
    pruned = plan.pruned(i, len(parameters.blocks))
    residual = stream.h if s.norm == "pre" else y
    d = y.shape[1]
    products: tuple[Tensor, ...]
    if pruned:
        residual = residual[at.read]
        query = linear(y[at.read], block.qkv_weight[:d], block.qkv_bias[:d], plan.impl)
        products = query, linear(y, block.qkv_weight[d:], block.qkv_bias[d:], plan.impl)
    else:
        products = (linear(y, block.qkv_weight, block.qkv_bias, plan.impl),)
    if saved is None:
        saved = attend(plan, at, i, pruned, *_by_head(plan, products, d), parameters.gate, lookup, seed)
    joined = linear(saved.joined(at).flatten(1), block.out_weight, block.out_bias, plan.impl)
    h, y, mean, rstd = residual_norm_ops.residual_norm(
        joined, residual, *middle(plan, block), s.eps, s.dropout_p, seed, 3 * i + 1, plan.impl
    )
    return Inner(products, saved, h, mean, rstd, y, linear(y, block.up_weight, block.up_bias, plan.impl))


def boundary_forward(plan: Plan, i: int, norm: Norm | None, block: Block, inner: Inner, seed: Tensor | None) -> Stream:
    """Close block i by the second half of its feed-forward and the LayerNorm of boundary i + 1."""
    assert norm is not None
    s = plan.settings
    branch = linear(inner.up, block.down_weight, block.down_bias, plan.impl, s.feed_forward)
    residual = inner.h if s.norm == "pre" else inner.y
    h, y, mean, rstd = residual_norm_ops.residual_norm(
        branch, residual, *norm, s.eps, s.dropout_p, seed, 3 * i + 2, plan.impl
    )
    return Stream(h, y, mean, rstd)


def opened_backward(
    norm: Norm | None, stream: Stream, grad_h: Tensor | None, grad_y: Tensor, impl: str
) -> tuple[Tensor, Norm | None]:
    """Return the gradients of the sum h and of the LayerNorm in front of the first block."""
    if norm is None:
        return grad_y if grad_h is None else grad_y + grad_h, None
    _, grad, weight, bias = residual_norm_ops.residual_norm_backward(
        grad_h, grad_y, stream.h, stream.mean, stream.rstd, norm.weight, 0.0, None, 0, impl
    )
    return grad, Norm(weight, bias)


def boundary_backward(
    plan: Plan,
    i: int,
    norm: Norm | None,
    stream: Stream,
    grad_h: Tensor | None,  # [computed, d]
    grad_y: Tensor,  # [computed, d]
    seed: Tensor | None,
) -> tuple[Tensor, Tensor, Norm]:
    """Return the gradients of block i's feed-forward branch, of its residual, and of the boundary's LayerNorm."""
    assert norm is not None
    p = plan.settings.dropout_p
    branch, residual, weight, bias = residual_norm_ops.residual_norm_backward(
        grad_h, grad_y, stream.h, stream.mean, stream.rstd, norm.weight, p, seed, 3 * i + 2, plan.impl
    )
    return branch, residual, Norm(weight, bias)


class BlockGradients(NamedTuple):
    h: Tensor | None  # [tokens, d] of the residual stream; None where it runs through y (post)
    y: Tensor  # [tokens, d]
    middle: Norm
    qkv: tuple[Tensor, Tensor]
    out: tuple[Tensor, Tensor]
    up: tuple[Tensor, Tensor]
    down: tuple[Tensor, Tensor]
    gate: Tensor | None

    def of_block(self, start: Norm | None, end: Norm | None) -> Block:
        """Return the gradients of the parameters, given those of the LayerNorms at the block's two boundaries."""
        norm1, norm2 = (self.middle, end) if self.h is None else (start, self.middle)
        assert norm1 is not None and norm2 is not None
        return Block(*norm1, *self.qkv, *self.out, *norm2, *self.up, *self.down)


def _linear_backward(grad: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients of weight and bias in linear(x, weight, bias)."""
    return grad.T @ x, grad.sum(0)


def block_backward(
    plan: Plan,
    at: Indices,
    i: int,
    parameters: Parameters,
    stream: Stream,
    inner: Inner,
    grad_branch: Tensor,  # [computed, d] of the feed-forward branch
    grad_residual: Tensor,  # [computed, d] of the residual around it
    seed: Tensor | None,
    lookup: Tensor | None,
    gate_gradient: bool,
) -> BlockGradients:
    """Return every gradient of block i from those at its closing boundary."""
    block, s, y = parameters.blocks[i], plan.settings, stream.y
    assert y is not None
    pruned, pre, d = plan.pruned(i, len(parameters.blocks)), s.norm == "pre", y.shape[1]

    down = _linear_backward(grad_branch, activate(inner.up, s.feed_forward))
    grad_up = activate_backward_(times(grad_branch, block.down_weight, plan.impl), inner.up, s.feed_forward)
    up = _linear_backward(grad_up, inner.y)
    grad_inner = times(grad_up, block.up_weight, plan.impl)
    grad_joined, grad_stream, *norm = residual_norm_ops.residual_norm_backward(
        grad_residual if pre else None,
        grad_inner if pre else grad_inner + grad_residual,
        inner.h,
        inner.mean,
        inner.rstd,
        middle(plan, block).weight,
        s.dropout_p,
        seed,
        3 * i + 1,
        plan.impl,
    )
    out = _linear_backward(grad_joined, inner.attention.joined(at).flatten(1))
    grad_out = times(grad_joined, block.out_weight, plan.impl).view(inner.attention.out.shape)
    triple, gate = attend_backward(
        plan,
        at,
        i,
        pruned,
        grad_out,
        *_by_head(plan, inner.products, d),
        inner.attention,
        parameters.gate,
        lookup,
        seed,
        gate_gradient,
    )
    if pruned:
        grad_query, grad_rest = triple[0].flatten(1), torch.stack(triple[1:], dim=1).flatten(1)
        parts = (_linear_backward(grad_query, y[at.read]), _linear_backward(grad_rest, y))
        weight, bias = (torch.cat(pair) for pair in zip(*parts, strict=True))
        grad_y = times(grad_rest, block.qkv_weight[d:], plan.impl)
        grad_y = grad_y.index_add(0, at.read, times(grad_query, block.qkv_weight[:d], plan.impl))
        grad_stream = torch.zeros_like(y).index_copy(0, at.read, grad_stream)
    else:
        grad_rest = torch.stack(triple, dim=1).flatten(1)
        weight, bias = _linear_backward(grad_rest, y)
        grad_y = times(grad_rest, block.qkv_weight, plan.impl)
    if not pre:
        grad_y = grad_y + grad_stream
    return BlockGradients(grad_stream if pre else None, grad_y, Norm(*norm), (weight, bias), out, up, down, gate)
