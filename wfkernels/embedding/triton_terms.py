"""What the embedding kernels share: normalised rows, tokens before LayerNorm, the activation and its derivative."""

# Parameters of kernels have types of the device.
# mypy: disable-error-code="no-untyped-def,no-untyped-call"

from __future__ import annotations

import triton
import triton.language as tl

# Columns of the table of layers: FIELDS of wfkernels/embedding/triton_schedule.py.
FIELDS = tl.constexpr(10)
SQRT_HALF = tl.constexpr(0.7071067811865476)
INVERSE_SQRT_2PI = tl.constexpr(0.3989422804014327)


@triton.jit
def place_of_layer(layers, number):
    """Return (width, stride, first row, first base, first column) of a layer, in elements of their buffers."""
    layers += number * FIELDS
    # Rows are aligned, so that the compiler may read several columns at once.
    stride = tl.multiple_of(tl.load(layers + 2), 8)
    first_row = tl.multiple_of(tl.load(layers + 3), 8)
    first_base = tl.multiple_of(tl.load(layers + 4), 8)
    first_column = tl.multiple_of(tl.load(layers + 5), 8)
    return tl.load(layers + 1), stride, first_row, first_base, first_column


@triton.jit
def as_factor(x, FORM: tl.constexpr):
    """Return x in the dtype in which products are taken."""
    return x.to(tl.bfloat16) if FORM.is_narrow else x.to(tl.float32)


@triton.jit
def load_normalised(rows, base, shift, scale, layers, number, unit, neuron, count, column, FORM: tl.constexpr):
    """Return (row - base - shift) / scale, [M, K] float32, 0 outside; units and neurons [M] and columns [K] of a layer.

    The difference is taken before anything is rounded: rows of close networks would be equal in 16 bits.
    """
    width, stride, first_row, first_base, first_column = place_of_layer(layers, number)
    # The padding is read too, and chosen away afterwards, because a mask at an odd width would split the loads.
    readable = (unit < count)[:, None] & (column < stride)[None, :]
    x = tl.load(rows + first_row + unit[:, None] * stride + column[None, :], mask=readable, other=0.0).to(tl.float32)
    if base is not None:
        places = first_base + neuron[:, None] * stride + column[None, :]
        x -= tl.load(base + places, mask=readable, other=0.0).to(tl.float32)
    x -= tl.load(shift + first_column + column, mask=column < stride, other=0.0).to(tl.float32)[None, :]
    divisor = tl.load(scale + first_column + column, mask=column < stride, other=1.0).to(tl.float32)[None, :]
    x = x * (1 / divisor) if FORM.is_narrow else tl.div_rn(x, divisor)
    return tl.where((unit < count)[:, None] & (column < width)[None, :], x, 0.0)


@triton.jit
def load_entry(tokens, entry: tl.constexpr, every, place, there, other: tl.constexpr):
    """Return an entry per unit [M] of the table of tokens, int64: 0 token, 1 own code, 2 teacher's code, 3 neuron.

    It is read where it is needed: held over a loop it would take registers from the tile.
    """
    return tl.load(tokens + entry * every + place, mask=there, other=other).to(tl.int64)


@triton.jit
def product_of_tile(
    rows, base, shift, scale, weights, biases, layers, tokens, every, number, unit, place, count, column, d,
    FORM: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Return the pre-activation of a tile of units [M] and columns [N] of tokens, float32."""
    neuron = unit
    if base is not None:
        neuron = load_entry(tokens, 3, every, place, unit < count, 0)  # [M]
    width = tl.load(layers + number * FIELDS + 1)
    weights += tl.load(layers + number * FIELDS + 7) * d
    group = tl.load(layers + number * FIELDS + 8)
    sums = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for first in range(0, width, BLOCK_K):
        depth = first + tl.arange(0, BLOCK_K)  # [K]
        x = load_normalised(rows, base, shift, scale, layers, number, unit, neuron, count, depth, FORM)  # [M, K]
        inside = (depth < width)[:, None] & (column < d)[None, :]
        w = tl.load(weights + depth[:, None] * d + column[None, :], mask=inside, other=0.0)  # [K, N]
        sums = tl.dot(as_factor(x, FORM), as_factor(w, FORM), sums, input_precision=FORM.precision)
    bias = tl.load(biases + group * d + column, mask=column < d, other=0.0).to(tl.float32)  # [N]
    return sums + bias[None, :]


@triton.jit
def load_codes(codes, index, column, d):
    """Return a code per row, [M, N] float32; those of rows without one, whose index is negative, are 0."""
    inside = (index >= 0)[:, None] & (column < d)[None, :]
    return tl.load(codes + index[:, None] * d + column[None, :], mask=inside, other=0.0).to(tl.float32)


@triton.jit
def before_norm(sums, layers, tokens, every, number, codes, of_layer, place, there, column, d, FORM: tl.constexpr):
    """Return the token of every pre-activation, [M, N]: a cross token, of a layer without columns, has no product."""
    is_cross = tl.load(layers + number * FIELDS + 1) < 0
    x = tl.where(is_cross, 0.0, activate(sums, FORM))
    x += load_codes(codes, load_entry(tokens, 1, every, place, there, -1), column, d)
    if FORM.has_teacher:
        x += load_codes(codes, load_entry(tokens, 2, every, place, there, -1), column, d)
    if FORM.has_layer:
        x += tl.load(codes + of_layer * d + column, mask=column < d, other=0.0).to(tl.float32)[None, :]
    return x


@triton.jit
def activate(x, FORM: tl.constexpr):
    if FORM.activation == "relu":
        x = tl.where(x < 0, 0.0, x)
    elif FORM.activation == "gelu":
        x = 0.5 * x * (1 + tl.erf(x * SQRT_HALF))
    return x


@triton.jit
def activate_backward(grad, x, FORM: tl.constexpr):
    """Return grad times the derivative of the activation at x."""
    if FORM.activation == "relu":
        grad = tl.where(x > 0, grad, 0.0)
    elif FORM.activation == "gelu":
        share = 0.5 * (1 + tl.erf(x * SQRT_HALF))
        grad *= share + x * INVERSE_SQRT_2PI * tl.exp(-0.5 * x * x)
    return grad
