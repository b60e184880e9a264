"""The quick presets under pytest-benchmark: `pytest tests/benchmarks/test_quick.py --benchmark-only` times them.

Beside the other tests, in parallel, every call runs once, which only says that it runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from benchmarks import attention, embedding, linear, patched, predict, projection, residual_norm, rows
from benchmarks.case import Case, Setting, call

SETTING = Setting(torch.device("cpu"), "quick")
PROGRAMS = (attention, embedding, linear, patched, predict, projection, residual_norm, rows)
ROUNDS = 7


def calls() -> Sequence[Any]:
    """Every mode of every case, as the program times it."""
    found = [(module.__name__.rpartition(".")[2], case) for module in PROGRAMS for case in module.cases(SETTING)]
    return [pytest.param(case, mode, id=f"{name}: {case.name}, {mode}") for name, case in found for mode in case.modes]


@pytest.mark.parametrize("case, mode", calls())
def test_ours(case: Case, mode: str, benchmark: Any) -> None:
    problem = case.build()
    wanted = call(problem, next(c for c in problem.contenders.values() if c.ours), mode)

    def setup() -> tuple[tuple[Any], dict[str, Any]]:
        return (wanted.prepare(),), {}

    with wanted.around():
        benchmark.pedantic(wanted.run, setup=setup, rounds=ROUNDS, warmup_rounds=1)
