"""What the attention kernels share: where a program works, the scores of a tile with bias and gate, dropout.

A tile's `index` (query of its sequence), `row` (index + query_start) and `column` come as [M, 1] and [1, N], or
transposed as [1, M] and [N, 1]: everything here broadcasts, so one text serves both orientations. Places of rows and
columns are 64 bit, but no integers of a whole tile are: they would take two registers each.
"""

# Parameters of kernels have types of the device.
# mypy: disable-error-code="no-untyped-def,no-untyped-call"

from __future__ import annotations

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
# exp(30), above which the gradient of a closed gate is cut: LARGEST_EXPONENT of wfkernels/attention/reference.py.
LARGEST_POWER = tl.constexpr(10686474581524.463)
# Rows beyond any sequence, so that differences fit 32 bits.
MOST_ROWS = tl.constexpr(1 << 30)


@triton.jit
def tile_of_program(tiles, count, heads, length, BLOCK: tl.constexpr, LAST_FIRST: tl.constexpr, FORM: tl.constexpr):
    """Return (sequence, head, tile), int64; sequence is negative where the program has no work.

    Heads and batch entries of one tile run side by side and so find a bias that they share in the L2 cache.
    """
    program = tl.program_id(0)
    if FORM.is_ragged:
        head = program % heads
        slot = program // heads
        sequence = tl.load(tiles.sequence + slot)
        tile = tl.load(tiles.tile + slot)
    else:
        pairs = count * heads
        sequence = program % pairs % count
        head = program % pairs // count
        tile = program // pairs
        if LAST_FIRST:  # the last rows of a causal call have the most keys
            tile = tl.cdiv(length, BLOCK) - 1 - tile
    return sequence.to(tl.int64), head.to(tl.int64), tile.to(tl.int64)


@triton.jit
def bounds_of_sequence(sequences, sequence, queries, keys, FORM: tl.constexpr):
    """Return (first query token, number of queries, first key token, number of keys, row of query 0)."""
    first_query = sequence * 0
    first_key = sequence * 0
    start = sequence * 0
    if FORM.is_ragged:
        first_query = tl.load(sequences.offsets + sequence).to(tl.int64)
        queries = tl.load(sequences.offsets + sequence + 1).to(tl.int64) - first_query
        first_key = tl.load(sequences.key_offsets + sequence).to(tl.int64)
        keys = tl.load(sequences.key_offsets + sequence + 1).to(tl.int64) - first_key
    if sequences.query_start is not None:
        start = tl.load(sequences.query_start + sequence * sequences.start_stride).to(tl.int64)
    return first_query, queries, first_key, keys, start


@triton.jit
def load_tokens(x, sequence, head, first, index, length, column, width):
    """Return a tile [M, X] of a tensor over tokens, 0 outside; index [M], column [X]."""
    token = (first + index)[:, None]
    pointers = x.data + sequence * x.batch + head * x.head + token * x.token + column[None, :]
    return tl.load(pointers, mask=((index >= 0) & (index < length))[:, None] & (column < width)[None, :], other=0.0)


@triton.jit
def store_tokens(x, values, sequence, head, first, index, length, column, width):
    token = (first + index)[:, None]
    pointers = x.data + sequence * x.batch + head * x.head + token * x.token + column[None, :]
    tl.store(pointers, values, mask=(index < length)[:, None] & (column < width)[None, :])


@triton.jit
def load_statistic(x, sequence, head, first, index, length, other: tl.constexpr):
    """Return one number per query: [M], or of the shape of index."""
    pointers = x.data + sequence * x.batch + head * x.head + (first + index) * x.token
    return tl.load(pointers, mask=(index >= 0) & (index < length), other=other)


@triton.jit
def store_statistic(x, values, sequence, head, first, index, length):
    pointers = x.data + sequence * x.batch + head * x.head + (first + index) * x.token
    tl.store(pointers, values, mask=index < length)


@triton.jit
def narrowed(row):
    """Return rows in 32 bits; those beyond any sequence stay beyond."""
    return tl.minimum(row, MOST_ROWS).to(tl.int32)


