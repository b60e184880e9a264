"""The average ensemble (Hansen and Salamon 1990; deep ensembles, arXiv 1612.01474).

    p(y|x) = (1/T) sum_t softmax(z_t(x)),    log p = logsumexp_t(log p_t) - log T

Averaging the logits instead gives the renormalised geometric mean, a different prediction; both are offered,
probabilities are the default. Nothing is trained; T passes, T times the parameters. BatchNorm statistics belong to each
member.
"""

from __future__ import annotations

from math import log
from typing import Literal

import torch
from torch import Tensor

from weightformer.baselines import Cost, Result, Setting, Teachers

Average = Literal["probabilities", "logits"]


def combine(logits: Tensor, of: Average = "probabilities") -> Tensor:  # [T, n, C] -> log-probabilities [n, C]
    """Return the log-probabilities of the ensemble of T members, in float32 or wider."""
    members = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if of == "logits":
        return members.mean(0).log_softmax(-1)
    if of != "probabilities":
        raise ValueError(f"average_ensemble: of: expected 'probabilities' or 'logits', got {of!r}")
    return members.log_softmax(-1).logsumexp(0) - log(len(members))


def average_ensemble(teachers: Teachers, setting: Setting, *, of: Average = "probabilities") -> Result:
    """Return the ensemble of `teachers`; its `logits` are log-probabilities."""
    members = [setting.result("member", teacher) for teacher in teachers]
    cost = Cost(0, len(members), sum(m.cost.parameters for m in members))
    return Result(
        f"ensemble of {len(members)} ({of})",
        lambda images: combine(torch.stack([m.logits(images) for m in members]), of),
        None,
        cost,
    )
