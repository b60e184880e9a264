"""The plan is held against real runs: FLOP, peak memory and time of a prediction and of its gradient."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from tests.weightformer.plans import CASES, on_meta, real
from weightformer import costs, rows, students
from weightformer.config import preset
from weightformer.model import WeightFormer

ROOT = Path(__file__).parents[2]

each = pytest.mark.parametrize("case", CASES, ids=lambda name: name.replace(" ", "-"))
both = pytest.mark.parametrize("training", [False, True], ids=["forward", "training"])


def peak_of(run: Callable[[], None]) -> int:
    """Return the most bytes that torch's allocator had given out at once."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        run()
    assert profiled.profiler is not None
    events = [e for e in profiled.profiler.kineto_results.events() if e.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak


@each
@both
def test_peak_memory_is_that_of_a_real_run(case: str, training: bool) -> None:
    run = real(case, training)
    run()  # index tensors are kept
    planned = on_meta(case, training).memory().peak
    assert planned == pytest.approx(peak_of(run), rel=0.1)
    fused = real(case, training, "auto")
    fused()
    assert peak_of(fused) < 1.1 * planned


def test_an_estimate_names_every_number() -> None:
    found = costs.estimate("resnet50", preset("paper"), [5], classes=1000)
    assert (found.layers, found.rows, found.tokens) == (54, 27560, 54 + 5 * 27560)
    assert found.longest == 1 + 5 * 2048
    assert found.student == sum(p.numel() for p in students.create("resnet50", classes=1000).parameters())
    forward, training = found.passes
    assert training.flop > 3 * forward.flop
    assert training.peak > training.saved > forward.saved
    assert forward.seconds == dict.fromkeys(costs.implementations())


@pytest.mark.parametrize("case", ["two groups, gated", "a bucketed gate"])
def test_parameters_and_inputs_are_those_of_a_real_run(case: str) -> None:
    architecture, config, teachers = CASES[case]
    layout = rows.layout(students.create(architecture, seed=0))
    base = torch.zeros(layout.row_numel) if config.output == "gated" else None
    model = WeightFormer(layout, config, base=base)
    found = costs.estimate(architecture, config, teachers)
    assert found.model_bytes == sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    assert found.input_bytes == torch.zeros(layout.row_numel * sum(teachers)).nbytes


def test_more_tokens_than_can_be_counted_are_refused_before_they_take_memory() -> None:
    with pytest.raises(ValueError, match="^estimate: teachers: 1,000,000 with 27,560 rows each"):
        costs.estimate("resnet50", preset("specialists"), [1000] * 1000, classes=1000)


def test_counted_products_are_those_of_torchs_own_counter() -> None:
    """Outside library ops; the attention of one layer is written out: 4 S^2 d."""
    config = preset("paper").but(width=64, heads=4, layers=1, feed_forward=64, gate="none", cross_layer="none")
    layout = rows.layout(students.create("mlp", seed=0))
    one = costs.OnMeta(layout, config, [1], training=False)
    with FlopCounterMode(display=False) as counter:
        one.run()
    lengths = layout.tokens([1], config.cross_tokens).lengths
    attention = sum(4 * (n - 1) * n * config.width for n in lengths)  # the cross token is not read
    ends = sum(2 * n * r * config.width for n, r in zip(layout.rows, layout.widths, strict=True))
    assert one.work().flop == counter.get_total_flops() + attention + 2 * ends


@pytest.mark.alone
@pytest.mark.parametrize("impl", ["reference", "auto"])
def test_the_expected_time_is_that_of_a_real_run(impl: str) -> None:
    program = [sys.executable, "-m", "tests.weightformer.plans", impl]
    done = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, check=True)
    lines = json.loads(done.stdout)
    assert len(lines) == 2 * len(CASES)
    wrong = [line for line in lines if abs(line[2][-1] - 1) > 0.25]
    assert not wrong
