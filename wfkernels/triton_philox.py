"""The bits of wfkernels.philox in Triton, for every room that drops elements."""

# Parameters of kernels have types of the device.
# mypy: disable-error-code="no-untyped-def,no-untyped-call"

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def kept_pairs(seed, site, threshold, sequence, head, row, column):
    """Return which entries dropout keeps: the bits of wfkernels.philox.keep_mask."""
    key = tl.load(seed)
    low = key.to(tl.uint32)
    high = ((key >> 32) + site).to(tl.uint32)
    row, column = tl.broadcast(row.to(tl.uint32), column.to(tl.uint32))
    zero = tl.zeros_like(row)
    head, sequence = (zero.to(tl.int64) + head).to(tl.uint32), (zero.to(tl.int64) + sequence).to(tl.uint32)
    word, _, _, _ = tl.philox_impl(column, row, head, sequence, low, high, 10)
    return word >= threshold.to(tl.uint32)
