"""Attention forward: a program owns a tile of queries of one head and walks over the keys."""

# Parameters of kernels have types of the device.
# mypy: disable-error-code="no-untyped-def,no-untyped-call"

from __future__ import annotations

import triton
import triton.language as tl

from wfkernels.attention.triton_open import bounds_of_walk, token_of_walk
from wfkernels.attention.triton_terms import (
    LOG2E,
    bounds_of_sequence,
    load_tokens,
    scores_and_gates,
    store_statistic,
    store_tokens,
    tile_of_program,
)
from wfkernels.triton_philox import kept_pairs


@triton.jit(do_not_specialize=["walk", "count", "queries", "keys", "site", "threshold"])
def _attention_forward_kernel(
    query,  # Tokens [N, H, Sq, D]
    key,  # Tokens [N, Hk, Sk, D]
    value,  # Tokens [N, Hk, Sk, Dv]
    out,  # Tokens [N, H, Sq, Dv]
    lse,  # Tokens [N, H, Sq, 1]
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

    largest = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    sums = tl.zeros([BLOCK_M, BLOCK_V], tl.float32)
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
        products = tl.dot(q, tl.trans(k), input_precision=FORM.precision)  # [M, N]
        scores, gates = scores_and_gates(
            products, bias, gate, sequence, head, heads, index[:, None], row, column, first_key, queries, keys,
            scale, FORM,
        )  # fmt: skip
        if FORM.gate != "none":
            scores = tl.where(gates != 0, scores, float("-inf"))
        larger = tl.maximum(largest, tl.max(scores, 1))  # [M]
        # A row of which nothing is open yet has no maximum to take away.
        base = tl.where(larger == float("-inf"), 0.0, larger)
        shares = tl.exp2(scores - base[:, None])
        if FORM.gate != "none":
            shares = tl.where(gates != 0, shares * gates, 0.0)
        shrink = tl.exp2(largest - base)
        total = total * shrink + tl.sum(shares, 1)
        if FORM.has_dropout:
            keep = kept_pairs(seed, site, threshold, sequence, head, row, column)
            shares = tl.where(keep, shares, 0.0)
        values = load_tokens(value, sequence, head // sharing, first_key, columns, keys, v, value_width)  # [N, Dv]
        sums = sums * shrink[:, None]
        sums = tl.dot(shares.to(values.dtype), values, sums, input_precision=FORM.precision)
        largest = larger
    if FORM.has_dropout:
        sums *= kept
    sums = sums / tl.where(total == 0, 1.0, total)[:, None]
    store_tokens(out, sums, sequence, head, first_query, index, queries, v, value_width)
    # largest is -inf where total is 0, and their sum too.
    store_statistic(lse, largest / LOG2E + tl.log(total), sequence, head, first_query, index, queries)
