"""How often predictions of a given confidence are right: what a reliability diagram shows.

The bins are those of the calibration error in `weightformer.evaluate`: equal width over the highest probability
(Guo et al. 2017, arXiv 1706.04599).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from weightformer.evaluate import ECE_BINS

N = TypeVar("N", int, float)


@dataclass(frozen=True)
class Bins:
    """Images by their highest probability: how many, the sum of these probabilities, and how many were right."""

    count: tuple[int, ...]
    confidence: tuple[float, ...]
    correct: tuple[int, ...]

    def __add__(self, other: Bins) -> Bins:
        def both(mine: Sequence[N], theirs: Sequence[N]) -> tuple[N, ...]:
            return tuple(a + b for a, b in zip(mine, theirs, strict=True))

        return Bins(
            both(self.count, other.count),
            both(self.confidence, other.confidence),
            both(self.correct, other.correct),
        )


@dataclass(frozen=True)
class Reliability:
    """The bins of a prediction as it is and after division by its temperature."""

    raw: Bins
    scaled: Bins

    def __add__(self, other: Reliability) -> Reliability:
        return Reliability(self.raw + other.raw, self.scaled + other.scaled)


def bins(prediction: Tensor, labels: Tensor) -> Bins:  # [n, C], [n]
    """Return the bins of a prediction, a tensor whose softmax is the predictive distribution."""
    confidence, named = prediction.double().softmax(1).max(1)
    inner = torch.linspace(0, 1, ECE_BINS + 1, dtype=confidence.dtype, device=confidence.device)[1:-1]
    index = torch.bucketize(confidence, inner, right=True)
    right = (named == labels).double()
    count, total, correct = (
        torch.bincount(index, weights, minlength=ECE_BINS).tolist()
        for weights in (torch.ones_like(right), confidence, right)
    )
    return Bins(tuple(map(int, count)), tuple(total), tuple(map(int, correct)))


def reliability(prediction: Tensor, labels: Tensor, temperature: float) -> Reliability:  # [n, C], [n]
    """Return the bins of a prediction, raw and temperature-scaled."""
    return Reliability(bins(prediction, labels), bins(prediction.double() / temperature, labels))
