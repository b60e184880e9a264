"""Embedding forward: a program owns tokens of one layer with all their columns, one tile of them after the other."""

# Parameters of kernels have types of the device.
# mypy: disable-error-code="no-untyped-def,no-untyped-call"

from __future__ import annotations

import triton
import triton.language as tl

from wfkernels.embedding.triton_terms import FIELDS, before_norm, load_entry, product_of_tile
from wfkernels.triton_statistics import inverse_deviation, merged_statistics


@triton.jit
def tile_of_slot(tiles, slot, layers, BLOCK_M: tl.constexpr):
    """Return (layer, its units [M], where these end, which rows of the per-unit tables they are, code of the layer).

    Cross tokens are the units of a layer of width -1 behind the last one.
    """
    number = tl.load(tiles + 4 * slot)
    unit = tl.load(tiles + 4 * slot + 1) + tl.arange(0, BLOCK_M)  # [M]
    place = tl.load(layers + number * FIELDS) + unit
    return number, unit, tl.load(tiles + 4 * slot + 2), place, tl.load(tiles + 4 * slot + 3)


@triton.jit
def write_tokens(out, values, center, inverse, gamma, beta, tokens, place, there, column, d):
    """Write a tile [M, N] of tokens."""
    token = load_entry(tokens, 0, 0, place, there, 0)  # [M]
    inside = column < d
    scaling = tl.load(gamma + column, mask=inside, other=0.0).to(tl.float32)  # [N]
    offset = tl.load(beta + column, mask=inside, other=0.0).to(tl.float32)  # [N]
    values = (values - center[:, None]) * inverse[:, None] * scaling[None, :] + offset[None, :]
    tl.store(out + token[:, None] * d + column[None, :], values, mask=there[:, None] & inside[None, :])


@triton.jit(do_not_specialize=["slots", "every"])
def _embedding_forward_kernel(
    rows,  # the rows buffer
    base,  # [row_numel], or None
    shift,  # [column_numel]
    scale,  # [column_numel]
    weights,  # [widths of all projection groups, d]
    biases,  # [projection groups, d]
    codes,  # [position + teacher + layer + cross, d]
    gamma,  # [d]
    beta,  # [d]
    out,  # [tokens, d]
    scratch,  # [programs, M, columns] float32: tokens before LayerNorm, where they do not fit a tile
    layers,  # [layers + 1, FIELDS]
    tiles,  # [slots, 4]: layer, first unit, last unit and one, code of the layer
    tokens,  # [4, units + cross tokens]: token, its own code and that of its teacher, neuron
    slots,
    every,  # units + cross tokens
    d,
    eps,
    FORM: tl.constexpr,
    WHOLE: tl.constexpr,  # do all columns fit a tile?
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    columns = tl.arange(0, BLOCK_N)  # [N]
    breadth = tl.cdiv(d, BLOCK_N) * BLOCK_N
    # Places in the program's own scratch fit 32 bits.
    scratch += tl.program_id(0).to(tl.int64) * BLOCK_M * breadth
    line = tl.arange(0, BLOCK_M)[:, None] * breadth  # [M, 1]
    for slot in range(tl.program_id(0).to(tl.int64), slots, tl.num_programs(0)):
        number, unit, count, place, of_layer = tile_of_slot(tiles, slot, layers, BLOCK_M)
        there = unit < count
        total = 0.0
        center = tl.zeros([BLOCK_M], tl.float32)
        squares = tl.zeros([BLOCK_M], tl.float32)
        if WHOLE:
            sums = product_of_tile(
                rows, base, shift, scale, weights, biases, layers, tokens, every, number, unit, place, count, columns,
                d, FORM, BLOCK_M, BLOCK_N, BLOCK_K,
            )  # fmt: skip
            values = before_norm(sums, layers, tokens, every, number, codes, of_layer, place, there, columns, d, FORM)
            total, center, squares = merged_statistics(total, center, squares, values, columns < d)
            inverse = inverse_deviation(total, squares, eps)
            write_tokens(out, values, center, inverse, gamma, beta, tokens, place, there, columns, d)
        else:
            for start in range(0, d, BLOCK_N):
                column = start + columns
                sums = product_of_tile(
                    rows, base, shift, scale, weights, biases, layers, tokens, every, number, unit, place, count,
                    column, d, FORM, BLOCK_M, BLOCK_N, BLOCK_K,
                )  # fmt: skip
                values = before_norm(
                    sums, layers, tokens, every, number, codes, of_layer, place, there, column, d, FORM
                )
                total, center, squares = merged_statistics(total, center, squares, values, column < d)
                tl.store(scratch + (line + column[None, :]), values)
            inverse = inverse_deviation(total, squares, eps)
            tl.debug_barrier()  # other threads of the program wrote what is read now
            for start in range(0, d, BLOCK_N):
                column = start + columns
                values = tl.load(scratch + (line + column[None, :]))  # [M, N]
                write_tokens(out, values, center, inverse, gamma, beta, tokens, place, there, column, d)
            tl.debug_barrier()
