"""The constant student: one network for every group of teachers, which it ignores.

Distilled once from the whole training pool. On a benchmark whose groups all solve one task it is as good as their
ensembles, so a method that does not beat it has not been shown to read its teachers. Where groups differ in the order
of their classes, its outputs are re-ordered for each group: the assignment (Kuhn 1955) that maximises

    sum_y sum_x p_ensemble(y|x) p_constant(order(y)|x)

over unlabelled training images. One pass; no gradient steps for a new group (its own training is shared by all).
"""

from __future__ import annotations

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from weightformer.baselines import Result, Setting, Teachers
from weightformer.baselines.average_ensemble import average_ensemble
from weightformer.baselines.distillation import distillation


def constant(pool: Teachers, setting: Setting, *, steps: int = 1200, seed: int = 0) -> Result:
    """Return the student distilled from all teachers of the training pool; its cost counts the steps it took."""
    student = distillation(pool, setting, steps=steps, seed=seed)
    return Result("constant", student.logits, student.state, student.cost)


def best_order(constant: Tensor, reference: Tensor) -> Tensor:  # predictions [n, C], [n, C] -> [C]
    """Return the order in which the constant's outputs fit the reference best: compare constant[:, order] with it."""
    similarity = reference.double().softmax(1).T @ constant.double().softmax(1)  # [C, C]
    _, order = linear_sum_assignment(similarity.cpu().numpy(), maximize=True)
    return torch.from_numpy(order).to(constant.device)


def reordered(constant: Result, teachers: Teachers, setting: Setting, *, images: Tensor) -> Result:
    """Return the constant student with its outputs in the order of the teachers' ensemble, judged on `images`."""
    ensemble = average_ensemble(teachers, setting)
    order = best_order(constant.logits(images), ensemble.logits(images))
    return Result(f"{constant.name} + Hungarian", lambda unseen: constant.logits(unseen)[:, order], None, constant.cost)
