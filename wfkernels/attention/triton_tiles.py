"""The tiles of a ragged attention call, longest sequence first: one launch, in which nobody waits for anybody.

Where the tiles of a sequence begin is the number of tiles of all that come before it: that are longer, or as long and
earlier. A program adds that up for one sequence: N^2 comparisons in all, but no sort and no second launch.
"""

# Parameters of kernels have types of the device.
# mypy: disable-error-code="no-untyped-def,no-untyped-call"

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["count", "slots"])
def _attention_tiles_kernel(
    offsets,  # [count + 1]
    sequences,  # [slots] int64, to write
    tiles,  # [slots] int64, to write
    count,
    slots,
    SIZE: tl.constexpr,  # tokens of a tile
    BLOCK: tl.constexpr,
):
    own = tl.program_id(0)
    # The last program stands behind all sequences and marks the slots that are left.
    is_last = own == count
    begin = tl.load(offsets + own)
    length = tl.load(offsets + own + 1, mask=own < count, other=0) - begin
    length = tl.where(is_last, -1, length)
    before = tl.zeros([BLOCK], tl.int64)
    for first in range(0, count, BLOCK):
        other = first + tl.arange(0, BLOCK)  # [BLOCK]
        start = tl.load(offsets + other, mask=other < count, other=0)
        lengths = tl.load(offsets + other + 1, mask=other < count, other=0) - start
        is_before = (lengths > length) | ((lengths == length) & (other < own))
        before += tl.where(is_before & (other < count), tl.cdiv(lengths, SIZE), 0).to(tl.int64)
    place = tl.sum(before, 0)
    found = tl.where(is_last, slots - place, tl.cdiv(length, SIZE))
    for first in range(0, found, BLOCK):
        tile = first + tl.arange(0, BLOCK)  # [BLOCK]
        inside = (tile < found) & (place + tile < slots)
        tl.store(sequences + place + tile, tl.where(is_last, -1, own).to(tl.int64), mask=inside)
        tl.store(tiles + place + tile, tile.to(tl.int64), mask=inside)
