"""Attention's cases on a GPU."""

from __future__ import annotations

import pytest
import torch

from tests.attention.cases import CASES, Case, build, draw
from tests.attention.interpreted import LARGE
from tests.gpu import device
from wfkernels import attention
from wfkernels.attention import validate

pytestmark = device.needed
SEEDS = range(8)
ALL = CASES | LARGE | {f"draw({seed})": draw(seed) for seed in SEEDS}


def calls(case: Case, dtype: torch.dtype) -> device.OpCalls:
    call = build(case)
    options = call.options
    if "offsets" in options:
        lengths = (options["offsets"], options.get("key_offsets"), options.get("query_start"), None)
        options["max_length"] = validate.lengths(call.query, call.key, *lengths)
    call.query, call.key, call.value, call.bias, call.gate, call.options = device.placed(
        (call.query, call.key, call.value, call.bias, call.gate, options), dtype
    )
    return device.recorded(lambda: call.run(attention, impl="triton"), list(call.leaves().values()))


@device.every_dtype
@pytest.mark.parametrize("name", ALL)
def test_as_exact_as_eager_and_the_same_in_every_run(name: str, dtype: torch.dtype) -> None:
    device.hold(calls(ALL[name], dtype))


@device.device_only
@pytest.mark.parametrize("name", ["dense bias and gate", "ragged tables", "dense dropout", "ragged pruned table"])
def test_a_graph_captures_it(name: str) -> None:
    device.hold_captured(calls(CASES[name], torch.float16))
