"""Tiles of an attention call that are open: found once for every tile of rows, so that the walks skip all others.

A tile is closed where every pair of it has a bias of -inf or a gate of 0. The walks go over a list of the open ones: a
branch inside them would keep Triton from loading the next tile ahead.
"""

# Parameters of kernels have types of the device.
# mypy: disable-error-code="no-untyped-def,no-untyped-call"

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def entries(term, batch, head, row, column, inside):
    """Return a tile of a dense term."""
    place = batch * term.batch + head * term.head + row * term.row + column * term.column
    return tl.load(term.data + place, mask=inside, other=0.0)


@triton.jit(do_not_specialize=["rows", "columns", "heads"])
def _attention_open_tiles_kernel(
    bias,  # Entries or None
    gate,  # Entries or None
    places,  # [owners, tiles, others + 1] int32, to write: the open tiles of the other side, in their order
    before,  # [owners, tiles, others + 1] int32, to write: how many of the first k tiles are open
    rows,
    columns,
    heads,  # of an owner: 1 where all share the terms
    OF_KEYS: tl.constexpr,  # lists of tiles of rows for every tile of columns, instead of the other way round
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    tiles = tl.cdiv(columns, BLOCK_N) if OF_KEYS else tl.cdiv(rows, BLOCK_M)
    others = tl.cdiv(rows, BLOCK_M) if OF_KEYS else tl.cdiv(columns, BLOCK_N)
    program = tl.program_id(0)
    tile = program % tiles
    head = (program // tiles % heads).to(tl.int64)
    batch = (program // tiles // heads).to(tl.int64)
    places += program.to(tl.int64) * (others + 1)
    before += program.to(tl.int64) * (others + 1)
    found = 0
    for other in range(0, others):
        row = (other if OF_KEYS else tile) * BLOCK_M + tl.arange(0, BLOCK_M).to(tl.int64)[:, None]  # [M, 1]
        column = (tile if OF_KEYS else other) * BLOCK_N + tl.arange(0, BLOCK_N).to(tl.int64)[None, :]  # [1, N]
        inside = (row < rows) & (column < columns)
        is_open = inside
        if bias is not None:
            is_open = is_open & (entries(bias, batch, head, row, column, inside).to(tl.float32) != float("-inf"))
        if gate is not None:
            is_open = is_open & (entries(gate, batch, head, row, column, inside) != 0)
        tl.store(before + other, found)
        # The next one takes the place of a tile that is closed.
        tl.store(places + found, other)
        found += tl.max(tl.max(is_open.to(tl.int32), 1), 0)
    tl.store(before + others, found)


@triton.jit
def bounds_of_walk(walk, sequence, head, tile, first, last, BLOCK: tl.constexpr):
    """Return (list, begin, end): between which places to walk for the tokens from `first` to before `last`.

    Without a list a place is the first token of a tile, and `first` the first of one.
    """
    listed = 0
    if walk is not None:
        line = ((sequence * walk.batch + head * walk.head) * walk.tiles + tile) * walk.stride
        listed = walk.places + line
        first = tl.load(walk.before + line + first // BLOCK)
        last = tl.load(walk.before + line + tl.cdiv(last, BLOCK))
    return listed, first, last


@triton.jit
def token_of_walk(walk, listed, place, BLOCK: tl.constexpr):
    """Return the first token of the tile at a place of a walk."""
    first = place
    if walk is not None:
        first = tl.load(listed + place) * BLOCK
    return first
