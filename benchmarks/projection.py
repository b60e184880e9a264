"""Tokens to weights: one product per layer of the student, written once into the student's buffer.

python benchmarks/projection.py --preset bar --json projection.json
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks import peers, plain, shapes
from benchmarks.case import LEFT_OUT, MODES, Case, Contender, Draw, Problem, Setting, missing, ours, product_flop, total
from benchmarks.harness import main
from benchmarks.predict import parameters
from wfkernels import projection
from wfkernels.layout import RowLayout, TokenLayout

TEACHERS = 2


def problem(setting: Setting, layout: TokenLayout, d: int, dtype: torch.dtype) -> Problem:
    """Return the paper's output: from the anchor's tokens, nothing of the teachers' rows in it."""
    draw, student = Draw(setting.device, dtype), layout.layout
    given = parameters(draw, layout, d, d, 1)
    tokens = draw.normal(sum(student.rows), d)
    lists = (*given.projection_weights, *given.projection_biases)
    grad = draw.normal(1, student.numel, learn=False)
    count = len(student.layers)

    def run(tokens: Tensor, strength: Tensor, shift: Tensor, scale: Tensor, *lists: Tensor, impl: str) -> Tensor:
        weights, biases = lists[:count], lists[count:]
        return projection(tokens, weights, biases, strength, shift, scale, layout=layout, impl=impl)

    def loop(tokens: Tensor, strength: Tensor, shift: Tensor, scale: Tensor, *lists: Tensor) -> Tensor:
        weights, biases = lists[:count], lists[count:]
        named: dict[str, Any] = {"strength": strength, "shift": shift, "scale": scale}
        p = replace(given, projection_weights=weights, projection_biases=biases, **named)
        rows = plain.projected(tokens.split(list(student.rows)), p, layout, plain.project)
        return torch.cat(plain.buffer(rows, layout))[None]

    found = ours(setting, run) | {"eager": Contender(loop)}
    found["compile"] = missing(LEFT_OUT) if setting.quick else Contender(peers.compiled(loop))
    tensors = (tokens, given.strength, given.shift, given.scale, *lists)
    return Problem(tensors, (grad,), partial(run, impl="reference"), found, results=("students",))


def case(setting: Setting, name: str, student: RowLayout, d: int = 512, dtype: torch.dtype = torch.float32) -> Case:
    layout, small = (x.tokens((TEACHERS,)) for x in (student, shapes.reduced(student, 16, 16)))
    sizes = zip(student.rows, student.widths, strict=True)
    return Case(
        f"{name}, d={d}, {str(dtype).removeprefix('torch.')}",
        partial(problem, setting, layout, d, dtype),
        total(product_flop(n, d, r) for n, r in sizes),
        modes=MODES,
        judged=(f"{sum(small.layout.rows)} rows, 16 times narrower", partial(problem, setting, small, d, dtype)),
        dtype=dtype,
    )


def cases(setting: Setting) -> Sequence[Case]:
    vgg11, resnet50 = shapes.vgg11_bn(), shapes.resnet50()
    if setting.quick:
        return [case(setting, "VGG-11 in small", shapes.reduced(vgg11, 8, 16), d=64)]
    found = [case(setting, "VGG-11", vgg11), case(setting, "ResNet-50", resnet50)]
    if setting.preset in ("full", "gpu"):
        found.append(case(setting, "ResNet-50", resnet50, dtype=torch.bfloat16))
    return found


if __name__ == "__main__":
    sys.exit(main("projection", cases))
