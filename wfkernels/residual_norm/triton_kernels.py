"""residual_norm in Triton: a program owns whole rows. Rows wider than a tile are walked over in chunks of columns."""

# Parameters of kernels have types of the device.
# mypy: disable-error-code="no-untyped-def,no-untyped-call"

from __future__ import annotations

import triton
import triton.language as tl

from wfkernels.triton_philox import kept_pairs
from wfkernels.triton_statistics import inverse_deviation, merged_statistics


@triton.jit
def add_branch(
    x, residual, h, seed, site, threshold, kept, row, column, rows, width, HAS_DROPOUT: tl.constexpr
):  # fmt: skip
    """Write a tile [M, D] of h and return it as it was rounded, in float32; 0 outside."""
    valid = (row < rows)[:, None] & (column < width)[None, :]
    place = row[:, None] * width + column[None, :]
    branch = tl.load(x + place, mask=valid, other=0.0).to(tl.float32)  # [M, D]
    if HAS_DROPOUT:
        keep = kept_pairs(seed, site, threshold, 0, 0, row[:, None], column[None, :])
        branch = tl.where(keep, branch * kept, 0.0)
    stream = tl.load(residual + place, mask=valid, other=0.0).to(tl.float32)  # [M, D]
    values = (stream + branch).to(h.dtype.element_ty)
    tl.store(h + place, values, mask=valid)
    return values.to(tl.float32)


@triton.jit
def write_normalised(y, values, center, inverse, weight, bias, row, column, rows, width):
    """Write a tile [M, D] of y."""
    gamma = tl.load(weight + column, mask=column < width, other=0.0).to(tl.float32)  # [D]
    beta = tl.load(bias + column, mask=column < width, other=0.0).to(tl.float32)  # [D]
    values = (values - center[:, None]) * inverse[:, None] * gamma[None, :] + beta[None, :]
    place = row[:, None] * width + column[None, :]
    tl.store(y + place, values, mask=(row < rows)[:, None] & (column < width)[None, :])


@triton.jit(do_not_specialize=["rows", "site", "threshold"])
def _residual_norm_forward_kernel(
    x,  # [rows, d]
    residual,  # [rows, d]
    weight,  # [d]
    bias,  # [d]
    h,  # [rows, d]
    y,  # [rows, d]
    mean,  # [rows] float32
    rstd,  # [rows] float32
    seed,
    site,
    threshold,
    kept,
    rows,
    width,
    eps,
    HAS_DROPOUT: tl.constexpr,
    WHOLE: tl.constexpr,  # does a row fit the tile?
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)  # [M]
    columns = tl.arange(0, BLOCK_D)  # [D]
    count = 0.0
    center = tl.zeros([BLOCK_M], tl.float32)
    squares = tl.zeros([BLOCK_M], tl.float32)
    if WHOLE:
        values = add_branch(
            x, residual, h, seed, site, threshold, kept, row, columns, rows, width, HAS_DROPOUT
        )  # fmt: skip
        count, center, squares = merged_statistics(count, center, squares, values, columns < width)
        inverse = inverse_deviation(count, squares, eps)  # [M]
        write_normalised(y, values, center, inverse, weight, bias, row, columns, rows, width)
    else:
        for first in range(0, width, BLOCK_D):
            column = first + columns
            values = add_branch(
                x, residual, h, seed, site, threshold, kept, row, column, rows, width, HAS_DROPOUT
            )  # fmt: skip
            count, center, squares = merged_statistics(count, center, squares, values, column < width)
        inverse = inverse_deviation(count, squares, eps)
        tl.debug_barrier()  # other threads of the program wrote what is read now
        for first in range(0, width, BLOCK_D):
            column = first + columns
            place = row[:, None] * width + column[None, :]
            valid = (row < rows)[:, None] & (column < width)[None, :]
            values = tl.load(h + place, mask=valid, other=0.0).to(tl.float32)  # [M, D]
            write_normalised(y, values, center, inverse, weight, bias, row, column, rows, width)
    tl.store(mean + row, center, mask=row < rows)
    tl.store(rstd + row, inverse, mask=row < rows)


@triton.jit
def load_slopes(grad_y, h, mean, rstd, row, column, rows, width):
    """Return a tile [M, D] of the gradient of y and of h normalised, in float32; 0 outside."""
    valid = (row < rows)[:, None] & (column < width)[None, :]
    place = row[:, None] * width + column[None, :]
    center = tl.load(mean + row, mask=row < rows, other=0.0)  # [M]
    inverse = tl.load(rstd + row, mask=row < rows, other=0.0)  # [M]
    grads = tl.load(grad_y + place, mask=valid, other=0.0).to(tl.float32)  # [M, D]
    values = tl.load(h + place, mask=valid, other=0.0).to(tl.float32)  # [M, D]
    return grads, tl.where(valid, (values - center[:, None]) * inverse[:, None], 0.0)