@triton.jit
def bucket_of_pair(term, row, column, first_key, row_valid, column_valid):
    """Return (cell, difference) of every pair, int32: where it stands in table [cells, entry] and in lookup."""
    if term.position is None:
        difference = narrowed(row) - column
    else:
        # Positions may lie further apart than 32 bits count.
        of_row = tl.load(term.position + first_key + row, mask=row_valid, other=0).to(tl.int64)
        of_column = tl.load(term.position + first_key + column, mask=column_valid, other=0).to(tl.int64)
        difference = of_row - of_column
    difference = (tl.minimum(tl.maximum(difference, -term.reach), term.reach) + term.reach).to(tl.int32)
    cell = tl.zeros_like(difference)
    if term.group is not None:
        of_row = tl.load(term.group + first_key + row, mask=row_valid, other=0).to(tl.int32)
        of_column = tl.load(term.group + first_key + column, mask=column_valid, other=0).to(tl.int32)
        cell = of_row * term.groups + of_column
    if term.segment is not None:
        of_row = tl.load(term.segment + first_key + row, mask=row_valid, other=0).to(tl.int64)
        of_column = tl.load(term.segment + first_key + column, mask=column_valid, other=0).to(tl.int64)
        cell = cell * 2 + (of_row == of_column).to(tl.int32)
    return cell, difference


@triton.jit
def term_values(
    term,
    sequence,
    head,
    heads,
    index,
    row,
    column,
    first_key,
    row_valid,
    column_valid,
    KIND: tl.constexpr,
    DIAGONAL_OPEN: tl.constexpr,
    NEUTRAL: tl.constexpr,
    FORM: tl.constexpr,
):
    """Return the entries of a tile in float32, 0 outside."""
    if KIND == "dense":
        place = sequence * term.batch + head * term.head
        if term.places is not None:
            place = tl.load(term.places + sequence * heads + head)
        # A ragged call's table counts the rows of the sequence, a dense call's tensor the queries given.
        place += (row if FORM.is_ragged else index.to(tl.int64)) * term.row
        values = tl.load(
            term.data + place + column.to(tl.int64) * term.column, mask=row_valid & column_valid, other=0.0
        ).to(tl.float32)
    else:
        cell, difference = bucket_of_pair(term, row, column, first_key, row_valid, column_valid)
        table = term.data + head * term.head
        place = cell * (2 * term.reach + 1) + difference
        values = tl.load(table + place, mask=row_valid & column_valid, other=0.0)
        if DIAGONAL_OPEN:
            values = tl.where(narrowed(row) == column, NEUTRAL, values)
    return values


@triton.jit
def scores_and_gates(
    products,
    bias,
    gate,
    sequence,
    head,
    heads,
    index,
    row,
    column,
    first_key,
    queries,
    keys,
    scale,
    FORM: tl.constexpr,
):
    """Return scores times log2(e), -inf where forbidden, and gates, 0 where forbidden (1 where there is no gate).

    Values of forbidden pairs are chosen away, not multiplied away: a NaN there does not spread.
    """
    row_valid = (index >= 0) & (index < queries)
    column_valid = column < keys
    scores = products * (scale * LOG2E)
    allowed = row_valid & column_valid
    if FORM.is_causal:
        allowed = allowed & (column <= narrowed(row))
    # Named, because Triton 3.6 takes no field that is a string for an argument.
    BIAS: tl.constexpr = FORM.bias
    GATE: tl.constexpr = FORM.gate
    if FORM.bias != "none":
        values = term_values(
            bias, sequence, head, heads, index, row, column, first_key, row_valid, column_valid,
            BIAS, FORM.bias_diagonal_open, 0.0, FORM,
        )  # fmt: skip
        allowed = allowed & (values != float("-inf"))
        scores += values * LOG2E
    scores = tl.where(allowed, scores, float("-inf"))
    gates = 1.0
    if FORM.gate != "none":
        gates = term_values(
            gate, sequence, head, heads, index, row, column, first_key, row_valid, column_valid,
            GATE, FORM.gate_diagonal_open, 1.0, FORM,
        )  # fmt: skip
        gates = tl.where(allowed, gates, 0.0)
    return scores, gates
