"""rows_pack in Triton: a program owns a stretch of the rows of one layer of one teacher, in groups of 8 columns.

Rows of the buffer are aligned to 8 elements, so a group of it is one access. A parameter is read where it lies: a group
at once too where its columns and its memory are aligned likewise, else element by element.
"""

# Parameters of kernels have types of the device.
# mypy: disable-error-code="no-untyped-def,no-untyped-call"

from __future__ import annotations

import triton
import triton.language as tl

GROUP = tl.constexpr(8)  # ALIGNMENT of wfkernels/layout.py
# Columns of the tables of wfkernels/rows/triton_launch.py.
TILE = tl.constexpr(3)
LAYER = tl.constexpr(5)
TENSOR = tl.constexpr(6)


@triton.jit
def place_of_program(tiles, layers, BLOCK_M: tl.constexpr):
    """Return (teacher, its layer's first parameter, last and one, and of every group [M, 1]: row, first column, is it
    there?, first element in the buffer)."""
    tiles += tl.program_id(0) * TILE
    layers += tl.load(tiles) * LAYER
    teacher = tl.load(tiles + 1)
    rows = tl.load(layers + 1)
    across = tl.load(layers + 2).to(tl.int32)  # groups of a row
    group = tl.load(tiles + 2).to(tl.int32) + tl.arange(0, BLOCK_M)[:, None]  # [M, 1]
    begin = tl.multiple_of(tl.load(layers), 8) + (teacher * rows * across + group) * GROUP  # 64 bit, as the tables are
    row = group // across
    return teacher, tl.load(layers + 3), tl.load(layers + 4), row, group % across * GROUP, row < rows, begin


@triton.jit
def place_of_tensor(anchor, tensors, columns, row, head, there, ALIGNED: tl.constexpr):
    """Return where the groups [M, 8] of a parameter lie, and which of their elements there are.

    anchor: memory of the parameter's dtype from which its place is counted: the compiler knows nothing of the alignment
    of an address that comes as an integer.
    """
    within = tl.arange(0, GROUP)[None, :]
    first = tl.load(tensors)
    across = tl.load(tensors + 1)
    start = tl.load(columns)
    width = tl.load(columns + 1)
    if ALIGNED:
        # A group lies inside or outside as a whole.
        first = tl.multiple_of(first, 8) + row * tl.multiple_of(across, 8) + head - tl.multiple_of(start, 8)  # [M, 1]
        inside = there & (head >= start) & (head < start + width)
        return anchor + (first + within), inside & (within >= 0)
    column = (head + within - start).to(tl.int32)  # [M, 8]
    inner = tl.load(tensors + 3).to(tl.int32)
    first += column // inner * tl.load(tensors + 2) + column % inner * tl.load(tensors + 4)
    return anchor + (first + row * across), there & (column >= 0) & (column < width)


@triton.jit
def load_part(anchor, tensors, columns, row, head, there, buffer, ALIGNED: tl.constexpr):
    """Return the elements [M, 8] of a parameter in the dtype of the buffer, and which of them there are."""
    places, inside = place_of_tensor(anchor, tensors, columns, row, head, there, ALIGNED)
    return tl.load(places, mask=inside, other=0.0).to(buffer.dtype.element_ty), inside


@triton.jit
def _rows_pack_kernel(
    tensors,  # [teachers * parameters, TENSOR]: place, strides of rows and blocks, their size, stride of columns, kind
    float32,  # anchors
    float16,
    bfloat16,
    buffer,  # [teachers * row_numel]
    tiles,  # [programs, TILE]: layer, teacher, first group
    layers,  # [layers, LAYER]: first element, rows, groups of a row, first parameter, last and one
    parameters,  # [parameters, 2]: first column, width
    count,  # of parameters
    BLOCK_M: tl.constexpr,
):
    teacher, first, end, row, head, there, begin = place_of_program(tiles, layers, BLOCK_M)
    values = tl.zeros([BLOCK_M, GROUP], buffer.dtype.element_ty)  # the padding too
    for number in range(first, end):
        own = tensors + (teacher * count + number) * TENSOR
        kind = tl.load(own + 5)
        columns = parameters + 2 * number
        # One of these: the dtypes of gpu.DTYPES, each in groups and element by element.
        if kind == 0:
            part, inside = load_part(float32, own, columns, row, head, there, buffer, True)
        elif kind == 1:
            part, inside = load_part(float16, own, columns, row, head, there, buffer, True)
        elif kind == 2:
            part, inside = load_part(bfloat16, own, columns, row, head, there, buffer, True)
        elif kind == 3:
            part, inside = load_part(float32, own, columns, row, head, there, buffer, False)
        elif kind == 4:
            part, inside = load_part(float16, own, columns, row, head, there, buffer, False)
        else:
            part, inside = load_part(bfloat16, own, columns, row, head, there, buffer, False)
        values = tl.where(inside, part, values)
    within = tl.arange(0, GROUP)[None, :]
    tl.store(buffer + (begin + within), values, mask=there & (within >= 0))


@triton.jit
def _rows_pack_backward_kernel(
    tensors,  # [teachers * parameters, TENSOR]; the kind is negative where a gradient is not needed
    anchor,
    buffer,  # [teachers * row_numel]: the gradient
    tiles,
    layers,
    parameters,
    count,
    BLOCK_M: tl.constexpr,
):
    teacher, first, end, row, head, there, begin = place_of_program(tiles, layers, BLOCK_M)
    within = tl.arange(0, GROUP)[None, :]
    values = tl.load(buffer + (begin + within), mask=there & (within >= 0), other=0.0)  # [M, 8]
    for number in range(first, end):
        own = tensors + (teacher * count + number) * TENSOR
        kind = tl.load(own + 5)
        columns = parameters + 2 * number
        if kind >= 0:
            if kind < 3:
                places, inside = place_of_tensor(anchor, own, columns, row, head, there, True)
                tl.store(places, values, mask=inside)
            else:
                places, inside = place_of_tensor(anchor, own, columns, row, head, there, False)
                tl.store(places, values, mask=inside)