@triton.jit
def write_gradients(
    through, grad_h, grad_x, grad_residual, seed, site, threshold, kept, row, column, rows, width,
    HAS_DROPOUT: tl.constexpr,
):  # fmt: skip
    """Write a tile [M, D] of both gradients; `through` is what comes from y."""
    valid = (row < rows)[:, None] & (column < width)[None, :]
    place = row[:, None] * width + column[None, :]
    if grad_h is not None:
        through += tl.load(grad_h + place, mask=valid, other=0.0).to(tl.float32)
    tl.store(grad_residual + place, through, mask=valid)
    if HAS_DROPOUT:
        keep = kept_pairs(seed, site, threshold, 0, 0, row[:, None], column[None, :])
        through = tl.where(keep, through * kept, 0.0)
    tl.store(grad_x + place, through, mask=valid)


@triton.jit(do_not_specialize=["rows", "chunk", "site", "threshold"])
def _residual_norm_backward_kernel(
    grad_h,  # [rows, d], or None
    grad_y,  # [rows, d], or None: then there are no sums
    h,  # [rows, d]
    mean,  # [rows] float32
    rstd,  # [rows] float32
    weight,  # [d]
    grad_x,  # [rows, d]
    grad_residual,  # [rows, d]
    sums,  # [chunks, 2, d] float32: gradients of weight and bias
    seed,
    site,
    threshold,
    kept,
    rows,
    chunk,  # rows of a program, a multiple of BLOCK_M
    width,
    HAS_DROPOUT: tl.constexpr,
    WHOLE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    columns = tl.arange(0, BLOCK_D)  # [D]
    begin = tl.program_id(0).to(tl.int64) * chunk
    end = tl.minimum(begin + chunk, rows)
    sums += tl.program_id(0).to(tl.int64) * 2 * width
    of_weight = tl.zeros([BLOCK_D], tl.float32)
    of_bias = tl.zeros([BLOCK_D], tl.float32)
    if WHOLE:
        valid = columns < width
        gamma = tl.load(weight + columns, mask=valid, other=0.0).to(tl.float32)  # [D]
        for first in range(begin, end, BLOCK_M):
            row = first + tl.arange(0, BLOCK_M)  # [M]
            through = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
            if grad_y is not None:
                grads, normalised = load_slopes(grad_y, h, mean, rstd, row, columns, end, width)
                slopes = grads * gamma[None, :]
                level = tl.sum(slopes, 1) / width  # [M]
                along = tl.sum(slopes * normalised, 1) / width  # [M]
                inverse = tl.load(rstd + row, mask=row < end, other=0.0)  # [M]
                through = inverse[:, None] * (slopes - level[:, None] - normalised * along[:, None])
                of_weight += tl.sum(grads * normalised, 0)
                of_bias += tl.sum(grads, 0)
            write_gradients(
                through, grad_h, grad_x, grad_residual, seed, site, threshold, kept, row, columns, end, width,
                HAS_DROPOUT,
            )  # fmt: skip
        if grad_y is not None:
            tl.store(sums + columns, of_weight, mask=valid)
            tl.store(sums + width + columns, of_bias, mask=valid)
    else:
        for first in range(begin, end, BLOCK_M):
            row = first + tl.arange(0, BLOCK_M)
            level = tl.zeros([BLOCK_M], tl.float32)
            along = tl.zeros([BLOCK_M], tl.float32)
            if grad_y is not None:
                for start in range(0, width, BLOCK_D):
                    column = start + columns
                    gamma = tl.load(weight + column, mask=column < width, other=0.0).to(tl.float32)
                    grads, normalised = load_slopes(grad_y, h, mean, rstd, row, column, end, width)
                    level += tl.sum(grads * gamma[None, :], 1) / width
                    along += tl.sum(grads * gamma[None, :] * normalised, 1) / width
            for start in range(0, width, BLOCK_D):
                column = start + columns
                through = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
                if grad_y is not None:
                    gamma = tl.load(weight + column, mask=column < width, other=0.0).to(tl.float32)
                    grads, normalised = load_slopes(grad_y, h, mean, rstd, row, column, end, width)
                    inverse = tl.load(rstd + row, mask=row < end, other=0.0)
                    through = grads * gamma[None, :] - level[:, None] - normalised * along[:, None]
                    through *= inverse[:, None]
                write_gradients(
                    through, grad_h, grad_x, grad_residual, seed, site, threshold, kept, row, column, end, width,
                    HAS_DROPOUT,
                )  # fmt: skip
        if grad_y is not None:
            # A third look at the chunk, because the sums of all columns do not fit beside a tile.
            for start in range(0, width, BLOCK_D):
                column = start + columns
                of_weight = tl.zeros([BLOCK_D], tl.float32)
                of_bias = tl.zeros([BLOCK_D], tl.float32)
                for first in range(begin, end, BLOCK_M):
                    row = first + tl.arange(0, BLOCK_M)
                    grads, normalised = load_slopes(grad_y, h, mean, rstd, row, column, end, width)
                    of_weight += tl.sum(grads * normalised, 0)
                    of_bias += tl.sum(grads, 0)
                tl.store(sums + column, of_weight, mask=column < width)
                tl.store(sums + width + column, of_bias, mask=column < width)
