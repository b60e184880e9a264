"""The teachers' tensors into one buffer of rows, as they are or rounded: a copy, measured by the machine's own.

python benchmarks/rows.py --preset bar --json rows.json
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks import peers, shapes
from benchmarks.case import (
    BACKWARD,
    FORWARD,
    FULL,
    LEFT_OUT,
    MODES,
    Case,
    Contender,
    Draw,
    Problem,
    Setting,
    Target,
    missing,
    ours,
)
from benchmarks.harness import main
from wfkernels import pack
from wfkernels.layout import RowLayout

MOST_COMPILED = 2  # teachers


def problem(setting: Setting, layout: RowLayout, teachers: int, dtype: torch.dtype) -> Problem:
    draw, count = Draw(setting.device), len(layout.parameters)
    tensors = [draw.normal(*p.shape) for _ in range(teachers) for p in layout.parameters]

    def networks(tensors: Sequence[Tensor]) -> list[Sequence[Tensor]]:
        return [tensors[i : i + count] for i in range(0, len(tensors), count)]

    def run(*tensors: Tensor, impl: str) -> Tensor:
        return pack(networks(tensors), layout, dtype=dtype, impl=impl)

    def eager(*tensors: Tensor) -> Tensor:
        blocks, first = [], 0
        for layer in layout.layers:
            last = first + len(layer.parameters)
            for own in networks(tensors):
                rows = torch.cat([t.view(layer.rows, -1) for t in own[first:last]], 1)
                blocks.append(F.pad(rows, (0, layer.stride - layer.width)).flatten())
            first = last
        return torch.cat(blocks).to(dtype)

    def cat(*tensors: Tensor) -> Tensor:
        return torch.cat([t.flatten() for t in tensors]).to(dtype)

    found = ours(setting, run) | {"eager": Contender(eager)}
    found["compile"] = missing(LEFT_OUT) if setting.quick else Contender(peers.compiled(eager))
    if teachers > MOST_COMPILED:
        found["compile"] = missing("compiling hundreds of copies takes minutes")
    absent = dict.fromkeys((BACKWARD, FULL), "its gradient is another buffer")
    found["cat"] = Contender(cat, unlike="the same numbers in another order, without padding", absent=absent)
    grad = draw.normal(teachers * layout.row_numel, learn=False).to(dtype)
    return Problem(tensors, (grad,), partial(run, impl="reference"), found, results=("rows",), exact=True)


def case(setting: Setting, name: str, layout: RowLayout, teachers: int, dtype: torch.dtype = torch.float32) -> Case:
    numbers, cast = teachers * sum(layer.rows * layer.width for layer in layout.layers), dtype != torch.float32
    moved = float(numbers * (torch.float32.itemsize + dtype.itemsize))
    return Case(
        f"{name}, T={teachers}, float32 to {str(dtype).removeprefix('torch.')}",
        partial(problem, setting, layout, teachers, dtype),
        bytes={FORWARD: moved, BACKWARD: moved, FULL: 2 * moved},
        modes=MODES,
        targets=(Target(FORWARD, "copy", 0.85), Target(FORWARD, "time", 2.0 if cast else 0.95, "cat")) * setting.gpu,
    )


def cases(setting: Setting) -> list[Case]:
    vgg11, resnet50 = shapes.vgg11_bn(), shapes.resnet50()
    dtypes = (torch.float32, torch.bfloat16)
    if setting.quick:
        return [case(setting, "VGG-11 in small", shapes.reduced(vgg11, 2, 4), 2, dtype) for dtype in dtypes]
    found = [
        case(setting, *pair, 2, dtype) for pair in (("VGG-11", vgg11), ("ResNet-50", resnet50)) for dtype in dtypes
    ]
    if setting.preset in ("full", "gpu"):
        found += [case(setting, "ResNet-50", resnet50, teachers, torch.bfloat16) for teachers in (1, 5)]
    return found


if __name__ == "__main__":
    sys.exit(main("rows", cases))
