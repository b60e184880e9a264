"""The learnable gate of the attention: its parameters, its values in [0, 1] and how many pairs it leaves open."""

from __future__ import annotations

from functools import lru_cache
from math import log

import torch
from torch import Tensor, nn

from weightformer.config import Config
from wfkernels.layout import RowLayout, TokenLayout

# sigmoid(2) = 0.88: nearly open, and still well inside the range where the gradient is alive.
INITIAL = 2.0


def log_buckets(buckets: int, reach: int) -> Tensor:
    """Return a lookup [2 * reach + 1] from signed neuron differences to 2 * buckets + 1 entries.

    Small differences have an entry each, larger ones share logarithmically wider entries, as T5's relative positions do
    (arXiv 1910.10683, section 2.1), with a separate entry for 0 and for either sign. Every entry is used where there
    are enough differences, and every difference has its own where there are not.
    """
    exact = max(buckets // 2, 1)
    distance = torch.arange(1, reach + 1)
    through = (distance.double() / exact).log() / log(max(reach, exact + 1) / exact)  # 0 at exact, 1 at reach
    # The nudge keeps distances on a boundary from falling to either side of it with the machine's rounding.
    shared = exact + (through.clamp(min=0) * (buckets - exact) + 1e-9).long()
    side = torch.minimum(distance - 1, shared).clamp(max=buckets - 1)
    return torch.cat([buckets - 1 - side.flip(0), torch.tensor([buckets]), buckets + 1 + side])


class Gate(nn.Module):
    """m = sigmoid(theta), dense [H|1, M, M] or bucketed [H|1, 2, 2, 2, 2 * buckets + 1]; own token always open.

    The entries of a bucketed gate are (group of i, group of j, same teacher, bucket of neuron_i - neuron_j) with group
    0 for cross tokens and 1 for rows, so it is valid for any number of rows and teachers in any order. A dense gate has
    an entry for every pair of the longest sequence: `rows` of each of config.max_teachers, behind the cross tokens.
    """

    lookup: Tensor | None

    def __init__(self, config: Config, rows: int) -> None:
        super().__init__()
        self.hard, self.buckets = config.hard, config.buckets
        self.reach = max(rows, config.cross_tokens) - 1
        bucketed = config.gate == "bucketed"
        longest = config.cross_tokens + config.max_teachers * rows
        size = (2, 2, 2, 2 * config.buckets + 1) if bucketed else (longest, longest)
        self.theta = nn.Parameter(torch.full((config.heads if config.gate_heads else 1, *size), INITIAL))
        # Not saved: what is learned fits a student of any size.
        lookup = log_buckets(self.buckets, self.reach) if bucketed else None
        self.register_buffer("lookup", lookup, persistent=False)

    def forward(self) -> Tensor:
        """Return the gate as `predict` takes it; the own token of a bucketed gate is `predict`'s to open."""
        soft = self.theta.sigmoid()
        if self.lookup is None:
            own = torch.eye(soft.shape[-1], dtype=torch.bool, device=soft.device)
            soft = soft.masked_fill(own, 1.0)
        if not self.hard:
            return soft
        # Straight through: the value is 0 or 1, the gradient that of the soft gate.
        return (soft >= 0.5).to(soft.dtype) + (soft - soft.detach())

    def openness(self, layout: TokenLayout) -> Tensor:
        """Return the mean of m over the pairs present, own token excluded: the sparsity loss (a scalar)."""
        soft = self.theta.sigmoid().mean(0)
        if self.lookup is not None:
            count = pair_counts(layout.layout, layout.teachers, layout.cross, self.buckets, self.reach).to(soft)
            return (soft * count).sum() / count.sum().clamp(min=1)
        total = soft.new_zeros(())
        pairs = 0
        for length in layout.lengths:
            corner = soft[:length, :length]
            total = total + corner.sum() - corner.diagonal().sum()
            pairs += length * (length - 1)
        return total / max(pairs, 1)


@lru_cache(maxsize=32)
def pair_counts(layout: RowLayout, teachers: tuple[int, ...], cross: int, buckets: int, reach: int) -> Tensor:
    """Return how many pairs of different tokens use each entry of a bucketed gate, [2, 2, 2, E] in float64."""
    lookup = log_buckets(buckets, reach)
    counts = torch.zeros(2, 2, 2, 2 * buckets + 1, dtype=torch.float64)

    def add(first: int, second: int, same: int, n: int, m: int, times: int) -> None:
        """Count `times` blocks of n queries by m keys."""
        difference = torch.arange(1 - m, n)
        pairs = (m + difference).clamp(max=n) - difference.clamp(min=0)
        if same:
            pairs[difference == 0] = 0  # own tokens
        entry = lookup[difference.clamp(-reach, reach) + reach]
        counts[first, second, same].index_add_(0, entry, times * pairs.double())

    for n in layout.rows:
        for t in teachers:
            add(1, 1, 1, n, n, t)
            add(1, 1, 0, n, n, t * (t - 1))
            if cross:
                add(0, 1, 0, cross, n, t)
                add(1, 0, 0, n, cross, t)
                add(0, 0, 1, cross, cross, 1)
    return counts
