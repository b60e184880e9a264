"""Rows to tokens: one product per layer of the student, with codes and LayerNorm behind it.

python benchmarks/embedding.py --preset bar --json embedding.json
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
from wfkernels import embedding
from wfkernels.layout import RowLayout, TokenLayout

NAMES = ("embedding_biases", "shift", "scale", "position", "gamma", "beta", "teacher", "layer")


def problem(setting: Setting, layout: TokenLayout, d: int, dtype: torch.dtype) -> Problem:
    draw = Draw(setting.device, dtype)
    rows = draw.normal(sum(layout.teachers) * layout.layout.row_numel, scale=0.03, learn=False)
    given = parameters(draw, layout, d, d, 1)
    weights, rest = list(given.embedding_weights), [getattr(given, name) for name in NAMES]
    grad = draw.normal(layout.total, d, learn=False)

    def run(rows: Tensor, *tensors: Tensor, impl: str) -> Tensor:
        biases, shift, scale, position, gamma, beta, teacher, layer = tensors[len(weights) :]
        arguments = (tensors[: len(weights)], biases, shift, scale, position, gamma, beta)
        return embedding(rows, *arguments, layout=layout, teacher=teacher, layer=layer, impl=impl)

    def loop(rows: Tensor, *tensors: Tensor) -> Tensor:
        named: dict[str, Any] = dict(zip(NAMES, tensors[len(weights) :], strict=True))
        p = replace(given, embedding_weights=tensors[: len(weights)], **named)
        return torch.cat(plain.embedded(rows, p, layout, plain.embed))

    found = ours(setting, run) | {"eager": Contender(loop)}
    found["compile"] = missing(LEFT_OUT) if setting.quick else Contender(peers.compiled(loop))
    return Problem((rows, *weights, *rest), (grad,), partial(run, impl="reference"), found, results=("tokens",))


def case(
    setting: Setting, name: str, student: RowLayout, teachers: int, d: int = 512, dtype: torch.dtype = torch.float32
) -> Case:
    layout, small = (x.tokens((teachers,)) for x in (student, shapes.reduced(student, 16, 16)))
    products = [
        product_flop(teachers * n, r, d, inputs_learn=False) for n, r in zip(student.rows, student.widths, strict=True)
    ]
    return Case(
        f"{name}, T={teachers}, d={d}, {str(dtype).removeprefix('torch.')}",
        partial(problem, setting, layout, d, dtype),
        total(products),
        modes=MODES,
        judged=(f"{small.total} tokens, weights 16 times narrower", partial(problem, setting, small, d, dtype)),
        dtype=dtype,
    )


def cases(setting: Setting) -> Sequence[Case]:
    vgg11, resnet50 = shapes.vgg11_bn(), shapes.resnet50()
    if setting.quick:
        return [case(setting, "VGG-11 in small", shapes.reduced(vgg11, 8, 16), 2, d=64)]
    found = [case(setting, "VGG-11", vgg11, 2), case(setting, "ResNet-50", resnet50, 2)]
    if setting.preset in ("full", "gpu"):
        found += [
            case(setting, "ResNet-50", resnet50, 5),
            case(setting, "ResNet-50", resnet50, 2, dtype=torch.bfloat16),
        ]
    return found


if __name__ == "__main__":
    sys.exit(main("embedding", cases))
