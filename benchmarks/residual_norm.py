"""LayerNorm(residual + x): bound by memory, so that the machine's copy is what it is measured by.

python benchmarks/residual_norm.py --preset bar --json residual_norm.json
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

from benchmarks import peers
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
    missing,
    ours,
)
from benchmarks.harness import main
from wfkernels import residual_norm

# Up to this many rows float64 takes no time worth speaking of.
JUDGED = 1009
# Tensors [rows, d] read and written: x, residual -> h, y; and the gradients of h and y, with h -> of x, residual.
FORWARD_PASSES, BACKWARD_PASSES = 4, 5


def problem(setting: Setting, dtype: torch.dtype, d: int, rows: int) -> Problem:
    draw = Draw(setting.device, dtype)
    x, residual = draw.normal(rows, d), draw.normal(rows, d)
    weight, bias = draw.normal(d, scale=0.1, offset=1.0), draw.normal(d)
    grads = [draw.normal(rows, d, learn=False) for _ in range(2)]

    def run(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, impl: str) -> tuple[Tensor, Tensor]:
        return residual_norm(x, residual, weight, bias, impl=impl)

    def plain(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        h = residual + x
        return h, F.layer_norm(h, (d,), weight, bias)

    found = ours(setting, run) | {"eager": Contender(plain)}
    found["compile"] = missing(LEFT_OUT) if setting.quick else Contender(peers.compiled(plain))
    return Problem((x, residual, weight, bias), grads, partial(run, impl="reference"), found, results=("h", "y"))


def case(setting: Setting, rows: int, d: int, dtype: torch.dtype = torch.float32) -> Case:
    build = partial(problem, setting, dtype, d)
    size = float(rows * d * dtype.itemsize)
    return Case(
        f"[{rows}, {d}], {str(dtype).removeprefix('torch.')}",
        partial(build, rows),
        bytes={
            FORWARD: FORWARD_PASSES * size,
            BACKWARD: BACKWARD_PASSES * size,
            FULL: (FORWARD_PASSES + BACKWARD_PASSES) * size,
        },
        modes=MODES,
        judged=(f"{JUDGED} rows", partial(build, JUDGED)) if rows > JUDGED else None,
        dtype=dtype,
    )


def cases(setting: Setting) -> Sequence[Case]:
    if setting.quick:
        return [case(setting, 1000, 512)]
    # The tokens of VGG-11 and of ResNet-50 with two teachers.
    found = [case(setting, rows, 512) for rows in (5504, 53120)]
    if setting.preset in ("full", "gpu"):
        found += [case(setting, 53120, d) for d in (64, 768, 1024)]
        found += [case(setting, 53120, 512, torch.bfloat16)]
    return found


if __name__ == "__main__":
    sys.exit(main("residual_norm", cases))
