"""The whole chain: the teachers' rows in, the weights of a student out, and back.

    python benchmarks/predict.py --preset bar --json predict.json

Peers run one layer of the student after the other, as plain PyTorch, with softmax attention written out ("eager",
"compile") or by F.scaled_dot_product_attention ("sdpa"), and keep everything for backward.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks import peers, plain, shapes
from benchmarks.case import (
    FORWARD,
    FULL,
    LEFT_OUT,
    Case,
    Contender,
    Draw,
    Problem,
    Run,
    Setting,
    Target,
    attention_executed,
    attention_flop,
    missing,
    ours,
    product_flop,
    total,
)
from benchmarks.harness import main
from benchmarks.plain import Attend, Layers
from weightformer.gates import log_buckets
from wfkernels import Block, Parameters, Settings, predict
from wfkernels.layout import RowLayout, TokenLayout

BUCKETS = 16  # of weightformer.Config


def parameters(draw: Draw, layout: TokenLayout, d: int, ffn: int, blocks: int, gate: bool = False) -> Parameters:
    """Return the tensors of a WeightFormer in the paper's form without cross tokens."""
    student = layout.layout
    layers = len(student.layers)

    def norm() -> tuple[Tensor, Tensor]:
        return draw.normal(d, scale=0.1, offset=1.0), draw.normal(d, scale=0.1)

    def linear(outputs: int, inputs: int) -> tuple[Tensor, Tensor]:
        return draw.matrix(outputs, inputs), draw.normal(outputs, scale=0.1)

    return Parameters(
        embedding_weights=[draw.normal(r, d, scale=r**-0.5) for r in student.widths],
        embedding_biases=draw.normal(layers, d, scale=0.1),
        shift=draw.normal(student.column_numel, scale=0.01, learn=False),
        scale=draw.leaf(0.02 + 0.01 * torch.rand(student.column_numel, generator=draw.generator), False),
        position=draw.normal(max(student.rows), d, scale=0.5),
        gamma=draw.normal(d, scale=0.1, offset=1.0),
        beta=draw.normal(d, scale=0.1),
        blocks=[
            Block(*norm(), *linear(3 * d, d), *linear(d, d), *norm(), *linear(ffn, d), *linear(d, ffn))
            for _ in range(blocks)
        ],
        projection_weights=[draw.normal(d, r, scale=d**-0.5) for r in student.widths],
        projection_biases=[draw.normal(r, scale=0.1) for r in student.widths],
        strength=draw.normal(layers, scale=0.1, offset=1.0),
        teacher=draw.normal(max(layout.teachers) + 1, d, scale=0.5),
        layer=draw.normal(layers, d, scale=0.5),
        gate=draw.leaf(draw.uniform(1, 2, 2, 2, 2 * BUCKETS + 1)) if gate else None,
    )


def problem(
    setting: Setting, layout: TokenLayout, d: int, ffn: int, blocks: int, heads: int, gate: bool, dtype: torch.dtype
) -> Problem:
    """Return a prediction with its peers; with a gate there are none, because none has one."""
    draw = Draw(setting.device, dtype)
    rows = draw.normal(sum(layout.teachers) * layout.layout.row_numel, scale=0.03, learn=False)
    given = parameters(draw, layout, d, ffn, blocks, gate)
    lookup = log_buckets(BUCKETS, max(layout.layout.rows) - 1).to(setting.device) if gate else None
    grad = draw.normal(layout.groups, layout.layout.numel, scale=0.1, learn=False)
    places = [i for i, t in enumerate(given.flatten()) if t is not None]

    def parameters_of(tensors: Sequence[Tensor]) -> Parameters:
        flat: list[Tensor | None] = [None] * len(given.flatten())
        for i, tensor in zip(places, tensors, strict=True):
            flat[i] = tensor
        return given.unflatten(flat)

    def run(rows: Tensor, *tensors: Tensor, impl: str, recompute: str) -> Tensor:
        settings = Settings(heads=heads, cross_layer="none", recompute=recompute)
        students = predict(rows, parameters_of(tensors), settings, layout=layout, gate_lookup=lookup, impl=impl)
        assert isinstance(students, Tensor)
        return students

    def loop(layers: Layers) -> Contender:
        def student(rows: Tensor, *tensors: Tensor) -> Tensor:
            return _student(rows, parameters_of(tensors), layout, layers)

        return Contender(student)

    found: dict[str, Contender] = {}
    for recompute in ("none", "full"):
        work = executed(layout, d, ffn, blocks, recompute, gate)
        found |= ours(setting, partial(run, recompute=recompute), f", recompute {recompute}", work)
    if not gate:
        eager, sdpa = (_layers(attend, heads) for attend in (plain.softmax_attention, F.scaled_dot_product_attention))
        found["eager"] = loop(eager)
        # The block is one program for each length; the other steps are too small to be worth one for each width.
        dynamic = (True, True, True) if setting.gpu else (None, False, None)
        steps = Layers(*(peers.compiled(f, dynamic=x) for f, x in zip(eager, dynamic, strict=True)))
        found["compile"] = missing(LEFT_OUT) if setting.quick else loop(steps)
        found["sdpa"] = loop(sdpa)
    tensors = (rows, *(t for t in given.flatten() if t is not None))
    reference: Run = partial(run, impl="reference", recompute="none")
    return Problem(tensors, (grad,), reference, found, results=("students",))


