"""embedding in plain PyTorch: the definition of correct."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from wfkernels.activation import activate, activate_backward
from wfkernels.layout import column_blocks, row_blocks
from wfkernels.precision import accumulator


@dataclass(frozen=True)
class Shape:
    """The integers of one call: rows and widths per layer, their projection groups, teachers per group of teachers."""

    rows: Sequence[int]
    widths: Sequence[int]
    projections: Sequence[int]
    positions: Sequence[int]
    teachers: Sequence[int]
    cross: int

    @property
    def copies(self) -> int:
        return sum(self.teachers)

    @property
    def pieces(self) -> list[int]:
        """Tokens in memory order: cross tokens and rows of every sequence in turn."""
        return [size for n in self.rows for t in self.teachers for size in (self.cross, t * n)]

    def row_blocks(self, rows: Tensor, copies: int) -> list[Tensor]:
        """Return each layer's rows [copies, n_l, r_l], as views."""
        blocks = row_blocks(rows, self.rows, self.widths, copies)
        return [block.unflatten(0, (copies, n)) for block, n in zip(blocks, self.rows, strict=True)]

    def column_blocks(self, columns: Tensor) -> list[Tensor]:
        return column_blocks(columns, self.widths)


def _normalised(
    rows: Tensor, base: Tensor | None, shift: Tensor, scale: Tensor, shape: Shape, wide: torch.dtype
) -> list[Tensor]:
    """Return (row - base - shift) / scale per layer, [copies, n_l, r_l]."""
    blocks = [block.to(wide) for block in shape.row_blocks(rows, shape.copies)]
    if base is not None:
        blocks = [block - b.to(wide) for block, b in zip(blocks, shape.row_blocks(base, 1), strict=True)]
    shifts, scales = shape.column_blocks(shift.to(wide)), shape.column_blocks(scale.to(wide))
    return [(block - a) / b for block, a, b in zip(blocks, shifts, scales, strict=True)]


def _sums(
    normalised: list[Tensor],
    weights: Sequence[Tensor],
    biases: Tensor,
    position: Tensor,
    teacher: Tensor | None,
    layer: Tensor | None,
    cross: Tensor | None,
    activation: str,
    shape: Shape,
) -> tuple[Tensor, list[Tensor]]:
    """Return the tokens before LayerNorm, [tokens, d], and every layer's pre-activation [copies * n_l, d]."""
    wide = normalised[0].dtype
    before, tokens = [], []
    # Teacher 0 is the code of cross tokens.
    codes = None if teacher is None else torch.cat([teacher[1 : t + 1] for t in shape.teachers]).to(wide)
    for i, (x, n, g, start) in enumerate(zip(normalised, shape.rows, shape.projections, shape.positions, strict=True)):
        u = torch.addmm(biases[g].to(wide), x.flatten(0, 1), weights[g].to(wide))
        before.append(u)
        token = activate(u, activation).unflatten(0, (shape.copies, n)) + position[start : start + n].to(wide)
        if codes is not None:
            token = token + codes[:, None]
        if layer is not None:
            token = token + layer[i].to(wide)
        tokens.append(token)
    if cross is None:
        return torch.cat([token.flatten(0, 1) for token in tokens]), before
    heads = cross.to(wide)
    if teacher is not None:
        heads = heads + teacher[0].to(wide)
    if layer is not None:
        heads = heads + layer.to(wide).repeat_interleave(len(shape.teachers), 0)[:, None]
    rows = [part.flatten(0, 1) for token in tokens for part in token.split(list(shape.teachers))]
    return torch.cat([piece for pair in zip(heads, rows, strict=True) for piece in pair]), before


def forward(
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
    shape: Shape,
    activation: str,
    eps: float,
) -> Tensor:  # [tokens, d]
    normalised = _normalised(rows, base, shift, scale, shape, accumulator(rows, gamma))
    x, _ = _sums(normalised, weights, biases, position, teacher, layer, cross, activation, shape)
    y = torch.nn.functional.layer_norm(x, gamma.shape, gamma.to(x.dtype), beta.to(x.dtype), eps)
    return y.to(gamma.dtype)


