"""Training steps to be timed: of every size and form, so that the rates fitted to them hold for others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from wfkernels.layout import Layer, Parameter, RowLayout, TokenLayout
from wfkernels.predict.api import predict
from wfkernels.predict.parameters import Block, Parameters, Settings
from wfkernels.rows.api import pack


@dataclass(frozen=True)
class Step:
    """A training step to be timed: layers of (rows, width), each `depth` times."""

    layers: tuple[tuple[int, int], ...]
    d: int
    heads: int
    depth: int = 1
    teachers: tuple[int, ...] = (3,)
    cross: int = 0
    gate: str = "none"
    blocks: int = 2
    dropout_p: float = 0.0
    norm: str = "pre"
    output: str = "mean"
    read: str = "anchor"
    recompute: str = "full"
    activation: str = "gelu"


# Small and large sequences, few and many, narrow and wide, with every kind of gate.
STEPS = (
    Step(((16, 28), (10, 17)), d=32, heads=4, depth=4, cross=1, gate="bucketed"),
    Step(((64, 289), (64, 577)), d=64, heads=4, gate="bucketed", dropout_p=0.1),
    Step(((64, 65),), d=64, heads=4, depth=24, teachers=(2, 2), norm="post", output="plain"),
    Step(((32, 289), (128, 577)), d=128, heads=8, depth=2, cross=1, gate="dense"),
    Step(((256, 1153),), d=128, heads=8, gate="bucketed", cross=1, recompute="none"),
    Step(((128, 65),), d=256, heads=8, depth=4, dropout_p=0.1, gate="dense", blocks=1, activation="relu"),
    Step(((300, 401),), d=512, heads=8, teachers=(2,)),
    Step(((400, 65),), d=64, heads=2, teachers=(4,), gate="bucketed"),
    Step(((384, 65),), d=128, heads=4, teachers=(4,), norm="post"),
    Step(((50, 129), (100, 65)), d=64, heads=8, teachers=(5,), gate="dense"),
    Step(((256, 65),), d=64, heads=4, teachers=(4,), gate="dense"),
    Step(((24, 65), (40, 33)), d=128, heads=8, depth=8, teachers=(2, 3), gate="dense", cross=1, blocks=1),
    Step(((80, 33), (40, 65)), d=64, heads=4, depth=2, teachers=(2,), output="plain"),
    Step(((20, 33), (48, 65)), d=96, heads=8, depth=6, gate="bucketed", read="mean"),
    Step(((500, 33),), d=256, heads=4, teachers=(2,), gate="none", blocks=1, read="mean"),
)


def training_step(step: Step, device: torch.device, impl: str) -> Callable[[], None]:
    """Return a function that runs the step: pack, predict and backward."""
    layout, parameters, settings, lookup = model(step, device)
    student = layout.layout
    teachers = [[torch.randn(p.shape, device=device) for p in student.parameters] for _ in range(sum(step.teachers))]

    def run() -> None:
        rows = pack(teachers, student, impl=impl)
        students = predict(rows, parameters, settings, layout=layout, gate_lookup=lookup, impl=impl)
        assert isinstance(students, Tensor)
        torch.autograd.backward(students, torch.ones_like(students))

    return run


def model(step: Step, device: torch.device) -> tuple[TokenLayout, Parameters, Settings, Tensor | None]:
    spans = [span for span in step.layers for _ in range(step.depth)]
    student = RowLayout(
        tuple(Layer(f"l{i}", "linear", n, (Parameter(f"l{i}.weight", (n, r), 0, r),)) for i, (n, r) in enumerate(spans))
    )
    layout, d, ffn = student.tokens(step.teachers, step.cross), step.d, 4 * step.d

    def random(*shape: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(shape, device=device) * scale).requires_grad_()

    def matrix(outputs: int, inputs: int) -> Tensor:
        return random(outputs, inputs, scale=inputs**-0.5)

    def block() -> Block:
        products = (matrix(3 * d, d), random(3 * d), matrix(d, d), random(d))
        return Block(
            *(random(d), random(d)),
            *products,
            *(random(d), random(d)),
            matrix(ffn, d),
            random(ffn),
            matrix(d, ffn),
            random(d),
        )

    gate = lookup = None
    if step.gate == "dense":
        longest = layout.max_length
        gate = torch.rand(1, longest, longest, device=device).requires_grad_()
    if step.gate == "bucketed":
        gate = torch.rand(step.heads, 2, 2, 2, 33, device=device).requires_grad_()
        lookup = torch.arange(33, device=device)
    pre = step.norm == "pre"
    parameters = Parameters(
        embedding_weights=[matrix(r, d) for _, r in spans],
        embedding_biases=random(len(spans), d),
        shift=torch.zeros(student.column_numel, device=device),
        scale=torch.ones(student.column_numel, device=device),
        position=random(max(student.rows), d),
        gamma=random(d),
        beta=random(d),
        blocks=[block() for _ in range(step.blocks)],
        projection_weights=[matrix(d, r) for _, r in spans],
        projection_biases=[random(r) for _, r in spans],
        strength=random(len(spans)),
        teacher=random(max(step.teachers) + 1, d),
        layer=random(len(spans), d),
        cross=random(step.cross, d) if step.cross else None,
        gate=gate,
        final_weight=random(d) if pre else None,
        final_bias=random(d) if pre else None,
    )
    settings = Settings(
        heads=step.heads,
        norm=step.norm,
        feed_forward=step.activation,
        dropout_p=step.dropout_p,
        output=step.output,
        read=step.read,
        recompute=step.recompute,
    )
    return layout, parameters, settings, lookup
