"""Second stages: what single programs found is added up in float64, in a fixed order."""

# Parameters of kernels have types of the device.
# mypy: disable-error-code="no-untyped-def,no-untyped-call"

from __future__ import annotations

import triton
import triton.language as tl

from wfkernels.projection.triton_terms import aligned


@triton.jit
def _projection_fold_kernel(sums, out, segments, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    program = tl.program_id(0)
    parts = tl.load(segments.parts + program)
    size = tl.load(segments.size + program)
    j = tl.load(segments.block + program) * BLOCK_N + tl.arange(0, BLOCK_N)
    sums += tl.load(segments.first + program)
    total = tl.zeros([BLOCK_N], tl.float64)
    for first in range(0, parts, BLOCK_M):
        part = first + tl.arange(0, BLOCK_M)
        valid = (part < parts)[:, None] & (j < size)[None, :]
        found = tl.load(sums + part[:, None] * size + j[None, :], mask=valid, other=0.0)
        total += tl.sum(found.to(tl.float64), 0)
    tl.store(out + tl.load(segments.place + program) + j, total.to(tl.float32), mask=j < size)


@triton.jit
def _sum_of_slots(sums, first, parts, kind, KINDS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """Return the sum [N], float64, of one kind over consecutive slots."""
    total = tl.zeros([BLOCK_N], tl.float64)
    j = tl.arange(0, BLOCK_N)
    for start in range(0, parts, BLOCK_M):
        part = start + tl.arange(0, BLOCK_M)
        places = ((first + part) * KINDS + kind)[:, None] * BLOCK_N + j[None, :]
        found = tl.load(sums + places, mask=(part < parts)[:, None], other=0.0)
        total += tl.sum(found.to(tl.float64), 0)
    return total


@triton.jit
def _projection_fold_columns_kernel(
    sums,  # [slots, 2 or 3, N]: of grad * delta, of grad, of grad * prior
    strength,  # [layers]
    scale,  # [column_numel]
    blend,  # [layers]
    grad_shift,  # [column_numel] to write
    grad_scale,  # [column_numel] to write
    grad_biases,  # every bias's gradient [r], one after the other, to write
    folds,
    layers,
    slots,
    FORM: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    program = tl.program_id(0)
    tile = tl.load(folds.column + program)
    width = tl.load(folds.width + program)
    column = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    kinds: tl.constexpr = 3 if FORM.output == "prior" else 2
    of_bias = tl.zeros([BLOCK_N], tl.float64)
    for place in range(tl.load(folds.begin + program), tl.load(folds.end + program)):
        layer = tl.load(folds.order + place)
        parts = tl.load(slots.parts + layer)
        first = tl.load(slots.first + layer) + tile * parts
        entry = tl.load(layers.column + layer) + column
        level = _sum_of_slots(sums, first, parts, 1, kinds, BLOCK_M, BLOCK_N)
        s = tl.load(strength + layer).to(tl.float32).to(tl.float64)
        factor = tl.load(scale + entry, mask=column < width, other=0.0).to(tl.float32).to(tl.float64)
        of_bias += s * factor * level
        rest = 1.0
        if FORM.output == "prior":
            rest = 1 - tl.load(blend + layer).to(tl.float32)
        # The padding of a column buffer has a gradient of zero.
        inside = column < aligned(width)
        if grad_shift is not None:
            if FORM.output != "plain" and FORM.output != "prior":
                rest = 0.0
            found = tl.where(column < width, (rest * level).to(tl.float32), 0.0)
            tl.store(grad_shift + entry, found, mask=inside)
        if grad_scale is not None:
            found = s * _sum_of_slots(sums, first, parts, 0, kinds, BLOCK_M, BLOCK_N)
            if FORM.output == "prior":
                found += rest * _sum_of_slots(sums, first, parts, 2, kinds, BLOCK_M, BLOCK_N)
            tl.store(grad_scale + entry, tl.where(column < width, found.to(tl.float32), 0.0), mask=inside)
    tl.store(grad_biases + tl.load(folds.place + program) + column, of_bias.to(tl.float32), mask=column < width)
