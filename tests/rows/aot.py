"""The calls of rows_pack that `make aot` compiles for GPUs that are not here."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from tests.aot import Launch, recording
from tests.rows.cases import LAYOUTS, teachers
from wfkernels.layout import RowLayout
from wfkernels.rows import triton_launch

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
LINEAR = LAYOUTS["linear"]


def launches(capability: int, dtype: torch.dtype, layout: RowLayout = LINEAR, count: int = 2) -> list[Launch]:
    """Return the launches of a forward and a backward pass. dtype: of the buffer."""
    tensors = [t for teacher in teachers(layout, count) for t in teacher]
    layers = [*layout.rows], [len(member.parameters) for member in layout.layers]
    widths = [p.width for p in layout.parameters]
    with recording(capability) as found:
        buffer = triton_launch.forward(tensors, *layers, widths, dtype)
        triton_launch.backward(buffer, count, *layers, widths, [True] * len(tensors))
    return found


def matrix(capability: int) -> Iterator[tuple[str, Launch, dict[str, bool]]]:
    for dtype in DTYPES:
        for launch in launches(capability, dtype):
            yield str(dtype).removeprefix("torch."), launch, {}