def _layers(attend: Attend, heads: int) -> Layers:
    return Layers(plain.embed, plain.encoder_block(attend, heads), plain.project)


def _student(rows: Tensor, p: Parameters, layout: TokenLayout, layers: Layers) -> Tensor:
    """Return [1, numel] by the loop over layers."""
    read = []
    for x, n in zip(plain.embedded(rows, p, layout, layers.embed), layout.layout.rows, strict=True):
        for block in p.blocks:
            x = layers.block(x, *block)
        read.append(x[:n])
    return torch.cat(plain.buffer(plain.projected(read, p, layout, layers.project), layout))[None]


def flop(layout: TokenLayout, d: int, ffn: int, blocks: int) -> dict[str, float]:
    """Return the operations of the whole model, every token in every block."""
    student, (teachers,) = layout.layout, layout.teachers
    parts = [product_flop(layout.total, d, 4 * d + 2 * ffn), attention_flop(shapes.pairs(layout.lengths), d)]
    parts *= blocks
    for n, r in zip(student.rows, student.widths, strict=True):
        parts += [product_flop(teachers * n, r, d, inputs_learn=False), product_flop(n, d, r)]
    return total(parts)


def executed(layout: TokenLayout, d: int, ffn: int, blocks: int, recompute: str, gate: bool) -> dict[str, float]:
    """Return what the Triton kernels compute: more products in attention's backward, and blocks again."""
    found = flop(layout, d, ffn, blocks)
    tokens, all_pairs = layout.total, shapes.pairs(layout.lengths)
    counted, done = attention_flop(all_pairs, d), attention_executed(all_pairs, d, gate)
    block = product_flop(tokens, d, 4 * d + 2 * ffn)[FORWARD] + counted[FORWARD]
    again = blocks * block if recompute == "full" else 0.0
    return {
        mode: work + blocks * (done[mode] - counted[mode]) + again * (mode != FORWARD) for mode, work in found.items()
    }


def case(
    setting: Setting,
    name: str,
    student: RowLayout,
    teachers: int,
    d: int = 512,
    blocks: int = 6,
    heads: int = 8,
    gate: bool = False,
    dtype: torch.dtype = torch.float32,
    targets: Sequence[Target] = (),
) -> Case:
    """Return a whole prediction and its training step, judged on fewer rows and narrower weights, a model of d=64."""
    layout, small = (x.tokens((teachers,)) for x in (student, shapes.reduced(student, 16, 64)))
    build = partial(problem, setting, heads=heads, gate=gate, dtype=dtype)
    found = Case(
        f"{name}, T={teachers}, d={d}, L={blocks}{', bucketed gate' if gate else ''}",
        partial(build, layout, d, 4 * d, blocks),
        flop(layout, d, 4 * d, blocks),
        modes=(FORWARD, FULL),
        judged=(f"{small.total} tokens, d=64, L=2", partial(build, small, 64, 128, 2)),
        targets=targets,
    )
    return replace(found, dtype=dtype)


NONE, ALL = ", recompute none", ", recompute full"
TARGETS = (
    Target(FORWARD, "time", 1.3, "eager", NONE),
    Target(FORWARD, "time", 1.1, "compile", NONE),
    Target(FULL, "time", 1.1, "eager", NONE),
    Target(FULL, "time", 0.9, "eager", ALL),
    Target(FULL, "memory", 3.0, "eager", ALL),
)


# Shares of the card's own product by counted operations; the form that keeps everything is the fast one.
GPU_TARGETS = (Target(FORWARD, "gemm", 0.45, suffix=NONE), Target(FULL, "gemm", 0.25, suffix=NONE))
GPU_TWO = tuple(
    Target(mode, "time", bound, peer, NONE)
    for mode in (FORWARD, FULL)
    for bound, peer in ((3.0, "eager"), (1.5, "compile"))
)


def gpu(setting: Setting) -> list[Case]:
    if setting.preset == "gpu-quick":
        small = shapes.reduced(shapes.vgg11_bn(), 8, 16)
        return [case(setting, "VGG-11 in small", small, 2, 64, 2, 4, dtype=setting.half, targets=GPU_TARGETS + GPU_TWO)]
    students = {"ResNet-50": shapes.resnet50(), "ViT-B/32": shapes.vit_b32(), "VGG-11-BN": shapes.vgg11_bn()}
    return [
        case(setting, name, student, t, dtype=setting.half, targets=GPU_TARGETS + GPU_TWO * (t == 2))
        for t in (2, 5)
        for name, student in students.items()
    ]


def cases(setting: Setting) -> list[Case]:
    vgg11, resnet50 = shapes.vgg11_bn(), shapes.resnet50()
    if setting.gpu:
        return gpu(setting)
    if setting.preset == "quick":
        return [case(setting, "VGG-11 in small", shapes.reduced(vgg11, 8, 16), 2, d=64, blocks=2, heads=4)]
    if setting.preset == "bar":
        return [case(setting, "VGG-11's convolutions", vgg11, 2, targets=TARGETS)]
    dtypes = (torch.float32, torch.bfloat16)
    return [
        *(case(setting, "VGG-11's convolutions", vgg11, teachers) for teachers in (2, 5)),
        case(setting, "VGG-11's convolutions", vgg11, 2, gate=True),
        *(case(setting, f"ResNet-50's convolutions, {dtype}", resnet50, 2, dtype=dtype) for dtype in dtypes),
    ]


if __name__ == "__main__":
    sys.exit(main("predict", cases))
