"""Knowledge distillation (Hinton, Vinyals and Dean 2015, arXiv 1503.02531).

One student learns the teachers' averaged, softened probabilities and the labels; the loss stands in
`weightformer.finetune`. It starts from scratch, or from any weights of the same architecture: a teacher, the weight
mean, a prediction. One pass at inference.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from weightformer.baselines import Result, Setting, Teachers
from weightformer.finetune import TEMPERATURE, bank_logits, finetune, soft_targets


def teacher_targets(teachers: Teachers, setting: Setting, temperature: float = TEMPERATURE) -> Tensor:
    """Return the teachers' mean softened probabilities on every view of every image, [n, views, classes]."""
    bank = setting.training_data("distillation")
    return soft_targets(torch.stack([bank_logits(setting.network(t), bank) for t in teachers]), temperature)


def distillation(
    teachers: Teachers,
    setting: Setting,
    *,
    steps: int = 400,
    start: Mapping[str, Tensor] | None = None,
    start_name: str = "given weights",
    targets: Tensor | None = None,  # [n, views, classes]
    temperature: float = TEMPERATURE,
    learning_rate: float | None = None,
    seed: int = 0,
    **options: Any,
) -> Result:
    """Return a student taught by `teachers` for `steps` steps.

    start: weights to begin with (`start_name` says which in the result's name), None for a fresh initialisation.
    targets: `teacher_targets` at the same temperature, if they are at hand.  learning_rate: 2e-3 from scratch, else
    1e-3.  options: further options of `finetune`.
    """
    if targets is None:
        targets = teacher_targets(teachers, setting, temperature)
    rate = learning_rate if learning_rate is not None else (2e-3 if start is None else 1e-3)
    state = finetune(
        setting.fresh(seed).to(targets.device),
        setting.training_data("distillation"),
        setting.labels,
        targets,
        steps=steps,
        start=start,
        learning_rate=rate,
        temperature=temperature,
        seed=seed,
        **options,
    )
    name = f"distillation {steps}" if start is None else f"{start_name} + distillation {steps}"
    return setting.result(name, state, steps)
