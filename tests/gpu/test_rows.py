"""Packing on a GPU: every layout, every form of the tensors, every cast."""

from __future__ import annotations

import pytest
import torch

from tests.gpu import device
from tests.rows.cases import LAYOUTS, teachers
from tests.rows.interpreted import FORMS, LARGE
from wfkernels import pack
from wfkernels.layout import RowLayout

pytestmark = device.needed
ALL = LAYOUTS | {"large": LARGE}


def calls(layout: RowLayout, form: str, source: torch.dtype, target: torch.dtype) -> device.OpCalls:
    tensors = [t.to(device.DEVICE, source) for teacher in teachers(layout) for t in teacher]
    # Detached where they are, so that the memory order of the form is kept.
    tensors = [t.detach().requires_grad_() for t in FORMS[form](tensors)]
    count = len(layout.parameters)

    def run() -> torch.Tensor:
        networks = [tensors[i : i + count] for i in range(0, len(tensors), count)]
        return pack(networks, layout, dtype=target, impl="triton")

    return device.recorded(run, tensors)


@device.every_dtype
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ALL)
def test_every_bit_and_the_same_in_every_run(name: str, form: str, dtype: torch.dtype) -> None:
    device.hold(calls(ALL[name], form, dtype, dtype))


@pytest.mark.parametrize("target", device.DTYPES, ids=str)
@pytest.mark.parametrize("source", device.DTYPES, ids=str)
def test_every_cast(source: torch.dtype, target: torch.dtype) -> None:
    if not device.HERE and target == torch.bfloat16:
        pytest.skip("the interpreter cuts float32 to bfloat16 instead of rounding it (upstream)")
    device.hold(calls(LARGE, "as they are", source, target))


@device.device_only
@pytest.mark.parametrize("form", ["as they are", "mixed"])
def test_a_graph_captures_it(form: str) -> None:
    device.hold_captured(calls(LARGE, form, torch.float32, torch.bfloat16))
