"""Attention backward: three kernels, each of which owns what it writes, so that nothing is added up in memory.

delta_i = rowsum(dO o O) - dlse, norm_i = lse_i * log2(e)
queries: a program owns a tile of queries of one head and walks over the keys: dq = scale * dS K
keys:    a program owns a tile of keys of one key head and walks over its heads and their queries:
         dv = (P o Z)^T dO, dk = scale * dS^T Q; its tiles are transposed, [N, M]
"""

# Parameters of kernels have types of the device.
# mypy: disable-error-code="no-untyped-def,no-untyped-call"

from __future__ import annotations

import triton
import triton.language as tl

from wfkernels.attention.triton_open import bounds_of_walk, token_of_walk
from wfkernels.attention.triton_terms import (
    LOG2E,
    bounds_of_sequence,
    load_statistic,
    load_tokens,
    scores_and_gates,
    store_statistic,
    store_tokens,
    tile_of_program,
)
from wfkernels.triton_philox import kept_pairs


@triton.jit(do_not_specialize=["count", "queries", "keys", "site", "threshold"])
def _attention_backward_delta_kernel(
    grad_out,  # Tokens [N, H, Sq, Dv]
    out,  # Tokens [N, H, Sq, Dv]
    lse,  # Tokens [N, H, Sq, 1]
    grad_lse,  # Tokens or None
    norm,  # Tokens [N, H, Sq, 1], to write: +inf where nothing was open
    delta,  # Tokens [N, H, Sq, 1], to write
    sequences,
    tiles,
    count,
    queries,
    keys,
    heads,
    value_width,
    FORM: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    sequence, head, tile = tile_of_program(tiles, count, heads, queries, BLOCK_M, False, FORM)
    if sequence < 0:
        return
    first_query, queries, _, _, _ = bounds_of_sequence(sequences, sequence, queries, keys, FORM)
    index = tile * BLOCK_M + tl.arange(0, BLOCK_M)  # [M]
    v = tl.arange(0, BLOCK_V)
    grad = load_tokens(grad_out, sequence, head, first_query, index, queries, v, value_width).to(tl.float32)
    found = load_tokens(out, sequence, head, first_query, index, queries, v, value_width).to(tl.float32)
    sums = tl.sum(grad * found, 1)  # [M]
    if grad_lse is not None:
        sums -= load_statistic(grad_lse, sequence, head, first_query, index, queries, 0.0)
    level = load_statistic(lse, sequence, head, first_query, index, queries, float("-inf"))
    dead = level == float("-inf")
    store_statistic(norm, tl.where(dead, float("inf"), level * LOG2E), sequence, head, first_query, index, queries)
    store_statistic(delta, tl.where(dead, 0.0, sums), sequence, head, first_query, index, queries)


@triton.jit
def shares_and_changes(
    scores, gates, grad_shares, norm, delta, seed, site, threshold, kept, sequence, head, row, column,
    FORM: tl.constexpr,
):  # fmt: skip
    """Return P without its gate, P, P o Z and dP - delta of a tile; norm and delta broadcast along the keys."""
    powers = tl.exp2(scores - norm)
    shares = powers
    if FORM.gate != "none":
        shares = tl.where(gates != 0, powers * gates, 0.0)
    dropped = shares
    if FORM.has_dropout:
        keep = kept_pairs(seed, site, threshold, sequence, head, row, column)
        dropped = tl.where(keep, shares * kept, 0.0)
        grad_shares = tl.where(keep, grad_shares * kept, 0.0)
    return powers, shares, dropped, grad_shares - delta


@triton.jit(do_not_specialize=["walk", "count", "queries", "keys", "site", "threshold"])
def _attention_backward_queries_kernel(
    query,  # Tokens [N, H, Sq, D]
    key,  # Tokens [N, Hk, Sk, D]
    value,  # Tokens [N, Hk, Sk, Dv]
    grad_out,  # Tokens [N, H, Sq, Dv]
    grad_query,  # Tokens [N, H, Sq, D]
    norm,  # Tokens [N, H, Sq, 1]
    delta,  # Tokens [N, H, Sq, 1]
    bias,
    gate,
    sequences,
    tiles,
    walk,  # over the open tiles of keys, or None
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
    FORM: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    sequence, head, tile = tile_of_program(tiles, count, heads, queries, BLOCK_M, FORM.is_causal, FORM)
    if sequence < 0:
        return
    first_query, queries, first_key, keys, start = bounds_of_sequence(sequences, sequence, queries, keys, FORM)
    index = tile * BLOCK_M + tl.arange(0, BLOCK_M)  # [M]
    row = (start + index)[:, None]  # [M, 1]
    d = tl.arange(0, BLOCK_D)
    v = tl.arange(0, BLOCK_V)
    q = load_tokens(query, sequence, head, first_query, index, queries, d, width)  # [M, D]
    grad = load_tokens(grad_out, sequence, head, first_query, index, queries, v, value_width)  # [M, Dv]
    level = load_statistic(norm, sequence, head, first_query, index, queries, float("inf"))[:, None]
    taken = load_statistic(delta, sequence, head, first_query, index, queries, 0.0)[:, None]

    sums = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    end = keys
    if FORM.is_causal:
        end = tl.minimum(keys, start + (tile + 1) * BLOCK_M)
    STEP: tl.constexpr = BLOCK_N if walk is None else 1
    listed, begin, end = bounds_of_walk(walk, sequence, head, tile, 0, end, BLOCK_N)
    for place in range(begin, end, STEP):
        first = token_of_walk(walk, listed, place, BLOCK_N)
        columns = (first + tl.arange(0, BLOCK_N)).to(tl.int32)  # [N]
        column = columns[None, :]
        k = load_tokens(key, sequence, head // sharing, first_key, columns, keys, d, width)  # [N, D]
        values = load_tokens(value, sequence, head // sharing, first_key, columns, keys, v, value_width)  # [N, Dv]
        products = tl.dot(q, tl.trans(k), input_precision=FORM.precision)  # [M, N]
        grad_shares = tl.dot(grad, tl.trans(values), input_precision=FORM.precision)  # [M, N]
        scores, gates = scores_and_gates(
            products, bias, gate, sequence, head, heads, index[:, None], row, column, first_key, queries, keys,
            scale, FORM,
        )  # fmt: skip
        _, shares, _, changes = shares_and_changes(
            scores, gates, grad_shares, level, taken, seed, site, threshold, kept, sequence, head, row, column, FORM
        )
        slopes = (shares * changes).to(k.dtype)
        sums = tl.dot(slopes, k, sums, input_precision=FORM.precision)
    store_tokens(grad_query, sums * scale, sequence, head, first_query, index, queries, d, width)


@triton.jit(do_not_specialize=["walk", "count", "queries", "keys", "site", "threshold"])
def _attention_backward_keys_kernel(
    query,  # Tokens [N, H, Sq, D]
    key,  # Tokens [N, Hk, Sk, D]
    value,  # Tokens [N, Hk, Sk, Dv]
    grad_out,  # Tokens [N, H, Sq, Dv]
    grad_key,  # Tokens [N, Hk, Sk, D]
    grad_value,  # Tokens [N, Hk, Sk, Dv]
    norm,  # Tokens [N, H, Sq, 1]
    delta,  # Tokens [N, H, Sq, 1]
    bias,
    gate,
    sequences,
    tiles,
    walk,  # over the open tiles of queries, or None
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
    FORM: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    sequence, key_head, tile = tile_of_program(tiles, count, heads // sharing, keys, BLOCK_N, False, FORM)
    if sequence < 0:
        return
    first_query, queries, first_key, keys, start = bounds_of_sequence(sequences, sequence, queries, keys, FORM)
    columns = (tile * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int32)  # [N]
    column = columns[:, None]  # [N, 1]
    d = tl.arange(0, BLOCK_D)
    v = tl.arange(0, BLOCK_V)
    k = load_tokens(key, sequence, key_head, first_key, columns, keys, d, width)  # [N, D]
    values = load_tokens(value, sequence, key_head, first_key, columns, keys, v, value_width)  # [N, Dv]

    key_sums = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    value_sums = tl.zeros([BLOCK_N, BLOCK_V], tl.float32)
    begin = queries * 0
    if FORM.is_causal:  # the first query that sees one of these keys, down to a multiple of the tile
        begin = tl.minimum(tl.maximum(tile * BLOCK_N - start, 0), queries) // BLOCK_M * BLOCK_M
    STEP: tl.constexpr = BLOCK_M if walk is None else 1
    for head in range(key_head * sharing, (key_head + 1) * sharing):
        listed, first_place, last_place = bounds_of_walk(walk, sequence, head, tile, begin, queries, BLOCK_M)
        for place in range(first_place, last_place, STEP):
            first = token_of_walk(walk, listed, place, BLOCK_M)
            queried = first + tl.arange(0, BLOCK_M)  # [M]
            index = queried.to(tl.int64)[None, :]
            row = start + index  # [1, M]
            q = load_tokens(query, sequence, head, first_query, queried, queries, d, width)  # [M, D]
            grad = load_tokens(grad_out, sequence, head, first_query, queried, queries, v, value_width)  # [M, Dv]
            level = load_statistic(norm, sequence, head, first_query, index, queries, float("inf"))  # [1, M]
            taken = load_statistic(delta, sequence, head, first_query, index, queries, 0.0)
            products = tl.dot(k, tl.trans(q), input_precision=FORM.precision)  # [N, M]
            grad_shares = tl.dot(values, tl.trans(grad), input_precision=FORM.precision)  # [N, M]
            scores, gates = scores_and_gates(
                products, bias, gate, sequence, head, heads, index, row, column, first_key, queries, keys,
                scale, FORM,
            )  # fmt: skip
            _, shares, dropped, changes = shares_and_changes(
                scores, gates, grad_shares, level, taken, seed, site, threshold, kept, sequence, head, row, column,
                FORM,
            )  # fmt: skip
            value_sums = tl.dot(dropped.to(grad.dtype), grad, value_sums, input_precision=FORM.precision)
            slopes = (shares * changes).to(q.dtype)
            key_sums = tl.dot(slopes, q, key_sums, input_precision=FORM.precision)
    store_tokens(grad_key, key_sums * scale, sequence, key_head, first_key, columns, keys, d, width)
    store_tokens(grad_value, value_sums, sequence, key_head, first_key, columns, keys, v, value_width)
