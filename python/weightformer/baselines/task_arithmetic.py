"""Task arithmetic around a common base (Ilharco et al. 2023, arXiv 2212.04089).

    theta = theta_0 + scale * (1/T) sum_t (theta_t - theta_0)

Scale 1 is the weight mean, scale T the sum of the task vectors, scale 0 the base. Nothing trained, one pass.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from weightformer.baselines import Result, Setting, Teachers
from weightformer.baselines.weight_mean import mean_state


def task_arithmetic(teachers: Teachers, setting: Setting, *, base: Mapping[str, Tensor], scale: float) -> Result:
    """Return the base moved by `scale` times the teachers' mean task vector."""
    share = scale / len(teachers)
    state = mean_state([base, *teachers], [1 - scale, *[share] * len(teachers)])
    return setting.result(f"task arithmetic x{scale:g}", state)
