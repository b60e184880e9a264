"""Plain training on the labels, from scratch or from given weights; the teachers' outputs are not used.

From the weight mean of specialists with a few labels of their domain this is the row "mean + CE", the rival that has
labels of the test domain while the others have none.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from weightformer.baselines import Result, Setting
from weightformer.finetune import finetune


def cross_entropy(
    setting: Setting,
    *,
    steps: int,
    start: Mapping[str, Tensor] | None = None,
    start_name: str = "given weights",
    learning_rate: float | None = None,
    seed: int = 0,
    **options: Any,
) -> Result:
    """Return a network trained on the setting's labels for `steps` steps; the options are those of `distillation`."""
    if setting.labels is None:
        raise ValueError("cross_entropy: setting.labels: expected labels to train on, got None")
    bank = setting.training_data("cross_entropy")
    rate = learning_rate if learning_rate is not None else (2e-3 if start is None else 1e-3)
    state = finetune(
        setting.fresh(seed).to(bank.device),
        bank,
        setting.labels,
        steps=steps,
        start=start,
        learning_rate=rate,
        seed=seed,
        **options,
    )
    name = f"cross-entropy {steps}" if start is None else f"{start_name} + cross-entropy {steps}"
    return setting.result(name, state, steps)