def backward(
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
    shape: Shape,
    activation: str,
    eps: float,
    inputs: bool,
) -> list[Tensor]:
    """Return the gradients of rows, base, shift, scale (0 elements unless `inputs`), biases, position, teacher, layer,
    cross, gamma, beta and then of every weight; an argument that was None has 0 elements."""
    wide = accumulator(rows, gamma)
    normalised = _normalised(rows, base, shift, scale, shape, wide)
    x, before = _sums(normalised, weights, biases, position, teacher, layer, cross, activation, shape)
    scaling, offset = gamma.to(wide), beta.to(wide)
    _, mean, rstd = torch.native_layer_norm(x, gamma.shape, scaling, offset, eps)
    dx, dgamma, dbeta = torch.ops.aten.native_layer_norm_backward(
        grad.to(wide), x, gamma.shape, mean, rstd, scaling, offset, [True, True, True]
    )

    def zeros(like: Tensor | None, wanted: bool = True) -> Tensor:
        size = like.shape if like is not None and wanted else (0,)
        return torch.zeros(size, dtype=wide, device=rows.device)

    drows, dbase, dshift, dscale = (zeros(t, inputs) for t in (rows, base, shift, scale))
    dbiases, dposition, dteacher, dlayer, dcross = (zeros(t) for t in (biases, position, teacher, layer, cross))
    dweights = [zeros(w) for w in weights]

    if inputs:
        row_grads, shift_grads = shape.row_blocks(drows, shape.copies), shape.column_blocks(dshift)
        scales, scale_grads = shape.column_blocks(scale.to(wide)), shape.column_blocks(dscale)
        base_grads = None if base is None else shape.row_blocks(dbase, 1)

    groups = len(shape.teachers)
    pieces = dx.split(shape.pieces)
    if cross is not None:
        dcross = torch.stack(pieces[0::2])
        if teacher is not None:
            dteacher[0] = dcross.sum((0, 1))
        if layer is not None:
            dlayer += dcross.unflatten(0, (-1, groups)).sum((1, 2))

    by_copy = torch.zeros(shape.copies, gamma.shape[0], dtype=wide, device=rows.device)
    for i, (xn, u, n, g, start) in enumerate(
        zip(normalised, before, shape.rows, shape.projections, shape.positions, strict=True)
    ):
        d = torch.cat(pieces[1::2][i * groups : (i + 1) * groups])  # [copies * n, d]
        tokens = d.unflatten(0, (shape.copies, n))
        dposition[start : start + n] += tokens.sum(0)
        if teacher is not None:
            by_copy += tokens.sum(1)
        if layer is not None:
            dlayer[i] += d.sum(0)
        du = activate_backward(d, u, activation)
        dweights[g].addmm_(xn.flatten(0, 1).T, du)
        dbiases[g] += du.sum(0)
        if inputs:
            raw = (du @ weights[g].to(wide).T).view_as(xn) / scales[i]
            row_grads[i].copy_(raw)
            shift_grads[i].sub_(raw.sum((0, 1)))
            scale_grads[i].sub_((raw * xn).sum((0, 1)))
            if base_grads is not None:
                base_grads[i].sub_(raw.sum(0))
    if teacher is not None:
        for part in by_copy.split(list(shape.teachers)):
            dteacher[1 : part.shape[0] + 1] += part

    given = (rows, base, shift, scale, biases, position, teacher, layer, cross, gamma, beta, *weights)
    grads = (drows, dbase, dshift, dscale, dbiases, dposition, dteacher, dlayer, dcross, dgamma, dbeta, *dweights)
    return [g if t is None else g.to(t.dtype) for g, t in zip(grads, given, strict=True)]
