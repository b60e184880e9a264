"""The calls of rows_pack in Triton's interpreter: python -m tests.rows.interpreted PART, or their names."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from tests import interpreted
from tests.rows.cases import LAYOUTS, layer, teachers
from wfkernels.layout import RowLayout
from wfkernels.rows import ops

FULL, HALF, BRAIN = torch.float32, torch.float16, torch.bfloat16
# Parameters that are aligned and such that are not beside each other, over the border of a tile.
LARGE = RowLayout((layer("wide", 40, (40, 768), (40,)), layer("mixed", 3, (3, 8), (3, 3), (3, 16), (3, 5))))
# The interpreter cuts float32 to bfloat16 instead of rounding it: that cast is torch's on a GPU and not tried here.
CASTS = [(FULL, FULL), (FULL, HALF), (HALF, FULL), (HALF, HALF), (BRAIN, BRAIN), (BRAIN, FULL)]


def mixed(tensors: list[Tensor]) -> list[Tensor]:
    return [t.to((FULL, HALF, BRAIN)[i % 3]) for i, t in enumerate(tensors)]


def strided(tensors: list[Tensor]) -> list[Tensor]:
    """The same values with gaps between them."""
    buffers = [t.new_full((*t.shape, 2), torch.nan) for t in tensors]
    for buffer, t in zip(buffers, tensors, strict=True):
        buffer[..., 1] = t
    return [buffer[..., 1] for buffer in buffers]


def permuted(tensors: list[Tensor]) -> list[Tensor]:
    """The same values with the dimensions stored in reverse order: some have no rows of even strides."""
    orders = [tuple(reversed(range(t.ndim))) for t in tensors]
    return [t.permute(order).contiguous().permute(order) for t, order in zip(tensors, orders, strict=True)]


def channels_last(tensors: list[Tensor]) -> list[Tensor]:
    return [t.to(memory_format=torch.channels_last) if t.ndim == 4 else t for t in tensors]


def shifted(tensors: list[Tensor]) -> list[Tensor]:
    """The same values one element behind an aligned address."""
    return [torch.cat([t.new_zeros(1), t.flatten()])[1:].view(t.shape) for t in tensors]


FORMS: dict[str, Callable[[list[Tensor]], list[Tensor]]] = {
    "as they are": list,
    "mixed": mixed,
    "strided": strided,
    "permuted": permuted,
    "channels last": channels_last,
    "shifted": shifted,
}


def calls() -> interpreted.Calls:
    for name, layout in LAYOUTS.items():
        yield name, partial(wrongs, layout)
    for name, change in FORMS.items():
        yield f"large, {name}", partial(wrongs, LARGE, change)
        yield f"convolution, {name}", partial(wrongs, LAYOUTS["convolution with bias and norm"], change)
    for source, target in CASTS:
        yield f"{source} to {target}", partial(wrongs, LARGE, source=source, target=target)


def wrongs(
    layout: RowLayout,
    change: Callable[[list[Tensor]], list[Tensor]] = list,
    source: torch.dtype = FULL,
    target: torch.dtype = FULL,
) -> list[str]:
    """Return every disagreement of forward and backward with the reference."""
    count = 3
    tensors = [t for teacher in teachers(layout, count, source) for t in teacher]
    for t in tensors[::2]:
        t.view(-1)[:1] = torch.nan
    tensors = change(tensors)
    layers = [*layout.rows], [len(member.parameters) for member in layout.layers]
    args = (tensors, *layers, [p.width for p in layout.parameters], target)
    buffer = ops.rows_pack(*args, "triton")
    found = interpreted.wrongs("rows_pack", args, buffer)
    grad = torch.randn(buffer.shape).to(target)
    for needed in ([True] * len(tensors), [i % 3 != 1 for i in range(len(tensors))], [False] * len(tensors)):
        backward = (grad, count, *args[1:4], needed)
        found += interpreted.wrongs("rows_pack_backward", backward, ops.rows_pack_backward(*backward, "triton"))
    return found


if __name__ == "__main__":
    sys.exit(interpreted.main(calls(), sys.argv[1:]) > 0)
