"""The ensemble of specialists whose training classes were counted.

A network trained on class counts N_t predicts, by Bayes, p_t(y|x) proportional to N_t(y) p(x|y). Two corrections, with
one added to every count:

* "prior": every member's probabilities are divided by its counts and renormalised, then averaged;
* "class": member t speaks for class y with weight N_t(y) / sum_s N_s(y), then renormalised.

It needs knowledge of the teachers' data that the other methods do not have. Nothing trained; T passes.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from weightformer.baselines import Cost, Result, Setting, Teachers
from weightformer.baselines.average_ensemble import combine

Correction = Literal["prior", "class"]


def correct(logits: Tensor, counts: Tensor, by: Correction = "prior") -> Tensor:  # [T, n, C], [T, C] -> [n, C]
    """Return the log-probabilities of the corrected ensemble."""
    log_counts = (counts.to(logits.device, torch.float32) + 1).log()[:, None]  # [T, 1, C]
    if by == "prior":
        return combine(logits - log_counts)
    if by != "class":
        raise ValueError(f"known_counts: by: expected 'prior' or 'class', got {by!r}")
    return (logits.log_softmax(-1) + log_counts.log_softmax(0)).logsumexp(0).log_softmax(-1)


def known_counts(teachers: Teachers, setting: Setting, *, counts: Tensor, by: Correction = "prior") -> Result:
    """Return the ensemble of `teachers` corrected by their class counts [T, C]; its `logits` are log-probabilities."""
    members = [setting.result("member", teacher) for teacher in teachers]
    cost = Cost(0, len(members), sum(m.cost.parameters for m in members) + counts.numel())
    name = "ensemble / known counts" if by == "prior" else "ensemble, class weights by counts"
    return Result(
        name, lambda images: correct(torch.stack([m.logits(images) for m in members]), counts, by), None, cost
    )
