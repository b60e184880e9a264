"""WeightFormer as a user would write it: plain PyTorch, one layer of the student after the other.

Every step is the module of the same name (Linear, LayerNorm, softmax attention) as a function, so that float64 and the
parameters of `wfkernels.predict` go through it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

from wfkernels import Block, Parameters
from wfkernels.layout import TokenLayout, aligned

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


class Layers(NamedTuple):
    """The three steps of one layer, each to be compiled alone."""

    embed: Callable[..., Tensor]
    block: Callable[..., Tensor]
    project: Callable[..., Tensor]


def softmax_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    scores = query @ key.mT * query.shape[-1] ** -0.5
    out: Tensor = scores.softmax(-1) @ value
    return out


def embed(
    rows: Tensor,  # [T, n, r]
    weight: Tensor,  # [r, d]
    bias: Tensor,  # [d]
    shift: Tensor,  # [r]
    scale: Tensor,  # [r]
    position: Tensor,  # [n, d]
    teacher: Tensor,  # [T, d]
    layer: Tensor,  # [d]
    gamma: Tensor,  # [d]
    beta: Tensor,  # [d]
) -> Tensor:  # [T * n, d]
    x = F.linear((rows - shift) / scale, weight.mT, bias) + position + teacher[:, None] + layer
    return F.layer_norm(x, gamma.shape, gamma, beta).flatten(0, 1)


def encoder_block(attend: Attend, heads: int) -> Callable[..., Tensor]:
    """Return one post-norm block: tokens [S, d] and the tensors of a Block -> [S, d]."""

    def block(x: Tensor, *tensors: Tensor) -> Tensor:
        p = Block(*tensors)
        d = p.norm1_weight.shape
        query, key, value = F.linear(x, p.qkv_weight, p.qkv_bias).unflatten(-1, (3, heads, -1)).permute(1, 2, 0, 3)
        out = attend(query[None], key[None], value[None])[0].transpose(0, 1).flatten(1)
        x = F.layer_norm(x + F.linear(out, p.out_weight, p.out_bias), d, p.norm1_weight, p.norm1_bias)
        hidden = F.linear(F.relu(F.linear(x, p.up_weight, p.up_bias)), p.down_weight, p.down_bias)
        return F.layer_norm(x + hidden, d, p.norm2_weight, p.norm2_bias)

    return block


def project(tokens: Tensor, weight: Tensor, bias: Tensor, strength: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Return the rows [n, r] of the anchor teacher's tokens [n, d]."""
    return scale * strength * F.linear(tokens, weight.mT, bias) + shift


def embedded(rows: Tensor, p: Parameters, layout: TokenLayout, embed: Callable[..., Tensor]) -> list[Tensor]:
    """Return every layer's tokens [T * n, d]."""
    (teachers,) = layout.teachers
    student = layout.layout
    assert p.teacher is not None and p.layer is not None
    shifts, scales = student.column_blocks(p.shift), student.column_blocks(p.scale)
    return [
        embed(
            block.unflatten(0, (teachers, -1)),
            p.embedding_weights[i],
            p.embedding_biases[i],
            shifts[i],
            scales[i],
            p.position[: student.rows[i]],
            p.teacher[1 : teachers + 1],
            p.layer[i],
            p.gamma,
            p.beta,
        )
        for i, block in enumerate(student.row_blocks(rows, teachers))
    ]


def projected(
    tokens: Sequence[Tensor], p: Parameters, layout: TokenLayout, project: Callable[..., Tensor]
) -> list[Tensor]:
    """Return every layer's predicted rows [n, r] from the anchor's tokens [n, d]."""
    student = layout.layout
    shifts, scales = student.column_blocks(p.shift), student.column_blocks(p.scale)
    return [
        project(z, p.projection_weights[i], p.projection_biases[i], p.strength[i], shifts[i], scales[i])
        for i, z in enumerate(tokens)
    ]


def buffer(rows: Sequence[Tensor], layout: TokenLayout) -> list[Tensor]:
    """Return predicted rows as flat parameters in the order and with the padding of a student buffer."""
    found = []
    for layer, block in zip(layout.layout.layers, rows, strict=True):
        for p in layer.parameters:
            flat = block[:, p.start : p.start + p.width].flatten()
            found.append(F.pad(flat, (0, aligned(flat.numel()) - flat.numel())))
    return found
