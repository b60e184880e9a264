"""The weight mean (uniform soup: Wortsman et al. 2022, arXiv 2203.05482), plain or after alignment.

    theta = sum_t w_t theta_t,    w_t = 1/T

Meaningful for networks that share an initialisation. Independent ones lie in different orders of neurons: their mean is
near chance, and after permuting them onto one anchor (`weightformer.align`, activation matching) a network again.
Averaged in float32 or wider; integer buffers are the first network's; running statistics are re-estimated by the
setting. Nothing trained, one pass.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from weightformer.align import Aligner
from weightformer.baselines import Result, Setting, Teachers
from weightformer.state import State


def mean_state(states: Teachers, weights: Sequence[float] | None = None) -> State:
    """Return the weighted sum of `states` (weights default to 1/T), in the first one's dtypes."""
    shares = [1 / len(states)] * len(states) if weights is None else list(weights)

    def mean(name: str, first: Tensor) -> Tensor:
        if not first.is_floating_point():
            return first.clone()
        wide = torch.promote_types(first.dtype, torch.float32)
        total = torch.zeros_like(first, dtype=wide)
        for share, state in zip(shares, states, strict=True):
            total += share * state[name].to(wide)
        return total.to(first.dtype)

    return {name: mean(name, first) for name, first in states[0].items()}


def weight_mean(teachers: Teachers, setting: Setting, *, aligner: Aligner | None = None) -> Result:
    """Return the mean of the teachers' weights, with `aligner` after permuting each onto its anchor."""
    states: Sequence[Mapping[str, Tensor]] = teachers if aligner is None else [aligner(t) for t in teachers]
    return setting.result("weight mean" if aligner is None else "aligned weight mean", mean_state(states))
