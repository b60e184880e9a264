"""The weight mean with a head whose rows come from the teachers that saw the class.

    head row y: sum_t w_t(y) row_t(y),    w_t(y) = (N_t(y) + 1)^power / sum_s (N_s(y) + 1)^power

The trunk is the plain mean. Power 0 is the weight mean. Needs the teachers' class counts. Nothing trained, one pass.
"""

from __future__ import annotations

import torch
from torch import Tensor

from weightformer import rows
from weightformer.baselines import Result, Setting, Teachers
from weightformer.baselines.weight_mean import mean_state


def head_counts(teachers: Teachers, setting: Setting, *, counts: Tensor, power: float = 1.0) -> Result:
    """Return the weight mean with head rows weighted by the class counts [T, C] to the power `power`."""
    state = mean_state(teachers)
    shares = (counts.to(torch.float32) + 1) ** power
    shares = shares / shares.sum(0)  # [T, C]
    layout = rows.layout(setting.fresh(0))
    for parameter in layout.layers[rows.head(layout, classes=counts.shape[1])].parameters:
        values = torch.stack([teacher[parameter.name] for teacher in teachers])  # [T, C, ...]
        spread = shares.to(values).view(*shares.shape, *[1] * (values.dim() - 2))
        state[parameter.name] = (spread * values).sum(0)
    return setting.result(f"weight mean, head by counts^{power:g}", state)
