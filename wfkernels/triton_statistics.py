"""Mean and deviation of rows in Triton, for every room that normalises them."""

# Parameters of kernels have types of the device.
# mypy: disable-error-code="no-untyped-def,no-untyped-call"

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def merged_statistics(count, mean, squares, values, valid):
    """Return (count, mean [M], sum of squared deviations [M]) with the columns of one more tile in them.

    values [M, N], of which the columns `valid` [N] are there. Statistics of the parts are merged as in Chan, Golub,
    LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances", 1979: deviations are taken
    from the tile's own mean, so that nothing cancels, and no part is read twice.
    """
    here = tl.sum(valid.to(tl.float32), 0)
    total = count + here
    own = tl.div_rn(tl.sum(tl.where(valid[None, :], values, 0.0), 1), here)  # [M]
    deviations = tl.where(valid[None, :], values - own[:, None], 0.0)
    change = own - mean
    share = tl.div_rn(here, total)
    squares += tl.sum(deviations * deviations, 1) + change * change * (count * share)
    return total, mean + change * share, squares


@triton.jit
def inverse_deviation(count, squares, eps):
    """Return 1 / sqrt(variance + eps), [M]."""
    return tl.div_rn(1.0, tl.sqrt_rn(tl.div_rn(squares, count) + eps))
