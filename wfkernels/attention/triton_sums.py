"""Gradients of bias, gate and tables: sums over heads, batch and sequences, in registers and in a fixed order.

A program owns a tile [M, N] of pairs, computes dS of it for one (batch entry, head) after the other and adds up. A
second stage adds what several programs found for the same entries. docs/performance.md says what was compared.
"""

# Parameters of kernels have types of the device.
# mypy: disable-error-code="no-untyped-def,no-untyped-call"

from __future__ import annotations

import triton
import triton.language as tl

from wfkernels.attention.triton_backward import shares_and_changes
from wfkernels.attention.triton_terms import (
    LARGEST_POWER,
    bounds_of_sequence,
    bucket_of_pair,
    load_statistic,
    load_tokens,
    narrowed,
    scores_and_gates,
)


@triton.jit
def slopes_of_pairs(
    query, key, value, grad_out, norm, delta, bias, gate, sequence, head, index, row, columns,
    first_query, queries, first_key, keys, heads, sharing, width, value_width, scale, seed, site, threshold, kept,
    OF_GATE: tl.constexpr, FORM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    """Return the gradient of the bias or of the gate of every pair [M, N]; 0 outside."""
    d = tl.arange(0, BLOCK_D)
    v = tl.arange(0, BLOCK_V)
    column = columns[None, :]
    q = load_tokens(query, sequence, head, first_query, index, queries, d, width)  # [M, D]
    k = load_tokens(key, sequence, head // sharing, first_key, columns, keys, d, width)  # [N, D]
    products = tl.dot(q, tl.trans(k), input_precision=FORM.precision)  # [M, N]
    grad = load_tokens(grad_out, sequence, head, first_query, index, queries, v, value_width)  # [M, Dv]
    values = load_tokens(value, sequence, head // sharing, first_key, columns, keys, v, value_width)  # [N, Dv]
    grad_shares = tl.dot(grad, tl.trans(values), input_precision=FORM.precision)  # [M, N]
    level = load_statistic(norm, sequence, head, first_query, index, queries, float("inf"))[:, None]
    taken = load_statistic(delta, sequence, head, first_query, index, queries, 0.0)[:, None]
    scores, gates = scores_and_gates(
        products, bias, gate, sequence, head, heads, index[:, None], row[:, None], column, first_key, queries, keys,
        scale, FORM,
    )  # fmt: skip
    powers, shares, _, changes = shares_and_changes(
        scores, gates, grad_shares, level, taken, seed, site, threshold, kept, sequence, head, row[:, None], column,
        FORM,
    )  # fmt: skip
    return (tl.minimum(powers, LARGEST_POWER) if OF_GATE else shares) * changes


@triton.jit(do_not_specialize=["count", "queries", "keys", "site", "threshold", "rows", "columns", "shares", "splits"])
def _attention_backward_dense_term_kernel(
    query,  # Tokens [N, H, Sq, D]
    key,  # Tokens [N, Hk, Sk, D]
    value,  # Tokens [N, Hk, Sk, Dv]
    grad_out,  # Tokens [N, H, Sq, Dv]
    norm,  # Tokens [N, H, Sq, 1]
    delta,  # Tokens [N, H, Sq, 1]
    pairs,  # [owners, shares] int32: the (batch entry, head) that share one bias, as sequence * H + head
    sums,  # [splits, owners, R, C]: R is rows, or the number of tiles of rows where those are summed; C likewise
    bias,
    gate,
    sequences,
    count,
    queries,
    keys,
    heads,
    sharing,
    width,
    value_width,
    scale,
    seed,
    site,
    threshold,
    kept,
    rows,  # of the bias before summing
    columns,
    shares,
    splits,
    OF_GATE: tl.constexpr,
    SUM_ROWS: tl.constexpr,
    SUM_COLUMNS: tl.constexpr,
    FORM: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    row_tiles = tl.cdiv(rows, BLOCK_M)
    column_tiles = tl.cdiv(columns, BLOCK_N)
    program = tl.program_id(0)
    column_tile = program % column_tiles
    row_tile = program // column_tiles % row_tiles
    owner = program // column_tiles // row_tiles // splits  # with the splits: [owners, splits]
    split = program // column_tiles // row_tiles % splits
    first_row = row_tile.to(tl.int64) * BLOCK_M
    first_column = column_tile.to(tl.int64) * BLOCK_N
    table_row = first_row + tl.arange(0, BLOCK_M)  # [M]
    column = (first_column + tl.arange(0, BLOCK_N)).to(tl.int32)  # [N]

    tile = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    begin = shares.to(tl.int64) * split // splits
    end = shares.to(tl.int64) * (split + 1) // splits
    for share in range(begin, end):
        pair = tl.load(pairs + owner.to(tl.int64) * shares + share).to(tl.int64)
        sequence = pair // heads
        head = pair % heads
        first_query, length, first_key, key_length, start = bounds_of_sequence(sequences, sequence, queries, keys, FORM)
        index = table_row - start if FORM.is_ragged else table_row
        row = table_row if FORM.is_ragged else table_row + start
        # Is there any pair of this sequence in the tile?
        last = tl.max(row, 0)
        inside = (first_column < key_length) & (tl.min(index, 0) < length) & (tl.max(index, 0) >= 0)
        if FORM.is_causal:
            inside = inside & (first_column <= last)
        if inside:
            tile += slopes_of_pairs(
                query, key, value, grad_out, norm, delta, bias, gate, sequence, head, index, row, column,
                first_query, length, first_key, key_length, heads, sharing, width, value_width, scale,
                seed, site, threshold, kept, OF_GATE, FORM, BLOCK_D, BLOCK_V,
            )  # fmt: skip

    # Rows and columns of `sums`.
    height = row_tiles if SUM_ROWS else rows
    breadth = column_tiles if SUM_COLUMNS else columns
    owners = tl.num_programs(0) // (column_tiles * row_tiles * splits)
    sums += (split.to(tl.int64) * owners + owner) * height * breadth
    if SUM_ROWS and SUM_COLUMNS:
        tl.store(sums + row_tile.to(tl.int64) * breadth + column_tile, tl.sum(tl.sum(tile, 1), 0))
    elif SUM_ROWS:
        tl.store(sums + row_tile.to(tl.int64) * breadth + column, tl.sum(tile, 0), mask=column < columns)
    elif SUM_COLUMNS:
        tl.store(sums + table_row * breadth + column_tile, tl.sum(tile, 1), mask=table_row < rows)
    else:
        places = table_row[:, None] * breadth + column[None, :]
        tl.store(sums + places, tile, mask=(table_row < rows)[:, None] & (column < columns)[None, :])


@triton.jit(do_not_specialize=["count", "queries", "keys", "site", "threshold", "owners", "shares", "splits", "first"])
def _attention_backward_table_kernel(
    query,  # Tokens [N, H, Sq, D]
    key,  # Tokens [N, Hk, Sk, D]
    value,  # Tokens [N, Hk, Sk, Dv]
    grad_out,  # Tokens [N, H, Sq, Dv]
    norm,  # Tokens [N, H, Sq, 1]
    delta,  # Tokens [N, H, Sq, 1]
    pairs,  # dense [owners, shares] int32: the (batch entry, head) that share one table, as sequence * H + head
    sums,  # [slots * splits, owners, entries] float32: what one program finds
    bias,
    gate,
    sequences,
    tiles,
    count,
    queries,
    keys,
    heads,
    sharing,
    width,
    value_width,
    scale,
    seed,
    site,
    threshold,
    kept,
    owners,  # heads of the table
    shares,
    splits,
    entries,
    first,  # entry of this launch
    OF_GATE: tl.constexpr,
    FORM: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_E: tl.constexpr,
):
    program = tl.program_id(0)
    owner = (program % owners).to(tl.int64)
    part = (program // owners).to(tl.int64)
    split = part % splits
    slot = part // splits
    begin = shares.to(tl.int64) * split // splits
    end = shares.to(tl.int64) * (split + 1) // splits
    tile = slot
    fixed = slot * 0
    if FORM.is_ragged:
        fixed = tl.load(tiles.sequence + slot).to(tl.int64)
        tile = tl.load(tiles.tile + slot).to(tl.int64)
        end = tl.where(fixed < 0, begin, end)
        fixed = tl.maximum(fixed, 0)

    entry = first + tl.arange(0, BLOCK_E)  # [E]
    found = tl.zeros([BLOCK_E], tl.float32)
    # Batch entries whose rows are the same share their buckets: the launcher gives one program several of them, and
    # its tile is summed over them first. Where rows differ it gives every program one.
    first_pair = tl.load(pairs + owner * shares + begin).to(tl.int64)
    sequence = fixed if FORM.is_ragged else first_pair // heads
    first_query, length, first_key, key_length, start = bounds_of_sequence(sequences, sequence, queries, keys, FORM)
    index = tile * BLOCK_M + tl.arange(0, BLOCK_M)  # [M]
    row = start + index
    last = key_length
    if FORM.is_causal:
        last = tl.minimum(key_length, start + (tile + 1) * BLOCK_M)
    last = tl.where(begin < end, last, 0)
    for first_column in range(0, last, BLOCK_N):
        column = (first_column + tl.arange(0, BLOCK_N)).to(tl.int32)  # [N]
        slopes = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        for share in range(begin, end):
            pair = tl.load(pairs + owner * shares + share).to(tl.int64)
            if not FORM.is_ragged:
                sequence = pair // heads
            head = pair % heads
            slopes += slopes_of_pairs(
                query, key, value, grad_out, norm, delta, bias, gate, sequence, head, index, row, column,
                first_query, length, first_key, key_length, heads, sharing, width, value_width, scale,
                seed, site, threshold, kept, OF_GATE, FORM, BLOCK_D, BLOCK_V,
            )  # fmt: skip
        term = gate if OF_GATE else bias
        row_valid = (index < length)[:, None]
        column_valid = (column < key_length)[None, :]
        cell, difference = bucket_of_pair(term, row[:, None], column[None, :], first_key, row_valid, column_valid)
        counted = row_valid & column_valid
        if FORM.gate_diagonal_open if OF_GATE else FORM.bias_diagonal_open:
            counted = counted & (narrowed(row)[:, None] != column[None, :])
        bucket = tl.load(term.lookup + difference, mask=counted, other=0).to(tl.int32)
        place = tl.where(counted, cell * term.entries + bucket, -1)  # [M, N]
        # Tiles far from the diagonal hold few buckets: only those between the lowest and the highest are looked for.
        lowest = tl.min(tl.min(tl.where(counted, place, first + BLOCK_E), 1), 0)
        highest = tl.max(tl.max(place, 1), 0)
        for one in range(tl.maximum(lowest, first), tl.minimum(highest, first + BLOCK_E - 1) + 1):
            whole = tl.sum(tl.sum(tl.where(place == one, slopes, 0.0), 1), 0)
            found += tl.where(entry == one, whole, 0.0)
    tl.store(sums + (part * owners + owner) * entries + entry, found, mask=entry < entries)
